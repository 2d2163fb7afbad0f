"""The steps in which the engine runs a graph, and where each tensor lies in memory.

The plan joins what one pass over memory can do: a quantizer is the beginning of the convolution
that reads it, a residual sum and a ReLU are the end of the operation before them.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np

from deploy import graph
from deploy.graph import COUNTS, Add, Convolution, Graph, Operation, Pool, Quantize, Relu
from lowbit_core.runtime.errors import InputError

LINE = 16  # floats: tensors begin at a multiple of it
KERNELS = ("popcount", "tables", "products", "matrices", "wide")  # as in kernels/choose.cpp


class Kind(IntEnum):
    """How a step is computed: the enum Kind of step.h, in the same order."""

    COUNTS, DENSE, DEPTHWISE, DEQUANTIZE, ADD, RELU, MAX_POOL, MEAN_POOL = range(8)


@dataclass(frozen=True, eq=False)
class Planned:
    """One step: an operation of the graph, and what is done in the same pass.

    quantizer: of the input of a convolution by counts or a depthwise one. other: a tensor that is
    added to the result. relu: the result is limited to [0, ceiling].
    """

    kind: Kind
    operation: Operation
    input: str
    output: str
    other: str | None = None
    quantizer: Quantize | None = None
    relu: bool = False
    ceiling: float = math.inf


def plan(network: Graph) -> list[Planned]:
    """The steps of a network, in the order in which they run."""
    return _fuse_additions(network, _fuse_relus(network, _steps(network)))


def kernel_number(kernel: str | None) -> int:
    """The engine's number of a kernel; 0 for the fastest, which None stands for."""
    if kernel is None:
        return 0
    if kernel not in KERNELS:
        raise InputError(f"kernel {kernel!r}: must be one of {', '.join(KERNELS)}, or None")
    return 1 + KERNELS.index(kernel)


def _steps(network: Graph) -> list[Planned]:
    """One step an operation; quantizers move into convolutions by counts and depthwise ones."""
    quantizers = {op.output: op for op in network.operations if isinstance(op, Quantize)}
    convolutions = [op for op in network.operations if isinstance(op, Convolution)]
    floats = {op.input for op in convolutions if _kind(op) == Kind.DENSE}
    steps = []
    for op in network.operations:
        if isinstance(op, Convolution) and _quantizes(op, quantizers):
            quantizer = quantizers[op.input]
            steps.append(Planned(_kind(op), op, quantizer.input, op.output, quantizer=quantizer))
        elif isinstance(op, Quantize):
            if op.output in floats:
                steps.append(Planned(Kind.DEQUANTIZE, op, op.input, op.output))
        elif isinstance(op, Add):
            steps.append(Planned(Kind.ADD, op, op.input, op.output, other=op.other))
        elif isinstance(op, Relu):
            ceiling = math.inf if op.ceiling is None else op.ceiling
            steps.append(Planned(Kind.RELU, op, op.input, op.output, relu=True, ceiling=ceiling))
        else:
            steps.append(Planned(_kind(op), op, op.input, op.output))
    return steps


def _quantizes(op: Convolution, quantizers: dict[str, Quantize]) -> bool:
    """Whether the step of a convolution quantizes its input."""
    kind = _kind(op)
    return kind == Kind.COUNTS or (kind == Kind.DEPTHWISE and op.input in quantizers)


def _kind(op: Convolution | Pool) -> Kind:
    if isinstance(op, Pool):
        return Kind.MEAN_POOL if op.mean else Kind.MAX_POOL
    if op.compute == COUNTS:
        return Kind.COUNTS
    return Kind.DEPTHWISE if op.depthwise else Kind.DENSE


def _reads(step: Planned) -> tuple[str, ...]:
    return (step.input,) if step.other is None else (step.input, step.other)


def _readers(steps: list[Planned]) -> dict[str, list[Planned]]:
    readers = defaultdict(list)
    for step in steps:
        for name in _reads(step):
            readers[name].append(step)
    return readers


