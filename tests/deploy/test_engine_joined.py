"""A convolution and the pool behind it are computed together, with the same result."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from small_networks import about, one_after_the_other

from deploy.graph import Convolution, Graph, Pool, Weight
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
