"""The committed record of a suite, and how it grows."""

import json
import threading
import time
import zlib
from pathlib import Path

import fake_runs
import pytest

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from workflow import reference
from workflow.results.analysis import results
from workflow.results.compare import pair_runs
from workflow.results.record import FILES, Record, write_record, write_texts
from workflow.suite.packing import Job
from workflow.suite.suite import Suite


def test_finished_runs_of_a_suite(tmp_path: Path):
    done, torn = (
        fake_runs.write_run(tmp_path, "resnet20", name, (2, 2), 0) for name in ("direct", "pact")
    )
    RunFolder(tmp_path / torn).remove("final.json")
    runs = [
        {"run_id": name, "run_key": RunFolder(tmp_path / name).read_json("config.json")["run_key"],
         "role": role}
        for name, role in ((done, "ablation"), (torn, "run"))
    ]  # fmt: skip
    suite = Suite("made", {}, {"a": Job("a", tuple(runs))})
    assert reference.finished_runs(suite, tmp_path) == {done: "ablation"}


def train(
    folder: Path,
    starts: dict[int, list[str]],
    version: str,
    out: Path,
    lr: float = 0.05,
    loader: str = "ffcv",
    starts_of: str = "",
) -> Suite:
    """Runs of {seed: methods} by one version of the code, and their record in `out`.

    Starts are networks of their own in each folder, or those of the folder named `starts_of`.
    """
    names = {}
    for seed, methods in starts.items():
        start = fake_runs.write_run(folder, "resnet20", "fp", (32, 32), seed)
        names[start] = "checkpoint"
        for method in methods:
            run = fake_runs.write_run(folder, "resnet20", method, (2, 2), seed, pretrained=start)
            names[run] = "run"
    runs = []
    for name, role in names.items():
        config = RunFolder(folder / name).read_json("config.json")
        config |= {"code_version": version, "loader": loader}
        (folder / name / "config.json").write_text(json.dumps(config))
        metrics = (folder / name / "metrics.csv").read_text()
        (folder / name / "metrics.csv").write_text(metrics.replace("0.05", str(lr)))
        final = RunFolder(folder / name).read_json("final.json")
        trained_in = starts_of if names[name] == "checkpoint" and starts_of else folder.name
        loss = zlib.crc32(trained_in.encode()) / 2**32
        RunFolder(folder / name).finish(final | {"test_loss": loss})
        runs.append(config | {"role": role})
    write_record({"suite": "made"}, names, folder, out)
    return Suite("made", {"suite": "made"}, {"a": Job("a", tuple(runs))})


def found(record: Path) -> set[tuple[int, str, str]]:
    configs = [run["config"] for run in Record(record).runs]
    return {(config["seed"], config["method"], config["code_version"]) for config in configs}


def test_a_record_grows_by_whole_starts(tmp_path: Path):
    """A start that both hold keeps its pairs together: the side with more runs of it counts."""
    whole = {0: ["direct"], 1: ["direct", "lsq"], 2: ["direct"], 3: ["direct"]}
    suite = train(tmp_path / "all", whole, "new", tmp_path / "unused")
    train(
        tmp_path / "a",
        {0: ["direct"], 1: ["direct", "lsq"], 2: ["direct"]},
        "old",
        tmp_path / "old",
    )
    train(tmp_path / "b", {1: ["direct"], 2: ["direct"], 3: ["direct"]}, "new", tmp_path / "new")
    epochs = {**Record(tmp_path / "old").epochs, **Record(tmp_path / "new").epochs}
    assert len(reference.add_earlier(tmp_path / "old", tmp_path / "new", suite).from_earlier) == 5
    assert found(tmp_path / "new") == {
        (0, "fp", "old"), (0, "direct", "old"),
        (1, "fp", "old"), (1, "direct", "old"), (1, "lsq", "old"),
        (2, "fp", "new"), (2, "direct", "new"),
        (3, "fp", "new"), (3, "direct", "new"),
    }  # fmt: skip
    record = Record(tmp_path / "new")
    assert list(record.epochs) == [run["config"]["run_id"] for run in record.runs]
    assert all(rows == epochs[run_id] for run_id, rows in record.epochs.items())
    assert record.histograms["run_id"] in record.epochs


