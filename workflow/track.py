"""MLflow tracking from the files that runs leave: `python -m workflow.track sync|watch|ui`.

Training never talks to MLflow. One writer at a time copies what is new from the run folders into
a sqlite store, so a failure here costs no result, and a repeated sync adds nothing twice.
"""

import argparse
import csv
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from lowbit_core.runtime.run_folder import RunFolder
from workflow.suite.jobs import check_jobs, read_job

ROOT = Path(__file__).parent.parent
WATCH_EVERY = 5.0  # seconds between looks at the run folders
ARTIFACTS = (
    "config.json",
    "metrics.csv",
    "timings.csv",
    "layers.json",
    "weight_state.csv",
    "channel_error.csv",
    "weight_histograms.json",
    "final.json",
)
EPOCH_METRICS = (
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "lr",
    "seconds",
    "images_per_s",
    "data_wait_share",
    "peak_memory_mb",
)
# final.json's name and the metric's
FINAL_METRICS = {
    "top1": "test_top1",
    "top5": "test_top5",
    "test_loss": "test_loss",
    "size_bytes": "size_bytes",
    "bitops": "bitops",
}
# MLflow's limits for one log_batch call
MAX_METRICS, MAX_PARAMS, MAX_VALUE = 1000, 100, 6000
MAX_DIGEST = 36


@dataclass(frozen=True)
class Store:
    """An MLflow store: mlflow.db and artifacts/ in `folder`, guarded by the file lock."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder.resolve() / 'mlflow.db'}"

    def artifacts(self, suite: str) -> str:
        return (self.folder.resolve() / "artifacts" / suite).as_uri()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store's lock; other writers wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def client(self) -> Iterator:
        """An MlflowClient under the lock. MLflow's and the database's errors become InputError."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        try:
            from mlflow.exceptions import MlflowException  # slow import
            from mlflow.tracking import MlflowClient
            from sqlalchemy.exc import SQLAlchemyError
        except ImportError as error:
            raise InputError(
                f"MLflow cannot be imported ({error}); results are not touched"
            ) from error

        for name in ("mlflow", "alembic"):  # they tell of every migration
            logging.getLogger(name).setLevel(logging.WARNING)
        with self.locked():
            try:
                yield MlflowClient(tracking_uri=self.uri)
            except (MlflowException, SQLAlchemyError) as error:
                # without the statement and the link that SQLAlchemy appends
                reason = " ".join(str(error).partition("[SQL:")[0].split())
                raise InputError(
                    f"MLflow store {self.folder}: {reason}; results are not touched; if it is "
                    f"damaged, delete {self.folder} and rerun to build it again"
                ) from error


@dataclass(frozen=True)
class TrackedRun:
    """A run folder and its role in the suite: checkpoint, run or ablation."""

    folder: Path
    role: str


# -- reading run folders ---------------------------------------------------------------------


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table that may be growing: a line still without its newline is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))


def read_json(path: Path) -> dict | None:
    """The file's value, None if it is not there. Raises InputError if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error


def read_epochs(folder: Path) -> list[dict]:
    """One {"epoch", metric: value} per epoch whose metrics and timings are both complete."""
    timings = {row["epoch"]: row for row in _epoch_rows(folder / "timings.csv")}
    return [
        {"epoch": int(row["epoch"])}
        | {
            name: float(value)
            for name, value in (row | timings[row["epoch"]]).items()
            if name in EPOCH_METRICS and value
        }
        for row in _epoch_rows(folder / "metrics.csv")
        if row["epoch"] in timings
    ]


def _epoch_rows(path: Path) -> list[dict[str, str]]:
    """Rows that have an epoch and numbers. Raises InputError for anything else."""
    try:
        rows = read_rows(path)
        for row in rows:
            int(row["epoch"])
            for value in row.values():
                float(value or 0)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    return rows


def flatten(value: dict, prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots; lists, and dicts below the recipe's quantizer groups, as JSON."""
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict) and item and key != "exceptions":
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
    return flat


