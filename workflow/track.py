"""MLflow tracking: `python -m workflow.track sync|ui`.

Training does not use MLflow. This module copies what is new in the run folders into an MLflow
store, one writer at a time. A failure here costs no result; a repeated copy adds nothing twice.
"""

import argparse
import csv
import json
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import locked, write_text
from lowbit_core.runtime.run_folder import LOWER_WEIGHTS, SEALED, WEIGHTS, RunFolder
from workflow.mlflow_ui import check_port, serve
from workflow.suite.jobs import OF_TEST, ROLES, check_jobs, read_jobs

WATCH_EVERY = 5.0  # seconds between two looks at the run folders
WATCHED = ("config.json", "metrics.csv", "timings.csv", "final.json")
ARTIFACTS = ("final.json", *(name for name in SEALED if name not in (WEIGHTS, LOWER_WEIGHTS)))
CONFIG_TAGS = ("dataset", "arch", "method", "seed", "run_key", "run_id", "code_version")
FINAL_METRICS = {"top1": "test_top1", "top5": "test_top5"}  # name in final.json: name in MLflow
FINAL_METRICS |= {name: name for name in ("test_loss", "size_bytes", "bitops")}
# MLflow's own limits: runs and metrics in one call, characters of a value and of a digest.
MAX_RUNS, MAX_METRICS, MAX_VALUE, MAX_DIGEST = 50_000, 1000, 6000, 36
# With this tag MLflow's UI opens an experiment in the view for training, not in that for agents.
EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")


@dataclass(frozen=True)
class Store:
    """An MLflow store: `mlflow.db`, `artifacts/` and the file `lock` in `folder`."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder.resolve() / 'mlflow.db'}"

    def artifacts(self, suite: str = "") -> str:
        return (self.folder.resolve() / "artifacts" / suite).as_uri()

    @contextmanager
    def client(self) -> Iterator:
        """An MlflowClient while the lock is held. Errors of MLflow and its database: InputError."""
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
        for name in ("mlflow", "alembic"):  # they log every migration of the database
            logging.getLogger(name).setLevel(logging.WARNING)
        with locked(self.folder / "lock", f"waiting for the other writer of {self.folder}"):
            try:
                yield MlflowClient(tracking_uri=self.uri)
            except (MlflowException, SQLAlchemyError) as error:
                # SQLAlchemy appends the statement and a link.
                reason = " ".join(str(error).partition("[SQL:")[0].split())
                raise InputError(
                    f"MLflow store {self.folder}: {reason}; results are not touched; if it is "
                    f"damaged, delete {self.folder} and rerun to build it again"
                ) from error


class TrackedRun(NamedTuple):
    """A run folder and the role of the run in its suite.

    hides_test: the suite chooses on validation images, so nothing of the test images is copied.
    """

    folder: Path
    role: str
    hides_test: bool = False


# -- reading run folders ---------------------------------------------------------------------


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """One {"epoch": number, metric: value} for each epoch that both tables hold whole.

    A last line without its newline is still being written. Raises InputError for other damage.
    """
    tables = []
    for path in (folder / "metrics.csv", folder / "timings.csv"):
        try:
            lines = path.read_text().splitlines(keepends=True) if path.exists() else []
            rows = csv.DictReader(line for line in lines if line.endswith("\n"))
            values = [{name: float(cell) for name, cell in row.items() if cell} for row in rows]
            tables.append({int(row["epoch"]): row for row in values})
        except (ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {error})") from error
    metrics, timings = tables
    return [row | timings[epoch] for epoch, row in metrics.items() if epoch in timings]


def flatten(value: dict, prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots. Lists, empty dicts and the exceptions of a policy are JSON."""
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict) and item and key != "exceptions":
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[prefix + key] = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
    return flat


def job_runs(suite: str, jobs: Sequence[Path], runs: Path) -> list[TrackedRun]:
    """The runs of a suite that job files list. InputError if a job file or a run is damaged."""
    check_jobs(jobs, runs)
    hides = suite_hides_test(suite)
    return [TrackedRun(runs / run_id, role, hides) for run_id, role in read_jobs(jobs).items()]


def suite_hides_test(suite: str) -> bool:
    """Whether nothing of a suite's test images is copied: so of one that this checkout lacks."""
    from workflow.suite.suite import SUITES, load_suite  # takes seconds

    if (SUITES / f"{suite}.yaml").exists():
        return load_suite(suite).hides_test
    print(f"config/suites has no {suite}.yaml, so MLflow gets no test accuracies of its runs")
    return True


# -- writing to MLflow -----------------------------------------------------------------------


