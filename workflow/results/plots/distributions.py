"""Errors of the channels of one run, and its weights before and after training."""

from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

from workflow.results import labels
from workflow.results.plots import style as look
from workflow.results.plots.data import MOST_COLUMNS, Data, Drawn, run_name
from workflow.results.record import representative


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
