"""A bfloat16 training step without the C++ kernels and with them, from the same network."""

import copy

import torch
from torch import Tensor, nn

from lowbit_core.kernels import fused

Step = tuple[float, dict[str, Tensor]]


def eager_and_kernels(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    """(Loss, gradients by name) of the step as it is written, and of the one by kernels."""
    found = []
    for compiled in (False, True):
        fused.set_compile(compiled)
        step = copy.deepcopy(model)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(step(images).float(), labels)
        loss.backward()
        gradients = {name: p.grad for name, p in step.named_parameters()}
        found.append((loss.item(), gradients))
    return found[0], found[1]
