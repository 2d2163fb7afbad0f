"""Levels as sums over bit planes: what turns a convolution into counts of bits.

`split` writes a table of levels as offset + sum over groups g of value_g times an integer. The
integer is the sum of multiplier x bit over the planes of the group. A basis has one plane a group;
levels that are small multiples of one number are one group with multipliers 1, 2, 4 and so on, of
which the last makes their sum the largest multiple; other tables become planes of the bits
"code > i", which always works.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE = 2.0**-22  # of a level, relative to the largest: the rounding of the levels themselves
MOST_PLANES = {"weights": 15, "inputs": 8}  # that the engine counts
EXACT = 2**24  # integers up to here are exact in float32
SMALLEST = 1e-30  # range of levels that is divided by
MOST_INTEGER = 31  # the largest integer tried for levels that are multiples of one number


@dataclass(frozen=True, eq=False)
class Planes:
    """levels[r][q] = offset[r] + sum_g values[r][g] sum_(planes p of g) multiplier[p] bits[p][q].

    bits (P, L) uint8; multiplier, group (P,) int32, groups in rising order; values (R, G) and
    offset (R,) float64.
    """

    bits: np.ndarray
    multiplier: np.ndarray
    group: np.ndarray
    values: np.ndarray
    offset: np.ndarray

    def integers(self) -> np.ndarray:
        """The integer of each group for each code, (G, L) int64."""
        each = self.multiplier[:, None].astype(np.int64) * self.bits
        return np.stack([each[self.group == g].sum(0) for g in range(self.values.shape[1])])


def split(levels: np.ndarray) -> Planes:
    """The planes of levels (R, L): the fewest that reproduce them to the rounding of float32."""
    levels = np.asarray(levels, np.float64)
    found = [p for p in (_integers(levels), _binary(levels), _steps(levels)) if p is not None]
    return min(found, key=lambda planes: len(planes.bits))


def signed(planes: Planes) -> Planes:
    """The same levels with `bits` standing for -1 and +1 instead of 0 and 1.

    levels = offset + sum_g values_g sum_p multiplier_p (2 bits_p - 1): values are halved.
    """
    total = np.bincount(planes.group, planes.multiplier, planes.values.shape[1])
    offset = planes.offset + planes.values @ (total / 2)
    top = np.abs(planes.offset) + np.abs(planes.values).sum(1)
    offset = np.where((np.abs(offset) <= TOLERANCE * top).all(), 0.0, offset)
    return Planes(planes.bits, planes.multiplier, planes.group, planes.values / 2, offset)


def _fits(planes: Planes, levels: np.ndarray) -> bool:
    made = planes.offset[:, None] + planes.values @ planes.integers()
    return bool((np.abs(made - levels).max(1) <= TOLERANCE * np.abs(levels).max(1)).all())


def _code_bits(codes: np.ndarray, count: int) -> np.ndarray:
    return (codes >> np.arange(count)[:, None] & 1).astype(np.uint8)


def _integer_bits(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bits (P, L) and multipliers (P,) of integers from 0; the multipliers' sum is the largest one.

    With powers of two alone the sum could be larger. Signed planes of symmetric levels would then
    need an offset that cancels most of what is counted, and with it digits of the result.
    """
    largest = int(numbers.max())
    count = largest.bit_length()
    multiplier = 1 << np.arange(count)
    multiplier[-1] = largest - multiplier[:-1].sum()
    last = numbers >= 1 << (count - 1)
    bits = _code_bits(numbers - multiplier[-1] * last, count - 1)
    return np.concatenate([bits, last[None]]).astype(np.uint8), multiplier.astype(np.int32)


def _integers(levels: np.ndarray) -> Planes | None:
    """One group: every level is the lowest plus a small multiple of one number of its row."""
    above = levels - levels[:, :1]
    top = above[:, -1]
    row = int(top.argmax())
    if not top[row] > SMALLEST:
        return None
    for largest in range(levels.shape[1] - 1, MOST_INTEGER + 1):
        numbers = np.rint(above[row] * (largest / top[row])).astype(np.int64)
        bits, multiplier = _integer_bits(numbers)
        values = (top / largest)[:, None]
        groups = np.zeros(len(bits), np.int32)
        planes = Planes(bits, multiplier, groups, values, levels[:, 0])
        if _fits(planes, levels):
            return planes
    return None


def _binary(levels: np.ndarray) -> Planes | None:
    """One group for each bit of the code: the levels of a basis."""
    codes = np.arange(levels.shape[1])
    count = int(codes[-1]).bit_length()
    values = np.stack([levels[:, 1 << k] - levels[:, 0] for k in range(count)], 1)
    groups = np.arange(count, dtype=np.int32)
    ones = np.ones(count, np.int32)
    planes = Planes(_code_bits(codes, count), ones, groups, values, levels[:, 0])
    return planes if _fits(planes, levels) else None


def _steps(levels: np.ndarray) -> Planes:
    """One group for each step between neighbouring levels: its bit says whether code > i."""
    codes = np.arange(levels.shape[1])
    bits = (codes[None, :] > codes[:-1, None]).astype(np.uint8)
    ones, groups = np.ones(len(bits), np.int32), np.arange(len(bits), dtype=np.int32)
    return Planes(bits, ones, groups, np.diff(levels, axis=1), levels[:, 0])


def countable(weights: np.ndarray, inputs: np.ndarray, products: int) -> bool:
    """Whether sums of `products` products of weight and input levels can be counted over planes.

    weights (R, L), inputs (L,): the levels. Few planes must make them, and every count must stay
    exact in float32.
    """
    w, a = split(weights), split(inputs[None])
    largest = int(w.multiplier.sum()) * int(a.multiplier.sum()) * products
    few = len(w.bits) <= MOST_PLANES["weights"] and len(a.bits) <= MOST_PLANES["inputs"]
    return few and largest < EXACT
