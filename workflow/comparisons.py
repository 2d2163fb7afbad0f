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
        trained = (name for by in self.channel_error.values() for name in by.values())
        return {*self.channel_error, *trained, self.method, *self.direct_weights}

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
    file = _File(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    file.mapping("the file", data, KEYS)
    file.methods("method", [data["method"]])
    for measured, trained in file.mapping("channel_error", data["channel_error"]).items():
        where = f"channel_error.{measured}"
        for weighting in file.mapping(where, trained):
            file.check(weighting in WEIGHTINGS, where, weighting, f"one of {', '.join(WEIGHTINGS)}")
        file.methods(where, [measured, *trained.values()])
    claims = file.mapping("claims", data["claims"]).items()
    return Comparisons(
        data["method"],
        file.methods("variants", data["variants"]),
        tuple(file.claim(str(name), entry) for name, entry in claims),
        data["channel_error"],
        file.methods("direct_weights", data["direct_weights"]),
    )


@dataclass(frozen=True)
class _File:
    """Checks of the parts of the file, with errors that name it."""

    path: Path

    def check(self, is_right: bool, where: str, value: object, legal: str) -> None:
        if not is_right:
            raise InputError(f"{self.path}: {where} is {value!r}: it must be {legal}")

    def mapping(self, where: str, value: object, keys: tuple[str, ...] = ()) -> dict:
        self.check(isinstance(value, dict), where, value, "a mapping")
        if keys:
            self.check(set(value) == set(keys), f"keys of {where}", list(value), ", ".join(keys))
        return value

    def methods(self, where: str, names: object) -> tuple[str, ...]:
        self.check(isinstance(names, list), where, names, "a list of methods")
        for name in names:
            self.check(name in METHODS, where, name, f"one of {', '.join(METHODS)}")
        return tuple(names)

    def claim(self, name: str, entry: object) -> Claim:
        self.mapping(f"claims.{name}", entry, ("question", "pairs"))
        question, listed, where = str(entry["question"]), entry["pairs"], f"claims.{name}.pairs"
        if listed == BASELINES:
            return Claim(name, question, None)
        legal = f"a list of [method, other], or {BASELINES}"
        self.check(isinstance(listed, list), where, listed, legal)
        pairs = tuple(self.methods(where, pair) for pair in listed)
        self.check(all(len(pair) == 2 for pair in pairs), where, listed, legal)
        return Claim(name, question, pairs)
