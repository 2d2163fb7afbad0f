"""Replaces the layers of a full-precision network by quantized ones and reports every layer."""

from torch import Tensor, nn

from lowbit_core.conversion.footprint import count_macs
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.policy import QuantPolicy, layer_bits, quantizable
from lowbit_core.conversion.relu import hand_over_relus
from lowbit_core.quantizers.bits import FLOAT_BITS


def convert(model: nn.Module, policy: QuantPolicy, image: Tensor) -> list[dict]:
    """Quantize `model` in place; `image` (1, C, H, W) is run once to count operations.

    Returns one row a layer: whether it was kept or quantized, by which quantizers, and why.
    """
    layers, macs = quantizable(model), count_macs(model, image)
    report = []
    for name, (w_bits, a_bits, reason) in layer_bits(model, policy).items():
        layer = layers[name]
        signed = name in model.signed_inputs  # type: ignore[operator]
        weight = activation = None
        if policy.method.weight is not None and w_bits < FLOAT_BITS:
            weight = policy.method.weight(layer.weight, w_bits)
        if policy.method.activation is not None and a_bits < FLOAT_BITS:
            activation = policy.method.activation(a_bits, signed)
        if weight is not None or activation is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, QuantLayer(layer, weight, activation))
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
                "signed": signed,
                "weights": layer.weight.numel(),
                "macs": macs[name],
                "level_numbers": 0 if weight is None else weight.level_numbers(),
                "zero_level": None if weight is None else bool((weight.levels() == 0).any()),
            }
        )
    hand_over_relus(model)
    return report
