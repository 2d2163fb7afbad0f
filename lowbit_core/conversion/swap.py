"""Replaces the layers of a full-precision network by quantized ones and reports every layer."""

from torch import Tensor, nn

from lowbit_core.conversion.fitness import check_layers, check_model
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.observe import observe
from lowbit_core.conversion.policy import Layers, QuantPolicy, chosen, layer_bits, quantizable
from lowbit_core.conversion.relu import hand_over_relus
from lowbit_core.quantizers.bits import FLOAT_BITS


def convert(
    model: nn.Module, policy: QuantPolicy, images: Tensor, signed: Layers | None = None
) -> list[dict]:
    """Quantize `model` in place; `images` (N, C, H, W) are run once to observe its layers.

    signed: the layers whose input can be negative. None: those that the attribute `signed_inputs`
    of the model names; without that attribute, those whose input has a negative value on `images`.
    Returns one row a layer: whether it was kept or quantized, by which quantizers, and why. Raises
    InputError, before the model is changed, if a layer cannot have the bits that it should have.
    """
    check_model(model)
    layers, seen = quantizable(model), observe(model, images)
    bits = layer_bits(model, policy, list(seen.layers))
    if signed is None:
        signed = getattr(model, "signed_inputs", None)
    if signed is None:
        negative = {name for name, layer in seen.layers.items() if layer.lowest < 0}
    else:
        negative = set(chosen(layers, signed, "signed"))
    check_layers(model, bits, seen.layers, negative)
    report, swaps = [], {}
    for name, (w_bits, a_bits, reason) in bits.items():
        layer = layers[name]
        weight = activation = None
        if policy.method.weight is not None and w_bits < FLOAT_BITS:
            weight = policy.method.weight(layer.weight, w_bits)
            if not layer.weight.requires_grad:  # a frozen layer stays frozen
                weight.requires_grad_(False)
        if policy.method.activation is not None and a_bits < FLOAT_BITS:
            activation = policy.method.activation(a_bits, name in negative)
        if weight is not None or activation is not None:
            swaps[name] = QuantLayer(layer, weight, activation).train(layer.training)
        report.append(
            {
                "layer": name,
                "kind": type(layer).__name__,
                "status": "kept" if weight is None and activation is None else "quantized",
                "reason": reason,
                "w_bits": w_bits,
                "a_bits": a_bits,
                "weight_quantizer": None if weight is None else type(weight).__name__,
                "activation_quantizer": None if activation is None else type(activation).__name__,
                "weight_granularity": None if weight is None else weight.GRANULARITY,
                "activation_granularity": None if activation is None else activation.GRANULARITY,
                "weight_init": None if weight is None else weight.INIT,
                "activation_init": None if activation is None else activation.INIT,
                "signed": name in negative,
                "weights": layer.weight.numel(),
                "macs": seen.layers[name].macs if name in seen.layers else 0,
                "level_numbers": 0 if weight is None else weight.level_numbers(),
                "zero_level": None if weight is None else bool((weight.levels() == 0).any()),
            }
        )
    for name, quantized in swaps.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantized)
    hand_over_relus({module for module, calls in seen.calls.items() if calls == 1})
    return report
