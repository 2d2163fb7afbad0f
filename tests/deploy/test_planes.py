"""Levels as sums over bit planes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.planes import signed, split


def made(planes, bits):
    """The levels that planes stand for, by the formula in the docstring of `Planes`."""
    each = planes.multiplier[:, None] * bits.astype(float)
    groups = range(planes.values.shape[1])
    integers = np.stack([each[planes.group == g].sum(0) for g in groups])
    return planes.offset[:, None] + planes.values @ integers


@pytest.mark.parametrize(
    ("levels", "count", "groups"),
    [
        ([[-1, 1]], 1, 1),
        ([[-1, 0, 1]], 2, 1),
        ([[0, 1, 2, 3]], 2, 1),  # equal distances: one group, multipliers 1 and 2
        ([[0, 1, 3, 4]], 2, 2),  # a basis: a number for each plane
        ([[-4, -2, -1, 0, 1, 2, 4]], 4, 1),  # powers of two: the bits of an integer
        ([[0, 1, 2.7, 7.77]], 3, 3),  # anything else: a plane for each step
        ([[-3, -1, 1, 3], [-7, -1, 1, 7]], 2, 2),  # rows with bases of their own
    ],
)
def test_the_fewest_planes(levels, count, groups):
    planes = split(np.array(levels, np.float32))
    assert planes.bits.shape[0] == count and planes.values.shape[1] == groups
    assert not planes.bits[:, 0].any()  # padding with zero bits is padding with the lowest code
    np.testing.assert_allclose(made(planes, planes.bits), levels, atol=1e-6)


@given(
    count=st.integers(2, 16),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    grid=st.booleans(),
)
def test_planes_give_back_the_levels(count, rows, seed, grid):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.normal(0, 1, (rows, count)), 1)
    if grid:
        levels = np.linspace(-1, 1, count) * rng.uniform(0.1, 3, (rows, 1))
    levels = levels.astype(np.float32)
    planes = split(levels)
    np.testing.assert_allclose(made(planes, planes.bits), levels, rtol=0, atol=1e-6 * 4)
    other = signed(planes)
    signs = 2 * other.bits.astype(int) - 1
    np.testing.assert_allclose(made(other, signs), levels, rtol=0, atol=1e-6 * 4)


def test_a_small_row_keeps_its_offset_beside_a_large_one():
    levels = np.array([[-1, 1], [0, 1e-8]])
    planes = signed(split(levels))
    signs = 2 * planes.bits.astype(int) - 1
    np.testing.assert_allclose(made(planes, signs), levels, rtol=1e-6, atol=0)


def test_levels_symmetric_to_zero_have_no_offset():
    for levels in (
        [[-1, 1]],
        np.linspace(-1, 1, 8)[None],
        [[-3, -1, 1, 3], [-2.5, -0.5, 0.5, 2.5]],
        [[-1, 0, 1]],
        [[-4, -2, -1, 0, 1, 2, 4]],  # 0 to 8: four planes with the multipliers 1, 2, 4, 1
        0.1 * np.array([[-8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8]]),
    ):
        planes = signed(split(np.array(levels, np.float32)))
        assert not planes.offset.any()
        assert planes.values.shape[1] > 1 or planes.multiplier.sum() == np.ptp(planes.integers())
