"""Measures of a quantized network besides its accuracy: state of its weights, error by channel."""

import torch
from torch import Tensor, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.data.loader import all_images
from lowbit_core.quantizers.basis_activation import (
    WEIGHTINGS,
    BasisActivation,
    initial_basis,
    quantize,
    refit_to_convergence,
)
from lowbit_core.quantizers.interface import codes_of
from lowbit_core.quantizers.ste_mask import rectified
from lowbit_core.runtime.run_folder import CHANNEL_ERROR, WEIGHT_STATE
from lowbit_core.training.build import Run
from lowbit_core.training.divergence import activation_quantizers

HISTOGRAM_BINS = 61
SMALLEST_SPREAD = 1e-6  # of a channel's weights, relative to the largest: less is one value


def quantized_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Layers with a weight quantizer, by name."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, QuantLayer) and layer.weight_quantizer is not None
    }


def record_weights(run: Run, epoch: int) -> set[str]:
    """Append to weight_state.csv; returns the layers whose weights are all one value."""
    rows, run.codes = weight_state(run.model, run.codes)
    if rows:
        shares = {} if run.oscillation is None else run.oscillation.shares()
        rows = [{"epoch": epoch, **row, "oscillating": shares.get(row["layer"])} for row in rows]
        run.folder.append("weight_state.csv", WEIGHT_STATE, rows)
    return {row["layer"] for row in rows if row["dead"]}


def record_trained(run: Run, model: nn.Module) -> None:
    """Write weight_histograms.json and channel_error.csv of the trained `model`, if they apply."""
    end = weight_histograms(model)
    if end:
        start = run.start_histograms
        histograms = {name: {"start": start[name], "end": end[name]} for name in end}
        run.folder.write_json("weight_histograms.json", histograms)
    has_basis = any(isinstance(module, BasisActivation) for module in model.modules())
    if has_basis and run.method.measures_channels:
        rows = channel_errors(model, all_images(run.data.fit), all_images(run.data.held_out))
        run.folder.write_table("channel_error.csv", CHANNEL_ERROR, rows)


@torch.no_grad()
def weight_state(model: nn.Module, previous: dict[str, Tensor]) -> tuple[list[dict], dict]:
    """One row per layer (weight_state.csv, see docs/results.md), and the current codes, uint8.

    mismatch: ||latent - used||^2 / ||used||^2; flip_rate: share of codes that differ from
    `previous`; used_levels: share of levels that at least one weight of the channel uses. `dead`,
    which is not written: in every channel all weights are one value, because all their codes or
    all levels are equal.
    """
    rows, codes = [], {}
    was_training = model.training
    model.eval()
    for name, layer in quantized_layers(model).items():
        quantizer = layer.weight_quantizer
        used = quantizer().flatten(1)
        latent = quantizer.latent()
        levels = quantizer.levels().expand(used.shape[0], -1)
        code = codes_of(used, levels)
        codes[name] = code
        present = torch.zeros(used.shape[0], levels.shape[1]).scatter(1, code.long().cpu(), 1.0)
        flips = None
        if name in previous:
            flips = (code != previous[name].to(code.device)).float().mean().item()
        mismatch = (latent - used).square().sum() / used.square().sum()
        spread = used.amax(1) - used.amin(1)
        one_value = (spread <= SMALLEST_SPREAD * used.abs().amax(1)).all()
        row = {"layer": name, "mismatch": mismatch.item(), "flip_rate": flips}
        row |= {"level_min": levels.min().item(), "level_max": levels.max().item()}
        row |= {"used_levels": present.mean().item(), "dead": used.shape[1] > 1 and bool(one_value)}
        rows.append(row)
    model.train(was_training)
    return rows, codes


@torch.no_grad()
def weight_histograms(model: nn.Module) -> dict[str, dict]:
    """Counts of the latent weights of three quantized layers, and levels of their channel 0."""
    layers, result = list(quantized_layers(model).items()), {}
    first_middle_last = (0, len(layers) // 2 - 1, -1) if layers else ()
    for name, layer in [layers[i] for i in first_middle_last]:
        quantizer = layer.weight_quantizer
        latent = quantizer.latent().flatten().float().cpu()
        span = latent.abs().max().clamp_min(1e-6).item()
        counts = torch.histc(latent, HISTOGRAM_BINS, -span, span)
        levels = quantizer.levels()[0].tolist()
        result[name] = {"span": span, "counts": counts.int().tolist(), "levels": levels}
    return result


@torch.no_grad()
def channel_errors(model: nn.Module, fit_images: Tensor, held_out: Tensor) -> list[dict]:
    """One row per layer and channel: the quantization error of each weighting on held-out images.

    For every layer with quantized activations, a basis is fitted to its input on `fit_images`
    under each weighting, always from the same uniform start. The error is
    ||x_c - Q(x_c)||^2 / ||x_c||^2 on its input for `held_out`; None for a channel of zeros.
    """
    rows = []
    fit_inputs, inputs = (_layer_inputs(model, images) for images in (fit_images, held_out))
    for name, x in inputs.items():
        quantizer = model.get_submodule(name).activation_quantizer
        bits, signed = quantizer.bits, quantizer.signed
        dims = [0, *range(2, x.dim())]  # all but the channel's
        power = x.square().sum(dims)
        start = initial_basis(fit_inputs[name], bits, signed)
        errors = {}
        for weighting in WEIGHTINGS:
            v = refit_to_convergence(fit_inputs[name], start, signed, weighting)
            y = quantize(x, v, signed)
            errors[weighting] = (y - x).square().sum(dims) / power
        variance = x.var(dims, correction=0)
        for channel in range(x.shape[1]):
            row = {"layer": name, "channel": channel, "variance": variance[channel].item()}
            for weighting, error in errors.items():
                alive = power[channel] > 0
                row[f"error_{weighting}"] = error[channel].item() if alive else None
            rows.append(row)
    return rows


def _layer_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What each activation quantizer quantizes (after the ReLU), in evaluation mode, by layer."""
    seen, handles = {}, []
    for name, quantizer in activation_quantizers(model).items():

        def keep(quantizer, inputs, name=name) -> None:
            seen[name] = rectified(inputs[0].detach(), quantizer.signed, quantizer.ceiling)

        handles.append(quantizer.register_forward_pre_hook(keep))
    was_training = model.training
    model.eval()(images)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return seen
