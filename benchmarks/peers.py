"""Peers in training steps: the quantizers of Brevitas and torchao in the layers of this project.

Each peer is a Method, so that its network, its policy of bits and its step are those of the others.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.quantizers.interface import ActivationQuantizer, Method, WeightQuantizer
from lowbit_core.runtime.progress import say

MODULES = {"brevitas": "brevitas.nn", "torchao": "torchao.quantization.qat"}
WEIGHT_BITS = (2, 3, 4, 8)  # with one bit, the grids of both peers hold zero and one more level


@cache
def find_peer(name: str) -> ModuleType | None:
    """The quantizers of a peer; if they cannot be imported, say once that its rows are left out."""
    logging.disable(logging.WARNING)  # torchao warns of every GPU library that does not load here
    try:
        return import_module(MODULES[name])
    except Exception as error:  # of any kind: a peer may not fit this version of torch
        reason = (str(error) or type(error).__name__).splitlines()[0]
        say(f"{name}: its rows are left out (make bench installs it): {reason}")
        return None
    finally:
        logging.disable(logging.NOTSET)


class PeerWeight(WeightQuantizer):
    """A shadow weight and the peer's function that quantizes it."""

    quantized: Callable[[], Tensor]

    def forward(self) -> Tensor:
        return self.quantized()

    def levels(self) -> Tensor:
        """The values in use, of all channels together."""
        return self.quantized().detach().unique()[None]


class BrevitasWeight(PeerWeight):
    """Weights of QuantConv2d or QuantLinear: one scale a layer, from its largest weight."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        out, planes, *kernel = weight.shape
        given = {"bias": False, "weight_bit_width": bits}
        peer = find_peer("brevitas")
        self.layer = (
            peer.QuantConv2d(planes, out, tuple(kernel), **given)
            if kernel
            else peer.QuantLinear(planes, out, **given)
        )
        self.layer.weight.data.copy_(weight.detach())

    def quantized(self) -> Tensor:
        return self.layer.quant_weight().value


class TorchaoWeight(PeerWeight):
    """Weights of torchao's IntxFakeQuantizer: one symmetric scale an output channel."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.quantizer = _torchao_quantizer(bits, "per_channel", is_symmetric=True)

    def quantized(self) -> Tensor:
        return self.quantizer(self.weight).view(self.shape)


class PeerActivation(ActivationQuantizer):
    """The peer's quantizer of relu(x), or of x where it is signed."""

    DOES_RELU = True

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        y = self.quantized(x)
        return (functional.relu(x), y) if also_relu else y


class BrevitasActivation(PeerActivation):
    """QuantReLU or QuantIdentity; the scale starts from the first batch and is learned then."""

    def __init__(self, bits: int, signed: bool, collect_stats_steps: int = 1) -> None:
        super().__init__(bits, signed)
        peer = find_peer("brevitas")
        kind = peer.QuantIdentity if signed else peer.QuantReLU
        self.quantized = kind(bit_width=bits, collect_stats_steps=collect_stats_steps)


class TorchaoActivation(PeerActivation):
    """torchao's IntxFakeQuantizer: one range a tensor, taken from every batch.

    Its granularity for activations is the token, a row; here the whole tensor is one row, which in
    channels_last memory is a view.
    """

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.quantizer = _torchao_quantizer(bits, "per_token", is_symmetric=False)

    def quantized(self, x: Tensor) -> Tensor:
        x = x if self.signed else functional.relu(x)
        pixels = x.movedim(1, -1)
        return self.quantizer(pixels.reshape(1, -1)).view(pixels.shape).movedim(-1, 1)


def _torchao_quantizer(bits: int, granularity: str, is_symmetric: bool) -> nn.Module:
    peer = find_peer("torchao")
    dtype = getattr(torch, f"int{bits}")
    config = peer.IntxFakeQuantizeConfig(dtype, granularity, is_symmetric=is_symmetric)
    return peer.IntxFakeQuantizer(config)


PEERS = {
    "brevitas": Method("brevitas", BrevitasWeight, BrevitasActivation, w_bits=WEIGHT_BITS),
    "torchao": Method("torchao", TorchaoWeight, TorchaoActivation, w_bits=WEIGHT_BITS),
}


def peers_found(w_bits: int) -> list[str]:
    """The peers that can be imported and that offer weights of `w_bits` bits."""
    return [name for name, peer in PEERS.items() if peer.offers(w_bits) and find_peer(name)]
