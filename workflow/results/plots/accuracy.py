"""Accuracy of every method and setting: against bit-width, and against cost."""

from collections.abc import Callable, Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflow.results import labels
from workflow.results.plots import style as look
from workflow.results.plots.data import (
    NETWORK,
    NO_RUN,
    Cells,
    Data,
    Drawn,
    drawing_order,
    full_precision,
    panel_name,
)

BITOPS = {"column": "bitops", "axis_label": "bit operations an image (log scale)", "unit": ""}
SIZE = {"column": "size_bytes", "axis_label": "stored size (log scale)", "unit": "B"}


def accuracy_panels(
    data: Cells, heading: Callable[[pd.DataFrame], str]
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame, pd.DataFrame]]]:
    """A figure, and (axis, cells that it shows, all quantized cells of its network) of each panel.

    Each network has one panel, or one for each family of methods. The panels have what all accuracy
    plots share: names (`heading` of a network's cells), limits and the full-precision line.
    """
    networks = [cells for _, cells in data.quantized.groupby(NETWORK)]
    groups = look.method_groups(data.quantized["method"])
    figure, blocks = look.new_blocks(list(map(heading, networks)), groups, "test top-1 (%)")
    panels = []
    for axes, cells in zip(blocks, networks, strict=True):
        fp = full_precision(data, cells.iloc[0])
        top = (
            cells["top1_mean"].max()
            if fp is None
            else max(cells["top1_mean"].max(), fp["top1_mean"])
        )
        for axis, methods in zip(axes, groups.values(), strict=True):
            if fp is not None:
                style = {"color": labels.method_color("fp"), "linestyle": "--", "linewidth": 1.2}
                axis.axhline(fp["top1_mean"], label=labels.method_label("fp"), **style)
            look.accuracy_limits(axis, cells["top1_mean"], top)
            panels.append((axis, cells[cells["method"].isin(methods)], cells))
    return figure, panels


def accuracy_vs_bits(data: Data) -> Drawn:
    """Mean accuracy of every method by bit-width, with a band of one standard deviation."""
    if data.quantized.empty:
        return NO_RUN

    def heading(cells: pd.DataFrame) -> str:
        return f"{panel_name(cells.iloc[0], data.quantized)}  (n = {cells['n'].max()})"

    figure, panels = accuracy_panels(data, heading)
    columns = list(data.quantized.sort_values(["w_bits", "a_bits"])["bits"].unique())
    for axis, cells, _ in panels:
        for method in drawing_order(cells):
            mine = cells[cells["method"] == method].sort_values(["w_bits", "a_bits"])
            x = list(map(columns.index, mine["bits"]))
            look.draw_mean(axis, method, x, mine["top1_mean"], mine["top1_std"], size=7)
        axis.set_xticks(range(len(columns)), columns)
        axis.set_xlim(-0.25, len(columns) - 0.75)
        axis.grid(axis="x", visible=False)
    return figure, "test top-1, mean over seeds, band ± one std"


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that no point of the same or lower cost beats, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def cost_panels(
    data: Cells, column: str, unit: str
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame, pd.DataFrame]]]:
    """`accuracy_panels` whose names say what full precision has in `column`."""

    def heading(cells: pd.DataFrame) -> str:
        name, fp = panel_name(cells.iloc[0], data.quantized), full_precision(data, cells.iloc[0])
        return name if fp is None else f"{name}  (FP: {look.si(fp[column], unit)})"

    return accuracy_panels(data, heading)


def draw_front(axis: Axes, costs: pd.Series, values: pd.Series) -> None:
    """The Pareto front of (cost, value) points as grey steps."""
    grey = {"color": look.MUTED, "linewidth": 1.2, "label": "Pareto front"}
    front = pareto(zip(costs, values, strict=True))
    axis.step(*zip(*front, strict=True), where="post", zorder=1, **grey)


def accuracy_vs_cost(data: Data, column: str, axis_label: str, unit: str) -> Drawn:
    """Mean accuracy of every method and setting against `column`, with the Pareto front."""
    if data.quantized.empty:
        return NO_RUN

    figure, panels = cost_panels(data, column, unit)
    for axis, shown, cells in panels:
        draw_front(axis, cells[column], cells["top1_mean"])
        look.draw_apart(axis, shown, column)
        low, high = cells[column].min(), cells[column].max()
        margin = (high / low) ** 0.15 * 1.05
        axis.set(xscale="log", xlim=(low / margin, high * margin), xlabel=axis_label)
        ticks = cells.groupby("bits")[column].mean()
        axis.set_xticks(ticks, [f"{bits}\n{look.si(cost, unit)}" for bits, cost in ticks.items()])
        axis.minorticks_off()
    return figure, "test top-1, mean over seeds, markers set apart sideways"
