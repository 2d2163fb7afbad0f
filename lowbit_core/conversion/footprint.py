"""The cost of a network: multiply-accumulates (MACs), size, bit operations."""

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.policy import quantizable


@torch.no_grad()
def count_macs(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every quantizable layer for one image (1, C, H, W)."""
    counts: dict[str, int] = {}

    def hook(name):
        def count(layer, _inputs, output):
            counts[name] = output.numel() * layer.weight[0].numel()

        return count

    handles = [m.register_forward_hook(hook(n)) for n, m in quantizable(model).items()]
    was_training = model.training
    model.eval()(image)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return counts


def size_and_bitops(model: nn.Module, report: list[dict]) -> tuple[int, int, int]:
    """(bytes of the deployed model, bytes at full precision, bit operations of one image).

    report: the rows of `convert`. A code takes w_bits; a number of the levels, an unquantized
    parameter and a running statistic of batch norm take 4 bytes each. Bit operations are MACs x
    w_bits x a_bits, with 32 bits where nothing is quantized.
    """
    weights = sum(row["weights"] for row in report)
    coded = sum(-(-row["weights"] * row["w_bits"] // 8) for row in report)
    levels = 4 * sum(row["level_numbers"] for row in report)
    biases = sum(
        m.bias.numel()
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear | QuantLayer) and m.bias is not None
    )
    norms = sum(
        t.numel()
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        for t in (m.weight, m.bias, m.running_mean, m.running_var)
        if t is not None
    )
    rest = 4 * (biases + norms)
    bitops = sum(row["macs"] * row["w_bits"] * row["a_bits"] for row in report)
    return coded + levels + rest, 4 * weights + rest, bitops
