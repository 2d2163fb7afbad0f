"""What one pass of a batch shows of a network's layers before they are quantized."""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import mode
from lowbit_core.conversion.policy import quantizable


@dataclass
class Seen:
    """One layer in the pass of a batch: how often it is called, and what it reads."""

    calls: int = 0
    macs: int = 0  # multiply-accumulates of one image, over all calls
    lowest: float = float("inf")  # value of its input
    finite: bool = True  # whether its input holds neither NaN nor infinity

    def add(self, x: Tensor, macs: int) -> None:
        """Count one call with input x."""
        self.calls += 1
        self.macs += macs
        low, high = x.aminmax()
        self.lowest = min(self.lowest, low.item())
        self.finite = self.finite and bool(torch.isfinite(high - low))


@dataclass
class Observation:
    """The layers by name, in the order of their first calls, and the calls of every module."""

    layers: dict[str, Seen] = field(default_factory=dict)
    calls: Counter[nn.Module] = field(default_factory=Counter)


@torch.no_grad()
def observe(model: nn.Module, images: Tensor) -> Observation:
    """Run `images` (N, C, H, W) once, in evaluation mode, which leaves the model as it was."""
    found, names = Observation(), {layer: name for name, layer in quantizable(model).items()}

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        found.calls[module] += 1
        if module in names:
            macs = output.numel() * module.weight[0].numel() // len(images)
            found.layers.setdefault(names[module], Seen()).add(inputs[0], macs)

    handles = [module.register_forward_hook(count) for module in model.modules()]
    try:
        with mode(model, training=False):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
