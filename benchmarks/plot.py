"""A figure of the benchmarks: quantizers against ReLU, training steps against full precision."""

from pathlib import Path

import pandas as pd

from workflow.results.plot_style import MUTED, new_figure, save, set_style

OURS = "#D55E00"


def draw(quantizers: pd.DataFrame, steps: pd.DataFrame, folder: Path) -> None:
    """Write speed.svg and .png: 2-bit activations against ReLU, training steps against FP."""
    set_style()
    figure, (left, right) = new_figure(2, width=5, height=4)
    chosen = quantizers.query("kind == 'activation' and bits == 2 and what != 'copy'")
    chosen = chosen[chosen["shape"] == chosen["shape"].iloc[0]]
    _draw_bars(left, chosen.set_index("what"), aim=1.5)
    left.set(xscale="log", xlabel="time, ratio to ReLU (log scale)")
    left.set_title("Activations, 2 bits, forward + backward")
    chosen = steps.query("arch == 'resnet20' and w_bits == 2 and a_bits == 2")
    names = chosen["method"] + chosen["precision"].map({"fp32": "", "bf16": ", bf16"})
    _draw_bars(right, chosen.set_index(names), aim=1.15)
    right.set(xlim=(0.9, None), xlabel="time, ratio to full precision")
    right.set_title("ResNet-20 training step, W2A2, batch 128")
    save(figure, folder, "speed")


def _draw_bars(axes, rows: pd.DataFrame, aim: float) -> None:
    rows = rows.sort_values("ratio")
    peers = rows.index.str.contains("eager|Brevitas|torch|relu")
    spread = [rows.ratio - rows.ratio_q1, rows.ratio_q3 - rows.ratio]
    axes.barh(rows.index, rows.ratio, xerr=spread, color=[MUTED if p else OURS for p in peers])
    axes.axvline(1, color=MUTED, linewidth=0.8)
    axes.axvline(aim, color="black", linewidth=0.8, linestyle="--")
    for row, ratio in enumerate(rows.ratio):
        axes.annotate(f" {ratio:.2f}", (rows.ratio_q3.iloc[row], row), va="center", fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
