"""The slow form of what the engine does: integers in numpy, and every layer in float64."""

from collections.abc import Iterator

import numpy as np

from deploy import graph as graphs
from deploy.engine.plan import Planned
from deploy.graph import Add, Convolution, Pool, Quantize, Relu
from deploy.planes import signed, split


def taps(x: np.ndarray, op: Convolution) -> Iterator[tuple[int, int, np.ndarray]]:
    """(ky, kx, what this tap reads for every output pixel (OH, OW, C)) of x (H, W, C)."""
    _, kernel_high, kernel_wide, _ = op.weight.shape
    (ph, pw), (sh, sw) = op.padding, op.stride
    padded = np.pad(x, ((ph, ph), (pw, pw), (0, 0)))
    high = (padded.shape[0] - kernel_high) // sh + 1
    wide = (padded.shape[1] - kernel_wide) // sw + 1
    for ky in range(kernel_high):
        for kx in range(kernel_wide):
            yield ky, kx, padded[ky:, kx:][: (high - 1) * sh + 1 : sh, : (wide - 1) * sw + 1 : sw]


def convolution(x: np.ndarray, weight: np.ndarray, op: Convolution) -> np.ndarray:
    """sum of products (OH, OW, O) of x (H, W, C) and weight (O, kh, kw, I), in their type."""
    if op.depthwise:
        return sum(part * weight[:, ky, kx, 0] for ky, kx, part in taps(x, op))
    return sum(part @ weight[:, ky, kx].T for ky, kx, part in taps(x, op))


def codes_of(x: np.ndarray, quantizer: Quantize) -> np.ndarray:
    return (x[..., None] >= quantizer.thresholds).sum(-1)


def counts(x: np.ndarray, op: Convolution, quantizer: Quantize) -> np.ndarray:
    """The integers of a convolution by counts, (OH, OW, O, groups, terms), in int64."""
    codes = codes_of(x, quantizer)
    w_planes, a_planes = signed(split(op.weight.levels)), split(quantizer.levels[None])
    tops = np.bincount(w_planes.group, w_planes.multiplier).astype(np.int64)
    w = [2 * numbers - top for numbers, top in zip(w_planes.integers(), tops, strict=True)]
    inputs = [numbers[codes] for numbers in a_planes.integers()]
    if np.float32(a_planes.offset[0]) != 0:
        inputs.append(np.ones_like(codes))
    rows = [[convolution(a, g[op.weight.codes], op) for a in inputs] for g in w]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def step(planned: Planned, x: np.ndarray, other: np.ndarray | None) -> np.ndarray:
    """The output (H, W, C) of one step in float64, from the same codes."""
    op, quantizer = planned.operation, planned.quantizer
    x = np.asarray(x, np.float32)
    if isinstance(op, Quantize):
        y = op.levels[codes_of(x, op)].astype(np.float64)
    elif isinstance(op, Convolution):
        if quantizer is not None:
            x = quantizer.levels[codes_of(x, quantizer)]
        y = convolution(x.astype(np.float64), op.weight.dequantized().astype(np.float64), op)
        y = y * (1 if op.scale is None else op.scale.astype(np.float64)) + op.shift
    elif isinstance(op, Pool):
        y = pool(x.astype(np.float64), op)
    else:
        assert isinstance(op, Add | Relu)
        y = x.astype(np.float64)
    if other is not None:
        y = y + other
    return np.clip(y, 0, planned.ceiling) if planned.relu else y


def pool(x: np.ndarray, op: Pool) -> np.ndarray:
    reduce = np.mean if op.mean else np.max
    rows, columns = (graphs.windows(side, op, axis) for axis, side in enumerate(x.shape[:2]))
    return np.stack(
        [
            np.stack([reduce(x[top:bottom, left:right], (0, 1)) for left, right in columns])
            for top, bottom in rows
        ]
    )
