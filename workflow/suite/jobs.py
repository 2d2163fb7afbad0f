"""Job files: which runs a finished job trained. And the check that these runs are whole.

`python -m workflow.suite.jobs --runs results/runs FILES` lets the next sweep train again the runs
of these job files whose network is damaged.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import WEIGHTS, RunFolder, check_run_id
from lowbit_core.runtime.run_status import RunStatus, run_status

ROLES = ("run", "ablation", "option", "checkpoint")
"""What a run is for: the main table, an ablation, an option of a recipe, or the start of others."""


OF_TEST = ("top1", "top5", "test_loss")
"""The keys of final.json that tell of test images."""


def main_role(one: str, other: str | None) -> str:
    """The role of a run that a suite declares twice: the first of them in ROLES."""
    return min(one, other or one, key=ROLES.index)


def job_text(runs: Iterable[dict]) -> str:
    """A job file: one JSON line a run, each with the number of the job's runs."""
    runs = list(runs)
    return "".join(
        json.dumps({"run_id": run["run_id"], "role": run["role"], "runs": len(runs)}) + "\n"
        for run in runs
    )


def read_job(path: str | Path) -> dict[str, str]:
    """{run_id: role} of a job file; InputError names a line that is no run, or missing runs."""
    again = "delete the file and rerun"
    found: dict[str, str] = {}
    try:
        lines = Path(path).read_text().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a job file ({error}): {again}") from None
    count = 0
    for index, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            run_id, role, count = check_run_id(entry["run_id"]), entry["role"], entry["runs"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(
                f"{path}, line {index}: {line[:80]!r} is not a job line, "
                f'{{"run_id": ..., "role": ..., "runs": ...}}: {again}'
            ) from None
        if role not in ROLES:
            raise InputError(
                f"{path}, line {index}: role {role!r} must be one of {', '.join(ROLES)}: {again}"
            )
        found[run_id] = role
    if count != len(lines) or len(found) != len(lines) or not lines:
        raise InputError(f"{path} holds {len(lines)} runs of {count or 'its job'}: {again}")
    return found


def read_jobs(paths: Iterable[str | Path]) -> dict[str, str]:
    """{run_id: role} of all job files."""
    roles: dict[str, str] = {}
    for path in paths:
        for run_id, role in read_job(path).items():
            roles[run_id] = main_role(role, roles.get(run_id))
    return roles


def check_run(folder: Path) -> dict:
    """config.json of a finished, undamaged run; InputError names what is missing or damaged."""
    config = RunFolder(folder).read_json("config.json") if folder.exists() else None
    key = config.get("run_key", "") if isinstance(config, dict) else ""
    status, damage = run_status(folder, key, weights=False)
    if config is None or status is RunStatus.ABSENT:
        raise InputError(f"{folder / 'final.json'} is missing: the run is not complete")
    if status is RunStatus.DAMAGED:
        raise InputError(damage)
    if status is RunStatus.OTHER or config["run_id"] != folder.name:
        raise InputError(f"{folder} holds the files of another run, {config['run_id']!r}")
    return config


def check_jobs(paths: Iterable[str | Path], runs: Path) -> None:
    """Check every run of the job files, and remove the job file of a damaged run.

    The next sweep then runs that job again, and the job trains again what is damaged.
    """
    for path in map(Path, paths):
        for run_id in read_job(path):
            try:
                check_run(runs / run_id)
            except InputError as error:
                path.unlink(missing_ok=True)
                raise InputError(
                    f"{error}; run `snakemake` again: it makes this run anew ({path} was removed)"
                ) from error


def mend_jobs(paths: Iterable[str | Path], runs: Path) -> None:
    """Remove final.json and the job file of runs that are missing or damaged, weights included."""
    for path in map(Path, paths):
        for run_id in read_job(path):
            try:
                config = RunFolder(runs / run_id).read_json("config.json") or {}
                if not isinstance(config, dict):
                    raise InputError(f"{runs / run_id / 'config.json'} is no object")
            except InputError as error:
                status, damage = RunStatus.DAMAGED, str(error)
            else:
                key = config.get("run_key", "")
                status, damage = run_status(runs / run_id, key, weights=True)
                if status is RunStatus.DAMAGED and _only_weights_are_elsewhere(runs / run_id, key):
                    say(
                        f"{damage}: copy it from the machine that trained the run, or delete "
                        f"{runs / run_id} and {path}, and run `snakemake` again"
                    )
                    continue
            if status in (RunStatus.DAMAGED, RunStatus.ABSENT):
                RunFolder(runs / run_id).remove("final.json")
                path.unlink(missing_ok=True)
                say(f"{damage or run_id}: run `snakemake` again, which trains it anew")


def _only_weights_are_elsewhere(folder: Path, key: str) -> bool:
    """Whether a finished run lacks its network alone, as after training on another machine."""
    done = run_status(folder, key, weights=False)[0] is RunStatus.DONE
    return done and not (folder / WEIGHTS).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("jobs", nargs="+")
    arguments = parser.parse_args()
    mend_jobs(arguments.jobs, arguments.runs)


if __name__ == "__main__":
    run_cli(main)
