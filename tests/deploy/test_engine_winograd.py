"""Convolutions in float32 by Winograd's method: near float64, and the same bits anywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import step
from small_networks import about, one_after_the_other, targets

from deploy.graph import Add, Convolution, Graph, Pool, Weight
from deploy.network import Network

RELATIVE = 1e-6  # of the largest output of a layer
METHOD = "float32 (Winograd)"
# (kernel high, kernel wide), (stride high, stride wide), most channels: rows of 2 to 4 taps
WINDOWS = [
    ((7, 7), (2, 2), 3),
    ((11, 11), (4, 4), 1),
    ((3, 3), (1, 1), 6),
    ((1, 4), (1, 1), 9),
    ((9, 2), (3, 1), 12),
    ((2, 5), (1, 2), 12),
    ((4, 6), (2, 3), 8),
]


def network(rng, window, channels, outputs, high, wide, padding, pool=None, add=False, **options):
    """A convolution in float32, with a pool or the sum with another convolution behind it."""
    kernel, stride, _ = window
    values = rng.normal(0, 1, (2, outputs, *kernel, channels)).astype(np.float32)
    shift = rng.normal(0, 1, outputs).astype(np.float32)
    operations = [
        Convolution(
            name, "image", name, stride, padding, False, "float", Weight(values=v), None, shift
        )
        for name, v in zip("ab" if add else "a", values, strict=False)
    ]  # fmt: skip
    if add:
        operations.append(Add("a", "b", "c"))
    if pool is not None:
        operations.append(Pool("a", "c", False, *((number, number) for number in pool)))
    last = operations[-1].output
    graph = Graph(
        "image", (channels, high, wide), "scores",
        (*operations, Pool(last, "scores", True, size=(1, 1))),
    )  # fmt: skip
    return Network(graph, about(outputs, channels), **options)


def sizes(window, draw):
    """(channels, outputs, high, wide, padding): with some pixels, or no output might be large."""
    (kernel, _, channels) = window
    padding = tuple(draw(st.integers(0, side // 2)) for side in kernel)
    high, wide = (side + draw(st.integers(8, 40)) for side in kernel)
    return draw(st.integers(1, channels)), draw(st.integers(30, 70)), high, wide, padding


@given(st.data(), st.sampled_from(WINDOWS), st.integers(0, 2**32 - 1))
def test_outputs_are_near_those_in_float64(data, window, seed):
    rng = np.random.default_rng(seed)
    channels, *rest = sizes(window, data.draw)
    net = network(rng, window, channels, *rest)
    x = rng.normal(0, 1, (*rest[1:3], channels)).astype(np.float32)
    y, _ = net.run_step(0, x)
    expected = step(net.steps[0], x, None)
    assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()


@given(
    st.data(),
    st.sampled_from(WINDOWS[:4]),
    st.sampled_from([{}, {"add": True}, {"pool": (3, 2, 1)}, {"pool": (1, 2, 0)}]),
    st.integers(0, 2**32 - 1),
)
def test_bits_are_those_of_every_instruction_set_and_number_of_threads(data, window, tail, seed):
    channels, *rest = sizes(window, data.draw)
    image = np.random.default_rng(seed).normal(0, 1, (1, channels, *rest[1:3])).astype(np.float32)

    def scores(**options):
        rng = np.random.default_rng(seed)
        return network(rng, window, channels, *rest, **tail, **options).scores(image)

    expected = scores()
    assert np.ptp(expected) > 0
    for options in ({"threads": 3}, *({"target": target} for target in targets())):
        np.testing.assert_array_equal(scores(**options).view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_pool_is_computed_with_the_convolution(threads):
    rng = np.random.default_rng(0)
    net = network(rng, WINDOWS[0], 3, 40, 45, 37, (3, 3), pool=(3, 2, 1), threads=threads)
    images = rng.normal(0, 1, (2, 3, 45, 37)).astype(np.float32)
    expected = [one_after_the_other(net, image) for image in images]
    np.testing.assert_array_equal(net.scores(images), expected)


@pytest.mark.parametrize(
    ("window", "channels", "outputs", "wide", "how"),
    [
        (WINDOWS[0], 3, 64, 224, METHOD),
        (WINDOWS[1], 1, 64, 224, METHOD),
        (WINDOWS[1], 3, 64, 224, "float32"),  # the weights would leave the L1 data cache
        (WINDOWS[2], 3, 64, 96, METHOD),
        (WINDOWS[2], 3, 16, 96, "float32"),  # few outputs: too much for the inputs
        (WINDOWS[2], 30, 64, 96, "float32"),  # partial sums would be too long
        (((3, 3), (2, 2), 3), 3, 64, 96, "float32"),  # a phase of one tap saves nothing
        (((1, 5), (1, 1), 3), 3, 64, 96, "float32"),  # five taps
        (WINDOWS[0], 3, 64, 1 << 18, "float32"),  # its rows would fill the cache
        (WINDOWS[2], 3, 64, 4, "float32"),  # two tiles for four outputs
    ],
)
def test_where_the_method_serves(window, channels, outputs, wide, how):
    padding = tuple(side // 2 for side in window[0])
    rng = np.random.default_rng(0)
    net = network(rng, window, channels, outputs, window[0][0], wide, padding)
    (row,) = net.kernels()
    assert (row.how, row.counts) == (how, False)
