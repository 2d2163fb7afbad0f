"""Uniform activation quantization on a clipped range, which DoReFa and PACT share."""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.blocks import channels_last, channels_second
from lowbit_core.quantizers.interface import ActivationQuantizer
from lowbit_core.quantizers.ste_mask import (
    ABOVE_RANGE,
    BELOW_RANGE,
    apply_ste_mask,
    apply_ste_mask_and_sum,
    rectified,
    ste_mask_of,
)


@fused(cpu=kernels.clip_round)
def clip_round(
    x: Tensor, top: Tensor, bottom: Tensor, step: Tensor, signed: bool, ceiling: float
) -> Tensor:
    """round((clip(x) - bottom) / step) step + bottom, for x of any shape.

    Unsigned, the ReLU of x comes first (`ste_mask.rectified`). step is (top - bottom) / (L - 1); it
    is an argument so that one division serves all values.
    """
    return _clip_round(rectified(x.to(top.dtype), signed, ceiling), top, bottom, step).to(x.dtype)


@fused(cpu=kernels.clip_round_with_mask)
def clip_round_with_mask(
    x: Tensor,
    top: Tensor,
    bottom: Tensor,
    step: Tensor,
    signed: bool,
    ceiling: float,
    also_relu: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(`clip_round` of x, relu(x) or None, the STE mask, whether x holds a NaN or infinity)."""
    full = x.to(top.dtype)
    inside = rectified(full, signed, ceiling)
    y = _clip_round(inside, top, bottom, step).to(x.dtype)
    mask = ste_mask_of(full, (inside < top) & (inside >= bottom), signed, ceiling)
    mask = mask + (inside >= top).to(torch.uint8) * ABOVE_RANGE
    if signed:
        mask = mask + (inside <= bottom).to(torch.uint8) * BELOW_RANGE
    return y, inside.to(x.dtype) if also_relu else None, mask, ~torch.isfinite(inside.sum())


def _clip_round(x: Tensor, top: Tensor, bottom: Tensor, step: Tensor) -> Tensor:
    # Not torch.clamp with tensors: minimum and maximum let a NaN through, and vectorise.
    inside = torch.minimum(torch.maximum(x, bottom), top)
    return torch.round((inside - bottom) / step) * step + bottom


class ClipRound(torch.autograd.Function):
    """(`clip_round` of x, whether x is not finite), and relu(x) after them if `also_relu`.

    Straight-through estimator inside [bottom, top): dy/dx = 1 there, else 0, times that of the ReLU
    when unsigned; dy/dtop = [x >= top] (PACT, eq. 3); when signed dy/dbottom = [x <= bottom], which
    is ours.
    """

    @staticmethod
    def forward(ctx, x, top, bottom, step, signed, ceiling, also_relu):
        y, relu, mask, not_finite = clip_round_with_mask(
            channels_last(x), top, bottom, step, signed, ceiling, also_relu
        )
        ctx.save_for_backward(mask)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(not_finite)
        y = channels_second(y)
        return (y, not_finite, channels_second(relu)) if also_relu else (y, not_finite)

    @staticmethod
    def backward(ctx, g, _not_finite, g_relu=None):
        (mask,) = ctx.saved_tensors
        g, relu = channels_last(g), None if g_relu is None else channels_last(g_relu)
        if ctx.needs_input_grad[1]:
            to, top, bottom = apply_ste_mask_and_sum(g, relu, mask)
        else:
            to, top, bottom = apply_ste_mask(g, relu, mask), None, None
        return channels_second(to), top, bottom, None, None, None, None


class UniformActivation(ActivationQuantizer):
    """Clips to the range of `grid` and rounds to 2^bits levels at equal distances."""

    DOES_RELU = True

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """(top, bottom, step) of the present range, each a tensor of one number."""
        raise TypeError(f"{type(self).__name__} does not define grid()")

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        grid = (*self.grid(), self.signed, self.ceiling)
        if not self.training:
            y = clip_round(x, *grid)
            return (rectified(x, self.signed, self.ceiling), y) if also_relu else y
        y, not_finite, *relu = ClipRound.apply(x, *grid, also_relu)
        self.nonfinite += not_finite
        return (*relu, y) if also_relu else y
