"""Batch norms move into the convolutions before them."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from deploy import graph
from deploy.graph import FLOAT, Convolution, Operation, Weight


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm in evaluation mode, scale (x - mean) + bias for each channel, in float64."""

    scale: np.ndarray
    mean: np.ndarray
    bias: np.ndarray | float


def norm_of(module: nn.modules.batchnorm._BatchNorm) -> Norm:
    """The numbers of a batch norm that has running statistics."""
    deviation = np.sqrt(array(module.running_var) + module.eps)
    gain, bias = array(module.weight), array(module.bias)
    scale = (1 if gain is None else gain) / deviation
    return Norm(scale, array(module.running_mean), 0 if bias is None else bias)


def alone(name: str, x: str, output: str, norm: Norm) -> Convolution:
    """A batch norm as an operation of its own: a depthwise convolution of one pixel."""
    weight = Weight(values=norm.scale.astype(np.float32)[:, None, None, None])
    shift = (norm.bias - norm.scale * norm.mean).astype(np.float32)
    return Convolution(name, x, output, (1, 1), (0, 0), True, FLOAT, weight, None, shift)


def fold(operations: list[Operation], norms: dict[str, Norm], output: str) -> list[Operation]:
    """Fold each batch norm (by the name of its output) into a convolution that only it reads."""
    readers = Counter(name for op in operations for name in graph.read_by(op))
    readers[output] += 1
    folded: dict[str, Operation] = {}  # by the name of the output
    for op in operations:
        norm, before = norms.get(op.output), folded.get(op.input)
        if norm is not None and readers[op.input] == 1 and _takes_a_norm(before):
            del folded[op.input]
            op = _joined(before, norm, op.output)
        folded[op.output] = op
    return list(folded.values())


def _takes_a_norm(op: Operation | None) -> bool:
    return isinstance(op, Convolution) and (op.weight.codes is None or op.scale is None)


def _joined(before: Convolution, norm: Norm, output: str) -> Convolution:
    shift = norm.bias + norm.scale * (before.shift - norm.mean)
    joined = replace(before, output=output, shift=shift.astype(np.float32))
    if before.weight.codes is not None:
        return replace(joined, scale=norm.scale.astype(np.float32))
    values = before.weight.values.astype(np.float64) * norm.scale[:, None, None, None]
    return replace(joined, weight=Weight(values=values.astype(np.float32)))


def array(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().double().numpy()
