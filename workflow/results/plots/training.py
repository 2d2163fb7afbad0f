"""Curves through training: accuracy, loss, and how codes and levels move."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowbit_core.quantizers.bits import FLOAT_BITS
from workflow.results import labels
from workflow.results.plots import style as look
from workflow.results.plots.data import (
    MOST_COLUMNS,
    NO_RUN,
    SETTING,
    Data,
    Drawn,
    drawing_order,
    of_network,
    panel_name,
)
from workflow.results.record import representative

WEIGHT_CURVES = {
    "mismatch": "||latent − used||² / ||used||²",
    "flip_rate": "codes changed an epoch",
    "level_span": "span of the levels\n(before training: 1)",
}


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
    if table["epoch"].nunique() == 1:
        return "no curve: every run has one epoch"
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
