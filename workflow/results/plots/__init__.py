"""The plots of a results folder, as SVG and PNG. The same tables give the same bytes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from workflow.results.plots.accuracy import BITOPS, SIZE, accuracy_vs_bits, accuracy_vs_cost
from workflow.results.plots.claims import paired_differences
from workflow.results.plots.data import Data, Drawn
from workflow.results.plots.distributions import channel_error_heatmap, weight_histograms
from workflow.results.plots.style import write_plots
from workflow.results.plots.training import levels_and_flips, mismatch, training_curves

PLOTS: dict[str, tuple[str, Callable[[Data], Drawn]]] = {
    "paired_differences": ("The answer to each question", paired_differences),
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


def draw_plots(folder: Path, out: Path | None = None) -> None:
    """Draw all plots of a results folder, to `out` or FOLDER/plots."""
    write_plots(PLOTS, Data(folder), out or folder / "plots")
