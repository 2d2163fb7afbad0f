"""A figure of the benchmarks: quantizers against ReLU, training steps against full precision."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from lowbit_core.runtime.files import replace_file

OURS, PEER = "#D55E00", "#8A94A0"


def draw(quantizers: pd.DataFrame, steps: pd.DataFrame, stem: Path) -> None:
    """Write `stem`.svg and .png: 2-bit activations against ReLU, training steps against FP."""
    sns.set_theme(style="whitegrid", context="paper")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    chosen = quantizers.query("kind == 'activation' and bits == 2 and what != 'copy'")
    chosen = chosen[chosen["shape"] == chosen["shape"].iloc[0]].sort_values("ratio")
    peers = chosen.what.str.contains("eager|Brevitas|torch|relu")
    _bars(left, chosen, "what", [PEER if peer else OURS for peer in peers], aim=1.5)
    left.set(xscale="log", xlabel="time, ratio to ReLU (log scale)", ylabel="")
    left.set_title("Activations, 2 bits, forward + backward")
    chosen = steps.query("arch == 'resnet20' and method != 'fp'").sort_values("ratio")
    _bars(right, chosen, "method", [OURS] * len(chosen), aim=1.15)
    right.axvline(1, color=PEER, linewidth=0.8)
    right.set(xlim=(0.9, None), xlabel="time, ratio to full precision", ylabel="")
    right.set_title("ResNet-20 training step, W2A2, batch 128")
    for kind in ("svg", "png"):
        with replace_file(f"{stem}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=144)
    plt.close(figure)


def _bars(axes, rows: pd.DataFrame, label: str, colors: list[str], aim: float) -> None:
    spread = [rows.ratio - rows.ratio_q1, rows.ratio_q3 - rows.ratio]
    axes.barh(rows[label], rows.ratio, xerr=spread, color=colors, error_kw={"linewidth": 0.8})
    axes.axvline(aim, color="black", linewidth=0.8, linestyle="--")
    for row, ratio in enumerate(rows.ratio):
        axes.annotate(f" {ratio:.2f}", (rows.ratio_q3.iloc[row], row), va="center", fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
