"""A figure of the benchmarks: quantizers against ReLU, training steps against full precision."""

from pathlib import Path

import pandas as pd

from benchmarks.pages.speed import AIMS, PRECISIONS
from workflow.results.labels import method_label
from workflow.results.plots.style import MUTED, new_figure, save, set_style

OURS = "#D55E00"


def draw(quantizers: pd.DataFrame, steps: pd.DataFrame, folder: Path) -> None:
    """Write speed.svg and .png: 2-bit activations against ReLU, training steps against FP.

    Steps have a panel for each precision that was measured.
    """
    set_style()
    measured = [name for name in PRECISIONS if (steps["precision"] == name).any()]
    chosen = quantizers.query("kind == 'activation' and bits == 2 and what != 'copy'")
    chosen = chosen[chosen["shape"] == chosen["shape"].iloc[0]]
    height = max(4, 0.25 * len(chosen))  # inches, so that the labels of the bars stay apart
    figure, (left, *right) = new_figure(1 + len(measured), width=4.8, height=height)
    _draw_bars(left, chosen.set_index("what"), aim=1.5)
    left.set(xscale="log", xlabel="time, ratio to ReLU (log scale)")
    left.set_title("Activations, 2 bits")
    for axes, precision in zip(right, measured, strict=True):
        chosen = steps.query(
            "arch == 'resnet20' and w_bits == 2 and a_bits == 2 and method != 'fp'"
        )
        chosen = chosen[chosen["precision"] == precision]
        aim = AIMS[precision, "resnet20"][0]
        _draw_bars(axes, chosen.set_index(chosen["method"].map(method_label)), aim)
        axes.set(xlim=(0.9, None), xlabel="time, ratio to full precision")
        axes.set_title(f"ResNet-20 W2A2 step, {PRECISIONS[precision]}")
    save(figure, folder, "speed")


def _draw_bars(axes, rows: pd.DataFrame, aim: float) -> None:
    rows = rows.sort_values("ratio")
    peers = rows.index.str.contains("eager|brevitas|torch|relu", case=False)
    spread = [rows.ratio - rows.ratio_q1, rows.ratio_q3 - rows.ratio]
    axes.barh(rows.index, rows.ratio, xerr=spread, color=[MUTED if p else OURS for p in peers])
    axes.axvline(1, color=MUTED, linewidth=0.8)
    axes.axvline(aim, color="black", linewidth=0.8, linestyle="--")
    for row, ratio in enumerate(rows.ratio):
        place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # over the line of the aim
        end = rows.ratio_q3.iloc[row], row
        axes.annotate(f"{ratio:.2f}", end, **place, fontsize=8, bbox=ground)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
