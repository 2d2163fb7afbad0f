"""Forward and backward of one quantizer, as a ratio to ReLU (activations) or to a copy (weights).

The peers are Brevitas, torch.ao and the same quantizer without compiled kernels ("eager").
"""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

import baselines
from benchmarks.timing import ratios, say, timed
from lowbit_core.kernels.fused import set_compile

ACTIVATIONS = {"dorefa": "DoReFa", "pact": "PACT", "lq_nets": "LQ-Nets", "direct": "channel-aware"}
WEIGHTS = {"dorefa": "DoReFa", "lq_nets": "LQ-Nets", "direct": "direct"}
EAGER = ", eager"
BITS = (1, 2, 3, 4, 8)
SHAPE = (128, 16, 32, 32)
OTHER_SHAPES = ((128, 64, 8, 8), (32, 256, 14, 14), (128, 8, 28, 28))
WEIGHT_SHAPES = ((64, 64, 3, 3), (256, 256, 3, 3))


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def activation_rows(shape: tuple, bits: int, rounds: int, eager: bool = True) -> list[dict]:
    """Milliseconds and ratio to ReLU of every activation quantizer, for inputs after a ReLU."""
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    x = torch.randn(shape, device=device()).relu().contiguous(memory_format=layout)
    g = torch.randn_like(x)
    calls = {"relu": torch.relu, "copy": torch.clone, **dict(_peer_activations(bits))}
    for name, label in ACTIVATIONS.items():
        quantizer = baselines.method(name).activation(bits, False).to(device()).train()
        quantizer.calibrate(x)
        calls[label] = quantizer
        if eager:
            calls[f"{label}{EAGER}"] = copy.deepcopy(quantizer)
    return _rows("activation", calls, x, g, bits, rounds, base="relu")


def weight_rows(shape: tuple, bits: int, rounds: int) -> list[dict]:
    """Milliseconds and ratio to a copy of every weight quantizer, for a weight (O, I, H, W)."""
    w = 0.05 * torch.randn(shape, device=device())
    g = torch.randn_like(w)
    calls: dict[str, Callable] = {"copy": torch.clone}
    for name, label in WEIGHTS.items():
        quantizer = baselines.method(name).weight(w, bits).to(device()).train()
        calls[label] = _without_input(quantizer)
        calls[f"{label}{EAGER}"] = _without_input(copy.deepcopy(quantizer))
    calls.update(_peer_weights(w, bits))
    return _rows("weight", calls, w, g, bits, rounds, base="copy")


def _rows(kind, calls, x: Tensor, g: Tensor, bits: int, rounds: int, base: str) -> list[dict]:
    def both(name: str, function: Callable) -> Callable[[], None]:
        compiled = not name.endswith(EAGER)

        def run() -> None:
            set_compile(compiled)
            leaf = x.detach().requires_grad_()
            function(leaf).backward(g)

        return run

    runs = {name: both(name, function) for name, function in calls.items()}
    measured = ratios(timed(runs, rounds, inner=2), base)
    shape = "x".join(map(str, x.shape))
    return [{"kind": kind, "what": name, "bits": bits, "shape": shape, **row}
            for name, row in measured.items()]  # fmt: skip


def _without_input(quantizer: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    def run(_: Tensor) -> Tensor:
        quantizer.zero_grad(set_to_none=True)
        return quantizer()

    return run


def _peer_activations(bits: int) -> Iterator[tuple[str, Callable]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import FakeQuantize

        yield "torch.ao FakeQuantize", FakeQuantize(quant_min=0, quant_max=2**bits - 1).to(device())
        if brevitas_found():
            from brevitas.nn import QuantReLU

            # By default it collects percentiles in its first 300 steps, and learns the scale later.
            yield "Brevitas QuantReLU, first steps", QuantReLU(bit_width=bits).to(device()).train()
            peer = QuantReLU(bit_width=bits, collect_stats_steps=1)
            yield "Brevitas QuantReLU", peer.to(device()).train()


def _peer_weights(w: Tensor, bits: int) -> Iterator[tuple[str, Callable]]:
    if bits == 1 or not brevitas_found():  # its signed grid of 1 bit is empty and gives NaN
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brevitas.nn import QuantConv2d

        planes, planes_in, side, _ = w.shape
        layer = QuantConv2d(planes_in, planes, side, bias=False, weight_bit_width=bits)
        layer = layer.to(device()).train()
        layer.weight.data.copy_(w)

        def run(_: Tensor) -> Tensor:
            layer.zero_grad(set_to_none=True)
            return layer.quant_weight().value

        yield "Brevitas QuantConv2d weight", run


@cache
def brevitas_found() -> bool:
    """Whether Brevitas is installed; if not, says once that its rows are left out."""
    found = importlib.util.find_spec("brevitas") is not None
    if not found:
        say("brevitas is not installed: its rows are left out (make bench installs it)")
    return found


def measure(rounds: int) -> list[dict]:
    """Activations: all bits at one shape, 2 bits at others. Weights: all bits at two shapes."""
    rows = []
    for bits in BITS:
        say(f"activations, {bits} bits")
        rows += activation_rows(SHAPE, bits, rounds)
    for shape in OTHER_SHAPES:
        say(f"activations, 2 bits, {shape}")
        rows += activation_rows(shape, 2, rounds, eager=False)
    for shape in WEIGHT_SHAPES:
        for bits in BITS:
            say(f"weights {shape}, {bits} bits")
            rows += weight_rows(shape, bits, rounds)
    return rows


def growth(rounds: int) -> list[dict]:
    """How time grows with the bits; and at 2 bits, with the batch and with the channels."""
    rows = []
    for bits in BITS:
        say(f"growth: {bits} bits")
        rows += activation_rows(SHAPE, bits, rounds, eager=False)
    for batch in (32, 64, 128, 256):
        say(f"growth: batch {batch}")
        rows += activation_rows((batch, 16, 32, 32), 2, rounds, eager=False)
    for channels in (8, 16, 32, 64, 128):
        say(f"growth: {channels} channels")
        rows += activation_rows((64, channels, 16, 16), 2, rounds, eager=False)
    return rows
