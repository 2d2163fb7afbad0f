"""The engine: its integers, its floats, and that neither depends on the machine's instructions."""

import os
import select
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import counts, step
from small_networks import (
    CHANNELS,
    CLASSES,
    FOR_ANY_LEVELS,
    SIDE,
    about,
    network,
    one_layer,
    quantized,
    targets,
)

from deploy import network as network_module
from deploy.engine import plan
from deploy.export.trace import trace
from deploy.graph import Add, Convolution, Graph, Relu
from deploy.network import Network
from lowbit_core.runtime.errors import InputError

RELATIVE = 1e-6  # of the largest output of a layer


def random_levels(rng: np.random.Generator, kind: str, rows: int) -> np.ndarray:
    """Levels (rows, L) of each kind that `planes.split` tells apart."""
    if kind == "basis":
        v = np.sort(rng.uniform(0.1, 1, (rows, 2)), 1)
        return np.stack([-v[:, 0] - v[:, 1], v[:, 0] - v[:, 1], v[:, 1] - v[:, 0], v.sum(1)], 1)
    tables = {
        "binary": [[-1.0, 1.0]],
        "shifted": [[-0.5, 1.25]],
        "ternary": [[-1.0, 0.0, 1.0]],
        "uniform": [np.linspace(-1, 1, 8)],
        "powers": [[-4.0, -2, -1, 0, 1, 2, 4, 6]],
        "any": [np.sort(rng.normal(0, 1, 5))],
    }
    return np.array(tables[kind]) * rng.uniform(0.1, 2, (rows, 1))


KINDS = ("basis", "binary", "shifted", "ternary", "uniform", "powers", "any")


