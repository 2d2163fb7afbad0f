"""Direct quantized weights: the paper's first claim, and the variants of its ablation.

State is codes, not weights: z (O, N) on the code axis and a basis v (O, K) per output channel;
the layer computes with w = l_o[round(clip(z))] in training and in inference alike. What the paper
states and what is our reading is listed in docs/method.md.
"""

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.basis import all_levels, fit_rows, ordered, successive
from lowbit_core.quantizers.interface import WeightQuantizer

MIN_STEP = 1e-4  # smallest mean level distance used to precondition, in weight units


def level_step(v: Tensor) -> Tensor:
    """d_o = (top - bottom) / (L - 1): mean distance of neighbouring levels (O, 1), for v (O, K)."""
    return (2 * v.abs().sum(1, keepdim=True) / (2 ** v.shape[1] - 1)).clamp_min(MIN_STEP)


def code_bits(z: Tensor, bits: int) -> list[Tensor]:
    """Bits of q = round(clip(z, 0, L - 1)), least significant first; a tie takes the lower code."""
    powers = [torch.full((), 2.0**k / 2, dtype=z.dtype, device=z.device) for k in range(bits)]
    return successive(z - (2**bits - 1) / 2, powers, signed=True)[1]


def signed_sum(bits: list[Tensor], v: Tensor) -> Tensor:
    """w = sum_k +-v_k (O, N), most significant first, as in `all_levels`; v (O, K)."""
    w = torch.zeros((), dtype=v.dtype, device=v.device)
    for bit, step in zip(reversed(bits), reversed(v.split(1, dim=1)), strict=True):
        w = w + torch.where(bit, step, -step)
    return w


def basis_gradient(g: Tensor, bits: list[Tensor]) -> Tensor:
    """dL/dv (O, K), exact: the sum of g (O, N) with the sign that each weight's code gives v_k."""
    return torch.stack([torch.where(bit, g, -g).sum(1) for bit in bits], 1)


@fused(cpu=kernels.direct_weight)
def direct_weight(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """w (O, N) from codes z (O, N), and the basis v (O, K) in order, with which it was made."""
    v = ordered(v)
    return signed_sum(code_bits(z, v.shape[1]), v) + 0.0 * z, v  # NaN goes through


@fused(cpu=kernels.direct_gradient)
def direct_gradient(g: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Preconditioned straight-through gradient of z, exact gradient of v.

    The gradient of z is g d_o times 1 / d_o^2, so that a step moves the weight by lr g; it is zero
    once z is more than 1 outside [0, L - 1].
    """
    bits = v.shape[1]
    outside = (z < -1) | (z > 2**bits)
    return torch.where(outside, 0.0, g / level_step(v)), basis_gradient(g, code_bits(z, bits))


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, v):
        w, v = direct_weight(z, v)
        ctx.save_for_backward(z, v)
        ctx.mark_non_differentiable(v)
        return w, v

    @staticmethod
    def backward(ctx, g, _):
        return direct_gradient(g.contiguous(), *ctx.saved_tensors)


def code_position(x: Tensor, levels: Tensor) -> Tensor:
    """Piecewise-linear inverse of the level map: z such that the levels, interpolated at z, give x.

    Beyond the outer levels it continues with slope 1 / d_o, at most 1 outside (where gradients end).
    """
    count = levels.shape[1]
    left = (torch.searchsorted(levels.contiguous(), x.contiguous()) - 1).clamp(0, count - 2)
    low, high = levels.gather(1, left), levels.gather(1, left + 1)
    inner = left + (x - low) / (high - low).clamp_min(1e-12)
    step = _mean_distance(levels)
    below, above = (x - levels[:, :1]) / step, count - 1 + (x - levels[:, -1:]) / step
    z = torch.where(x < levels[:, :1], below, torch.where(x > levels[:, -1:], above, inner))
    return z.clamp(-1, count)


def interpolate_levels(z: Tensor, levels: Tensor) -> Tensor:
    """The weight at un-rounded z (O, N): inverse of `code_position`."""
    count = levels.shape[1]
    left = z.nan_to_num(0.0).floor().clamp(0, count - 2).long()
    low, high = levels.gather(1, left), levels.gather(1, left + 1)
    inner = low + (z - left) * (high - low)
    step = _mean_distance(levels)
    below, above = levels[:, :1] + z * step, levels[:, -1:] + (z - (count - 1)) * step
    return torch.where(z < 0, below, torch.where(z > count - 1, above, inner))


def _mean_distance(levels: Tensor) -> Tensor:
    return ((levels[:, -1:] - levels[:, :1]) / (levels.shape[1] - 1)).clamp_min(MIN_STEP)


class _BasisWeight(WeightQuantizer):
    """Learnable basis-coded levels per output channel, fitted to the full-precision weight."""

    INIT = "alternating least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.v = nn.Parameter(fit_rows(weight.detach().flatten(1), bits))

    def levels(self) -> Tensor:
        return all_levels(ordered(self.v), signed=True)

    def _keep(self, v: Tensor) -> None:
        """Gradient descent may leave the ordered bases: go on from the nearest (projection)."""
        if self.training:
            with torch.no_grad():
                self.v.copy_(v)


class DirectWeight(_BasisWeight):
    """Index-coded direct weights: gradient descent moves the codes z and the levels' basis v."""

    GROUPS = {"z": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.z = nn.Parameter(code_position(weight.detach().flatten(1), self.levels().detach()))

    def forward(self) -> Tensor:
        w, v = _Direct.apply(self.z, self.v)
        self._keep(v)
        return w.view(self.shape)

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
        w, v = _Indirect.apply(self.weight, self.v)
        self._keep(v)
        return w.view(self.shape)

    def latent(self) -> Tensor:
        return self.weight


@fused(cpu=kernels.indirect_weight)
def indirect_weight(w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """w (O, N) to the nearest level of its channel, and the basis v (O, K) in order."""
    v = ordered(v)
    return successive(w, list(v.split(1, dim=1)), signed=True)[0], v


@fused(cpu=kernels.indirect_gradient)
def indirect_gradient(g: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """Exact gradient of v (O, K), in order."""
    return basis_gradient(g, successive(w, list(v.split(1, dim=1)), signed=True)[1])


class _Indirect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, v):
        used, v = indirect_weight(w, v)
        ctx.save_for_backward(w, v)
        ctx.mark_non_differentiable(v)
        return used, v

    @staticmethod
    def backward(ctx, g, _):
        g = g.contiguous()
        return g, indirect_gradient(g, *ctx.saved_tensors)


class SignWeight(_BasisWeight):
    """Sign codes: w = sum_k v_k sign(u_k), K latents a weight, hard-tanh straight-through gradient
    preconditioned by 1 / (2 v_k^2); sign(0) counts as +1."""

    GROUPS = {"u": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        rows = weight.detach().flatten(1)
        chosen = successive(rows, list(self.v.detach().split(1, dim=1)), signed=True)[1]
        signs = torch.where(torch.stack(chosen, 2), 1.0, -1.0)  # (O, N, K)
        levels = self.levels()
        nearest = (rows[:, :, None] - levels[:, None, :]).abs().topk(2, dim=2, largest=False).values
        sure = (nearest[..., 1] - nearest[..., 0]) / _mean_distance(levels)
        self.u = nn.Parameter(signs * sure.clamp(0.05, 1.0)[:, :, None])

    def levels(self) -> Tensor:
        return all_levels(self.v.detach(), signed=True).sort(dim=1).values

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
