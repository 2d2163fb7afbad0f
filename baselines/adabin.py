"""AdaBin (Tu et al. 2022, arXiv:2208.08084): one-bit weights and activations, both levels free."""

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import ActivationQuantizer, Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, quantize_pieces
from lowbit_core.quantizers.range_search import best_clip

FIRST_SHARPNESS, LAST_SHARPNESS = 1e-3, 10.0  # of the sign's surrogate, first and last step
SMALLEST = 1e-5  # alpha, which divides


class _Sign(torch.autograd.Function):
    """sign(u), with sign(0) = +1. Its gradient is k t (1 - tanh(t u)^2), k = max(1 / t, 1)."""

    @staticmethod
    def forward(ctx, u, sharpness):
        ctx.save_for_backward(u, sharpness)
        return torch.where(u >= 0, 1.0, -1.0) + 0.0 * u  # a NaN stays NaN

    @staticmethod
    def backward(ctx, g):
        u, t = ctx.saved_tensors
        return g * t.clamp_min(1.0) * (1 - torch.tanh(t * u).square()), None


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

    def _centre_and_spread(self) -> tuple[Tensor, Tensor]:
        beta = self.weight.mean(1, keepdim=True)
        return beta, self.weight.std(1, correction=0, keepdim=True).clamp_min(SMALLEST)

    def forward(self) -> Tensor:
        beta, alpha = self._centre_and_spread()
        sharpness = FIRST_SHARPNESS * (LAST_SHARPNESS / FIRST_SHARPNESS) ** self.progress
        sign = _Sign.apply((self.weight - beta) / alpha, sharpness)
        return (beta + alpha * sign).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        beta, alpha = self._centre_and_spread()
        return torch.cat([beta - alpha, beta + alpha], 1)

    def level_numbers(self) -> int:
        return 2 * len(self.weight)


class AdaBinActivation(ActivationQuantizer):
    """alpha (sign(u) + beta) with u = (x - beta) / alpha if signed, and alpha (sign(u) + 1) if not.

    alpha and beta are learned, one of each for the layer. The lower level for unsigned inputs is 0
    (ours), as after a ReLU and in the padding. The surrogate of the sign has slope 2 - 2 |u| for
    |u| < 1, else 0 (as in Bi-Real Net); through it x, alpha and beta get their gradients.
    """

    GROUPS = {"alpha": "levels", "beta": "levels"}

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(1.0))
        self.beta = nn.Parameter(torch.tensor(0.0 if signed else 1.0))
        self.register_buffer("edges", torch.tensor([-1.0, 0.0, 1.0]), persistent=False)
        self.register_buffer("signs", torch.tensor([-1.0, -1.0, 1.0, 1.0]), persistent=False)
        triangle = torch.tensor([[0.0, 0.0], [2.0, 2.0], [2.0, -2.0], [0.0, 0.0]])
        self.register_buffer("triangle", triangle, persistent=False)

    def _spread(self) -> Tensor:
        return self.alpha.abs().clamp_min(SMALLEST)

    def _centre(self) -> Tensor:
        """What lies between the two levels, in units of alpha."""
        return self.beta if self.signed else torch.ones_like(self.beta)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Levels of least squared error, with the threshold half-way between them."""
        if self.signed:
            self.alpha.copy_(x.abs().mean().clamp_min(SMALLEST))
            self.beta.zero_()
        else:
            top = best_clip(x.float(), lambda top: torch.where(x > top / 2, top, 0.0))
            self.alpha.copy_(top / 2)
            self.beta.copy_(top / 2)

    def levels(self) -> Tensor:
        return self._spread() * (self.signs[1:3] + self._centre())

    def forward(self, x: Tensor) -> Tensor:
        alpha = self._spread()
        levels = alpha * (self.signs + self._centre())
        pieces = Pieces(self.edges, levels, levels, None, alpha * self.triangle)
        y, not_finite = quantize_pieces((x - self.beta) / alpha, pieces, signed=True)
        if self.training:
            self.nonfinite += not_finite
        return y


def adabin_activation(bits: int, signed: bool) -> ActivationQuantizer:
    """AdaBin's own quantizer at one bit; with more bits, for which it has none, LQ-Nets'."""
    if bits == 1:
        return AdaBinActivation(bits, signed)
    return BasisActivation(bits, signed, weighting="equal")


METHODS = (Method("adabin", AdaBinWeight, adabin_activation, w_bits=(1,)),)
