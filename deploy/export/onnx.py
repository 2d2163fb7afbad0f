"""A graph as plain ONNX, for other engines: float32 operators, nothing that a runtime must learn.

Uniform levels become QuantizeLinear and DequantizeLinear, uniform weights integers with
DequantizeLinear. A quantizer with other levels becomes a sum of comparisons,
level_0 + sum_i (level_i - level_(i-1)) [x >= t_i], and so does the input of a layer whose weights
are float32, as those with other levels are. Padding is the convolution's own, with zeros.
"""

from dataclasses import replace

import numpy as np

from deploy import graph as graphs
from deploy.graph import Add, Convolution, Graph, Operation, Pool, Quantize, Relu

OPSET, IR_VERSION = 17, 9
TIE = 1e-5  # distance of a threshold from the middle of its levels, as a share of the step
ROUNDING = 2.0**-22  # the same as a share of the largest level: with 255 steps float32 is coarser
LARGEST = 255  # integer of a weight


def onnx_model(network: Graph):
    """The network as an onnx.ModelProto: images (N, C, H, W) to scores (N, classes)."""
    return checked_model(network, Builder(network), {})


def checked_model(network: Graph, builder: "Builder", domains: dict[str, int]):
    """The nodes that `builder` makes, as a model. domains: versions of operators not of ONNX."""
    from onnx import TensorProto, checker, helper

    shapes = graphs.shapes(network)
    for op in network.operations:
        builder.add(op, shapes)
    classes = shapes[network.output][0]
    builder.node("Flatten", [network.output], "flat_scores", axis=1)
    images = helper.make_tensor_value_info(
        network.input, TensorProto.FLOAT, ["N", *network.input_shape]
    )
    scores = helper.make_tensor_value_info("flat_scores", TensorProto.FLOAT, ["N", classes])
    made = helper.make_graph(
        builder.nodes, "network", [images], [scores], initializer=builder.constants
    )
    versions = {"": OPSET, **domains}
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid(*v) for v in versions.items()]
    )
    model.ir_version = IR_VERSION
    checker.check_model(model, full_check=True)
    return model