def sync(
    store: Store,
    suite: str,
    runs: Iterable[TrackedRun],
    data: Path = Path("data"),
    reports: Sequence[Path] = (),
) -> int:
    """Copy what is new in `runs`, and the `reports` files, to the experiment `suite`.

    Returns the number of runs that had something new. Newer `reports` files replace older ones.
    """
    with store.client() as client:
        experiment = _experiment(client, store, suite)
        found = client.search_runs([experiment], max_results=MAX_RUNS)
        known = {run.data.tags.get("run_key"): run for run in found}
        changed = sum([_sync_run(client, experiment, suite, run, known, data) for run in runs])
        if reports:
            key = f"report-{suite}"
            tags = {"suite": suite, "run_key": key, "status": "done"}
            report = known.get(key) or client.create_run(experiment, tags=tags, run_name="report")
            for file in reports:
                client.log_artifact(report.info.run_id, str(file))
            client.set_terminated(report.info.run_id, "FINISHED")
    return changed


def _experiment(client, store: Store, suite: str) -> str:
    """The id of the experiment, which is made if it does not exist."""
    artifacts, found = store.artifacts(suite), client.get_experiment_by_name(suite)
    if found is not None and found.artifact_location != artifacts:
        raise InputError(
            f"MLflow store {store.folder} was made for artifacts in {found.artifact_location}, not "
            f"{artifacts}: move it back, or delete it and rerun to build it again"
        )
    experiment = found.experiment_id if found else client.create_experiment(suite, artifacts)
    client.set_experiment_tag(experiment, *EXPERIMENT_KIND)
    return experiment


def _sync_run(client, experiment, suite, run: TrackedRun, known: dict, data: Path) -> bool:
    """Whether anything was new. Every step may be repeated, so that a killed sync is continued."""
    folder = RunFolder(run.folder)
    config = folder.read_json("config.json")
    if not isinstance(config, dict) or config.get("run_id") != run.folder.name:
        raise InputError(f"{run.folder / 'config.json'} is not this run's configuration")
    key = config["run_key"]
    if key in known and known[key].info.status == "FINISHED":
        return False
    final = folder.finished()
    if key not in known:
        bits = bits_label(config["w_bits"], config["a_bits"])
        tags = {"suite": suite, "role": run.role, "bits": bits, "status": "running"}
        tags |= {name: str(config[name]) for name in CONFIG_TAGS}
        name = f"{config['arch']} {config['method']} {bits} s{config['seed']}"
        name += f" ({run.role})" if run.role != ROLES[0] else ""
        begun = _milliseconds(run.folder / "config.json")
        known[key] = client.create_run(experiment, begun, tags, name)
    run_id = known[key].info.run_id
    hidden = OF_TEST if run.hides_test and run.role != "checkpoint" else ()
    shown = final and {name: value for name, value in final.items() if name not in hidden}
    metrics, params, tags = _values(known[key], config, read_epochs(run.folder), shown)
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run_id, metrics[start : start + MAX_METRICS])
    if metrics or params or final:  # the tags come last: they note which epochs are logged
        client.log_batch(run_id, params=params, tags=tags)
    if final is not None:
        if inputs := _data_sets(data / config["dataset"]):
            client.log_inputs(run_id, datasets=inputs)
        for path in (run.folder / name for name in ARTIFACTS):
            if path.exists() and not (hidden and path.name in ("final.json", "widths.csv")):
                client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED", _milliseconds(run.folder / "final.json"))
    return bool(metrics or params or final)


def _milliseconds(path: Path) -> int:
    """When the file was last written, as MLflow counts time."""
    return int(path.stat().st_mtime * 1000)


def _values(tracked, config: dict, epochs: list[dict], final: dict | None) -> tuple:
    """The metrics and parameters that the tracked run lacks, and its new tags."""
    from mlflow.entities import Metric, Param, RunTag

    logged, earlier = (int(tracked.data.tags.get(k, 0)) for k in ("epochs_logged", "restarts"))
    if len(epochs) < logged or (final and len(final["diverged_before"] or ()) > earlier):
        logged = 0  # it diverged and began again: these are other epochs
    # Times follow from the run's start, so that an epoch logged again after a kill is the same row.
    clock, epoch, metrics = tracked.info.start_time, 0, []
    for row in epochs:
        epoch = int(row.pop("epoch"))
        clock += int(1000 * row.get("seconds", 0))
        if epoch > logged:
            metrics += [Metric(name, value, clock, epoch) for name, value in row.items()]
    tags = {"epochs_logged": max(epoch, logged)}
    if final is not None:
        results = {name: final.get(key) for key, name in FINAL_METRICS.items()}
        metrics += [Metric(k, float(v), clock, epoch) for k, v in results.items() if v is not None]
        tags |= {key: final[key] for key in ("status", "git_commit", "diverged_layer")}
        tags["restarts"] = len(final["diverged_before"] or ())
    params = {} if tracked.data.params else flatten(config)
    return (
        metrics,
        [Param(key, value[:MAX_VALUE]) for key, value in params.items()],
        [RunTag(key, str(value)) for key, value in tags.items() if value],
    )


