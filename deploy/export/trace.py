"""The graph of a network, found by tracing its forward pass.

Every call becomes an operation or none. The layers of the network are numbers in the end: batch
norm is folded, quantizers become thresholds and codes.
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
from deploy.export.calls import place, record
from deploy.export.fold import Norm, alone, array, fold, norm_of
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


# Functions and methods that leave every number where it is; the shapes of results are checked.
_SAME = (torch.flatten, torch.reshape, "flatten", "reshape", "view", "contiguous")
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_IN_PLACE = (operator.iadd, torch.relu_, "add_", "relu_")
_MEAN = (torch.mean, "mean")
_MEAN_POOL = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_ADAPTIVE = (functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)


def trace(model: nn.Module, shape: tuple[int, int, int], images: Tensor | None = None) -> Graph:
    """The graph of a network in evaluation mode, for images of `shape` (C, H, W).

    images (N, C, H, W), N > 1: an example, on which the trace is compared with the network.
    Raises InputError for what a file cannot hold, with the name of the module.
    """
    model = model.eval()
    if images is None:
        images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    builder = _Builder(model, shape, len(images))
    for node in record(model, images).nodes:
        builder.add(node)
    return builder.graph()


class _Builder:
    """Adds one call after the other to a list of operations.

    The value of a call is the name of a tensor, a pair of names where a layer also returns the
    ReLU of its input, or None for what is no tensor. A flattened tensor keeps its name.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int], images: int) -> None:
        self.model, self.images = model, images
        self.operations: list[Operation] = []
        self.values: dict[fx.Node, object] = {}
        self.shapes = {"image": shape}
        self.norms: dict[str, Norm] = {}
        self.output = ""
        self.place = ""  # of the call that is added, for messages

    def graph(self) -> Graph:
        operations = fold(self.operations, self.norms, self.output)
        return Graph("image", self.shapes["image"], self.output, tuple(operations))

    def add(self, node: fx.Node) -> None:
        self.place = place(node, self.model)
        if node.op == "placeholder":
            self.values[node] = "image"
        elif node.op == "output":
            self.output = self._name(node.args[0])
        elif node.op == "get_attr" or not (node.meta["shape"] or node.meta["pair"]):
            self.values[node] = None
        else:
            make = self._module if node.op == "call_module" else self._function
            self.values[node] = make(node)
            self._check(node)

    def _check(self, node: fx.Node) -> None:
        """Refuse a call whose result has another shape than the operation's, for one image."""
        made, found = self.values[node], node.meta["shape"]
        if isinstance(made, str) and found is not None:
            shape = self.shapes[made]
            if found not in ((self.images, *shape), (self.images, math.prod(shape))):
                raise InputError(
                    f"{self.place}: a file cannot hold {_called(node)} with a result of the shape "
                    f"{list(found)}"
                )

    def _name(self, node: object) -> str:
        value = self.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(value, str):
            raise InputError(
                f"{self.place}: a file cannot hold an operation on {node}, which is not computed "
                "from the image"
            )
        return value

    def _append(self, make: Callable[[str], Operation]) -> str:
        """Append the operation that `make` gives for the name of its output; returns the name."""
        output = f"t{len(self.operations)}"
        operation = make(output)
        self.operations.append(operation)
        self.shapes[output] = graph.output_shape(operation, self.shapes[operation.input])
        return output

    def _in_place(self, x: str, made: str) -> str:
        """Let every later reader of x read what was made of it in its memory."""
        for node, value in self.values.items():
            if isinstance(value, tuple):
                self.values[node] = tuple(made if name == x else name for name in value)
            elif value == x:
                self.values[node] = made
        return made

    # -- modules -------------------------------------------------------------------------

    def _module(self, node: fx.Node) -> object:
        module, x = self.model.get_submodule(node.target), self._name(_input(node))
        name = str(node.target)
        rank = len(_input(node).meta["shape"])
        if isinstance(module, QuantLayer):
            return self._quantized(name, module, x, rank, node.kwargs.get("also_relu", False))
        if isinstance(module, nn.Conv2d | nn.Linear):
            if not _computes_as_usual(module):
                kind = type(module).__name__
                raise InputError(f"{self.place}: a file cannot hold a {kind} with its own forward")
            weight = Weight(values=_rows(module.weight))
            return self._layer(name, module, weight, x, rank, None)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self._batch_norm(name, module, x)
        if isinstance(module, nn.ReLU | nn.ReLU6):
            return self._relu(x, 6.0 if isinstance(module, nn.ReLU6) else None, module.inplace)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            return self._pool(x, vars(module), isinstance(module, nn.AvgPool2d))
        if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
            mean = isinstance(module, nn.AdaptiveAvgPool2d)
            return self._adaptive(x, module.output_size, mean)
        if isinstance(module, nn.Flatten | nn.Identity | nn.modules.dropout._DropoutNd):
            return x
        raise InputError(f"{self.place}: a file cannot hold a {type(module).__name__}")

    def _quantized(
        self, name: str, layer: QuantLayer, x: str, rank: int, also_relu: bool
    ) -> object:
        quantizer, relu = layer.activation_quantizer, None
        if also_relu:
            ceiling = None if math.isinf(quantizer.ceiling) else quantizer.ceiling
            relu = self._append(lambda output: Relu(x, output, ceiling))
        codes = x
        if quantizer is not None:
            numbers = activation_thresholds(name, quantizer)
            codes = self._append(lambda output: Quantize(name, x, output, *numbers))
        if layer.weight_quantizer is None:
            weight = Weight(values=_rows(layer.weight))
        else:
            weight = weight_codes(name, layer.weight_quantizer)
        y = self._layer(name, layer, weight, codes, rank, quantizer)
        return (relu, y) if also_relu else y

    def _layer(
        self, name: str, layer: nn.Module, weight: Weight, x: str, rank: int, quantizer: object
    ) -> str:
        """A layer with input x, which has `rank` dimensions in the network."""
        stride, padding, dilation, groups = _geometry(name, layer)
        channels, high, wide = self.shapes[x]
        linear = isinstance(layer, nn.Linear) or getattr(layer, "convolution", stride) is None
        if linear:
            if rank != 2:
                raise InputError(f"layer {name}: a linear layer needs a flattened input")
            weight = _over_image(weight, channels, high, wide)
        outputs = weight.shape[0]
        depthwise = groups > 1
        is_held = not depthwise or groups == channels == outputs
        if dilation != (1, 1) or not is_held:
            raise InputError(f"layer {name}: a file holds no dilated or grouped convolution")
        compute = FLOAT
        if quantizer is not None and weight.codes is not None and not depthwise:
            few = max(layer.weight_quantizer.bits, quantizer.bits) <= MOST_BITS_TO_COUNT
            (codes,) = (op for op in self.operations if op.output == x)
            products = math.prod(weight.shape[1:])
            if few and planes.countable(weight.levels, codes.levels, products):
                compute = COUNTS
        bias = np.zeros(outputs) if layer.bias is None else array(layer.bias)
        shift = bias.astype(np.float32)
        return self._append(
            lambda output: Convolution(
                name, x, output, stride, padding, depthwise, compute, weight, None, shift
            )
        )

    def _batch_norm(self, name: str, norm: nn.Module, x: str) -> str:
        if norm.running_var is None:
            raise InputError(f"layer {name}: a file holds no batch norm without running statistics")
        if norm.num_features != self.shapes[x][0]:
            raise InputError(f"layer {name}: a file holds no batch norm of single pixels")
        numbers = norm_of(norm)
        output = self._append(lambda output: alone(name, x, output, numbers))
        self.norms[output] = numbers
        return output

    # -- functions and methods ------------------------------------------------------------

    def _function(self, node: fx.Node) -> object:
        target = node.target
        if target is operator.getitem and isinstance(self.values[node.args[0]], tuple):
            return self.values[node.args[0]][node.args[1]]
        if not isinstance(_input(node), fx.Node) or node.kwargs.get("out") is not None:
            raise InputError(f"{self.place}: a file cannot hold {_called(node)}")
        x = self._name(_input(node))
        in_place = _is_in_place(node)
        if target in _SAME:
            return x
        if target is functional.dropout and node.kwargs.get("training", True) is False:
            return x
        if target in _RELU or target is functional.relu6:
            return self._relu(x, 6.0 if target is functional.relu6 else None, in_place)
        if target in _ADD and node.kwargs.get("alpha", 1) == 1 and len(node.args) <= 2:
            other = self._name(_arguments(node, "other")["other"])
            made = self._append(lambda output: Add(x, other, output))
            return self._in_place(x, made) if in_place else made
        if target in _ADAPTIVE:
            return self._adaptive(
                x,
                _arguments(node, "output_size", "return_indices")["output_size"],
                target is functional.adaptive_avg_pool2d,
            )
        if target in (functional.max_pool2d, functional.avg_pool2d):
            mean = target is functional.avg_pool2d
            return self._pool(x, _arguments(node, *(_MEAN_POOL if mean else _MAX_POOL)), mean)
        if target in _MEAN and _over_pixels(node):
            return self._adaptive(x, 1, True)
        raise InputError(f"{self.place}: a file cannot hold {_called(node)}")

    def _relu(self, x: str, ceiling: float | None, in_place: bool) -> str:
        made = self._append(lambda output: Relu(x, output, ceiling))
        return self._in_place(x, made) if in_place else made

    def _pool(self, x: str, options: dict, mean: bool) -> str:
        """A pool with a kernel; that of a mean must cut the image into equal parts."""
        kernel = _pair(options["kernel_size"])
        stride = _pair(options.get("stride") or kernel)
        padding, sides = _pair(options.get("padding", 0)), self.shapes[x][1:]
        if mean:
            whole = all(side % k == 0 for side, k in zip(sides, kernel, strict=True))
            if (
                not whole
                or stride != kernel
                or padding != (0, 0)
                or options.get("divisor_override")
            ):
                raise InputError(
                    f"{self.place}: a file holds average pools only where the windows "
                    f"cut the image of {sides[0]}x{sides[1]} into equal parts"
                )
            return self._adaptive(
                x, tuple(s // k for s, k in zip(sides, kernel, strict=True)), True
            )
        if _pair(options.get("dilation", 1)) != (1, 1) or options.get("ceil_mode"):
            raise InputError(f"{self.place}: a file holds no dilated or ceiled max pool")
        return self._append(lambda output: Pool(x, output, False, kernel, stride, padding))

    def _adaptive(self, x: str, size: object, mean: bool) -> str:
        sides = self.shapes[x][1:]
        wanted = tuple(s if w is None else w for s, w in zip(sides, _pair(size), strict=True))
        return self._append(lambda output: Pool(x, output, mean, size=wanted))


def _input(node: fx.Node) -> object:
    """The first argument of a call."""
    return node.args[0] if node.args else node.kwargs.get("input")


def _arguments(node: fx.Node, *names: str) -> dict:
    """The arguments of a call after the first, by name. Raises InputError where one has no name."""
    if len(node.args) > 1 + len(names):
        raise InputError(f"a file cannot hold {_called(node)} with {len(node.args)} arguments")
    return dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


def _is_in_place(node: fx.Node) -> bool:
    if node.target in (functional.relu, functional.relu6):
        return bool(_arguments(node, "inplace").get("inplace"))
    return node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))


def _called(node: fx.Node) -> str:
    """What a call is, in a message."""
    return f"the operation {getattr(node.target, '__name__', node.target)}"


def _over_pixels(node: fx.Node) -> bool:
    """Whether a call of mean() is over all pixels of an image (N, C, H, W)."""
    dim = _arguments(node, "dim", "keepdim").get("dim")
    four = len(_input(node).meta["shape"]) == 4
    return four and isinstance(dim, tuple | list) and sorted(d % 4 for d in dim) == [2, 3]


def _geometry(name: str, layer: nn.Module) -> tuple:
    """(Stride, padding, dilation, groups) of a layer."""
    if isinstance(layer, QuantLayer):
        if layer.convolution is None:
            return (1, 1), (0, 0), (1, 1), 1
        stride, padding, dilation, groups = layer.convolution
        stride = layer.reads or stride  # pixels that the layer picks before it quantizes
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


def _computes_as_usual(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether its output is that of torch's own layer; torch.fx does not look into it."""
    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    functions = ("forward", "_conv_forward") if kind is nn.Conv2d else ("forward",)
    own = [f for f in functions if getattr(type(layer), f) is not getattr(kind, f)]
    return not own and not {*functions} & vars(layer).keys()
