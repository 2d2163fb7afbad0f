"""Steps that are computed together, or hand codes to one another, have the same result."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from slow_reference import step
from small_networks import about, one_after_the_other

from deploy.engine.plan import Kind
from deploy.graph import Convolution, Graph, Pool, Quantize, Relu, Weight
from deploy.network import Network


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(3, 14), st.integers(3, 14)),
    convolution=st.sampled_from([(1, 1, 0), (1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 0), (5, 2, 2)]),
    pool=st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0), (1, 1, 0), (1, 2, 0)]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_pool_behind_a_convolution_in_float32(sizes, convolution, pool, threads, seed):
    rng = np.random.default_rng(seed)
    channels, outputs, high, wide = sizes
    kernel, stride, padding = convolution
    values = rng.normal(0, 1, (outputs, kernel, kernel, channels)).astype(np.float32)
    shift = rng.normal(0, 1, outputs).astype(np.float32)
    if min(high, wide) + 2 * padding < kernel:
        high = wide = kernel
    if min((side + 2 * padding - kernel) // stride + 1 for side in (high, wide)) < pool[0]:
        pool = (1, 1, 0)
    graph = Graph(
        "image",
        (channels, high, wide),
        "scores",
        (
            Convolution(
                "a", "image", "a", (stride,) * 2, (padding,) * 2, False, "float",
                Weight(values=values), None, shift,
            ),
            Pool("a", "b", False, *((number, number) for number in pool)),
            Pool("b", "scores", True, size=(1, 1)),
        ),
    )  # fmt: skip
    net = Network(graph, about(outputs, channels), threads=threads)
    images = rng.normal(0, 1, (2, channels, high, wide)).astype(np.float32)
    expected = [one_after_the_other(net, image) for image in images]
    np.testing.assert_array_equal(net.scores(images), expected)


def inverted_bottleneck(rng, sizes, levels, depthwise, is_padded) -> Graph:
    """The operations of a block of MobileNetV2 without its sum, and a pool.

    sizes: channels, hidden channels, height, width. levels: numbers of levels of the three inputs.
    depthwise: side and stride of its kernel.
    """
    channels, hidden, high, wide = sizes
    side, stride = depthwise

    def quantize(layer, source, count):
        thresholds = np.sort(rng.normal(0.5, 1, count - 1)).astype(np.float32)
        values = np.arange(count, dtype=np.float32) / 4 - rng.integers(0, 2)
        if layer == "depth":  # what is not counted may have any levels
            values = np.sort(rng.normal(0, 1, count)).astype(np.float32)
        return Quantize(layer, source, f"q{layer}", thresholds, values)

    def convolution(layer, inputs, outputs, side=1, stride=1, is_depthwise=False):
        shape = (outputs, side, side, 1 if is_depthwise else inputs)
        values = np.float32([[-1.5, -0.5, 0.5, 1.5]])
        weight = Weight(codes=rng.integers(0, 4, shape, np.uint8), levels=values)
        scale, shift = rng.normal(0, 1, (2, outputs)).astype(np.float32)
        compute, padding = "float" if is_depthwise else "counts", side // 2 if is_padded else 0
        return Convolution(
            layer, f"q{layer}", layer, (stride,) * 2, (padding,) * 2, is_depthwise, compute, weight,
            scale, shift,
        )  # fmt: skip

    return Graph(
        "image",
        (channels, high, wide),
        "scores",
        (
            quantize("expand", "image", levels[0]),
            convolution("expand", channels, hidden),
            Relu("expand", "expanded", 6.0),
            quantize("depth", "expanded", levels[1]),
            convolution("depth", hidden, hidden, side, stride, True),
            Relu("depth", "filtered", None),
            quantize("project", "filtered", levels[2]),
            convolution("project", hidden, 5),
            Pool("project", "scores", True, size=(1, 1)),
        ),
    )


@given(
    sizes=st.tuples(
        st.integers(1, 9),
        st.sampled_from([5, 16, 24, 32, 48]),
        st.integers(1, 9),
        st.integers(1, 9),
    ),
    levels=st.tuples(*[st.sampled_from([2, 3, 4, 8, 16, 17, 40])] * 3),
    depthwise=st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3)),
    is_padded=st.booleans(),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_depthwise_convolution_between_two_by_counts(
    sizes, levels, depthwise, is_padded, threads, seed
):
    rng = np.random.default_rng(seed)
    channels, _, *sides = sizes
    if not is_padded:
        sizes = (*sizes[:2], *(max(side, depthwise[0]) for side in sides))
    graph = inverted_bottleneck(rng, sizes, levels, depthwise, is_padded)
    net = Network(graph, about(5, channels), threads=threads)
    (number,) = (k for k, planned in enumerate(net.steps) if planned.kind == Kind.DEPTHWISE)
    assert Kind.DEQUANTIZE not in {planned.kind for planned in net.steps}
    images = rng.normal(0, 1, (2, *graph.input_shape)).astype(np.float32)
    np.testing.assert_array_equal(net.scores(images), [one_after_the_other(net, x) for x in images])
    planned = net.steps[number]
    x = rng.normal(0.5, 1, (*sizes[2:], sizes[1])).astype(np.float32)
    expected, y = step(planned, x, None), net.run_step(number, x)[0]
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 1e-5 * max(1, np.abs(expected).max())
