"""Activations as blocks of rows whose columns are channels: the layout of a one-pass reduction.

A channels_last tensor (N, C, H, W) lies in memory as N H W rows of C values. It is cut into P
blocks of B rows: a block fits in cache, and one core (or thread block) sums it. Narrow rows are
joined, so that a row of M columns fills a vector register. Other layouts give the same result but
cost a copy, so training makes images and weights channels_last, and convolutions keep that layout.
"""

import functools

from torch import Tensor

LANES = 16  # float32 values in the widest vector register
MAX_ROWS = 255  # of a block: it stays in cache, and its counts stay below 256


def as_blocks(x: Tensor) -> Tensor:
    """x (N, C, ...) as (P, B, M), where column j holds values of channel j % C.

    A view of a channels_last tensor; a tensor in any other memory layout is copied.
    """
    rows = x.movedim(1, -1).contiguous().view(-1, x.shape[1])
    total, width = rows.shape
    join = 1
    while (join * width) % LANES and total % (2 * join) == 0 and join < LANES:
        join *= 2
    total //= join
    return rows.view(-1, _block_rows(total), join * width)


@functools.cache
def _block_rows(total: int) -> int:
    """Rows of a block: the largest divisor of `total` up to MAX_ROWS."""
    return next(b for b in range(min(total, MAX_ROWS), 0, -1) if total % b == 0)


def channels_last(x: Tensor) -> Tensor:
    """x (N, C, ...) as (N, ..., C), contiguous, for a pass that needs no blocks; as `as_blocks`,
    a view of a channels_last tensor.
    """
    return (x if x.dim() == 2 else x.movedim(1, -1)).contiguous()


def channels_second(x: Tensor) -> Tensor:
    """The inverse of `channels_last`: a view."""
    return x if x.dim() == 2 else x.movedim(-1, 1)


def from_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    """The inverse of `as_blocks`: a channels_last view in the shape of `like`."""
    shape = (like.shape[0], *like.shape[2:], like.shape[1])
    return blocks.view(shape).movedim(-1, 1)