def job_runs(jobs: Iterable[Path], runs: Path) -> list[TrackedRun]:
    """The runs that job files list. Raises InputError for a damaged file or a missing folder."""
    found: dict[str, TrackedRun] = {}
    for job in jobs:
        for run_id, role in read_job(job).items():
            if not (runs / run_id / "config.json").exists():
                raise InputError(
                    f"{job} lists run {run_id}, but {runs / run_id} has no "
                    "config.json; delete the job file and rerun"
                )
            found[run_id] = TrackedRun(runs / run_id, role)
    return list(found.values())


# -- writing to MLflow -----------------------------------------------------------------------


def sync(
    store: Store,
    suite: str,
    runs: list[TrackedRun],
    data: Path = Path("data"),
    reports: Iterable[Path] = (),
) -> int:
    """Bring the experiment `suite` up to date with `runs` and the `reports` files.

    Returns how many runs the experiment had to be told something new about.
    """
    with store.client() as client:
        experiment = _experiment(client, store, suite)
        known = _known_runs(client, experiment)
        changed = sum(_sync_run(client, experiment, suite, run, known, data) for run in runs)
        reports = list(reports)
        if reports:
            _sync_report(client, experiment, suite, reports, known)
    return changed


def _experiment(client, store: Store, suite: str) -> str:
    found = client.get_experiment_by_name(suite)
    if found is None:
        return client.create_experiment(suite, store.artifacts(suite))
    if found.artifact_location != store.artifacts(suite):
        raise InputError(
            f"MLflow store {store.folder} was made for artifacts in {found.artifact_location}, not "
            f"{store.artifacts(suite)}: move it back, or delete it and rerun to build it again"
        )
    return found.experiment_id


def _known_runs(client, experiment: str) -> dict:
    """The experiment's runs by their tag run_key."""
    known, token = {}, None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        known |= {run.data.tags.get("run_key"): run for run in page}
        token = page.token
        if not token:
            return known


def _sync_run(client, experiment, suite, run: TrackedRun, known: dict, data: Path) -> bool:
    """True if there was anything new. Every step can be repeated: a killed sync is continued."""
    config = read_json(run.folder / "config.json")
    if not isinstance(config, dict) or config.get("run_id") != run.folder.name:
        raise InputError(f"{run.folder / 'config.json'} is not this run's configuration")
    tracked = known.get(config["run_key"])
    if tracked is not None and tracked.info.status == "FINISHED":
        return False
    final = RunFolder(run.folder).finished()
    if tracked is None:
        tags = _tags(config, suite, run)
        name = " ".join([config["arch"], config["method"], tags["bits"], f"s{config['seed']}"])
        if run.role != "run":
            name += f" ({run.role})"
        tracked = client.create_run(experiment, _start(run.folder, final), tags, name)
        known[config["run_key"]] = tracked
    new = _log_values(client, tracked, config, run.folder, final)
    if final is not None:
        _log_inputs(client, tracked.info.run_id, config["dataset"], data)
        for name in ARTIFACTS:
            if (run.folder / name).exists():
                client.log_artifact(tracked.info.run_id, str(run.folder / name))
        end = int((run.folder / "final.json").stat().st_mtime * 1000)
        client.set_terminated(tracked.info.run_id, "FINISHED", end)
    return new or final is not None


def _tags(config: dict, suite: str, run: TrackedRun) -> dict[str, str]:
    return {
        "suite": suite,
        "role": run.role,
        "bits": bits_label(config["w_bits"], config["a_bits"]),
        "status": "running",
        **{
            key: str(config[key])
            for key in ("dataset", "arch", "method", "seed", "run_key", "run_id", "code_version")
        },
    }


def _start(folder: Path, final: dict | None) -> int:
    """When the run began, in ms."""
    if final is None:
        return int((folder / "config.json").stat().st_mtime * 1000)
    return int(((folder / "final.json").stat().st_mtime - final["seconds"]) * 1000)


