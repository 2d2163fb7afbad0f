"""Which methods are compared with which, and for which claim: config/comparisons.yaml."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from baselines import METHODS
from lowbit_core.quantizers.basis_activation import WEIGHTINGS
from lowbit_core.runtime.errors import InputError
from workflow.suite.schema import UniqueKeys

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
    direct_weights: tuple[tuple[str, str], ...]
    """The pairs of methods that ablation_direct_weights compares, the first against the second."""

    @property
    def ablation_methods(self) -> set[str]:
        """The methods whose runs the two ablation tables are made from."""
        trained = (name for by in self.channel_error.values() for name in by.values())
        paired = (name for pair in self.direct_weights for name in pair)
        return {*self.channel_error, *trained, *paired}

    def pairs(self, claim: Claim, methods: list[str]) -> list[tuple[str, str]]:
        """The pairs of a claim among `methods`; baselines keep the order of `methods`."""
        own = {self.method, *self.variants, "fp"}
        pairs = claim.pairs
        if pairs is None:
            pairs = tuple((self.method, name) for name in methods if name not in own)
        return [pair for pair in pairs if set(pair) <= set(methods)]


@dataclass(frozen=True)
class ConfigFile:
    """A YAML file, with checks whose InputErrors name the file and the place in it."""

    path: Path

    def read(self, keys: tuple[str, ...]) -> dict:
        """The mapping that the file holds; it must have these keys."""
        try:
            data = yaml.load(self.path.read_text(encoding="utf-8"), UniqueKeys)
        except (yaml.YAMLError, ValueError) as error:
            text = " ".join(str(error).split())
            raise InputError(f"{self.path} is not valid YAML: {text}") from error
        return self.mapping("the file", data, keys)

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
            is_method = isinstance(name, str) and name in METHODS
            self.check(is_method, where, name, f"one of {', '.join(METHODS)}")
        return tuple(names)

    def pairs(self, where: str, listed: object, also: str = "") -> tuple[tuple[str, str], ...]:
        """Pairs of methods; `also`: what else may stand there, for the message."""
        is_right = isinstance(listed, list) and all(type(p) is list and len(p) == 2 for p in listed)
        self.check(is_right, where, listed, f"a list of [method, other]{also}")
        return tuple(self.methods(where, pair) for pair in listed)


@cache
def load_comparisons(path: Path = PATH) -> Comparisons:
    """Read and check the file; InputError names the first thing that is wrong in it."""
    file = ConfigFile(path)
    data = file.read(KEYS)
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
        tuple(_claim(file, str(name), entry) for name, entry in claims),
        data["channel_error"],
        file.pairs("direct_weights", data["direct_weights"]),
    )


def _claim(file: ConfigFile, name: str, entry: object) -> Claim:
    file.mapping(f"claims.{name}", entry, ("question", "pairs"))
    question, listed, where = str(entry["question"]), entry["pairs"], f"claims.{name}.pairs"
    if listed == BASELINES:
        return Claim(name, question, None)
    return Claim(name, question, file.pairs(where, listed, f", or {BASELINES}"))
