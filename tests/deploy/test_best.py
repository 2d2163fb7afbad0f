"""The best network of each method, chosen on validation images, as files with a table of them."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import config

import baselines
import deploy
from deploy.best import FROM_TABLE, SETTING, best_runs, export_best
from lowbit_core.runtime.errors import InputError
from lowbit_core.training.run import Place, train_run

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "results" / "reference" / "models"
MOST_APART = 0.05  # points between the accuracies of a file and of torch, both in float32


@pytest.fixture(scope="module")
def runs(digits_root, tmp_path_factory) -> Path:
    """Folders of two seeds of a method, the same network under two names."""
    folder = tmp_path_factory.mktemp("best")
    settings = config("pact", "pact", epochs=1) | {"run_id": "pact-s0"}
    settings["arch_options"] = {"width": 4, "stem": "small_stride2"}
    train_run(settings, baselines.method("pact"), Place(digits_root, folder, torch.device("cpu")))
    shutil.copytree(folder / "pact-s0", folder / "pact-s1")
    return folder


def write_table(path: Path, *rows: dict) -> Path:
    """A results.csv; what a row leaves out is that of a finished run of PACT at W2A2."""
    run = dict.fromkeys((*SETTING, *FROM_TABLE), "") | {"dataset": "digits", "arch": "resnet20"}
    run |= {"method": "pact", "w_bits": "2", "a_bits": "2", "role": "run", "status": "done"}
    run |= {"options": "", "top1": "50.0"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, run)
        writer.writeheader()
        writer.writerows(run | row for row in rows)
    return path


def seed(number: int, val_top1: float | str, **changes: str) -> dict:
    return {"seed": number, "val_top1": val_top1, "run_id": f"pact-s{number}"} | changes


def test_validation_images_choose_and_ties_go_to_the_lowest_seed(runs, tmp_path):
    table = write_table(tmp_path / "a.csv", seed(1, 61.0, top1="1"), seed(0, 60.0, top1="99"))
    assert [row["run_id"] for row in best_runs(table, runs)] == ["pact-s1"]
    table = write_table(tmp_path / "b.csv", seed(1, 60.0), seed(0, 60.0))
    assert [row["run_id"] for row in best_runs(table, runs)] == ["pact-s0"]


@pytest.mark.parametrize(
    "change",
    [
        {"status": "diverged", "val_top1": ""},
        {"role": "checkpoint"},
        {"role": "option"},
        {"options": "distill"},
        {"w_bits": "32", "a_bits": "32"},
        {"run_id": "of-another-machine"},
    ],
    ids=lambda change: next(iter(change.values())),
)
def test_what_is_left_out(runs, tmp_path, change):
    table = write_table(tmp_path / "results.csv", seed(0, 60.0), seed(1, 70.0) | change)
    assert [row["run_id"] for row in best_runs(table, runs)] == ["pact-s0"]


def test_the_files_run_and_the_table_says_what_they_are(runs, digits_root, tmp_path):
    table = write_table(tmp_path / "results.csv", seed(0, 60.0), seed(1, 61.0))
    export_best(table, runs, tmp_path / "models", digits_root)
    (row,) = csv.DictReader((tmp_path / "models" / "models.csv").open())
    file = tmp_path / "models" / row["file"]
    assert row["file"] == "digits-resnet20-pact-w2a2.lowbit" and row["run_id"] == "pact-s1"
    assert int(row["file_bytes"]) == file.stat().st_size
    assert 0 <= float(row["file_top1"]) <= 100 and float(row["agreement"]) > 98
    assert abs(float(row["top1_torch"]) - float(row["file_top1"])) < 2
    assert deploy.load(file).about.origin["run_id"] == "pact-s0"  # the copied folder's own name


def test_files_that_are_there_stay_unless_a_run_here_is_better(runs, digits_root, tmp_path):
    models = tmp_path / "models"
    first = write_table(tmp_path / "first.csv", seed(1, 60.0), seed(1, 50.0, method="lsq"))
    assert len(export_best(first, runs, models, digits_root)) == 2
    before = (models / "models.csv").read_text()
    worse = write_table(tmp_path / "worse.csv", seed(0, 60.0))
    assert export_best(worse, runs, models, digits_root) == []
    assert (models / "models.csv").read_text() == before
    better = write_table(tmp_path / "better.csv", seed(0, 61.0))
    assert [row["run_id"] for row in export_best(better, runs, models, digits_root)] == ["pact-s0"]
    rows = list(csv.DictReader((models / "models.csv").open()))
    assert [(row["method"], row["run_id"]) for row in rows] == [
        ("lsq", "pact-s1"),
        ("pact", "pact-s0"),
    ]
    assert all((models / row["file"]).is_file() for row in rows)
    (models / rows[0]["file"]).unlink()  # a file that vanished is made again
    assert [row["method"] for row in export_best(first, runs, models, digits_root)] == ["lsq"]
    # A row with a gap, as of an earlier version of the table, is filled.
    index = models / "models.csv"
    whole = index.read_text()
    before, pact = whole.split("digits-resnet20-pact")
    index.write_text(before + "digits-resnet20-pact" + pact.replace(rows[1]["top1_torch"], "", 1))
    assert len(export_best(better, runs, models, digits_root)) == 1
    assert index.read_text() == whole
    assert export_best(better, runs, models, digits_root) == []  # gaps that no table fills stay
    # The same run trained again on another machine, with another accuracy, is exported anew.
    again = write_table(tmp_path / "again.csv", seed(0, 60.5))
    assert [row["val_top1"] for row in export_best(again, runs, models, digits_root)] == ["60.5"]
    assert not [*models.glob(".*")]


def test_a_failed_check_leaves_the_file_that_is_there(runs, digits_root, tmp_path):
    export_best(write_table(tmp_path / "a.csv", seed(0, 60.0)), runs, tmp_path, digits_root)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.lowbit")}
    better = write_table(tmp_path / "b.csv", seed(1, 61.0))
    with pytest.raises(InputError):
        export_best(better, runs, tmp_path, tmp_path)  # which holds no prepared data
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.lowbit")} == before


def test_another_network_under_the_same_name_is_refused(runs, digits_root, tmp_path):
    table = write_table(tmp_path / "a.csv", seed(0, 60.0))
    export_best(table, runs, tmp_path / "models", digits_root)
    shutil.copytree(runs / "pact-s0", tmp_path / "runs" / "pact-s0")
    settings = tmp_path / "runs" / "pact-s0" / "config.json"
    settings.write_text(settings.read_text().replace("small_stride2", "small"))
    with pytest.raises(InputError, match="its arch_options is .* give another --out"):
        export_best(table, tmp_path / "runs", tmp_path / "models", digits_root)
    widths = write_table(tmp_path / "b.csv", seed(0, 60.0, width="4"), seed(0, 60.0, width="8"))
    with pytest.raises(InputError, match="two widths of one network would both be digits-resnet20"):
        export_best(widths, runs, tmp_path / "other", digits_root)


def test_a_file_without_a_row_is_kept(runs, digits_root, tmp_path):
    table = write_table(tmp_path / "a.csv", seed(0, 60.0))
    export_best(table, runs, tmp_path / "models", digits_root)
    (file,) = (tmp_path / "models").glob("*.lowbit")
    (tmp_path / "models" / "models.csv").unlink()
    assert len(export_best(table, runs, tmp_path / "models", digits_root)) == 1  # of the same run
    (tmp_path / "models" / "models.csv").unlink()
    before = file.read_bytes()
    with pytest.raises(InputError, match="models.csv has no row of this file: move it"):
        other = write_table(tmp_path / "b.csv", seed(1, 61.0))
        export_best(other, runs, tmp_path / "models", digits_root)
    assert file.read_bytes() == before


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "file,width\nx\n", "file\nx,y\n"])
def test_a_table_of_files_of_another_kind_is_one_sentence(runs, tmp_path, text):
    (tmp_path / "models.csv").write_text(text)
    table = write_table(tmp_path / "results.csv", seed(0, 60.0))
    with pytest.raises(InputError, match="models.csv: its columns must be file, .*another --out"):
        export_best(table, runs, tmp_path, tmp_path)


@pytest.mark.parametrize("text, message", [(None, "No such file"), ("a,b\n1,2\n", "no column")])
def test_a_wrong_table_is_one_sentence(runs, tmp_path, text, message):
    table = tmp_path / "results.csv"
    if text is not None:
        table.write_text(text)
    command = [sys.executable, "-m", "deploy", "best", table, "--runs", runs, "--out", tmp_path]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert message in result.stderr and str(table) in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "x"}, "run pact-s0: seed is 'x': it must be a number"),
        ({"val_top1": ""}, "run pact-s0: val_top1 is '': it must be a number"),
        ({"dataset": "../digits"}, "a run's name consists of letters"),
    ],
    ids=str,
)
def test_a_wrong_cell_is_one_sentence(runs, tmp_path, change, message):
    table = write_table(tmp_path / "results.csv", seed(0, 60.0) | change)
    with pytest.raises(InputError, match=message):
        export_best(table, runs, tmp_path / "models", tmp_path)
    assert not [*tmp_path.glob("**/*.lowbit")]


def test_no_run_at_hand(tmp_path):
    table = write_table(tmp_path / "results.csv", seed(0, 60.0))
    with pytest.raises(InputError, match="holds no folder of a finished quantized run"):
        best_runs(table, tmp_path)


def test_the_committed_files_are_those_of_their_table_and_run():
    rows = list(csv.DictReader((MODELS / "models.csv").open()))
    assert {row["file"] for row in rows} == {path.name for path in MODELS.glob("*.lowbit")}
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    for row in rows:
        network = deploy.load(MODELS / row["file"])
        assert network.about.origin["run_id"] == row["run_id"]
        assert network.about.origin["top1"] == float(row["top1"])
        # Training in bfloat16 measures another network; in float32, top1 is that of torch.
        expected = float(row["top1_torch"] or row["top1"])
        assert abs(float(row["file_top1"]) - expected) <= MOST_APART, row["file"]
        assert "apple" in network.about.classes  # words, not numbers
        scores = network.scores(images)
        assert scores.shape == (2, 100) and np.isfinite(scores).all()
        assert (MODELS / row["file"]).stat().st_size == int(row["file_bytes"])
