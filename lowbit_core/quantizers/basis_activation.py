"""Basis-coded activations, one quantizer a layer, refitted each step (LQ-Nets form).

The paper's second claim: a quantizer fitted to all values alike is pulled towards the few channels
of high variance; so each channel's quantization error is weighted here. `equal` is LQ-Nets,
`inverse_variance` weighs channel c by 1 / (var(x_c) + eps), `median` takes the median of the
channels' own fits. See docs/method.md for what the paper states and what is our reading.
"""

import math

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import IN_REGISTERS, fused
from lowbit_core.parallel.processes import batch_sums
from lowbit_core.quantizers.basis import (
    FEW_BITS,
    MOMENTUM,
    all_levels,
    code_sums,
    ordered,
    solve_basis,
    successive,
)
from lowbit_core.quantizers.blocks import as_blocks, from_blocks
from lowbit_core.quantizers.interface import ActivationQuantizer, update_buffer
from lowbit_core.quantizers.ste_mask import gate_of, rectified, through_gate
from lowbit_core.runtime.errors import InputError

WEIGHTINGS = ("equal", "inverse_variance", "median")
MAX_FITS = 10  # alternations of a fit to one batch
VARIANCE_FLOOR = 1e-3  # eps, as a share of the mean channel variance


@fused(cpu=kernels.quantize_and_sum, options=IN_REGISTERS)
def quantize_and_sum(
    x: Tensor, v: Tensor, signed: bool, ceiling: float = math.inf, fork: bool = False
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """x (P, B, M) to the levels of v (K,), its ReLU if `fork`, its gates, and sums over B (S, P, M).

    The sums, float32: x, x^2, then those of `code_sums`, of the ReLU of x when unsigned. All in one
    pass over x. NaN and infinity in x give NaN in the result, so that a diverged run shows.
    """
    full = x.to(v.dtype)  # counts and sums need more than bf16
    c = rectified(full, signed, ceiling)
    columns = list(v.unbind())
    y, bits = successive(c, columns, signed)
    top = sum(reversed(columns))
    gate = gate_of(full, (c <= top) & (c >= (-top if signed else 0.0)), signed, ceiling)
    sums = code_sums(c, bits, 1, packed=len(bits) > FEW_BITS)
    return (
        y.to(x.dtype),
        c.to(x.dtype) if fork else None,
        gate,
        torch.stack([c.sum(1), (c * c).sum(1), *sums]),
    )


@fused(cpu=kernels.quantize)
def quantize(x: Tensor, v: Tensor, signed: bool, ceiling: float = math.inf) -> Tensor:
    """x of any shape to the nearest level of v (K,); its ReLU when unsigned."""
    c = rectified(x.to(v.dtype), signed, ceiling)
    return successive(c, list(v.unbind()), signed)[0].to(x.dtype)


def channel_weights(variance: Tensor) -> Tensor:
    """w_c = 1 / (var(x_c) + eps), mean 1 over the channels; 0 for a dead channel."""
    weights = torch.where(
        variance > 0, 1 / (variance + VARIANCE_FLOOR * variance.mean() + 1e-30), 0.0
    )
    return weights / weights.mean().clamp_min(1e-30)


def fit_basis(
    sums: Tensor, v: Tensor, channels: int, size: int, weighting: str, signed: bool
) -> Tensor:
    """Ordered basis (K,) that minimises sum_c w_c ||x_c - B_c v||^2, from `quantize_and_sum`.

    sums (S, P, M), column j of channel j % channels; size: number of values a channel; v (K,) the
    present basis.
    """
    sums = sums.double().sum(1).view(sums.shape[0], -1, channels).sum(1)
    total, square, *rest = sums.unbind()
    count = torch.full_like(total, size)
    v = v[None]
    if weighting == "median":
        fits = ordered(solve_basis(total, count, rest, v.expand(channels, -1), signed))
        return ordered(fits.median(0).values)
    if weighting == "inverse_variance":
        variance = (square / size - (total / size) ** 2).clamp_min(0)
        weights = channel_weights(variance)
        total, count, *rest = (s * weights for s in (total, count, *rest))
    total, count, *rest = (s.sum(0, keepdim=True) for s in (total, count, *rest))
    return ordered(solve_basis(total, count, rest, v, signed)[0])


@fused(cpu=kernels.update_basis)
def update_basis(
    sums: Tensor, v: Tensor, channels: int, size: int, weighting: str, signed: bool
) -> tuple[Tensor, Tensor]:
    """The basis (K,) after a training step, 0.9 v + 0.1 fit, and whether the batch was not finite.

    A batch with NaN must not poison the levels: the run stops as diverged by its loss.
    """
    fit = fit_basis(sums, v, channels, size, weighting, signed)
    sound = torch.isfinite(fit).all() & torch.isfinite(sums[0]).all()  # sums[0]: of x
    # In order without projection: ordered bases are a convex cone.
    return torch.where(sound, MOMENTUM * v + (1 - MOMENTUM) * fit, v), ~sound


def refit_to_convergence(x: Tensor, v: Tensor, signed: bool, weighting: str) -> Tensor:
    """Basis (K,) after alternating quantization and weighted fit on x, from v, to convergence."""
    channels = x.shape[1]
    for _ in range(MAX_FITS):
        sums = quantize_and_sum(as_blocks(x), v, signed)[3]
        fit = fit_basis(sums, v, channels, x.numel() // channels, weighting, signed)
        if torch.allclose(fit, v, rtol=1e-3, atol=1e-6):
            return fit
        v = fit
    return v


def initial_basis(x: Tensor, bits: int, signed: bool) -> Tensor:
    """Basis (K,) of the uniform levels of least squared error on x: from far off a fit stops short."""
    unit = 2.0 ** torch.arange(bits, device=x.device) / (2**bits - 1)
    tops = x.abs().max().clamp_min(1e-6) * torch.linspace(0.05, 1, 20, device=x.device)
    starts = tops[:, None] * unit
    errors = [(quantize(x, start, signed) - x).square().mean() for start in starts]
    return starts[torch.stack(errors).argmin()].clone()


class _QuantizeAndRefit(torch.autograd.Function):
    """One training step: x quantized, the new basis, whether x was not finite; relu(x) if `fork`.

    Backward passes the gradient inside the levels' range, times that of the ReLU when unsigned.
    """

    @staticmethod
    def forward(ctx, x, v, signed, weighting, ceiling, fork):
        channels = x.shape[1]
        y, relu, gate, sums = quantize_and_sum(as_blocks(x), v, signed, ceiling, fork)
        sums, size = batch_sums(sums, x.numel() // channels)
        new, bad = update_basis(sums, v, channels, size, weighting, signed)
        ctx.save_for_backward(gate)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new, bad)
        y = from_blocks(y, x)
        return (y, new, bad, from_blocks(relu, x)) if fork else (y, new, bad)

    @staticmethod
    def backward(ctx, g, _new, _bad, g_relu=None):
        (gate,) = ctx.saved_tensors
        relu = None if g_relu is None else as_blocks(g_relu)
        return from_blocks(through_gate(as_blocks(g), relu, gate), g), *[None] * 5


class BasisActivation(ActivationQuantizer):
    """Levels: sums of the basis v over {0, 1} ({-1, +1} when signed); v follows the weighted fit.

    The forward pass uses the basis from before this step's update; v = 0.9 v + 0.1 fit.
    """

    DOES_RELU = True

    def __init__(self, bits: int, signed: bool, weighting: str) -> None:
        super().__init__(bits, signed)
        if weighting not in WEIGHTINGS:
            raise InputError(f"weighting {weighting!r}: it must be one of {', '.join(WEIGHTINGS)}")
        self.weighting = weighting
        self.register_buffer("v", 2.0 ** torch.arange(bits) / 2 ** (bits - 1))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        x = rectified(x.float(), self.signed, self.ceiling)
        start = initial_basis(x, self.bits, self.signed)
        self.v.copy_(refit_to_convergence(x, start, self.signed, self.weighting))

    def levels(self) -> Tensor:
        return all_levels(self.v, self.signed)

    def forward(self, x: Tensor, fork: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not self.training:
            y = quantize(x, self.v, self.signed, self.ceiling)
            return (rectified(x, self.signed, self.ceiling), y) if fork else y
        y, new, bad, *relu = _QuantizeAndRefit.apply(
            x, self.v, self.signed, self.weighting, self.ceiling, fork
        )
        update_buffer(self, "v", new)
        self.nonfinite += bad
        return (*relu, y) if fork else y
