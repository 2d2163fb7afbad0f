"""Which methods are compared with which, and for which claim: config/comparisons.yaml."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from baselines import METHODS
from lowbit_core.quantizers.basis_activation import WEIGHTINGS
from lowbit_core.runtime.errors import InputError

PATH = Path(__file__).parents[1] / "config" / "comparisons.yaml"
KEYS = ("method", "variants", "claims", "channel_error", "direct_weights")
BASELINES = "baselines"


@dataclass(frozen=True)
class Claim:
    """A question, and the pairs of methods that answer it; no pairs: `method` and its baselines."""

    name: str
    question: str
    pairs: tuple[tuple[str, str], ...] | None


@dataclass(frozen=True)
class Comparisons:
    method: str
    """The method that the benchmark is about."""
    variants: tuple[str, ...]
    claims: tuple[Claim, ...]
    channel_error: dict[str, dict[str, str]]
    """{measured method: {weighting of its channels: the method that trains with it}}"""
    direct_weights: tuple[str, ...]

    @property
    def ablation_methods(self) -> set[str]:
        """The methods whose runs the two ablation tables are made from."""
        return self.channel_error_methods | {self.method, *self.direct_weights}

    @property
    def channel_error_methods(self) -> set[str]:
        trained = (name for by in self.channel_error.values() for name in by.values())
        return {*self.channel_error, *trained}

    def pairs(self, claim: Claim, methods: list[str]) -> list[tuple[str, str]]:
        """The pairs of a claim among `methods`; baselines keep the order of `methods`."""
        own = {self.method, *self.variants, "fp"}
        pairs = claim.pairs
        if pairs is None:
            pairs = tuple((self.method, name) for name in methods if name not in own)
        return [pair for pair in pairs if set(pair) <= set(methods)]


@cache
def load_comparisons(path: Path = PATH) -> Comparisons:
    """Read and check the file; InputError names the first thing that is wrong in it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    _check_mapping(path, "the file", data)
    if set(data) != set(KEYS):
        raise InputError(f"{path}: its keys are {', '.join(map(str, data))}: they must be {KEYS}")
    _check_methods(path, "method", [data["method"]])
    for key in ("variants", "direct_weights"):
        _check_methods(path, key, data[key])
    _check_mapping(path, "channel_error", data["channel_error"])
    for measured, trained in data["channel_error"].items():
        where = f"channel_error.{measured}"
        _check_mapping(path, where, trained)
        _check_methods(path, where, [measured, *trained.values()])
        if unknown := sorted(map(str, trained.keys() - set(WEIGHTINGS))):
            legal = ", ".join(WEIGHTINGS)
            raise InputError(f"{path}: {where} names {unknown[0]!r}: it must be one of {legal}")
    _check_mapping(path, "claims", data["claims"])
    claims = tuple(_claim(path, str(name), entry) for name, entry in data["claims"].items())
    return Comparisons(
        data["method"],
        tuple(data["variants"]),
        claims,
        data["channel_error"],
        tuple(data["direct_weights"]),
    )


def _claim(path: Path, name: str, entry: object) -> Claim:
    where = f"claims.{name}"
    _check_mapping(path, where, entry)
    if set(entry) != {"question", "pairs"} or not isinstance(entry["question"], str):
        raise InputError(f"{path}: {where} must have a question (text) and pairs, and nothing else")
    pairs = entry["pairs"]
    if pairs == BASELINES:
        return Claim(name, entry["question"], None)
    if not isinstance(pairs, list) or any(not isinstance(p, list) or len(p) != 2 for p in pairs):
        raise InputError(
            f"{path}: {where}.pairs is {pairs!r}: it must be a list of [method, other], "
            f"or {BASELINES}"
        )
    for pair in pairs:
        _check_methods(path, f"{where}.pairs", pair)
    return Claim(name, entry["question"], tuple((one, other) for one, other in pairs))


def _check_mapping(path: Path, where: str, value: object) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{path}: {where} is {value!r}: it must be a mapping")


def _check_methods(path: Path, where: str, names: object) -> None:
    if not isinstance(names, list):
        raise InputError(f"{path}: {where} is {names!r}: it must be a list of methods")
    for name in names:
        if name not in METHODS:
            raise InputError(
                f"{path}: {where} names {name!r}: it must be one of {', '.join(METHODS)}"
            )
