"""The plots: files for every suite, the same bytes for the same data, the numbers of the tables."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from figure_checks import assert_nothing_overlaps

from lowbit_core.runtime.errors import InputError
from workflow.comparisons import load_comparisons
from workflow.results import plot_style, plots
from workflow.results.columns import read_table
from workflow.results.labels import family_order, method_family, method_label

ROOT = Path(__file__).parents[2]
FILES = {f"{name}.{kind}" for name in plots.PLOTS for kind in ("svg", "png")}


def test_pareto():
    points = [(1, 80.0), (1, 81.0), (2, 79.0), (3, 85.0), (4, 85.0)]
    assert plots.pareto(points) == [(1, 81.0), (3, 85.0)]


def test_same_bytes_again(drawn: Path, tmp_path: Path):
    """A process of its own: hash seeds and the order of imports differ."""
    command = [sys.executable, "-m", "workflow.results.plots", drawn, "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True)
    before = {path.name: path.read_bytes() for path in (drawn / "plots").iterdir()}
    assert set(before) == FILES
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_accuracy_is_the_main_table(quick: Path):
    """Every line of a panel holds the means of one method, from few bits to many."""
    figure, _ = plots.accuracy_vs_bits(plots.Data(quick))
    table = read_table(quick / "table_main.csv")
    for axis, arch in zip(figure.axes, ("alexnet", "mobilenetv2", "resnet20"), strict=True):
        rows = [row for row in table if row["arch"] == arch and row["n"]]
        lines = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
        for method in {row["method"] for row in rows} - {"fp"}:
            mine = sorted((r["w_bits"], r["top1_mean"]) for r in rows if r["method"] == method)
            assert lines[method_label(method)] == [top1 for _, top1 in mine]


def labels_of(axis) -> set[str]:
    return set(axis.get_legend_handles_labels()[1])


def test_many_methods_have_a_panel_for_each_family(every_method: Path):
    """Every method once, and the references in every panel; the panels can be compared."""
    data = plots.Data(every_method)
    methods = set(data.quantized["method"])
    families = sorted(set(map(method_family, methods)), key=family_order)
    assert len(methods) > plot_style.MOST_METHODS
    references = {method_label("fp"), method_label(load_comparisons().method)}
    for draw in (plots.accuracy_vs_bits, partial(plots.accuracy_vs_cost, **plots.SIZE)):
        figure, _ = draw(data)
        assert [axis.get_title(loc="left").lower() for axis in figure.axes] == families
        assert len({axis.get_ylim() for axis in figure.axes}) == 1
        for axis, family in zip(figure.axes, families, strict=True):
            mine = {method_label(name) for name in methods if method_family(name) == family}
            assert labels_of(axis) - {"Pareto front"} == mine | references
    for draw in (plots.training_curves, plots.levels_and_flips):
        figure, _ = draw(data)
        assert len(figure.axes) == 2 * len(families)


def test_the_legend_covers_no_panel(every_method: Path):
    """Nor does a title, the heading or a name of an axis; nothing is outside the figure."""
    plot_style.set_style()
    data = plots.Data(every_method)
    for title, draw in plots.PLOTS.values():
        drawn = draw(data)
        if not isinstance(drawn, str):
            assert_nothing_overlaps(drawn, title)


def test_a_suite_without_ablations_has_every_plot(bare: Path):
    assert {path.name for path in (bare / "plots").iterdir()} == FILES
    data = plots.Data(bare)
    assert plots.mismatch(data) == "no run of the direct-weights ablation"
    assert plots.channel_error_heatmap(data) == "no run measured its channels"
    assert plots.weight_histograms(data) == "no run kept its weights"


@pytest.mark.parametrize("name", ["results.csv", "table_main.csv", "epochs.csv"])
def test_a_missing_table_is_one_sentence(quick: Path, tmp_path: Path, name: str):
    shutil.copytree(quick, tmp_path / "results")
    (tmp_path / "results" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        plots.main([str(tmp_path / "results")])
    assert not (tmp_path / "results" / "plots").exists()
