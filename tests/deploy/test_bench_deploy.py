"""The benchmark of exported networks measures what it says; no test depends on speed."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_networks import FOR_ANY_LEVELS

from benchmarks.deploy import compare, peers, tables
from benchmarks.deploy.compare import Contender, Setting
from benchmarks.deploy.peers import PEERS
from benchmarks.deploy.subjects import convolution, network
from benchmarks.timing import now

ROOT = Path(__file__).parents[2]
COLUMNS = (
    "network w_bits a_bits method kernel batch threads ms x_torch x_torch_frozen x_ort_fp32 "
    "x_ort_int8 x_openvino_int8 file_bytes"
).split()
NETWORK, LAYER = network("resnet20", 8, width=8), convolution(8, 8)
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SUBJECTS = pytest.mark.parametrize("subject", [NETWORK, LAYER], ids=lambda subject: subject.name)


@pytest.fixture
def forget_imports():
    """What is missing is said anew, and what a test hides is found again after it."""
    peers._found.cache_clear()
    yield
    peers._found.cache_clear()


@pytest.mark.parametrize("name", PEERS)
@SUBJECTS
def test_every_peer_computes_the_network(subject, name, tmp_path):
    peer = PEERS[name]
    for module in peer.needs:
        pytest.importorskip(module)
    files, images = peers.write_files(subject, tmp_path), subject.images(4)
    with torch.no_grad():
        expected = subject.model()(torch.from_numpy(images)).numpy().reshape(4, -1)
    found = peer.start(files, images, 1)().reshape(4, -1)
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart < (1e-4 if peer.bits == 32 else 0.1)
    if peer.bits == 8:
        assert apart > 1e-5, "it has not been quantized"
        assert peer.path(files).stat().st_size < files.float32.stat().st_size


def test_openvino_computes_in_8_bits(tmp_path):
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime.quantization")
    files = peers.write_files(NETWORK, tmp_path)
    model = openvino.Core().compile_model(files.int8, "CPU")
    types = [
        op.get_rt_info()["runtimePrecision"].astype(str)
        for op in model.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    assert len(types) >= 20 and set(types) <= {"u8", "i8"}


@SUBJECTS
def test_the_exported_form_is_that_of_the_quantized_network(subject, tmp_path):
    exported = subject.exported("lq_nets", 2, 2, tmp_path)
    given = exported.load(2)
    assert given.threads == 2 and given.counting_kernels().startswith(FOR_ANY_LEVELS)
    scores = given.scores(subject.images(3))
    assert len(scores) == 3 and np.isfinite(scores).all() and np.ptp(scores) > 0
    assert (exported.file_bytes is None) == subject.layer
    counted = sum(row.counts for row in given.kernels())
    assert counted == (1 if subject.layer else 20)  # all but the first and the last layer


def test_a_row_compares_medians_of_turns(monkeypatch):
    asked = []

    def timed(calls, rounds, inner, clock, warm, rest):
        asked.append((clock, inner, rest))
        assert (rounds, warm) == (3, 1)
        return {"torch": [2.0, 4.0, 9.0], "own": [1.0, 1.0, 3.0]}

    monkeypatch.setattr(compare, "timed", timed)
    about = {"w_bits": 2, "a_bits": 2, "method": "pact", "kernel": "k", "file_bytes": 7}
    contenders = {name: Contender(lambda: None, about) for name in ("torch", "own")}
    for threads in (1, 2):
        rows = compare._rows(NETWORK, Setting(1, threads, rounds=3), contenders)
        assert all(list(row) == COLUMNS for row in rows)
        assert [row["x_torch"] for row in rows] == [1, 3]
        assert [row["ms"] for row in rows] == [4000, 1000]
        assert {row["x_ort_int8"] for row in rows} == {None}
    # Time of this process alone; time that passes, when the threads of others sleep.
    assert asked == [(time.process_time, NETWORK.calls, 0), (now, 5, 0.05)]


def test_without_the_peers_their_columns_are_empty(monkeypatch, tmp_path, capsys, forget_imports):
    for name in ("onnx", "onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    before = torch.get_num_threads()
    settings = [Setting(batch, 1, ((2, 2),), rounds=1) for batch in (1, 3)]
    rows = compare.compare(NETWORK, tuple(settings), tmp_path)
    assert torch.get_num_threads() == before
    table = pd.DataFrame(rows)
    assert list(table) == COLUMNS
    assert table[["x_ort_fp32", "x_ort_int8", "x_openvino_int8"]].isna().all(axis=None)
    assert (table[["ms", "x_torch", "x_torch_frozen"]] > 0).all(axis=None)
    assert set(table.batch) == {1, 3} and set(table.threads) == {1}
    methods = table.groupby("batch").method.agg(list)
    assert all(found == ["fp", "fp", *compare.METHODS] for found in methods)
    assert (table.x_torch[table.kernel == "torch"] == 1).all()
    said = capsys.readouterr().err.splitlines()
    assert sum("onnx" in line for line in said) == 1  # onnxruntime and OpenVINO need it, too


def test_without_openvino_alone_its_column_is_empty(monkeypatch, tmp_path, capsys, forget_imports):
    for module in ("onnx", "onnxruntime.quantization"):
        pytest.importorskip(module)
    monkeypatch.setitem(sys.modules, "openvino", None)
    table = pd.DataFrame(compare.compare(NETWORK, (Setting(1, 1, ((2, 2),), rounds=1),), tmp_path))
    assert list(table) == COLUMNS and table.x_openvino_int8.isna().all()
    others = ["ms", "x_torch", "x_torch_frozen", "x_ort_fp32", "x_ort_int8"]
    assert (table[others] > 0).all(axis=None)
    assert list(table.method) == ["fp", "fp", "fp", "int8", *compare.METHODS]
    said = [line for line in capsys.readouterr().err.splitlines() if "stay empty" in line]
    assert len(said) == 1 and "openvino: its columns" in said[0]


def test_without_a_compiler_the_part_is_left_out(monkeypatch, capsys):
    def no_engine():
        raise compare.InputError("no C++ compiler")

    monkeypatch.setattr(compare, "library", no_engine)
    assert list(compare.measure(quick=True)) == []
    assert "left out: no C++ compiler" in capsys.readouterr().err


def test_the_tables_of_the_page_hold_the_rows_of_the_file():
    peer = {"network": "resnet20 32x32", "w_bits": 32, "a_bits": 32, "method": "fp"}
    peer |= {"kernel": "torch", "batch": 1, "threads": 1, "ms": 2.5, "x_torch": 1.0}
    mine = peer | {"w_bits": 2, "a_bits": 2, "method": "pact", "kernel": "matrices (AMX)"}
    mine |= {"ms": 0.25, "x_torch": 10.0, "file_bytes": 103720}
    found = pd.DataFrame([peer, mine, mine | {"threads": 2}], columns=COLUMNS)
    lines = tables.network_table(found, "resnet20 32x32", batch=1).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["", "kernels", "ms", "torch", "bytes"]
    assert cells[2] == ["torch", "", "2.5", "1.00", ""]
    assert cells[3:] == [["W2A2, PACT", "matrices (AMX)", "0.25", "10.00", "103,720"]]
    layers = found[found.threads == 1].assign(network="conv 3x3 16@32", x_ort_int8=2.0)
    lines = tables.layer_table(layers).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2:] == [["torch, ms", "2.5"], ["W2A2, PACT", "10.00 / 2.00"]]


def test_a_floor_that_is_reached_is_bold():
    row = dict.fromkeys(COLUMNS) | {"batch": 1, "threads": 1}
    row |= {"x_torch": 5.5, "x_ort_int8": 1.149, "x_openvino_int8": 3.0}
    rows = [
        row | {"network": network, "w_bits": w_bits, "a_bits": a_bits, "method": method}
        for network in ("resnet18 224x224", "resnet20 32x32")
        for w_bits, a_bits, method in tables.FLOORS
    ]
    found = pd.DataFrame([*rows, *(one | {"threads": 2, "x_torch": 99} for one in rows)])
    lines = tables.aims_table(found).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2] == [
        "W1A1, uniform",
        "5.50 (10, 13)",
        "1.15 (2.4, 3)",
        "**3.00** (2, 2.5)",
        "1.15 (2.5, 3)",
    ]
    of_basis = ["W2A2, basis", "**5.50** (5, 6)", "1.15 (1.2, 1.4)"]
    of_basis += ["**3.00** (1, 1.15)", "1.15 (1.15, 1.5)"]  # 1.149 does not reach 1.15
    assert of_basis in cells
    assert all(
        aim >= floor
        for key in tables.AIMS
        for aim, floor in zip(tables.AIMS[key], tables.FLOORS[key], strict=True)
    )


@pytest.mark.slow
def test_the_command_writes_a_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--only", "deploy", "--quick", "--out", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "deploy.csv")
    text = pd.read_csv(tmp_path / "deploy.csv", dtype=str)
    assert text.file_bytes.dropna().str.fullmatch("[1-9][0-9]*").all()  # not rounded
    assert list(table)[: len(COLUMNS)] == COLUMNS
    assert set(table.threads) == {1, 2}
    assert set(table.network) == {subject.name for subject in compare.QUICK}
