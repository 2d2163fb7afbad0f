"""`python -m deploy export --format onnx` and `check`, with the real onnxruntime and qonnx."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import config

import baselines
from deploy import __main__ as command
from deploy import onnxfile
from deploy.export import onnx as plain
from deploy.export.check import check_run
from deploy.export.run import export_onnx, export_run
from deploy.network import load
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.training.run import Place, train_run

onnx = pytest.importorskip("onnx", reason="the package onnx is needed")
pytest.importorskip("onnxruntime", reason="the package onnxruntime is needed")

ROOT = Path(__file__).parents[2]
FORMATS = pytest.mark.parametrize("form", ["onnx", "qonnx"])


def need(form: str) -> None:
    if form == "qonnx":
        pytest.importorskip("qonnx", reason="the package qonnx is needed")


@pytest.fixture(scope="module")
def trained(digits_root, tmp_path_factory):
    """The folder of a run."""
    runs = tmp_path_factory.mktemp("runs")
    place = Place(digits_root, runs, torch.device("cpu"))
    train_run(config("pact", "trained"), baselines.method("pact"), place)
    return runs / "trained"


def deploy(*words: object) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "deploy", *map(str, words)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def said_here(monkeypatch, capsys, *words: object) -> str:
    """What the command prints, run in this process."""
    monkeypatch.setattr(sys, "argv", ["deploy", *map(str, words)])
    run_cli(command.main)
    return capsys.readouterr().out


def refusal(monkeypatch, capsys, *words: object) -> str:
    """What the command, in this process, says when it ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["deploy", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_cli(command.main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@FORMATS
def test_a_file_is_written_verified_and_checked(
    form, trained, digits_root, tmp_path, monkeypatch, capsys
):
    need(form)
    path = tmp_path / "model.onnx"
    done = deploy("export", trained, "--out", path, "--format", form, "--data", digits_root)
    assert done.returncode == 0, done.stderr
    size, verified = done.stdout.splitlines()
    assert size == f"{path}: {path.stat().st_size:,} bytes"
    package = {"onnx": "onnxruntime", "qonnx": "qonnx"}[form]
    said = re.fullmatch(
        rf"  verified by {package} [\d.]+ with 8 random images: scores up to (\S+) of the largest "
        r"one away from torch, the same class for (\d) of 8, each operation to (\S+) of its "
        "largest output",
        verified,
    )
    assert said and float(said[1]) < 0.1 and int(said[2]) >= 6 and float(said[3]) < 1e-5
    assert list(tmp_path.iterdir()) == [path]

    words = ("check", path, trained, "--data", digits_root, "--max-images", 100)
    assert said_here(monkeypatch, capsys, *words).startswith("100 test images: top-1 ")
    export_run(trained, tmp_path / "model.lowbit", digits_root)
    assert onnxfile.load(path).about == load(tmp_path / "model.lowbit").about
    found = check_run(path, trained, digits_root)
    assert found["images"] == 360 and found["agreement"] >= 99
    assert found["top1"] == pytest.approx(found["top1_training"], abs=1)


def _one_filter_off(network, whole=plain.onnx_model):
    """The network's ONNX form with other integers in one filter of a middle layer."""
    model = whole(network)
    codes = [c for c in model.graph.initializer if c.name.endswith("_weight_codes")][1]
    values = onnx.numpy_helper.to_array(codes).copy()
    values[0] += 2
    codes.CopyFrom(onnx.numpy_helper.from_array(values, codes.name))
    return model


def test_a_wrong_file_is_not_left(trained, digits_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plain, "onnx_model", _one_filter_off)
    path = tmp_path / "model.onnx"
    words = ("export", trained, "--out", path, "--format", "onnx", "--data", digits_root)
    said = refusal(monkeypatch, capsys, *words)
    assert re.search(
        rf"{path} is not written: onnxruntime [\d.]+ gives a convolution \(\S+\)", said
    )
    assert list(tmp_path.iterdir()) == []
    path.write_text("older")
    refusal(monkeypatch, capsys, *words)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_scores_of_another_network_are_refused(trained, digits_root, tmp_path, monkeypatch):
    from deploy.export import verify

    monkeypatch.setattr(verify, "_torch_scores", lambda _, x: np.eye(len(x), 10, dtype=np.float32))
    with pytest.raises(InputError, match="the scores by onnxruntime .* away from those of torch"):
        export_onnx(trained, tmp_path / "model.onnx", digits_root)
    assert list(tmp_path.iterdir()) == []


@FORMATS
def test_without_the_package_it_says_what_installs_it(
    form, trained, digits_root, tmp_path, monkeypatch
):
    package = {"onnx": "onnxruntime", "qonnx": "qonnx"}[form]
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / "model.onnx"
    size, said = export_onnx(trained, path, digits_root, as_qonnx=form == "qonnx")
    assert said == (
        f"not verified: the package {package} is not installed: `pip install -e '.[onnx]'`"
    )
    assert path.stat().st_size == size
    with pytest.raises(InputError, match=f"the package {package} is not installed"):
        check_run(path, trained, digits_root)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"the package onnx is not installed: .*\.\[onnx\]"):
        export_onnx(trained, path, digits_root)


def test_other_files_are_not_checked(trained, digits_root, tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.onnx"
    words = ("check", path, trained, "--data", digits_root)
    for data in (b"", b"# Not a network"):
        path.write_bytes(data)
        assert f"{path}: not an ONNX file" in refusal(monkeypatch, capsys, *words)
    export_onnx(trained, path, digits_root)
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == "origin":
            entry.value = entry.value.replace('"pact"', '"dorefa"')
    onnx.save(model, path)
    assert "is not of the run in" in refusal(monkeypatch, capsys, *words)
    del model.metadata_props[:]
    onnx.save(model, path)
    assert "its metadata are not those" in refusal(monkeypatch, capsys, *words)
    model.graph.node[0].op_type = "Nothing"
    onnx.save(model, path)
    assert "onnxruntime cannot compute it: " in refusal(monkeypatch, capsys, *words)
