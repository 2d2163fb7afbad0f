"""The plots of exported networks, as SVG and PNG. The same table gives the same bytes.

usage: python -m workflow.results.deployed.plots FOLDER [--out FOLDER/plots]
"""

import argparse
import math
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowbit_core.runtime.errors import run_cli
from workflow.results import labels
from workflow.results.plots import style as look
from workflow.results.plots.accuracy import cost_panels, draw_front
from workflow.results.plots.data import (
    SETTING,
    Drawn,
    drawing_order,
    full_precision,
    note_of,
    read_frame,
)
from workflow.results.record import Record

NO_FILE = "no quantized run was exported"
PANEL_COLUMNS = 4
PANEL_LETTERS = 21  # of a line of a panel's title
MIN_TICKS, MOST_TICKS = 2, 4
LAYER_COLORS = ("#0072B2", "#D55E00", "#009E73")


class Data:
    """What these plots are made from.

    cells: one row for each network, bit-width and method of the main runs, the means over seeds: n,
    top1_mean (on all test images: of the file if it saw them, else after training), file_bytes, ms;
    quantized: those that are not full precision; methods: the runs of the gallery, in the order of
    legends. Raises InputError if a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        rows = read_frame(folder / "table_deploy.csv")
        runs = rows[(rows["role"] == "run") & (rows["export"] == "exported")]
        # Accuracies of a part of the images would differ by chance.
        runs = runs.assign(
            top1=runs["top1"].where(runs["difference"].notna(), runs["top1_training"])
        )
        groups = runs.groupby([*SETTING, "bits", "method"], sort=False)
        self.cells = groups.agg(
            n=("seed", "size"),
            top1_mean=("top1", "mean"),
            file_bytes=("file_bytes", "mean"),
            ms=("ms", "mean"),
        ).reset_index()
        self.quantized = self.cells[self.cells["method"] != "fp"]
        images = sorted(set(runs["images"]))
        self.agreement = runs["agreement"].mean()
        self.images = " or ".join(f"{int(count):,}" for count in images)
        record = Record(folder / "record")
        self.methods = sorted(
            record.gallery["methods"], key=lambda run: labels.method_order(run["method"])
        )
        self.note = note_of(record)


def accuracy_vs_measured(data: Data, column: str, axis_label: str, unit: str) -> Drawn:
    """Accuracy of the files against `column`: a line for each method, and the Pareto front.

    Full precision is one more point, and takes part in the front.
    """
    if data.quantized.empty:
        return NO_FILE

    figure, panels = cost_panels(data, column, unit)
    for axis, shown, cells in panels:
        fp = full_precision(data, cells.iloc[0])
        every = cells if fp is None else pd.concat([cells, fp.to_frame().T])
        draw_front(axis, every[column].astype(float), every["top1_mean"])
        for method in drawing_order(shown):
            mine = shown[shown["method"] == method].sort_values(["w_bits", "a_bits"])
            style = look.marker_style(method, 6.5)
            axis.plot(mine[column], mine["top1_mean"], **{**style, "linewidth": 0.8, "alpha": 0.9})
        if fp is not None:
            style = look.marker_style("fp", 6.5) | {"label": None}
            axis.plot([fp[column]], [fp["top1_mean"]], linestyle="", **style)
        _cost_axis(axis, every[column].astype(float), axis_label, unit)
    share = math.floor(100 * data.agreement) / 100
    return figure, f"mean over seeds; on {data.images} images {share:g} % as in torch"


def _cost_axis(axis: Axes, values: pd.Series, label: str, unit: str) -> None:
    """A logarithmic axis with room at both ends and a few round numbers."""
    low, high = values.min(), values.max()
    margin = (high / low) ** 0.08 * 1.05
    low, high = low / margin, high * margin
    axis.set(xscale="log", xlim=(low, high), xlabel=label)
    ticks = _round_numbers(low, high)
    axis.set_xticks(ticks, [look.si(tick, unit) for tick in ticks])
    axis.minorticks_off()


def _round_numbers(low: float, high: float) -> list[float]:
    """Two to four round numbers between two positive numbers, as many as there are."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [d * 10.0**power for power in range(first, last + 1) for d in digits]
        found = [number for number in found if low <= number <= high]
        if len(found) >= MIN_TICKS:
            break
    return found[:: math.ceil(len(found) / MOST_TICKS) or 1]


# -- gallery ---------------------------------------------------------------------------------


