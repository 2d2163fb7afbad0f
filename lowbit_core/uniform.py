"""Uniform activation quantization on a clipped range: shared by DoReFa and PACT."""

import torch
from torch import Tensor

from lowbit_core.fused import fused


@fused
def clip_round(x: Tensor, top: Tensor, bottom: Tensor, step: Tensor) -> Tensor:
    """round((clip(x) - bottom) / d) d + bottom, d = `step`, (top - bottom) / (2^bits - 1).

    x has any shape. `step` is an argument, not computed here, so that it is divided out once.
    """
    return _clip_round(x, top, bottom, step)


@fused
def clip_round_checked(
    x: Tensor, top: Tensor, bottom: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """`clip_round`, and whether x holds a NaN or infinity (bool)."""
    return _clip_round(x, top, bottom, step), ~torch.isfinite(x.to(top.dtype).sum())


def _clip_round(x: Tensor, top: Tensor, bottom: Tensor, step: Tensor) -> Tensor:
    # Not torch.clamp with tensors: minimum and maximum let a NaN through, and vectorise.
    inside = torch.minimum(torch.maximum(x.to(top.dtype), bottom), top)
    return (torch.round((inside - bottom) / step) * step + bottom).to(x.dtype)


@fused
def clip_gradient(g: Tensor, x: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """g straight through where bottom <= x < top, else 0."""
    return torch.where((x >= top) | (x < bottom), 0.0, g)


@fused
def clip_gradients(
    g: Tensor, x: Tensor, top: Tensor, bottom: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (straight through inside the clip), top and bottom (1 where x is beyond)."""
    above, below = x >= top, x <= bottom
    inside = torch.where(above | (x < bottom), 0.0, g)
    wide = g.to(top.dtype)
    return inside, torch.where(above, wide, 0.0).sum(), torch.where(below, wide, 0.0).sum()


class ClipRound(torch.autograd.Function):
    """(clip_round(x), x not finite); straight-through estimator inside [bottom, top].

    dy/dx = 1 for bottom <= x < top, else 0; dy/dtop = [x >= top]; dy/dbottom = [x <= bottom]
    (PACT, eq. 3).
    """

    @staticmethod
    def forward(ctx, x, top, bottom, step):
        ctx.save_for_backward(x, top, bottom)
        y, bad = clip_round_checked(x, top, bottom, step)
        ctx.mark_non_differentiable(bad)
        return y, bad

    @staticmethod
    def backward(ctx, g, _):
        if ctx.needs_input_grad[1]:
            return *clip_gradients(g, *ctx.saved_tensors), None
        return clip_gradient(g, *ctx.saved_tensors), None, None, None
