"""The plots: files for every suite, the same bytes for the same data, the numbers of the tables."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit_core.runtime.errors import InputError
from workflow.results import plots
from workflow.results.columns import read_table
from workflow.results.labels import method_label

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
