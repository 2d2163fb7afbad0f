"""The policy that gives each layer of a network its bit-widths."""

import fnmatch
from dataclasses import dataclass, field

from torch import nn

from lowbit_core.quantizers.bits import FLOAT_BITS, check_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError

FIRST_LAST = ("fp", "8bit")
SHORTCUT = ("quantized", "fp")


@dataclass(frozen=True)
class QuantPolicy:
    """Which bits each layer gets. Raises InputError for a value that is not legal.

    first_last: the first and the last layer stay full precision (`fp`) or get 8 bits (`8bit`).
    shortcut: projection shortcuts are `quantized` like the rest or stay `fp`.
    exceptions: layer name or fnmatch pattern -> {"w_bits", "a_bits"}; these overrule the rest.
    """

    method: Method
    w_bits: int
    a_bits: int
    first_last: str = "fp"
    shortcut: str = "quantized"
    exceptions: dict[str, dict[str, int]] = field(default_factory=dict)

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


def quantizable(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The convolution and linear layers by name, in the order of their definition."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def layer_bits(model: nn.Module, policy: QuantPolicy) -> dict[str, tuple[int, int, str]]:
    """(w_bits, a_bits, reason) by layer name. Raises InputError for a pattern without a match."""
    names = list(quantizable(model))
    bits = {}
    for name in names:
        if policy.method.weight is None:
            bits[name] = (FLOAT_BITS, FLOAT_BITS, "full-precision method")
        elif name in (names[0], names[-1]):
            edge = (8, 8) if policy.first_last == "8bit" else (FLOAT_BITS, FLOAT_BITS)
            bits[name] = (*edge, "first layer" if name == names[0] else "last layer")
        elif name in model.shortcut_layers and policy.shortcut == "fp":  # type: ignore[operator]
            bits[name] = (FLOAT_BITS, FLOAT_BITS, "shortcut")
        else:
            bits[name] = (policy.w_bits, policy.a_bits, "policy")
    for pattern, exception in policy.exceptions.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise InputError(
                f"policy: exception {pattern!r} matches no layer; the layers are {', '.join(names)}"
            )
        for name in matched if policy.method.weight is not None else ():
            bits[name] = (exception["w_bits"], exception["a_bits"], f"exception {pattern}")
    for name, (w_bits, _, reason) in bits.items():
        if w_bits < FLOAT_BITS and not policy.method.offers(w_bits):
            offered = ", ".join(map(str, policy.method.w_bits or ()))
            raise InputError(
                f"policy: method {policy.method.name!r} has no weights of {w_bits} bits, which "
                f"layer {name!r} ({reason}) would have: it offers {offered}"
            )
    return bits