def test_runs_from_one_start_come_together_from_two_machines(tmp_path: Path):
    """A start that both share is one network: neither side's runs replace the other's."""
    suite = train(tmp_path / "all", {0: ["direct", "lsq", "pact"]}, "new", tmp_path / "unused")
    old, new = tmp_path / "old", tmp_path / "new"
    train(tmp_path / "a", {0: ["direct", "lsq"]}, "old", old, lr=0.25)
    train(tmp_path / "b", {0: ["lsq", "pact"]}, "new", new, starts_of="a")
    assert len(reference.add_earlier(old, new, suite).from_earlier) == 1
    assert found(new) == {
        (0, "fp", "new"), (0, "direct", "old"), (0, "lsq", "new"), (0, "pact", "new"),
    }  # fmt: skip
    rates = {name.split("-")[2]: rows[-1]["lr"] for name, rows in Record(new).epochs.items()}
    assert rates == {"fp": 0.05, "direct": 0.25, "lsq": 0.05, "pact": 0.05}


def test_a_start_that_was_trained_again_and_came_out_the_same_counts_once(tmp_path: Path):
    """By later code it has another id: runs of both are runs of one network all the same."""
    suite = train(tmp_path / "all", {0: ["direct", "lsq"]}, "new", tmp_path / "unused")
    old, new = tmp_path / "old", tmp_path / "new"
    train(tmp_path / "a", {0: ["lsq"]}, "old", old)
    train(tmp_path / "b", {0: ["direct"]}, "new", new, starts_of="a")
    lines = (old / "runs.jsonl").read_text()
    start = next(run["config"]["run_id"] for run in Record(old).runs if run["role"] == "checkpoint")
    write_texts(old, {"runs.jsonl": lines.replace(start, f"{start}-earlier")})
    for again in ("c", "d"):  # the second time from the record that was joined
        assert len(reference.add_earlier(old, new, suite).from_earlier) == 1
        rows = {row["method"]: row for row in results(Record(new)) if row["role"] == "run"}
        assert rows["lsq"]["pretrained"] == rows["direct"]["pretrained"] == start
        assert len(pair_runs([rows["direct"]], [rows["lsq"]]).keys) == 1
        old, new = new, tmp_path / f"new-{again}"
        train(tmp_path / again, {0: ["direct"]}, "new", new, starts_of="a")


def test_runs_of_a_machine_without_ffcv_stay_in_the_record(tmp_path: Path):
    suite = train(tmp_path / "all", {0: ["direct"], 1: ["direct"]}, "new", tmp_path / "unused")
    train(tmp_path / "a", {0: ["direct"]}, "old", tmp_path / "old", loader="torch")
    train(tmp_path / "b", {1: ["direct"]}, "new", tmp_path / "new", loader="torch")
    assert len(reference.add_earlier(tmp_path / "old", tmp_path / "new", suite).from_earlier) == 2
    assert {seed for seed, *_ in found(tmp_path / "new")} == {0, 1}


def test_epochs_are_those_of_the_training_that_is_kept(tmp_path: Path):
    """Trained again elsewhere by the same code, a run has the same id, and other numbers."""
    suite = train(tmp_path / "a", {0: ["direct", "lsq"]}, "same", tmp_path / "old", lr=0.25)
    train(tmp_path / "b", {0: ["direct"]}, "same", tmp_path / "new")
    before, other = Record(tmp_path / "old").epochs, Record(tmp_path / "new").epochs
    assert before.keys() > other.keys() and all(before[run] != other[run] for run in other)
    assert len(reference.add_earlier(tmp_path / "old", tmp_path / "new", suite).from_earlier) == 3
    assert Record(tmp_path / "new").epochs == before


def test_runs_that_left_the_suite_leave_its_record(tmp_path: Path):
    train(tmp_path / "a", {0: ["direct", "pact"]}, "old", tmp_path / "old")
    suite = train(tmp_path / "b", {0: ["direct"], 1: ["direct"]}, "new", tmp_path / "new")
    before = [(tmp_path / "new" / name).read_bytes() for name in FILES]
    assert len(reference.add_earlier(tmp_path / "old", tmp_path / "new", suite).from_earlier) == 0
    assert [(tmp_path / "new" / name).read_bytes() for name in FILES] == before


