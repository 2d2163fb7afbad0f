"""AdaBin (Tu et al. 2022, arXiv:2208.08084): one-bit weights and activations, both levels free."""

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import ActivationQuantizer, Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation
from lowbit_core.quantizers.range_search import best_clip
from lowbit_core.quantizers.ste_mask import rectified

FIRST_SHARPNESS, LAST_SHARPNESS = 1e-3, 10.0  # of the sign's surrogate, first and last step
SMALLEST = 1e-5  # alpha, which divides


@fused(cpu=kernels.two_levels)
def two_levels(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(beta + alpha sign(w - beta), beta, alpha) for w (O, N), with sign(0) = +1.

    beta and alpha, each (O, 1), are the mean and the standard deviation of each row.
    """
    beta = w.mean(1, keepdim=True)
    alpha = (w - beta).square().mean(1, keepdim=True).sqrt().clamp_min(SMALLEST)
    return torch.where(w >= beta, beta + alpha, beta - alpha), beta, alpha


@fused(cpu=kernels.two_levels_gradient)
def two_levels_gradient(g: Tensor, w: Tensor, beta: Tensor, alpha: Tensor, t: Tensor) -> Tensor:
    """The gradient of w, from g, that of beta + alpha sign(u) with u = (w - beta) / alpha.

    The gradient of the sign is k t (1 - tanh(t u)^2), k = max(1 / t, 1). What passes through u,
    alpha and beta is taken together: dalpha/dw = u / N, and dbeta/dw = 1 / N.
    """
    u = (w - beta) / alpha
    through_u = g * (1 - torch.tanh(t * u).square()) * t.clamp_min(1.0)
    of_beta = (g - through_u).mean(1, keepdim=True)
    of_alpha = (torch.where(u >= 0, g, -g) - through_u * u).mean(1, keepdim=True)
    return through_u + of_beta + torch.where(alpha > SMALLEST, of_alpha, 0.0) * u


class _TwoLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, t):
        used, beta, alpha = two_levels(w)
        ctx.save_for_backward(w, beta, alpha, t)
        return used

    @staticmethod
    def backward(ctx, g):
        return two_levels_gradient(g.contiguous(), *ctx.saved_tensors), None


class AdaBinWeight(WeightQuantizer):
    """beta + alpha sign((w - beta) / alpha): the mean and deviation of each output channel.

    The gradient passes through alpha and beta too. The surrogate of the sign grows sharper: its t
    rises from 0.001 to 10 in the course of training, by the same factor in each step.
    """

    progress: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.register_buffer("progress", torch.tensor(0.0), persistent=False)

    def forward(self) -> Tensor:
        sharpness = FIRST_SHARPNESS * (LAST_SHARPNESS / FIRST_SHARPNESS) ** self.progress
        return _TwoLevels.apply(self.weight, sharpness).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        _, beta, alpha = two_levels(self.weight.detach())
        return torch.cat([beta - alpha, beta + alpha], 1)

    def level_numbers(self) -> int:
        return 2 * len(self.weight)


class AdaBinActivation(PiecewiseActivation):
    """alpha (sign(u) + beta) with u = (x - beta) / alpha if signed, and alpha (sign(u) + 1) if not.

    alpha and beta are learned, one of each for the layer. The lower level for unsigned inputs is 0
    (ours), as after a ReLU and in the padding. The surrogate of the sign has slope 2 - 2 |u| for
    |u| < 1, else 0 (as in Bi-Real Net); through it x, alpha and beta get their gradients.
    """

    GROUPS = {"alpha": "levels", "beta": "levels"}
    edges: Tensor
    signs: Tensor
    t0: Tensor
    t1: Tensor

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.beta = nn.Parameter(torch.tensor(0.0 if signed else 1.0))
        # Four pieces of u, between the edges -1, 0 and 1: the surrogate's slope is t0 + t1 u.
        for name, table in (
            ("edges", [-1.0, 0.0, 1.0]),
            ("signs", [-1.0, -1.0, 1.0, 1.0]),
            ("t0", [0.0, 2.0, 2.0, 0.0]),
            ("t1", [0.0, 2.0, -2.0, 0.0]),
        ):
            self.register_buffer(name, torch.tensor(table), persistent=False)

    def _spread(self) -> Tensor:
        return self.alpha.abs().clamp_min(SMALLEST)

    def _centre(self) -> Tensor:
        """What lies between the two levels, in units of alpha."""
        return self.beta if self.signed else torch.ones_like(self.beta)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Levels of least squared error, with the threshold half-way between them."""
        x = rectified(x.to(self.alpha.dtype), self.signed, self.ceiling)
        if self.signed:
            self.alpha.copy_(x.abs().mean().clamp_min(SMALLEST))
            self.beta.zero_()
        else:
            top = best_clip(x, lambda top: torch.where(x > top / 2, top, 0.0))
            self.alpha.copy_(top / 2)
            self.beta.copy_(top / 2)

    def levels(self) -> Tensor:
        return self._spread() * (self.signs[1:3] + self._centre())

    def pieces(self) -> Pieces:
        """With u = (x - beta) / alpha: dy/dx = t0 + t1 u, dy/dalpha = sign(u) + m - u dy/dx, and
        dy/dbeta = -dy/dx, + alpha if signed; m is what lies between the levels."""
        alpha, beta = self._spread(), self.beta
        a, b = alpha.detach(), beta.detach()
        at_0 = -b / a  # u where x is 0
        tilt = self.t1 / a
        pull = torch.addcmul(self.t0, self.t1, at_0)  # dy/dx where x is 0; it is pull + tilt x
        heights = self.signs + self._centre().detach()  # of the levels, in units of alpha
        # dy/dalpha and dy/dbeta as polynomials in x: the coefficients of 1, x and x^2.
        of_alpha = torch.stack([heights - at_0 * pull, -(pull / a + tilt * at_0), -tilt / a])
        of_beta = torch.stack([(a if self.signed else 0) - pull, -tilt, torch.zeros_like(tilt)])
        offset, gain, curve = (alpha * of_alpha + beta * of_beta).unbind()
        slope = torch.stack([pull, tilt], 1)
        return Pieces(a * self.edges + b, a * heights, offset, gain, slope, curve=curve)


def adabin_activation(bits: int, signed: bool) -> ActivationQuantizer:
    """AdaBin's own quantizer at one bit; with more bits, for which it has none, LQ-Nets'."""
    if bits == 1:
        return AdaBinActivation(bits, signed)
    return BasisActivation(bits, signed, weighting="equal")


METHODS = (Method("adabin", AdaBinWeight, adabin_activation, w_bits=(1,)),)
