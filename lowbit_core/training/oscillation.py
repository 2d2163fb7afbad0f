"""The option `oscillation`: weights that change to and fro between two levels.

Measured, dampened or frozen after Nagel et al., "Overcoming Oscillations in Quantization-Aware
Training", ICML 2022 (arXiv:2203.11086), and its code, Qualcomm-AI-research/oscillations-qat at
9064d85. docs/options.md tells what differs from it.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.runtime.errors import InputError

MOST_BITS = 4  # weights of more bits are left alone
OSCILLATING = 0.01  # a weight whose frequency is above this counts as oscillating


def check_oscillation(settings: dict, method: Method, w_bits: Iterable[int]) -> None:
    """Raise InputError where the option makes no sense; w_bits: the widths of all layers."""
    how = f"oscillation: {settings['method']}"
    if method.weight is None:
        raise InputError(f"{how}: method {method.name!r} does not quantize weights: leave it out")
    fewest = min(w_bits)
    if fewest > MOST_BITS:
        raise InputError(
            f"{how}: it is for weights of at most {MOST_BITS} bits, and no layer has such weights"
        )
    cannot_hold = method.weight_class(fewest).hold is WeightQuantizer.hold
    if settings["method"] != "track" and cannot_hold:
        raise InputError(
            f"{how}: method {method.name!r} cannot hold the code of a weight: only "
            "`oscillation: {method: track}` is possible with it"
        )


def annealed(share: float, start: float, first: float, last: float) -> float:
    """`first` up to the share `start` of training, then a cosine to `last` at its end."""
    if share < start:
        return first
    return last + (first - last) / 2 * (1 + math.cos(math.pi * (share - start) / (1 - start)))


def tracked_quantizers(model: nn.Module) -> dict[str, WeightQuantizer]:
    """The weight quantizers of at most MOST_BITS bits, by the name of their layer."""
    found = {n: m.weight_quantizer for n, m in model.named_modules() if isinstance(m, QuantLayer)}
    return {n: q for n, q in found.items() if q is not None and q.bits <= MOST_BITS}


class Oscillation:
    """What is kept of each weight, over all tracked layers in one row, and what is done with it.

    A weight oscillates in a step where its code changes against the direction of its last change.
    Its frequency is a moving average of that. `freeze` fixes the code of each weight whose
    frequency exceeds a threshold at the rounded moving average of its codes; its levels go on
    learning. `dampen` pulls each latent weight towards the level that it uses. `track` measures.
    """

    def __init__(self, settings: dict, model: nn.Module, steps: int) -> None:
        """settings: of the recipe. steps: of the whole training."""
        self.settings, self.steps, self.done = settings, steps, 0
        self.quantizers = tracked_quantizers(model)
        self.code = self._codes()  # (all weights,), int8, after the last step
        self.direction = torch.zeros_like(self.code)  # of its last change: -1, 1, or 0 for none
        self.frequency = torch.zeros_like(self.code, dtype=torch.float32)
        self.mean_code: Tensor | None = None  # from the first step that may freeze
        self.frozen = torch.zeros_like(self.code, dtype=torch.bool)
        self.frozen_code = torch.zeros_like(self.code)  # valid where `frozen`

    def state(self) -> dict:
        """What a checkpoint holds of it."""
        names = ("done", "code", "direction", "frequency", "mean_code", "frozen", "frozen_code")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict) -> None:
        for name, value in state.items():
            moved = value.to(self.code.device) if isinstance(value, Tensor) else value
            setattr(self, name, moved)

    def shares(self) -> dict[str, float]:
        """The share of oscillating weights of each tracked layer."""
        parts = self._split(self.frequency > OSCILLATING)
        return {
            n: part.float().mean().item() for n, part in zip(self.quantizers, parts, strict=True)
        }

    # -- around a step of the optimizer ----------------------------------------------------------

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradients of dampening to those of the loss.

        The penalty is weight x (w - w_q)^2, summed over the output channels and averaged over the
        weights of each; w_q, the level that is used, counts as a constant. Its gradient is zero
        where the latent weight w lies outside the levels.
        """
        if self.settings["method"] != "dampen":
            return
        weight = annealed(
            self.done / self.steps, self.settings["start"], 0, self.settings["weight"]
        )
        for quantizer in self.quantizers.values() if weight > 0 else ():
            quantizer.dampen(weight / quantizer.shape[1:].numel())

    @torch.no_grad()
    def after_step(self) -> None:
        """Look at the codes that the next step will use, and freeze weights."""
        self.done += 1
        code = self._codes()
        threshold = 0.0
        if self.settings["method"] == "freeze":
            share, start = self.done / self.steps, self.settings["start"]
            code = torch.where(self.frozen, self.frozen_code, code)
            if share >= start:
                ends = self.settings["threshold"], self.settings["threshold_end"]
                threshold = annealed(share, start, *ends)
        self.observe(code, threshold)
        if threshold > 0:
            parts = self._split(self.frozen_code), self._split(self.frozen)
            for quantizer, codes, mask in zip(self.quantizers.values(), *parts, strict=True):
                rows = quantizer.shape[0]
                quantizer.hold(codes.view(rows, -1), mask.view(rows, -1))

    def observe(self, code: Tensor, threshold: float) -> None:
        """Take in the codes after one more step; freeze above `threshold`, unless that is 0."""
        momentum = self.settings["momentum"]
        change = (code - self.code).sign_()
        oscillated = change * self.direction < 0
        self.frequency.mul_(1 - momentum).add_(oscillated, alpha=momentum)
        self.direction = torch.where(change == 0, self.direction, change)
        self.code = code
        if threshold > 0:
            if self.mean_code is None:
                self.mean_code = code.float()
            newly = (self.frequency > threshold) & ~self.frozen
            mean = self.mean_code.round().to(torch.int8)
            self.frozen_code = torch.where(newly, mean, self.frozen_code)
            self.frozen |= newly
            self.mean_code.lerp_(code.float(), momentum)

    def _codes(self) -> Tensor:
        codes = [quantizer.codes().flatten() for quantizer in self.quantizers.values()]
        return torch.cat(codes).view(torch.int8)

    def _split(self, row: Tensor) -> tuple[Tensor, ...]:
        """The parts of the layers of a tensor over all weights."""
        return row.split([q.shape.numel() for q in self.quantizers.values()])