@given(
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS), st.booleans()),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 9)),
    window=st.sampled_from([(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (2, 1, 0)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_integers_and_floats_of_any_layer(kinds, sizes, window, seed):
    rng = np.random.default_rng(seed)
    channels, outputs, side = sizes
    side = max(side, window[0])
    w_levels = random_levels(rng, kinds[0], outputs if kinds[2] else 1)
    a_levels = random_levels(rng, kinds[1], 1)[0]
    graph = one_layer(rng, w_levels, a_levels, channels, outputs, side, *window)
    net = Network(graph, about())
    x = rng.normal(0, 1, (side, side, channels)).astype(np.float32)
    y, integers = net.run_step(0, x)
    planned = net.steps[0]
    np.testing.assert_array_equal(integers, counts(x, planned.operation, planned.quantizer))
    expected = step(planned, x, None)
    assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max()


NETWORKS = [
    ("alexnet", "direct", 1, 2),
    ("resnet18", "lq_nets", 2, 2),
    ("resnet20", "pact", 3, 3),
    ("resnet20", "direct", 1, 1),
    ("mobilenetv2", "dorefa", 2, 2),
    ("mobilenetv2", "direct", 4, 4),
]


@pytest.mark.parametrize(("arch", "method", "w_bits", "a_bits"), NETWORKS)
def test_every_step_equals_its_slow_form(arch, method, w_bits, a_bits):
    net, _ = network(arch, method, w_bits, a_bits)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (SIDE, SIDE, CHANNELS)).astype(np.float32)
    tensors = {net.graph.input: image}
    for number, planned in enumerate(net.steps):
        x = tensors[planned.input]
        other = None if planned.other is None else tensors[planned.other]
        y, integers = net.run_step(number, x, other)
        expected = step(planned, x, other)
        assert np.abs(y - expected).max() <= RELATIVE * np.abs(expected).max() + 1e-30
        if integers is not None:
            slow = counts(x, planned.operation, planned.quantizer)
            np.testing.assert_array_equal(integers, slow)
        tensors[planned.output] = y
    last = tensors[net.steps[-1].output].ravel()
    whole = net.scores(image.transpose(2, 0, 1)[None])[0]
    np.testing.assert_array_equal(whole, last)
    assert any(planned.kind == plan.Kind.COUNTS for planned in net.steps)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(("arch", "method", "w_bits", "a_bits"), NETWORKS)
def test_every_instruction_set_gives_the_same_bits(target, arch, method, w_bits, a_bits):
    net, graph = network(arch, method, w_bits, a_bits)
    images = np.random.default_rng(0).normal(0, 1, (3, CHANNELS, SIDE, SIDE)).astype(np.float32)
    expected = net.scores(images)
    other = Network(graph, about(), target=target).scores(images)
    np.testing.assert_array_equal(other.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [((8, 4, 3, 2.9), 4), ((8, 7.9), 1), ((8, 9), 1), ((8, 4, 3.9), 2), ((8, 4, 2, 1), 8)],
)
def test_threads_are_doubled_as_long_as_that_gains(seconds, chosen, monkeypatch):
    clock, left = [0.0], list(seconds)
    taken = {}

    def scores(self, images):
        clock[0] += taken.setdefault(self.threads, left.pop(0) if self.threads not in taken else 0)

    monkeypatch.setattr(Network, "scores", scores)
    monkeypatch.setattr(network_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(network_module.os, "sched_getaffinity", lambda _: range(8))
    _, graph = network("resnet20", "direct", 2, 2)
    assert Network(graph, about(), threads=None).threads == chosen
    assert not left  # no more was measured than needed


def test_threads_are_not_measured_where_only_one_may_start(monkeypatch):
    _, graph = network("resnet20", "direct", 2, 2)
    monkeypatch.setattr(network_module._Process, "may_start", False)
    monkeypatch.setattr(Network, "scores", None)  # it would be called
    assert Network(graph, about(), threads=None).threads == 1
    monkeypatch.delattr(network_module.os, "sched_getaffinity")  # as on macOS
    assert network_module._processors() == os.cpu_count()


def test_weights_that_overflow_are_refused():
    net, graph = network("mobilenetv2", "direct", 2, 2)
    for compute in ("counts", "float"):
        operations = [
            replace(op, scale=np.full_like(op.scale, 3e38), weight=_larger(op.weight))
            if isinstance(op, Convolution) and op.compute == compute and op.scale is not None
            else op
            for op in graph.operations
        ]
        with pytest.raises(InputError, match="a level of its weights times their scale is not"):
            Network(replace(graph, operations=tuple(operations)), about())


def _larger(weight):
    return replace(weight, levels=weight.levels * np.float32(1e4))


@pytest.mark.parametrize("threads", [2, 3, None])
def test_any_number_of_threads_gives_the_same_bits(threads):
    net, graph = network("resnet20", "direct", 2, 2)
    images = np.random.default_rng(0).normal(0, 1, (3, CHANNELS, SIDE, SIDE)).astype(np.float32)
    other = Network(graph, about(), threads=threads).scores(images)
    np.testing.assert_array_equal(other, net.scores(images))


@pytest.mark.parametrize("channels", [1, 5])
def test_images_in_any_memory_layout_give_the_same_bits(channels):
    rng = np.random.default_rng(0)
    graph = one_layer(rng, rng.normal(size=(1, 4)), np.arange(4.0), channels, 6, 7, 7, 1, 0)
    net, images = Network(graph, about()), rng.normal(0, 1, (3, channels, 7, 7))
    expected = net.scores(images)
    assert len(np.unique(expected)) > 12
    single = images.astype(np.float32)
    last = np.ascontiguousarray(single.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    constant, constant_last = single.copy(), last.copy(order="K")
    for array in (constant, constant_last):
        array.flags.writeable = False
    fortran, parts = np.asfortranarray(single), np.repeat(single, 2, 3)[..., ::2]
    backwards = np.ascontiguousarray(single[::-1])[::-1]
    for other in (single, last, constant, constant_last, fortran, parts, backwards):
        np.testing.assert_array_equal(net.scores(other), expected)
    assert net.scores(images[:0]).shape == (0, net.classes)


# Two ways of adding float32 turn a value that lies on a threshold into another code now and then,
# and one code changes those after it. So only most of the scores can be compared with torch's.
@pytest.mark.parametrize(("arch", "method", "w_bits", "a_bits"), NETWORKS)
@pytest.mark.parametrize("first_last", ["fp", "8bit"])
def test_scores_are_those_of_torch(arch, method, w_bits, a_bits, first_last):
    model, images = quantized(arch, method, w_bits, a_bits, first_last=first_last)
    net = Network(trace(model, (CHANNELS, SIDE, SIDE)), about())
    with torch.no_grad():
        expected = model(images).numpy()
    scores = net.scores(images.numpy())
    near = np.abs(scores - expected).max(1) <= 1e-4 * np.abs(expected).max()
    assert near.mean() >= 0.75
    assert (scores.argmax(1) == expected.argmax(1)).mean() >= 0.75


def test_a_residual_sum_and_relus_take_no_step_of_their_own():
    net, _ = network("resnet20", "direct", 2, 2)
    kinds = [planned.kind for planned in net.steps]
    assert not {plan.Kind.ADD, plan.Kind.RELU, plan.Kind.DEQUANTIZE} & {*kinds}


def test_what_is_not_counted_is_listed():
    model, _ = quantized("mobilenetv2", "direct", 2, 2, first_last="8bit")
    net = Network(trace(model, (CHANNELS, SIDE, SIDE)), about())
    listed = {row.layer: row for row in net.kernels()}
    assert listed["features.0.0"].how == "dequantized float32"
    assert listed["features.1.conv.0.0"].how == "dequantized depthwise float32"
    assert not listed["features.0.0"].counts and not listed["features.1.conv.0.0"].counts
    # Which of the kernels that serve its levels counts is chosen by its time.
    assert listed["features.2.conv.0.0"].counts
    assert listed["features.2.conv.0.0"].how.startswith(FOR_ANY_LEVELS)


def _scores_and_slow_scores(tail, output):
    """Scores by the engine and by the slow form, of the operations `tail` behind a layer `y`."""
    rng = np.random.default_rng(0)
    levels = np.array([[-1.0, 0.0, 1.0]])
    first = one_layer(rng, levels, np.arange(4.0), CLASSES, CLASSES, 1, 1, 1, 0)
    graph = Graph("image", first.input_shape, output, (*first.operations, *tail))
    x = rng.normal(0, 1, (1, 1, CLASSES)).astype(np.float32)
    tensors = {"image": x, "y": step(Network(first, about()).steps[0], x, None)}
    for op in tail:
        other = tensors.get(getattr(op, "other", None))
        top = np.inf if getattr(op, "ceiling", None) is None else op.ceiling
        source = tensors[op.input]
        tensors[op.output] = source.clip(0, top) if isinstance(op, Relu) else source + other
    scores = Network(graph, about()).scores(x.transpose(2, 0, 1)[None])[0]
    return scores, tensors[output].ravel()


@pytest.mark.parametrize("output", ("a", "b", "sum"))
@pytest.mark.parametrize("ceilings", ((None, 0.3), (0.3, None), (0.3, 0.1)))
def test_relus_in_a_row(ceilings, output):
    tail = (Relu("y", "a", ceilings[0]), Relu("a", "b", ceilings[1]), Add("b", "y", "sum"))
    scores, slow = _scores_and_slow_scores(tail, output)
    np.testing.assert_allclose(scores, slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("output", ("y", "sum"))
def test_the_scores_may_be_read_by_a_sum_as_well(output):
    tail = (Add("y", "image", "sum"),)
    scores, slow = _scores_and_slow_scores(tail, output)
    np.testing.assert_allclose(scores, slow, rtol=1e-5, atol=1e-6)


def test_a_forked_process_computes_on_one_thread():
    """The threads of its parent are gone: the engine would wait for them without end."""
    net, graph = network("resnet20", "direct", 2, 2)
    images = np.random.default_rng(0).normal(0, 1, (2, *graph.input_shape)).astype(np.float32)
    expected = net.scores(images)
    two = Network(graph, about(), threads=2)
    two.scores(images)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # torch's threads are of the same library, and gone as well
    torch.randn(500, 500).sigmoid().sum()
    torch.set_num_threads(before)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # whatever happens, it does not go on with the tests
        try:
            same = np.array_equal(two.scores(images), expected)
            new = Network(graph, about(), threads=2).scores(images)
            os.write(write, b"same" if same and np.array_equal(new, expected) else b"other")
        finally:
            os._exit(0)
    os.close(write)
    try:
        assert select.select([read], [], [], 60)[0], "the forked process hangs"
        assert os.read(read, 10) == b"same"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(read)
    np.testing.assert_array_equal(two.scores(images), expected)  # here, still on two threads


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([[1.0]], r"images of shape \(1, 1\): must be"),
        (np.zeros((1, CHANNELS, SIDE, SIDE), complex), "images of type complex128: must be real"),
        (np.full((1, CHANNELS, SIDE, SIDE), "x"), "images of type <U1: must be real numbers"),
    ],
)
def test_images_of_another_kind_are_refused(images, reason):
    with pytest.raises(InputError, match=reason):
        network("resnet20", "direct", 2, 2)[0].scores(images)


def test_a_pixel_that_is_no_number_reaches_no_threshold():
    graph = one_layer(
        np.random.default_rng(0), np.array([[-1.0, 1.0]]), np.arange(4.0), 1, 1, 1, 1, 1, 0
    )
    net = Network(graph, about(1, 1))
    nothing, lowest = net.scores(np.array([np.nan, -1e30], np.float32).reshape(2, 1, 1, 1))
    np.testing.assert_array_equal(nothing, lowest)
