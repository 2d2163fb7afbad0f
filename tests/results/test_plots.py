"""The plots: files for every suite, the same bytes for the same data, the numbers of the tables."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from figure_checks import assert_nothing_overlaps
from matplotlib.collections import PathCollection

from lowbit_core.runtime.errors import InputError
from workflow.comparisons import load_comparisons
from workflow.results import plots
from workflow.results.claims import difference_text
from workflow.results.columns import read_table
from workflow.results.labels import family_order, method_family, method_label
from workflow.results.plots import style
from workflow.results.plots.accuracy import SIZE, accuracy_vs_bits, accuracy_vs_cost, pareto
from workflow.results.plots.claims import paired_differences
from workflow.results.plots.distributions import channel_error_heatmap, weight_histograms
from workflow.results.plots.training import levels_and_flips, mismatch, training_curves

ROOT = Path(__file__).parents[2]
FILES = {f"{name}.{kind}" for name in plots.PLOTS for kind in ("svg", "png")}


def test_pareto():
    points = [(1, 80.0), (1, 81.0), (2, 79.0), (3, 85.0), (4, 85.0)]
    assert pareto(points) == [(1, 81.0), (3, 85.0)]


def test_same_bytes_again(drawn: Path, tmp_path: Path):
    """A process of its own: hash seeds and the order of imports differ."""
    command = [sys.executable, "-m", "workflow.results.plots", drawn, "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True)
    before = {path.name: path.read_bytes() for path in (drawn / "plots").iterdir()}
    assert set(before) == FILES
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_accuracy_is_the_main_table(quick: Path):
    """Every line of a panel holds the means of one method, from few bits to many."""
    figure, _ = accuracy_vs_bits(plots.Data(quick))
    table = read_table(quick / "table_main.csv")
    for axis, arch in zip(figure.axes, ("alexnet", "mobilenetv2", "resnet20"), strict=True):
        rows = [row for row in table if row["arch"] == arch and row["n"]]
        lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        for method in {row["method"] for row in rows} - {"fp"}:
            mine = sorted((r["w_bits"], r["top1_mean"]) for r in rows if r["method"] == method)
            assert lines[method_label(method)] == [top1 for _, top1 in mine]


def test_every_comparison_is_drawn_once(quick: Path):
    """The markers are the primary rows of claims.csv, top to bottom, and so are the numbers."""
    figure, _ = paired_differences(plots.Data(quick))
    (axis,) = figure.axes
    rows = [r for r in read_table(quick / "claims.csv") if r["primary"]]
    rows = [row for row in rows if row["top1_difference_mean"] is not None]
    low, high = axis.get_xlim()
    markers = [line for line in axis.get_lines() if line.get_marker() != "None"]
    drawn = {line.get_ydata()[0]: line.get_xdata()[0] for line in markers}
    assert len(markers) == len(drawn) == len(rows) > 3
    expected = [row["top1_difference_mean"] for row in rows]
    for (_, x), mean in zip(sorted(drawn.items()), expected, strict=True):
        assert x == pytest.approx(mean) or not low < mean < high
    assert len(axis.texts) == len(rows)
    for text, row in zip(axis.texts, rows, strict=True):
        assert text.get_text().startswith(difference_text(row))
        assert text.get_text().endswith(f"n = {row['n']}   {row['verdict']}")
    single = [
        r["top1_difference_mean"] for r in read_table(quick / "claims.csv") if not r["primary"]
    ]
    single = [mean for mean in single if mean is not None]
    rings = [part for part in axis.collections if isinstance(part, PathCollection)]
    found = sorted(float(x) for part in rings for x in part.get_offsets()[:, 0])
    assert np.abs(found).max() <= 0.985 * high  # a marker is drawn whole
    assert found == pytest.approx(sorted(np.clip(single, 0.985 * low, 0.985 * high)))


def labels_of(axis) -> set[str]:
    return set(axis.get_legend_handles_labels()[1])


def test_many_methods_have_a_panel_for_each_family(every_method: Path):
    """Every method once, and the references in every panel; the panels can be compared."""
    data = plots.Data(every_method)
    methods = set(data.quantized["method"])
    families = sorted(set(map(method_family, methods)), key=family_order)
    assert len(methods) > style.MOST_METHODS
    references = {method_label("fp"), method_label(load_comparisons().method)}
    for draw in (accuracy_vs_bits, partial(accuracy_vs_cost, **SIZE)):
        figure, _ = draw(data)
        assert [axis.get_title(loc="left").lower() for axis in figure.axes] == families
        assert len({axis.get_ylim() for axis in figure.axes}) == 1
        for axis, family in zip(figure.axes, families, strict=True):
            mine = {method_label(name) for name in methods if method_family(name) == family}
            assert labels_of(axis) - {"Pareto front"} == mine | references
    for draw in (training_curves, levels_and_flips):
        figure, _ = draw(data)
        assert len(figure.axes) == 2 * len(families)


def test_the_legend_covers_no_panel(every_method: Path):
    """Nor does a title, the heading or a name of an axis; nothing is outside the figure."""
    style.set_style()
    data = plots.Data(every_method)
    for title, draw in plots.PLOTS.values():
        drawn = draw(data)
        if not isinstance(drawn, str):
            assert_nothing_overlaps(drawn, title)


def test_a_long_subtitle_has_two_lines():
    style.set_style()
    shown = "CIFAR-100, MobileNetV2, mean over layers and seeds, band ± one std"
    for panels in (1, 3):
        figure, axes = style.new_figure(panels)
        for axis in axes:
            axis.set_title("a panel")
        assert_nothing_overlaps((figure, shown), "Title")


def test_a_suite_without_ablations_has_every_plot(bare: Path):
    assert {path.name for path in (bare / "plots").iterdir()} == FILES
    data = plots.Data(bare)
    assert mismatch(data) == "no run of the direct-weights ablation"
    assert channel_error_heatmap(data) == "no run measured its channels"
    assert weight_histograms(data) == "no run kept its weights"


@pytest.mark.parametrize("name", ["results.csv", "table_main.csv", "epochs.csv"])
def test_a_missing_table_is_one_sentence(quick: Path, tmp_path: Path, name: str):
    shutil.copytree(quick, tmp_path / "results")
    (tmp_path / "results" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        plots.draw_plots(tmp_path / "results")
    assert not (tmp_path / "results" / "plots").exists()
