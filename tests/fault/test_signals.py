"""SIGINT and SIGTERM: the step is finished, its state saved, and a rerun ends in the same bytes."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, redirect_stderr

import pytest
import torch
from sweeps import LONGEST, assert_same_runs, in_child, signal_group, soak, status_of

import baselines
from lowbit_core.runtime import signals
from lowbit_core.runtime.errors import StopTraining
from lowbit_core.runtime.progress import Progress
from lowbit_core.training import run as training
from lowbit_core.training.build import build_run
from lowbit_core.training.run import Place, train_run

SAVED = re.compile(
    r"^stopped by (SIGINT|SIGTERM): (\S+) is saved in epoch (\d+) after step (\d+) of (\d+); "
    r"run the same command again to go on$",
    re.MULTILINE,
)


@pytest.fixture
def listening(monkeypatch):
    """The handlers of the training process, in this one."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signals, "_asked", None)
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def config(method: str, epochs: int = 2, **recipe) -> dict:
    groups = {"codes": {}, "levels": {"lr_scale": 0.1}, "clip": {"weight_decay": 1e-4}}
    return {
        "dataset": "digits",
        "arch": "alexnet",
        "arch_options": {"width": 2, "stem": "small_stride2"},
        "method": method,
        "w_bits": 2,
        "a_bits": 2,
        "seed": 3,
        "policy": {"first_last": "fp", "shortcut": "quantized", "exceptions": {}},
        "recipe": {
            "name": "short",
            "epochs": epochs,
            "batch_size": 32,
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "warmup_epochs": 0.5,
            "schedule": "cosine",
            "label_smoothing": 0.0,
            "augmentation": "crop_flip",
            "train_images": 160,
            "val_images": 64,
            "eval_batch_size": 64,
            "precision": "fp32",
            "ema": 0,
            "quantizer_groups": {
                k: {"lr_scale": 1, "weight_decay": 0} | v for k, v in groups.items()
            },
        }
        | recipe,
        "pretrained": None,
        "loader": "torch",
        "compile": "off",
        "code_version": "0" * 12,
        "run_key": "a" * 64,
        "run_id": "run",
    }


def stopped_after(steps: set[int], settings: dict, data, runs, monkeypatch) -> int:
    """Train, with a real SIGTERM during each of `steps` (counted over all resumes)."""
    count, stops = [0], 0
    original = Progress.step

    def step(self, epoch, images):
        count[0] += 1
        if count[0] in steps:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, epoch, images)

    monkeypatch.setattr(Progress, "step", step)
    place = Place(data, runs, torch.device("cpu"))
    while True:
        try:
            train_run(settings, baselines.method(settings["method"]), place)
            return stops
        except StopTraining as stop:
            assert stop.code == 128 + signal.SIGTERM
            monkeypatch.setattr(signals, "_asked", None)
            stops += 1


@pytest.mark.parametrize("method", ("direct", "lq_nets", "pact", "dorefa"))
def test_stopped_at_every_step_is_never_stopped(
    method, listening, digits_root, tmp_path, monkeypatch, capfd
):
    """Ten steps, ten signals: what is saved within an epoch is all that there is."""
    settings = config(method)
    assert stopped_after(set(), settings, digits_root, tmp_path / "whole", monkeypatch) == 0
    every = set(range(1, 11))
    assert stopped_after(every, settings, digits_root, tmp_path / "stopped", monkeypatch) == 10
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")
    said = capfd.readouterr().err
    assert len(SAVED.findall(said)) == 8 and said.count("stopped by SIGTERM") == 10


