"""How every plot looks: sizes, colours, headings, legends, and writing to disk."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lowbit_core.runtime.files import replace_file
from workflow.results.labels import method_color, method_label, method_marker, method_order

INK, MUTED, GRID = "#1f2933", "#66717e", "#dde2e8"
"""Text, secondary text and grid; the report replaces them with the colours of its theme."""
PANEL_WIDTH, PANEL_HEIGHT, MAX_COLUMNS = 3.3, 3.0, 3
HEADER_INCHES = 0.62
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
    title: str,
    subtitle: str,
    panels: int,
    *,
    columns: int = MAX_COLUMNS,
    width: float = PANEL_WIDTH,
    height: float = PANEL_HEIGHT,
    legend: int = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes under a heading, with room for `legend` entries below.

    `width` and `height` are inches for one panel.
    """
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    total = rows * height + HEADER_INCHES + 0.25 * math.ceil(legend / LEGEND_COLUMNS)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(max(columns * width, MIN_WIDTH), total),
        layout="constrained",
        squeeze=False,
    )
    figure.get_layout_engine().set(
        rect=(0, 0, 1, 1 - HEADER_INCHES / total), w_pad=0.08, h_pad=0.06, wspace=0.03
    )
    figure.text(0.012, 1 - 0.10 / total, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.36 / total, subtitle, va="top", fontsize=9, color=MUTED)
    for axis in axes.flat[panels:]:
        axis.remove()
    return figure, list(axes.flat[:panels])


def empty_figure(title: str, subtitle: str, reason: str) -> Figure:
    """A figure without data, which says why it is empty."""
    figure, (axis,) = new_figure(title, subtitle, 1, height=1.6)
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
    """Colour and marker of a method; stars and crosses are enlarged to look equally heavy."""
    marker = method_marker(method)
    scale = {"*": 1.7, "P": 1.15, "X": 1.15}.get(marker, 1.0)
    return {
        "color": method_color(method),
        "marker": marker,
        "markersize": size * scale,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def reference_line(axis: Axes, value: float) -> None:
    """The dashed line of the full-precision accuracy."""
    axis.axhline(value, color=method_color("fp"), linestyle="--", linewidth=1.2)


def reference_entry() -> Line2D:
    """The legend entry of `reference_line`."""
    style = {"color": method_color("fp"), "linestyle": "--", "linewidth": 1.2}
    return Line2D([], [], **style, label=method_label("fp"))


def draw_mean(
    axis: Axes, method: str, x: list, mean: pd.Series, std: pd.Series, size: float, **options
) -> None:
    """A line through `mean`, with markers of `size` points and a band of one std on each side."""
    axis.plot(x, mean, **marker_style(method, size), **options)
    color = method_color(method)
    axis.fill_between(x, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)


def add_legend(
    figure: Figure, methods: list[str], line: bool = True, extra: Sequence[Line2D] = ()
) -> None:
    """One legend below the panels with every method's colour and marker, then `extra` entries."""
    handles = [
        Line2D(
            [],
            [],
            **marker_style(name, 6.5),
            linestyle="-" if line else "",
            label=method_label(name),
        )
        for name in sorted(methods, key=method_order)
    ]
    figure.legend(
        handles=[*handles, *extra],
        loc="outside lower center",
        ncols=min(LEGEND_COLUMNS, len(handles) + 1),
        columnspacing=1.6,
        handletextpad=0.5,
    )


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
