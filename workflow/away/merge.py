"""Bring the results of several machines together: `python -m workflow.away.merge FOLDER FOLDER ...`.

Each folder is what `workflow.away.worker --home` packed, or a project's results folder with its runs/.
Runs are merged by run key; then MLflow is told of them.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.run_folder import WEIGHTS, RunFolder, check_run_id
from workflow.away.bundle import NAME, unpack
from workflow.away.cost import epochs_done
from workflow.away.queue import PLAN

NUMBERS = ("status", "top1", "top5", "test_loss", "val_top1", "epochs_done")
"""Of final.json: what two machines must agree on."""


def merge(sources: list[Path], runs: Path) -> list[str]:
    """Copy the run folders of `sources` to `runs`; returns the ids of those that are new or longer.

    Nothing is copied if any two disagree, or a finished run is damaged: InputError says which.
    """
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, list[Path]] = {}
        for index, source in enumerate(sources):
            for folder in sorted(_run_folders(source, Path(scratch) / str(index))):
                found.setdefault(folder.name, []).append(folder)
        chosen = {}
        for run_id, folders in found.items():
            here = runs / run_id
            everywhere = [here, *folders] if (here / "config.json").exists() else folders
            _check_alike(run_id, everywhere)
            best = max(everywhere, key=_completeness)
            if best is not here:
                chosen[run_id] = best
        for run_id, folder in chosen.items():
            _replace(folder, runs / run_id)
    return sorted(chosen)


def _run_folders(source: Path, scratch: Path) -> list[Path]:
    if list(source.glob(f"{NAME}.*")):
        unpack(source, scratch)
        return [path.parent for path in scratch.glob("*/config.json")]
    folders = [path.parent for path in source.glob("runs/*/config.json")]
    if not folders:
        raise InputError(f"{source}: holds neither {NAME} nor runs/: nothing to merge")
    return folders


def _completeness(folder: Path) -> tuple[bool, int, bool]:
    """Finished before unfinished, more epochs before fewer, weights before none."""
    weights = (folder / "weights.pt").exists() or (folder / "checkpoint.pt").exists()
    return (folder / "final.json").exists(), epochs_done(folder), weights


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable record ({error}): bring it again") from error


def _check_alike(run_id: str, folders: list[Path]) -> None:
    """One configuration, and the same numbers wherever the run is finished."""
    keys = {_read(folder / "config.json")["run_key"] for folder in folders}
    if len(keys) > 1:
        raise InputError(f"run {run_id} has {len(keys)} different run keys: remove the wrong ones")
    finals = [
        RunFolder(f).finished(weights=(f / WEIGHTS).exists())
        for f in folders
        if (f / "final.json").exists()
    ]
    for final in finals[1:]:
        if any(final[name] != finals[0][name] for name in NUMBERS):
            told = " and ".join(
                f"{f['top1']} on {f['hardware']} ({f['created']})" for f in (finals[0], final)
            )
            raise InputError(
                f"run {run_id} was trained twice with different results, top-1 {told}: "
                "remove the one that is not wanted"
            )


def _replace(folder: Path, place: Path) -> None:
    """Put a whole copy of `folder` at `place`: never half of one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent.parent, prefix=".merge.") as scratch:
        shutil.copytree(folder, Path(scratch) / "new")
        if place.exists():
            place.rename(Path(scratch) / "old")
        (Path(scratch) / "new").rename(place)


def suites_of(sources: list[Path]) -> dict[str, dict[str, str]]:
    """{suite: {run_id: role}} of the plans that came home with the runs."""
    suites: dict[str, dict[str, str]] = {}
    for source in sources:
        if (source / PLAN).exists():
            plan = _read(source / PLAN)
            roles = {check_run_id(run["run_id"]): run["role"] for run in plan["runs"]}
            suites.setdefault(plan["suite"], {}).update(roles)
    return suites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--store", type=Path, default=Path("results/mlflow"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--no-sync", action="store_true", help="leave MLflow as it is")
    arguments = parser.parse_args()
    changed = merge(arguments.folders, arguments.runs)
    print(f"{len(changed)} runs are new or longer in {arguments.runs}")
    if arguments.no_sync:
        return
    from workflow.track import Store, TrackedRun, sync  # slow import

    for suite, roles in suites_of(arguments.folders).items():
        tracked = [
            TrackedRun(arguments.runs / run_id, role)
            for run_id, role in roles.items()
            if (arguments.runs / run_id / "config.json").exists()
        ]
        sync(Store(arguments.store), suite, tracked, arguments.data)
        print(f"{len(tracked)} runs of suite {suite} are in {arguments.store}/mlflow.db")


if __name__ == "__main__":
    run_cli(main)
