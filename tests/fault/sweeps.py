"""A copy of the project with the tiny suite, swept and trained as users do it: by command lines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lowbit_core.training.run  # noqa: F401  here, so that no fork has to import it
from lowbit_core.runtime.errors import run_cli
from workflow import train
from workflow.suite import suite

ROOT = Path(__file__).parent.parent.parent
CODE = ("Snakefile", "workflow", "lowbit_core", "baselines", "config", "profiles")
BIN = Path(sys.executable).parent
# What a rerun must give again to the byte; timings.csv is the clock's.
SAME = (
    "results.csv",
    "epochs.csv",
    "diagnostics.csv",
    "record/histograms.json",
    "claims.csv",
    "claims.md",
    "table_main.csv",
    "table_main.md",
    "table_main.tex",
    "ablation_channel_error.csv",
    "ablation_channel_error_summary.csv",
    "ablation_direct_weights.csv",
    "ablation_direct_weights_summary.csv",
)
RUN_FILES = ("metrics.csv", "weight_state.csv", "layers.json", "weight_histograms.json")
LONGEST = 300.0  # seconds that any command may take
# Added to a project's copy of progress.py (which is no part of a run's identity): while there is a
# folder `hold`, training waits in the first step of epoch 2, and does not end before it is stopped.
HOLD = """

def _held_step(self, epoch, count, step=Progress.step):
    from os import getpid
    from pathlib import Path
    from lowbit_core.runtime import signals

    step(self, epoch, count)
    if epoch == 2 and Path("hold").exists():
        Path("hold", str(getpid())).touch()
    while epoch == 2 and Path("hold").exists() and not signals.asked():
        time.sleep(0.01)


Progress.step = _held_step
"""


class Project:
    """One checkout in a folder of its own; `data` is the prepared data that all of them share."""

    def __init__(self, folder: Path, data: Path, loader: str = "torch", runs_per_job: int = 2):
        self.folder, self.data = folder, data
        folder.mkdir(parents=True, exist_ok=True)
        for name in CODE:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name, **_skip_caches(copy))
        text = (ROOT / "tests" / "fault" / "tiny.yaml").read_text()
        text = text.replace("loader: torch", f"loader: {loader}")
        text = text.replace("runs_per_job: 2", f"runs_per_job: {runs_per_job}")
        (folder / "config" / "suites" / "tiny.yaml").write_text(text)
        self.results = folder / "results" / "tiny"
        self.runs = folder / "results" / "runs"

    def start(self, *command: str, log: str = "log", **environment: str) -> subprocess.Popen:
        """The command in a process group of its own; what it says goes to the file `log`."""
        settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
        settings["PATH"] = f"{BIN}:{settings['PATH']}"
        with (self.folder / log).open("w") as file:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=settings,
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def snakemake(
        self, *targets: str, config: tuple = (), cores: int = 2, **options
    ) -> subprocess.Popen:
        targets = targets or tuple(f"results/tiny/{name}" for name in SAME)
        settings = ("suite=tiny", f"data={self.data}", *config)
        command = (str(BIN / "snakemake"), "--cores", str(cores), "--config", *settings)
        command += ("--", *targets)
        return self.start(*command, **options)

    def sweep(self, *targets: str, **options) -> str:
        """Sweep to the end; returns what was said."""
        code = self.snakemake(*targets, **options).wait(LONGEST)
        assert code == 0, self.said()
        return self.said()

    def jobs(self) -> list[str]:
        """Names of the suite's jobs, checkpoint first."""
        found = getattr(self, "_jobs", None)
        if found is None:
            code = "from workflow.suite.suite import load_suite as s; print(*s('tiny').jobs)"
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=self.folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            found = self._jobs = done.stdout.split()
        return found

    def train(self, job: str, **options) -> subprocess.Popen:
        """One training process, as the rule starts it."""
        out = f"results/tiny/jobs/{job}.jsonl"
        words = ["--suite", "tiny", "--job", job, "--data", str(self.data), "--out", out]
        return self.start(
            sys.executable, "-m", "workflow.train", *words, "--runs", "results/runs", **options
        )

    def train_here(self, job: str) -> None:
        """What `train` starts, in this process (a fork, which need not import everything anew)."""
        os.chdir(self.folder)
        suite.SUITES = self.folder / "config" / "suites"
        out = f"results/tiny/jobs/{job}.jsonl"
        words = ["--suite", "tiny", "--job", job, "--data", str(self.data), "--out", out]
        sys.argv = ["train", *words, "--runs", "results/runs"]
        run_cli(train.main)

    def adopt(self, other: "Project", jobs: list[str]) -> None:
        """Copy the finished runs of `jobs` from another project."""
        self._jobs = other.jobs()
        for job in jobs:
            lines = (other.results / "jobs" / f"{job}.jsonl").read_text()
            (self.results / "jobs").mkdir(parents=True, exist_ok=True)
            (self.results / "jobs" / f"{job}.jsonl").write_text(lines)
            for line in lines.splitlines():
                run = json.loads(line)["run_id"]
                shutil.copytree(other.runs / run, self.runs / run)

    def hold(self) -> None:
        """From now on training waits within epoch 2, until a signal or `release`."""
        with (self.folder / "lowbit_core" / "runtime" / "progress.py").open("a") as file:
            file.write(HOLD)
        (self.folder / "hold").mkdir()

    def wait_until_held(self, processes: int, started: subprocess.Popen) -> None:
        """Wait until so many training processes are within epoch 2."""
        self._wait(
            lambda: len(list((self.folder / "hold").iterdir())) >= processes,
            started,
            f"{processes} processes in epoch 2",
        )

    def release(self) -> None:
        shutil.rmtree(self.folder / "hold")

    def said(self, log: str = "log") -> str:
        return (self.folder / log).read_text(errors="replace")

    def tables(self) -> dict[str, bytes]:
        return {name: (self.results / name).read_bytes() for name in SAME}

    def _wait(self, done: Callable[[], bool], started: subprocess.Popen, what: str) -> None:
        end = time.monotonic() + LONGEST
        while not done():
            assert started.poll() is None, f"it ended before {what}: {self.said()}"
            assert time.monotonic() < end, f"no {what}: {self.said()}"
            time.sleep(0.01)


def soak(*values: object):
    """A parameter for the long form of the tests alone: `make soak`."""
    return pytest.param(*values, marks=(pytest.mark.soak, pytest.mark.slow))


def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a fork of this process, which spares it the imports; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:  # noqa: BLE001  the child must not go on as a second pytest
        traceback.print_exc()
    finally:
        os._exit(code)


def status_of(child: int) -> int:
    """Wait for it; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _skip_caches(copy) -> dict:
    return {"ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}


def signal_group(process: subprocess.Popen, number: signal.Signals) -> int:
    """Send to the process and all that it started; returns the exit code."""
    os.killpg(process.pid, number)
    return process.wait(LONGEST)


def assert_same_runs(one: Path, other: Path, names: set[str] | None = None) -> None:
    """Equal files, weights and final records (but for the clock) of all runs below two folders."""
    names = names or {path.name for path in one.iterdir()}
    assert names, f"no run in {one}"
    for name in names:
        for file in RUN_FILES:
            if (one / name / file).exists():
                assert (one / name / file).read_bytes() == (other / name / file).read_bytes(), file
        a, b = (torch.load(p / name / "weights.pt", weights_only=True) for p in (one, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        a, b = (json.loads((p / name / "final.json").read_text()) for p in (one, other))
        for key in a.keys() - {"created", "seconds", "files", "checksum", "git_commit"}:
            assert a[key] == b[key], key
        assert a["files"].keys() == b["files"].keys()
