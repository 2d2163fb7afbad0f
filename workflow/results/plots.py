"""The plots of a results folder, as SVG and PNG. The same tables give the same bytes.

usage: python -m workflow.results.plots FOLDER [--out FOLDER/plots]
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import run_cli
from workflow.results import labels
from workflow.results import plot_style as look
from workflow.results.columns import TABLES, read_table
from workflow.results.record import Record, representative

NETWORK = ["dataset", "arch"]
SETTING = [*NETWORK, "w_bits", "a_bits"]
NO_RUN = "no finished quantized run"
MOST_COLUMNS = 4  # settings or layers beside each other in a figure of two rows
Drawn = tuple[Figure, str] | str
"""A figure and what it shows, or the reason why there is nothing to draw."""


def read_frame(path: Path) -> pd.DataFrame:
    """A table with NaN for empty numbers, and with `bits` where it has bit-widths."""
    columns = TABLES[path.name]
    numbers = {column.name: float for column in columns if column.kind in ("number", "percent")}
    names = [column.name for column in columns]
    table = pd.DataFrame(read_table(path), columns=names).astype(numbers)
    if "w_bits" in names:
        table["bits"] = list(map(bits_label, table["w_bits"], table["a_bits"]))
    return table


class Data:
    """What the plots are made from; a table with bit-widths also has `bits`, such as W2A2.

    cells: cells of the main table with a finished run, and their cost; quantized: those that are
    not full precision; runs: finished runs of the main sweep; direct: finished runs of the
    direct-weights ablation; channels: one activation error a row. Raises InputError if a table is
    missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        runs, cells = read_frame(folder / "results.csv"), read_frame(folder / "table_main.csv")
        direct, key = read_frame(folder / "ablation_direct_weights.csv"), [*SETTING, "method"]
        self.runs = runs[(runs["role"] == "run") & (runs["status"] == "done")]
        costs = self.runs.groupby(key)[["bitops", "size_bytes"]].mean()
        self.cells = cells[cells["n"] > 0].join(costs, on=key)
        self.quantized = self.cells[self.cells["method"] != "fp"]
        self.direct = direct[direct["status"] == "done"]
        self.channels = read_frame(folder / "ablation_channel_error.csv")
        self.epochs = read_frame(folder / "epochs.csv")
        record = Record(folder / "record")
        self.histograms = record.histograms
        self.note = note_of(record)


def note_of(record: Record) -> str:
    """The suite, for the headings of its plots."""
    note = f"suite: {record.suite}"
    is_paper = labels.is_paper_suite(record.suite)
    return note if is_paper else f"{note}, not comparable with published numbers"


class Cells(Protocol):
    """What a plot of accuracies needs: one row a network, width and method, with `top1_mean`."""

    cells: pd.DataFrame
    quantized: pd.DataFrame


def panel_name(row: pd.Series, of: pd.DataFrame) -> str:
    """The network of a row; its data set too, if the rows of `of` have several."""
    is_one = of["dataset"].nunique() == 1
    return labels.arch_name(row["arch"]) if is_one else labels.network_name(row)


def run_name(run: pd.Series | dict) -> str:
    name = f"{labels.method_label(run['method'])}, {labels.arch_name(run['arch'])}"
    return f"{name}, {bits_label(run['w_bits'], run['a_bits'])}, seed {run['seed']}"


def of_network(table: pd.DataFrame, row: pd.Series | dict) -> pd.DataFrame:
    """The rows of `table` that have the data set and the network of `row`."""
    return table[(table["dataset"] == row["dataset"]) & (table["arch"] == row["arch"])]


def drawing_order(table: pd.DataFrame) -> list[str]:
    """The methods of `table`; the first method of the legend is drawn last, above the others."""
    return sorted(table["method"].unique(), key=labels.method_order, reverse=True)


def full_precision(data: Cells, row: pd.Series) -> pd.Series | None:
    """The full-precision cell of the network of `row`."""
    here = of_network(data.cells, row)
    return next((cell for _, cell in here.iterrows() if cell["method"] == "fp"), None)


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


