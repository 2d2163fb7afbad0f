"""Which networks and layers cannot be quantized: each gets one sentence that says why."""

from collections import Counter

import torch
from torch import nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.observe import Seen
from lowbit_core.conversion.policy import Layer, quantizable
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.errors import InputError


def check_model(model: nn.Module) -> None:
    """Raise InputError for a model that has no layer to quantize, or quantized ones already."""
    kind = type(model).__name__
    layers = quantizable(model)
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        raise InputError(f"{kind} is quantized already: convert a full-precision model")
    if not layers:
        raise InputError(f"{kind} has no Conv2d or Linear layer that could be quantized")
    if "" in layers:
        raise InputError(f"the model is itself a {kind}: put it into an nn.Sequential")


def check_layers(
    model: nn.Module, bits: dict[str, tuple[int, int, str]], seen: dict[str, Seen], signed: set[str]
) -> None:
    """Raise InputError for the first layer that cannot have its bits.

    bits: from `layer_bits`; seen: from `observe`; signed: the layers whose input can be negative.
    """
    layers = quantizable(model)
    owners = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
    )
    in_encoder = {
        layer
        for module in model.modules()
        if isinstance(module, nn.TransformerEncoderLayer)
        for layer in module.modules()
    }
    for name, (w_bits, a_bits, _) in bits.items():
        if w_bits == a_bits == FLOAT_BITS:
            continue
        layer = layers[name]
        fault = _of_its_kind(layer)
        if owners[id(layer.weight)] > 1:
            fault = "shares its weight with another module, or stands in the model twice"
        elif layer in in_encoder:
            fault = "belongs to an nn.TransformerEncoderLayer, which in evaluation reads its weight"
        fault = fault or _of_its_use(seen[name], a_bits < FLOAT_BITS, name in signed)
        if fault is not None:
            raise InputError(
                f"layer {name!r} {fault}: change the model, or except the layer from quantization "
                "(32 bits)"
            )


def _of_its_kind(layer: Layer) -> str | None:
    """What a quantized layer could not do as this one does, or None."""
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if type(layer).forward is not base.forward or (
        isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward
    ):
        return f"is a {type(layer).__name__}, whose own forward a quantized layer would not run"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"has padding_mode {layer.padding_mode!r}, and a quantized layer only pads zeros"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "has hooks, which a quantized layer would not call"
    if layer.weight.dtype not in (torch.float32, torch.float64):
        return f"has weights of {layer.weight.dtype}, and training needs torch.float32"
    return None


def _of_its_use(seen: Seen, quantizes_input: bool, signed: bool) -> str | None:
    """What in the pass of the example batch speaks against quantization, or None."""
    if seen.calls > 1:
        return f"is called {seen.calls} times in one pass, and has one range for all its inputs"
    if not seen.finite:
        return "reads NaN or infinity on the example batch"
    if quantizes_input and seen.lowest < 0 and not signed:
        return f"reads {seen.lowest:.3g} on the example batch, but is not named as signed"
    return None
