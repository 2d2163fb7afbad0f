"""Torn and corrupted files of every kind: named in one sentence, made again or refused."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeps import assert_same_runs, in_child, status_of

from lowbit_core.datasets import manifest
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import load_tensors
from workflow import track
from workflow.results import main_table, record, tables
from workflow.results.columns import TABLES, read_table
from workflow.results.record import Record
from workflow.suite import jobs, suite

DAMAGES = ("empty", "cut", "flip", "junk")
OTHER_RUN = "another run's"


def damage(path: Path, how: str, seed: int = 0) -> None:
    """Empty, half, one bit flipped in the middle half, or other bytes."""
    data = bytearray(path.read_bytes())
    place = random.Random(f"{path.name}{seed}").randrange(len(data) // 4, 3 * len(data) // 4)
    data[place] ^= 1 << random.Random(seed).randrange(7)
    new = {"empty": b"", "cut": data[: len(data) // 2], "flip": data, "junk": b"\x00\xff\n" * 9}
    path.write_bytes(new[how])


def refused(work, *names: object) -> str:
    """Raises InputError in one sentence that names the file."""
    with pytest.raises(InputError) as caught:
        work()
    text = str(caught.value)
    assert "\n" not in text and all(str(name) in text for name in names), text
    return text


@pytest.fixture
def swept(reference, project):
    """A project with all results of the reference sweep."""
    project.adopt(reference, reference.jobs())
    shutil.copytree(reference.results / "record", project.results / "record")
    for path in (*reference.results.glob("*.csv"), *reference.results.glob(".*.sha256")):
        shutil.copy(path, project.results / path.name)
    return project


def record_again(project, out: Path) -> Path:
    """Make the record of the project's jobs, and from it results.csv."""
    files = sorted((project.results / "jobs").glob("*.jsonl"))
    jobs.check_jobs(files, project.runs)
    settings = Record(project.results / "record").settings["suite"]
    record.write_record(settings, jobs.read_jobs(files), project.runs, out / "record")
    tables.write_tables(out, Record(out / "record"))
    return out / "results.csv"


# -- what a run leaves -----------------------------------------------------------------------

RUN_FILES = (
    "config.json", "layers.json", "metrics.csv", "timings.csv", "weight_state.csv",
    "weight_histograms.json", "channel_error.csv", "final.json",
)  # fmt: skip


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("how", (*DAMAGES, OTHER_RUN))
def test_a_damaged_run_is_not_recorded_and_its_job_is_made_again(name, how, swept, tmp_path):
    direct = next(swept.runs.glob("*-direct-w2a2-*"))
    if how == OTHER_RUN:
        other = next(swept.runs.glob("*-lq_nets-w2a2-*"))
        if (other / name).read_bytes() == (direct / name).read_bytes():
            pytest.skip(f"{name} is the same in both runs")
        shutil.copy(other / name, direct / name)
    else:
        damage(direct / name, how)
    job = next(j for j in (swept.results / "jobs").glob("*") if direct.name in j.read_text())
    named = direct if (how, name) == (OTHER_RUN, "final.json") else direct / name
    refused(lambda: record_again(swept, tmp_path), named, job, "snakemake")
    assert not job.exists() and not (tmp_path / "record").exists()


def test_what_was_damaged_is_made_again_to_the_byte(swept, reference, tmp_path):
    """The checkpoint's weights, a finished run's table and another's weights, all at once."""
    for pattern, name in (
        ("*-checkpoint-*", "weights.pt"),
        ("*-fp-fp-*", "metrics.csv"),
        ("*-direct-*", "weights.pt"),
    ):
        damage(next(swept.runs.glob(pattern)) / name, "flip")
    job = reference.jobs()[1]
    with pytest.raises(InputError):
        record_again(swept, tmp_path)
    assert status_of(in_child(lambda: swept.train_here(job))) == 0
    assert_same_runs(swept.runs, reference.runs)
    made = record_again(swept, tmp_path)
    assert made.read_bytes() == (reference.results / "results.csv").read_bytes()


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_no_flipped_bit_of_a_checkpoint_is_used(reference, tmp_path_factory, seed):
    """Anywhere in the file: refused, or it changed nothing that is read."""
    whole = next(reference.runs.glob("*-checkpoint-*")) / "weights.pt"
    data = bytearray(whole.read_bytes())
    data[seed % len(data)] ^= 1 << seed % 7
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    path.write_bytes(data)
    try:
        got = load_tensors(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        wanted = load_tensors(whole)
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], wanted[key]) for key in got)


# -- job files and tables --------------------------------------------------------------------


