"""Direct quantized weights: the paper's first claim, and the variants of its ablation.

State is codes, not weights: z (O, N) on the code axis and a basis v (O, K) per output channel;
the layer computes with w = l_o[round(clip(z))] in training and in inference alike. What the paper
states and what is our reading is listed in docs/method.md.
"""

import torch
from torch import Tensor, nn

from lowbit_core.basis import (
    CHAIN_LEVELS,
    code_matrix,
    fit_rows,
    midpoints,
    nearest_code,
    sorted_levels,
)
from lowbit_core.fused import fused
from lowbit_core.quantizer import WeightQuantizer

MIN_STEP = 1e-4  # smallest mean level distance used to precondition, in weight units


def level_step(levels: Tensor) -> Tensor:
    """d_o = (top - bottom) / (L - 1): mean distance of neighbouring levels (O, 1)."""
    return (levels[:, -1:] - levels[:, :1]) / (levels.shape[1] - 1)


def codes_of(z: Tensor, count: int) -> Tensor:
    """q = round(clip(z, 0, L - 1)), kept as float."""
    return torch.round(z.nan_to_num(0.0).clamp(0, count - 1))


def take_levels(q: Tensor, levels: Tensor) -> Tensor:
    """l_o[q] for float codes q (O, N) and levels (O, L)."""
    if levels.shape[1] > CHAIN_LEVELS:
        return levels.gather(1, q.long())
    w = levels[:, :1].expand_as(q)
    for j in range(1, levels.shape[1]):
        w = torch.where(q == j, levels[:, j : j + 1], w)
    return w


def sum_by_code(g: Tensor, q: Tensor, count: int) -> Tensor:
    """dL/dl_{o,j}: the sum of g over the weights whose code is j, (O, L)."""
    if count > CHAIN_LEVELS:
        return g.new_zeros(g.shape[0], count).scatter_add(1, q.long(), g)
    return torch.stack([torch.where(q == j, g, 0.0).sum(1) for j in range(count)], 1)


@fused
def direct_weight(z: Tensor, v: Tensor, codes: Tensor) -> Tensor:
    """w (O, N) from codes z (O, N), basis v (O, K), code matrix (L, K)."""
    levels, _ = sorted_levels(v, codes)
    return take_levels(codes_of(z, codes.shape[0]), levels) + 0.0 * z  # NaN goes through


