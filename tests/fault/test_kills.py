"""SIGKILL at any moment: the rerun ends in the bytes of a sweep that nothing happened to."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from sweeps import Project, assert_same_runs, in_child, signal_group, soak, status_of

from lowbit_core.runtime import files, run_folder
from lowbit_core.runtime.run_folder import RunFolder

KILLED = -signal.SIGKILL


def killed_after(seconds: float, child: int) -> bool:
    """SIGKILL to a child of this process after `seconds`; False if it ended by itself before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    status = status_of(child)
    assert status in (KILLED, 0)
    return status == KILLED


# -- a sweep ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed, kills, loader", (
    (1, 5, "torch"), soak(2, 25, "ffcv"),
))  # fmt: skip
def test_a_sweep_killed_at_random_moments(
    seed, kills, loader, reference, tmp_path, digits_root, last_kill
):  # fmt: skip
    """Snakemake and all its jobs at once, each time from 2 s to 14 s after it was started.

    Sooner where a whole sweep takes less."""
    project = Project(tmp_path / "killed", digits_root, loader=loader)
    whole = reference
    if loader == "ffcv":  # its data are prepared in the sweep, and that is killed too
        project.data = tmp_path / "killed" / "data"
        whole = Project(tmp_path / "whole", digits_root, loader=loader)
        whole.sweep()
    draw, done, longest = random.Random(seed), 0, 14.0
    while done < kills and time.monotonic() < last_kill:
        sweep, began = project.snakemake(), time.monotonic()
        try:
            sweep.wait(draw.uniform(longest / 7, longest))
        except subprocess.TimeoutExpired:
            signal_group(sweep, signal.SIGKILL)
            done += 1
        else:  # all done: the next begins again
            longest = min(longest, time.monotonic() - began)
            shutil.rmtree(project.folder / "results")
    print(f"{done} kills")
    project.sweep()
    assert done == kills, "the time is over"
    assert project.tables() == whole.tables()
    assert_same_runs(project.runs, whole.runs)
    assert not list(project.folder.glob("results/**/.*.tmp")), "left by a killed process"


# -- a training process ----------------------------------------------------------------------


@pytest.mark.parametrize("seed, kills", ((1, 5), soak(2, 20)))
def test_a_training_process_killed_at_random_moments(seed, kills, reference, trained, last_kill):
    draw, done = random.Random(seed), 0
    job = reference.jobs()[1]
    while done < kills:
        child = in_child(lambda: trained.train_here(job))
        if not killed_after(draw.uniform(0.02, 1.5), child):
            for path in trained.runs.glob("*-w2a2-*"):  # all done: the next begins again
                shutil.rmtree(path)
            continue
        done += 1
        assert time.monotonic() < last_kill
    assert status_of(in_child(lambda: trained.train_here(job))) == 0
    finished = {path.parent.name for path in trained.runs.glob("*/final.json")}
    assert_same_runs(trained.runs, reference.runs, finished)


def die_in_write(name: str, nth: int) -> None:
    """From now on the `nth` write of a file `name` is cut in half by SIGKILL."""
    left = [nth]

    def due(path: Path) -> bool:
        left[0] -= path.name == name
        return path.name == name and left[0] == 0

    whole_write, whole_append = files.write_bytes, RunFolder.append

    def write(path, data: bytes) -> None:
        if due(Path(path)):
            with files.replace_file(path) as temporary:
                temporary.write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        whole_write(path, data)

    def append(self, table, columns, rows) -> None:
        if due(self.path / table):
            with (self.path / table).open("a") as file:
                file.write(run_folder.table_text(columns, rows)[:-9])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        whole_append(self, table, columns, rows)

    files.write_bytes = run_folder.write_bytes = write
    RunFolder.append = append


def test_a_worker_killed_in_the_middle_of_every_kind_of_write(reference, trained):
    """One run that dies over and over: in each of its files, and in the job's own."""
    job = reference.jobs()[1]
    trained.adopt(reference, [job])
    direct = next(trained.runs.glob("*-direct-w2a2-*"))
    shutil.rmtree(direct)
    writes = [
        ("config.json", 1),
        ("layers.json", 1),
        ("weight_state.csv", 1),
        ("metrics.csv", 1),
        ("timings.csv", 1),
        ("weight_state.csv", 2),
        ("checkpoint.pt", 1),
        ("checkpoint.pt", 2),
        ("metrics.csv", 2),  # put back from the checkpoint, then written
        ("weight_histograms.json", 1),
        ("channel_error.csv", 1),
        ("weights.pt", 1),
        ("final.json", 1),
        (f"{job}.jsonl", 1),
    ]
    for name, nth in writes:

        def work(name=name, nth=nth) -> None:
            die_in_write(name, nth)
            trained.train_here(job)

        assert status_of(in_child(work)) == KILLED, name
    assert status_of(in_child(lambda: trained.train_here(job))) == 0
    assert_same_runs(trained.runs, reference.runs, {direct.name})
    assert not list(trained.folder.glob("results/runs/*/.*.tmp"))
    jobs = [p.results / "jobs" / f"{job}.jsonl" for p in (trained, reference)]
    assert jobs[0].read_bytes() == jobs[1].read_bytes()


# -- prepared data ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed, kills", ((1, 3), soak(2, 10)))
def test_preparing_data_killed_at_random_moments(seed, kills, tmp_path):
    """Also while the .beton is written: what is left is never taken for data, and is removed."""
    import sys

    from lowbit_core.datasets import prepare
    from lowbit_core.runtime.errors import run_cli

    def work(folder: Path) -> None:
        sys.argv = ["prepare", "digits", "--out", str(folder)]
        run_cli(prepare.main)

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    began = time.monotonic()
    assert status_of(in_child(lambda: work(tmp_path / "whole"))) == 0
    longest = time.monotonic() - began
    draw, done = random.Random(seed), 0
    while done < kills:
        child = in_child(lambda: work(tmp_path / "killed"))
        if killed_after(draw.uniform(0, longest), child):
            done += 1
        else:  # all done: the next begins again
            shutil.rmtree(tmp_path / "killed")
    assert status_of(in_child(lambda: work(tmp_path / "killed"))) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
