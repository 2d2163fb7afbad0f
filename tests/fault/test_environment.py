"""Disk, tracking, clock or GPU fail: nothing is lost, and a rerun ends in the same bytes."""

import errno
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweeps import LONGEST, assert_same_runs, in_child, status_of

from lowbit_core.datasets.prepare import main as prepare
from lowbit_core.runtime.errors import run_cli
from lowbit_core.runtime.progress import Progress
from workflow import track
from workflow.track import Store, TrackedRun, Watcher

# -- disk ------------------------------------------------------------------------------------


def mount(*words: object) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave `free` KiB of the disk."""
    file = disk / "filler"
    file.unlink(missing_ok=True)
    with file.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - 1024 * free)
    return file


def refused(capfd, work, *words: str) -> None:
    """`work`, in a child, ends with one sentence and exit code 2."""
    capfd.readouterr()
    assert status_of(in_child(work)) == 2
    said = capfd.readouterr().err
    last = said.splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in said, said
    assert all(word in last for word in words), said


def whole_in_the_end(trained, reference, job: str) -> None:
    assert status_of(in_child(lambda: trained.train_here(job))) == 0
    finished = {path.parent.name for path in trained.runs.glob("*/final.json")}
    assert_same_runs(trained.runs, reference.runs, finished)
    jobs = [p.results / "jobs" / f"{job}.jsonl" for p in (trained, reference)]
    assert jobs[0].read_bytes() == jobs[1].read_bytes()


@pytest.fixture
def on_small_disk(trained, small_disk):
    """The project `trained`, its run folders on the small disk."""
    shutil.copytree(trained.runs, small_disk / "runs")
    shutil.rmtree(trained.runs)
    trained.runs.symlink_to(small_disk / "runs")
    return trained


def test_a_full_disk_stops_training_and_loses_nothing(on_small_disk, small_disk, reference, capfd):
    """Full at the start, in the middle of the first epoch's files, and later."""
    job = reference.jobs()[1]
    for free in (0, 16, 128, 512):
        filler = fill(small_disk, free)
        refused(
            capfd, lambda: on_small_disk.train_here(job), os.strerror(errno.ENOSPC), "results/runs"
        )
    filler.unlink()
    whole_in_the_end(on_small_disk, reference, job)


def test_a_read_only_disk_stops_training(on_small_disk, small_disk, reference, capfd):
    job = reference.jobs()[1]
    mount("-o", "remount,ro", small_disk)
    refused(capfd, lambda: on_small_disk.train_here(job), os.strerror(errno.EROFS), "results/runs")
    mount("-o", "remount,rw", small_disk)
    whole_in_the_end(on_small_disk, reference, job)


