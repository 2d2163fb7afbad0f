"""Networks for the tests of deploy: small, calibrated, with batch norms that are not trivial."""

import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

import baselines
from deploy.export.trace import trace
from deploy.fileformat import About
from deploy.graph import Convolution, Graph, Quantize, Weight
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


@cache
def quantized(
    arch: str, method: str, w_bits: int, a_bits: int, first_last: str = "fp"
) -> tuple[nn.Module, torch.Tensor]:
    """(A network in evaluation mode, images (N, C, H, W)); nothing is trained."""
    torch.manual_seed(1)
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
    """A quantizer, a convolution on codes and a mean over its pixels, with random numbers."""
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


def targets() -> list[str]:
    """The instruction sets that this processor has, besides the native one."""
    if platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists():
        return []
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needs = {
        "x86-64": set(),
        "x86-64-v2": {"ssse3", "popcnt"},
        "x86-64-v3": {"avx2", "fma", "bmi2"},
    }
    return [target for target, words in needs.items() if words <= flags]