def accuracy_vs_cost(data: Data, column: str, axis_label: str, unit: str) -> Drawn:
    """Mean accuracy of every method and setting against `column`, with the Pareto front."""
    if data.quantized.empty:
        return NO_RUN

    def heading(cells: pd.DataFrame) -> str:
        name, fp = panel_name(cells.iloc[0], data.quantized), full_precision(data, cells.iloc[0])
        return name if fp is None else f"{name}  (FP: {look.si(fp[column], unit)})"

    figure, panels = accuracy_panels(data, heading)
    grey = {"color": look.MUTED, "linewidth": 1.2, "label": "Pareto front"}
    for axis, shown, cells in panels:
        front = pareto(zip(cells[column], cells["top1_mean"], strict=True))
        axis.step(*zip(*front, strict=True), where="post", zorder=1, **grey)
        look.draw_apart(axis, shown, column)
        low, high = cells[column].min(), cells[column].max()
        margin = (high / low) ** 0.15 * 1.05
        axis.set(xscale="log", xlim=(low / margin, high * margin), xlabel=axis_label)
        ticks = cells.groupby("bits")[column].mean()
        axis.set_xticks(ticks, [f"{bits}\n{look.si(cost, unit)}" for bits, cost in ticks.items()])
        axis.minorticks_off()
    return figure, "test top-1, mean over seeds, markers set apart sideways"


def channel_error_heatmap(data: Data) -> Drawn:
    """Error of each channel, channel-aware over equal weighting, in one strip for each layer."""
    # A dead channel has no error; one that equal weighting represents exactly has no ratio.
    measured = data.channels[data.channels["error_equal"] > 0]
    if measured.empty:
        return "no run measured its channels"
    first = min(measured["method"].unique(), key=labels.method_order)
    runs = measured[measured["method"] == first].drop_duplicates("run_id")
    run = representative(runs.to_dict("records"))
    mine = measured[measured["run_id"] == run["run_id"]]
    layers = list(mine["layer"].unique())
    mine = mine.sort_values(["variance", "channel"])
    mine = mine.assign(ratio=mine["error_inverse_variance"] / mine["error_equal"])
    figure, (axis,) = look.new_figure(1, width=8.6, height=max(2.4, 0.27 * len(layers) + 1.0))
    reach = max(0.1, float((mine["ratio"] - 1).abs().quantile(0.98)))
    norm = TwoSlopeNorm(1.0, max(0.0, 1 - reach), 1 + reach)
    for row, layer in enumerate(layers):
        ratio = mine[mine["layer"] == layer]["ratio"].to_numpy()
        strip = {"extent": (0, 1, row + 0.44, row - 0.44), "interpolation": "nearest"}
        image = axis.imshow(ratio[None, :], aspect="auto", cmap="RdBu_r", norm=norm, **strip)
        axis.text(1.012, row, f"{100 * (ratio < 1).mean():.0f} %", va="center", fontsize=8.5)
    axis.text(1.012, -0.78, "better", va="center", fontsize=8.5, color=look.MUTED)
    axis.set(ylim=(len(layers) - 0.5, -0.5), xlim=(0, 1))
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set_xticks([0, 1], ["lowest variance", "highest variance"])
    for label, side in zip(axis.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)
    axis.set_xlabel("channels of the layer, sorted by variance")
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axis, pad=0.10, fraction=0.035, extend="both")
    bar.set_label("error, channel-aware / equal\n(below 1: better)")
    bar.outline.set_visible(False)
    return figure, run_name(run)


