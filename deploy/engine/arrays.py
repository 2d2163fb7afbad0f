"""What the engine gets of each step: a struct whose arrays are made from the graph's numbers."""

import numpy as np

from deploy import graph
from deploy.engine.build import Step
from deploy.engine.plan import Kind, Memory, Planned
from deploy.graph import Convolution, Pool
from deploy.planes import TOLERANCE, Planes, signed, split
from lowbit_core.runtime.errors import InputError

MOST_HALVES = 64  # so that integers stay far below what 32 bits hold


class Filled:
    """A Step and the arrays that it points to, which must live as long as it is used."""

    def __init__(self, planned: Planned, memory: Memory, shapes: dict) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        channels, high, wide = shapes[planned.input]
        outputs, out_high, out_wide = shapes[planned.output]
        number = memory.numbers
        self.step = Step(
            kind=planned.kind,
            input=number[planned.input],
            other=-1 if planned.other is None else number[planned.other],
            output=number[planned.output],
            channels=channels,
            high=high,
            wide=wide,
            outputs=outputs,
            out_high=out_high,
            out_wide=out_wide,
            stride_high=1,
            stride_wide=1,
            relu=planned.relu,
            ceiling=planned.ceiling,
        )
        op = planned.operation
        if isinstance(op, Convolution):
            self._convolution(op)
            (self._counts if planned.kind == Kind.COUNTS else self._floats)(op)
        quantizer = op if planned.kind == Kind.DEQUANTIZE else planned.quantizer
        if quantizer is not None:
            self._point("threshold", quantizer.thresholds, np.float32)
            self._point("level", quantizer.levels, np.float32)
            self.step.thresholds = len(quantizer.thresholds)
            if planned.kind == Kind.COUNTS:
                self._inputs(quantizer.levels)
        if isinstance(op, Pool):
            sides = ((high, 0), (wide, 1))
            rows = [window for side, axis in sides for window in graph.windows(side, op, axis)]
            self._point("window", np.array(rows), np.int32)

    def _point(self, field: str, values: np.ndarray, dtype: type) -> None:
        array = self.arrays[field] = np.ascontiguousarray(values, dtype)
        setattr(self.step, field, array.ctypes.data)

    def _point_finite(self, field: str, values: np.ndarray, layer: str) -> None:
        with np.errstate(over="ignore"):
            self._point(field, values, np.float32)
        if not np.isfinite(self.arrays[field]).all():
            raise InputError(f"{layer}: a level of its weights times their scale is not finite")

    def _convolution(self, op: Convolution) -> None:
        step = self.step
        _, step.kernel_high, step.kernel_wide, _ = op.weight.shape
        step.stride_high, step.stride_wide = op.stride
        step.pad_high, step.pad_wide = op.padding
        self._point("shift", op.shift, np.float32)

    def _floats(self, op: Convolution) -> None:
        weight = op.weight.dequantized()
        if op.scale is not None:
            weight = weight.astype(np.float64) * op.scale[:, None, None, None]
        self._point_finite("weight", weight, op.layer)

    def _counts(self, op: Convolution) -> None:
        """The weight's planes; the scale goes into the values of each output channel."""
        step, outputs = self.step, op.weight.shape[0]
        planes = signed(split(op.weight.levels))
        scale = np.ones(outputs) if op.scale is None else op.scale.astype(np.float64)
        step.w_planes, step.w_levels = planes.bits.shape
        step.w_groups = planes.values.shape[1]
        self._point("w_codes", op.weight.codes, np.uint8)
        self._point("w_bits", planes.bits, np.uint8)
        self._point("w_multiplier", planes.multiplier, np.int32)
        self._point("w_group", planes.group, np.int32)
        self._point_finite("w_value", planes.values * scale[:, None], op.layer)
        if planes.offset.any():
            self._point_finite("w_offset", planes.offset * scale, op.layer)

    def _inputs(self, levels: np.ndarray) -> None:
        step, planes = self.step, split(levels[None])
        step.a_planes, step.a_groups = len(planes.bits), planes.values.shape[1]
        self._point("a_bits", planes.bits, np.uint8)
        self._point("a_multiplier", planes.multiplier, np.int32)
        self._point("a_group", planes.group, np.int32)
        self._point("a_value", planes.values[0], np.float32)
        step.a_offset = planes.offset[0]
        step.a_halves = _halves(planes, np.abs(levels).max())

    def terms(self) -> tuple[int, ...]:
        """The shape of the integers of a convolution by counts: (OH, OW, O, groups, terms)."""
        step = self.step
        terms = step.a_groups + (step.a_offset != 0)
        return step.out_high, step.out_wide, step.outputs, step.w_groups, terms


def _halves(planes: Planes, largest: float) -> int:
    """The offset of an input's levels in units of value / 2: a whole number; 0 where it is not one.

    Also 0 with several values, or above MOST_HALVES. largest: the largest magnitude of the levels.
    With it the engine adds integers, not two floats, which nearly cancel where inputs are signed.
    """
    offset, values = planes.offset[0], planes.values[0]
    near = abs(offset) <= MOST_HALVES / 2 * abs(values[0])
    if len(values) > 1 or np.float32(offset) == 0 or not near:
        return 0
    halves = round(2 * offset / values[0])
    return halves if abs(halves / 2 * values[0] - offset) <= TOLERANCE * largest else 0
