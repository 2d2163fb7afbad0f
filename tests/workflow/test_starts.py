"""The starts that are kept beside a suite's record, and taken from there on another machine."""

from pathlib import Path

import fake_runs
import pytest

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import WEIGHTS, RunFolder
from workflow import starts
from workflow.away.parcel import TOTAL_BYTES
from workflow.suite.packing import Job
from workflow.suite.suite import Suite


def trained(runs: Path) -> Suite:
    """A suite of two starts, of which one is finished, and of a run of it that is finished, too."""
    done = fake_runs.write_run(runs, "resnet20", "fp", (32, 32), 0)
    left = fake_runs.write_run(runs, "resnet20", "fp", (32, 32), 1)
    run = fake_runs.write_run(runs, "resnet20", "direct", (2, 2), 0, pretrained=done)
    for name in (done, run):
        folder = RunFolder(runs / name)
        (folder.path / WEIGHTS).write_bytes(name.encode())
        folder.finish(folder.read_json("final.json"))
    RunFolder(runs / left).remove("final.json")
    configs = [RunFolder(runs / name).read_json("config.json") for name in (done, left, run)]
    return Suite("made", {}, {"a": Job("a", tuple(config | {"role": "r"} for config in configs))})


def test_a_kept_start_is_a_finished_run_on_another_machine(tmp_path: Path):
    suite, there = trained(tmp_path / "here"), tmp_path / "there" / "runs"
    start = suite.runs[0]
    assert starts.keep(suite, tmp_path / "here", tmp_path / "kept") == [start["run_id"]]
    assert starts.use(suite, tmp_path / "kept", there) == [start["run_id"]]
    assert starts.use(suite, tmp_path / "kept", there) == []
    assert [folder.name for folder in there.iterdir()] == [start["run_id"]]
    assert RunFolder(there / start["run_id"]).finished(weights=True)["run_key"] == start["run_key"]


def test_what_cannot_be_kept_or_used_is_refused(tmp_path: Path):
    suite = trained(tmp_path / "here")
    with pytest.raises(InputError, match="holds no finished start of suite 'made'"):
        starts.keep(suite, tmp_path / "empty", tmp_path / "kept")
    starts.keep(suite, tmp_path / "here", tmp_path / "kept")
    other = [run | {"run_id": f"{run['run_id']}-other"} for run in suite.runs]
    changed = Suite("made", {}, {"a": Job("a", tuple(other))})
    with pytest.raises(InputError, match="holds no start of this version of suite 'made'"):
        starts.use(changed, tmp_path / "kept", tmp_path / "there")


def test_a_large_start_is_kept_with_its_weights(tmp_path: Path):
    suite, there = trained(tmp_path / "here"), tmp_path / "there"
    start = RunFolder(tmp_path / "here" / suite.runs[0]["run_id"])
    with (start.path / WEIGHTS).open("wb") as file:
        file.truncate(TOTAL_BYTES + 1)  # zeros, so that they compress to little
    start.finish(start.read_json("final.json"))
    starts.keep(suite, tmp_path / "here", tmp_path / "kept")
    starts.use(suite, tmp_path / "kept", there)
    assert (there / suite.runs[0]["run_id"] / WEIGHTS).stat().st_size == TOTAL_BYTES + 1
