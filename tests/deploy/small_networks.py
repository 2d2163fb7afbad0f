"""Networks for the tests of deploy: small, calibrated, with batch norms that are not trivial."""

import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import baselines
from deploy.export.trace import trace
from deploy.fileformat import About, basis_levels
from deploy.graph import Add, Convolution, Graph, Pool, Quantize, Relu, Weight
from deploy.network import Network
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert

OPTIONS = {
    "alexnet": {"width": 4, "stem": "small_stride2"},
    "resnet18": {"width": 8, "stem": "small"},
    "resnet20": {"width": 8, "stem": "small"},
    "mobilenetv2": {"width": 0.25, "stem": "small", "repeats": 1, "last_channels": 64},
}
SIDE, CHANNELS, CLASSES = 16, 3, 7
# Kernels for levels of the weights or of the input that are not equally spaced.
FOR_ANY_LEVELS = ("popcount", "tables", "matrices", "wide")


class Mixed(nn.Module):
    """What the larger networks consist of, once each, with few layers.

    A residual sum with a projection of every second pixel, layers with signed inputs, a depthwise
    layer, ReLU and ReLU6, a linear layer after pixels.
    """

    def __init__(self) -> None:
        super().__init__()

        def block(layer: nn.Module, *relu: nn.Module) -> nn.Sequential:
            return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels), *relu)

        self.stem = block(nn.Conv2d(CHANNELS, 8, 3, 2, 1), nn.ReLU())
        self.conv = block(nn.Conv2d(8, 16, 3, 2, 1, bias=False))
        self.downsample = block(nn.Conv2d(8, 16, 1, 2, bias=False))
        self.expand = block(nn.Conv2d(16, 24, 1, bias=False), nn.ReLU6())
        self.depthwise = block(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.ReLU6())
        self.project = block(nn.Conv2d(24, 16, 1, bias=False))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.last = nn.Linear(16, CLASSES)
        self.signed_inputs = ("stem.0", "expand.0", "hidden.0")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.conv(x) + self.downsample(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.last(self.hidden(self.pool(x).flatten(1)))


@cache
def quantized(
    arch: str, method: str, w_bits: int, a_bits: int, first_last: str = "fp"
) -> tuple[nn.Module, torch.Tensor]:
    """(A network in evaluation mode, images (N, C, H, W)); nothing is trained.

    arch: of OPTIONS, or `mixed`.
    """
    torch.manual_seed(1)
    if arch == "mixed":
        model = Mixed()
    else:
        model = models.build(arch, CLASSES, CHANNELS, **OPTIONS[arch])
    convert(
        model,
        QuantPolicy(baselines.method(method), w_bits, a_bits, first_last=first_last),
        torch.zeros(1, CHANNELS, SIDE, SIDE),
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, -1.5, 1.5)  # a negative scale turns comparisons around
            nn.init.uniform_(module.bias, -0.5, 0.5)
    images = torch.randn(16, CHANNELS, SIDE, SIDE)
    calibrate(model, images)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(images)
    return model.eval(), images


def about(classes: int = CLASSES, channels: int = CHANNELS) -> About:
    return About(
        {"run_id": "test"}, tuple(map(str, range(classes))), (0.5,) * channels, (0.25,) * channels,
        None,
    )  # fmt: skip


@cache
def network(arch: str, method: str, w_bits: int, a_bits: int) -> tuple[Network, Graph]:
    model, _ = quantized(arch, method, w_bits, a_bits)
    graph = trace(model, (CHANNELS, SIDE, SIDE))
    return Network(graph, about()), graph


def one_layer(
    rng: np.random.Generator,
    w_levels: np.ndarray,
    a_levels: np.ndarray,
    channels: int,
    outputs: int,
    side: int,
    kernel: int,
    stride: int,
    padding: int,
) -> Graph:
    """A quantizer and a convolution on codes, with random numbers.

    Scores are the outputs of the first pixel alone: a network ends with one pixel.
    """
    shape = (outputs, kernel, kernel, channels)
    weight = Weight(
        codes=rng.integers(0, w_levels.shape[1], shape, np.uint8),
        levels=w_levels.astype(np.float32),
    )
    thresholds = np.sort(rng.normal(0, 1, len(a_levels) - 1)).astype(np.float32)
    scale = rng.uniform(-2, 2, outputs).astype(np.float32)
    shift = rng.normal(0, 1, outputs).astype(np.float32)
    quantize = Quantize("layer", "image", "q", thresholds, a_levels.astype(np.float32))
    convolution = Convolution(
        "layer", "q", "y", (stride,) * 2, (padding,) * 2, False, "counts", weight, scale, shift
    )
    return Graph("image", (channels, side, side), "y", (quantize, convolution))


def one_after_the_other(net: Network, image: np.ndarray) -> np.ndarray:
    """The scores (classes,) of an image (C, H, W): every step alone, on all of its input."""
    tensors = {net.graph.input: image.transpose(1, 2, 0)}
    for number, planned in enumerate(net.steps):
        other = None if planned.other is None else tensors[planned.other]
        tensors[planned.output] = net.run_step(number, tensors[planned.input], other)[0]
    return tensors[net.steps[-1].output].ravel()


def every_operation() -> Graph:
    """A graph of 8x8 images with each kind of operation and of weight, and signed activations."""
    rng = np.random.default_rng(0)

    def layer(source, output, weight, compute="float", depthwise=False, padding=1):
        outputs, side = weight.shape[:2]
        scale, shift = rng.normal(0, 1, (2, outputs)).astype(np.float32)
        return Convolution(
            output, source, output, (1, 1), (padding if side > 1 else 0,) * 2, depthwise, compute,
            weight, scale if weight.codes is not None else None, shift,
        )  # fmt: skip

    def quantize(source, output, levels):
        count = len(levels) - 1
        thresholds = np.sort(rng.normal(0, 1, count)).astype(np.float32)
        return Quantize(output, source, output, thresholds, np.array(levels, np.float32))

    def codes(shape, levels):
        return rng.integers(0, levels, shape, np.uint8)

    basis = rng.uniform(0.1, 1, (8, 2)).astype(np.float32)
    table = np.array([[-1, 0, 1]], np.float32)
    return Graph(
        "image",
        (CHANNELS, 8, 8),
        "scores",
        (
            layer("image", "a", Weight(values=rng.normal(0, 1, (8, 3, 3, 3)).astype(np.float32))),
            Pool("a", "b", False, (2, 2), (2, 2), (0, 0)),
            quantize("b", "c", [0, 0.5, 1, 1.5]),
            layer(
                "c",
                "d",
                Weight(codes=codes((8, 3, 3, 8), 4), levels=basis_levels(basis), basis=basis),
                "counts",
            ),
            Relu("b", "e", 6.0),
            Add("d", "e", "f"),
            quantize("f", "g", [-1.5, -0.5, 0.5, 1.5]),
            layer("g", "h", Weight(codes=codes((8, 3, 3, 1), 3), levels=table), depthwise=True),
            quantize("h", "i", [-1.5, -0.5, 0.5, 1.5]),
            layer("i", "j", Weight(codes=codes((5, 3, 3, 8), 3), levels=table), "counts"),
            Pool("j", "k", True, size=(1, 1)),
            layer("k", "scores", Weight(values=rng.normal(0, 1, (4, 1, 1, 5)).astype(np.float32))),
        ),
    )


def targets() -> list[str]:
    """The instruction sets that this processor has, besides the native one."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needs = {
        "x86-64": set(),
        "x86-64-v2": {"ssse3", "popcnt"},
        "x86-64-v3": {"avx2", "fma", "bmi2"},
        "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
        "icelake-server": {
            "avx512_vnni",
            "avx512_vpopcntdq",
            "avx512_vbmi2",
            "gfni",
            "vaes",
            "sha_ni",
        },
    }
    return [target for target, words in needs.items() if words <= flags]
