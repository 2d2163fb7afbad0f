"""DoReFa-Net (Zhou et al. 2016, arXiv:1606.06160), weights and activations."""

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.quantizers.uniform import UniformActivation

_SMALLEST = 1e-12  # floor of max|tanh(w)|, so that a layer of zeros stays finite


@fused(cpu=kernels.dorefa_weight)
def dorefa_weight(w: Tensor, steps: Tensor) -> Tensor:
    """2 q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1 over the layer (eq. 9); steps is 2^bits - 1."""
    u = torch.tanh(w)
    top = u.abs().max().clamp_min(_SMALLEST)
    return 2 * torch.round((u / (2 * top) + 0.5) * steps) / steps - 1


@fused(cpu=kernels.dorefa_gradient)
def dorefa_gradient(g: Tensor, w: Tensor) -> Tensor:
    """The gradient of w from g: straight through the rounding, exact through tanh and the maximum.

    Weights that tie for the maximum share its gradient.
    """
    u = torch.tanh(w)
    top = u.abs().max().clamp_min(_SMALLEST)
    at_top = u.abs() == top
    through_max = -(g * u).sum() / top**2 * torch.sign(u) * at_top / at_top.sum().clamp_min(1)
    return (g / top + through_max) * (1 - u * u)


def binary_weight(w: Tensor) -> Tensor:
    """sign(w) times the layer's mean |w| (eq. 7); sign(0) counts as +1."""
    return torch.where(w >= 0, w.abs().mean(), -w.abs().mean()) + 0.0 * w


class _MultiBit(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, steps):
        ctx.save_for_backward(w)
        return dorefa_weight(w, steps)

    @staticmethod
    def backward(ctx, g):
        return dorefa_gradient(g.contiguous(), *ctx.saved_tensors), None


class _Binary(torch.autograd.Function):
    """`binary_weight`, with the identity as its gradient (eq. 7: the scale is a constant)."""

    @staticmethod
    def forward(ctx, w):
        return binary_weight(w)

    @staticmethod
    def backward(ctx, g):
        return g


class DoReFaWeight(WeightQuantizer):
    """A full-precision shadow weight, quantized on one uniform grid for the layer."""

    GRANULARITY = "per_layer"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.register_buffer("steps", torch.tensor(2.0**bits - 1), persistent=False)

    def forward(self) -> Tensor:
        if self.bits == 1:
            return _Binary.apply(self.weight).view(self.shape)
        return _MultiBit.apply(self.weight, self.steps).view(self.shape)

    def latent(self) -> Tensor:
        if self.bits == 1:
            return self.weight
        u = torch.tanh(self.weight)
        return u / u.abs().max().clamp_min(_SMALLEST)

    def levels(self) -> Tensor:
        if self.bits == 1:
            return self.weight.abs().mean() * self.weight.new_tensor([[-1.0, 1.0]])
        return torch.linspace(-1, 1, 2**self.bits, device=self.weight.device)[None]


class DoReFaActivation(UniformActivation):
    """Clip to [0, 1] ([-1, 1] when signed: our extension) and round to 2^bits levels (eq. 5)."""

    INIT = "fixed range"

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.register_buffer("top", torch.tensor(1.0), persistent=False)
        bottom = -1.0 if signed else 0.0
        self.register_buffer("bottom", torch.tensor(bottom), persistent=False)
        step = torch.tensor((1.0 - bottom) / (2**bits - 1))
        self.register_buffer("step", step, persistent=False)

    def levels(self) -> Tensor:
        return torch.linspace(float(self.bottom), 1.0, 2**self.bits)

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.top, self.bottom, self.step


METHODS = (Method("dorefa", DoReFaWeight, DoReFaActivation),)
