"""What a weight quantizer, an activation quantizer and a method are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.bits import FLOAT_BITS

FEW_LEVELS = 16  # up to here, comparing with each is faster than a search


def update_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    """Give the buffer `name` its next value.

    The buffer becomes a new tensor, because the backward pass still reads the old one. Inside a
    compiled model it is copied in place instead: torch.compile keeps the old value where it is
    needed, and a CUDA graph reads the buffer at a fixed address.
    """
    if torch.compiler.is_compiling():
        getattr(module, name).copy_(value)
    else:
        setattr(module, name, value)


def codes_of(used: Tensor, levels: Tensor) -> Tensor:
    """The number (O, N), uint8, of the level nearest to each weight of `used` (O, N).

    levels (O, L) or (1, L) rise; a weight half-way between two counts to the lower.
    """
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    if middles.shape[1] > FEW_LEVELS:
        middles = middles.expand(used.shape[0], -1).contiguous()
        return torch.searchsorted(middles, used.contiguous()).to(torch.uint8)
    code = torch.zeros(used.shape, dtype=torch.uint8, device=used.device)
    for middle in middles.split(1, dim=1):
        code += used > middle
    return code


class WeightQuantizer(nn.Module):
    """Owns the state from which one layer's weights are made; calling it makes them.

    A subclass is built from a full-precision weight (any shape, output channels first) and a
    bit-width. It keeps its state as rows (O, N): O output channels of N weights. A quantizer that
    changes in the course of training registers a buffer `progress` (0-dim, not persistent), which
    training fills before each step with the share of its steps that are done, 0 to 1.
    Symbols: docs/glossary.md.
    """

    GROUPS: ClassVar[dict[str, str]] = {"weight": "weights"}
    """The optimizer group of each parameter: `weights`, `codes`, `levels` or `clip`."""
    GRANULARITY: ClassVar[str] = "per_channel"
    """What shares one set of levels, for the layer report: `per_channel` or `per_layer`."""
    INIT: ClassVar[str] = "pretrained weight"
    """What the levels start from, for the layer report."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.shape = weight.shape

    def forward(self) -> Tensor:
        """The weight that the layer computes with, in the layer's shape."""
        raise TypeError(f"{type(self).__name__} does not define forward()")

    def latent(self) -> Tensor:
        """The real-valued weight (O, N) that gradient descent moves, in weight units."""
        raise TypeError(f"{type(self).__name__} does not define latent()")

    def levels(self) -> Tensor:
        """All representable weights in rising order, (O, L) or (1, L)."""
        raise TypeError(f"{type(self).__name__} does not define levels()")

    def level_numbers(self) -> int:
        """How many numbers a deployed layer stores to decode its weights: here a basis a row."""
        return self.levels().shape[0] * self.bits

    @torch.no_grad()
    def codes(self) -> Tensor:
        """The number (O, N), uint8, of the level that each weight now uses."""
        return codes_of(self.used(), self.levels())

    @torch.no_grad()
    def used(self) -> Tensor:
        """The weight (O, N) that the layer would compute with, without a step of training."""
        was_training = self.training
        used = self.eval()().flatten(1)
        self.train(was_training)
        return used

    def hold(self, codes: Tensor, mask: Tensor) -> None:
        """Set the state such that the weights of `mask` (O, N) use the levels `codes` (O, N).

        For the option `oscillation`; a class that defines it defines `dampen` as well.
        """
        raise TypeError(f"{type(self).__name__} does not define hold()")

    def dampen(self, strength: float) -> None:
        """Add the gradient of strength x (w - w_q)^2 to that of each latent weight w.

        w_q, the level that is used, is a constant. Nothing is added outside the levels.
        """
        raise TypeError(f"{type(self).__name__} does not define dampen()")

    def read(self, bits: int) -> tuple[Tensor, Tensor]:
        """The weight and its levels, (O, 2^bits), by the `bits` most significant bits of its codes.

        For the option `widths`. Called in training only after a forward pass at the full width.
        """
        raise TypeError(f"{type(self).__name__} does not define read()")


