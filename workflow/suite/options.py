"""Options of a recipe, such as `distill`: pairs of runs without and with one, and what they load.

docs/options.md explains each option.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from lowbit_core.quantizers.bits import bits_label, parse_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from lowbit_core.training.oscillation import check_oscillation
from lowbit_core.training.widths import check_widths
from workflow.suite.schema import option_names

NEXT_WIDTH = "next_width"
PRETRAINED = "pretrained"
Bits = tuple[int, int]
OWN = (
    *("recipe", "run_id", "run_key", "role", "code_version", "predecessor", "teachers"),
    "loader",
)
"""Keys in which a run with an option may differ from the same run without it."""


class DoesNotApply(InputError):
    """An option makes no sense for a method or its bits: `methods: all` leaves that run out."""


@dataclass(frozen=True)
class Training:
    """What one seed of an experiment trains: a method at its bits by a recipe with options."""

    method: Method
    bits: Bits
    role: str
    base: dict
    """The recipe that the experiment names, with its `name`."""
    added: dict
    """The options that a part of `ablations` adds to it."""
    of_all: bool = False
    """Whether the method was not named, but asked for by `methods: all`."""

    @property
    def recipe(self) -> dict:
        name = "+".join([self.base["name"], *sorted(self.added)])
        return {**self.base, **self.added, "name": name}

    def without(self, *names: str) -> "Training":
        """The same training without these options, for a run that another one loads."""
        base, added = (
            {key: value for key, value in recipe.items() if key not in names}
            for recipe in (self.base, self.added)
        )
        role = "ablation" if base == self.base and not added else "option"
        return replace(self, base=base, added=added, role=role)


def refuse_for_checkpoint(recipe: dict, place: str) -> None:
    """Raise InputError for an option that needs what is trained from a checkpoint."""
    for name in ("distill", "start_from"):
        if recipe.get(name) is not None:
            raise InputError(
                f"{place} is a recipe with the option {name!r}: a checkpoint has no network to "
                "learn or to start from"
            )
    for name in ("oscillation", "widths"):
        if name in recipe:
            raise InputError(
                f"{place} is a recipe with the option {name!r}: a checkpoint is not quantized"
            )


def check_training(training: Training, w_bits: list[int], place: str) -> None:
    """Refuse options of the training itself that make no sense; w_bits: of the layers' weights."""
    recipe, method = training.recipe, training.method
    try:
        if "oscillation" in recipe:
            check_oscillation(recipe["oscillation"], method, w_bits)
        if "widths" in recipe:
            check_widths(recipe, method, training.bits)
    except InputError as error:
        raise DoesNotApply(f"{place}: {error}") from error


def options_of(recipe: dict) -> dict:
    """The options that a recipe has, with their values."""
    return {key: recipe[key] for key in option_names() if recipe.get(key) is not None}


def option_text(options: dict) -> str:
    """The options of a recipe as one line: `distill(teacher=pretrained, temperature=1, ...)`."""

    def text(value: object) -> str:
        if isinstance(value, dict):
            return "(" + ", ".join(f"{key}={text(value[key])}" for key in sorted(value)) + ")"
        if isinstance(value, list):
            return " & ".join(map(text, value))
        return str(value)

    found = {name: text(options[name]) for name in sorted(options)}
    return "; ".join(f"{n}{t if t.startswith('(') else f'({t})'}" for n, t in found.items())


def option_pairs(runs: Iterable[dict]) -> list[tuple[dict, dict]]:
    """The pairs (run without an option, the same run with it) among resolved runs.

    A run with several options is paired with the one that has the most of them, but not all.
    """
    alike: dict[str, list[tuple[dict, dict]]] = {}
    for run in runs:
        options = options_of(run["recipe"])
        rest = {k: v for k, v in run["recipe"].items() if k != "name" and k not in options}
        rest |= {"": {key: value for key, value in run.items() if key not in OWN}}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append((options, run))
    pairs = []
    for group in alike.values():
        for options, run in group:
            fewer = [(o, r) for o, r in group if o.items() <= options.items() and o != options]
            if fewer:
                pairs.append((max(fewer, key=lambda one: len(one[0]))[1], run))
    return pairs


# -- start_from -------------------------------------------------------------------------------


def predecessor(training: Training, offered: Iterable[Bits], place: str) -> Training | None:
    """The training whose trained run this one starts from; None without `start_from`.

    offered: the bits at which the experiment trains the method. `next_width` names the next higher
    of them, and that run starts from the one after it in turn. Raises InputError if there is none.
    """
    named = training.recipe.get("start_from")
    if named is None:
        return None
    where, label = f"{place}: start_from {named!r}", bits_label(*training.bits)
    if training.method.weight is None:
        raise DoesNotApply(
            f"{where}: method {training.method.name!r} has no other bit-width to start from"
        )
    if named != NEXT_WIDTH:
        bits = parse_bits(named, f"{place}.start_from")
        if not _is_higher(bits, training.bits):
            raise DoesNotApply(f"{where}: its bits must be higher than {label} of the run itself")
        return replace(training.without("start_from"), bits=bits)
    higher = {bits: _next_higher(bits, offered) for bits in (training.bits, *offered)}
    following = higher[training.bits]
    if following is None:
        raise DoesNotApply(
            f"{where}: {label} is the highest bit-width at which this experiment trains method "
            f"{training.method.name!r}: leave {label} out, or name bits such as W8A8"
        )
    found = training if higher[following] is not None else training.without("start_from")
    return replace(found, bits=following)


def _is_higher(bits: Bits, other: Bits) -> bool:
    return bits != other and bits[0] >= other[0] and bits[1] >= other[1]


def _next_higher(bits: Bits, offered: Iterable[Bits]) -> Bits | None:
    higher = [other for other in offered if _is_higher(other, bits)]
    return min(higher, key=lambda other: (sum(other), other), default=None)


# -- distill ----------------------------------------------------------------------------------


def teachers(recipe: dict) -> list[str | dict]:
    """The teachers that a recipe names: `pretrained`, bits, or a network with its options."""
    named = recipe.get("distill", {}).get("teacher", [])
    return named if isinstance(named, list) else [named]


def teacher_training(training: Training, label: str, place: str) -> Training:
    """The training whose trained run, of the same method with other bits, is a teacher."""
    where = f"{place}.distill.teacher"
    bits = parse_bits(label, f"{where}: {PRETRAINED!r}, or bits of the same method,")
    if training.method.weight is None:
        raise DoesNotApply(
            f"{where} is {label!r}: method {training.method.name!r} has no such bits"
        )
    if not _is_higher(bits, training.bits):
        raise DoesNotApply(
            f"{where} is {label!r}: its bits must be higher than {bits_label(*training.bits)} of "
            "the run itself"
        )
    return replace(training.without("distill", "start_from"), bits=bits)