def _log_values(client, tracked, config: dict, folder: Path, final: dict | None) -> bool:
    from mlflow.entities import Metric, Param, RunTag

    tags = tracked.data.tags
    logged = int(tags.get("epochs_logged", 0))
    # Times follow from the run's start, so a row logged again after a crash is the same row.
    clock, metrics, last = tracked.info.start_time, [], logged
    for epoch in read_epochs(folder):
        clock += int(1000 * epoch.get("seconds", 0))
        if epoch["epoch"] > logged:
            last = epoch["epoch"]
            metrics += [
                Metric(name, epoch[name], clock, last) for name in EPOCH_METRICS if name in epoch
            ]
    new_tags = {"epochs_logged": str(last)} if last > logged else {}
    if final is not None:
        metrics += [
            Metric(name, float(final[key]), clock, last)
            for key, name in FINAL_METRICS.items()
            if final.get(key) is not None
        ]
        new_tags |= {"status": final["status"], "git_commit": str(final["git_commit"])}
        if final["diverged_layer"]:
            new_tags["diverged_layer"] = final["diverged_layer"]
        if final["diverged_before"]:
            new_tags["restarts"] = str(len(final["diverged_before"]))
    params = (
        []
        if tracked.data.params
        else [Param(key, value[:MAX_VALUE]) for key, value in flatten(config).items()]
    )
    if not (metrics or params or new_tags):
        return False
    run_id = tracked.info.run_id
    while len(params) > MAX_PARAMS or len(metrics) > MAX_METRICS:
        client.log_batch(run_id, metrics[:MAX_METRICS], params[:MAX_PARAMS])
        metrics, params = metrics[MAX_METRICS:], params[MAX_PARAMS:]
    client.log_batch(run_id, metrics, params, [RunTag(*tag) for tag in new_tags.items()])
    return True


def _log_inputs(client, run_id: str, dataset: str, data: Path) -> None:
    """Name the data set by its manifest; data deleted after training are left out."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for split, context in (("train", "training"), ("test", "testing")):
        manifest = read_json(data / dataset / f"{split}.manifest.json")
        if manifest is None:
            continue
        profile = {"images": manifest["images"], "class_counts": manifest["class_counts"]}
        entity = Dataset(
            name=f"{dataset}/{split}",
            digest=manifest["samples_sha256"][:MAX_DIGEST],
            source_type="local",
            source=json.dumps({"uri": str(data / dataset / f"{split}.beton")}),
            profile=json.dumps(profile)[:MAX_VALUE],
        )
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _sync_report(client, experiment, suite, files: list[Path], known: dict) -> None:
    """One run of its own holds the experiment's plots and configuration; newer files replace."""
    key = f"report-{suite}"
    if key not in known:
        tags = {"suite": suite, "run_key": key, "status": "done"}
        known[key] = client.create_run(experiment, tags=tags, run_name="report")
    run_id = known[key].info.run_id
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, "FINISHED")


# -- live progress ---------------------------------------------------------------------------


class Watcher:
    """Follows the run folders of all suites, those in progress too."""

    def __init__(self, store: Store, runs: Path, data: Path) -> None:
        self.store, self.runs, self.data = store, runs, data
        self.seen: dict[str, tuple] = {}  # run_id -> modification times at the last look
        self.members: dict[str, list[tuple[str, str]]] = {}  # run_id -> (suite, role)
        self.strangers: set[str] = set()  # runs that no suite holds (of older code or settings)
        self.complaint = ""

    def look(self) -> None:
        """Sync what changed since the last look. An error is said once, and tried again."""
        try:
            changed = {f.name: _times(f) for f in self._folders() if self._is_new(f)}
            by_suite: dict[str, list[TrackedRun]] = {}
            self._learn(changed)
            for run_id in changed:
                for suite, role in self.members.get(run_id, ()):
                    run = TrackedRun(self.runs / run_id, role)
                    by_suite.setdefault(suite, []).append(run)
            for suite, runs in by_suite.items():
                sync(self.store, suite, runs, self.data)
            self.seen |= changed
            self.complaint = ""
        except (InputError, OSError) as error:
            if str(error) != self.complaint:
                print(f"tracking: {error}", file=sys.stderr, flush=True)
            self.complaint = str(error)

    def _folders(self) -> list[Path]:
        return sorted(path.parent for path in self.runs.glob("*/config.json"))

    def _is_new(self, folder: Path) -> bool:
        return self.seen.get(folder.name) != _times(folder)

    def _learn(self, run_ids: Iterable[str]) -> None:
        """Ask the suites which runs are theirs, when there is one that was never seen."""
        unknown = {r for r in run_ids if r not in self.members} - self.strangers
        if not unknown:
            return
        self.members = {}
        for path in sorted((ROOT / "config" / "suites").glob("*.yaml")):
            for run in _suite_runs(path.stem):
                self.members.setdefault(run["run_id"], []).append((path.stem, run["role"]))
        self.strangers = {r for r in unknown | self.strangers if r not in self.members}


