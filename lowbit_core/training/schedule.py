"""The learning rate of each step, and the optimizer's parameter groups."""

import math

import torch
from torch import nn

from lowbit_core.conversion.layers import QuantLayer


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, then a cosine to zero at `total`; `step` is from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(model: nn.Module, recipe: dict) -> list[dict]:
    """SGD groups: `weights` (decayed), `plain` (norms and biases: no decay), and the quantizers'.

    Each group has `lr_scale`, a factor on the schedule's learning rate. Raises KeyError if a
    quantizer's class names no group for one of its parameters.
    """
    settings = {
        "weights": {"lr_scale": 1.0, "weight_decay": recipe["weight_decay"]},
        "plain": {"lr_scale": 1.0, "weight_decay": 0.0},
        **recipe["quantizer_groups"],
    }
    owner = {}
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
                if quantizer is not None:
                    for name, parameter in quantizer.named_parameters(recurse=False):
                        owner[parameter] = type(quantizer).GROUPS[name]
    groups: dict[str, list[torch.Tensor]] = {}
    for parameter in model.parameters():
        group = owner.get(parameter, "weights" if parameter.dim() > 1 else "plain")
        groups.setdefault(group, []).append(parameter)
    return [{"params": groups[name], "name": name, **settings[name]} for name in sorted(groups)]