class ShadowWeight(WeightQuantizer):
    """A weight quantizer with a full-precision shadow weight `self.weight` (O, N).

    Its levels are in units of that weight, and each level is quantized to itself.
    """

    weight: nn.Parameter

    def latent(self) -> Tensor:
        return self.weight

    @torch.no_grad()
    def hold(self, codes: Tensor, mask: Tensor) -> None:
        held = self.levels().expand(codes.shape[0], -1).gather(1, codes.long())
        self.weight.copy_(torch.where(mask, held, self.weight))

    @torch.no_grad()
    def dampen(self, strength: float) -> None:
        assert self.weight.grad is not None
        levels = self.levels()
        inside = self.weight.clamp(levels[:, :1], levels[:, -1:])  # outside: its level itself
        self.weight.grad.add_(inside - self.used(), alpha=2 * strength)


class ReadWeight(WeightQuantizer):
    """The weights of another quantizer, `whole`, read with fewer bits; it has no state of its own.

    `GROUPS` is empty: all parameters belong to `whole`.
    """

    GROUPS: ClassVar[dict[str, str]] = {}

    def __init__(self, whole: WeightQuantizer, bits: int) -> None:
        nn.Module.__init__(self)
        self.whole, self.bits, self.shape = whole, bits, whole.shape

    def forward(self) -> Tensor:
        return self.whole.read(self.bits)[0]

    def latent(self) -> Tensor:
        return self.whole.latent()

    def levels(self) -> Tensor:
        return self.whole.read(self.bits)[1]


class ActivationQuantizer(nn.Module):
    """Quantizes one layer's input. `calibrate(x)` sets its range from a first batch.

    A NaN stays NaN. The buffer `nonfinite` counts the training batches that held NaN or infinity.
    """

    GROUPS: ClassVar[dict[str, str]] = {}
    GRANULARITY: ClassVar[str] = "per_layer"
    INIT: ClassVar[str] = "first batch"
    DOES_RELU: ClassVar[bool] = False
    """True if the quantizer, when unsigned, does the ReLU before it: Q(x) = Q(relu(x)), gradient
    included, and `forward(x, also_relu=True)` returns (relu(x), Q(x)). The network then leaves out
    that ReLU."""

    nonfinite: Tensor

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__()
        self.bits, self.signed = bits, signed
        self.ceiling = math.inf  # of the ReLU that the quantizer does: 6 for a ReLU6
        self.calibrating = False  # true while `layers.calibrate` runs
        self.register_buffer("nonfinite", torch.zeros((), dtype=torch.int64))

    def calibrate(self, x: Tensor) -> None:
        """Set the initial range from x, (N, C, ...)."""

    def levels(self) -> Tensor:
        """All representable activations in rising order, (L,)."""
        raise TypeError(f"{type(self).__name__} does not define levels()")


@dataclass(frozen=True)
class Method:
    """One row of the benchmark: how weights and activations are quantized."""

    name: str
    weight: Callable[[Tensor, int], WeightQuantizer] | None
    activation: Callable[[int, bool], ActivationQuantizer] | None
    ablation: bool = False
    """True for a variant that belongs to an ablation, not to the main table."""
    measures_channels: bool = False
    """True where a finished run measures the quantization error of each activation channel."""
    w_bits: tuple[int, ...] | None = None
    """The bit-widths of weights that the method is defined for; None for all of them."""

    def weight_class(self, w_bits: int) -> type[WeightQuantizer]:
        """The class of its weight quantizers of `w_bits` bits; it has some."""
        assert self.weight is not None
        return type(self.weight(torch.linspace(-1.0, 1.0, 8).view(2, 4), w_bits))

    def offers(self, w_bits: int) -> bool:
        """Whether the method is defined for weights of `w_bits` bits."""
        return self.w_bits is None or w_bits in self.w_bits

    def kinds(self, w_bits: int, a_bits: int) -> list[type[WeightQuantizer | ActivationQuantizer]]:
        """The classes of its quantizers of weights and of activations; none for full precision.

        Where bits are 32, they are those of a first or last layer of 8 bits.
        """
        if self.weight is None or self.activation is None:
            return []
        w_bits, a_bits = (8 if bits == FLOAT_BITS else bits for bits in (w_bits, a_bits))
        return [self.weight_class(w_bits), type(self.activation(a_bits, False))]
