"""A queue: carried to a machine with only torch, trained within a time, stopped and continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_run import config

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import locked, write_json
from lowbit_core.runtime.run_folder import RunFolder
from workflow.away.parcel import merge, pack_data, pack_runs
from workflow.away.queue import (
    Queue,
    describe,
    ordered,
    pack_left,
    read_queue,
    suite_queue,
    write_queue,
)
from workflow.away.worker import ready, train_queue
from workflow.suite.identity import run_key

ROOT = Path(__file__).parents[2]
SOURCES = ("lowbit_core", "baselines", "workflow")
HIDDEN = (
    "snakemake",
    "mlflow",
    "ffcv",
    "numba",
    "jsonschema",
    "yaml",
    "jinja2",
    "sklearn",
    "scipy",
    "psutil",
    "pandas",
    "seaborn",
    "matplotlib",
)
HOOK = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {HIDDEN!r}:
            return super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def queued(run_id, method="fp", pretrained=None, role="main", **changes):
    run = config(method, run_id, pretrained=pretrained, threads=1, **changes) | {"role": role}
    return run | {"run_key": run_key(run)}


@pytest.fixture
def queue():
    return Queue(
        "tiny",
        [
            queued("start", role="checkpoint"),
            queued("fp", pretrained="start"),
            queued("direct", "direct", pretrained="start"),
        ],
        "0123456789ab",
    )


def copy_sources(folder):
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


class Machine:
    """A folder with a copy of the sources and a queue, and Python without the other packages."""

    def __init__(self, folder, queue, digits_root, hook):
        self.folder, self.runs = folder, folder / "results" / "runs"
        self.path = f"{hook}{os.pathsep}{folder}"
        copy_sources(folder)
        pack_data(digits_root / "digits", folder / "queue")
        write_queue(queue, folder / "queue")

    def start(self, *options):
        command = [sys.executable, "-m", "workflow.away.worker", "--queue", "queue"]
        return subprocess.Popen(
            [*command, "--minutes", "9", "--out", "out", *options],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": self.path},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *options):
        """Start the worker and wait for it; returns exit code and stderr."""
        process = self.start(*options)
        text = process.communicate(timeout=600)[1]
        return process.returncode, text


@pytest.fixture
def machine(tmp_path, digits_root, queue):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    return Machine(tmp_path / "machine", queue, digits_root, hook)


def test_a_queue_is_trained_with_torch_alone_and_comes_back(machine, queue, tmp_path):
    code, text = machine.run("--workers", "2")
    assert code == 0, text
    assert "suite tiny: 3 runs, 0 done" in text
    assert "suite tiny: 3 runs, 3 done, 0 begun, 0 left" in text
    assert text.index("ends start") < text.index("begins fp") < text.index("ends direct")
    runs = tmp_path / "results" / "runs"
    assert merge([machine.folder / "out"], runs) == ["direct", "fp", "start"]
    assert queue.done(runs) == {"start", "fp", "direct"}
    assert json.loads((runs / "fp" / "final.json").read_text())["git_commit"] == "0123456789ab"
    assert merge([machine.folder / "out"], runs) == []
    for path in machine.runs.glob("*/[!.]*"):
        if path.name != "lock":
            assert (runs / path.parent.name / path.name).read_bytes() == path.read_bytes()
    code, text = machine.run()  # nothing is left: no process is started
    assert code == 0 and "0 left" in text and "begins" not in text


def test_a_stopped_queue_goes_on_elsewhere_to_the_same_numbers(machine, queue, tmp_path):
    with locked(machine.runs / "direct" / "lock", ""):  # so that it cannot end before it is stopped
        process = machine.start()
        while not (machine.runs / "start" / "metrics.csv").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "stopped by a signal" in text
    other = tmp_path / "other"
    copy_sources(other)
    shutil.copytree(machine.folder / "queue", other / "queue")
    merge([machine.folder / "out"], other / "results" / "runs")
    command = [sys.executable, "-m", "workflow.away.worker", "--queue", "queue", "--minutes", "9"]
    for place in (other, machine.folder):
        environment = os.environ | {"PYTHONPATH": str(place)}
        subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    for run in queue.runs:
        path = Path("results") / "runs" / run["run_id"] / "metrics.csv"
        assert (other / path).read_bytes() == (machine.folder / path).read_bytes()


@pytest.mark.parametrize("name", ["quantizers/basis.py", "kernels/weights.cpp"])
def test_other_code_than_the_queue_s_is_refused(machine, name):
    path = machine.folder / "lowbit_core" / name
    path.write_text(path.read_text() + "\n")
    code, text = machine.run()
    assert code == 2
    assert text.count("\n") == 1 and f"another lowbit_core/{name}" in text


@pytest.mark.parametrize("text", [None, "{}", "[", "[]"])
def test_a_bad_queue_is_one_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "queue.json").write_text(text)
    with pytest.raises(InputError, match="missing or is not a queue") as error:
        read_queue(tmp_path)
    assert "\n" not in str(error.value)


def test_a_failed_run_stops_no_other(queue, tmp_path, digits_root, capfd):
    bad = queued("bad", arch="unknown")
    orphan = queued("orphan", pretrained="bad")
    killed = queued("killed", recipe=config()["recipe"] | {"batch_size": "many"})
    mixed = Queue("tiny", [bad, orphan, killed, queue.runs[0]])
    deadline = time.monotonic() + 300
    failed = train_queue(mixed, digits_root, tmp_path, 1, deadline, [])
    assert failed == {"bad", "killed"} and mixed.done(tmp_path) == {"start"}
    text = capfd.readouterr().err
    assert "error: run bad: unknown" in text and "failed killed: exit code 1" in text
    assert "begins orphan" not in text


def test_the_time_ends_training_and_what_was_begun_is_saved(tmp_path, digits_root):
    long = Queue("tiny", [queued("long", epochs=10_000)])
    began = time.monotonic()
    assert train_queue(long, digits_root, tmp_path, 1, began + 15, []) == set()
    assert time.monotonic() - began < 60
    assert "1 runs, 0 done, 1 begun, 1 left" in describe(long, tmp_path)


@pytest.mark.parametrize("option", ["--minutes", "--workers"])
def test_no_time_or_no_workers_are_refused(tmp_path, option):
    command = [sys.executable, "-m", "workflow.away.worker", "--queue", str(tmp_path)]
    done = subprocess.run(
        [*command, "--minutes", "1", option, "0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "both must be above 0" in done.stderr


# -- order and choice ------------------------------------------------------------------------


def test_the_paper_s_queue_completes_one_network_after_the_other():
    runs = suite_queue("paper", "cifar100").runs
    networks = [run["arch"] for run in runs]
    assert list(dict.fromkeys(networks)) == ["resnet20", "resnet18", "alexnet", "mobilenetv2"]
    first = [run for run in runs if run["arch"] == "resnet20" and run["seed"] == 0]
    assert runs[: len(first)] == first
    assert first[0]["pretrained"] is None and first[1]["pretrained"] == first[0]["run_id"]
    assert first[1]["method"] == "fp"
    bits = [f"W{run['w_bits']}A{run['a_bits']}" for run in first[2:]]
    assert list(dict.fromkeys(bits))[:3] == ["W2A2", "W1A2", "W3A3"]
    seen = set()
    for run in runs:
        assert run["pretrained"] is None or run["pretrained"] in seen
        seen.add(run["run_id"])
    assert ordered(runs) == runs


def finish(runs, run):
    folder = RunFolder(runs / run["run_id"])
    folder.write_json("config.json", run)
    (folder.path / "weights.pt").write_bytes(b"weights")
    numbers = {"top1": 60.0, "top5": 80.0, "test_loss": 1.0, "val_top1": 61.0, "epochs_done": 4}
    folder.finish({"run_key": run["run_key"], "status": "done"} | numbers)


def begin(runs, run):
    folder = RunFolder(runs / run["run_id"])
    folder.write_json("config.json", run)
    (folder.path / "checkpoint.pt").write_bytes(b"state")


def test_a_run_waits_for_its_start_and_what_was_begun_goes_first(tmp_path, queue):
    start, fp, direct = queue.runs
    assert ready(queue, tmp_path, set(), set()) == [start]
    assert ready(queue, tmp_path, set(), {"start"}) == []
    finish(tmp_path, start)
    done = queue.done(tmp_path)
    assert ready(queue, tmp_path, done, set()) == [fp, direct]
    begin(tmp_path, direct)
    assert ready(queue, tmp_path, done, set()) == [direct, fp]
    assert ready(queue, tmp_path, done, {"direct"}) == [fp]
    assert describe(queue, tmp_path) == "suite tiny: 3 runs, 1 done, 1 begun, 2 left"


def test_a_queue_without_the_start_of_a_run_is_refused(tmp_path, queue):
    write_queue(Queue("tiny", queue.runs[1:], queue.commit), tmp_path)
    with pytest.raises(InputError, match="queue.json: fp loads start: queue that run, too"):
        read_queue(tmp_path)


@pytest.mark.parametrize(
    ("changed", "words"),
    (
        ({"seed": 7}, "direct is not the run that its key names"),
        ({"run_key": None}, "direct is not the run that its key names"),
        ({"run_id": "../direct"}, "is missing or is not a queue"),
    ),
)
def test_a_changed_run_of_a_queue_is_refused(tmp_path, queue, changed, words):
    runs = [*queue.runs[:2], queue.runs[2] | changed]
    write_queue(Queue("tiny", runs, queue.commit), tmp_path)
    with pytest.raises(InputError, match=words):
        read_queue(tmp_path)


def test_a_start_without_its_weights_and_another_key_are_not_done(tmp_path, queue):
    start, fp, _ = queue.runs
    finish(tmp_path, start)
    finish(tmp_path, fp)
    (tmp_path / "fp" / "weights.pt").unlink()  # it stayed on another machine
    assert queue.done(tmp_path) == {"start", "fp"}
    (tmp_path / "start" / "weights.pt").unlink()
    assert queue.done(tmp_path) == {"fp"}
    RunFolder(tmp_path / "fp").finish({"run_key": "another"})
    assert queue.done(tmp_path) == set()


def test_what_is_left_is_packed(tmp_path, queue, digits_root):
    start, fp, direct = queue.runs
    finish(tmp_path / "runs", start)
    finish(tmp_path / "runs", fp)
    begin(tmp_path / "runs", direct)
    left = pack_left(queue, tmp_path / "runs", digits_root, tmp_path / "out")
    assert left == Queue("tiny", [start, direct], "0123456789ab")
    write_queue(left, tmp_path / "out")
    assert read_queue(tmp_path / "out") == left
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"queue.json", "digits.json", "digits.1", "runs.json", "runs.1"}
    assert merge([tmp_path / "out"], tmp_path / "there") == ["direct", "start"]
    assert left.done(tmp_path / "there") == {"start"}
    finish(tmp_path / "runs", direct)
    nothing = pack_left(queue, tmp_path / "runs", digits_root, tmp_path / "out")
    assert nothing.runs == [] and merge([tmp_path / "out"], tmp_path / "nowhere") == []


def test_what_a_start_was_itself_trained_from_is_packed_too(tmp_path, queue, digits_root):
    start, fp, direct = queue.runs
    below = queued("below", "direct", pretrained="start", predecessor="direct")
    chain = Queue(queue.suite, [start, fp, direct, below], queue.commit)
    for run in (start, fp, direct):
        finish(tmp_path / "runs", run)
    left = pack_left(chain, tmp_path / "runs", digits_root, tmp_path / "out")
    assert left.runs == [start, direct, below]
    further = queued("lowest", "direct", pretrained="direct")
    longer = Queue(queue.suite, [start, fp, direct, further], queue.commit)
    left = pack_left(longer, tmp_path / "runs", digits_root, tmp_path / "other")
    assert left.runs == [start, direct, further]
    write_queue(left, tmp_path / "other")
    assert read_queue(tmp_path / "other") == left


def test_a_damaged_run_is_not_carried(tmp_path, queue, digits_root):
    finish(tmp_path / "runs", queue.runs[0])
    (tmp_path / "runs" / "start" / "weights.pt").write_bytes(b"damaged")
    left = pack_left(queue, tmp_path / "runs", digits_root, tmp_path / "out")
    assert left == queue and merge([tmp_path / "out"], tmp_path / "there") == []


def test_a_run_of_another_configuration_is_refused(tmp_path, queue):
    write_json(tmp_path / "start" / "config.json", queue.runs[0] | {"run_key": "f" * 64})
    begin(tmp_path / "runs", queue.runs[0])
    pack_runs(queue.runs[:1], tmp_path / "runs", tmp_path / "out", "tiny")
    with pytest.raises(InputError, match="run start has two different run keys"):
        merge([tmp_path / "out"], tmp_path)