def test_no_file_may_grow_beyond_a_quota(trained, reference, capfd):
    """The kernel cuts every file at so many bytes, wherever training is."""
    job = reference.jobs()[1]

    def work(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        trained.train_here(job)

    for limit in (3000, 50_000):  # what is said goes to a file too, a shorter one
        refused(capfd, lambda limit=limit: work(limit), os.strerror(errno.EFBIG))
    whole_in_the_end(trained, reference, job)


def test_data_on_a_full_disk_are_not_prepared(small_disk, capfd):
    def work() -> None:
        sys.argv = ["prepare", "digits", "--out", str(small_disk / "digits")]
        run_cli(prepare)

    for free in (0, 40, 1000):
        filler = fill(small_disk, free)
        refused(capfd, work, "digits could not be written", os.strerror(errno.ENOSPC))
    filler.unlink()
    assert status_of(in_child(work)) == 0


# -- GPU and clock ---------------------------------------------------------------------------


@pytest.mark.parametrize("said", (
    "CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 80 GiB in all",
))  # fmt: skip
def test_a_lost_gpu_stops_training_and_a_rerun_goes_on(said, trained, reference, capfd):
    """In the second epoch: the first is kept."""
    job = reference.jobs()[1]

    def work() -> None:
        def step(self, epoch, count, whole=Progress.step):
            whole(self, epoch, count)
            if epoch == 2:
                raise RuntimeError(said)

        Progress.step = step
        trained.train_here(job)

    assert status_of(in_child(work)) == 3
    err = capfd.readouterr().err
    last = err.splitlines()[-1]
    assert "the GPU failed (CUDA" in last and "run the same command again" in last, err
    assert "Traceback" not in err
    whole_in_the_end(trained, reference, job)
    assert "epoch 1/2" not in capfd.readouterr().err.partition("w2a2")[0]  # it went on


def test_a_clock_that_runs_back_changes_nothing(trained, reference):
    job = reference.jobs()[1]

    def work() -> None:
        now = [time.time()]

        def earlier() -> float:
            now[0] -= 3600
            return now[0]

        time.time = earlier
        trained.train_here(job)

    assert status_of(in_child(work)) == 0
    whole_in_the_end(trained, reference, job)
    for path in trained.runs.glob("*/final.json"):
        assert json.loads(path.read_text())["seconds"] >= 0


def test_a_sweep_after_the_clock_was_set_back_trains_nothing_again(project, reference):
    """Every job file older than the data it was made from."""
    project.adopt(reference, reference.jobs())
    for path in project.results.rglob("*"):
        os.utime(path, (1e9, 1e9))
    assert "epoch 1/2" not in project.sweep("results/tiny/results.csv")
    results = [p.results / "results.csv" for p in (project, reference)]
    assert results[0].read_bytes() == results[1].read_bytes()
    assert_same_runs(project.runs, reference.runs)


# -- tracking --------------------------------------------------------------------------------


@pytest.fixture
def swept(project, reference):
    project.adopt(reference, reference.jobs())
    return project


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sync(project, **options) -> int:
    """`workflow.track sync`, as the rule starts it."""
    jobs = sorted(map(str, (project.results / "jobs").glob("*.jsonl")))
    words = ["--suite", "tiny", "--jobs", *jobs, "--data", str(project.data)]
    return project.start(sys.executable, "-m", "workflow.track", "sync", *words, **options).wait(
        LONGEST
    )


def tracked(store: Path) -> dict[tuple, float]:
    """{(run_id, metric, step): value} of the database; a value that stands twice is an error."""
    rows = sqlite3.connect(store / "mlflow.db").execute(
        "select t.value, m.key, m.step, m.value from metrics m join tags t "
        "on t.run_uuid = m.run_uuid and t.key = 'run_id'"
    )
    found: dict[tuple, float] = {}
    for run_id, key, step, value in rows:
        assert (run_id, key, step) not in found
        found[run_id, key, step] = value
    return found


def recorded(runs: Path) -> dict[tuple, float]:
    """The same from the run folders."""
    found = {}
    for folder in runs.iterdir():
        epochs = track.read_epochs(folder)
        for row in epochs:
            for key in row.keys() - {"epoch"}:
                found[folder.name, key, row["epoch"]] = row[key]
        final = json.loads((folder / "final.json").read_text())
        for key, name in track.FINAL_METRICS.items():
            found[folder.name, name, epochs[-1]["epoch"]] = final[key]
    return found


@contextmanager
def locked_by_another(store: Path):
    database = sqlite3.connect(store / "mlflow.db", isolation_level=None)
    database.execute("begin exclusive")
    yield
    database.execute("rollback")
    database.close()


def test_a_locked_or_deleted_mlflow_database_costs_no_metric(swept, tmp_path):
    store = swept.folder / "results" / "mlflow"
    before = contents(swept.runs)
    assert sync(swept) == 0, swept.said()
    assert tracked(store) == recorded(swept.runs)
    with locked_by_another(store):
        assert sync(swept) == 2
    said = swept.said()
    assert "database is locked; results are not touched" in said and "Traceback" not in said, said
    assert tracked(store) == recorded(swept.runs)
    for name in ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm"):
        (store / name).unlink(missing_ok=True)
    assert sync(swept) == 0, swept.said()
    assert tracked(store) == recorded(swept.runs)
    assert contents(swept.runs) == before


def test_without_mlflow_training_goes_on_and_only_tracking_fails(trained, reference, tmp_path):
    (tmp_path / "gone" / "mlflow").mkdir(parents=True)
    (tmp_path / "gone" / "mlflow" / "__init__.py").write_text("raise ImportError('gone')\n")
    job = reference.jobs()[1]
    gone = str(tmp_path / "gone")
    assert trained.train(job, PYTHONPATH=gone).wait(LONGEST) == 0, trained.said()
    whole_in_the_end(trained, reference, job)
    assert sync(trained, PYTHONPATH=gone) == 2
    assert trained.said().startswith("error: MLflow cannot be imported (gone)"), trained.said()


def test_a_watcher_outlives_its_database(swept, tmp_path, capfd):
    """Deleted while runs are followed: it complains once and goes on."""
    roles = [{"run_id": path.name, "role": "run"} for path in swept.runs.iterdir()]
    settings = {"suite": {"suite": "smoke"}, "runs": roles}
    (swept.runs.parent / "config.json").write_text(json.dumps(settings))
    store = Store(tmp_path / "mlflow")
    watcher = Watcher(store, swept.runs, swept.data)
    watcher.look()
    assert tracked(store.folder) == recorded(swept.runs)
    shutil.rmtree(store.folder)
    for path in swept.runs.glob("*/final.json"):
        os.utime(path)
    before = contents(swept.runs)
    watcher.look()
    watcher.look()
    assert capfd.readouterr().err.count("tracking: ") <= 1
    assert contents(swept.runs) == before


def test_a_sweep_lists_its_runs_before_it_trains(project):
    """From that list `make ui` knows which runs to show while they train."""
    job = project.jobs()[0]
    project.sweep(f"results/tiny/jobs/{job}.jsonl", "results/tiny/config.json", cores=1)
    listed = json.loads((project.results / "config.json").read_text())
    trained = [path.parent.name for path in project.runs.glob("*/config.json")]
    assert trained and set(trained) <= {run["run_id"] for run in listed["runs"]}
    when = (project.results / "config.json").stat().st_mtime
    assert all(path.stat().st_mtime > when for path in project.runs.glob("*/config.json"))


def test_eight_runs_trained_at_once_are_tracked_to_the_last_metric(digits_root, tmp_path):
    """They are copied to MLflow again and again while they train."""
    import torch
    from test_signals import config

    import baselines
    from lowbit_core.training.run import Place, train_run

    runs, store = tmp_path / "runs", Store(tmp_path / "mlflow")
    with store.client() as client:
        client.search_experiments()
    names = [f"run{seed}" for seed in range(8)]

    def work(seed: int) -> None:
        settings = config("direct", epochs=4) | {
            "seed": seed, "run_id": names[seed], "run_key": f"{seed}".rjust(64, "0"),
        }  # fmt: skip
        train_run(
            settings, baselines.method("direct"), Place(digits_root, runs, torch.device("cpu"))
        )

    children = [in_child(lambda seed=seed: work(seed)) for seed in range(8)]
    running, looks = set(children), 0
    while running:
        running -= {c for c in running if os.waitpid(c, os.WNOHANG) != (0, 0)}
        there = [TrackedRun(runs / n, "run") for n in names if (runs / n / "config.json").exists()]
        track.sync(store, "eight", there, digits_root)
        looks += 1
    track.sync(store, "eight", [TrackedRun(runs / name, "run") for name in names], digits_root)
    assert len(list(runs.glob("*/final.json"))) == 8
    assert tracked(store.folder) == recorded(runs)
    assert len(recorded(runs)) == 8 * (4 * 9 + 5)
    assert (
        track.sync(store, "eight", [TrackedRun(runs / n, "run") for n in names], digits_root) == 0
    )
