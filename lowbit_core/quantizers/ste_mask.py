"""The STE mask: one byte a value, all that an activation quantizer's backward pass needs.

STE is the straight-through estimator. An unsigned quantizer also does the ReLU before it: Q(x) =
Q(relu(x)), with the gradient of both. So neither x nor relu(x) is kept for the backward pass, and
no pass over memory is spent on the ReLU. `ceiling` is 6 for a ReLU6 and infinity for a ReLU.
"""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused

# Bits of the mask.
QUANTIZER_PASSES = 1  # the gradient of Q(x) passes to x
ABOVE_RANGE = 2  # x is at or above the top of the clipping range
RELU_PASSES = 4  # the gradient of relu(x) passes to x
BELOW_RANGE = 8  # x is at or below the bottom of the clipping range (signed)


def rectified(x: Tensor, signed: bool, ceiling: float) -> Tensor:
    """The values to quantize: x if `signed`, else relu(x), at most `ceiling`. NaN stays NaN."""
    return x if signed else x.clamp(0.0, ceiling)


def ste_mask_of(x: Tensor, passes: Tensor, signed: bool, ceiling: float) -> Tensor:
    """The STE mask (uint8, the shape of x) without its bits ABOVE_RANGE and BELOW_RANGE.

    passes: bool, true where the straight-through estimator passes the gradient of rounding.
    """
    if signed:
        return passes.to(torch.uint8) * QUANTIZER_PASSES
    positive = (x > 0) & (x < ceiling)
    quantizer = (passes & positive).to(torch.uint8) * QUANTIZER_PASSES
    return quantizer + positive.to(torch.uint8) * RELU_PASSES


@fused(cpu=kernels.apply_ste_mask)
def apply_ste_mask(g: Tensor, g_relu: Tensor | None, mask: Tensor) -> Tensor:
    """The gradient of x from g, that of Q(x), and g_relu, that of relu(x); all of one shape.

    g_relu is None where relu(x) was not returned.
    """
    to = torch.where((mask & QUANTIZER_PASSES) != 0, g, 0.0)
    return to if g_relu is None else to + torch.where((mask & RELU_PASSES) != 0, g_relu, 0.0)


@fused(cpu=kernels.apply_ste_mask_and_sum)
def apply_ste_mask_and_sum(
    g: Tensor, g_relu: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The result of `apply_ste_mask`, and the sums of g above and below the range (float32)."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    above = torch.where((mask & ABOVE_RANGE) != 0, wide, 0.0).sum()
    below = torch.where((mask & BELOW_RANGE) != 0, wide, 0.0).sum()
    return apply_ste_mask.eager(g, g_relu, mask), above, below
