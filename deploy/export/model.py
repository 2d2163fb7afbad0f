"""Writes the network of anyone's training loop to a file."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy import fileformat, graph
from deploy.export.size import sizes
from deploy.export.trace import trace
from deploy.fileformat import About
from deploy.graph import Graph
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import InputError


def export_model(
    model: nn.Module,
    images: Tensor,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> dict[str, int]:
    """Write a network that `quantize` converted to a `.lowbit` file, as it is in evaluation mode.

    images (N, C, H, W): an example batch of at least 2 images; the file is for images of this
    shape. classes: their names (their numbers if left out); mean, std: of each channel, for pixels
    in [0, 1] (0 and 1 if left out). Both are for `python -m deploy predict`. The model is left as
    it is. Returns the sizes of the file in bytes (see `sizes`). Raises InputError, with the name of
    the module, for what a file cannot hold; no file is written then.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or len(images) < 2:
        raise InputError("images must be a tensor (N, C, H, W) of at least 2 images")
    own = copy.deepcopy(model).to("cpu", torch.float32).eval()
    example = images.detach().to("cpu", torch.float32)
    channels, high, wide = example.shape[1:]
    network = trace(own, (channels, high, wide), example)
    made = graph.shapes(network)[network.output]
    if made[1:] != (1, 1) or not network.operations:
        name = type(model).__name__
        raise InputError(f"{name} returns {made} of an image: a file holds networks of scores")
    about = About(
        _origin(own), _names(network, classes), _each(mean, channels, 0.0, "mean"),
        _each(std, channels, 1.0, "std"), None,
    )  # fmt: skip
    fileformat.save_checked(path, network, about, f"this {type(model).__name__}")
    return sizes(Path(path), network)


def _names(network: Graph, classes: Sequence[str] | None) -> tuple[str, ...]:
    count = graph.shapes(network)[network.output][0]
    if classes is None:
        return tuple(map(str, range(count)))
    if len(classes) != count:
        raise InputError(f"classes has {len(classes)} names, and the network has {count} scores")
    return tuple(map(str, classes))


def _each(given: Sequence[float] | None, channels: int, usual: float, name: str) -> tuple:
    values = (usual,) * channels if given is None else tuple(map(float, given))
    if len(values) != channels:
        raise InputError(f"{name} has {len(values)} numbers, and the images {channels} channels")
    return values


def _origin(model: nn.Module) -> dict[str, str]:
    """What `python -m deploy show` prints of the network."""
    layers = [m.settings() for m in model.modules() if isinstance(m, QuantLayer)]
    found = {"network": type(model).__name__}
    for kind, bits in (("weights", "w_bits"), ("activations", "a_bits")):
        counted = Counter((s[kind], s[bits]) for s in layers if s[kind] is not None)
        found[kind] = ", ".join(
            f"{name} of {width} bits in {count} layers" for (name, width), count in counted.items()
        )
    return {key: text or "not quantized" for key, text in found.items()}
