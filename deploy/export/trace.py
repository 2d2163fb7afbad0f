"""The graph of a network, found by tracing its forward pass.

torch.fx runs the forward function once with symbols and records what it calls. The layers of the
network are numbers in the end: batch norm is folded, quantizers become thresholds and codes.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deploy import graph, planes
from deploy.export.quantizers import activation_thresholds, weight_codes
from deploy.graph import (
    COUNTS,
    FLOAT,
    Add,
    Convolution,
    Graph,
    Operation,
    Pool,
    Quantize,
    Relu,
    Weight,
)
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import InputError

MOST_BITS_TO_COUNT = 4  # with more, counting bit planes takes longer than float32


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, QuantLayer) or super().is_leaf_module(module, name)


def trace(model: nn.Module, shape: tuple[int, int, int]) -> Graph:
    """The graph of a network in evaluation mode, for images of `shape` (C, H, W).

    Raises InputError for an operation that a file cannot hold.
    """
    model = model.eval()
    builder = _Builder(model, shape)
    for node in _Tracer().trace(model).nodes:
        builder.add(node)
    return builder.graph()


class _Builder:
    """Adds one node of the trace after the other to a list of operations.

    A value of the trace is the name of a tensor, or a pair of names where a layer also returns the
    ReLU of its input.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        self.model = model
        self.operations: list[Operation] = []
        self.values: dict[fx.Node, object] = {}
        self.shapes = {"image": shape}
        self.output = ""
        self.flat: set[str] = set()  # tensors that the network has flattened

    def graph(self) -> Graph:
        return Graph("image", self.shapes["image"], self.output, tuple(self.operations))

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = "image"
        elif node.op == "output":
            self.output = self._name(node.args[0])
        elif node.op == "call_module":
            self.values[node] = self._module(node)
        elif node.op in ("call_function", "call_method"):
            self.values[node] = self._function(node)
        elif node.op != "get_attr":
            raise InputError(f"a file cannot hold the operation {node.op} {node.target}")

    def _name(self, node: object) -> str:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(value, str):
            raise InputError(f"the trace of the network is not understood at {node!r}")
        return value

    def _append(self, make: Callable[[str], Operation]) -> str:
        """Append the operation that `make` gives for the name of its output; returns the name."""
        output = f"t{len(self.operations)}"
        operation = make(output)
        self.operations.append(operation)
        self.shapes[output] = graph.output_shape(operation, self.shapes[operation.input])
        return output

    # -- modules -------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> object:
        module, x = self.model.get_submodule(node.target), self._name(node.args[0])
        name = str(node.target)
        if isinstance(module, QuantLayer):
            return self._quantized(name, module, x, node.kwargs.get("also_relu", False))
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = Weight(values=_rows(module.weight))
            return self._layer(name, module, weight, x, None)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self._batch_norm(name, module, x)
        if isinstance(module, nn.ReLU | nn.ReLU6):
            ceiling = 6.0 if isinstance(module, nn.ReLU6) else None
            return self._append(lambda output: Relu(x, output, ceiling))
        if isinstance(module, nn.MaxPool2d):
            if module.dilation not in (1, (1, 1)) or module.ceil_mode:
                raise InputError(f"layer {name}: a file holds no dilated or ceiled max pool")
            stride = module.kernel_size if module.stride is None else module.stride
            window = (_pair(module.kernel_size), _pair(stride), _pair(module.padding))
            return self._append(lambda output: Pool(x, output, False, *window))
        if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
            mean = isinstance(module, nn.AdaptiveAvgPool2d)
            return self._adaptive(x, module.output_size, mean)
        if isinstance(module, nn.Flatten):
            return self._flatten(x)
        if isinstance(module, nn.Identity | nn.Dropout):
            return x
        raise InputError(f"layer {name}: a file cannot hold a {type(module).__name__}")

    def _quantized(self, name: str, layer: QuantLayer, x: str, also_relu: bool) -> object:
        quantizer, relu = layer.activation_quantizer, None
        if also_relu:
            ceiling = None if math.isinf(quantizer.ceiling) else quantizer.ceiling
            relu = self._append(lambda output: Relu(x, output, ceiling))
        codes = x
        if quantizer is not None:
            numbers = activation_thresholds(name, quantizer)
            codes = self._append(lambda output: Quantize(name, x, output, *numbers))
            if x in self.flat:
                self.flat.add(codes)
        if layer.weight_quantizer is None:
            weight = Weight(values=_rows(layer.weight))
        else:
            weight = weight_codes(name, layer.weight_quantizer)
        y = self._layer(name, layer, weight, codes, quantizer)
        return (relu, y) if also_relu else y

    def _layer(self, name: str, layer: nn.Module, weight: Weight, x: str, quantizer: object) -> str:
        stride, padding, dilation, groups = _geometry(name, layer)
        channels, high, wide = self.shapes[x]
        linear = isinstance(layer, nn.Linear) or getattr(layer, "convolution", stride) is None
        if linear:
            if x not in self.flat and (high, wide) != (1, 1):
                raise InputError(f"layer {name}: a linear layer needs a flattened input")
            weight = _over_image(weight, channels, high, wide)
        outputs, *_, inputs = weight.shape
        depthwise = groups > 1
        if dilation != (1, 1) or (depthwise and not inputs == 1 == outputs // groups):
            raise InputError(f"layer {name}: a file holds no dilated or grouped convolution")
        compute = FLOAT
        if quantizer is not None and weight.codes is not None and not depthwise:
            few = max(layer.weight_quantizer.bits, quantizer.bits) <= MOST_BITS_TO_COUNT
            codes = self.operations[-1]
            products = math.prod(weight.shape[1:])
            if few and planes.countable(weight.levels, codes.levels, products):
                compute = COUNTS
        bias = np.zeros(outputs) if layer.bias is None else _array(layer.bias)
        shift = bias.astype(np.float32)
        return self._append(
            lambda output: Convolution(
                name, x, output, stride, padding, depthwise, compute, weight, None, shift
            )
        )

    def _batch_norm(self, name: str, norm: nn.Module, x: str) -> str:
        """Fold a batch norm into the convolution before it."""
        place = next((i for i, op in enumerate(self.operations) if op.output == x), None)
        before = None if place is None else self.operations[place]
        read = sum(x in graph.read_by(op) for op in self.operations)
        if not isinstance(before, Convolution) or read or before.scale is not None:
            raise InputError(f"layer {name}: a batch norm must come right after a convolution")
        deviation = np.sqrt(_array(norm.running_var) + norm.eps)
        gain, bias = _array(norm.weight), _array(norm.bias)
        scale = (1 if gain is None else gain) / deviation
        shift = (0 if bias is None else bias) + scale * (before.shift - _array(norm.running_mean))
        folded = replace(before, scale=scale.astype(np.float32), shift=shift.astype(np.float32))
        if before.weight.codes is None:  # float weights take the scale themselves
            values = before.weight.values.astype(np.float64) * scale[:, None, None, None]
            folded = replace(folded, scale=None, weight=Weight(values=values.astype(np.float32)))
        self.operations[place] = folded
        return x

    # -- functions and methods ------------------------------------------------------------

    def _function(self, node: fx.Node) -> object:
        target = node.target
        if target is operator.getitem:
            pair = self.values[node.args[0]]
            return pair[node.args[1]]
        if target in ("size", "dim") or target is getattr:
            return None
        x = self._name(node.args[0])
        if target in (torch.flatten, "flatten", "view", "reshape"):
            return self._flatten(x)
        if target in (functional.relu, torch.relu, "relu", "relu_"):
            return self._append(lambda output: Relu(x, output, None))
        if target is functional.relu6:
            return self._append(lambda output: Relu(x, output, 6.0))
        if target in (operator.add, operator.iadd, torch.add, "add", "add_"):
            other = self._name(node.args[1])
            return self._append(lambda output: Add(x, other, output))
        if target in (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d):
            return self._adaptive(x, node.args[1], target is functional.adaptive_avg_pool2d)
        raise InputError(f"a file cannot hold the operation {getattr(target, '__name__', target)}")

    def _flatten(self, x: str) -> str:
        self.flat.add(x)
        return x

    def _adaptive(self, x: str, size: object, mean: bool) -> str:
        sides = self.shapes[x][1:]
        wanted = tuple(s if w is None else w for s, w in zip(sides, _pair(size), strict=True))
        return self._append(lambda output: Pool(x, output, mean, size=wanted))


def _geometry(name: str, layer: nn.Module) -> tuple:
    """(Stride, padding, dilation, groups) of a layer."""
    if isinstance(layer, QuantLayer):
        if layer.convolution is None:
            return (1, 1), (0, 0), (1, 1), 1
        stride, padding, dilation, groups = layer.convolution
        if layer.reads is not None:  # the layer takes its stride by an index
            stride = tuple(part.step for part in layer.reads[1:])
    elif isinstance(layer, nn.Conv2d):
        stride, padding = layer.stride, layer.padding
        dilation, groups = layer.dilation, layer.groups
        if layer.padding_mode != "zeros":
            raise InputError(f"layer {name}: a file holds padding with zeros only")
    else:
        return (1, 1), (0, 0), (1, 1), 1
    if isinstance(padding, str):
        raise InputError(f"layer {name}: padding {padding!r}: a file holds numbers only")
    return tuple(stride), tuple(padding), tuple(dilation), groups


def _array(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().double().numpy()


def _pair(value: object) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _rows(weight: Tensor) -> np.ndarray:
    """A weight (O, I, kh, kw) or (O, I) as (O, kh, kw, I)."""
    weight = weight.detach().float()
    shaped = weight if weight.dim() == 4 else weight[:, :, None, None]
    return np.ascontiguousarray(shaped.permute(0, 2, 3, 1).numpy())


def _over_image(weight: Weight, channels: int, high: int, wide: int) -> Weight:
    """A linear layer's weight (O, 1, 1, C H W) as a convolution over its whole input."""

    def shaped(array: np.ndarray) -> np.ndarray:
        rows = array.reshape(len(array), channels, high, wide)
        return np.ascontiguousarray(rows.transpose(0, 2, 3, 1))

    if weight.codes is None:
        return Weight(values=shaped(weight.values))
    return replace(weight, codes=shaped(weight.codes))
