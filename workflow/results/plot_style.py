"""How every plot looks: sizes, colours, headings, legends, and writing to disk."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lowbit_core.runtime.files import replace_file
from workflow.results import labels as names

INK, MUTED, GRID = "#1f2933", "#66717e", "#dde2e8"
"""Text, secondary text and grid; the report replaces them with the colours of its theme."""
MIN_WIDTH = 8.2  # inches; the longest heading and a legend of four columns fit
LEGEND_COLUMNS = 4
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


def add_heading_and_legend(figure: Figure, title: str, subtitle: str) -> None:
    """Make the figure taller by a heading, and by a legend of everything that has a label."""
    handles = {}
    for axis in figure.axes:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    order = {names.method_label(name): names.method_order(name) for name in names.method_names()}
    ordered = sorted(handles, key=lambda label: order.get(label, len(order)))
    height = figure.get_figheight() + 0.62 + 0.25 * math.ceil(len(ordered) / LEGEND_COLUMNS)
    figure.set_figheight(height)
    room = {"w_pad": 0.08, "h_pad": 0.06, "wspace": 0.03}
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.62 / height), **room)
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