def _unchanged_by_relu(step: Planned, ceiling: float) -> bool:
    """Whether a step reads the same from min(max(x, 0), ceiling) as from x."""
    if step.kind == Kind.RELU:
        return step.ceiling == ceiling
    quantizer = step.operation if step.kind == Kind.DEQUANTIZE else step.quantizer
    if quantizer is None:
        return False
    reachable = quantizer.thresholds[np.isfinite(quantizer.thresholds)]
    return bool(((reachable > 0) & (reachable <= ceiling)).all())


def _fuse_relus(network: Graph, steps: list[Planned]) -> list[Planned]:
    """Let the step before a ReLU do it, if all readers of that step's output then read the same."""
    readers = _readers(steps)
    makers = {step.output for step in steps if step.kind not in (Kind.DEQUANTIZE, Kind.RELU)}
    ceilings: dict[str, float] = {}
    renamed: dict[str, str] = {}
    for step in steps:
        source = step.input
        if step.kind != Kind.RELU or source not in makers or source == network.output:
            continue
        if all(_unchanged_by_relu(reader, step.ceiling) for reader in readers[source]):
            ceilings[source] = step.ceiling
            renamed[step.output] = source
    fused = []
    for step in steps:
        if step.output in renamed and step.kind == Kind.RELU:
            continue
        if step.output in ceilings and not step.relu:
            step = replace(step, relu=True, ceiling=ceilings[step.output])
        other = step.other if step.other is None else renamed.get(step.other, step.other)
        fused.append(replace(step, input=renamed.get(step.input, step.input), other=other))
    return fused


def _fuse_additions(network: Graph, steps: list[Planned]) -> list[Planned]:
    """Let the convolution before a sum add the other part, if nothing else reads its result."""
    readers, scores = _readers(steps), output_name(network, steps)
    place = {step.output: number for number, step in enumerate(steps)}
    fused = list(steps)
    for number, step in enumerate(steps):
        if step.kind != Kind.ADD or step.input == step.other:
            continue
        for mine, other in ((step.input, step.other), (step.other, step.input)):
            at = place.get(mine, -1)
            maker = fused[at] if at >= 0 else None
            if (
                maker is None
                or maker.kind not in (Kind.COUNTS, Kind.DENSE, Kind.DEPTHWISE)
                or maker.relu
            ):
                continue
            if mine == scores:
                continue
            if len(readers[mine]) == 1 and place.get(other, -1) < at and maker.other is None:
                fused[at] = replace(
                    maker, other=other, output=step.output, relu=step.relu, ceiling=step.ceiling
                )
                fused[number] = None
                place[step.output] = at
                break
    return [step for step in fused if step is not None]


def output_name(network: Graph, steps: list[Planned]) -> str:
    """The tensor that holds the scores, after ReLUs were joined to what comes before them."""
    made = {step.output for step in steps}
    if network.output in made:
        return network.output
    (relu,) = (op for op in network.operations if op.output == network.output)
    return relu.input


@dataclass(frozen=True, eq=False)
class Memory:
    """Where tensors lie: `numbers` by name, `offsets` by number, in an arena of `size` floats."""

    numbers: dict[str, int]
    offsets: list[int]
    size: int


def place_tensors(network: Graph, steps: list[Planned], output: str) -> Memory:
    """Give every tensor a place that no other tensor has while it is in use."""
    sizes = {name: math.prod(shape) for name, shape in graph.shapes(network).items()}
    last = {name: number for number, step in enumerate(steps) for name in _reads(step)}
    last[output] = len(steps)
    numbers: dict[str, int] = {}
    offsets: list[int] = []
    used: dict[str, tuple[int, int]] = {}  # the tensors in use: [start, end)
    size = 0

    def put(name: str) -> None:
        nonlocal size
        need, start = -(-sizes[name] // LINE) * LINE, 0
        for begin, end in sorted(used.values()):
            if start + need <= begin:
                break
            start = max(start, end)
        used[name] = (start, start + need)
        numbers[name] = len(offsets)
        offsets.append(start)
        size = max(size, start + need)

    put(network.input)
    for number, step in enumerate(steps):
        put(step.output)
        for name in [name for name in used if last.get(name, -1) <= number]:
            del used[name]
    return Memory(numbers, offsets, size)
