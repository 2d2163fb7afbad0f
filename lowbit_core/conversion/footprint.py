"""The cost of a network: size and bit operations."""

from torch import nn

from lowbit_core.conversion.layers import QuantLayer


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
