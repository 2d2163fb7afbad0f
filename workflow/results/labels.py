"""Names, colours and markers for tables, plots and the report, from config/labels.yaml."""

from functools import cache

import yaml

from baselines import METHODS
from lowbit_core.runtime.errors import InputError
from workflow.suite.suite import ROOT

PATH = ROOT / "config" / "labels.yaml"
COLORS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#882255", "#AA4499")
MARKERS = ("<", ">", "p", "H", "8", "v", "s", "o")
SECTIONS = {"methods": dict, "datasets": dict, "archs": dict, "paper_suites": list}
METHOD_KEYS = {"label", "color", "marker"}


@cache
def load_labels() -> dict:
    """config/labels.yaml; raises InputError for what is not a label."""
    try:
        labels = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{PATH} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(labels, dict) or set(labels) != set(SECTIONS):
        raise InputError(f"{PATH}: its keys must be {', '.join(SECTIONS)}")
    for section, kind in SECTIONS.items():
        if not isinstance(labels[section], kind):
            raise InputError(f"{PATH}: {section} must be a {kind.__name__}")
    for name, entry in labels["methods"].items():
        if not isinstance(entry, dict) or not set(entry) <= METHOD_KEYS:
            raise InputError(
                f"{PATH}: methods.{name} is {entry!r}: its keys must be among "
                + ", ".join(sorted(METHOD_KEYS))
            )
    return labels


@cache
def method_names() -> tuple[str, ...]:
    """Every method that a table can name, in the order of tables and legends."""
    listed = [name for name in load_labels()["methods"] if name in METHODS]
    ours = [*listed, *(name for name in METHODS if name not in listed)]
    return (*ours, *(name for name in load_labels()["methods"] if name not in METHODS))


def method_order(name: str) -> int:
    """The place of a method in tables and legends; a method that is not known comes last."""
    names = method_names()
    return names.index(name) if name in names else len(names)


def method_label(name: str) -> str:
    return _entry(name).get("label", name)


def method_color(name: str) -> str:
    return _entry(name).get("color") or COLORS[_without_entry(name) % len(COLORS)]


def method_marker(name: str) -> str:
    return _entry(name).get("marker") or MARKERS[_without_entry(name) % len(MARKERS)]


def dataset_name(name: str) -> str:
    return load_labels()["datasets"].get(name, name)


def arch_name(name: str) -> str:
    return load_labels()["archs"].get(name, name)


def is_paper_suite(name: str) -> bool:
    """Whether a suite's numbers are comparable with published ones."""
    return name in load_labels()["paper_suites"]


def _entry(name: str) -> dict[str, str]:
    return load_labels()["methods"].get(name, {})


def _without_entry(name: str) -> int:
    """The number of a method among those that have no entry."""
    others = sorted(other for other in METHODS if other not in load_labels()["methods"])
    return others.index(name) if name in others else len(others)
