"""Train a queue of runs within a time, several at once on the GPUs of this machine.

usage: python -m workflow.away.worker --queue FOLDER --minutes 9 --workers 4 --out FOLDER

Runs are begun in the queue's order. When the time is over, or a signal comes, they save and stop;
the same command goes on from there. It needs no packages but torch, torchvision and NumPy.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from lowbit_core.datasets.manifest import manifest_path
from lowbit_core.runtime import signals
from lowbit_core.runtime.errors import DeviceLost, InputError, run_cli
from lowbit_core.runtime.hardware import COMMIT
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_status import loaded_runs
from workflow.away.parcel import RUNS, merge, pack_runs, unpack_data
from workflow.away.queue import Queue, describe, is_begun, read_queue
from workflow.gpu_slots import take_device
from workflow.train import train_one

LAST_SECONDS = 20.0  # kept for saving and packing, at most a tenth of the time
SAVE_SECONDS = 15.0  # that a process has for saving once it is asked to stop
REPORT_SECONDS = 60.0
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a process that was asked to stop


def child_main(run: dict, data: Path, runs: Path, workers: int, is_loaded: bool) -> None:
    """Train one run in this process, on the GPU that the fewest of `workers` processes use."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(runs.parent / ".inductor"))
    signals.listen()  # the parent asks for a stop by SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    per_gpu = -(-workers // max(1, torch.cuda.device_count()))
    try:
        train_one(run, data, runs, take_device(per_gpu), is_loaded)
    except (InputError, OSError, DeviceLost) as error:
        sys.exit(f"error: run {run['run_id']}: {error}")


def train_queue(
    queue: Queue, data: Path, runs: Path, workers: int, deadline: float, stopped: list[int]
) -> set[str]:
    """Train until `deadline` (of time.monotonic) or a signal in `stopped`; returns failed runs."""
    done, failed, reported = queue.done(runs), set(), time.monotonic()
    active: dict[str, SpawnProcess] = {}
    while time.monotonic() < deadline and not stopped:
        for run in ready(queue, runs, done, failed | active.keys())[: workers - len(active)]:
            say(f"begins {run['run_id']}")
            arguments = run, data, runs, workers, run["run_id"] in queue.loaded
            process = SpawnProcess(target=child_main, args=arguments, daemon=True)
            process.start()
            active[run["run_id"]] = process
        if not active:
            break
        wait([process.sentinel for process in active.values()], timeout=0.5)
        for run_id in [name for name, process in active.items() if process.exitcode is not None]:
            code = active.pop(run_id).exitcode
            if code in STOPPED and stopped:  # the signal reached it, too, and its state is saved
                continue
            (failed if code else done).add(run_id)
            say(f"failed {run_id}: exit code {code}" if code else f"ends {run_id}")
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            say(f"{describe(queue, runs)}, {len(failed)} failed")
    if stopped:
        say("stopped by a signal: the same command goes on with what was begun")
    _stop(active.values())
    return failed


def ready(queue: Queue, runs: Path, done: set[str], taken: set[str]) -> list[dict]:
    """The runs that can be trained now, begun ones first: those that load only trained runs."""
    started = [run for run in queue.runs if done.issuperset(loaded_runs(run))]
    free = [run for run in started if run["run_id"] not in done | taken]
    return sorted(free, key=lambda run: not is_begun(run, runs))


def _stop(processes: Iterable[SpawnProcess]) -> None:
    """Ask all processes to save and stop, and end those that do not within the time."""
    processes, deadline = list(processes), time.monotonic() + SAVE_SECONDS
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


def main() -> None:
    began, stopped = time.monotonic(), []
    for number in (signal.SIGTERM, signal.SIGINT):  # only noted: runs are packed in any case
        signal.signal(number, lambda number, _frame: stopped.append(number))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--queue", type=Path, required=True, help="of workflow.away.queue --out")
    parser.add_argument("--minutes", type=float, required=True, help="time of the whole command")
    parser.add_argument("--workers", type=int, default=1, help="runs that are trained at once")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--out", type=Path, help="pack the queue's runs into this folder")
    arguments = parser.parse_args()
    data, runs, workers = arguments.data, arguments.runs, arguments.workers
    if not (arguments.minutes > 0 and workers > 0):
        raise InputError(
            f"--minutes is {arguments.minutes:g} and --workers is {workers}: both must be above 0"
        )
    queue = read_queue(arguments.queue)
    os.environ[COMMIT] = queue.commit
    if (arguments.queue / f"{RUNS}.json").exists():
        merge([arguments.queue], runs)
    for dataset in sorted({run["dataset"] for run in queue.runs}):
        if not manifest_path(data / dataset, "test").exists():
            say(f"unpacking {dataset}")
            unpack_data(arguments.queue, dataset, data / dataset)
    say(describe(queue, runs))
    deadline = began + 60 * arguments.minutes - min(LAST_SECONDS, 6 * arguments.minutes)
    failed = train_queue(queue, data, runs, workers, deadline, stopped)
    say(describe(queue, runs))
    if arguments.out:
        for name in pack_runs(queue.runs, runs, arguments.out, queue.suite):
            say(f"there is no room for {name}: it stays on this machine")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_cli(main)
