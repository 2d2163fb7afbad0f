"""Quantizers as numbers: codes and levels of a weight, thresholds and levels of an activation.

Both are found by calling the quantizer, so every method is served without a line of its own.
"""

import numpy as np
import torch
from torch import Tensor

from deploy.fileformat import basis_levels
from deploy.graph import Weight
from lowbit_core.quantizers.interface import ActivationQuantizer, WeightQuantizer
from lowbit_core.runtime.errors import InputError

TOLERANCE = 2e-6  # of a value from its level, relative to the largest level of the layer
MOST_LEVELS = 256
_LARGEST = np.float32(np.finfo(np.float32).max)


@torch.no_grad()
def weight_codes(layer: str, quantizer: WeightQuantizer) -> Weight:
    """The codes of the weight that a quantizer makes, and its levels, as a basis where possible.

    Raises InputError where the weight does not consist of the levels that the quantizer names.
    """
    rows, shape = quantizer.used().float(), quantizer.shape
    levels = quantizer.levels().detach().float().contiguous()
    if levels.shape[1] < 2 or levels.shape[1] > MOST_LEVELS:
        raise InputError(f"layer {layer}: {levels.shape[1]} levels: a file holds 2 to 256")
    codes = quantizer.codes()
    distance = (levels.expand(len(rows), -1).gather(1, codes.long()) - rows).abs().max()
    if not float(distance) <= TOLERANCE * float(levels.abs().max()):  # a NaN is refused, too
        raise InputError(
            f"layer {layer}: a weight is {float(distance):.2g} away from the levels of "
            f"{type(quantizer).__name__}: a weight quantizer's levels() must name all its values"
        )
    shaped = codes.view(shape if len(shape) == 4 else (*shape, 1, 1))
    array = np.ascontiguousarray(shaped.permute(0, 2, 3, 1).numpy())
    table = levels.numpy()
    basis = _basis_of(table)
    return Weight(codes=array, levels=table if basis is None else basis_levels(basis), basis=basis)


def _basis_of(levels: np.ndarray) -> np.ndarray | None:
    """The basis (R, K) whose signed sums are the levels (R, 2^K); None if there is none.

    None, too, for one row of levels (R = 1): a table of them is small, and exact.
    """
    count = (levels.shape[1] - 1).bit_length()
    if levels.shape[1] != 2**count or levels.shape[0] == 1:
        return None
    exact = levels.astype(np.float64)
    numbers = [(exact[:, 1 << k] - exact[:, 0]) / 2 for k in range(count)]
    basis = np.stack(numbers, 1).astype(np.float32)
    error = np.abs(basis_levels(basis) - levels).max(1)
    return basis if (error <= 2.0**-21 * np.abs(levels).max(1)).all() else None


@torch.no_grad()
def activation_thresholds(
    layer: str, quantizer: ActivationQuantizer
) -> tuple[np.ndarray, np.ndarray]:
    """(Thresholds (L - 1,), levels (L,)), float32: x has code q if it reaches q thresholds.

    Each threshold is the least float32 that the quantizer maps to a level or higher, found by
    bisection over the bit patterns of floats: ties are as the quantizer breaks them. A level that
    nothing reaches has the threshold infinity. Raises InputError where the quantizer is not a
    rising staircase, the same for every channel.
    """
    quantizer.eval()
    named = quantizer.levels().detach().double().flatten().sort().values.numpy()
    if not 2 <= len(named) <= MOST_LEVELS:
        raise InputError(f"layer {layer}: {len(named)} levels: a file holds 2 to 256")
    middles = (named[1:] + named[:-1]) / 2
    low = np.full(len(middles), _order(-_LARGEST))
    high = np.full(len(middles), _order(_LARGEST) + 1)  # beyond the largest: never reached
    for _ in range(33):
        middle = (low + high) // 2
        above = _call(quantizer, _float(middle)) > middles
        high = np.where(above, middle, high)
        low = np.where(above, low, middle + 1)
        low = np.minimum(low, high)
    thresholds = np.where(
        high > _order(_LARGEST), np.inf, _float(np.minimum(high, _order(_LARGEST)))
    )
    thresholds = np.maximum.accumulate(thresholds).astype(np.float32)
    # The levels are what the module returns; `levels()` may differ in the last digit.
    reached = np.concatenate([[-_LARGEST], np.minimum(thresholds, _LARGEST)])
    levels = _call(quantizer, reached).astype(np.float32)
    _check_staircase(layer, quantizer, thresholds, levels)
    return thresholds, levels


def _check_staircase(
    layer: str, quantizer: ActivationQuantizer, thresholds: np.ndarray, levels: np.ndarray
) -> None:
    """Compare thresholds and levels with the quantizer, at and around the steps and at random."""
    steps = thresholds[np.isfinite(thresholds)]
    scales = (1.0, float(np.abs(steps).max(initial=0.0)), 100.0)
    random = np.concatenate([np.random.default_rng(0).normal(0, 2 * s, 2048) for s in scales])
    up, down = np.float32(np.inf), np.float32(-np.inf)
    around = [steps, np.nextafter(steps, up), np.nextafter(steps, down)]
    x = np.concatenate([*around, random.astype(np.float32), [0.0, -0.0]]).astype(np.float32)
    x = x[np.isfinite(x)]
    made = levels[(x[:, None] >= thresholds).sum(1)]
    # Not exactly: where two levels differ by a rounding, the quantizer itself may step back.
    error = np.abs(made - _call(quantizer, x)).max()
    if not error <= TOLERANCE * np.abs(levels).max():
        raise InputError(
            f"layer {layer}: {type(quantizer).__name__} is not one rising staircase for all "
            "channels, so thresholds cannot describe it"
        )


def _call(quantizer: ActivationQuantizer, x: np.ndarray) -> np.ndarray:
    """The quantizer's values at x (n,), given to it as one image of one channel."""
    values = torch.from_numpy(np.asarray(x, np.float32)).view(1, 1, 1, -1)
    made: Tensor = quantizer(values)
    return made.flatten().double().numpy()


def _order(x: np.float32) -> int:
    """The place of a float32 among all of them: integers that rise as the floats do."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def _float(order: np.ndarray) -> np.ndarray:
    """The floats at these places."""
    size = np.minimum(np.abs(order), _order(_LARGEST)).astype(np.uint32)
    return (
        np.where(order < 0, size | np.uint32(0x80000000), size).astype(np.uint32).view(np.float32)
    )
