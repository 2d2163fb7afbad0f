"""What is measured: whole networks with random weights, and single convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import baselines
from deploy import fileformat
from deploy.export.onnx import IR_VERSION, OPSET, onnx_model
from deploy.export.trace import trace
from deploy.fileformat import About
from deploy.graph import Graph
from deploy.network import Network, load
from lowbit_core import models

CLASSES, CHANNELS = 100, 3
CALIBRATION_IMAGES = 4
ABOUT = About({}, tuple(map(str, range(CLASSES))), (0.5,) * CHANNELS, (0.25,) * CHANNELS, None)


@dataclass(frozen=True)
class Subject:
    """A network or a layer: how to build it, and the shape (C, H, W) of one input.

    A layer is one convolution; its output is not scores of classes, so it has no file. calls: how
    many calls are timed together, so that reading the clock takes no part of the time.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    layer: bool = False
    calls: int = 1

    def model(self) -> nn.Module:
        """In full precision, in evaluation mode; the same weights at every call."""
        torch.manual_seed(0)
        return self.build().eval()

    def images(self, count: int) -> np.ndarray:
        """(N, C, H, W) float32; the input of a layer has been through a ReLU."""
        values = np.random.default_rng(0).normal(0, 1, (count, *self.shape)).astype(np.float32)
        return np.maximum(values, 0) if self.layer else values

    def exported(self, method: str, w_bits: int, a_bits: int, folder: Path) -> "Exported":
        """Quantized, calibrated and, if it is a network, written to a file in `folder`."""
        model = self.model()
        images = torch.from_numpy(self.images(CALIBRATION_IMAGES))
        given = {"first_layers": _no_layer, "last_layers": _no_layer, "signed": _no_layer}
        baselines.quantize(
            model, method, f"W{w_bits}A{a_bits}", images, **(given if self.layer else {})
        )
        graph, path = trace(model, self.shape), None
        if not self.layer:
            path = folder / f"{method}_{w_bits}_{a_bits}.lowbit"
            fileformat.save(path, graph, ABOUT)
        return Exported(method, w_bits, a_bits, graph, path)

    def write_onnx(self, path: Path) -> None:
        """Full precision as ONNX; batch norm is folded into the convolutions."""
        model = (
            _onnx_convolution(self) if self.layer else onnx_model(trace(self.model(), self.shape))
        )
        path.write_bytes(model.SerializeToString())


@dataclass(frozen=True, eq=False)
class Exported:
    """A subject in few bits: its graph and, if it is a network, its file."""

    method: str
    w_bits: int
    a_bits: int
    graph: Graph
    path: Path | None

    @property
    def name(self) -> str:
        return f"{self.method} W{self.w_bits}A{self.a_bits}"

    @property
    def file_bytes(self) -> int | None:
        return None if self.path is None else self.path.stat().st_size

    def load(self, threads: int) -> Network:
        """Ready to run, from the file if there is one."""
        if self.path is None:
            return Network(self.graph, ABOUT, threads=threads)
        return load(self.path, threads=threads)


def network(arch: str, side: int, calls: int = 1, **options: object) -> Subject:
    """A network of the benchmark for square images."""
    return Subject(
        f"{arch} {side}x{side}",
        lambda: models.build(arch, CLASSES, CHANNELS, **options),
        (CHANNELS, side, side),
        calls=calls,
    )


def convolution(channels: int, side: int, calls: int = 1) -> Subject:
    """A 3x3 convolution of a square input, as many output channels as input channels."""
    return Subject(
        f"conv 3x3 {channels}@{side}",
        lambda: nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)),
        (channels, side, side),
        layer=True,
        calls=calls,
    )


def _no_layer(name: str, layer: nn.Module) -> bool:
    return False


def _onnx_convolution(subject: Subject):
    from onnx import TensorProto, helper, numpy_helper

    (layer,) = subject.model()
    names = ("weight", "bias")
    constants = [
        numpy_helper.from_array(getattr(layer, name).detach().numpy(), name) for name in names
    ]
    node = helper.make_node(
        "Conv", ["image", *names], ["y"], kernel_shape=layer.kernel_size, pads=layer.padding * 2
    )
    shapes = {"image": subject.shape, "y": (layer.out_channels, *subject.shape[1:])}
    image, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in shapes.items()
    )
    made = helper.make_graph([node], "layer", [image], [y], initializer=constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model
