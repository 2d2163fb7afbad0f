"""Seconds from the start of a training job to the end of its first step, with compiled kernels."""

import shutil
import subprocess
import sys
import tempfile
import time

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import say
from workflow.suite.suite import ROOT, load_suite

DATA = ROOT / "data"
MOST_SECONDS = 600  # of one start
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
    suite = load_suite(SUITE, COMPILE)
    for name in suite.datasets:
        if not (DATA / name / "train.manifest.json").exists():
            say(f"start-up: {DATA / name} is not prepared: it is left out")
            return []
    job = next(j for j in suite.jobs.values() if j.needs)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        say("start-up: training the pretrained network")
        _run(["-m", "workflow.train"], job.needs[0], f"{folder}/pretrained")
        for number in range(repeats + 1):  # each start in new folders, so that no run is resumed
            runs = shutil.copytree(f"{folder}/pretrained", f"{folder}/{number}")
            out = _run(["-c", FIRST_STEP], job.name, runs, str(time.time()))
            rows.append({"job": job.name, "seconds": float(out.splitlines()[-1])})
            say(f"start-up: {rows[-1]['seconds']:.1f} s")
    return rows[1:]


def _run(how: list[str], job: str, runs: str, *more: str) -> str:
    command = [sys.executable, *how, "--suite", SUITE, "--job", job, "--data", str(DATA)]
    command += ["--runs", runs, "--out", f"{runs}.jsonl", "--compile", COMPILE, *more]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"job {job} took more than {MOST_SECONDS} s") from None
    if done.returncode:
        raise InputError(f"job {job} failed: {done.stderr.strip()[-300:]}")
    return done.stdout
