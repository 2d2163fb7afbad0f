"""Whole networks of every method at every width: each layer in float64, and torch's classes."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from offered import QUANTIZED, a_width
from slow_reference import codes_of, step
from small_networks import CHANNELS, SIDE, about, quantized
from torch import Tensor, nn

from deploy.engine.plan import Kind
from deploy.export.trace import trace
from deploy.network import Network
from lowbit_core.conversion.layers import QuantLayer

RELATIVE = 1e-6  # of the largest output of a layer before its ReLU
IMAGES = 4
WIDTHS = ((1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (8, 8))
CASES = [
    pytest.param(method.name, w_bits, a_bits, id=f"{method.name}-W{w_bits}A{a_bits}")
    for method in QUANTIZED
    for w_bits, a_bits in WIDTHS
    if method.offers(w_bits)
]


@torch.no_grad()
def by_torch(model: nn.Module, images: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(Scores, {layer: what its quantizer makes of its input (N, C, H, W) or (N, C)})."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer):

            def keep(quantizer, inputs, made, name=name):
                found[name] = (made[1] if isinstance(made, tuple) else made).numpy()

            hooks.append(module.activation_quantizer.register_forward_hook(keep))
    scores = model(images).numpy()
    for hook in hooks:
        hook.remove()
    return scores, found


@dataclass
class Steps:
    """The steps of a network on several images, each compared with float64 from the same codes."""

    net: Network
    apart: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    largest: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """{Layer: its quantized input (C, H, W)} of one image (C, H, W)."""
        tensors = {self.net.graph.input: np.ascontiguousarray(image.transpose(1, 2, 0))}
        made = {}
        for number, planned in enumerate(self.net.steps):
            x, name = tensors[planned.input], planned.output
            other = None if planned.other is None else tensors[planned.other]
            y = tensors[name] = self.net.run_step(number, x, other)[0]
            expected = step(replace(planned, relu=False), x, other)
            limited = np.clip(expected, 0, planned.ceiling) if planned.relu else expected
            self.apart[name] = max(self.apart[name], np.abs(y - limited).max())
            self.largest[name] = max(self.largest[name], np.abs(expected).max())
            quantizer = planned.operation if planned.kind == Kind.DEQUANTIZE else planned.quantizer
            if quantizer is not None:
                made[quantizer.layer] = quantizer.levels[codes_of(x, quantizer)].transpose(2, 0, 1)
        np.testing.assert_array_equal(self.net.scores(image[None])[0], y.ravel())
        return made


def flips(made: np.ndarray, expected: np.ndarray) -> int:
    """How many values of a layer's input have another level in torch than in the engine."""
    if expected.ndim == 1:  # of a linear layer
        made = made.ravel()
    elif made.shape != expected.shape:  # torch quantizes only the pixels that a 1x1 layer reads
        made = made[:, ::2, ::2]
    return int((np.abs(made - expected) > 1e-5 * np.abs(expected).max()).sum())


def check(arch: str, method: str, w_bits: int, a_bits: int) -> None:
    model, images = quantized(arch, method, w_bits, a_bits)
    images = images[:IMAGES]
    net = Network(trace(model, (CHANNELS, SIDE, SIDE)), about())
    expected, inputs = by_torch(model, images)
    scores = net.scores(images.numpy())
    near, same, steps = 1e-5 * np.abs(expected).max(), 0, Steps(net)
    for number, image in enumerate(images.numpy()):
        made = steps.run(image)
        assert made.keys() == inputs.keys()
        if any(flips(made[layer], x[number]) for layer, x in inputs.items()):
            continue  # a value lay on a threshold, and one code changes many after it
        same += 1
        assert np.abs(scores[number] - expected[number]).max() <= near
        assert expected[number].max() - expected[number, scores[number].argmax()] <= near
    assert same >= IMAGES / 2  # or the test tests little
    for name, apart in steps.apart.items():
        assert apart <= RELATIVE * steps.largest[name], name


@pytest.mark.parametrize(("method", "w_bits", "a_bits"), CASES)
def test_a_network_of_every_method_and_width(method, w_bits, a_bits):
    check("mixed", method, w_bits, a_bits)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet20", "mobilenetv2"])
@pytest.mark.parametrize("method", QUANTIZED, ids=lambda method: method.name)
def test_deep_networks_of_every_method(arch, method):
    w_bits = a_width(method)
    check(arch, method.name, w_bits, w_bits)
