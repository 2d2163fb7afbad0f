"""The answer to each question: paired differences of two methods, with their intervals."""

import pandas as pd
from matplotlib.axes import Axes

from workflow.comparisons import load_comparisons
from workflow.results import labels
from workflow.results.claims import difference_text
from workflow.results.compare import MARGIN
from workflow.results.plots import style as look
from workflow.results.plots.data import Data, Drawn

COLORS = {"leads": "#009E73", "trails": "#D55E00", "equal": "#0072B2", "undecided": look.MUTED}
"""Colours of the verdicts."""
WIDTH = 9.4  # inches
LEAST_REACH = 1.25  # points that the axis shows to each side
MOST_MEDIANS = 3  # the axis ends at so many times the median reach of the intervals
ROW_HEIGHT = 0.225  # inches
INDENT = "      "
POINTING = {True: ">", False: "<"}  # the marker of a difference above or below 0, beyond the axis


def paired_differences(data: Data) -> Drawn:
    """The row over all settings of each comparison, with its interval, and its single settings."""
    rows = data.claims.dropna(subset="top1_difference_mean")
    if rows.empty:
        return "no two methods that a question compares"
    lines = _lines(rows)
    height = ROW_HEIGHT * len(lines) + 0.5
    figure, (axis,) = look.new_figure(1, width=WIDTH, height=height)
    axis.axvspan(-MARGIN, MARGIN, color=look.GRID, alpha=0.55, linewidth=0, zorder=0)
    axis.axvline(0, color=look.INK, linewidth=0.8)
    reach = _reach(rows[rows["primary"] == "yes"])
    for y, (_, comparison) in enumerate(lines):
        if comparison is not None:
            _draw_comparison(axis, y, comparison, reach)
    axis.set(xlim=(-reach, reach), ylim=(len(lines) - 0.4, -0.6))
    axis.set_xlabel("difference in test top-1, points (above 0: the method is better)")
    _name_lines(axis, [name for name, _ in lines])
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    return figure, f"mean and 95 % interval, paired by start; grey band: ± {MARGIN:g} points"


def _name_lines(axis: Axes, names: list[str]) -> None:
    """The names of the lines, left of the axis and flush left; questions in bold."""
    axis.set_yticks(range(len(names)), names, ha="left")
    for label in axis.get_yticklabels():
        if not label.get_text().startswith(INDENT):
            label.set_fontweight("bold")
    widths = [label.get_window_extent().width for label in axis.get_yticklabels()]
    axis.tick_params("y", length=0, pad=max(widths) * 72 / axis.figure.dpi + 4)


def _lines(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame | None]]:
    """(text, the rows of a comparison; None for a heading), from top to bottom."""
    lines: list[tuple[str, pd.DataFrame | None]] = []
    is_one_dataset = rows["dataset"].nunique() == 1
    questions = {claim.name: claim.question for claim in load_comparisons().claims}
    for (claim, dataset), asked in rows.groupby(["claim", "dataset"], sort=False):
        where = "" if is_one_dataset else f" ({labels.dataset_name(dataset)})"
        lines.append((questions[claim] + where, None))
        for method, mine in asked.groupby("method", sort=False):
            lines.append((f"{INDENT}{labels.method_label(method)} against", None))
            for other, comparison in mine.groupby("other", sort=False):
                lines.append((2 * INDENT + labels.method_label(other), comparison))
    return lines


def _reach(primary: pd.DataFrame) -> float:
    """The end of the axis: all intervals but those that would press the others together."""
    ends = primary[["top1_difference_mean", "top1_difference_low", "top1_difference_high"]]
    reaches = ends.abs().max(axis=1)
    return 1.05 * max(LEAST_REACH, min(reaches.max(), MOST_MEDIANS * reaches.median()))


def _draw_comparison(axis: Axes, y: int, comparison: pd.DataFrame, reach: float) -> None:
    """The primary row as a marker with its interval, single settings as rings, and the numbers."""
    primary = comparison[comparison["primary"] == "yes"].iloc[0]
    color = COLORS[primary["verdict"]]
    single = comparison[comparison["primary"] != "yes"]["top1_difference_mean"]
    rings = {"facecolors": "none", "edgecolors": look.MUTED, "linewidths": 0.8, "zorder": 2}
    edge = 0.985 * reach
    shown = single[single.abs() <= edge]
    if len(shown):
        axis.scatter(shown, [y] * len(shown), s=16, **rings, label="single settings")
    for value in single[single.abs() > edge]:
        axis.scatter([max(-edge, min(edge, value))], [y], s=16, marker=POINTING[value > 0], **rings)
    middle, low, high = (primary[f"top1_difference_{name}"] for name in ("mean", "low", "high"))
    axis.plot([low, high], [y, y], color=color, linewidth=2.2, solid_capstyle="butt", zorder=3)
    is_beyond = abs(middle) > reach
    marker = POINTING[middle > 0] if is_beyond else "o"
    x = max(-edge, min(edge, middle))
    style = {"color": color, "markersize": 6.5, "markeredgecolor": "white"}
    axis.plot([x], [y], marker, **style, markeredgewidth=0.6, zorder=4)
    known = primary.where(primary.notna(), None).to_dict()
    text = f"{difference_text(known)}   n = {primary['n']:.0f}   {primary['verdict']}"
    place = {"transform": axis.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
    axis.text(1.015, y, text, **place, color=color)
