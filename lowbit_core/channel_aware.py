"""Basis-coded activations, one quantizer a layer, refitted each step (LQ-Nets form).

The paper's second claim: a quantizer fitted to all values alike is pulled towards the few channels
of high variance; so each channel's quantization error is weighted here. `equal` is LQ-Nets,
`inverse_variance` weighs channel c by 1 / (var(x_c) + eps), `median` takes the median of the
channels' own fits. See docs/method.md for what the paper states and what is our reading.
"""

import torch
from torch import Tensor

from lowbit_core.basis import (
    CHAIN_LEVELS,
    MOMENTUM,
    code_matrix,
    midpoints,
    nearest_code,
    solve_basis,
    sorted_levels,
)
from lowbit_core.errors import InputError
from lowbit_core.fused import fused
from lowbit_core.quantizer import ActivationQuantizer

WEIGHTINGS = ("equal", "inverse_variance", "median")
MAX_FITS = 10  # alternations of a fit to one batch
VARIANCE_FLOOR = 1e-3  # eps, as a share of the mean channel variance


@fused
def channel_statistics(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize x (N, C, ...) to levels (L,); per channel counts (C, L), sums (C, L), variance (C,).

    NaN and infinity in x give NaN in the result, so that a diverged run shows.
    """
    over = [0, *range(2, x.dim())]
    size = x.numel() // x.shape[1]
    total, square = x.sum(over), (x * x).sum(over)
    if levels.shape[0] > CHAIN_LEVELS:
        code = nearest_code(x.reshape(1, -1), levels[None]).view(x.shape)
        slots = (
            code
            + levels.shape[0]
            * torch.arange(x.shape[1], device=x.device).view(1, -1, *[1] * (x.dim() - 2))
        ).reshape(-1)
        zeros = x.new_zeros(x.shape[1] * levels.shape[0])
        counts = zeros.scatter_add(0, slots, torch.ones_like(x).reshape(-1))
        sums = zeros.scatter_add(0, slots, x.reshape(-1))
        shape = (x.shape[1], levels.shape[0])
        y, counts, sums = levels[code], counts.view(shape), sums.view(shape)
    else:
        thresholds = midpoints(levels[None])[0]
        y = levels[0]
        above_counts, above_sums = [torch.full_like(total, size)], [total]
        for j in range(levels.shape[0] - 1):
            above = x > thresholds[j]
            y = torch.where(above, levels[j + 1], y)
            above_counts.append(above.sum(over, dtype=x.dtype))
            above_sums.append(torch.where(above, x, 0.0).sum(over))
        counts, sums = torch.stack(above_counts, 1), torch.stack(above_sums, 1)
        counts = counts - torch.nn.functional.pad(counts[:, 1:], (0, 1))
        sums = sums - torch.nn.functional.pad(sums[:, 1:], (0, 1))
    variance = (square / size - (total / size) ** 2).clamp_min(0)
    return y + 0.0 * x, counts, sums, variance


def channel_weights(variance: Tensor) -> Tensor:
    """w_c = 1 / (var(x_c) + eps), mean 1 over the channels; 0 for a dead channel."""
    weights = torch.where(
        variance > 0, 1 / (variance + VARIANCE_FLOOR * variance.mean() + 1e-30), 0.0
    )
    return weights / weights.mean().clamp_min(1e-30)


@fused
def fit_basis(
    counts: Tensor, sums: Tensor, variance: Tensor, codes: Tensor, v: Tensor, weighting: str
) -> Tensor:
    """Basis (K,) that minimises sum_c w_c ||x_c - B_c v||^2, from per-channel statistics.

    counts, sums (C, L) per sorted level; codes (1, L, K) in that order; v (K,) the present basis.
    """
    v = v[None]
    if weighting == "median":
        channels = counts.shape[0]
        fits = solve_basis(counts, sums, codes.expand(channels, -1, -1), v.expand(channels, -1))
        return fits.median(0).values
    if weighting == "inverse_variance":
        weights = channel_weights(variance)[:, None]
        counts, sums = counts * weights, sums * weights
    return solve_basis(counts.sum(0, keepdim=True), sums.sum(0, keepdim=True), codes, v)[0]


def quantize_and_refit(
    x: Tensor, v: Tensor, codes: Tensor, weighting: str
) -> tuple[Tensor, Tensor, Tensor]:
    """One training step: x (N, C, ...) quantized with v (K,), the refitted basis, the range (2,).

    One fused pass over x gathers all statistics; the fit sees only those, so that its weighting
    needs no kernel of its own.
    """
    levels, ordered = sorted_levels(v[None], codes)
    y, counts, sums, variance = channel_statistics(x, levels[0])
    fit = fit_basis(counts, sums, variance, ordered, v, weighting)
    return y, fit, levels[0, :: levels.shape[1] - 1]


def refit_to_convergence(x: Tensor, v: Tensor, codes: Tensor, weighting: str) -> Tensor:
    """Basis (K,) after alternating quantization and weighted fit on x, from v, to convergence."""
    for _ in range(MAX_FITS):
        fit = quantize_and_refit(x, v, codes, weighting)[1]
        if torch.allclose(fit, v, rtol=1e-3, atol=1e-6):
            return fit
        v = fit
    return v


@fused
def quantize_to_levels(x: Tensor, levels: Tensor) -> Tensor:
    """x of any shape to the nearest of levels (L,)."""
    if levels.shape[0] > CHAIN_LEVELS:
        return levels[nearest_code(x.reshape(1, -1), levels[None])].view(x.shape) + 0.0 * x
    thresholds = midpoints(levels[None])[0]
    y = levels[0].expand_as(x)
    for j in range(levels.shape[0] - 1):
        y = torch.where(x > thresholds[j], levels[j + 1], y)
    return y + 0.0 * x


@fused
def clip_gradient(g: Tensor, x: Tensor, limits: Tensor) -> Tensor:
    """g where bottom <= x <= top, else 0; limits (2,)."""
    return torch.where((x > limits[1]) | (x < limits[0]), 0.0, g)


def initial_basis(x: Tensor, codes: Tensor) -> Tensor:
    """Basis (K,) of the uniform levels of least squared error on x: from far off a fit stops short."""
    bits = codes.shape[1]
    unit = 2.0 ** torch.arange(bits, device=x.device) / (2**bits - 1)
    tops = x.abs().max().clamp_min(1e-6) * torch.linspace(0.05, 1, 20, device=x.device)
    starts = tops[:, None] * unit
    errors = [
        (quantize_to_levels(x, sorted_levels(start[None], codes)[0][0]) - x).square().mean()
        for start in starts
    ]
    return starts[torch.stack(errors).argmin()].clone()


class _QuantizeAndRefit(torch.autograd.Function):
    """Forward `quantize_and_refit`; backward passes the gradient inside the levels' range."""

    @staticmethod
    def forward(ctx, x, v, codes, weighting):
        y, fit, limits = quantize_and_refit(x, v, codes, weighting)
        ctx.save_for_backward(x, limits)
        ctx.mark_non_differentiable(fit)
        return y, fit

    @staticmethod
    def backward(ctx, g, _):
        x, limits = ctx.saved_tensors
        return clip_gradient(g, x, limits), None, None, None


class BasisActivation(ActivationQuantizer):
    """Levels sort(C v), C over {0, 1} ({-1, +1} when signed); v follows the weighted fit.

    The forward pass uses the basis from before this step's update; v = 0.9 v + 0.1 fit.
    """

    def __init__(self, bits: int, signed: bool, weighting: str) -> None:
        super().__init__(bits, signed)
        if weighting not in WEIGHTINGS:
            raise InputError(f"weighting {weighting!r}: it must be one of {', '.join(WEIGHTINGS)}")
        self.weighting = weighting
        self.register_buffer("codes", code_matrix(bits, signed), persistent=False)
        self.register_buffer("v", 2.0 ** torch.arange(bits) / 2 ** (bits - 1))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        start = initial_basis(x, self.codes)
        self.v.copy_(refit_to_convergence(x, start, self.codes, self.weighting))

    def levels(self) -> Tensor:
        return sorted_levels(self.v[None], self.codes)[0][0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return quantize_to_levels(x, self.levels())
        y, fit = _QuantizeAndRefit.apply(x, self.v, self.codes, self.weighting)
        # A batch with NaN must not poison the levels: the run stops as diverged by its loss.
        fit = torch.where(torch.isfinite(fit), fit, self.v)
        self.v = MOMENTUM * self.v + (1 - MOMENTUM) * fit
        return y
