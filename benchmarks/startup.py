"""Seconds from the start of a training job to the end of its first step, with compiled kernels."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.timing import say
from lowbit_core.runtime.errors import InputError
from workflow.suite.suite import load_suite

ROOT = Path(__file__).parent.parent
SUITE, COMPILE = "smoke", "quantizers"

# The real entry point. It ends where the first step would be counted.
FIRST_STEP = """
import os, sys, time
from lowbit_core.runtime.progress import Progress
began = float(sys.argv.pop())
def report(self, epoch, count):
    print(time.time() - began, flush=True)
    os._exit(0)
Progress.step = report
from workflow.train import main
main()
"""


def measure(repeats: int) -> list[dict]:
    """Rows: job, seconds. The first start, which may compile kernels, is left out."""
    data = ROOT / "data"
    suite = load_suite(SUITE, COMPILE)
    missing = [d for d in suite.datasets if not (data / d / "train.manifest.json").exists()]
    if missing:
        say(f"start-up: {data / missing[0]} is not prepared: left out")
        return []
    job = next(j for j in suite.jobs.values() if j.needs)
    with tempfile.TemporaryDirectory() as folder:
        runs = f"{folder}/runs"
        say("start-up: training the checkpoint")
        _run(["-m", "workflow.train"], job.needs, runs)
        seconds = []
        for _ in range(repeats + 1):
            began = time.time()
            out = _run(["-c", FIRST_STEP], job.name, runs, str(began))
            seconds.append(float(out.splitlines()[-1]))
            say(f"start-up: {seconds[-1]:.1f} s")
            for run in Path(runs).iterdir():  # so that the next start does not resume this run
                if not (run / "final.json").exists():
                    (run / "config.json").unlink(missing_ok=True)
    return [{"job": job.name, "seconds": s} for s in seconds[1:]]


def _run(how: list[str], job: str, runs: str, *more: str) -> str:
    command = [sys.executable, *how, "--suite", SUITE, "--job", job, "--data", str(ROOT / "data")]
    command += ["--runs", runs, "--out", f"{runs}.jsonl", "--compile", COMPILE, *more]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise InputError(f"job {job} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
