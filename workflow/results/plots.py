"""The plots of a suite, as SVG and PNG. The same tables give the same bytes."""

import argparse
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from baselines import METHODS
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import run_cli
from lowbit_core.runtime.files import replace_file
from workflow.results.checked import check_table
from workflow.results.collect import (
    CHANNEL_COLUMNS,
    DIRECT_COLUMNS,
    DIRECT_FAMILY,
    EPOCH_COLUMNS,
    read_json,
    representative,
)
from workflow.results.tables import (
    ARCHS,
    DATASETS,
    PAPER_SUITES,
    column_order,
    method_order,
    read_results,
)

INK, MUTED, GRID = "#1f2933", "#66717e", "#dde2e8"
"""Text, secondary text and grid; the report swaps them for the colours of its theme."""
PANEL_WIDTH, PANEL_HEIGHT, MAX_COLUMNS = 3.3, 3.0, 3
HEADER_INCHES = 0.62
MIN_WIDTH = 8.2  # the longest heading and a legend of four columns fit

STYLE = {
    "svg.hashsalt": "lowbit-bench",
    "svg.fonttype": "path",
    "savefig.dpi": 144,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.titlecolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


def new_figure(
    title: str,
    subtitle: str,
    panels: int,
    *,
    columns: int = MAX_COLUMNS,
    width: float = PANEL_WIDTH,
    height: float = PANEL_HEIGHT,
    legend_rows: int = 1,
) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` axes under a heading; sizes in inches a panel."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    total = rows * height + HEADER_INCHES + 0.25 * legend_rows
    wide = max(columns * width, MIN_WIDTH)
    figure, axes = plt.subplots(
        rows, columns, figsize=(wide, total), layout="constrained", squeeze=False
    )
    figure.get_layout_engine().set(
        rect=(0, 0, 1, 1 - HEADER_INCHES / total), w_pad=0.08, h_pad=0.06, wspace=0.03
    )
    figure.text(0.012, 1 - 0.10 / total, title, va="top", fontsize=12, fontweight="bold")
    figure.text(0.012, 1 - 0.36 / total, subtitle, va="top", fontsize=9, color=MUTED)
    for axis in axes.flat[panels:]:
        axis.remove()
    return figure, list(axes.flat[:panels])


def save(figure: Figure, out: Path, name: str) -> None:
    """Write `name`.svg and `name`.png without dates, each in one step."""
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        with replace_file(out / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata=metadata)
    plt.close(figure)


def save_empty(out: Path, name: str, title: str, suite: str, reason: str) -> None:
    """A plot without data still is a file, and says why it is empty."""
    figure, (axis,) = new_figure(title, suite_note(suite), 1, height=1.6, legend_rows=0)
    axis.axis("off")
    axis.text(0.5, 0.5, reason, ha="center", va="center", color=MUTED)
    save(figure, out, name)


def suite_note(suite: str) -> str:
    if suite in PAPER_SUITES:
        return f"suite: {suite}"
    return f"suite: {suite}, not comparable with published numbers"


PERCENT_TICKS = FuncFormatter(lambda share, _: f"{100 * share:g}%")


def si(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: 41200000 -> `41.2 M`."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".strip()


def dot(method: str, size: float) -> dict:
    """Colour and marker of a method; stars and crosses are drawn larger to weigh the same."""
    marker = METHODS[method].marker
    scale = {"*": 1.7, "P": 1.15, "X": 1.15}.get(marker, 1.0)
    return {
        "color": METHODS[method].color,
        "marker": marker,
        "markersize": size * scale,
        "markeredgecolor": "white",
        "markeredgewidth": 0.6,
    }


def setting_title(dataset: str, arch: str, many_datasets: bool) -> str:
    name = ARCHS.get(arch, arch)
    return f"{DATASETS.get(dataset, dataset)}, {name}" if many_datasets else name


def add_legend(figure: Figure, methods: list[str], line: bool = True, extra: tuple = ()) -> None:
    """One legend under the panels: every method's colour and marker."""
    handles = [
        Line2D([], [], **dot(name, 6.5), linestyle="-" if line else "", label=METHODS[name].label)
        for name in sorted(methods, key=method_order)
    ]
    figure.legend(
        handles=[*handles, *extra],
        loc="outside lower center",
        ncols=min(4, len(handles) + 1),
        columnspacing=1.6,
        handletextpad=0.5,
    )


def legend_rows(methods: list[str], extra: int = 0) -> int:
    return math.ceil((len(methods) + extra) / 4)


FP_LINE = Line2D(
    [], [], color=METHODS["fp"].color, linestyle="--", linewidth=1.2, label=METHODS["fp"].label
)


def done_runs(results: pd.DataFrame) -> pd.DataFrame:
    """Finished runs of the main sweep, with their bit label."""
    runs = results[(results["role"] == "run") & (results["status"] == "done")].copy()
    runs["bits"] = [bits_label(w, a) for w, a in zip(runs["w_bits"], runs["a_bits"], strict=True)]
    return runs


def ordered_bits(runs: pd.DataFrame) -> list[str]:
    """Bit labels from few to many, without full precision."""
    pairs = set(zip(runs["w_bits"], runs["a_bits"], strict=True)) - {(FLOAT_BITS, FLOAT_BITS)}
    return [bits_label(*pair) for pair in sorted(pairs, key=lambda pair: column_order(*pair))]


def keep_in_view(axis: Axes, values: pd.Series, top: float) -> None:
    """Limit y so that a collapsed run does not flatten the rest; say what is off scale."""
    floor = max(values.min(), top - max(4 * (top - values.median()), 10))
    below = int((values < floor).sum())
    floor = values[values >= floor].min()
    pad = 0.06 * max(top - floor, 1)
    axis.set_ylim(floor - pad, top + pad)
    if below:
        axis.text(
            0.98,
            0.02,
            f"{below} below the scale",
            transform=axis.transAxes,
            ha="right",
            va="bottom",
            fontsize=8,
            color=MUTED,
        )


def accuracy_vs_bits(results: pd.DataFrame, suite: str, out: Path) -> None:
    title = "Accuracy against bit-width"
    runs = done_runs(results)
    quantized = runs[runs["method"] != "fp"]
    if quantized.empty:
        save_empty(out, "accuracy_vs_bits", title, suite, "no finished quantized run")
        return
    methods, labels = list(quantized["method"].unique()), ordered_bits(quantized)
    panels = list(quantized.groupby(["dataset", "arch"]))
    many = quantized["dataset"].nunique() > 1
    figure, axes = new_figure(
        title,
        f"test top-1, mean over seeds, band ± one std · {suite_note(suite)}",
        len(panels),
        legend_rows=legend_rows(methods, 1),
    )
    for axis, ((dataset, arch), group) in zip(axes, panels, strict=True):
        for name in sorted(group["method"].unique(), key=method_order, reverse=True):
            mine = group[group["method"] == name]
            stats = (
                mine.groupby("bits")["top1"]
                .agg(["mean", "std"])
                .reindex(labels)
                .dropna(subset="mean")
            )
            x = [labels.index(label) for label in stats.index]
            axis.plot(x, stats["mean"], **dot(name, 7))
            axis.fill_between(
                x,
                stats["mean"] - stats["std"],
                stats["mean"] + stats["std"],
                color=METHODS[name].color,
                alpha=0.16,
                linewidth=0,
            )
        fp = runs[(runs["method"] == "fp") & (runs["dataset"] == dataset) & (runs["arch"] == arch)][
            "top1"
        ]
        top = group["top1"].max()
        if len(fp):
            axis.axhline(fp.mean(), color=METHODS["fp"].color, linestyle="--", linewidth=1.2)
            top = max(top, fp.mean())
        keep_in_view(axis, group["top1"], top)
        seeds = group["seed"].nunique()
        axis.set_title(f"{setting_title(dataset, arch, many)}  (n = {seeds})")
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlim(-0.25, len(labels) - 0.75)
        axis.grid(axis="x", visible=False)
        axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    for axis in axes[::MAX_COLUMNS]:
        axis.set_ylabel("test top-1 (%)")
    add_legend(figure, methods, extra=(FP_LINE,))
    save(figure, out, "accuracy_vs_bits")


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that no cheaper or equally cheap point beats, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def accuracy_vs_cost(
    results: pd.DataFrame,
    suite: str,
    out: Path,
    column: str,
    name: str,
    title: str,
    axis_label: str,
    unit: str,
) -> None:
    """Mean accuracy of every method and setting against `column`, with the Pareto front."""
    runs = done_runs(results)
    quantized = runs[runs["method"] != "fp"]
    if quantized.empty:
        save_empty(out, name, title, suite, "no finished quantized run")
        return
    methods = list(quantized["method"].unique())
    panels = list(quantized.groupby(["dataset", "arch"]))
    many = quantized["dataset"].nunique() > 1
    front_line = Line2D([], [], color=MUTED, linewidth=1.2, label="Pareto front")
    figure, axes = new_figure(
        title,
        f"test top-1, mean over seeds · {suite_note(suite)}",
        len(panels),
        legend_rows=legend_rows(methods, 2),
    )
    for axis, ((dataset, arch), group) in zip(axes, panels, strict=True):
        stats = group.groupby(["method", "bits"]).agg(top1=("top1", "mean"), cost=(column, "mean"))
        front = pareto(list(zip(stats["cost"], stats["top1"], strict=True)))
        axis.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1.2, zorder=1)
        for (method, _), point in stats.sort_values("top1").iterrows():
            axis.plot(point["cost"], point["top1"], **dot(method, 8), linestyle="")
        fp = runs[(runs["method"] == "fp") & (runs["dataset"] == dataset) & (runs["arch"] == arch)]
        top = stats["top1"].max()
        heading = setting_title(dataset, arch, many)
        if len(fp):
            axis.axhline(
                fp["top1"].mean(), color=METHODS["fp"].color, linestyle="--", linewidth=1.2
            )
            top = max(top, fp["top1"].mean())
            heading += f"  (FP: {si(fp[column].mean(), unit)})"
        keep_in_view(axis, stats["top1"], top)
        axis.set_title(heading)
        axis.set_xscale("log")
        low, high = stats["cost"].min(), stats["cost"].max()
        axis.set_xlim(low / (high / low) ** 0.15 / 1.05, high * (high / low) ** 0.15 * 1.05)
        ticks = stats.groupby("bits")["cost"].mean()
        axis.set_xticks(ticks, [f"{label}\n{si(cost, unit)}" for label, cost in ticks.items()])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    for axis in axes[::MAX_COLUMNS]:
        axis.set_ylabel("test top-1 (%)")
    for axis in axes[-MAX_COLUMNS:]:
        axis.set_xlabel(axis_label)
    add_legend(figure, methods, line=False, extra=(FP_LINE, front_line))
    save(figure, out, name)


def run_title(run: dict) -> str:
    return (
        f"{METHODS[run['method']].label}, {ARCHS.get(run['arch'], run['arch'])}, "
        f"{bits_label(run['w_bits'], run['a_bits'])}, seed {run['seed']}"
    )


def channel_error_heatmap(errors: pd.DataFrame, suite: str, out: Path) -> None:
    name = "channel_error_heatmap"
    title = "Channel-aware against equal weighting, channel by channel"
    direct = errors[errors["method"] == "direct"].dropna(subset=["error_equal"])
    direct = direct[direct["error_equal"] > 0]
    run = representative(direct.drop_duplicates("run_id").to_dict("records"))
    if run is None:
        save_empty(out, name, title, suite, "no run of the direct method measured its channels")
        return
    mine = direct[direct["run_id"] == run["run_id"]]
    layers = list(dict.fromkeys(mine["layer"]))
    figure, (axis,) = new_figure(
        title,
        f"{run_title(run)} · {suite_note(suite)}",
        1,
        width=8.6,
        height=max(2.4, 0.27 * len(layers) + 1.0),
        legend_rows=0,
    )
    ratios = mine["error_inverse_variance"] / mine["error_equal"]
    reach = max(0.1, float((ratios - 1).abs().quantile(0.98)))
    norm = TwoSlopeNorm(1.0, max(0.0, 1 - reach), 1 + reach)
    for row, layer in enumerate(layers):
        channels = mine[mine["layer"] == layer].sort_values(["variance", "channel"])
        ratio = (channels["error_inverse_variance"] / channels["error_equal"]).to_numpy()
        image = axis.imshow(
            ratio[None, :],
            extent=(0, 1, row + 0.44, row - 0.44),
            aspect="auto",
            cmap="RdBu_r",
            norm=norm,
            interpolation="nearest",
        )
        axis.text(1.012, row, f"{100 * (ratio < 1).mean():.0f} %", va="center", fontsize=8.5)
    axis.text(1.012, -0.78, "better", va="center", fontsize=8.5, color=MUTED)
    axis.set_ylim(len(layers) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set_xticks([0, 1], ["lowest variance", "highest variance"])
    axis.get_xticklabels()[0].set_horizontalalignment("left")
    axis.get_xticklabels()[1].set_horizontalalignment("right")
    axis.set_xlabel("channels of the layer, sorted by variance")
    axis.grid(visible=False)
    axis.tick_params(length=0)
    sns.despine(ax=axis, left=True, bottom=True)
    bar = figure.colorbar(image, ax=axis, pad=0.10, fraction=0.035, extend="both")
    bar.set_label("error, channel-aware / equal\n(below 1: better)")
    bar.outline.set_visible(False)
    save(figure, out, name)


def weight_histograms(results: pd.DataFrame, histograms: dict, suite: str, out: Path) -> None:
    name, title = "weight_histograms", "Weights and learned levels, start and end of training"
    layers = histograms["layers"]
    if not layers:
        save_empty(out, name, title, suite, "no run of the direct method kept its weights")
        return
    run = results[results["run_id"] == histograms["run_id"]].iloc[0]
    shown = list(layers.items())[:4]
    figure, axes = new_figure(
        title,
        f"{run_title(run)} · {suite_note(suite)}",
        2 * len(shown),
        columns=len(shown),
        width=3.0,
        height=1.9,
        legend_rows=0,
    )
    color = METHODS["direct"].color
    for column, (layer, histogram) in enumerate(shown):
        reach = max(histogram[stage]["span"] for stage in ("start", "end"))
        for row, stage in enumerate(("start", "end")):
            axis = axes[row * len(shown) + column]
            counts, span = histogram[stage]["counts"], histogram[stage]["span"]
            edges = [span * (2 * i / len(counts) - 1) for i in range(len(counts) + 1)]
            share = [count / max(sum(counts), 1) for count in counts]
            axis.stairs(share, edges, fill=True, color=color, alpha=0.45, linewidth=0)
            axis.stairs(share, edges, color=color, linewidth=1.0)
            for level in histogram[stage]["levels"]:
                axis.axvline(level, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
            axis.set_xlim(-1.05 * reach, 1.05 * reach)
            axis.grid(axis="x", visible=False)
            axis.yaxis.set_major_formatter(PERCENT_TICKS)
            axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.set_title(layer if row == 0 else "", fontsize=9)
            if row:
                axis.set_xlabel("latent weight\n(dashed: levels of channel 0)")
            if column == 0:
                axis.set_ylabel(f"{stage}\nshare of weights")
    save(figure, out, name)


def epochs_of(epochs: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The epochs of some runs, with each run's method, bits and seed."""
    columns = ["run_id", "dataset", "arch", "w_bits", "a_bits", "method", "seed"]
    return epochs.merge(rows[columns], on="run_id")


def draw_curves(axis: Axes, table: pd.DataFrame, column: str) -> None:
    """Mean of `column` over seeds for every epoch and method, band ± one std."""
    for name in sorted(table["method"].unique(), key=method_order, reverse=True):
        curve = table[table["method"] == name].groupby("epoch")[column].agg(["mean", "std"])
        axis.plot(curve.index, curve["mean"], **dot(name, 5.5), markevery=max(1, len(curve) // 8))
        axis.fill_between(
            curve.index,
            curve["mean"] - curve["std"],
            curve["mean"] + curve["std"],
            color=METHODS[name].color,
            alpha=0.15,
            linewidth=0,
        )
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("epoch")


def training_curves(results: pd.DataFrame, epochs: pd.DataFrame, suite: str, out: Path) -> None:
    name, title = "training_curves", "Training curves"
    done = done_runs(results)
    run = representative(done[done["method"] != "fp"].to_dict("records"))
    if run is None:
        save_empty(out, name, title, suite, "no finished quantized run")
        return
    here = done[(done["dataset"] == run["dataset"]) & (done["arch"] == run["arch"])]
    same_bits = (here["w_bits"] == run["w_bits"]) & (here["a_bits"] == run["a_bits"])
    chosen = here[same_bits | (here["method"] == "fp")]
    methods = list(chosen["method"].unique())
    table = epochs_of(epochs, chosen).dropna(subset="val_top1")
    figure, axes = new_figure(
        title,
        f"{ARCHS.get(run['arch'], run['arch'])}, {run['bits']}, n = {chosen['seed'].nunique()},"
        f" band ± one std · {suite_note(suite)}",
        2,
        width=4.9,
        height=3.2,
        legend_rows=legend_rows(methods),
    )
    labels = (("val_top1", "validation top-1 (%)"), ("train_loss", "training loss"))
    for axis, (column, label) in zip(axes, labels, strict=True):
        draw_curves(axis, table, column)
        axis.set_title(label)
    add_legend(figure, methods)
    save(figure, out, name)


def mismatch(direct: pd.DataFrame, epochs: pd.DataFrame, suite: str, out: Path) -> None:
    name = "mismatch"
    title = "Distance between the weights that are trained and the weights that are used"
    done = direct[direct["status"] == "done"]
    if done.empty:
        save_empty(out, name, title, suite, "no run of the direct-weights ablation")
        return
    table = epochs_of(epochs, done)
    columns = ["dataset", "arch", "w_bits", "a_bits"]
    settings = list(table.groupby(columns))[:4]
    many = done["dataset"].nunique() > 1
    methods = [m for m in DIRECT_FAMILY if m in set(table["method"])]
    figure, axes = new_figure(
        title,
        f"mean over layers and seeds, band ± one std · {suite_note(suite)}",
        2 * len(settings),
        columns=len(settings),
        width=3.1,
        height=2.3,
    )
    for index, ((dataset, arch, w_bits, a_bits), group) in enumerate(settings):
        above, below = axes[index], axes[len(settings) + index]
        draw_curves(above, group, "mismatch")
        draw_curves(below, group.dropna(subset=["flip_rate"]), "flip_rate")
        above.set_title(f"{setting_title(dataset, arch, many)}, {bits_label(w_bits, a_bits)}")
        above.set_xlabel("")
        above.set_ylim(bottom=0)
        below.set_ylim(bottom=0)
        below.set_xlim(above.get_xlim())
        below.yaxis.set_major_formatter(PERCENT_TICKS)
        if index == 0:
            above.set_ylabel("||latent − used||² / ||used||²")
            below.set_ylabel("codes changed an epoch")
    add_legend(figure, methods)
    save(figure, out, name)


def levels_and_flips(results: pd.DataFrame, epochs: pd.DataFrame, suite: str, out: Path) -> None:
    """Where a method stands still or runs away: code flips and level spans, every method."""
    name, title = "levels_and_flips", "How codes and levels move while each method trains"
    done = done_runs(results)
    quantized = done[done["w_bits"] != FLOAT_BITS]
    run = representative(quantized.to_dict("records"))
    if run is None:
        save_empty(out, name, title, suite, "no finished quantized run")
        return
    here = quantized[(quantized["dataset"] == run["dataset"]) & (quantized["arch"] == run["arch"])]
    table = epochs_of(epochs, here)
    settings = sorted(table.groupby(["w_bits", "a_bits"]), key=lambda s: column_order(*s[0]))[:4]
    methods = list(here["method"].unique())
    figure, axes = new_figure(
        title,
        f"{setting_title(run['dataset'], run['arch'], True)}, mean over layers and seeds, band "
        f"± one std · {suite_note(suite)}",
        2 * len(settings),
        columns=len(settings),
        width=3.1,
        height=2.4,
        legend_rows=legend_rows(methods),
    )
    for index, (bits, group) in enumerate(settings):
        above, below = axes[index], axes[len(settings) + index]
        draw_curves(above, group.dropna(subset=["flip_rate"]), "flip_rate")
        draw_curves(below, group.dropna(subset=["level_span"]), "level_span")
        above.set_title(bits_label(*bits))
        above.set_xlabel("")
        above.set_ylim(bottom=0)
        above.set_xlim(below.get_xlim())
        above.yaxis.set_major_formatter(PERCENT_TICKS)
        if index == 0:
            above.set_ylabel("codes changed an epoch")
            below.set_ylabel("span of the levels\n(before training: 1)")
    add_legend(figure, methods)
    save(figure, out, name)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, help="results.csv")
    parser.add_argument("--epochs", required=True, help="epochs.csv")
    parser.add_argument("--histograms", required=True, type=Path, help="weight_histograms.json")
    parser.add_argument("--channel-error", required=True, help="ablation_channel_error.csv")
    parser.add_argument("--direct-weights", required=True, help="ablation_direct_weights.csv")
    parser.add_argument("--out", required=True, type=Path, help="folder of the plots")
    args = parser.parse_args(argv)
    sns.set_theme(style="ticks")
    plt.rcParams.update(STYLE)
    results = read_results(args.results)
    check_table(args.channel_error, CHANNEL_COLUMNS)
    check_table(args.direct_weights, DIRECT_COLUMNS)
    check_table(args.epochs, EPOCH_COLUMNS)
    epochs = pd.read_csv(args.epochs)
    suite = results["suite"].iloc[0]
    accuracy_vs_bits(results, suite, args.out)
    accuracy_vs_cost(
        results,
        suite,
        args.out,
        "bitops",
        "accuracy_vs_bitops",
        "Accuracy against bit operations",
        "bit operations an image (log scale)",
        "",
    )
    accuracy_vs_cost(
        results,
        suite,
        args.out,
        "size_bytes",
        "accuracy_vs_size",
        "Accuracy against model size",
        "stored size (log scale)",
        "B",
    )
    channel_error_heatmap(pd.read_csv(args.channel_error), suite, args.out)
    weight_histograms(results, read_json(args.histograms), suite, args.out)
    training_curves(results, epochs, suite, args.out)
    mismatch(pd.read_csv(args.direct_weights), epochs, suite, args.out)
    levels_and_flips(results, epochs, suite, args.out)


if __name__ == "__main__":
    run_cli(main)
