"""The kernels that count: each gives the same integers as the slow form, wherever it serves."""

import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import counts
from small_networks import CHANNELS, FOR_ANY_LEVELS, SIDE, about, network, one_layer, targets

from deploy.engine.plan import KERNELS
from deploy.graph import Graph
from deploy.network import Network
from lowbit_core.kernels.build import TARGET
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.hardware import processor_words

# The other kernels must serve on any. `products` needs SSSE3, which plain x86-64 has not.
SSSE3 = "ssse3" in processor_words() and os.environ.get(TARGET) != "x86-64"
OF_SOME_PROCESSORS = {"matrices", "wide"} | (set() if SSSE3 else {"products"})


def here(serving: Iterable[str]) -> set[str]:
    """Those of the kernels that this processor and its operating system offer."""
    rng = np.random.default_rng(0)
    graph = one_layer(rng, uniform(rng, 1, 1), np.arange(2.0), 1, 1, 1, 1, 1, 0)
    return {
        kernel
        for kernel in serving
        if kernel not in OF_SOME_PROCESSORS
        or first_word(Network(graph, about(), kernel=kernel)) == kernel
    }


def first_word(net: Network) -> str:
    """Of the kernel of the first layer: the name by which it is chosen."""
    return words(net)[0]


def words(net: Network) -> list[str]:
    """The same of every layer."""
    return [row.how.removeprefix("8-bit ").split(" ")[0] for row in net.kernels()]


def basis(rng: np.random.Generator, bits: int, rows: int) -> np.ndarray:
    """The levels (rows, 2^bits) of random bases."""
    v = rng.uniform(0.1, 1, (rows, bits)).cumsum(1) * 2.0 ** np.arange(bits)
    signs = 2 * (np.arange(2**bits)[:, None] >> np.arange(bits) & 1) - 1
    return v @ signs.T


def uniform(rng: np.random.Generator, bits: int, rows: int) -> np.ndarray:
    scale = rng.uniform(0.1, 1, (rows, 1))
    return scale * (2 * np.arange(2**bits) - 2**bits + 1)


def a_layer(rng, w_levels, a_bits, signed, sizes, window, a_basis=False) -> Graph:
    """One layer. The levels of its input are equally spaced, or those of a basis (a_basis)."""
    channels, outputs, side = sizes
    lowest = -(2 ** (a_bits - 1)) if signed else 0
    a_levels = rng.uniform(0.1, 1) * (lowest + np.arange(2**a_bits))
    if a_basis:
        a_levels = np.sort(basis(rng, a_bits, 1)[0])
        a_levels -= 0 if signed else a_levels[0]
    return one_layer(rng, w_levels, a_levels, channels, outputs, max(side, window[0]), *window)


def check(
    graph: Graph, rng: np.random.Generator, serving: tuple[str, ...], threads: int = 1
) -> None:
    """Every kernel: the integers of the slow form, and the same floats to the bit."""
    channels, high, wide = graph.input_shape
    x = rng.normal(0, 1, (high, wide, channels)).astype(np.float32)
    quantizer, convolution = graph.operations
    expected, results = counts(x, convolution, quantizer), []
    offered = here(serving)
    for kernel in (*KERNELS, None):
        net = Network(graph, about(), kernel=kernel, threads=threads)
        y, integers = net.run_step(0, x)
        np.testing.assert_array_equal(integers, expected)
        results.append(y)
        if kernel is not None:
            assert first_word(net) == (kernel if kernel in offered else "popcount")
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


WINDOWS = [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (2, 1, 0), (3, 1, 0)]


@given(
    w_bits=st.integers(1, 4),
    a_bits=st.integers(1, 4),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 12)),
    window=st.sampled_from(WINDOWS),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_convolution(w_bits, a_bits, flags, sizes, window, seed):
    rng = np.random.default_rng(seed)
    signed, is_basis, a_basis = flags
    levels = (basis if is_basis else uniform)(rng, w_bits, sizes[1])
    unequal = (is_basis and w_bits > 1) or (a_basis and a_bits > 1)
    serving = FOR_ANY_LEVELS if unequal else KERNELS
    check(a_layer(rng, levels, a_bits, signed, sizes, window, a_basis), rng, serving)


