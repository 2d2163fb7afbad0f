"""How every plot looks: sizes, colours, headings, legends, and writing to disk."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import offset_copy

from lowbit_core.runtime.files import replace_file
from workflow.comparisons import load_comparisons
from workflow.results import labels as names

INK, MUTED, GRID = "#1f2933", "#66717e", "#dde2e8"
"""Text, secondary text and grid; the report replaces them with the colours of its theme."""
MIN_WIDTH = 8.2  # inches; the longest heading and a legend of four columns fit
LETTERS, LINE = 14, 0.17  # of a subtitle: how many fit into an inch, and the height of a line
LEGEND_COLUMNS = 4
MOST_METHODS = 8  # in a panel; more are drawn in one panel for each family
FAMILY_COLUMNS = 4  # panels of families beside each other
MARKERS_APART = 5  # points
PERCENT_TICKS = FuncFormatter(lambda share, _: f"{100 * share:g}%")

STYLE = {
    "svg.hashsalt": "lowbit-bench", "svg.fonttype": "path", "savefig.dpi": 144, "font.size": 9,
    "text.color": INK, "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.7,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlecolor": INK, "axes.labelsize": 9, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.7,
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in (
        ("labelsize", 8.5), ("labelcolor", INK), ("color", MUTED), ("major.size", 3),
        ("major.width", 0.8))},
}  # fmt: skip


def set_style() -> None:
    """Set the look of all figures made from here on."""
    sns.set_theme(style="ticks")
    plt.rcParams.update(STYLE)


def new_figure(
    panels: int, columns: int = 3, width: float = 3.3, height: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes; `width` and `height` are inches for one panel."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    size = max(columns * width, MIN_WIDTH), rows * height
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[panels:]:
        axis.remove()
    return figure, list(axes.flat[:panels])


def method_groups(methods: Iterable[str]) -> dict[str, list[str]]:
    """The quantized methods that a panel shows: {"": all of them}, or {family: its methods}.

    A family also has the method of the benchmark, as the reference of all panels.
    """
    ordered = sorted(set(methods) - {"fp"}, key=names.method_order)
    if len(ordered) <= MOST_METHODS:
        return {"": ordered}
    reference = load_comparisons().method
    families = dict.fromkeys(map(names.method_family, ordered))
    return {
        family: [
            name for name in ordered if names.method_family(name) == family or name == reference
        ]
        for family in families
    }


def new_blocks(
    headings: list[str], groups: dict[str, list[str]], ylabel: str = ""
) -> tuple[Figure, list[list[Axes]]]:
    """A figure and, for each heading, the axes of the groups of `method_groups`.

    A single group has the heading as its title. Several make a block of panels, titled by family,
    with the heading beside each row.
    """
    if len(groups) == 1:
        figure, axes = new_figure(len(headings))
        for axis, heading in zip(axes, headings, strict=True):
            axis.set_title(heading)
        for axis in axes[::3]:
            axis.set_ylabel(ylabel)
        return figure, [[axis] for axis in axes]
    columns = min(len(groups), FAMILY_COLUMNS)
    size = columns * math.ceil(len(groups) / columns)  # of a block; its last panels may be unused
    figure, axes = new_figure(len(headings) * size, columns, width=2.9, height=2.35)
    blocks = [axes[start : start + size] for start in range(0, len(axes), size)]
    for block, heading in zip(blocks, headings, strict=True):
        for axis in block[::columns]:
            axis.set_ylabel("\n".join(filter(None, (heading, ylabel))))
        for axis, family in zip(block, groups, strict=False):
            axis.set_title(family.capitalize())
        for axis in block[len(groups) :]:
            axis.remove()
    return figure, [block[: len(groups)] for block in blocks]


def add_heading_and_legend(figure: Figure, title: str, subtitle: str) -> None:
    """Make the figure taller by a heading, and by a legend of everything that has a label.

    The last part of a subtitle, behind a " · ", has a line of its own where it would not fit.
    """
    if len(subtitle) > LETTERS * figure.get_figwidth():
        subtitle = "\n".join(subtitle.rsplit(" · ", 1))
    heading = 0.62 + LINE * subtitle.count("\n")
    handles = {}
    for axis in figure.axes:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    order = {names.method_label(name): names.method_order(name) for name in names.method_names()}
    ordered = sorted(handles, key=lambda label: order.get(label, len(order)))
    height = figure.get_figheight() + heading + 0.25 * math.ceil(len(ordered) / LEGEND_COLUMNS)
    figure.set_figheight(height)
    room = {"w_pad": 0.08, "h_pad": 0.06, "wspace": 0.03}
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - heading / height), **room)
    figure.text(0.012, 1 - 0.10 / height, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.36 / height, subtitle, va="top", fontsize=9, color=MUTED)
    if ordered:
        columns = min(LEGEND_COLUMNS, len(ordered) + 1)
        place = {"loc": "outside lower center", "ncols": columns, "columnspacing": 1.6}
        figure.legend([handles[label] for label in ordered], ordered, **place, handletextpad=0.5)


def empty_figure(reason: str) -> Figure:
    """A figure without data, which says why it is empty."""
    figure, (axis,) = new_figure(1, height=1.6)
    axis.axis("off")
    axis.text(0.5, 0.5, reason, ha="center", va="center", color=MUTED)
    return figure


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name`.svg and `name`.png without dates, so that the same data give the same bytes."""
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with replace_file(folder / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    plt.close(figure)


def write_plots(plots: dict, data: Any, folder: Path) -> None:
    """Draw and write plots {name: (title, function of `data`)}; `data` has a `note` for headings.

    A function gives a figure and what it shows, or the reason why there is nothing to draw.
    """
    set_style()
    for name, (title, draw) in plots.items():
        drawn = draw(data)
        is_empty = isinstance(drawn, str)
        figure, shown = (empty_figure(drawn), "") if is_empty else drawn
        add_heading_and_legend(figure, title, " · ".join(filter(None, (shown, data.note))))
        save(figure, folder, name)


def si(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 41200000 -> `41.2 M`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def marker_style(method: str, size: float) -> dict:
    """Label, colour and marker of a method; stars and crosses are drawn larger to look as heavy."""
    marker = names.method_marker(method)
    scale = {"*": 1.7, "P": 1.15, "X": 1.15}.get(marker, 1.0)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    color, label = names.method_color(method), names.method_label(method)
    return {"label": label, "color": color, "marker": marker, "markersize": size * scale, **edge}


def draw_mean(
    axis: Axes, method: str, x: list, mean: pd.Series, std: pd.Series, size: float, **options
) -> None:
    """A line through `mean`, with markers of `size` points and a band of one std on each side."""
    axis.plot(x, mean, **marker_style(method, size), **options)
    color = names.method_color(method)
    axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def draw_apart(axis: Axes, cells: pd.DataFrame, column: str) -> None:
    """Mean accuracy against `column`; methods of one cost stand beside each other.

    A marker is moved by points of the page, so the axis keeps its values.
    """
    methods = sorted(cells["method"].unique(), key=names.method_order)
    for index, method in reversed(list(enumerate(methods))):
        mine = cells[cells["method"] == method]
        shift = MARKERS_APART * (index - (len(methods) - 1) / 2)
        place = offset_copy(axis.transData, axis.figure, x=shift, units="points")
        style = marker_style(method, 7)
        axis.plot(mine[column], mine["top1_mean"], **style, linestyle="", transform=place)


def accuracy_limits(axis: Axes, values: pd.Series, top: float) -> None:
    """Limit y so that a collapsed run does not flatten the rest, and say what is off scale."""
    floor = max(values.min(), top - max(4 * (top - values.median()), 10))
    below = int((values < floor).sum())
    floor = values[values >= floor].min()
    pad = 0.06 * max(top - floor, 1)
    axis.set_ylim(floor - pad, top + pad)
    axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    if below:
        where = {"transform": axis.transAxes, "ha": "right", "va": "bottom"}
        axis.text(0.98, 0.02, f"{below} below the scale", **where, fontsize=8, color=MUTED)
