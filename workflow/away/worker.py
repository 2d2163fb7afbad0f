"""Train a part of a suite within a time, on a machine that may have only torch.

usage: python -m workflow.away.worker --plan slice --budget-minutes 9 --workers 4 --home OUT
   or: python -m workflow.away.worker --suite paper --budget-minutes 25

Runs are trained in the plan's order, those that fit first; when the time is over they stop, and the
same command goes on where they stopped. Needs no snakemake, mlflow or ffcv with --plan.
"""

import argparse
import gc
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import baselines
from lowbit_core.datasets.manifest import manifest_path
from lowbit_core.runtime import signals
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import DeviceLost, InputError, run_cli
from lowbit_core.runtime.files import write_json
from lowbit_core.runtime.hardware import COMMIT
from lowbit_core.runtime.progress import say
from workflow.away.bundle import pack
from workflow.away.cost import Costs, epochs_done, kind
from workflow.away.queue import Plan, describe, is_done, read_plan, suite_plan, write_plan
from workflow.away.shards import read_shards

LAST_SECONDS = 20.0  # kept for stopping and packing, at most a tenth of the budget
STOP_SECONDS = 15.0  # that a worker has for saving once it is told to stop
REPORT_EVERY = 60.0
FAILED = 1


@dataclass(frozen=True)
class Settings:
    """Where and how workers train; the same for all of them."""

    data: Path
    runs: Path
    workers: int
    threads: int | None
    """Threads of a worker; None: as each run's configuration says."""


# -- a worker process ------------------------------------------------------------------------


def work(number: int, settings: Settings, tasks, answers) -> None:
    """Do tasks until None comes: ("time" or "train", run); answer each with a tuple."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.runs.parent / ".inductor"))
    signals.listen()  # a stop comes from the parent as SIGTERM
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from lowbit_core.runtime.hardware import hardware_name
    from lowbit_core.training.run import Place, seconds_per_step, train_run

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    answers.put(("hardware", number, hardware_name(device)))
    for task, run in iter(tasks.get, None):
        config = {key: value for key, value in run.items() if key != "role"}
        config["loader"] = pick_backend(run["loader"])[0]
        threads = settings.threads or run["threads"]
        place = Place(settings.data, settings.runs, device, threads)
        method = baselines.method(run["method"])
        try:
            if task == "time":
                answer = seconds_per_step(config, method, place)
            else:
                answer = train_run(config, method, place)["status"]
        except (InputError, OSError, DeviceLost) as error:
            answers.put(("failed", number, str(error)))
            continue
        answers.put((task, number, answer))
        if task == "train":  # what was compiled for a model is of no use to the next
            torch._dynamo.reset()
            gc.collect()


@dataclass
class Worker:
    """A process and the task that it is at."""

    number: int
    process: multiprocessing.Process
    tasks: object
    doing: tuple[str, dict] | None = None


# -- choosing --------------------------------------------------------------------------------


@dataclass
class Sweep:
    """Which runs are done, failed or under way, and which comes next."""

    plan: Plan
    runs: Path
    costs: Costs
    failed: dict[str, str] = field(default_factory=dict)
    under_way: set[str] = field(default_factory=set)

    def left(self) -> list[dict]:
        """Runs that can still be trained, in the plan's order."""
        return [
            run
            for run in self.plan.runs
            if run["run_id"] not in self.failed | dict.fromkeys(self.under_way)
            and run["pretrained"] not in self.failed
            and not is_done(run, self.runs)
        ]

    def ready(self) -> list[dict]:
        """Those whose checkpoint is there."""
        done = {r["run_id"] for r in self.plan.runs if is_done(r, self.runs)}
        return [run for run in self.left() if run["pretrained"] in (None, *done)]

    def choose(self, seconds: float) -> dict | None:
        """The next run: one that was begun, else the first that fits in `seconds`, else the first."""
        ready = self.ready()
        begun = [run for run in ready if self._epochs(run)]
        fitting = [run for run in [*begun, *ready] if self._fits(run, seconds)]
        return next(iter([*fitting, *begun, *ready]), None)

    def untimed(self) -> list[dict]:
        """One run of each kind whose pace is not known."""
        found: dict[str, dict] = {}
        for run in self.left():
            if self.costs.step(run) is None:
                found.setdefault(kind(run), run)
        return list(found.values())

    def _epochs(self, run: dict) -> int:
        return epochs_done(self.runs / run["run_id"])

    def _fits(self, run: dict, seconds: float) -> bool:
        cost = self.costs.seconds(run, self._epochs(run))
        return cost is not None and cost <= seconds