class Builder:
    """Nodes and constants of an ONNX graph."""

    def __init__(self, network: Graph) -> None:
        self.nodes: list = []
        self.constants: list = []
        # onnxruntime rounds float32 weights to 8 bits where their input is of DequantizeLinear.
        self.compared = {
            op.input
            for op in network.operations
            if isinstance(op, Convolution) and _integers(op) is None
        }

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, values: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, op: Operation, shapes: dict) -> None:
        if isinstance(op, Convolution):
            self._convolution(op)
        elif isinstance(op, Quantize):
            self.quantize(op)
        elif isinstance(op, Add):
            self.node("Add", [op.input, op.other], op.output)
        elif isinstance(op, Relu):
            self._relu(op)
        else:
            self._pool(op, shapes[op.input])

    def _relu(self, op: Relu) -> None:
        if op.ceiling is None:
            self.node("Relu", [op.input], op.output)
            return
        low = self.constant(f"{op.output}_low", np.float32(0))
        high = self.constant(f"{op.output}_high", np.float32(op.ceiling))
        self.node("Clip", [op.input, low, high], op.output)

    def _pool(self, op: Pool, shape: tuple[int, int, int]) -> None:
        """Adaptive windows of one size are a plain pool; others are cut out and joined."""
        if op.size is None:
            sides = {"kernel_shape": op.kernel, "strides": op.stride, "pads": op.padding * 2}
            self.node("MaxPool", [op.input], op.output, **sides)
            return
        kind = "AveragePool" if op.mean else "MaxPool"
        if op.size == (1, 1):
            self.node(f"Global{kind}", [op.input], op.output)
        elif all(side % count == 0 for side, count in zip(shape[1:], op.size, strict=True)):
            each = [side // count for side, count in zip(shape[1:], op.size, strict=True)]
            self.node(kind, [op.input], op.output, kernel_shape=each, strides=each)
        else:
            self._adaptive(op, shape)

    def _adaptive(self, op: Pool, shape: tuple[int, int, int]) -> None:
        name, rows = op.output, []
        axes = self.constant(f"{name}_axes", np.array([2, 3], np.int64))
        windows = [graphs.windows(side, op, axis) for axis, side in enumerate(shape[1:])]
        for y, (top, bottom) in enumerate(windows[0]):
            cells = []
            for x, (left, right) in enumerate(windows[1]):
                cell = f"{name}_{y}_{x}"
                start = self.constant(f"{cell}_start", np.array([top, left], np.int64))
                end = self.constant(f"{cell}_end", np.array([bottom, right], np.int64))
                part = self.node("Slice", [op.input, start, end, axes], f"{cell}_part")
                kind = "GlobalAveragePool" if op.mean else "GlobalMaxPool"
                cells.append(self.node(kind, [part], cell))
            rows.append(self.node("Concat", cells, f"{name}_{y}", axis=3))
        self.node("Concat", rows, name, axis=2)

    # -- quantizers ------------------------------------------------------------------------

    def quantize(self, op: Quantize) -> None:
        op = reachable(op)
        grid = uniform_grid(op)
        if grid is None or op.output in self.compared:
            self._comparisons(op)
            return
        step, zero = grid
        # The codes of fewer than 8 bits are cut off at the ends of the range.
        name = op.output
        low = self.constant(f"{name}_low", np.float32(op.levels[0]))
        high = self.constant(f"{name}_high", np.float32(op.levels[-1]))
        clipped = self.node("Clip", [op.input, low, high], f"{name}_clipped")
        scale = self.constant(f"{name}_scale", np.float32(step))
        point = self.constant(f"{name}_zero", np.uint8(zero))
        codes = self.node("QuantizeLinear", [clipped, scale, point], f"{name}_codes")
        self.node("DequantizeLinear", [codes, scale, point], name)

    def _comparisons(self, op: Quantize) -> None:
        """level_0 + sum_i (level_i - level_(i-1)) [x >= t_i]."""
        total = self.constant(f"{op.output}_0", np.float32(op.levels[0]))
        for i, least in enumerate(op.thresholds):
            name = f"{op.output}_{i + 1}"
            threshold = self.constant(f"{name}_t", least)
            step = self.constant(f"{name}_step", op.levels[i + 1] - op.levels[i])
            nothing = self.constant(f"{name}_none", np.float32(0))
            above = self.node("GreaterOrEqual", [op.input, threshold], f"{name}_above")
            part = self.node("Where", [above, step, nothing], f"{name}_part")
            last = op.output if i + 1 == len(op.thresholds) else f"{name}_sum"
            total = self.node("Add", [part, total], last)
        if not len(op.thresholds):
            zero = self.constant(f"{op.output}_none", np.float32(0))
            nothing = self.node("Mul", [op.input, zero], f"{op.output}_nothing")
            self.node("Add", [nothing, total], op.output)

    # -- convolutions ----------------------------------------------------------------------

    def _convolution(self, op: Convolution) -> None:
        name, weight = op.output, self.weight(op)
        groups = op.weight.shape[0] if op.depthwise else 1
        window = {"kernel_shape": op.weight.shape[1:3], "strides": op.stride}
        window |= {"pads": op.padding * 2, "group": groups}
        if op.scale is None:
            shift = self.constant(f"{name}_shift", op.shift)
            self.node("Conv", [op.input, weight, shift], name, **window)
            return
        total = self.node("Conv", [op.input, weight], f"{name}_sum", **window)
        scale = self.constant(f"{name}_scale", op.scale[:, None, None])
        shift = self.constant(f"{name}_shift", op.shift[:, None, None])
        self.node("Add", [self.node("Mul", [total, scale], f"{name}_scaled"), shift], name)

    def weight(self, op: Convolution) -> str:
        """The weight (O, I, kh, kw): integers and DequantizeLinear for equal steps, else float32.

        int8; int32 for the odd numbers of 8 bits, which go up to 255.
        """
        name, weight, integers = f"{op.output}_weight", op.weight, _integers(op)
        if integers is None:
            return self.constant(name, weight.dequantized().transpose(0, 3, 1, 2))
        numbers, step = integers
        small = -128 <= numbers.min() and numbers.max() <= 127
        kind = np.int8 if small else np.int32
        values = numbers[weight.codes].transpose(0, 3, 1, 2).astype(kind)
        codes = self.constant(f"{name}_codes", values)
        scale = self.constant(f"{name}_step", np.float32(step[0] if len(step) == 1 else step))
        if len(step) == 1:
            return self.node("DequantizeLinear", [codes, scale], name)
        zeros = self.constant(f"{name}_zero", np.zeros(len(step), kind))
        return self.node("DequantizeLinear", [codes, scale, zeros], name, axis=0)


def reachable(op: Quantize) -> Quantize:
    """Without the levels that no input reaches, such as those above the ceiling of a ReLU6."""
    count = int(np.isfinite(op.thresholds).sum())  # they rise: infinity comes last
    return replace(op, thresholds=op.thresholds[:count], levels=op.levels[: count + 1])


def uniform_grid(op: Quantize) -> tuple[float, int] | None:
    """(Step, code of zero) where QuantizeLinear gives the same codes; None otherwise.

    All levels must be reachable, zero must be one of them, levels lie at equal distances, and each
    threshold half-way between two of them, up to the rounding of float32. A ReLU or its ceiling may
    take part in the clipping.
    """
    levels, thresholds = op.levels.astype(np.float64), op.thresholds.astype(np.float64)
    count = len(levels) - 1
    step = (levels[-1] - levels[0]) / max(count, 1)
    if not step > 0:
        return None
    zero = round(-levels[0] / step)
    grid = (np.arange(count + 1) - zero) * step
    middles = (grid[1:] + grid[:-1]) / 2
    near = max(TIE * step, ROUNDING * np.abs(levels).max())
    even = np.abs(grid - levels).max() <= near
    half = np.abs(thresholds - middles).max() <= near
    return (step, zero) if even and half and 0 <= zero <= 255 else None


def _integers(op: Convolution) -> tuple[np.ndarray, np.ndarray] | None:
    return None if op.weight.codes is None else signed_integers(op.weight.levels)


def signed_integers(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(The integer of each code, the step of each row) where every level is their product; or None.

    Levels at equal distances around zero are the odd numbers; those with zero among them are whole.
    """
    levels = levels.astype(np.float64)
    count = levels.shape[1] - 1
    rows = (levels[:, -1] - levels[:, 0]) / count
    if not (rows > 0).all():
        return None
    for step in (rows, rows / 2):
        numbers = np.rint(levels[0] / step[0])
        near = np.maximum(TIE * step, ROUNDING * np.abs(levels).max(1))
        exact = (np.abs(numbers * step[:, None] - levels) <= near[:, None]).all()
        if exact and np.abs(numbers).max() <= LARGEST:
            return numbers.astype(np.int64), step
    return None
