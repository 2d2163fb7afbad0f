"""The policy that gives each layer of a network its bit-widths."""

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from lowbit_core.quantizers.bits import FLOAT_BITS, check_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError

FIRST_LAST = ("fp", "8bit")
SHORTCUT = ("quantized", "fp")

Layer = nn.Conv2d | nn.Linear
Layers = str | Collection[str] | Callable[[str, nn.Module], bool]
"""A choice of layers: an fnmatch pattern of names, several, or a predicate of name and layer."""


def is_shortcut(name: str, layer: nn.Module) -> bool:
    """Whether a part of the name is `downsample` or `shortcut`, as is usual in ResNets."""
    return not {"downsample", "shortcut"}.isdisjoint(name.split("."))


@dataclass(frozen=True)
class QuantPolicy:
    """Which bits each layer gets. Raises InputError for a value that is not legal.

    first_last: the first and the last layer stay full precision (`fp`) or get 8 bits (`8bit`).
    shortcut: projection shortcuts are `quantized` like the rest or stay `fp`.
    exceptions: layer name or fnmatch pattern -> {"w_bits", "a_bits"}; these overrule the rest.
    first_layers, last_layers: which layers count as these; None: the first and the last called.
    shortcut_layers: which layers are projection shortcuts.
    """

    method: Method
    w_bits: int
    a_bits: int
    first_last: str = "fp"
    shortcut: str = "quantized"
    exceptions: dict[str, dict[str, int]] = field(default_factory=dict)
    first_layers: Layers | None = None
    last_layers: Layers | None = None
    shortcut_layers: Layers = is_shortcut

    def __post_init__(self) -> None:
        check_bits(self.w_bits, "policy: w_bits")
        check_bits(self.a_bits, "policy: a_bits")
        for name, legal in (("first_last", FIRST_LAST), ("shortcut", SHORTCUT)):
            value = getattr(self, name)
            if value not in legal:
                raise InputError(
                    f"policy: {name} is {value!r}: it must be one of {', '.join(legal)}"
                )
        quantizes = self.method.weight is not None
        if quantizes == (self.w_bits == self.a_bits == FLOAT_BITS):
            raise InputError(
                f"policy: method {self.method.name!r} at W{self.w_bits}A{self.a_bits}: method 'fp' "
                "needs W32A32, and every other method needs fewer bits"
            )
        for pattern, bits in self.exceptions.items():
            if set(bits) != {"w_bits", "a_bits"}:
                raise InputError(
                    f"policy: exception {pattern!r} must set exactly w_bits and a_bits"
                )
            for key, number in bits.items():
                check_bits(number, f"policy: exception {pattern!r}, {key}")


def quantizable(model: nn.Module) -> dict[str, Layer]:
    """The convolution and linear layers by name, in the order of their definition."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def chosen(layers: dict[str, Layer], which: Layers, place: str) -> list[str]:
    """The names of the layers that `which` means.

    Raises InputError, with `place` in it, for a pattern that matches no layer.
    """
    if callable(which):
        return [name for name, layer in layers.items() if which(name, layer)]
    names = []
    for pattern in (which,) if isinstance(which, str) else which:
        matched = fnmatch.filter(layers, pattern)
        if not matched:
            raise InputError(
                f"policy: {place} {pattern!r} matches no layer; the layers are {', '.join(layers)}"
            )
        names += matched
    return names


def layer_bits(
    model: nn.Module, policy: QuantPolicy, called: list[str] | None = None
) -> dict[str, tuple[int, int, str]]:
    """(w_bits, a_bits, reason) by layer name.

    called: the layers in the order of their calls; a layer that is not among them stays full
    precision. None: all of them, in the order of their definition. Raises InputError for a pattern
    without a match, and for bits that the method does not offer.
    """
    layers = quantizable(model)
    called = list(layers) if called is None else called
    first, last = policy.first_layers, policy.last_layers
    firsts = called[:1] if first is None else chosen(layers, first, "first_layers")
    lasts = called[-1:] if last is None else chosen(layers, last, "last_layers")
    edge = (8, 8) if policy.first_last == "8bit" else (FLOAT_BITS, FLOAT_BITS)
    bits = dict.fromkeys(layers, (policy.w_bits, policy.a_bits, "policy"))
    shortcuts = chosen(layers, policy.shortcut_layers, "shortcut_layers")
    if policy.shortcut == "fp":
        bits |= dict.fromkeys(shortcuts, (FLOAT_BITS, FLOAT_BITS, "shortcut"))
    bits |= dict.fromkeys(lasts, (*edge, "last layer"))
    bits |= dict.fromkeys(firsts, (*edge, "first layer"))
    for pattern, exception in policy.exceptions.items():
        own = (exception["w_bits"], exception["a_bits"], f"exception {pattern}")
        bits |= dict.fromkeys(chosen(layers, pattern, "exception"), own)
    uncalled = layers.keys() - set(called)
    bits |= dict.fromkeys(uncalled, (FLOAT_BITS, FLOAT_BITS, "not called"))
    if policy.method.weight is None:
        return dict.fromkeys(layers, (FLOAT_BITS, FLOAT_BITS, "full-precision method"))
    if all(row[:2] == (FLOAT_BITS, FLOAT_BITS) for row in bits.values()):
        kept = ", ".join(f"{name} ({reason})" for name, (_, _, reason) in bits.items())
        raise InputError(f"policy: every layer stays full precision: {kept}")
    for name, (w_bits, _, reason) in bits.items():
        if w_bits < FLOAT_BITS and not policy.method.offers(w_bits):
            offered = ", ".join(map(str, policy.method.w_bits or ()))
            raise InputError(
                f"policy: method {policy.method.name!r} has no weights of {w_bits} bits, which "
                f"layer {name!r} ({reason}) would have: it offers {offered}"
            )
    return bits