@pytest.mark.parametrize("how", (*DAMAGES, "a line lost"))
def test_a_damaged_job_file_is_refused(how, swept, tmp_path):
    job = swept.results / "jobs" / f"{swept.jobs()[1]}.jsonl"
    if how == "a line lost":
        job.write_text(job.read_text().splitlines(keepends=True)[0])
    else:
        damage(job, how)
    refused(lambda: record_again(swept, tmp_path), job if how != "flip" else "")


def read_record(folder: Path) -> None:
    found = Record(folder)
    for part in ("settings", "runs", "epochs", "channels", "histograms"):
        getattr(found, part)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_table_is_refused(how, swept):
    """Every table, and every file of the record that they are made from."""
    at = swept.results
    not_made = ("variants.csv", "ablation_options.csv", "table_deploy.csv")
    paths = [at / name for name in TABLES if name not in not_made]
    for path in (*paths, *(at / "record" / name for name in record.FILES)):
        whole = path.read_bytes()
        damage(path, how)
        is_table = path.suffix == ".csv"
        work = partial(read_table, path) if is_table else partial(read_record, path.parent)
        refused(work, path, "delete it and run `snakemake` again")
        path.write_bytes(whole)
    read_record(at / "record")


def mutated(text: bytes, draw: random.Random) -> bytes:
    """One to three cuts, repeats, exchanges or foreign bytes somewhere in `text`."""
    for _ in range(draw.randint(1, 3)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.choice((0, 1, 5, 40)))
        foreign = (b"", b"-", b"1e999", b"nan", b"\xff", b"\n", b",", b'"', b"[", b"{", b": ", b"0",
                   b"!!python/object/apply:os.system [id]", text[start:end] * 2)  # fmt: skip
        text = text[:start] + draw.choice(foreign) + text[end:]
    return text


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_suite_is_accepted_or_refused(seed):
    """Without a traceback, and within a second."""
    text = mutated((suite.SUITES / "smoke.yaml").read_bytes(), random.Random(seed))
    answered_in_one_line(lambda: suite.parse_suite(text.decode(errors="replace"), "my.yaml"))


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32), name=st.sampled_from(("results.csv", "job", "metrics.csv", "paper"))
)
def test_a_mutated_table_is_accepted_or_refused(reference, tmp_path_factory, seed, name):
    """Without their checksums: results, a job's runs, a running run's epochs, published values."""
    folder = tmp_path_factory.getbasetemp() / "mutated"
    folder.mkdir(exist_ok=True)
    run = next(reference.runs.glob("*-direct-w2a2-*"))
    source = {
        "results.csv": reference.results / "results.csv",
        "job": reference.results / "jobs" / f"{reference.jobs()[1]}.jsonl",
        "metrics.csv": run / "metrics.csv",
        "paper": suite.ROOT / "config" / "published.csv",
    }[name]
    path = folder / (name if "." in name else source.name)
    path.write_bytes(mutated(source.read_bytes(), random.Random(seed)))
    shutil.copy(run / "timings.csv", folder / "timings.csv")

    def read() -> None:
        if name == "results.csv":
            rows = main_table.main_table(read_table(path), [])
            main_table.markdown(rows, "tiny")
            main_table.latex(rows, "tiny")
        elif name == "job":
            jobs.read_job(path)
        elif name == "metrics.csv":
            track.read_epochs(folder)
        else:
            main_table.read_published("paper", path)

    answered_in_one_line(read)


def answered_in_one_line(work) -> None:
    try:
        work()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


# -- prepared data ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("backend", ("torch", "ffcv"))
def test_damaged_data_are_refused(how, backend, digits_root, tmp_path):
    folder = shutil.copytree(digits_root / "digits", tmp_path / "digits")
    kinds = ["train.manifest.json", "train_labels.npy"]
    for name in (*kinds, "train.beton" if backend == "ffcv" else "train.npy"):
        whole = (folder / name).read_bytes()
        damage(folder / name, how)
        refused(lambda: manifest.check(folder, "train", backend), folder / name, "rebuild it with")
        (folder / name).write_bytes(whole)
    manifest.check(folder, "train", backend)


def test_every_flipped_bit_of_a_manifest_is_noticed(digits_root, tmp_path):
    folder = shutil.copytree(digits_root / "digits", tmp_path / "digits")
    path = folder / "test.manifest.json"
    whole, unnoticed = path.read_bytes(), []
    wanted = {key: value for key, value in json.loads(whole).items() if key != "checksum"}
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            got = manifest.read_manifest(folder, "test")
            if {key: got.get(key) for key in wanted} != wanted:
                unnoticed.append(place)
        except InputError as error:
            assert "\n" not in str(error)
    assert unnoticed == []