# -- the parent ------------------------------------------------------------------------------


class Stopped(Exception):
    """A signal asked the sweep to stop."""


class Pool:
    """Worker processes that share the devices; each takes one task at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.context = multiprocessing.get_context("spawn")
        self.answers = self.context.Queue()
        self.workers = [self._start(number) for number in range(settings.workers)]

    def _start(self, number: int) -> Worker:
        tasks = self.context.SimpleQueue()
        arguments = (number, self.settings, tasks, self.answers)
        process = self.context.Process(target=work, args=arguments, daemon=True)
        process.start()
        return Worker(number, process, tasks)

    def hardware(self) -> str:
        """What the workers train on, as the first of them says."""
        while True:
            got = self.answer(1.0)
            if got is not None:
                return str(got[2])

    def give(self, worker: Worker, task: str, run: dict) -> None:
        worker.doing = (task, run)
        worker.tasks.put(worker.doing)

    def answer(self, seconds: float) -> tuple[str, Worker, object] | None:
        """The next answer, or None after `seconds`; a worker that died answers `failed`."""
        try:
            word, number, value = self.answers.get(timeout=seconds)
            return word, self.workers[number], value
        except queue.Empty:
            pass
        for worker in self.workers:
            if not worker.process.is_alive():
                code, doing = worker.process.exitcode, worker.doing
                if doing is None:
                    raise InputError(f"a worker process ended with exit code {code} at its start")
                fresh = self._start(worker.number)
                fresh.doing = doing
                self.workers[worker.number] = fresh
                return "failed", fresh, f"its process ended with exit code {code}"
        return None

    def stop(self) -> None:
        """Ask all workers to stop, and end those that do not within the time."""
        for worker in self.workers:
            if worker.doing is None:
                worker.tasks.put(None)
            else:
                worker.process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self.workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


def sweep(plan: Plan, settings: Settings, budget_seconds: float, costs: Costs) -> Sweep:
    """Train what of the plan fits in the budget; returns what became of it."""
    began = time.monotonic()
    deadline = began + budget_seconds - min(LAST_SECONDS, budget_seconds / 10)
    state = Sweep(plan, settings.runs, costs)
    if not state.left():
        say(describe(plan, settings.runs, costs))
        return state
    pool, timing, reported = Pool(settings), 0, began
    try:
        costs.hardware = pool.hardware()
        costs.remember(settings.runs.parent / "costs.json")
        costs.look(settings.runs)
        say(describe(plan, settings.runs, costs))
        to_time = state.untimed()
        if to_time:
            say(f"timing {len(to_time)} kinds of runs on {costs.hardware}")
        while (now := time.monotonic()) < deadline:
            for worker in pool.workers:
                if worker.doing is None and to_time:
                    pool.give(worker, "time", to_time.pop(0))
                    timing += 1
                elif worker.doing is None and not timing:
                    run = state.choose(deadline - now)
                    if run is None:
                        break
                    state.under_way.add(run["run_id"])
                    pool.give(worker, "train", run)
                    say(f"begins {run['run_id']}, {_predicted(state, run)}")
            if all(worker.doing is None for worker in pool.workers):
                break
            got = pool.answer(min(1.0, max(0.01, deadline - now)))
            if got is not None:
                timing -= _take(got, state)
                if got[0] == "time" and not timing and not to_time:
                    say(describe(plan, settings.runs, costs))
            if now - reported > REPORT_EVERY:
                reported = now
                costs.look(settings.runs)
                say(describe(plan, settings.runs, costs))
    except Stopped:
        say("stopped by a signal: what was begun goes on with the next call")
    finally:
        pool.stop()
    return state


def _take(got: tuple[str, Worker, object], state: Sweep) -> int:
    """Note an answer; returns how many timings it ended."""
    word, worker, value = got
    if word == "hardware":
        return 0
    task, run = worker.doing
    worker.doing = None
    if task == "time":
        if word == "time":
            state.costs.add_timed(run, value)
            state.costs.store()
        else:
            say(f"could not time {kind(run)}: {value}")
        return 1
    state.under_way.discard(run["run_id"])
    if word == "failed":
        state.failed[run["run_id"]] = value
        say(f"failed {run['run_id']}: {value}")
    else:
        state.costs.look(state.runs)
        say(f"ends {run['run_id']}: {value}")
    return 0


def _predicted(state: Sweep, run: dict) -> str:
    seconds = state.costs.seconds(run, epochs_done(state.runs / run["run_id"]))
    return "cost unknown" if seconds is None else f"{seconds:.0f} s predicted"


def _stop(_signal, _frame) -> None:
    raise Stopped


# -- command line ----------------------------------------------------------------------------


def take_in(folder: Path, plan: Plan, data: Path, runs: Path) -> None:
    """Put a slice's data and begun runs in their places, where they are not there yet."""
    for path in sorted((folder / "runs").glob("*")):
        if not (runs / path.name).exists():
            shutil.copytree(path, runs / path.name)
    for dataset in {run["dataset"] for run in plan.runs if not is_done(run, runs)}:
        if not manifest_path(data / dataset, "test").exists():
            say(f"unpacking {dataset}")
            read_shards(folder, dataset, data / dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--plan", type=Path, help="folder that `python -m workflow.away.queue` wrote"
    )
    source.add_argument("--suite")
    parser.add_argument("--datasets", default="", help="with --suite: only these")
    parser.add_argument("--compile", default="", help="with --suite: not its own setting")
    parser.add_argument("--budget-minutes", type=float, required=True, help="of this command")
    parser.add_argument("--workers", type=int, default=1, help="processes; they share the GPUs")
    parser.add_argument("--threads", type=int, help="of a worker; as the suite says by default")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--home", type=Path, help="pack all runs of the plan into this folder")
    parser.add_argument("--summary", type=Path, help="write what is done and left to this file")
    arguments = parser.parse_args()
    began = time.monotonic()
    if not arguments.budget_minutes > 0:
        raise InputError(f"--budget-minutes {arguments.budget_minutes:g}: it must be above 0")
    if arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers}: it must be at least 1")
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if arguments.plan:
        plan = read_plan(arguments.plan)
        os.environ[COMMIT] = plan.commit
        take_in(arguments.plan, plan, arguments.data, arguments.runs)
    else:
        plan = suite_plan(arguments.suite, arguments.datasets, arguments.compile)
    settings = Settings(arguments.data, arguments.runs, arguments.workers, arguments.threads)
    left = 60 * arguments.budget_minutes - (time.monotonic() - began)
    costs = Costs()
    state = sweep(plan, settings, left, costs)
    costs.look(arguments.runs)
    say(describe(plan, arguments.runs, costs))
    if arguments.home:
        send_home(plan, arguments.runs, arguments.home)
    if arguments.summary:
        done = sum(is_done(run, arguments.runs) for run in plan.runs)
        write_json(
            arguments.summary,
            {"suite": plan.suite, "runs": len(plan.runs), "done": done, "failed": state.failed},
        )
    if state.failed:
        sys.exit(FAILED)


def send_home(plan: Plan, runs: Path, home: Path) -> None:
    """Pack the runs and the plan they belong to into `home`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal must not cost the results
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in pack(plan, runs, home):
        say(f"no room for {name}: it stays on this machine")
    write_plan(plan, home)


if __name__ == "__main__":
    run_cli(main)
