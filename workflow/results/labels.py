"""Names, colours and markers for tables, plots and the report, from config/labels.yaml."""

from collections.abc import Mapping
from functools import cache

from matplotlib.colors import is_color_like as is_color
from matplotlib.markers import MarkerStyle

from baselines import METHODS
from lowbit_core.quantizers.bits import bits_label
from workflow.comparisons import ConfigFile
from workflow.suite.suite import ROOT

PATH = ROOT / "config" / "labels.yaml"
COLORS = ("#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#882255", "#AA4499")
MARKERS = ("<", ">", "p", "H", "8", "v", "s", "o")
SHAPES = [m for m in MarkerStyle.markers if isinstance(m, str) and len(m) == 1 and m != " "]
"""The markers that matplotlib draws, without the blank ones."""
OTHER = "other"
"""The family of a method that names none."""
SECTIONS = {
    "families": list, "methods": dict, "datasets": dict, "archs": dict, "paper_suites": list,
}  # fmt: skip
METHOD_KEYS = {"label", "color", "marker", "family"}


@cache
def load_labels() -> dict:
    """config/labels.yaml; raises InputError for what is not a label."""
    file = ConfigFile(PATH)
    labels = file.read(tuple(SECTIONS))
    for section, kind in SECTIONS.items():
        is_right = isinstance(labels[section], kind)
        file.check(is_right, section, labels[section], f"a {kind.__name__}")
    for name, entry in labels["methods"].items():
        is_right = isinstance(entry, dict) and set(entry) <= METHOD_KEYS
        legal = f"a mapping with no keys but {', '.join(sorted(METHOD_KEYS))}"
        file.check(is_right, f"methods.{name}", entry, legal)
        for key, text in entry.items():
            file.check(isinstance(text, str), f"methods.{name}.{key}", text, "text")
        color, marker = entry.get("color", COLORS[0]), entry.get("marker", MARKERS[0])
        file.check(is_color(color), f"methods.{name}.color", color, "a colour of matplotlib")
        legal = f"one of {' '.join(SHAPES)}"
        file.check(marker in SHAPES, f"methods.{name}.marker", marker, legal)
        family, families = entry.get("family", OTHER), [*labels["families"], OTHER]
        legal = f"one of {', '.join(map(str, families))}"
        file.check(family in families, f"methods.{name}.family", family, legal)
    return labels


@cache
def method_names() -> tuple[str, ...]:
    """Every method that a table can name, in the order of tables and legends.

    By family, as config/labels.yaml lists them; within one, those that are trained here come first.
    """
    listed = load_labels()["methods"]
    ours = [name for name in listed if name in METHODS]
    names = dict.fromkeys([*ours, *METHODS, *listed])
    return tuple(sorted(names, key=lambda name: family_order(method_family(name))))


def method_family(name: str) -> str:
    """The family of a method; `other` if it names none."""
    return _entry(name).get("family", OTHER)


def family_order(family: str) -> int:
    """The place of a family in tables, legends and panels; `other` comes last."""
    families = load_labels()["families"]
    return families.index(family) if family in families else len(families)


def method_order(name: str) -> int:
    """The place of a method in tables and legends; a method that is not known comes last."""
    names = method_names()
    return names.index(name) if name in names else len(names)


def method_label(name: str) -> str:
    return _entry(name).get("label", name)


def method_color(name: str) -> str:
    return _look(name, "color", COLORS)


def method_marker(name: str) -> str:
    return _look(name, "marker", MARKERS)


def dataset_name(name: str) -> str:
    return load_labels()["datasets"].get(name, name)


def arch_name(name: str) -> str:
    return load_labels()["archs"].get(name, name)


def network_name(row: Mapping) -> str:
    """The data set and the network of a row: `CIFAR-100, ResNet-20`."""
    return f"{dataset_name(row['dataset'])}, {arch_name(row['arch'])}"


def setting_name(row: Mapping) -> str:
    """The setting of a row: `CIFAR-100, ResNet-20, W2A2`."""
    return f"{network_name(row)}, {bits_label(row['w_bits'], row['a_bits'])}"


def is_paper_suite(name: str) -> bool:
    """Whether a suite's numbers are comparable with published ones."""
    return name in load_labels()["paper_suites"]


def _entry(name: str) -> dict[str, str]:
    return load_labels()["methods"].get(name, {})


def _look(name: str, key: str, palette: tuple[str, ...]) -> str:
    """A colour or marker; methods without an entry get those of the palette in turn."""
    others = sorted(METHODS.keys() - load_labels()["methods"].keys())
    number = others.index(name) if name in others else len(others)
    return _entry(name).get(key) or palette[number % len(palette)]
