"""What is measured of exported runs: the accuracy of the file, its size, its time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_networks import CHANNELS, SIDE, quantized
from tiny_run import config

import baselines
from deploy import measure
from deploy.export.check import check_run
from deploy.export.run import export_run
from deploy.export.size import entropy_bytes
from deploy.export.trace import trace
from deploy.graph import FLOAT, Convolution, Graph, Weight
from lowbit_core.datasets.manifest import read_labels
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from lowbit_core.training.run import Place, train_run

ROOT = Path(__file__).parents[2]
TIMES = {"ms", "x_torch", "x_ort_int8", "kernels"}  # what the machine says, and not the run


@pytest.fixture(scope="module")
def runs(digits_root, tmp_path_factory):
    """A folder with a quantized run and one in full precision, trained for two epochs."""
    folder = tmp_path_factory.mktemp("measured")
    place = Place(digits_root, folder, torch.device("cpu"))
    for method in ("pact", "fp"):
        settings = config(method, method, lr=0.1, epochs=2) | {"arch_options": {"width": 4}}
        settings["arch_options"]["stem"] = "small_stride2"
        train_run(settings, baselines.method(method), place)
    return folder


@pytest.fixture(scope="module")
def rows(runs, digits_root):
    found = measure.measure_runs([runs / "pact", runs / "fp"], digits_root)
    return {row["run_id"]: row for row in found}


def test_the_file_is_as_accurate_as_training_measured(rows, runs, digits_root, tmp_path):
    row = rows["pact"]
    sizes = export_run(runs / "pact", tmp_path / "model.lowbit", digits_root)
    checked = check_run(tmp_path / "model.lowbit", runs / "pact", digits_root)
    assert (row["status"], row["reason"], row["images"]) == ("exported", "", 360)
    assert (row["top1"], row["agreement"]) == (checked["top1"], checked["agreement"])
    assert row["top1"] == pytest.approx(row["top1_training"], abs=1)  # 3 of 360 images
    assert (row["file_bytes"], row["float32_bytes"]) == (sizes["file"], sizes["float32"])
    assert row["entropy_bytes"] < row["file_bytes"] < row["float32_bytes"]
    assert row["ms"] > 0 and row["x_torch"] > 0 and row["kernels"]


def test_onnxruntime_is_measured_where_it_is_installed(rows, runs, digits_root, monkeypatch):
    pytest.importorskip("onnxruntime.quantization")
    assert all(row["x_ort_int8"] > 0 for row in rows.values())
    assert "onnxruntime in int8: " in measure.summary(rows["pact"])
    monkeypatch.setattr(measure.onnxfile, "is_installed", lambda _: False)
    [row] = measure.measure_runs([runs / "pact"], digits_root, 40)
    assert row["x_ort_int8"] is None and "int8" not in measure.summary(row)


def test_predictions_are_the_classes_that_the_accuracy_counts(rows, digits_root):
    labels = read_labels(digits_root / "digits", "test")
    for row in rows.values():
        right = np.mean(np.array(row["predictions"]) == labels)
        assert row["top1"] == pytest.approx(100 * right)


def test_full_precision_is_measured_too(rows):
    row = rows["fp"]
    assert row["top1"] == row["top1_training"]
    assert row["codes"] == [] and row["kernels"] == ""
    assert row["file_bytes"] == row["entropy_bytes"] > row["float32_bytes"]


def test_codes_are_those_of_the_network():
    model, _ = quantized("resnet20", "direct", 2, 2)
    counts = measure.code_counts(trace(model, (CHANNELS, SIDE, SIDE)))
    layers = dict(model.named_modules())
    assert len(counts) > 3
    quantized_layers = {
        name for name, layer in layers.items() if getattr(layer, "weight_quantizer", None)
    }
    assert dict(counts).keys() == quantized_layers
    for layer, found in counts:
        quantizer = layers[layer].weight_quantizer
        assert found == torch.bincount(quantizer.codes().flatten().long(), minlength=4).tolist()


def test_only_the_times_differ_in_a_second_measurement(rows, runs, digits_root):
    again = next(measure.measure_runs([runs / "pact"], digits_root))
    assert {k: again[k] for k in again.keys() - TIMES} == {
        k: rows["pact"][k] for k in rows["pact"].keys() - TIMES
    }


def test_a_few_images_are_the_first_ones(rows, runs, digits_root):
    [row] = measure.measure_runs([runs / "pact"], digits_root, 40)
    assert row["images"] == 40 and row["predictions"] == rows["pact"]["predictions"][:40]


def test_a_diverged_run_is_a_row_with_a_reason(runs, digits_root, tmp_path):
    final = RunFolder(runs / "pact").read_json("final.json")
    final |= {"status": "diverged", "diverged_layer": "fc", "diverged_because": "it is not finite"}
    RunFolder(tmp_path / "lost").finish(final)
    [row] = measure.measure_runs([tmp_path / "lost"], digits_root)
    assert row == {
        "run_id": "lost", "run_key": final["run_key"], "status": "diverged",
        "reason": "layer fc: it is not finite",
    }  # fmt: skip
    assert measure.summary(row) == "diverged: layer fc: it is not finite"


def test_a_network_that_a_file_cannot_hold_is_a_row_with_a_reason(runs, digits_root, monkeypatch):
    def refuse(*_):
        raise InputError("layer fc: a file cannot hold it")

    monkeypatch.setattr(measure, "trace", refuse)
    [row] = measure.measure_runs([runs / "pact"], digits_root)
    assert (row["status"], row["reason"]) == ("refused", "layer fc: a file cannot hold it")


def test_a_run_that_is_missing_or_damaged_is_an_error(runs, digits_root, tmp_path):
    with pytest.raises(InputError, match="no such run folder"):  # before the first is measured
        next(measure.measure_runs([runs / "pact", tmp_path / "none"], digits_root))
    for name in ("config.json", "final.json", "weights.pt"):
        (tmp_path / name).write_bytes((runs / "pact" / name).read_bytes()[:-9])
    with pytest.raises(InputError):
        list(measure.measure_runs([tmp_path], digits_root))


@given(st.lists(st.integers(0, 200), min_size=2, max_size=8), st.integers(1, 3))
def test_an_ideal_coder_never_needs_more_than_the_bits(counts, layers):
    """And it saves nothing where every code of a full set of codes is as frequent."""
    codes = np.repeat(np.arange(len(counts)), counts).astype(np.uint8)
    if codes.size == 0:
        return

    def graph(codes: np.ndarray, levels: int) -> Graph:
        weight = Weight(codes=codes.reshape(1, 1, 1, -1), levels=np.zeros((1, levels), np.float32))
        shift = np.zeros(1, np.float32)
        one = Convolution("c", "x", "y", (1, 1), (0, 0), False, FLOAT, weight, None, shift)
        return Graph("x", (1, 1, 1), "y", (one,) * layers)

    size, bits = 10_000, (len(counts) - 1).bit_length()
    packed = entropy_bytes(size, graph(codes, len(counts)))
    assert size - layers * codes.size * bits / 8 <= packed <= size
    even = np.arange(4 * 8).astype(np.uint8) % 4
    assert entropy_bytes(size, graph(even, 4)) == size


def command(*words) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "deploy", "measure", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_writes_a_line_for_each_run(rows, runs, digits_root, tmp_path):
    words = (runs / "pact", runs / "fp", "--data", digits_root, "--out", tmp_path / "out.jsonl")
    done = command(*words)
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert "pact: top-1" in done.stderr and "fp: top-1" in done.stderr
    found = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [row["run_id"] for row in found] == ["pact", "fp"]
    assert all(row["top1"] == rows[row["run_id"]]["top1"] for row in found)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("x", "--max-images", "0"), "--max-images 0: must be at least 1"),
        (("x",), "no such run folder"),
    ],
)
def test_the_command_refuses_in_one_sentence(words, reason, tmp_path):
    done = command(*words, "--out", tmp_path / "out.jsonl")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and reason in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_cannot_be_written_is_refused_before_the_work(runs, tmp_path):
    (tmp_path / "file").touch()
    for target, reason in (
        (tmp_path, "must be a file, not a folder"),
        (tmp_path / "file" / "x", "file"),
    ):
        done = command(runs / "pact", "--data", tmp_path / "no-data", "--out", target)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert reason in done.stderr and "no-data" not in done.stderr