def draw_histogram(axis: Axes, histogram: dict, color: str) -> None:
    """The share of weights in each of the equal bins of [-span, span], and the levels."""
    counts, span = histogram["counts"], histogram["span"]
    edges = [span * (2 * i / len(counts) - 1) for i in range(len(counts) + 1)]
    share = [count / max(sum(counts), 1) for count in counts]
    axis.stairs(share, edges, fill=True, color=color, alpha=0.45, linewidth=0)
    axis.stairs(share, edges, color=color, linewidth=1.0)
    for level in histogram["levels"]:
        axis.axvline(level, color=look.INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axis.grid(axis="x", visible=False)
    axis.yaxis.set_major_formatter(look.PERCENT_TICKS)
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.xaxis.set_major_locator(MaxNLocator(5))


def weight_histograms(data: Data) -> Drawn:
    """Latent weights of a few layers of one run before and after training."""
    layers = list(data.histograms["layers"].items())[:MOST_COLUMNS]
    if not layers:
        return "no run kept its weights"
    run = data.runs[data.runs["run_id"] == data.histograms["run_id"]].iloc[0]
    figure, axes = look.new_figure(2 * len(layers), len(layers), width=3.0, height=1.9)
    for column, (layer, histograms) in enumerate(layers):
        reach = 1.05 * max(histogram["span"] for histogram in histograms.values())
        for stage, axis in zip(("start", "end"), axes[column :: len(layers)], strict=True):
            draw_histogram(axis, histograms[stage], labels.method_color(run["method"]))
            axis.set_xlim(-reach, reach)
            if column == 0:
                axis.set_ylabel(f"{stage}\nshare of weights")
        axes[column].set_title(layer, fontsize=9)
        axis.set_xlabel("latent weight\n(dashed: levels of channel 0)")
    return figure, run_name(run)


def epochs_of(data: Data, runs: pd.DataFrame) -> pd.DataFrame:
    """The epochs of some runs, with the setting and method of each."""
    return data.epochs.merge(runs[["run_id", *SETTING, "bits", "method"]], on="run_id")


def draw_curves(axis: Axes, table: pd.DataFrame, column: str) -> None:
    """Mean of `column` over seeds for every epoch and method, with a band of one std."""
    known = table.dropna(subset=column)
    for name in drawing_order(known):
        curve = known[known["method"] == name].groupby("epoch")[column].agg(["mean", "std"])
        marks = {"size": 5.5, "markevery": max(1, len(curve) // 8)}
        look.draw_mean(axis, name, curve.index, curve["mean"], curve["std"], **marks)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def curves_by_family(table: pd.DataFrame, curves: dict[str, str]) -> Figure:
    """Curves {column: what it is}, one below the other, with a panel for each family of methods."""
    groups = look.method_groups(table["method"])
    figure, blocks = look.new_blocks(list(curves.values()), groups)
    for axes, column in zip(blocks, curves, strict=True):
        for axis, methods in zip(axes, groups.values(), strict=True):
            draw_curves(axis, table[table["method"].isin([*methods, "fp"])], column)
            axis.set_xlabel("epoch")
            if column == "flip_rate":
                axis.yaxis.set_major_formatter(look.PERCENT_TICKS)
        limits = [axis.get_ylim() for axis in axes]
        for axis in axes:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


def training_curves(data: Data) -> Drawn:
    """Validation accuracy and training loss of all methods at one representative setting."""
    run = representative(data.runs[data.runs["method"] != "fp"].to_dict("records"))
    if run is None:
        return NO_RUN
    here = of_network(data.runs, run)
    chosen = here[(here["bits"] == run["bits"]) | (here["method"] == "fp")]
    table = epochs_of(data, chosen).dropna(subset="val_top1")
    titles = {"val_top1": "validation top-1 (%)", "train_loss": "training loss"}
    if len(look.method_groups(table["method"])) == 1:
        figure, axes = look.new_figure(2, width=4.9, height=3.2)
        for axis, (column, title) in zip(axes, titles.items(), strict=True):
            draw_curves(axis, table, column)
            axis.set(title=title, xlabel="epoch")
    else:
        figure = curves_by_family(table, titles)
    seeds = chosen["seed"].nunique()
    return figure, f"{labels.setting_name(run)}, n = {seeds}, band ± one std"


WEIGHT_CURVES = {
    "mismatch": "||latent − used||² / ||used||²",
    "flip_rate": "codes changed an epoch",
    "level_span": "span of the levels\n(before training: 1)",
}


def two_rows(settings: list[tuple[str, pd.DataFrame]], curves: tuple[str, str]) -> Figure:
    """Two weight curves below each other for each setting (heading, epochs of its runs)."""
    settings = settings[:MOST_COLUMNS]
    figure, axes = look.new_figure(2 * len(settings), len(settings), width=3.1, height=2.4)
    for index, (heading, table) in enumerate(settings):
        column = axes[index :: len(settings)]
        for axis, curve in zip(column, curves, strict=True):
            draw_curves(axis, table, curve)
            if curve != "level_span":
                axis.set_ylim(bottom=0)
            if curve == "flip_rate":
                axis.yaxis.set_major_formatter(look.PERCENT_TICKS)
            if index == 0:
                axis.set_ylabel(WEIGHT_CURVES[curve])
        lows, highs = zip(*(axis.get_xlim() for axis in column), strict=True)
        for axis in column:  # the flip rate starts an epoch later than what is beside it
            axis.set_xlim(min(lows), max(highs))
        column[0].set_title(heading)
        column[1].set_xlabel("epoch")
    return figure


def mismatch(data: Data) -> Drawn:
    """Distance of latent and used weights, and flips of codes, in the direct-weights ablation."""
    if data.direct.empty:
        return "no run of the direct-weights ablation"
    settings = [
        (f"{panel_name(table.iloc[0], data.direct)}, {table['bits'].iloc[0]}", table)
        for _, table in epochs_of(data, data.direct).groupby(SETTING)
    ]
    figure = two_rows(settings, ("mismatch", "flip_rate"))
    return figure, "mean over layers and seeds, band ± one std"


def levels_and_flips(data: Data) -> Drawn:
    """Flips of codes and spans of levels of every method, for one representative network."""
    quantized = data.runs[data.runs["w_bits"] != FLOAT_BITS]
    run = representative(quantized.to_dict("records"))
    if run is None:
        return NO_RUN
    table, curves = epochs_of(data, of_network(quantized, run)), ("flip_rate", "level_span")
    where, text = labels.network_name(run), "mean over layers and seeds, band ± one std"
    if len(look.method_groups(table["method"])) == 1:
        groups = table.groupby(["w_bits", "a_bits"])
        settings = [(mine["bits"].iloc[0], mine) for _, mine in groups]
        return two_rows(settings, curves), f"{where}, {text}"
    where = labels.setting_name(run)
    shown = table[(table["w_bits"] == run["w_bits"]) & (table["a_bits"] == run["a_bits"])]
    return curves_by_family(
        shown, {name: WEIGHT_CURVES[name] for name in curves}
    ), f"{where}, {text}"


BITOPS = {"column": "bitops", "axis_label": "bit operations an image (log scale)", "unit": ""}
SIZE = {"column": "size_bytes", "axis_label": "stored size (log scale)", "unit": "B"}
PLOTS: dict[str, tuple[str, Callable[[Data], Drawn]]] = {
    "accuracy_vs_bits": ("Accuracy against bit-width", accuracy_vs_bits),
    "accuracy_vs_bitops": ("Accuracy against bit operations", partial(accuracy_vs_cost, **BITOPS)),
    "accuracy_vs_size": ("Accuracy against model size", partial(accuracy_vs_cost, **SIZE)),
    "channel_error_heatmap": ("Channel-aware against equal weighting", channel_error_heatmap),
    "weight_histograms": ("Weights and levels before and after training", weight_histograms),
    "training_curves": ("Training curves", training_curves),
    "levels_and_flips": ("How codes and levels move during training", levels_and_flips),
    "mismatch": ("Distance between trained and used weights", mismatch),
}
"""File name -> title and function."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", type=Path, help="folder of the plots (FOLDER/plots)")
    args = parser.parse_args(argv)
    look.write_plots(PLOTS, Data(args.folder), args.out or args.folder / "plots")


if __name__ == "__main__":
    run_cli(main)
