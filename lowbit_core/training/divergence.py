"""When a run has diverged, and in which layer: a loss that is not finite, or a dead quantizer."""

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.quantizers.interface import ActivationQuantizer

SMALLEST_SPAN = 1e-12  # of an activation quantizer's levels


def not_finite(model: nn.Module) -> dict:
    """The divergence of a run whose loss is not finite: {"layer", "because"}.

    The layer is the one whose input was not finite in the most batches; of several, the first.
    """
    batches = nonfinite_batches(model)
    layer = max(batches, key=batches.get) if batches else first_layer_with_bad_state(model)
    return {"layer": layer, "because": "the loss is not finite"}


def dead_quantizer(model: nn.Module, dead_weights: set[str]) -> dict | None:
    """The first layer whose weights or quantized inputs are all one value, or None.

    `dead_weights`: names of the layers whose weights are. Returns {"layer", "because"}.
    """
    dead_inputs = collapsed_activations(model)
    for layer, _ in model.named_modules():
        if layer in dead_weights | dead_inputs:
            what = "weights" if layer in dead_weights else "quantized inputs"
            return {"layer": layer, "because": f"all {what} are one value"}
    return None


def first_layer_with_bad_state(model: nn.Module) -> str | None:
    """The first layer with a parameter or buffer that is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name.rpartition(".")[0]
    return None


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """The activation quantizers by the name of their layer, in the model's order."""
    return {
        name: layer.activation_quantizer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and layer.activation_quantizer is not None
    }


def nonfinite_counters(model: nn.Module) -> list[Tensor]:
    """Each activation quantizer's count of batches that held NaN or infinity."""
    return [quantizer.nonfinite for quantizer in activation_quantizers(model).values()]


def nonfinite_batches(model: nn.Module) -> dict[str, int]:
    """Number of training batches whose input held NaN or infinity, for the layers with any."""
    counts = {name: int(q.nonfinite) for name, q in activation_quantizers(model).items()}
    return {name: count for name, count in counts.items() if count}


@torch.no_grad()
def collapsed_activations(model: nn.Module) -> set[str]:
    """Layers whose activation levels became equal: every input is quantized to one value."""
    quantizers = activation_quantizers(model)
    spans = [levels[-1] - levels[0] for levels in (q.levels() for q in quantizers.values())]
    numbers = torch.stack(spans).tolist() if spans else []
    return {name for name, span in zip(quantizers, numbers, strict=True) if span <= SMALLEST_SPAN}
