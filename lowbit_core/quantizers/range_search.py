"""The range that a quantizer starts from."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_core.quantizers.uniform import clip_round

CANDIDATES = 40  # ranges or clips tried on a first batch


def best_range(largest: Tensor, shares: Tensor, error: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the ranges `share * largest`, the one of least quantization error, for each element.

    largest (...): the largest magnitude of the values to quantize. shares (n,): candidates, in
    rising order. error: the squared error (...) of quantization to a uniform grid up to a range
    (...). The smallest range wins a tie.
    """
    ranges = largest * shares.view(-1, *[1] * largest.dim())
    errors = torch.stack([error(candidate) for candidate in ranges])
    return ranges.gather(0, errors.argmin(0)[None])[0]


def best_range_of_grid(
    x: Tensor, bottom: Tensor, top: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """(bottom, top), times the share at which a uniform grid between them has least squared error.

    x: the values to quantize, of any shape. levels: how many the grid has.
    """

    def error(share: Tensor) -> Tensor:
        step = share * (top - bottom).clamp_min(1e-12) / (levels - 1)
        grid = (share * top, share * bottom, step, True, math.inf)
        return (clip_round.eager(x, *grid) - x).square().mean()

    share = best_range(
        torch.ones_like(top), torch.linspace(0, 1, CANDIDATES + 1)[1:].to(x.device), error
    )
    return share * bottom, share * top


def best_clip(x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    """The clip of least squared error on x, one number, from CANDIDATES shares of max |x|.

    quantize: x, quantized with a given clip.
    """
    shares = torch.linspace(1 / CANDIDATES, 1, CANDIDATES, device=x.device)
    largest = x.abs().max().clamp_min(1e-3)
    return best_range(largest, shares, lambda clip: (quantize(clip) - x).square().mean())