def _method_panels(data: Data, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure, axes = look.new_figure(len(data.methods), PANEL_COLUMNS, width=width, height=height)
    for axis, run in zip(axes, data.methods, strict=True):
        name = textwrap.fill(labels.method_label(run["method"]), PANEL_LETTERS)
        axis.set_title(name, fontsize=9)
        axis.title.set_color(labels.method_color(run["method"]))
    return figure, axes


def _which(data: Data) -> str:
    run = data.methods[0]
    return f"{labels.setting_name(run)}, seed {run['seed']}"


def _draw_levels(axis: Axes, layer: dict, color: str) -> None:
    """The range of a layer's levels by epoch, and the levels of channel 0 at both ends."""
    known = [row for row in layer["epochs"] if None not in row]
    if not known:
        return
    epochs, lowest, highest = zip(*known, strict=True)
    band = {"color": color, "alpha": 0.18, "linewidth": 0}
    axis.fill_between(epochs, lowest, highest, label=layer["layer"], **band)
    for edge in (lowest, highest):
        axis.plot(epochs, edge, color=color, linewidth=1.0)
    mark = {"color": color, "marker": "_", "markersize": 7, "linestyle": ""}
    for epoch, stage in ((epochs[0], "start"), (epochs[-1], "end")):
        axis.plot([epoch] * len(layer[stage]), layer[stage], **mark)


def levels_through_training(data: Data) -> Drawn:
    """The range of the levels of a few layers, epoch by epoch, in a panel for each method."""
    if not data.methods:
        return NO_FILE
    figure, axes = _method_panels(data, 2.3, 2.0)
    for number, (axis, run) in enumerate(zip(axes, data.methods, strict=True)):
        for layer, color in zip(run["levels"], LAYER_COLORS, strict=False):
            _draw_levels(axis, layer, color)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        if number % PANEL_COLUMNS == 0:
            axis.set_ylabel("level")
        axis.set_xlabel("epoch")
    return figure, f"{_which(data)} · band: all channels, dashes: channel 0"


def code_histograms(data: Data) -> Drawn:
    """The share of weights with each code, layer by layer, in a panel for each method."""
    counted = [run for run in data.methods if run["codes"]]
    if not counted:
        return "no exported run has weights of few levels"
    figure, axes = _method_panels(data, 2.3, 1.9)
    for number, (axis, run) in enumerate(zip(axes, data.methods, strict=True)):
        shares = [[count / sum(layer) for count in layer] for _, layer in run["codes"]]
        most = max(map(len, shares), default=0)
        below = [0.0] * len(shares)
        for code in range(most):
            heights = [layer[code] if code < len(layer) else 0.0 for layer in shares]
            color = plt.get_cmap("viridis")(code / max(most - 1, 1))
            label = {0: "lowest level", most - 1: "highest level"}.get(code)
            bars = {"bottom": below, "width": 0.86, "color": color, "linewidth": 0}
            axis.bar(range(1, len(shares) + 1), heights, label=label, **bars)
            below = [low + high for low, high in zip(below, heights, strict=True)]
        axis.set_ylim(0, 1)
        axis.grid(visible=False)
        axis.yaxis.set_major_formatter(look.PERCENT_TICKS)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if number % PANEL_COLUMNS == 0:
            axis.set_ylabel("share of weights")
        axis.set_xlabel("quantized layer")
    return figure, f"{_which(data)} · dark to light: lowest to highest level"


FILE_SIZE = {"column": "file_bytes", "axis_label": "size of the file (log scale)", "unit": "B"}
LATENCY = {"column": "ms", "axis_label": "time of one image (log scale)", "unit": "ms"}
PLOTS: dict[str, tuple[str, Callable[[Data], Drawn]]] = {
    "accuracy_vs_file_size": (
        "Accuracy against the size of the exported file",
        partial(accuracy_vs_measured, **FILE_SIZE),
    ),
    "accuracy_vs_latency": (
        "Accuracy against the measured time of one image",
        partial(accuracy_vs_measured, **LATENCY),
    ),
    "levels_through_training": ("Learned levels through training", levels_through_training),
    "code_histograms": ("Codes of the exported weights", code_histograms),
}
"""File name -> title and function."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", type=Path, help="folder of the plots (FOLDER/plots)")
    args = parser.parse_args(argv)
    data = Data(args.folder)
    look.write_plots(PLOTS, data, args.out or args.folder / "plots")


if __name__ == "__main__":
    run_cli(main)
