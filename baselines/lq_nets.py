"""LQ-Nets (Zhang et al. 2018, arXiv:1807.10029): learned bases for weights and activations."""

from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.basis import (
    FEW_BITS,
    MOMENTUM,
    all_levels,
    fit_rows,
    quantize_rows,
    refit_rows,
)
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import Method, ShadowWeight, update_buffer


class _Refit(torch.autograd.Function):
    """(The nearest levels of each row's basis, the refitted bases); identity gradient to w."""

    @staticmethod
    def forward(ctx, w, v):
        # At 8 bits on a GPU not compiled: torch.compile needs a minute for 44 sums, and weights
        # are few.
        small = v.shape[1] <= FEW_BITS or w.device.type == "cpu"
        y, fit = (refit_rows if small else refit_rows.eager)(w, v)
        ctx.mark_non_differentiable(fit)
        return y, fit

    @staticmethod
    def backward(ctx, g, _):
        return g, None


class LQWeight(ShadowWeight):
    """A full-precision shadow weight, quantized with one basis (K numbers) per output channel.

    Every training step refits the bases by least squares and moves them by a moving average (QEM,
    section 3.2). They start from the same fit, run to convergence on the pretrained weight.
    """

    INIT = "alternating least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.register_buffer("v", fit_rows(self.weight.detach(), bits))

    def forward(self) -> Tensor:
        y, fit = _Refit.apply(self.weight, self.v)
        if self.training:
            update_buffer(self, "v", MOMENTUM * self.v + (1 - MOMENTUM) * fit)
        return y.view(self.shape)

    def read(self, bits: int) -> tuple[Tensor, Tensor]:
        """Only the full width refits the bases; here they are read."""
        v = self.v[:, self.bits - bits :].contiguous()
        w = quantize_rows(self.weight.detach(), v) + (self.weight - self.weight.detach())
        return w.view(self.shape), all_levels(v, signed=True)

    @torch.no_grad()
    def used(self) -> Tensor:
        return quantize_rows(self.weight, self.v)  # without the fit of a step

    def levels(self) -> Tensor:
        return all_levels(self.v, signed=True)


METHODS = (
    Method(
        "lq_nets", LQWeight, partial(BasisActivation, weighting="equal"), measures_channels=True
    ),
    Method("lq_channel_aware", LQWeight, partial(BasisActivation, weighting="inverse_variance")),
)
