"""Forward and backward of one quantizer, as a ratio to ReLU (activations) or to a copy (weights).

The peers are Brevitas, torchao, torch.ao and the same quantizer without compiled kernels ("eager").
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

import baselines
from benchmarks.peers import PEERS, BrevitasActivation, TorchaoActivation, find_peer, peers_found
from benchmarks.timing import DEVICE, ratios, timed
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.progress import say

ACTIVATIONS = {
    "dorefa": "DoReFa", "pact": "PACT", "lq_nets": "LQ-Nets", "direct": "channel-aware",
    "lsq": "LSQ", "n2uq": "N2UQ", "apot": "APoT", "ewgs": "EWGS", "hwgq": "HWGQ",
}  # fmt: skip
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


def measure(rounds: int) -> Iterator[dict]:
    """Activations: all bits at one shape, 2 bits at others. Weights: all bits at two shapes."""
    for bits in BITS:
        yield from activation_rows(SHAPE, bits, rounds)
    for shape in OTHER_SHAPES:
        yield from activation_rows(shape, 2, rounds, eager=False)
    for shape in WEIGHT_SHAPES:
        for bits in BITS:
            yield from weight_rows(shape, bits, rounds)


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


def _without_input(module: nn.Module) -> Callable:
    """The function of any input that calls `module` with new gradients."""

    def run(_: Tensor) -> Tensor:
        module.zero_grad(set_to_none=True)
        return module()

    return run


def _peer_activations(bits: int) -> dict[str, Callable]:
    peers = {"torch.ao FakeQuantize": FakeQuantize(quant_min=0, quant_max=2**bits - 1)}
    if find_peer("brevitas"):
        # By default it collects percentiles in its first 300 steps, and learns the scale later.
        first_steps = BrevitasActivation(bits, False, collect_stats_steps=300)
        peers["Brevitas QuantReLU, first steps"] = first_steps
        peers["Brevitas QuantReLU"] = BrevitasActivation(bits, False)
    if find_peer("torchao"):
        peers["torchao IntxFakeQuantizer"] = TorchaoActivation(bits, False)
    return {name: peer.to(DEVICE).train() for name, peer in peers.items()}


def _peer_weights(w: Tensor, bits: int) -> dict[str, Callable]:
    labels = {"brevitas": "Brevitas QuantConv2d weight", "torchao": "torchao IntxFakeQuantizer"}
    peers = {labels[name]: PEERS[name].weight(w, bits) for name in peers_found(bits)}
    return {name: _without_input(peer.to(DEVICE).train()) for name, peer in peers.items()}
