"""Exports the best network of each method: `python -m deploy best TABLE --runs RUNS --out FOLDER`.

The best seed is chosen on validation images, so the test accuracy of the files is not biased by it.
"""

import csv
import io
from pathlib import Path

from deploy import fileformat
from deploy.export.check import check_run
from deploy.export.run import export_run
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import replace_file, write_text
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import RunFolder, check_run_id

SETTING = ("dataset", "arch", "width", "method", "w_bits", "a_bits")
FROM_TABLE = ("seed", "val_top1", "top1", "epochs", "code_version", "hardware", "run_id")
MEASURED = {"top1_torch": "top1_torch", "file_top1": "top1", "agreement": "agreement"}
COLUMNS = ("file", *SETTING, *FROM_TABLE, *MEASURED, "file_bytes")
NETWORK = ("dataset", "arch", "arch_options", "policy")  # that two files of one name must share
INDEX = "models.csv"


def best_runs(table: Path, runs: Path) -> list[dict[str, str]]:
    """The rows of results.csv with the highest validation accuracy, one for each setting.

    Only quantized runs of the main sweep and of ablations, without options of a recipe, that have a
    folder in `runs`. Of equal accuracies the lowest seed counts. Raises InputError if the table
    cannot be read or no run is left.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text())))
    except OSError as error:
        raise InputError(f"{table}: {error.strerror}: give the results.csv of a suite") from None
    except ValueError as error:
        raise InputError(f"{table} is no text ({error}): give the results.csv of a suite") from None
    missing = {*SETTING, *FROM_TABLE, "role", "status", "options"} - {*(rows[0] if rows else ())}
    if missing:
        raise InputError(f"{table} has no column {sorted(missing)[0]!r}: give a results.csv")
    best: dict[tuple, dict[str, str]] = {}
    for row in sorted(rows, key=lambda row: _number(row, "seed", table)):
        is_wanted = row["role"] in ("run", "ablation") and row["status"] == "done"
        is_quantized = {row["w_bits"], row["a_bits"]} != {str(FLOAT_BITS)}
        if is_wanted and is_quantized and not row["options"] and (runs / row["run_id"]).is_dir():
            setting = tuple(row[name] for name in SETTING)
            known = best.get(setting)
            accuracy = _number(row, "val_top1", table)
            if known is None or accuracy > float(known["val_top1"]):
                best[setting] = row
    if not best:
        raise InputError(f"{runs} holds no folder of a finished quantized run of {table}")
    return list(best.values())


def _number(row: dict[str, str], column: str, table: Path) -> float:
    """A cell of the table as a number. Raises InputError if it is none."""
    try:
        return float(row[column])
    except ValueError:
        raise InputError(
            f"{table}, run {row['run_id']}: {column} is {row[column]!r}: it must be a number"
        ) from None


def export_best(table: Path, runs: Path, out: Path, data: Path) -> list[dict[str, str]]:
    """Export the best run of each setting to a file in `out`, with a table of them, models.csv.

    What `out` holds already stays, unless a run here has a higher validation accuracy. Returns the
    rows that are new: top1 is the test accuracy after training, in the training's precision;
    top1_torch that of the same network in torch in float32, and file_top1 that of the file, both on
    all test images; agreement the share of these to which torch and the file give the same class,
    all in percent. A file and its row are written when both are made, so a stop loses neither.
    """
    kept, best, new = _index(out), {}, []
    for row in best_runs(table, runs):
        name = check_run_id("{dataset}-{arch}-{method}-w{w_bits}a{a_bits}.lowbit".format(**row))
        if name in best:
            raise InputError(f"{table}: two widths of one network would both be {name}")
        best[name] = row | {"file": name}
    wanted = [
        row
        for name, row in best.items()
        if name not in kept or _is_better(row, runs / row["run_id"], kept[name], out, table)
    ]
    for row in wanted:
        _check_replaced(out / row["file"], row, kept)
    for row in wanted:
        say(f"exports run {row['run_id']} to {out / row['file']}")
        with replace_file(out / row["file"]) as temporary:
            new.append(_exported(row, runs / row["run_id"], temporary, data))
        kept[row["file"]] = new[-1]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept[name] for name in sorted(kept))
        write_text(out / INDEX, text.getvalue())
    return new


def _index(out: Path) -> dict[str, dict[str, str]]:
    """The rows of models.csv in `out` by their files, as far as these are there."""
    path = out / INDEX
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text() if path.exists() else "")))
    except ValueError as error:
        raise InputError(f"{path} is no text ({error}): give another --out") from None
    if any(row.keys() != {*COLUMNS} or None in row.values() for row in rows):
        raise InputError(f"{path}: its columns must be {', '.join(COLUMNS)}: give another --out")
    return {row["file"]: row for row in rows if (out / row["file"]).is_file()}


def _is_better(
    row: dict[str, str], run: Path, kept: dict[str, str], out: Path, table: Path
) -> bool:
    """Whether the run replaces the file: it is better, or the same with another val_top1 or gaps.

    Raises InputError if the file holds another network, such as one of another width.
    """
    path = out / kept["file"]
    origin, config = fileformat.load(path)[1].origin, RunFolder(run).read_json("config.json") or {}
    for key in NETWORK:
        if origin.get(key) != config.get(key):
            raise InputError(
                f"{path}: its {key} is {origin.get(key)}, that of the run {row['run_id']} is "
                f"{config.get(key)}: give another --out"
            )
    gained = _number(row, "val_top1", table) - _number(kept, "val_top1", out / INDEX)
    is_same = kept["run_id"] == row["run_id"]
    has_gaps = any(cell == "" and row.get(key) != "" for key, cell in kept.items())
    return gained > 0 or (is_same and (gained != 0 or has_gaps))


def _check_replaced(path: Path, row: dict[str, str], kept: dict[str, dict[str, str]]) -> None:
    """Raises InputError if the file is there, has no row, and is not of the run, whose file a stop
    may have left without its row."""
    if path.name in kept or not path.is_file():
        return
    if fileformat.load(path)[1].origin.get("run_id") != row["run_id"]:
        raise InputError(f"{path}: {INDEX} has no row of this file: move it, or give another --out")


def _exported(row: dict[str, str], folder: Path, path: Path, data: Path) -> dict[str, str]:
    """Write the file of a run to `path`; its row of models.csv."""
    size = export_run(folder, path, data)
    found = check_run(path, folder, data)
    measured = {name: f"{found[key]:.3f}" for name, key in MEASURED.items()}
    columns = {key: row[key] for key in ("file", *SETTING, *FROM_TABLE)}
    return {**columns, **measured, "file_bytes": str(size["file"])}
