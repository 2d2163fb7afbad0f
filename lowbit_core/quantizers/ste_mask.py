"""What the backward pass of an activation quantizer must know of each value: one byte, its gate.

Where a quantizer is unsigned it does the ReLU before it too: Q(x) = Q(relu(x)), with the gradient of
both. So neither the ReLU's output nor x need be kept for the backward pass, and no pass over memory is
spent on the ReLU. `ceiling` is 6 for a ReLU6, else infinity.
"""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused

PASSES = 1  # the gradient of Q(x) goes through to x
ABOVE = 2  # x is at or above the top of a clip
POSITIVE = 4  # the gradient of relu(x) goes through to x
BELOW = 8  # x is at or below the bottom of a clip (signed)


def rectified(x: Tensor, signed: bool, ceiling: float) -> Tensor:
    """What is quantized: relu(x), at most `ceiling`; x itself when signed. NaN goes through."""
    if signed:
        return x
    x = torch.where(x < 0, 0.0, x)
    return torch.where(x > ceiling, ceiling, x)


def gate_of(x: Tensor, passes: Tensor, signed: bool, ceiling: float) -> Tensor:
    """Gate (uint8) of x, without ABOVE and BELOW; `passes`: where rounding passes the gradient."""
    if signed:
        return passes.to(torch.uint8) * PASSES
    positive = (x > 0) & (x < ceiling)
    return (passes & positive).to(torch.uint8) * PASSES + positive.to(torch.uint8) * POSITIVE


@fused(cpu=kernels.through_gate)
def through_gate(g: Tensor, g_relu: Tensor | None, gate: Tensor) -> Tensor:
    """Gradient of x from that of Q(x), and of relu(x) if it was handed on; all of one shape."""
    own = torch.where((gate & PASSES) != 0, g, 0.0)
    return own if g_relu is None else own + torch.where((gate & POSITIVE) != 0, g_relu, 0.0)


@fused(cpu=kernels.through_gate_summed)
def through_gate_summed(
    g: Tensor, g_relu: Tensor | None, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`through_gate`, and the sums of g above and below the clip (float32)."""
    wide = g.to(torch.promote_types(g.dtype, torch.float32))
    above = torch.where((gate & ABOVE) != 0, wide, 0.0).sum()
    below = torch.where((gate & BELOW) != 0, wide, 0.0).sum()
    return through_gate.eager(g, g_relu, gate), above, below
