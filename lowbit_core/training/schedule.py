"""The learning rate of each step, and the optimizer's parameter groups."""

import math

import torch
from torch import nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import one_of

QUANTIZER_GROUPS = {
    "codes": {"lr_scale": 1.0, "weight_decay": 0.0},
    "levels": {"lr_scale": 0.1, "weight_decay": 0.0},
    "clip": {"lr_scale": 1.0, "weight_decay": 1e-4},
}
"""The settings of quantizer parameters that a recipe has unless it says otherwise."""


def learning_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, then a cosine to zero at `total`; `step` is from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 1e-4,
    quantizer_groups: dict[str, dict[str, float]] | None = None,
) -> list[dict]:
    """The parameter groups of a quantized model, for any optimizer of torch.

    `weights` (more than one dimension) have `weight_decay`; `plain` (norms and biases) have none.
    The parameters of quantizers are in the groups of QUANTIZER_GROUPS, of which `quantizer_groups`
    changes some settings. The learning rate of a group is lr times its `lr_scale`. Raises
    InputError for an unknown group, KeyError if a quantizer's class names no group for one of its
    parameters.
    """
    settings = {
        "weights": {"lr_scale": 1.0, "weight_decay": weight_decay},
        "plain": {"lr_scale": 1.0, "weight_decay": 0.0},
        **QUANTIZER_GROUPS,
    }
    for name, changes in (quantizer_groups or {}).items():
        one_of("quantizer group", name, QUANTIZER_GROUPS)
        settings[name] = {**settings[name], **changes}
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
    return [
        {
            "params": groups[name],
            "name": name,
            "lr": lr * settings[name]["lr_scale"],
            **settings[name],
        }
        for name in sorted(groups)
    ]
