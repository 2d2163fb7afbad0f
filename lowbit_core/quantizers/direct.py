"""Direct quantized weights: the paper's first claim, and the variants of its ablation.

The state is not a full-precision weight but codes: z (O, N) on the code axis, and a basis v (O, K),
one row per output channel o. The layer computes with w = l_o[round(clip(z))], in training as in
inference. docs/method.md tells what the paper states and what is our reading; docs/glossary.md
lists the symbols.
"""

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.basis import all_levels, fit_rows, nearest_level, ordered
from lowbit_core.quantizers.interface import ShadowWeight, WeightQuantizer

MIN_STEP = 1e-4  # least d_o that gradients are divided by, in weight units


def level_step(v: Tensor) -> Tensor:
    """d_o (O, 1) for v (O, K): the mean distance of neighbouring levels, at least MIN_STEP."""
    return (2 * v.abs().sum(1, keepdim=True) / (2 ** v.shape[1] - 1)).clamp_min(MIN_STEP)


def code_bits(z: Tensor, bits: int) -> list[Tensor]:
    """The bits of q = round(clip(z, 0, L - 1)), least significant first; ties to the lower code."""
    powers = [torch.full((), 2.0**k / 2, dtype=z.dtype, device=z.device) for k in range(bits)]
    return nearest_level(z - (2**bits - 1) / 2, powers, signed=True)[1]


def signed_sum(bits: list[Tensor], v: Tensor) -> Tensor:
    """w (O, N) = sum of +-v_k by the bits of its code, for v (O, K); summed as in `all_levels`."""
    w = torch.zeros((), dtype=v.dtype, device=v.device)
    for bit, step in zip(reversed(bits), reversed(v.split(1, dim=1)), strict=True):
        w = w + torch.where(bit, step, -step)
    return w


def basis_gradient(g: Tensor, bits: list[Tensor]) -> Tensor:
    """The exact gradient of v (O, K): g (O, N) times the sign of v_k in each code, summed."""
    return torch.stack([torch.where(bit, g, -g).sum(1) for bit in bits], 1)


