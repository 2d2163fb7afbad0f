"""Forward and backward of one quantizer, as a ratio to ReLU (activations) or to a copy (weights).

The peers are Brevitas, torch.ao and the same quantizer without compiled kernels ("eager").
"""

import copy
import importlib.util
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

import baselines
from benchmarks.timing import DEVICE, ratios, timed
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.progress import say

ACTIVATIONS = {"dorefa": "DoReFa", "pact": "PACT", "lq_nets": "LQ-Nets", "direct": "channel-aware"}
WEIGHTS = {"dorefa": "DoReFa", "lq_nets": "LQ-Nets", "direct": "direct"}
EAGER = ", eager"
BITS = (1, 2, 3, 4, 8)
SHAPE = (128, 16, 32, 32)
OTHER_SHAPES = (  # shapes of networks, then growth with the batch and with the channels
    *((128, 64, 8, 8), (32, 256, 14, 14), (128, 8, 28, 28)),
    *((batch, 16, 32, 32) for batch in (32, 64, 256)),
    *((64, channels, 16, 16) for channels in (8, 16, 32, 64, 128)),
)
WEIGHT_SHAPES = ((64, 64, 3, 3), (256, 256, 3, 3))


def measure(rounds: int) -> list[dict]:
    """Activations: all bits at one shape, 2 bits at others. Weights: all bits at two shapes."""
    tables = [activation_rows(SHAPE, bits, rounds) for bits in BITS]
    tables += [activation_rows(shape, 2, rounds, eager=False) for shape in OTHER_SHAPES]
    tables += [weight_rows(shape, bits, rounds) for shape in WEIGHT_SHAPES for bits in BITS]
    return [row for table in tables for row in table]


def activation_rows(shape: tuple, bits: int, rounds: int, eager: bool = True) -> list[dict]:
    """Milliseconds and ratio to ReLU of every activation quantizer, for inputs after a ReLU."""
    x = torch.randn(shape, device=DEVICE).relu().contiguous(memory_format=torch.channels_last)
    calls = {"relu": torch.relu, "copy": torch.clone, **_peer_activations(bits)}
    for name, label in ACTIVATIONS.items():
        quantizer = baselines.method(name).activation(bits, False).to(DEVICE).train()
        quantizer.calibrate(x)
        calls[label] = quantizer
        if eager:
            calls[f"{label}{EAGER}"] = copy.deepcopy(quantizer)
    return _rows("activation", calls, x, bits, rounds, base="relu")


def weight_rows(shape: tuple, bits: int, rounds: int) -> list[dict]:
    """Milliseconds and ratio to a copy of every weight quantizer, for a weight (O, I, H, W)."""
    w = 0.05 * torch.randn(shape, device=DEVICE)
    calls: dict[str, Callable] = {"copy": torch.clone}
    for name, label in WEIGHTS.items():
        quantizer = baselines.method(name).weight(w, bits).to(DEVICE).train()
        calls[label] = _without_input(quantizer)
        calls[f"{label}{EAGER}"] = _without_input(copy.deepcopy(quantizer))
    return _rows("weight", calls | _peer_weights(w, bits), w, bits, rounds, base="copy")


def _rows(kind: str, calls: dict, x: Tensor, bits: int, rounds: int, base: str) -> list[dict]:
    shape = "x".join(map(str, x.shape))
    say(f"{kind} quantizers, {bits} bits, {shape}")
    g = torch.randn_like(x)

    def run(name: str) -> None:
        set_compile(not name.endswith(EAGER))
        calls[name](x.detach().requires_grad_()).backward(g)

    runs = {name: partial(run, name) for name in calls}
    measured = ratios(timed(runs, rounds, inner=2), base)
    about = {"kind": kind, "what": "", "bits": bits, "shape": shape}
    return [about | {"what": name} | row for name, row in measured.items()]


def _without_input(module: nn.Module, weight: Callable | None = None) -> Callable:
    """The function of any input that calls `weight` (else `module`) with new gradients."""

    def run(_: Tensor) -> Tensor:
        module.zero_grad(set_to_none=True)
        return (weight or module)()

    return run


def _peer_activations(bits: int) -> dict[str, Callable]:
    peers = {"torch.ao FakeQuantize": FakeQuantize(quant_min=0, quant_max=2**bits - 1)}
    if brevitas := find_brevitas():
        # By default it collects percentiles in its first 300 steps, and learns the scale later.
        peers["Brevitas QuantReLU, first steps"] = brevitas.QuantReLU(bit_width=bits)
        peers["Brevitas QuantReLU"] = brevitas.QuantReLU(bit_width=bits, collect_stats_steps=1)
    return {name: peer.to(DEVICE).train() for name, peer in peers.items()}


def _peer_weights(w: Tensor, bits: int) -> dict[str, Callable]:
    brevitas = find_brevitas()
    if bits == 1 or not brevitas:  # its signed grid of 1 bit is empty and gives NaN
        return {}
    out, planes, side, _ = w.shape
    layer = brevitas.QuantConv2d(planes, out, side, bias=False, weight_bit_width=bits)
    layer = layer.to(DEVICE).train()
    layer.weight.data.copy_(w)
    run = _without_input(layer, lambda: layer.quant_weight().value)
    return {"Brevitas QuantConv2d weight": run}


@cache
def find_brevitas() -> ModuleType | None:
    """The layers of Brevitas; if it is not installed, say once that its rows are left out."""
    if importlib.util.find_spec("brevitas"):
        return importlib.import_module("brevitas.nn")
    say("brevitas is not installed: its rows are left out (make bench installs it)")
    return None
