"""A graph as QONNX: ONNX whose quantizers are the nodes Quant and BipolarQuant.

Both belong to the domain qonnx.custom_op.general. A quantizer of an input is one Quant, a weight is
its float32 values with a Quant behind them, or with a BipolarQuant for one bit. They stand for
whole multiples of one number, so that only methods with equally spaced levels can be written.
"""

import numpy as np

from deploy.export.onnx import Builder, checked_model, reachable, signed_integers, uniform_grid
from deploy.graph import Convolution, Graph, Quantize
from deploy.onnxfile import QONNX_DOMAIN as DOMAIN
from lowbit_core.runtime.errors import InputError

VERSION = 1


def qonnx_model(network: Graph):
    """The network as an onnx.ModelProto: images (N, C, H, W) to scores (N, classes).

    InputError names the first layer whose levels are not equally spaced.
    """
    return checked_model(network, _Builder(network), {DOMAIN: VERSION})


def _refused(layer: str, what: str) -> InputError:
    return InputError(
        f"layer {layer}: its {what} are not those of a uniform quantizer, as QONNX needs; --format "
        "must be lowbit or onnx"
    )


class _Builder(Builder):
    """Nodes of quantizers instead of QuantizeLinear and comparisons."""

    def quant(
        self, source: str, output: str, scale: np.ndarray, zero: int, bits: int, signed: bool
    ) -> str:
        names = [source]
        for name, value in (("scale", scale), ("zeropt", zero), ("bitwidth", bits)):
            names.append(self.constant(f"{output}_{name}", np.asarray(value, np.float32)))
        how = {"signed": int(signed), "narrow": 0, "rounding_mode": "ROUND"}
        return self.node("Quant", names, output, domain=DOMAIN, **how)

    def quantize(self, op: Quantize) -> None:
        op = reachable(op)
        grid = uniform_grid(op)
        if grid is None:
            raise _refused(op.layer, "input levels")
        step, zero = grid
        source, highest = op.input, len(op.levels) - 1
        bits = highest.bit_length()
        if highest != 2**bits - 1:  # fewer levels than codes
            low = self.constant(f"{op.output}_low", np.float32(op.levels[0]))
            high = self.constant(f"{op.output}_high", np.float32(op.levels[-1]))
            source = self.node("Clip", [source, low, high], f"{op.output}_clipped")
        self.quant(source, op.output, step, zero, bits, signed=False)

    def weight(self, op: Convolution) -> str:
        name, weight = f"{op.output}_weight", op.weight
        values = weight.dequantized().transpose(0, 3, 1, 2)
        if weight.codes is None:
            return self.constant(name, values)
        integers = signed_integers(weight.levels)
        if integers is None:
            raise _refused(op.layer, "weight levels")
        numbers, step = integers
        source = self.constant(f"{name}_values", values)
        scale = step.reshape(-1, 1, 1, 1)
        if numbers.tolist() == [-1, 1]:
            scale = self.constant(f"{name}_scale", scale.astype(np.float32))
            return self.node("BipolarQuant", [source, scale], name, domain=DOMAIN)
        largest = int(max(-numbers.min() - 1, numbers.max()))
        return self.quant(source, name, scale, 0, largest.bit_length() + 1, signed=True)