def _times(folder: Path) -> tuple[int, ...]:
    names = ("metrics.csv", "timings.csv", "final.json")
    return tuple((folder / n).stat().st_mtime_ns if (folder / n).exists() else 0 for n in names)


def _suite_runs(suite: str) -> list[dict]:
    """The runs of a suite as the files on disk now define it: read by a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "suite.json"
        command = [sys.executable, "-m", "workflow.suite", suite, "--out", str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"suite {suite}: {done.stderr.strip().splitlines()[-1]}")
        return read_json(out)["runs"]


def watch(watcher: Watcher) -> None:
    """Look at the run folders until killed."""
    while True:
        watcher.look()
        time.sleep(WATCH_EVERY)


def serve(watcher: Watcher, port: int) -> None:
    """MLflow's server on 127.0.0.1, with live progress, until Ctrl-C or SIGTERM."""
    _check_port(port)
    store = watcher.store
    with store.client() as client:  # makes the database before the server opens it
        client.search_experiments(max_results=1)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--backend-store-uri",
        store.uri,
        "--workers",
        "1",
        "--default-artifact-root",
        (store.folder.resolve() / "artifacts").as_uri(),
    ]
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, env=settings, start_new_session=True)
    print(f"MLflow UI: http://127.0.0.1:{port} (Ctrl-C stops it)", flush=True)
    try:
        while server.poll() is None:
            watcher.look()
            time.sleep(WATCH_EVERY)
        raise InputError(f"the MLflow server stopped with exit code {server.returncode}")
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        _stop(server)


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"port {port}: it must be between 1 and 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise InputError(
                f"port {port} on 127.0.0.1 cannot be used ({error.strerror}): choose another, "
                f"`make ui PORT={port % 65535 + 1}`"
            ) from error


def _stop(server: subprocess.Popen) -> None:
    """End the server and the workers it started (its own process group)."""
    if server.poll() is not None:
        return
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


# -- command line ----------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("sync", help="bring one suite's experiment up to date")
    once.add_argument("--suite", required=True)
    once.add_argument("--jobs", type=Path, nargs="+", required=True)
    once.add_argument("--extra-artifact", type=Path, nargs="*", default=[])
    once.add_argument("--done", type=Path, help="a line about the sync is written here")
    live = commands.add_parser("watch", help="sync all suites' runs, also those in progress")
    ui = commands.add_parser("ui", help="MLflow's UI with live progress")
    ui.add_argument("--port", type=int, default=5000)
    for command in (once, live, ui):
        command.add_argument("--runs", type=Path, default=Path("results/runs"))
        command.add_argument("--store", type=Path, default=Path("results/mlflow"))
        command.add_argument("--data", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    store = Store(arguments.store)
    if arguments.command == "sync":
        check_jobs(arguments.jobs, arguments.runs)
        runs = job_runs(arguments.jobs, arguments.runs)
        sync(store, arguments.suite, runs, arguments.data, arguments.extra_artifact)
        text = f"{len(runs)} runs of suite {arguments.suite} are in {arguments.store}/mlflow.db\n"
        print(text, end="")
        if arguments.done:
            write_text(arguments.done, text)
        return
    watcher = Watcher(store, arguments.runs, arguments.data)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if arguments.command == "ui":
        serve(watcher, arguments.port)
    else:
        try:
            watch(watcher)
        except KeyboardInterrupt:
            print("stopped", flush=True)


if __name__ == "__main__":
    run_cli(main)
