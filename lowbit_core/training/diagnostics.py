"""What is measured on a quantized network besides its accuracy: weights' state, channel errors."""

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.quantizers.basis_activation import (
    WEIGHTINGS,
    initial_basis,
    quantize,
    refit_to_convergence,
)
from lowbit_core.quantizers.interface import ActivationQuantizer
from lowbit_core.quantizers.ste_mask import rectified

HISTOGRAM_BINS = 61
HISTOGRAM_LAYERS = 3
COLLAPSED = 1e-6  # of a channel's largest weight: a smaller spread is one value
SMALLEST_SPAN = 1e-12  # of an activation's levels


def quantized_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Layers with a weight quantizer, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and layer.weight_quantizer is not None
    }


def nonfinite_counters(model: nn.Module) -> list[Tensor]:
    """The activation quantizers' counts of batches that were not finite, in the model's order."""
    return [m.nonfinite for m in model.modules() if isinstance(m, ActivationQuantizer)]


def nonfinite_batches(model: nn.Module) -> dict[str, int]:
    """Training batches whose input held NaN or infinity, by quantized layer; layers with none left out."""
    return {
        name: int(layer.activation_quantizer.nonfinite)
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer)
        and layer.activation_quantizer is not None
        and layer.activation_quantizer.nonfinite > 0
    }


@torch.no_grad()
def collapsed_activations(model: nn.Module) -> set[str]:
    """Layers whose activation levels fell together: every input becomes one value."""
    spans = {
        name: levels[-1] - levels[0]
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and layer.activation_quantizer is not None
        for levels in [layer.activation_quantizer.levels()]
    }
    found = torch.stack(list(spans.values())).tolist() if spans else []
    return {name for name, span in zip(spans, found, strict=True) if span <= SMALLEST_SPAN}


@torch.no_grad()
def weight_state(model: nn.Module, previous: dict[str, Tensor]) -> tuple[list[dict], dict]:
    """One row a layer (see docs/results.md, weight_state.csv) and the present codes, uint8.

    mismatch: ||latent - used||^2 / ||used||^2; flip_rate: share of codes unlike `previous`;
    used_levels: share of levels that at least one weight of the channel uses. Besides, `dead`: in
    every channel all weights are one value, by their codes or because the levels fell together.
    """
    rows, codes = [], {}
    was_training = model.training
    model.eval()
    for name, layer in quantized_layers(model).items():
        quantizer = layer.weight_quantizer
        used = quantizer().flatten(1)
        latent = quantizer.latent()
        levels = quantizer.levels()
        levels = levels.expand(used.shape[0], -1)
        middles = (levels[:, 1:] + levels[:, :-1]) / 2
        code = torch.searchsorted(middles.contiguous(), used.contiguous()).to(torch.uint8)
        codes[name] = code
        present = torch.zeros(used.shape[0], levels.shape[1]).scatter(1, code.long().cpu(), 1.0)
        flips = (
            (code != previous[name].to(code.device)).float().mean().item()
            if name in previous
            else None
        )
        rows.append(
            {
                "layer": name,
                "mismatch": ((latent - used).square().sum() / used.square().sum()).item(),
                "flip_rate": flips,
                "level_min": levels.min().item(),
                "level_max": levels.max().item(),
                "used_levels": present.mean().item(),
                "dead": used.shape[1] > 1 and _one_value(used),
            }
        )
    model.train(was_training)
    return rows, codes


def _one_value(rows: Tensor) -> bool:
    spread = rows.amax(1) - rows.amin(1)
    return bool((spread <= COLLAPSED * rows.abs().amax(1)).all())


@torch.no_grad()
def weight_histograms(model: nn.Module) -> dict[str, dict]:
    """Counts of the latent weights of a few layers, with the levels of output channel 0."""
    layers = quantized_layers(model)
    names = list(layers)
    chosen = (
        {
            names[len(names) * i // (HISTOGRAM_LAYERS - 1) - (i > 0)]: None
            for i in range(HISTOGRAM_LAYERS)
        }
        if names
        else {}
    )
    result = {}
    for name in chosen:
        quantizer = layers[name].weight_quantizer
        latent = quantizer.latent().flatten().float().cpu()
        span = latent.abs().max().clamp_min(1e-6).item()
        counts = torch.histc(latent, HISTOGRAM_BINS, -span, span)
        result[name] = {
            "span": span,
            "counts": counts.int().tolist(),
            "levels": quantizer.levels()[0].tolist(),
        }
    return result


@torch.no_grad()
def channel_errors(model: nn.Module, fit_images: Tensor, held_out: Tensor) -> list[dict]:
    """Per layer and channel: normalised quantization error of each weighting, on held-out images.

    For every activation-quantized layer a basis is fitted to the layer's input on `fit_images`
    under each weighting, all from the same uniform start; the error ||x_c - Q(x_c)||^2 / ||x_c||^2 is
    taken on the input of `held_out`. A dead channel (||x_c|| = 0) has None.
    """
    rows = []
    fit_inputs, inputs = (_layer_inputs(model, images) for images in (fit_images, held_out))
    for name, x in inputs.items():
        quantizer = model.get_submodule(name).activation_quantizer
        bits, signed = quantizer.bits, quantizer.signed
        power = x.square().sum(_but_channel(x))
        start = initial_basis(fit_inputs[name], bits, signed)
        errors = {}
        for weighting in WEIGHTINGS:
            v = refit_to_convergence(fit_inputs[name], start, signed, weighting)
            y = quantize(x, v, signed)
            errors[weighting] = (y - x).square().sum(_but_channel(x)) / power
        variance = x.var(_but_channel(x), correction=0)
        for channel in range(x.shape[1]):
            alive = power[channel] > 0
            rows.append(
                {
                    "layer": name,
                    "channel": channel,
                    "variance": variance[channel].item(),
                    **{
                        f"error_{w}": errors[w][channel].item() if alive else None
                        for w in WEIGHTINGS
                    },
                }
            )
    return rows


def _but_channel(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _layer_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each activation quantizer quantizes, its ReLU done, in evaluation mode."""
    seen: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer) and layer.activation_quantizer is not None:
            handles.append(
                layer.activation_quantizer.register_forward_pre_hook(
                    lambda own, inputs, name=name: seen.__setitem__(
                        name, rectified(inputs[0].detach(), own.signed, own.ceiling)
                    )
                )
            )
    was_training = model.training
    model.eval()(images)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return seen