@fused
def direct_gradient(g: Tensor, z: Tensor, v: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Preconditioned straight-through gradient of z, exact gradient of v.

    The gradient of z is g d_o times 1 / d_o^2, so that a step moves the weight by lr g; it is zero
    once z is more than 1 outside [0, L - 1].
    """
    count = codes.shape[0]
    levels, ordered = sorted_levels(v, codes)
    outside = (z < -1) | (z > count)
    dz = torch.where(outside, 0.0, g / level_step(levels).clamp_min(MIN_STEP))
    by_level = sum_by_code(g, codes_of(z, count), count)
    return dz, (by_level[:, :, None] * ordered).sum(1)


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, v, codes):
        ctx.save_for_backward(z, v, codes)
        return direct_weight(z, v, codes)

    @staticmethod
    def backward(ctx, g):
        return *direct_gradient(g.contiguous(), *ctx.saved_tensors), None


def code_position(x: Tensor, levels: Tensor) -> Tensor:
    """Piecewise-linear inverse of the level map: z such that the levels, interpolated at z, give x.

    Beyond the outer levels it continues with slope 1 / d_o, at most 1 outside (where gradients end).
    """
    count = levels.shape[1]
    left = (torch.searchsorted(levels.contiguous(), x.contiguous()) - 1).clamp(0, count - 2)
    low, high = levels.gather(1, left), levels.gather(1, left + 1)
    inner = left + (x - low) / (high - low).clamp_min(1e-12)
    step = level_step(levels).clamp_min(MIN_STEP)
    below, above = (x - levels[:, :1]) / step, count - 1 + (x - levels[:, -1:]) / step
    z = torch.where(x < levels[:, :1], below, torch.where(x > levels[:, -1:], above, inner))
    return z.clamp(-1, count)


def interpolate_levels(z: Tensor, levels: Tensor) -> Tensor:
    """The weight at un-rounded z (O, N): inverse of `code_position`."""
    count = levels.shape[1]
    left = z.nan_to_num(0.0).floor().clamp(0, count - 2).long()
    low, high = levels.gather(1, left), levels.gather(1, left + 1)
    inner = low + (z - left) * (high - low)
    step = level_step(levels).clamp_min(MIN_STEP)
    below, above = levels[:, :1] + z * step, levels[:, -1:] + (z - (count - 1)) * step
    return torch.where(z < 0, below, torch.where(z > count - 1, above, inner))


class _BasisWeight(WeightQuantizer):
    """Learnable basis-coded levels per output channel, fitted to the full-precision weight."""

    INIT = "alternating least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.register_buffer("codes", code_matrix(bits, signed=True).to(weight), persistent=False)
        self.v = nn.Parameter(fit_rows(weight.detach().flatten(1), bits))

    def levels(self) -> Tensor:
        return sorted_levels(self.v, self.codes)[0]


class DirectWeight(_BasisWeight):
    """Index-coded direct weights: gradient descent moves the codes z and the levels' basis v."""

    GROUPS = {"z": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.z = nn.Parameter(code_position(weight.detach().flatten(1), self.levels().detach()))

    def forward(self) -> Tensor:
        return _Direct.apply(self.z, self.v, self.codes).view(self.shape)

    def latent(self) -> Tensor:
        return interpolate_levels(self.z, self.levels())


class IndirectWeight(_BasisWeight):
    """The same learnable levels, applied to a full-precision shadow weight (what the paper argues
    against). Straight-through gradient to the shadow weight, exact gradient to the levels."""

    GROUPS = {"weight": "weights", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())

    def forward(self) -> Tensor:
        return _Indirect.apply(self.weight, self.v, self.codes).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight


@fused
def indirect_weight(w: Tensor, v: Tensor, codes: Tensor) -> Tensor:
    """w (O, N) to the nearest level of its channel."""
    levels, _ = sorted_levels(v, codes)
    return take_levels(_nearest(w, levels), levels) + 0.0 * w


@fused
def indirect_gradient(g: Tensor, w: Tensor, v: Tensor, codes: Tensor) -> Tensor:
    """Exact gradient of v (O, K)."""
    levels, ordered = sorted_levels(v, codes)
    by_level = sum_by_code(g, _nearest(w, levels), codes.shape[0])
    return (by_level[:, :, None] * ordered).sum(1)


def _nearest(w: Tensor, levels: Tensor) -> Tensor:
    """Float codes of the nearest levels."""
    if levels.shape[1] > CHAIN_LEVELS:
        return nearest_code(w, levels).to(w.dtype)
    thresholds = midpoints(levels)
    q = torch.zeros_like(w)
    for j in range(levels.shape[1] - 1):
        q = torch.where(w > thresholds[:, j : j + 1], float(j + 1), q)
    return q


class _Indirect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, v, codes):
        ctx.save_for_backward(w, v, codes)
        return indirect_weight(w, v, codes)

    @staticmethod
    def backward(ctx, g):
        g = g.contiguous()
        return g, indirect_gradient(g, *ctx.saved_tensors), None


class SignWeight(_BasisWeight):
    """Sign codes: w = sum_k v_k sign(u_k), K latents a weight, hard-tanh straight-through gradient
    preconditioned by 1 / (2 v_k^2); sign(0) counts as +1."""

    GROUPS = {"u": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        rows = weight.detach().flatten(1)
        levels, ordered = sorted_levels(self.v.detach(), self.codes)
        signs = ordered.gather(
            1, nearest_code(rows, levels)[:, :, None].expand(-1, -1, bits)
        )  # (O, N, K)
        distance = (
            (rows[:, :, None] - levels[:, None, :]).abs().topk(2, dim=2, largest=False).values
        )
        sure = (distance[..., 1] - distance[..., 0]) / level_step(levels).clamp_min(MIN_STEP)
        self.u = nn.Parameter(signs * sure.clamp(0.05, 1.0)[:, :, None])

    def forward(self) -> Tensor:
        return _Sign.apply(self.u, self.v).view(self.shape)

    def latent(self) -> Tensor:
        return (self.u.clamp(-1, 1) * self.v[:, None, :]).sum(2)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, v):
        ctx.save_for_backward(u, v)
        return (torch.where(u >= 0, 1.0, -1.0) * v[:, None, :]).sum(2) + 0.0 * u.sum(2)

    @staticmethod
    def backward(ctx, g):
        u, v = ctx.saved_tensors
        g = g.reshape(u.shape[:2])[:, :, None]
        scale = v.abs().clamp_min(MIN_STEP).copysign(v)[:, None, :]
        du = torch.where(u.abs() <= 1, g / (2 * scale), 0.0)
        return du, (g * torch.where(u >= 0, 1.0, -1.0)).sum(1)