@fused(cpu=kernels.direct_weight)
def direct_weight(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The weight w (O, N) for codes z (O, N), and the ordered basis (O, K) that it is made with."""
    v = ordered(v)
    return signed_sum(code_bits(z, v.shape[1]), v) + 0.0 * z, v  # 0.0 * z: a NaN stays NaN


@fused(cpu=kernels.direct_gradient)
def direct_gradient(g: Tensor, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(Preconditioned straight-through gradient of z, exact gradient of v), from g, that of w.

    The gradient of z is g d_o, times 1 / d_o^2 so that a step of size lr moves the weight by lr g
    where levels are uniform. It is zero where z is more than 1 outside [0, L - 1].
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
    """z (O, N) such that `interpolate_levels(z, levels)` is x (O, N); levels (O, L) rise.

    Outside the levels z continues with slope 1 / d_o, but at most by 1: there its gradient ends.
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
    """The weight (O, N) at un-rounded z (O, N): piecewise linear between the levels (O, L)."""
    count = levels.shape[1]
    left = z.nan_to_num(0.0).floor().clamp(0, count - 2).long()
    low, high = levels.gather(1, left), levels.gather(1, left + 1)
    inner = low + (z - left) * (high - low)
    step = _mean_distance(levels)
    below, above = levels[:, :1] + z * step, levels[:, -1:] + (z - (count - 1)) * step
    return torch.where(z < 0, below, torch.where(z > count - 1, above, inner))


def _mean_distance(levels: Tensor) -> Tensor:
    """d_o (O, 1) from the levels (O, L); `level_step` is the same but for the last digits."""
    return ((levels[:, -1:] - levels[:, :1]) / (levels.shape[1] - 1)).clamp_min(MIN_STEP)


class _BasisWeight(WeightQuantizer):
    """Learnable basis-coded levels per output channel, fitted to the pretrained weight at first."""

    INIT = "alternating least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.v = nn.Parameter(fit_rows(weight.detach().flatten(1), bits))

    def levels(self) -> Tensor:
        return all_levels(ordered(self.v), signed=True)

    def _project(self, v: Tensor) -> None:
        """Set the basis to v, which `ordered` made from it: gradient steps may disorder it."""
        if self.training:
            with torch.no_grad():
                self.v.copy_(v)


class UpperBasis(torch.autograd.Function):
    """The `bits` most significant numbers (O, bits) of the ordered basis of v (O, K).

    With them the levels of `bits` bits are means of those of K bits that share their upper codes.
    """

    @staticmethod
    def forward(ctx, v, bits):
        ctx.dropped = v.shape[1] - bits
        return ordered(v)[:, ctx.dropped :].contiguous()

    @staticmethod
    def backward(ctx, g):
        return torch.nn.functional.pad(g, (ctx.dropped, 0)), None


class _UpperCode(torch.autograd.Function):
    """z' whose code is that of z (O, N) without its `dropped` least significant bits.

    2^dropped neighbouring codes become one. The gradient of z' is preconditioned by 1 / d'_o, and
    a step of 1 on z moves z' by 2^-dropped; its factor 2^dropped lets a step of size lr move the
    weight by lr g, as at the full width.
    """

    @staticmethod
    def forward(ctx, z, dropped):
        ctx.together = 2**dropped
        return (z - (ctx.together - 1) / 2) / ctx.together

    @staticmethod
    def backward(ctx, g):
        return g * ctx.together, None


class DirectWeight(_BasisWeight):
    """Direct weights: gradient descent moves the codes z and the basis v of the levels."""

    GROUPS = {"z": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.z = nn.Parameter(code_position(weight.detach().flatten(1), self.levels().detach()))

    def forward(self) -> Tensor:
        w, v = _Direct.apply(self.z, self.v)
        self._project(v)
        return w.view(self.shape)

    def latent(self) -> Tensor:
        return interpolate_levels(self.z, self.levels())

    @torch.no_grad()
    def codes(self) -> Tensor:
        return self._nearest_code().to(torch.uint8).view(self.shape[0], -1)

    def read(self, bits: int) -> tuple[Tensor, Tensor]:
        v = UpperBasis.apply(self.v, bits)
        z = _UpperCode.apply(self.z, self.bits - bits)
        return _Direct.apply(z, v)[0].view(self.shape), all_levels(v, signed=True)

    def _nearest_code(self) -> Tensor:
        """q (O, N) as floats: made as the weight is, with levels -(L - 1) / 2 to (L - 1) / 2."""
        half = torch.full_like(self.v, 0.5) * 2.0 ** torch.arange(self.bits, device=self.v.device)
        return direct_weight(self.z, half)[0].add_((2**self.bits - 1) / 2)

    @torch.no_grad()
    def hold(self, codes: Tensor, mask: Tensor) -> None:
        held = codes.view_as(self.z).to(self.z.dtype)  # one row, if the layer has one basis
        self.z.copy_(torch.where(mask.view_as(self.z), held, self.z))

    @torch.no_grad()
    def dampen(self, strength: float) -> None:
        """On the axis of codes: w - w_q counts as d_o (z - q), preconditioned by 1 / d_o^2."""
        assert self.z.grad is not None
        inside = self.z.clamp(0, 2**self.bits - 1)
        self.z.grad.add_(inside - self._nearest_code(), alpha=2 * strength)


class IndirectWeight(ShadowWeight, _BasisWeight):
    """The same learnable levels applied to a full-precision shadow weight, which the paper argues
    against. Straight-through gradient to the shadow weight, exact gradient to the basis."""

    GROUPS = {"weight": "weights", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())

    def forward(self) -> Tensor:
        w, v = _Indirect.apply(self.weight, self.v)
        self._project(v)
        return w.view(self.shape)

    def read(self, bits: int) -> tuple[Tensor, Tensor]:
        v = UpperBasis.apply(self.v, bits)  # the upper bits of the nearest level do not need more
        return _Indirect.apply(self.weight, v)[0].view(self.shape), all_levels(v, signed=True)


@fused(cpu=kernels.indirect_weight)
def indirect_weight(w: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest levels to w (O, N), and the ordered basis (O, K) that they are made with."""
    v = ordered(v)
    return nearest_level(w, list(v.split(1, dim=1)), signed=True)[0], v


@fused(cpu=kernels.indirect_gradient)
def indirect_gradient(g: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The exact gradient of v (O, K), an ordered basis, from g (O, N)."""
    return basis_gradient(g, nearest_level(w, list(v.split(1, dim=1)), signed=True)[1])


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
    """Sign codes: w = sum_k v_k sign(u_k), with K latents u_k for a weight; sign(0) counts as +1.

    The gradient of u is straight-through with a hard tanh, preconditioned by 1 / (2 v_k^2).
    """

    GROUPS = {"u": "codes", "v": "levels"}

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        rows = weight.detach().flatten(1)
        chosen = nearest_level(rows, list(self.v.detach().split(1, dim=1)), signed=True)[1]
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
