"""Parcels: what is packed, carried and unpacked is the same to the bit, or refused."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import config

from lowbit_core.data.loader import make_loader
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import describe, manifest_path
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import try_lock, write_json
from lowbit_core.runtime.run_folder import RunFolder
from workflow.away import parcel

ROOT = Path(__file__).parents[2]


def queued(run_id, method="fp", pretrained=None):
    return config(method, run_id, run_id.ljust(64, "0"), pretrained=pretrained) | {"role": "main"}


RUNS = (queued("start"), queued("fp", pretrained="start"), queued("direct", "direct", "start"))


@pytest.fixture
def small_parcels(monkeypatch):
    monkeypatch.setattr(parcel, "PARCEL_BYTES", 20_000)


# -- any files -------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 4000))
def test_what_comes_back_is_what_was_written_in_small_files(tmp_path_factory, contents, limit):
    folder = tmp_path_factory.mktemp("parcels")
    members = {f"folder/{number}": content for number, content in enumerate(contents)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parcel, "PARCEL_BYTES", limit)
        parcel.write_parcels(folder, "some", members)
    pieces = [path for path in folder.iterdir() if path.suffix != ".json"]
    assert all(0 < path.stat().st_size <= limit for path in pieces)
    archive = parcel.open_parcels(folder, "some")
    assert {name: archive.read(name) for name in archive.namelist()} == members


def test_a_parcel_is_at_most_16_mib_large():
    assert parcel.PARCEL_BYTES == 16 * 2**20


def test_missing_and_damaged_parcels_are_named(tmp_path, small_parcels):
    parcel.write_parcels(tmp_path, "some", {"noise": os.urandom(50_000)})
    assert {path.name for path in tmp_path.iterdir()} == {"some.json", "some.1", "some.2", "some.3"}
    piece = (tmp_path / "some.2").read_bytes()
    (tmp_path / "some.2").write_bytes(piece[:-1] + bytes([piece[-1] ^ 1]))
    with pytest.raises(InputError, match="some.2 is missing or damaged: copy it again"):
        parcel.open_parcels(tmp_path, "some")
    (tmp_path / "some.2").write_bytes(piece[:700])
    with pytest.raises(InputError, match="some.2 is missing or damaged"):
        parcel.open_parcels(tmp_path, "some")
    (tmp_path / "some.2").unlink()
    with pytest.raises(InputError, match="some.2 is missing or damaged"):
        parcel.open_parcels(tmp_path, "some")
    for text in ("[", "1"):
        (tmp_path / "some.json").write_text(text)
        with pytest.raises(InputError, match="some.json is missing or damaged"):
            parcel.open_parcels(tmp_path, "some")
    (tmp_path / "some.json").write_text("[]")
    with pytest.raises(InputError, match="some.json names no parcels of an archive"):
        parcel.open_parcels(tmp_path, "some")
    with pytest.raises(InputError, match="other.json is missing or damaged"):
        parcel.open_parcels(tmp_path, "other")


def test_earlier_parcels_are_replaced(tmp_path, small_parcels):
    parcel.write_parcels(tmp_path, "some", {"noise": os.urandom(50_000)})
    parcel.write_parcels(tmp_path, "some", {"little": b"1"})
    assert {path.name for path in tmp_path.iterdir()} == {"some.json", "some.1"}


# -- data sets -------------------------------------------------------------------------------


def test_a_data_set_comes_back_as_it_was(digits_root, tmp_path, small_parcels):
    parcel.pack_data(digits_root / "digits", tmp_path / "parcels")
    assert len(list((tmp_path / "parcels").iterdir())) > 2
    there = tmp_path / "digits"
    parcel.unpack_data(tmp_path / "parcels", "digits", there)
    for split in ("train", "test"):
        for name in (f"{split}.npy", f"{split}_labels.npy"):
            assert (there / name).read_bytes() == (digits_root / "digits" / name).read_bytes()
    options = {"batch_size": 50, "train": True, "augmentation": "crop_flip", "backend": "torch"}
    ours, theirs = (
        list(make_loader(folder, "train", **options).epoch(1))
        for folder in (there, digits_root / "digits")
    )
    for x, y in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


@settings(max_examples=10)
@given(st.integers(1, 3), st.sampled_from(["digits", "cifar100"]), st.integers(0, 2**32 - 1))
def test_any_pixels_are_carried_losslessly(tmp_path_factory, count, name, seed):
    folder, info = tmp_path_factory.mktemp("data"), dataset(name)
    random = np.random.default_rng(seed)
    written = {}
    for split in ("train", "test"):
        shape = (count, info.channels, info.side, info.side)
        images = random.integers(0, 256, shape, dtype=np.uint8)
        labels = random.integers(0, info.classes, count)
        arrays = {f"{split}.npy": images, f"{split}_labels.npy": labels}
        for file, array in arrays.items():
            np.save(folder / file, array)
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes())
        manifest = dict.fromkeys(("class_counts", "side", "channels", "class_names", "versions"))
        manifest |= {"dataset": name, "split": split, "images": count, "backend": "torch"}
        manifest["files"] = {file: describe(folder / file) for file in arrays}
        manifest["samples_sha256"] = digest.hexdigest()
        write_json(manifest_path(folder, split), manifest)
        written |= arrays
    parcel.pack_data(folder, folder / "parcels")
    parcel.unpack_data(folder / "parcels", name, folder / "there")
    for file, array in written.items():
        assert np.array_equal(np.load(folder / "there" / file), array)


def test_other_pixels_than_the_manifest_s_are_refused(digits_root, tmp_path):
    parcel.pack_data(digits_root / "digits", tmp_path)
    archive = parcel.open_parcels(tmp_path, "digits")
    members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members["train.json"])
    members["train.json"] = json.dumps(manifest | {"samples_sha256": "0" * 64}).encode()
    parcel.write_parcels(tmp_path, "digits", members)
    with pytest.raises(InputError, match="train images of digits are not those packed"):
        parcel.unpack_data(tmp_path, "digits", tmp_path / "there")
    assert not (tmp_path / "there").exists()


# -- runs ------------------------------------------------------------------------------------


def begun(root, run, epochs):
    folder = RunFolder(root / run["run_id"])
    folder.write_json("config.json", run)
    rows = "".join(f"{epoch},1.0,1,0,1\n" for epoch in range(epochs))
    header = "epoch,seconds,images_per_s,data_wait_share,peak_memory_mb\n"
    (folder.path / "timings.csv").write_text(header + rows)
    (folder.path / "checkpoint.pt").write_bytes(b"state")
    (folder.path / "lock").touch()
    (folder.path / ".metrics.csv.1.tmp").touch()
    return folder.path


def finished(root, run, top1=60.0, weights=b"w" * 100):
    path = begun(root, run, 2)
    (path / "checkpoint.pt").unlink()
    (path / "weights.pt").write_bytes(weights)
    (path / "metrics.csv").write_text("rows")
    final = {"top1": top1, "top5": 80.0, "test_loss": 1.0, "val_top1": 61.0, "epochs_done": 2}
    final |= {"run_key": run["run_key"], "status": "done", "hardware": "H", "created": "today"}
    RunFolder(path).finish(final)
    return path


def packed(folder, **options):
    """Pack the runs in `folder`/runs; returns the folder with the parcels."""
    parcel.pack_runs(RUNS, folder / "runs", folder / "out", "tiny", **options)
    return folder / "out"


def test_what_others_need_has_room_before_what_they_do_not(tmp_path):
    noise = os.urandom(3000)
    for run in RUNS:
        path = finished(tmp_path / "runs", run, weights=noise)
    records = sum(p.stat().st_size for p in path.parent.glob("*/[!.]*") if p.name != "weights.pt")

    def left_out(total):
        return parcel.pack_runs(RUNS, path.parent, tmp_path / "out", "tiny", total)

    assert left_out(records + 9000) == []
    assert left_out(records + 6100) == ["direct/weights.pt"]
    assert left_out(records + 3100) == ["fp/weights.pt", "direct/weights.pt"]
    assert parcel.merge([tmp_path / "out"], tmp_path / "there") == ["direct", "fp", "start"]
    assert (tmp_path / "there" / "start" / "weights.pt").read_bytes() == noise
    names = {path.name for path in (tmp_path / "there" / "fp").iterdir()}
    assert names == {"config.json", "final.json", "metrics.csv", "timings.csv"}
    assert left_out(0)[0] == "start/weights.pt"
    assert len(parcel.merge([tmp_path / "out"], tmp_path / "elsewhere")) == 3  # the records


def test_lower_widths_take_room_like_weights(tmp_path):
    folders = [finished(tmp_path / "runs", run, weights=os.urandom(3000)) for run in RUNS]
    (folders[2] / "widths.pt").write_bytes(os.urandom(9000))
    records = sum(p.stat().st_size for p in tmp_path.glob("runs/*/[!.]*") if p.suffix != ".pt")
    room = records + 3100
    left_out = parcel.pack_runs(RUNS, tmp_path / "runs", tmp_path / "out", "tiny", room)
    assert left_out == ["fp/weights.pt", "direct/weights.pt", "direct/widths.pt"]
    for room in (records + 6100, records + 15100):  # of one run's networks both come, or neither
        left_out = parcel.pack_runs(RUNS, tmp_path / "runs", tmp_path / "out", "tiny", room)
        assert ("direct/weights.pt" in left_out) == ("direct/widths.pt" in left_out)


def test_the_same_content_gives_the_same_parcels(tmp_path, monkeypatch):
    for name, year in (("one", 2001), ("other", 2002)):
        monkeypatch.setattr(time, "time", lambda year=year: year * 3e7)
        parcel.write_parcels(tmp_path / name, "runs", {"a/b": b"content"})
    one, other = (sorted((tmp_path / name).iterdir()) for name in ("one", "other"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_the_state_of_an_unfinished_run_has_room_before_weights(tmp_path):
    begun(tmp_path / "runs", RUNS[2], 1)
    finished(tmp_path / "runs", RUNS[1])
    room = 150 + sum(
        p.stat().st_size for p in tmp_path.glob("runs/*/[!.]*") if p.suffix in (".csv", ".json")
    )
    (tmp_path / "runs" / "direct" / "checkpoint.pt").write_bytes(b"s" * 100)
    left_out = parcel.pack_runs(RUNS, tmp_path / "runs", tmp_path / "out", "tiny", room)
    assert left_out == ["fp/weights.pt"]


def test_merging_takes_the_more_complete_of_each_run(tmp_path):
    start, fp, direct = RUNS
    finished(tmp_path / "a" / "runs", start)
    begun(tmp_path / "a" / "runs", fp, 2)
    begun(tmp_path / "b" / "runs", fp, 1)
    (begun(tmp_path / "c" / "runs", fp, 3) / "checkpoint.pt").unlink()  # nothing to go on from
    finished(tmp_path / "b" / "runs", direct)
    (finished(tmp_path / "there", direct) / "weights.pt").unlink()  # left on its machine
    a, b, c = (packed(tmp_path / name) for name in "abc")
    assert parcel.merge([a, b, c], tmp_path / "there") == ["direct", "fp", "start"]
    assert (tmp_path / "there" / "direct" / "weights.pt").exists()
    with (tmp_path / "there" / "fp" / "timings.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert parcel.merge([c, b, a], tmp_path / "there") == []
    assert {path.name for path in (tmp_path / "there").iterdir()} == {"start", "fp", "direct"}
    assert not list(tmp_path.glob(".merge.*"))


def test_a_damaged_run_gives_way_to_a_whole_copy(tmp_path):
    start = RUNS[0]
    finished(tmp_path / "a" / "runs", start)
    damaged = finished(tmp_path / "there", start)
    (damaged / "metrics.csv").write_text("damaged")
    assert parcel.merge([packed(tmp_path / "a")], tmp_path / "there") == ["start"]
    assert RunFolder(damaged).finished(weights=False) is not None


def test_earlier_parcels_stay_until_the_new_ones_are_written(tmp_path, small_parcels, monkeypatch):
    content = os.urandom(50_000)
    parcel.write_parcels(tmp_path, "some", {"a": content})

    def full(path, data):
        raise OSError("no space left")

    monkeypatch.setattr(parcel, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        parcel.write_parcels(tmp_path, "some", {"b": b""})
    assert parcel.open_parcels(tmp_path, "some").read("a") == content
    monkeypatch.undo()
    parcel.write_parcels(tmp_path, "some", {"b": b"1"})
    assert {path.name for path in tmp_path.iterdir()} == {"some.1", "some.json"}


def test_a_conflict_is_refused_in_one_sentence_and_nothing_is_copied(tmp_path):
    start, fp, _ = RUNS
    finished(tmp_path / "a" / "runs", start)
    finished(tmp_path / "a" / "runs", fp, top1=60.0)
    path = finished(tmp_path / "b" / "runs", fp, top1=61.0)
    a, b = packed(tmp_path / "a"), packed(tmp_path / "b")
    there = tmp_path / "results" / "there"
    with pytest.raises(InputError, match="fp was trained twice .* 60.0 on H .* 61.0 on H") as error:
        parcel.merge([a, b], there)
    assert "\n" not in str(error.value) and not list(there.iterdir())
    (path / "metrics.csv").write_text("damaged")
    with pytest.raises(InputError, match="metrics.csv is not what was written"):
        parcel.merge([a, packed(tmp_path / "b")], there)
    assert not list(there.iterdir())
    finished(tmp_path / "there", fp | {"run_key": "f" * 64})
    with pytest.raises(InputError, match="run fp has two different run keys") as error:
        parcel.merge([a], tmp_path / "there")
    assert f"{'f' * 64} from {tmp_path / 'there' / 'fp'}" in str(error.value)
    assert f"from {a}" in str(error.value)
    with pytest.raises(InputError, match="runs.json is missing"):
        parcel.merge([tmp_path], there)


def test_a_run_that_trains_is_not_replaced(tmp_path):
    """All runs stay as they are, also those that could be merged."""
    start, fp, _ = RUNS
    finished(tmp_path / "a" / "runs", start)
    begun(tmp_path / "a" / "runs", fp, 2)
    here = begun(tmp_path / "there", fp, 1)
    lock = try_lock(here / "lock")
    with pytest.raises(InputError, match=f"being trained: {here}: stop that"):
        parcel.merge([packed(tmp_path / "a")], tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["fp"]
    lock.close()
    assert parcel.merge([tmp_path / "a" / "out"], tmp_path / "there") == ["fp", "start"]


def test_parcels_write_nothing_outside(tmp_path):
    members = {"../../escaped/config.json": b"{}", "/tmp/escaped/config.json": b"{}"}
    members |= {"about.json": b'{"suite": "tiny", "roles": {}}'}
    parcel.write_parcels(tmp_path / "out", "runs", members)
    with pytest.raises(InputError, match="config.json of run escaped has no run_key"):
        parcel.merge([tmp_path / "out"], tmp_path / "results" / "runs")
    assert not list(tmp_path.rglob("config.json")) and not Path("/tmp/escaped").exists()


@pytest.mark.parametrize(
    "about",
    (
        *(None, b"[]", b"{", b'{"suite": "../../x", "roles": {}}'),
        b'{"suite": "tiny", "roles": {"..": "run"}}',
    ),
)
def test_parcels_that_say_wrongly_what_they_are_copy_nothing(tmp_path, about):
    members = {"about.json": about} if about else {"some": b"thing"}
    parcel.write_parcels(tmp_path / "out", "runs", members)
    with pytest.raises(InputError, match="out: about.json is missing or damaged"):
        parcel.merge([tmp_path / "out"], tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_run_is_named_with_the_parcels_that_it_came_in(tmp_path):
    folder = finished(tmp_path / "a" / "runs", RUNS[0])
    (folder / "metrics.csv").write_text("damaged")
    with pytest.raises(InputError, match="a/out: start/metrics.csv"):
        parcel.merge([packed(tmp_path / "a")], tmp_path / "there")


def test_data_that_were_not_packed_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no data set digits: write the queue with --data"):
        parcel.unpack_data(tmp_path, "digits", tmp_path / "digits")
    parcel.write_parcels(tmp_path, "digits", {"some": b"thing"})
    with pytest.raises(InputError, match="the parcels digits hold no data set"):
        parcel.unpack_data(tmp_path, "digits", tmp_path / "digits")


def test_merged_runs_are_tracked(tmp_path):
    run_id = write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    stored = json.loads((tmp_path / "runs" / run_id / "config.json").read_text())
    parcel.pack_runs([stored | {"role": "main"}], tmp_path / "runs", tmp_path / "out", "tiny")
    command = [sys.executable, "-m", "workflow.away.parcel", "merge", str(tmp_path / "out")]
    command += ["--runs", str(tmp_path / "results" / "runs")]
    done = subprocess.run(
        [*command, "--no-sync"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "1 runs are new" in done.stdout and "suite" not in done.stdout
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 runs are new" in done.stdout and "1 runs of suite tiny are in" in done.stdout
    assert (tmp_path / "results" / "mlflow" / "mlflow.db").exists()
