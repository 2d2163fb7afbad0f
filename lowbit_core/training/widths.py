"""The option `widths`: one network that is trained for several bit-widths at once.

All widths share the weights: a lower one reads the most significant bits of their codes and the
upper numbers of their basis. Each width has its own batch norm and activation quantizers. In every
step the full width learns from the labels, and each lower one from the scores of the next higher
(Any-Precision DNN: Yu et al., AAAI 2021, arXiv:1911.07346, and its code, SHI-Labs/
Any-Precision-DNNs at 5005b96). docs/options.md tells what differs from it.
"""

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label, parse_bits
from lowbit_core.quantizers.interface import (
    ActivationQuantizer,
    Method,
    ReadWeight,
    WeightQuantizer,
)
from lowbit_core.runtime.errors import InputError

# What each width has for itself; the rest is shared.
OWN = (nn.modules.batchnorm._BatchNorm, ActivationQuantizer)


def check_widths(recipe: dict, method: Method, bits: tuple[int, int]) -> None:
    """Raise InputError where the option makes no sense; bits: the full width of the run."""
    if method.weight is None:
        raise InputError(f"widths: method {method.name!r} does not quantize weights: leave it out")
    if method.weight_class(bits[0]).read is WeightQuantizer.read:
        raise InputError(
            f"widths: the weights of method {method.name!r} cannot be read with fewer bits: it is "
            "for methods whose levels are sums of a basis"
        )
    higher = bits
    for label in recipe["widths"]["lower"]:
        lower = parse_bits(label, "widths.lower")
        fits = lower[0] < higher[0] and lower[1] <= higher[1] and method.offers(lower[0])
        if not fits or (FLOAT_BITS in (lower[1], higher[1]) and lower[1] != higher[1]):
            raise InputError(
                f"widths.lower: {label} follows {bits_label(*higher)}: each must have fewer bits "
                "of weights than the one before, no more of activations (32 only if all have 32), "
                f"and method {method.name!r} must offer them"
            )
        higher = lower
    if recipe["widths"].get("drawn", 1) > len(recipe["widths"]["lower"]):
        raise InputError(
            f"widths.drawn is {recipe['widths']['drawn']}: it must be at most "
            f"{len(recipe['widths']['lower'])}, the number of lower widths"
        )
    for other in ("ema", "distill"):
        if recipe.get(other):
            raise InputError(f"widths: a recipe with {other!r} cannot have it: leave one out")


def begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Begin every momentum at zero.

    torch's fused SGD needs one for each parameter, also for those that the first step leaves out
    because it does not draw their width.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


@dataclass(eq=False)
class Width:
    """A lower width: its network, which shares its weights with the full one, and its layers."""

    w_bits: int
    a_bits: int
    network: nn.Module
    report: list[dict]


class Widths(nn.Module):
    """The lower widths of a run, from high to low."""

    def __init__(
        self, settings: dict, method: Method, model: nn.Module, report: list[dict], seed: int
    ) -> None:
        """model: the converted network of the full width; report: its layers."""
        super().__init__()
        self.seed, self.step = seed, 0
        bits = [parse_bits(label, "widths.lower") for label in settings["lower"]]
        self.lower = [_width(method, model, report, *pair) for pair in bits]
        self.networks = nn.ModuleList(width.network for width in self.lower)
        self.drawn = settings.get("drawn", len(bits))

    def state(self) -> dict:
        """What a checkpoint holds of it."""
        return {"step": self.step, "networks": self.networks.state_dict()}

    def restore(self, state: dict) -> None:
        self.step = state["step"]
        self.networks.load_state_dict(state["networks"])

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """The trained networks of the lower widths, by their bits."""
        return {
            bits_label(width.w_bits, width.a_bits): width.network.state_dict()
            for width in self.lower
        }

    def teach(self, images: Tensor, scores: Tensor, autocast: torch.autocast) -> None:
        """Add the gradients of this step's lower widths; scores: of the full width."""
        for network in self.draw():
            target = scores.detach().float().softmax(1)
            with autocast:
                scores = network(images)
            functional.cross_entropy(scores.float(), target).backward()
        self.step += 1

    def draw(self) -> Iterator[nn.Module]:
        """The networks of this step, from high to low: they depend on seed and step alone."""
        chosen = random.Random(f"{self.seed} {self.step}").sample(
            range(len(self.lower)), self.drawn
        )
        return (self.networks[index] for index in sorted(chosen))


def _width(method: Method, model: nn.Module, report: list[dict], w_bits: int, a_bits: int) -> Width:
    """The network of a lower width. Layers that the policy gives other bits keep them."""
    names = {row["layer"] for row in report if row["reason"] == "policy"}
    network = copy.deepcopy(model, _shared(model))
    for name, layer in network.named_modules():
        if not isinstance(layer, QuantLayer):
            continue
        whole, old = layer.weight_quantizer, layer.activation_quantizer
        if name in names and whole is not None:
            layer.weight_quantizer = ReadWeight(whole, w_bits)
        if name in names and old is not None:
            assert method.activation is not None
            new = method.activation(a_bits, old.signed).to(old.nonfinite.device)
            new.ceiling = old.ceiling
            layer.activation_quantizer = new
    rows = []
    for row in report:
        if row["layer"] in names:
            weight = network.get_submodule(row["layer"]).weight_quantizer
            row = {**row, "w_bits": w_bits, "a_bits": a_bits}
            row["level_numbers"] = 0 if weight is None else weight.level_numbers()
        rows.append(row)
    return Width(w_bits, a_bits, network, rows)


def _shared(model: nn.Module) -> dict[int, object]:
    """What a copy of the network shares with it, by id, as `copy.deepcopy` takes it."""
    own = {p for m in model.modules() if isinstance(m, OWN) for p in m.parameters()}
    shared: list[object] = [p for p in model.parameters() if p not in own]
    shared += [m for m in model.modules() if isinstance(m, WeightQuantizer)]
    return {id(one): one for one in shared}
