"""One step of a quantizer on a device against the same step, as it is written, on the processor."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

import baselines
from lowbit_core.kernels.fused import set_compile
from lowbit_core.quantizers.interface import WeightQuantizer

# Two values agree up to this share of the largest value. A level may be one rounding apart.
LEVELS = {torch.float32: 1e-5, torch.bfloat16: 2**-9}
GRADIENTS = {torch.float32: 1e-4, torch.bfloat16: 2**-8}
STATE = 1e-3  # of the bases after a fit, whose sums are taken in another order


@cache
def reference(name: str, bits: int, signed: bool | None, dtype: torch.dtype, tiny: bool) -> tuple:
    """(A quantizer, its input, a gradient, the results of its eager step on the processor).

    `signed` is None for the method's weight quantizer. Weights are float32 and cast to `dtype`.
    """
    set_compile(False)
    torch.manual_seed(0)
    method = baselines.method(name)
    if signed is None:
        x = 0.05 * torch.randn((8, 16, 3, 3) if tiny else (32, 128, 3, 3))
        quantizer = method.weight(x, bits)  # type: ignore[misc]
    else:
        x = torch.randn((4, 8, 8, 8) if tiny else (8, 32, 16, 16))
        x = x * torch.logspace(-0.5, 0.5, x.shape[1]).view(-1, 1, 1)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        quantizer = method.activation(bits, signed)  # type: ignore[misc]
        quantizer.calibrate(x)
    g = torch.randn(x.shape).to(dtype)
    return quantizer, x, g, _step(copy.deepcopy(quantizer), x, g)


def _step(quantizer: nn.Module, x: Tensor, g: Tensor) -> dict[str, list[Tensor]]:
    """Forward and backward in training mode, with the ReLU's result where the quantizer does it."""
    leaves = list(quantizer.train().parameters())
    if isinstance(quantizer, WeightQuantizer):
        outputs = [quantizer().to(g.dtype)]
    else:
        leaves.append(x.detach().requires_grad_())
        if quantizer.DOES_RELU and not quantizer.signed:
            outputs = list(quantizer(leaves[-1], also_relu=True))
        else:
            outputs = [quantizer(leaves[-1])]
    torch.autograd.backward(outputs, [g] * len(outputs))
    state = [*quantizer.state_dict().values()]
    return {"levels": outputs, "gradients": [leaf.grad for leaf in leaves], "state": state}


def disagreement(case: tuple, device: torch.device, tiny: bool, kernels: bool) -> dict[str, float]:
    """The share of values that disagree with `reference`: levels, gradients and the next state."""
    dtype = case[-1]
    quantizer, x, g, expected = reference(*case, tiny)
    set_compile(kernels)
    found = _step(copy.deepcopy(quantizer).to(device), x.to(device), g.to(device))
    bounds = {"levels": LEVELS[dtype], "gradients": GRADIENTS[dtype], "state": STATE}
    return {
        key: max(apart(*pair, bound) for pair in zip(found[key], expected[key], strict=True))
        for key, bound in bounds.items()
    }


def apart(found: Tensor, expected: Tensor, bound: float) -> float:
    """The share of values whose distance is more than `bound` times the largest; NaN is apart."""
    found, expected = found.detach().cpu().double(), expected.detach().double()
    near = (found - expected).abs() <= bound * expected.abs().max()
    return 1 - near.double().mean().item()
