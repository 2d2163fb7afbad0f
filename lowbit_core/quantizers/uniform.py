"""Uniform activation quantization on a clipped range: shared by DoReFa and PACT."""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.blocks import as_blocks, from_blocks
from lowbit_core.quantizers.interface import ActivationQuantizer
from lowbit_core.quantizers.ste_mask import (
    ABOVE,
    BELOW,
    gate_of,
    rectified,
    through_gate,
    through_gate_summed,
)


@fused(cpu=kernels.clip_round)
def clip_round(
    x: Tensor, top: Tensor, bottom: Tensor, step: Tensor, signed: bool, ceiling: float
) -> Tensor:
    """round((clip(x) - bottom) / d) d + bottom, d = `step`, (top - bottom) / (2^bits - 1).

    x has any shape; unsigned, its ReLU is taken first (`gate.rectified`). `step` is an argument, not
    computed here, so that it is divided out once.
    """
    return _clip_round(rectified(x.to(top.dtype), signed, ceiling), top, bottom, step).to(x.dtype)


@fused(cpu=kernels.clip_round_gated)
def clip_round_gated(
    x: Tensor, top: Tensor, bottom: Tensor, step: Tensor, signed: bool, ceiling: float, fork: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """`clip_round` of x, its ReLU if `fork`, the gates, and whether x holds a NaN or infinity."""
    full = x.to(top.dtype)
    inside = rectified(full, signed, ceiling)
    y = _clip_round(inside, top, bottom, step).to(x.dtype)
    above = inside >= top
    gate = gate_of(full, (inside < top) & (inside >= bottom), signed, ceiling)
    gate = gate + above.to(torch.uint8) * ABOVE
    if signed:
        gate = gate + (inside <= bottom).to(torch.uint8) * BELOW
    return y, inside.to(x.dtype) if fork else None, gate, ~torch.isfinite(inside.sum())


def _clip_round(x: Tensor, top: Tensor, bottom: Tensor, step: Tensor) -> Tensor:
    # Not torch.clamp with tensors: minimum and maximum let a NaN through, and vectorise.
    inside = torch.minimum(torch.maximum(x, bottom), top)
    return torch.round((inside - bottom) / step) * step + bottom


class ClipRound(torch.autograd.Function):
    """(clip_round(x), x not finite), and relu(x) between them if `fork`.

    Straight-through estimator inside [bottom, top): dy/dx = 1 there, else 0, times that of the ReLU
    when unsigned; dy/dtop = [x >= top]; dy/dbottom = [x <= bottom] when signed (PACT, eq. 3).
    """

    @staticmethod
    def forward(ctx, x, top, bottom, step, signed, ceiling, fork):
        y, relu, gate, bad = clip_round_gated(
            as_blocks(x), top, bottom, step, signed, ceiling, fork
        )
        ctx.save_for_backward(gate)
        ctx.set_materialize_grads(False)
        ctx.fork = fork
        ctx.mark_non_differentiable(bad)
        y = from_blocks(y, x)
        return (y, from_blocks(relu, x), bad) if fork else (y, bad)

    @staticmethod
    def backward(ctx, g, *others):
        (gate,) = ctx.saved_tensors
        g_relu = others[0] if ctx.fork else None
        blocks, relu = as_blocks(g), None if g_relu is None else as_blocks(g_relu)
        if ctx.needs_input_grad[1]:
            to, top, bottom = through_gate_summed(blocks, relu, gate)
        else:
            to, top, bottom = through_gate(blocks, relu, gate), None, None
        return from_blocks(to, g), top, bottom, None, None, None, None


class UniformActivation(ActivationQuantizer):
    """Clips to a range and rounds to 2^bits levels at equal distances; `grid` says which range."""

    DOES_RELU = True

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """(top, bottom, step) of the present range."""
        raise TypeError(f"{type(self).__name__} does not define grid()")

    def forward(self, x: Tensor, fork: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        grid = (*self.grid(), self.signed, self.ceiling)
        if not self.training:
            y = clip_round(x, *grid)
            return (rectified(x, self.signed, self.ceiling), y) if fork else y
        y, *relu, bad = ClipRound.apply(x, *grid, fork)
        self.nonfinite += bad
        return (*relu, y) if fork else y