@pytest.mark.parametrize("recipe", ({"ema": 0.9}, {"precision": "bf16"}), ids=str)
def test_every_option_resumes_within_the_epoch(
    recipe, listening, digits_root, tmp_path, monkeypatch
):
    settings = config("direct", **recipe)
    stopped_after(set(), settings, digits_root, tmp_path / "whole", monkeypatch)
    assert stopped_after({3, 7}, settings, digits_root, tmp_path / "stopped", monkeypatch) == 2
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_random_numbers_go_on_where_they_were(listening, digits_root, tmp_path, monkeypatch):
    """No network of ours draws any in training; one that does (dropout) resumes exactly too."""

    def with_dropout(*arguments):
        run = build_run(*arguments)
        run.model.register_forward_hook(
            lambda m, _, y: torch.nn.functional.dropout(y, 0.5, m.training)
        )
        return run

    monkeypatch.setattr(training, "build_run", with_dropout)
    settings = config("pact")
    stopped_after(set(), settings, digits_root, tmp_path / "whole", monkeypatch)
    assert stopped_after({2, 5, 8}, settings, digits_root, tmp_path / "stopped", monkeypatch) == 3
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_signal_outside_of_training_steps_ends_at_once(tmp_path):
    """Also one that arrives in a destructor, where Python would swallow an exception."""
    code = (
        "import os, signal; from lowbit_core.runtime import signals; signals.listen()\n"
        "class Dying:\n    def __del__(self): os.kill(os.getpid(), signal.SIGINT)\n"
        "d = Dying()\ndel d\nwhile True: pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 130
    assert done.stderr.startswith("stopped by SIGINT: ") and done.stderr.count("\n") == 1


def test_an_error_that_a_signal_brings_is_not_reported_as_one(listening, capfd):
    """Ctrl-C ends the compiler's processes too: the failed compilation is no error of its own."""
    with pytest.raises(StopTraining), signals.deferred("run x is saved up to epoch 3"):
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("C++ compile error")
    assert "saved up to epoch 3" in capfd.readouterr().err


@pytest.mark.parametrize("backend", ("torch", "ffcv"))
def test_a_loader_that_is_left_in_the_middle_of_an_epoch_ends(backend, digits_root):
    from lowbit_core.data.loader import make_loader

    loader = make_loader(
        digits_root / "digits", "train", batch_size=16, train=True, backend=backend
    )
    for epoch in range(3):
        with closing(loader.epoch(epoch)) as batches:
            next(batches)
    assert len(list(loader.epoch(4))) == len(loader)


def test_a_stopped_training_process_goes_on(reference, trained):
    """The real entry point: a signal within an epoch, and then to the end."""
    job = reference.jobs()[1]
    trained.hold()
    process = trained.train(job)
    trained.wait_until_held(1, process)
    assert signal_group(process, signal.SIGTERM) == 128 + signal.SIGTERM, trained.said()
    said = trained.said()
    stopped = SAVED.search(said.splitlines()[-1])
    assert stopped and stopped.group(3, 4) == ("2", "1") and "Traceback" not in said, said
    trained.release()
    assert trained.train(job).wait(LONGEST) == 0, trained.said()
    assert "epoch 1/2" not in trained.said().partition("w2a2")[0]  # the first run went on
    finished = {path.parent.name for path in trained.runs.glob("*/final.json")}
    assert_same_runs(trained.runs, reference.runs, finished)


@pytest.mark.parametrize("number", (signal.SIGINT, soak(signal.SIGTERM)))
def test_a_stopped_sweep_goes_on_and_a_second_one_is_refused(number, reference, trained):
    """Ctrl-C reaches every process of the terminal; `kill` reaches snakemake alone."""
    trained.hold()
    sweep = trained.snakemake()
    trained.wait_until_held(2, sweep)  # both jobs: they go on when they are told to stop
    second = trained.snakemake(log="second")
    assert second.wait(LONGEST) != 0
    said = trained.said("second")
    assert f"another sweep is running in {trained.folder} (process {sweep.pid})" in said, said
    assert "Traceback" not in said
    if number == signal.SIGINT:
        code = signal_group(sweep, number)
    else:
        sweep.send_signal(number)
        code = sweep.wait(LONGEST)
    said = trained.said()
    assert code != 0, said
    stops = {stop.groups()[:4] for stop in SAVED.finditer(said)}
    assert len(stops) == 2 and {(stop[0], *stop[2:]) for stop in stops} == {(number.name, "2", "1")}
    assert "Traceback" not in said, said
    trained.release()
    trained.sweep()
    assert trained.tables() == reference.tables()
    assert_same_runs(trained.runs, reference.runs)


def test_of_two_processes_with_one_run_the_second_waits(digits_root, tmp_path):
    """What they say goes to a file: capfd loses what is written while it is being read."""
    settings = config("direct")
    place = Place(digits_root, tmp_path, torch.device("cpu"))
    method, said = baselines.method("direct"), tmp_path / "said"

    def train() -> None:
        with said.open("a") as file, redirect_stderr(file):
            train_run(settings, method, place)

    (tmp_path / "run").mkdir()
    said.touch()
    with (tmp_path / "run" / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # or the first could end before the second begins
        children = [in_child(train) for _ in range(2)]
        while said.read_text().count("another process trains this run: waiting") < 2:
            assert all(os.waitpid(child, os.WNOHANG) == (0, 0) for child in children)
            time.sleep(0.01)
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not do: the children have it open too
    assert [status_of(child) for child in children] == [0, 0]
    assert said.read_text().count("epoch 1/2") == 1
