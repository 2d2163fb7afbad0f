"""Uniform activation quantization on a clipped range: shared by DoReFa and PACT."""

import torch
from torch import Tensor

from lowbit_core.fused import fused


@fused
def clip_round(x: Tensor, top: Tensor, bottom: Tensor, steps: Tensor) -> Tensor:
    """round((clip(x) - bottom) / d) d + bottom with d = (top - bottom) / steps. Any shape."""
    step = (top - bottom) / steps
    # Not torch.clamp with tensors: minimum and maximum let a NaN through, and vectorise.
    return (
        torch.round((torch.minimum(torch.maximum(x, bottom), top) - bottom) / step) * step + bottom
    )


@fused
def clip_round_gradient(
    g: Tensor, x: Tensor, top: Tensor, bottom: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (straight through inside the clip), top and bottom (1 where x is beyond)."""
    above, below = x >= top, x <= bottom
    inside = torch.where(above | (x < bottom), 0.0, g)
    return inside, torch.where(above, g, 0.0).sum(), torch.where(below, g, 0.0).sum()


class ClipRound(torch.autograd.Function):
    """y = clip_round(x); straight-through estimator inside [bottom, top].

    dy/dx = 1 for bottom <= x < top, else 0; dy/dtop = [x >= top]; dy/dbottom = [x <= bottom]
    (PACT, eq. 3).
    """

    @staticmethod
    def forward(ctx, x, top, bottom, steps):
        ctx.save_for_backward(x, top, bottom)
        return clip_round(x, top, bottom, steps)

    @staticmethod
    def backward(ctx, g):
        x, top, bottom = ctx.saved_tensors
        return *clip_round_gradient(g, x, top, bottom), None