def test_runs_of_a_start_whose_recipe_changed_leave_the_record(tmp_path: Path):
    """They would otherwise outnumber those of the new start, and take their place."""
    train(tmp_path / "a", {0: ["direct", "pact", "lsq"]}, "old", tmp_path / "old")
    suite = train(tmp_path / "b", {0: ["direct", "pact", "lsq"]}, "new", tmp_path / "new")
    start = next(run for run in suite.runs if run["pretrained"] is None)
    start["recipe"] = start["recipe"] | {"epochs": 99}
    joined = reference.add_earlier(tmp_path / "old", tmp_path / "new", suite)
    assert not joined.from_earlier and len(joined.outside) == 4
    assert {version for *_, version in found(tmp_path / "new")} == {"new"}


def test_runs_that_left_the_suite_stay_in_its_record_unless_they_are_given_up(
    tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "out" / "record"
    train(tmp_path / "a", {0: ["direct"], 1: ["direct"]}, "old", out)
    suite = train(tmp_path / "b", {0: ["direct"]}, "old", tmp_path / "unused", starts_of="a")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    before = found(out)
    call = ["--suite", "made", "--runs", str(tmp_path / "b"), "--out", str(out)]
    with pytest.raises(InputError, match="has 2 runs, such as .* no longer trains.*--replace"):
        reference.main(call)
    assert found(out) == before
    reference.main([*call, "--replace"])
    assert "no longer in the suite" in capsys.readouterr().err
    assert {seed for seed, *_ in found(out)} == {0}


def test_two_at_once_lose_no_run(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out" / "record"
    suite = train(tmp_path / "a", {0: ["direct"], 1: ["direct"]}, "old", tmp_path / "unused")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    parts = [[run for run in suite.runs if run["seed"] == seed] for seed in (0, 1)]
    roles = [{run["run_id"]: run["role"] for run in part} for part in parts]
    call = ["--suite", "made", "--runs", str(tmp_path / "a"), "--out", str(out)]
    write = reference.write_record

    def write_while_another_waits(*arguments):
        monkeypatch.setattr(reference, "write_record", write)
        monkeypatch.setattr(reference, "finished_runs", lambda *_: roles[1])
        other.start()
        time.sleep(0.5)
        assert other.is_alive()  # it waits for the lock
        write(*arguments)

    other = threading.Thread(target=reference.main, args=(call,))
    monkeypatch.setattr(reference, "finished_runs", lambda *_: roles[0])
    monkeypatch.setattr(reference, "write_record", write_while_another_waits)
    reference.main(call)
    other.join()
    assert {seed for seed, *_ in found(out)} == {0, 1}
    assert not list(out.parent.glob("*.tmp"))


@pytest.mark.parametrize("again", [["direct"], ["lsq"], ["lsq", "pact"]])
def test_what_has_no_place_is_named_and_nothing_is_replaced_unasked(
    again: list[str], tmp_path: Path, monkeypatch, capsys
):
    out = tmp_path / "out" / "record"
    suite = train(tmp_path / "all", {0: ["direct", "lsq", "pact"]}, "new", tmp_path / "unused")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    train(tmp_path / "a", {0: again}, "old", out)
    before = found(out)
    train(tmp_path / "b", {0: ["lsq", "pact"]}, "new", tmp_path / "unused")
    roles = {path.name: "run" for path in (tmp_path / "b").iterdir()}
    monkeypatch.setattr(reference, "finished_runs", lambda *_: roles)
    call = ["--suite", "made", "--runs", str(tmp_path / "b"), "--out", str(out)]
    with pytest.raises(InputError, match="--replace"):
        reference.main(call)
    assert found(out) == before
    reference.main([*call, "--replace"])
    assert "replaced, since their start was trained again" in capsys.readouterr().err
    assert {method for _, method, _ in found(out)} == {"fp", "lsq", "pact"}


@pytest.mark.parametrize("compare_on", ["validation", "test"])
def test_runs_that_another_suite_trained_are_taken_from_its_record(
    compare_on: str, tmp_path: Path, monkeypatch, capsys
):
    """A suite that chooses on validation images takes them without their test accuracy."""
    other = tmp_path / "other" / "record"
    train(tmp_path / "a", {0: ["direct", "pact"]}, "old", other)
    suite = train(tmp_path / "b", {0: ["direct", "lsq"]}, "new", tmp_path / "unused", starts_of="a")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    monkeypatch.setattr(Suite, "has_variants", True)
    suite.config["compare_on"] = compare_on
    roles = {run["run_id"]: run["role"] for run in suite.runs if run["method"] != "direct"}
    monkeypatch.setattr(reference, "finished_runs", lambda *_: roles)
    out = tmp_path / "out" / "record"
    call = ["--suite", "made", "--runs", str(tmp_path / "b"), "--out", str(out)]
    reference.main([*call, "--also", str(other)])
    assert "0 of them kept, 1 from other suites" in capsys.readouterr().err
    assert found(out) == {(0, "fp", "new"), (0, "lsq", "new"), (0, "direct", "old")}
    known = {run["config"]["method"]: "top1" in run["final"] for run in Record(out).runs}
    assert known == {"fp": True, **dict.fromkeys(("lsq", "direct"), compare_on == "test")}


def test_another_suite_s_record_replaces_nothing(tmp_path: Path, monkeypatch, capsys):
    """Its start is another network, and has more runs: what was recorded stays all the same."""
    out, other = tmp_path / "out" / "record", tmp_path / "other" / "record"
    suite = train(tmp_path / "all", {0: ["direct", "lsq", "pact"]}, "new", tmp_path / "unused")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    train(tmp_path / "a", {0: ["direct"]}, "old", out)
    train(tmp_path / "b", {0: ["lsq", "pact"]}, "new", other)
    before = found(out)
    roles = {path.name: "run" for path in (tmp_path / "a").iterdir()}
    monkeypatch.setattr(reference, "finished_runs", lambda *_: roles)
    call = ["--suite", "made", "--runs", str(tmp_path / "a"), "--out", str(out)]
    reference.main([*call, "--also", str(other)])
    assert found(out) == before
    assert "of another suite: their start is another network" in capsys.readouterr().err
    settings = json.loads((other / "suite.json").read_text()) | {"variants": True}
    write_texts(other, {"suite.json": json.dumps(settings)})
    with pytest.raises(InputError, match="no test accuracies.*name a record of another kind"):
        reference.main([*call, "--also", str(other)])
    with pytest.raises(InputError, match="no test accuracies.*name another --out"):
        reference.main([*call[:-1], str(other)])


def test_the_command_keeps_what_was_recorded(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out" / "record"
    suite = train(tmp_path / "a", {0: ["direct"], 1: ["direct"]}, "old", tmp_path / "unused")
    train(tmp_path / "b", {1: ["direct"]}, "old", tmp_path / "unused", starts_of="a")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    for runs, line in (
        ("a", "4 runs of 4 of suite made, 0"),
        ("b", "4 runs of 4 of suite made, 2"),
    ):
        reference.main(["--suite", "made", "--runs", str(tmp_path / runs), "--out", str(out)])
        assert f"holds {line} of them kept" in capsys.readouterr().err
    assert {seed for seed, *_ in found(out)} == {0, 1}


def test_runs_on_other_data_sets_than_those_named_are_kept(tmp_path: Path, monkeypatch):
    """--datasets limits what is added, not what the record holds already."""
    out = tmp_path / "out" / "record"
    suite = train(tmp_path / "a", {0: ["direct"], 1: ["direct"]}, "old", out)
    train(tmp_path / "b", {1: ["direct"]}, "old", tmp_path / "unused", starts_of="a")
    monkeypatch.setattr(reference, "load_suite", lambda *_: suite)
    part = Suite("made", suite.config, {"a": Job("a", suite.jobs["a"].runs[2:])})
    monkeypatch.setattr(Suite, "only", lambda *_: part)
    named = ["--datasets", "some", "--runs", str(tmp_path / "b"), "--out", str(out)]
    reference.main(["--suite", "made", *named])
    assert {seed for seed, *_ in found(out)} == {0, 1}
