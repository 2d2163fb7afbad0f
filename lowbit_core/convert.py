"""Turn a full-precision network into a quantized one by a plan, and report every layer."""

import fnmatch
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowbit_core.bits import FLOAT_BITS, check_bits
from lowbit_core.errors import InputError
from lowbit_core.layers import QuantLayer
from lowbit_core.quantizer import Method

FIRST_LAST = ("fp", "8bit")
SHORTCUT = ("quantized", "fp")


@dataclass(frozen=True)
class Plan:
    """Which bits each layer gets.

    `first_last`: the first and the last layer stay full precision (`fp`) or get 8 bits (`8bit`).
    `shortcut`: projection shortcuts are `quantized` like the rest or stay `fp`.
    `exceptions`: layer name or pattern (as in fnmatch) -> {"w_bits", "a_bits"}; they come last.
    """

    method: Method
    w_bits: int
    a_bits: int
    first_last: str = "fp"
    shortcut: str = "quantized"
    exceptions: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_bits(self.w_bits, "plan: w_bits")
        check_bits(self.a_bits, "plan: a_bits")
        for name, value, legal in (
            ("first_last", self.first_last, FIRST_LAST),
            ("shortcut", self.shortcut, SHORTCUT),
        ):
            if value not in legal:
                raise InputError(f"plan: {name} is {value!r}: it must be one of {', '.join(legal)}")
        quantizes = self.method.weight is not None
        if quantizes == (self.w_bits == self.a_bits == FLOAT_BITS):
            raise InputError(
                f"plan: method {self.method.name!r} at W{self.w_bits}A{self.a_bits}: 'fp' goes with "
                "32/32 bits, every other method with fewer"
            )
        for pattern, bits in self.exceptions.items():
            if set(bits) != {"w_bits", "a_bits"}:
                raise InputError(f"plan: exception {pattern!r} must set exactly w_bits and a_bits")
            for key, value in bits.items():
                check_bits(value, f"plan: exception {pattern!r}, {key}")


def quantizable(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that a plan decides on, by name, in forward order of definition."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def layer_bits(model: nn.Module, plan: Plan) -> dict[str, tuple[int, int, str]]:
    """(w_bits, a_bits, reason) of every layer. Raises InputError for a pattern without a match."""
    names = list(quantizable(model))
    bits = {}
    for name in names:
        if plan.method.weight is None:
            bits[name] = (FLOAT_BITS, FLOAT_BITS, "full-precision method")
        elif name in (names[0], names[-1]):
            edge = (8, 8) if plan.first_last == "8bit" else (FLOAT_BITS, FLOAT_BITS)
            bits[name] = (*edge, "first layer" if name == names[0] else "last layer")
        elif name in model.shortcut_layers and plan.shortcut == "fp":
            bits[name] = (FLOAT_BITS, FLOAT_BITS, "shortcut")
        else:
            bits[name] = (plan.w_bits, plan.a_bits, "plan")
    for pattern, own in plan.exceptions.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise InputError(
                f"plan: exception {pattern!r} matches no layer; the layers are {', '.join(names)}"
            )
        for name in matched if plan.method.weight is not None else ():
            bits[name] = (own["w_bits"], own["a_bits"], f"exception {pattern}")
    return bits


def convert(model: nn.Module, plan: Plan, image: Tensor) -> list[dict]:
    """Quantize `model` in place; `image` (1, C, H, W) is run once to count operations.

    Returns one row a layer: what was kept or quantized, with what, and why.
    """
    macs = count_macs(model, image)
    report = []
    for name, (w_bits, a_bits, reason) in layer_bits(model, plan).items():
        layer = model.get_submodule(name)
        signed = name in model.signed_inputs
        weight = activation = None
        if w_bits < FLOAT_BITS:
            weight = plan.method.weight(layer.weight, w_bits)
        if a_bits < FLOAT_BITS:
            activation = plan.method.activation(a_bits, signed)
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
                "level_numbers": 0 if weight is None else _level_numbers(weight),
            }
        )
    hand_over_relus(model)
    return report


# A max pool and a reshape give the same before a ReLU as after it.
_LETS_RELU_THROUGH = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity)


def hand_over_relus(model: nn.Module) -> None:
    """Take out, in place, each ReLU of a chain that the quantizer of the next layer does itself.

    A chain is an nn.Sequential, with those in it: what stands in it is read by the next alone.
    """
    inner = {id(child) for m in model.modules() if isinstance(m, nn.Sequential) for child in m}
    for chain in model.modules():
        if not isinstance(chain, nn.Sequential) or id(chain) in inner:
            continue
        waiting = None  # the last ReLU: where it stands
        for parent, name, module in _links(chain):
            if isinstance(module, nn.ReLU | nn.ReLU6):
                waiting = (parent, name, 6.0 if isinstance(module, nn.ReLU6) else math.inf)
            elif isinstance(module, QuantLayer) and module.does_relu and waiting:
                parent, name, module.activation_quantizer.ceiling = waiting
                parent[int(name)] = nn.Identity()
                waiting = None
            elif not isinstance(module, _LETS_RELU_THROUGH):
                waiting = None


def _links(chain: nn.Sequential) -> Iterator[tuple[nn.Sequential, str, nn.Module]]:
    for name, module in list(chain.named_children()):
        if isinstance(module, nn.Sequential):
            yield from _links(module)
        else:
            yield chain, name, module


def _level_numbers(weight) -> int:
    """Float numbers that a deployed layer stores to decode its weights: K basis numbers a row."""
    rows = weight.levels().shape[0]
    return rows * weight.bits


@torch.no_grad()
def count_macs(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every layer for one image (1, C, H, W)."""
    counts: dict[str, int] = {}

    def hook(name):
        def count(layer, _inputs, output):
            counts[name] = output.numel() * layer.weight[0].numel()

        return count

    handles = [m.register_forward_hook(hook(n)) for n, m in quantizable(model).items()]
    was_training = model.training
    model.eval()(image)
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return counts


def size_and_bitops(model: nn.Module, report: list[dict]) -> tuple[int, int, int]:
    """(bytes of the deployed model, bytes at full precision, bit operations an image).

    Codes take w_bits a weight, levels and all unquantized parameters 4 bytes, batch-norm buffers
    included. BitOps: MACs x w_bits x a_bits, 32 for what is kept.
    """
    weights = sum(row["weights"] for row in report)
    coded = sum(-(-row["weights"] * row["w_bits"] // 8) for row in report)
    levels = 4 * sum(row["level_numbers"] for row in report)
    biases = sum(
        m.bias.numel()
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear | QuantLayer) and m.bias is not None
    )
    norms = sum(
        t.numel()
        for m in model.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        for t in (m.weight, m.bias, m.running_mean, m.running_var)
    )
    rest = 4 * (biases + norms)
    bitops = sum(row["macs"] * row["w_bits"] * row["a_bits"] for row in report)
    return coded + levels + rest, 4 * weights + rest, bitops
