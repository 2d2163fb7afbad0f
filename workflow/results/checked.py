"""Derived files are checked before they are used: run folders, job files, tables.

What is damaged is named in one sentence, with what makes it again; nothing of it is used.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path

from baselines import METHODS
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_text
from lowbit_core.runtime.run_folder import RunFolder, check_run_id

ROLES = ("run", "ablation", "checkpoint")
"""Legal roles; a run declared twice keeps the first of them."""
STATUSES = ("done", "diverged")
PUBLISHED_ONLY = {"lsq": "LSQ"}
"""Methods that are shown as context beside ours and never trained here."""
ALL = "all"
"""In claims.csv: the row over all settings of a data set."""
VERDICTS = ("leads", "trails", "undecided")
WHOLE = {
    "w_bits", "a_bits", "seed", "channel", "n", "seeds", "channels", "pairs", "epoch", "restarts",
}  # fmt: skip
TEXT = {
    "suite", "dataset", "arch", "method", "role", "status", "first_last", "shortcut", "exceptions",
    "weight_granularity", "activation_granularity", "init", "pretrained", "diverged_layer",
    "quantizer_weight_decay", "quantizer_lr_scale", "schedule", "epoch_reported", "augmentation",
    "loader", "compile", "precision", "code_version", "torch", "torchvision", "ffcv", "python",
    "hardware", "run_id", "layer", "variant", "trained_with", "other", "label", "best",
    "published_policy", "published_source", "published_note", "bits", "claim", "note",
    "recipe", "change",
}  # fmt: skip
LEGAL = {
    "role": ROLES,
    "status": STATUSES,
    "verdict": VERDICTS,
    "method": (*METHODS, *PUBLISHED_ONLY),
}


# -- tables ----------------------------------------------------------------------------------


def write_table_text(path: str | Path, text: str) -> None:
    """Write a table and, hidden beside it, its SHA-256."""
    path = Path(path)
    write_text(_seal(path), hashlib.sha256(text.encode()).hexdigest() + "\n")
    write_text(path, text)


def check_table(path: str | Path, columns: list[str]) -> None:
    """Raises InputError if the table is not what was written, or not a table of these columns."""
    path = Path(path)
    again = "delete it and run `snakemake` again"
    if not path.exists():
        raise InputError(f"{path} is missing: run `snakemake` again")
    data = path.read_bytes()
    if _seal(path).exists() and _seal(path).read_bytes().strip() != _digest(data):
        raise InputError(f"{path} is not what was written, its checksum differs: {again}")
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV table ({error or 'it is empty'}): {again}") from None
    if header != columns:
        wrong = [name for name in columns if name not in header] or header
        raise InputError(f"{path} lacks the columns {', '.join(wrong)[:200]!r}: {again}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number} has {len(row)} cells of {len(header)}: {again}")
        for name, cell in zip(header, row, strict=True):
            if (legal := _legal(name, cell)) is not None:
                raise InputError(
                    f"{path}, row {number}: {name} is {cell[:80]!r}, not {legal}: {again}"
                )


def _legal(name: str, cell: str) -> str | None:
    """What the cell of column `name` should be; None if it is that."""
    if name in LEGAL:
        return None if cell in LEGAL[name] else f"one of {', '.join(LEGAL[name])}"
    if name in TEXT:
        return None if cell.isprintable() else "printable text"
    if name in WHOLE:
        return None if cell.isdecimal() and len(cell) < 16 else "a whole number"
    try:
        return None if cell == "" or math.isfinite(float(cell)) else "a finite number"
    except ValueError:
        return "a number"


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


# -- jobs and their runs ---------------------------------------------------------------------


def job_text(runs: Iterable[dict]) -> str:
    """A job file: one JSON line a run, each with the number of the job's runs."""
    runs = list(runs)
    return "".join(
        json.dumps({"run_id": run["run_id"], "role": run["role"], "runs": len(runs)}) + "\n"
        for run in runs
    )


def read_job(path: str | Path) -> dict[str, str]:
    """{run_id: role} of a job file. InputError names a line that is no run, or runs that lack."""
    path = Path(path)
    again = "delete the file and rerun"
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a job file ({error}): {again}") from None
    count = 0
    for index, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            run_id, role, count = check_run_id(entry["run_id"]), entry["role"], entry["runs"]
        except (ValueError, KeyError, TypeError, RecursionError):
            entry = None
        if entry is None:
            raise InputError(
                f"{path}, line {index}: {line[:80]!r} is not a job line, "
                f'{{"run_id": ..., "role": ..., "runs": ...}}: {again}'
            )
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
            roles[run_id] = min(role, roles.get(run_id, role), key=ROLES.index)
    return roles


def check_run(folder: Path) -> dict:
    """final.json of a run that is finished and whole; InputError names what is missing or damaged."""
    final = RunFolder(folder).finished() if (folder / "final.json").exists() else None
    if final is None:
        raise InputError(f"{folder / 'final.json'} is missing: the run is not complete")
    config = RunFolder(folder).read_json("config.json")
    if config["run_id"] != folder.name or config["run_key"] != final["run_key"]:
        raise InputError(f"{folder} holds the files of run {config['run_id']!r}")
    return final


def check_jobs(paths: Iterable[str | Path], runs: Path) -> None:
    """Check every run of the job files; the job file of a damaged one is removed.

    So the next sweep makes that job again, and in it what is damaged.
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
