"""What a weight quantizer, an activation quantizer and a method are."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


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

    def offers(self, w_bits: int) -> bool:
        """Whether the method is defined for weights of `w_bits` bits."""
        return self.w_bits is None or w_bits in self.w_bits
