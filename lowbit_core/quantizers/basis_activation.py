"""Basis-coded activations: one basis a layer, refitted in each training step (LQ-Nets).

The paper's second claim: a quantizer that is fitted to all values alike is pulled towards the few
channels of high variance. Here the quantization error of each channel has a weight. `equal` is
LQ-Nets, `inverse_variance` gives channel c the weight 1 / (var(x_c) + eps), and `median` takes the
median of the channels' separate fits. docs/method.md tells what the paper states and what is our
reading; docs/glossary.md lists the symbols.
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
    nearest_level,
    ordered,
    solve_basis,
)
from lowbit_core.quantizers.blocks import as_blocks, from_blocks
from lowbit_core.quantizers.interface import ActivationQuantizer, update_buffer
from lowbit_core.quantizers.range_search import best_range
from lowbit_core.quantizers.ste_mask import apply_ste_mask, rectified, ste_mask_of
from lowbit_core.runtime.errors import InputError

WEIGHTINGS = ("equal", "inverse_variance", "median")
MAX_FITS = 10  # alternations of a fit to one batch
VARIANCE_FLOOR = 1e-3  # eps, as a share of the mean channel variance


@fused(cpu=kernels.quantize_and_sum, options=IN_REGISTERS)
def quantize_and_sum(
    x: Tensor, v: Tensor, signed: bool, ceiling: float = math.inf, also_relu: bool = False
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """One pass over blocks x (P, B, M): (Q(x), relu(x) or None, the STE mask, sums over B).

    Q(x) is the nearest level of the basis v (K,). The sums (S, P, M), float32, are those of x, x^2
    and then of `code_sums`, all of relu(x) when unsigned. NaN and infinity in x give NaN in Q(x),
    so that a diverged run is seen.
    """
    full = x.to(v.dtype)  # bf16 is too coarse for counts and sums
    c = rectified(full, signed, ceiling)
    columns = list(v.unbind())
    y, bits = nearest_level(c, columns, signed)
    top = sum(reversed(columns))
    mask = ste_mask_of(full, (c <= top) & (c >= (-top if signed else 0.0)), signed, ceiling)
    sums = [c.sum(1), (c * c).sum(1), *code_sums(c, bits, 1, packed=len(bits) > FEW_BITS)]
    return y.to(x.dtype), c.to(x.dtype) if also_relu else None, mask, torch.stack(sums)


@fused(cpu=kernels.quantize)
def quantize(x: Tensor, v: Tensor, signed: bool, ceiling: float = math.inf) -> Tensor:
    """The level of v (K,) nearest to x, or to relu(x) when unsigned; x has any shape."""
    c = rectified(x.to(v.dtype), signed, ceiling)
    return nearest_level(c, list(v.unbind()), signed)[0].to(x.dtype)


def channel_weights(variance: Tensor) -> Tensor:
    """Weights (C,) of mean 1 in proportion to 1 / (variance + eps); 0 for a dead channel."""
    floor = VARIANCE_FLOOR * variance.mean()
    weights = torch.where(variance > 0, 1 / (variance + floor + 1e-30), 0.0)
    return weights / weights.mean().clamp_min(1e-30)


def fit_basis(
    sums: Tensor, v: Tensor, channels: int, size: int, weighting: str, signed: bool
) -> Tensor:
    """The ordered basis v' (K,) that minimises sum_c w_c ||x_c - B_c v'||^2.

    sums (S, P, M): from `quantize_and_sum`; column j belongs to channel j % channels. v (K,): the
    present basis. size: the number of values of a channel.
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
    """(The basis (K,) after a training step, 0.9 v + 0.1 fit; whether the batch was not finite).

    A batch that is not finite leaves the basis as it was, so that NaN does not enter the levels.
    The loss then shows that the run diverged.
    """
    fit = fit_basis(sums, v, channels, size, weighting, signed)
    finite = torch.isfinite(fit).all() & torch.isfinite(sums[0]).all()  # sums[0]: of x
    # In order without projection: ordered bases are a convex cone.
    return torch.where(finite, MOMENTUM * v + (1 - MOMENTUM) * fit, v), ~finite


def refit_to_convergence(x: Tensor, v: Tensor, signed: bool, weighting: str) -> Tensor:
    """The basis (K,) after quantization and weighted fit of x (N, C, ...) in turns, starting at v.

    It stops once the basis hardly moves, after MAX_FITS fits at the latest.
    """
    channels = x.shape[1]
    for _ in range(MAX_FITS):
        sums = quantize_and_sum(as_blocks(x), v, signed)[3]
        fit = fit_basis(sums, v, channels, x.numel() // channels, weighting, signed)
        if torch.allclose(fit, v, rtol=1e-3, atol=1e-6):
            return fit
        v = fit
    return v


def initial_basis(x: Tensor, bits: int, signed: bool) -> Tensor:
    """The basis (bits,) of the uniform levels that have the least squared error on x.

    A fit that starts far from its end stops short of it.
    """
    unit = 2.0 ** torch.arange(bits, device=x.device) / (2**bits - 1)

    def error(top: Tensor) -> Tensor:
        return (quantize(x, top * unit, signed) - x).square().mean()

    shares = torch.linspace(0.05, 1, 20, device=x.device)
    return best_range(x.abs().max().clamp_min(1e-6), shares, error) * unit


class _QuantizeAndRefit(torch.autograd.Function):
    """One training step: (Q(x), next basis, whether x is not finite), and relu(x) if `also_relu`.

    Straight-through estimator: dQ(x)/dx = 1 from the lowest to the highest level, else 0, times the
    gradient of the ReLU when unsigned.
    """

    @staticmethod
    def forward(ctx, x, v, signed, weighting, ceiling, also_relu):
        channels = x.shape[1]
        y, relu, mask, sums = quantize_and_sum(as_blocks(x), v, signed, ceiling, also_relu)
        sums, size = batch_sums(sums, x.numel() // channels)
        new, not_finite = update_basis(sums, v, channels, size, weighting, signed)
        ctx.save_for_backward(mask)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(new, not_finite)
        y = from_blocks(y, x)
        return (y, new, not_finite, from_blocks(relu, x)) if also_relu else (y, new, not_finite)

    @staticmethod
    def backward(ctx, g, _new, _not_finite, g_relu=None):
        (mask,) = ctx.saved_tensors
        relu = None if g_relu is None else as_blocks(g_relu)
        return from_blocks(apply_ste_mask(as_blocks(g), relu, mask), g), *[None] * 5


class BasisActivation(ActivationQuantizer):
    """Levels: sums of the basis v over {0, 1} ({-1, +1} when signed); v follows the weighted fit.

    A training step quantizes with the basis v, then replaces v by 0.9 v + 0.1 fit.
    """

    DOES_RELU = True

    v: Tensor

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

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not self.training:
            y = quantize(x, self.v, self.signed, self.ceiling)
            return (rectified(x, self.signed, self.ceiling), y) if also_relu else y
        y, new, not_finite, *relu = _QuantizeAndRefit.apply(
            x, self.v, self.signed, self.weighting, self.ceiling, also_relu
        )
        update_buffer(self, "v", new)
        self.nonfinite += not_finite
        return (*relu, y) if also_relu else y