# Several tiles in a row of the output, of several rows each.
@given(
    bits=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    sizes=st.tuples(st.sampled_from([1, 8, 17]), st.sampled_from([1, 16, 40, 70])),
    sides=st.tuples(st.integers(3, 20), st.integers(20, 75)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_wide_images(bits, flags, sizes, sides, stride, padding, threads, seed):
    rng = np.random.default_rng(seed)
    signed, is_basis, a_basis = flags
    (w_bits, a_bits), (channels, outputs) = bits, sizes
    levels = (basis if is_basis else uniform)(rng, w_bits, outputs)
    graph = a_layer(rng, levels, a_bits, signed, (channels, outputs, 3), (3, 1, 1), a_basis)
    quantizer, convolution = graph.operations
    convolution = replace(convolution, stride=stride, padding=padding)
    graph = replace(graph, input_shape=(channels, *sides), operations=(quantizer, convolution))
    unequal = (is_basis and w_bits > 1) or (a_basis and a_bits > 1)
    check(graph, rng, FOR_ANY_LEVELS if unequal else KERNELS, threads)


# The largest sums that a byte and a 16-bit word must hold, and that must be carried on.
@pytest.mark.parametrize("a_bits", [1, 2, 3, 4])
@pytest.mark.parametrize(("channels", "side", "kernel"), [(9001, 1, 1), (520, 7, 7)])
def test_long_sums_of_the_largest_codes(a_bits, channels, side, kernel):
    rng = np.random.default_rng(0)
    graph = a_layer(
        rng, uniform(rng, 4, 1), a_bits, False, (channels, 17, side), (kernel, 1, kernel // 2)
    )
    quantizer, convolution = graph.operations
    convolution.weight.codes[:2] = 15
    convolution.weight.codes[2:4] = 0
    quantizer.thresholds[:] = -100
    check(graph, rng, KERNELS)


# Weights of 256 KiB and more that are larger than the output stay codes, of two or four bits.
@pytest.mark.parametrize("levels", [basis, uniform])
@pytest.mark.parametrize(("w_bits", "a_bits"), [(2, 2), (4, 3)])
def test_weights_that_stay_codes(levels, w_bits, a_bits):
    rng = np.random.default_rng(0)
    graph = a_layer(rng, levels(rng, w_bits, 70), a_bits, False, (448, 70, 5), (3, 1, 1))
    serving = FOR_ANY_LEVELS if levels is basis else KERNELS
    check(graph, rng, serving)
    channels, side, _ = graph.input_shape
    x = rng.normal(0, 1, (side, side, channels)).astype(np.float32)
    one, two = (Network(graph, about(), threads=threads).run_step(0, x)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


# Words of a run of taps: all of them full; the last one shared by two rows; the last one partly
# empty. Without AVX-512 the counts of more than 31 words come in several parts.
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(("channels", "size"), [(128, 3), (16, 3), (80, 5), (72, 5), (13, 1)])
@pytest.mark.parametrize("bits", [1, 2])
def test_words_of_bits_with_any_instructions(target, channels, size, bits):
    rng = np.random.default_rng(0)
    levels = basis(rng, bits, 17)
    graph = a_layer(rng, levels, bits, False, (channels, 17, 6), (size, 1, size // 2), bits > 1)
    quantizer, convolution = graph.operations
    x = rng.normal(0, 1, (6, 6, channels)).astype(np.float32)
    net = Network(graph, about(), target=target, kernel="popcount")
    np.testing.assert_array_equal(net.run_step(0, x)[1], counts(x, convolution, quantizer))


def test_levels_that_are_not_equally_spaced_are_left_to_the_kernels_for_any_levels():
    rng = np.random.default_rng(0)
    levels = np.array([0.0, 0.1, 0.5, 2.0])
    graph = one_layer(rng, uniform(rng, 2, 5), levels, 12, 5, 6, 3, 1, 1)
    check(graph, rng, FOR_ANY_LEVELS)


# One group of five planes, with multipliers up to 16, and one of seven, with multipliers up to 32,
# since its last level is not the largest: `tables` could not hold the sums of two such planes.
@pytest.mark.parametrize("a_bits", [1, 4])
@pytest.mark.parametrize(("largest", "serving"), [(31, KERNELS), (94, set(KERNELS) - {"tables"})])
def test_weights_of_many_planes_in_one_group(largest, serving, a_bits):
    rng = np.random.default_rng(0)
    numbers = rng.choice(np.arange(1, largest), 14, replace=False)
    numbers[0] = largest
    levels = np.array([[0, *numbers, 31 if largest == 31 else 15]]) / 128
    graph = a_layer(rng, levels, a_bits, False, (520, 17, 5), (3, 1, 1))
    graph.operations[1].weight.codes[:2] = 1
    graph.operations[0].thresholds[:] = -100
    check(graph, rng, serving)


# More than fifteen thresholds, each of which may change the code of every group of planes.
def test_a_basis_of_five_bits():
    rng = np.random.default_rng(0)
    graph = a_layer(rng, basis(rng, 2, 17), 5, True, (20, 17, 6), (3, 1, 1), a_basis=True)
    check(graph, rng, FOR_ANY_LEVELS)


@pytest.mark.parametrize("target", ["native", *targets()])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("arch", "method", "w_bits", "a_bits"),
    [("resnet20", "pact", 3, 3), ("resnet20", "direct", 2, 2), ("alexnet", "direct", 1, 2)],
)
def test_every_kernel_gives_the_same_scores(target, kernel, arch, method, w_bits, a_bits):
    net, graph = network(arch, method, w_bits, a_bits)
    images = np.random.default_rng(0).normal(0, 1, (3, CHANNELS, SIDE, SIDE)).astype(np.float32)
    chosen = Network(graph, about(), target=target, kernel=kernel)
    if kernel not in words(chosen):
        pytest.skip(f"{kernel} serves no layer of this network with these instructions")
    other = chosen.scores(images)
    np.testing.assert_array_equal(other.view(np.int32), net.scores(images).view(np.int32))


# Depthwise layers and signed inputs; linear layers, whose input is a single row; a basis.
@pytest.mark.parametrize(
    ("arch", "method", "w_bits", "a_bits"),
    [("mobilenetv2", "dorefa", 2, 2), ("alexnet", "pact", 2, 2), ("mobilenetv2", "direct", 2, 2)],
)
def test_every_kernel_with_any_number_of_threads_gives_the_same_bits(arch, method, w_bits, a_bits):
    net, graph = network(arch, method, w_bits, a_bits)
    images = np.random.default_rng(0).normal(0, 1, (3, CHANNELS, SIDE, SIDE)).astype(np.float32)
    expected, used = net.scores(images).view(np.int32), set()
    for kernel in KERNELS:
        for threads in (1, 2, 3):
            other = Network(graph, about(), kernel=kernel, threads=threads)
            np.testing.assert_array_equal(other.scores(images).view(np.int32), expected)
            used |= {*words(other)}
    # A basis of the weights is not equally spaced, and neither is one of the inputs.
    assert used & set(KERNELS) == here(FOR_ANY_LEVELS if method == "direct" else KERNELS)


def test_an_unknown_kernel_is_refused():
    graph = network("resnet20", "pact", 3, 3)[1]
    with pytest.raises(
        InputError, match="kernel 'lut': must be one of popcount, tables, products, mat"
    ):
        Network(graph, about(), kernel="lut")