def _data_sets(folder: Path) -> list:
    """The run's data, by their manifests. Data that were deleted since are left out."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for path in sorted(folder.glob("*.manifest.json")):
        manifest, split = RunFolder(folder).read_json(path.name), path.name.partition(".")[0]
        source = json.dumps({"uri": str(folder / f"{split}.beton")})
        profile = json.dumps({name: manifest[name] for name in ("images", "class_counts")})
        digest = manifest["samples_sha256"][:MAX_DIGEST]
        data = Dataset(f"{folder.name}/{split}", digest, "local", source, None, profile[:MAX_VALUE])
        inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", f"{split}ing")]))
    return inputs


# -- live progress ---------------------------------------------------------------------------


class Watcher:
    """Copies runs to MLflow while they train.

    A sweep lists the runs of its suite in `config.json`, in `results/` or in `results/<suite>/`.
    """

    def __init__(self, store: Store, runs: Path, data: Path) -> None:
        self.store, self.runs, self.data = store, runs, data
        self.seen: dict[tuple[str, str], list[int]] = {}
        """Modification times at the last look, for each suite and run."""
        self.complaint = ""

    def look(self) -> None:
        """Copy what changed since the last look. An error is printed once, and tried again."""
        results = path = self.runs.parent
        try:
            for path in (results / "config.json", *sorted(results.glob("*/config.json"))):
                if path.exists():
                    self._look_at(json.loads(path.read_text()))
            self.complaint = ""
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            text = error if isinstance(error, InputError | OSError) else repr(error)
            complaint = f"{path}: {text}"
            if complaint != self.complaint:
                print(f"tracking: {complaint}", file=sys.stderr, flush=True)
            self.complaint = complaint

    def _look_at(self, config: dict) -> None:
        suite, changed = config["suite"]["suite"], {}
        roles = {run["run_id"]: run["role"] for run in reversed(config["runs"])}
        for run_id in roles:
            paths = [self.runs / run_id / name for name in WATCHED]
            times = [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]
            if any(times) and times != self.seen.get((suite, run_id)):
                changed[suite, run_id] = times
        if changed:
            known = config.get("hides_test")  # written by an earlier version, it has no such key
            hides = suite_hides_test(suite) if known is None else known
            runs = [TrackedRun(self.runs / run_id, roles[run_id], hides) for _, run_id in changed]
            sync(self.store, suite, runs, self.data)
            self.seen |= changed


# -- command line ----------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("sync", help="copy the runs of one suite's job files")
    once.add_argument("--suite", required=True)
    once.add_argument("--jobs", type=Path, nargs="+", required=True)
    once.add_argument("--extra-artifact", type=Path, nargs="*", default=[])
    once.add_argument("--done", type=Path, help="file for a line about what was copied")
    ui = commands.add_parser("ui", help="copy the runs of all sweeps while they train; MLflow's UI")
    ui.add_argument("--port", type=int, default=5000)
    for command in (once, ui):
        command.add_argument("--runs", type=Path, default=Path("results/runs"))
        command.add_argument("--store", type=Path, default=Path("results/mlflow"))
        command.add_argument("--data", type=Path, default=Path("data"))
    return parser


def _ui(arguments: argparse.Namespace) -> None:
    """MLflow's server, and runs copied while they train, until Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    store, port = Store(arguments.store), arguments.port
    watcher = Watcher(store, arguments.runs, arguments.data)
    try:
        check_port(port)
        with store.client() as client:  # makes the tables before the server opens them
            client.search_experiments(max_results=1)
        serve(port, store.uri, store.artifacts(), watcher.look, WATCH_EVERY)
    except KeyboardInterrupt:
        print("stopped", flush=True)


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.command == "ui":
        return _ui(arguments)
    suite = arguments.suite
    runs = job_runs(suite, arguments.jobs, arguments.runs)
    sync(Store(arguments.store), suite, runs, arguments.data, arguments.extra_artifact)
    text = f"{len(runs)} runs of suite {suite} are in {arguments.store}/mlflow.db\n"
    print(text, end="")
    if arguments.done:
        write_text(arguments.done, text)


if __name__ == "__main__":
    run_cli(main)
