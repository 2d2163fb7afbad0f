"""A network as a list of operations, with only numbers in them: what a `.lowbit` file holds.

Activations are (C, H, W) for one image; a linear layer is a convolution over its whole input. The
output of `Quantize` is codes, which only convolutions read; all other tensors are float32.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

COUNTS, FLOAT = "counts", "float"  # how a convolution is computed


@dataclass(frozen=True, eq=False)
class Weight:
    """The weight (O, kh, kw, I) of a convolution: float32 values, or codes with their levels.

    levels (R, L) float32, R = O or 1: code q of output channel o stands for levels[o][q]. With a
    basis (R, K) the levels are the sums of its signed numbers, and only the basis is stored.
    """

    values: np.ndarray | None = None
    codes: np.ndarray | None = None  # uint8
    levels: np.ndarray | None = None
    basis: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape if self.codes is None else self.codes.shape

    def dequantized(self) -> np.ndarray:
        """float32 (O, kh, kw, I)."""
        if self.codes is None:
            return self.values
        rows = np.broadcast_to(self.levels, (self.shape[0], self.levels.shape[1]))
        flat = np.take_along_axis(rows, self.codes.reshape(self.shape[0], -1).astype(int), 1)
        return flat.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Convolution:
    """y[o] = scale[o] (w * x)[o] + shift[o]; batch norm and bias are folded into scale and shift.

    Padding is with zeros, also where zero is no level. depthwise: I is 1, and channel o reads
    channel o. compute: `counts` sums integers over bit planes, `float` sums dequantized numbers.
    """

    layer: str
    input: str
    output: str
    stride: tuple[int, int]
    padding: tuple[int, int]
    depthwise: bool
    compute: str
    weight: Weight
    scale: np.ndarray | None  # float32 (O,); None: 1
    shift: np.ndarray  # float32 (O,)


@dataclass(frozen=True, eq=False)
class Quantize:
    """Codes: the number of thresholds that x reaches (x >= t). Code q stands for levels[q].

    thresholds (L - 1,) float32 do not fall; infinity is a level that nothing reaches. levels (L,)
    float32.
    """

    layer: str
    input: str
    output: str
    thresholds: np.ndarray
    levels: np.ndarray


@dataclass(frozen=True)
class Add:
    """The sum of two tensors of one shape."""

    input: str
    other: str
    output: str


@dataclass(frozen=True)
class Relu:
    """min(max(x, 0), ceiling); ceiling is None for no upper limit."""

    input: str
    output: str
    ceiling: float | None


@dataclass(frozen=True)
class Pool:
    """Maximum or mean over windows; the padding of a maximum never wins.

    With `size` (h, w) the windows are those of torch's adaptive pools, else kernel, stride and
    padding give them. A mean has a size.
    """

    input: str
    output: str
    mean: bool
    kernel: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    padding: tuple[int, int] | None = None
    size: tuple[int, int] | None = None


Operation = Convolution | Quantize | Add | Relu | Pool


@dataclass(frozen=True, eq=False)
class Graph:
    """Operations in an order in which they can run. The first tensor is `input`."""

    input: str
    input_shape: tuple[int, int, int]
    output: str
    operations: tuple[Operation, ...]


def windows(side: int, pool: Pool, axis: int) -> list[tuple[int, int]]:
    """The half-open ranges of the pixels along one axis that each output pixel of a pool reads."""
    if pool.size is not None:
        count = pool.size[axis]
        return [(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
    kernel, stride, padding = pool.kernel[axis], pool.stride[axis], pool.padding[axis]
    starts = range(-padding, side + padding - kernel + 1, stride)
    return [(max(start, 0), min(start + kernel, side)) for start in starts]


def output_shape(operation: Operation, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape (C, H, W) of an operation's output from that of its input."""
    channels, *sides = shape
    if isinstance(operation, Convolution):
        outputs, *kernel, _ = operation.weight.shape
        both = zip(sides, kernel, operation.stride, operation.padding, strict=True)
        high, wide = ((side + 2 * p - k) // s + 1 for side, k, s, p in both)
        return outputs, high, wide
    if isinstance(operation, Pool):
        high, wide = (len(windows(side, operation, axis)) for axis, side in enumerate(sides))
        return channels, high, wide
    return shape


def shapes(graph: Graph) -> dict[str, tuple[int, int, int]]:
    """The shape of every tensor."""
    found = {graph.input: graph.input_shape}
    for operation in graph.operations:
        found[operation.output] = output_shape(operation, found[operation.input])
    return found


def read_by(operation: Operation) -> Iterable[str]:
    """The names of the tensors that an operation reads."""
    return (operation.input, operation.other) if isinstance(operation, Add) else (operation.input,)
