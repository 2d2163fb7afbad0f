"""Exports the best network of each method: `python -m deploy best TABLE --runs RUNS --out FOLDER`.

The best seed is chosen on validation images, so the test accuracy of the files is not biased by it.
"""

import csv
import io
from pathlib import Path

from deploy.export.check import check_run
from deploy.export.run import export_run
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_text
from lowbit_core.runtime.run_folder import check_run_id

SETTING = ("dataset", "arch", "width", "method", "w_bits", "a_bits")
FROM_TABLE = ("seed", "val_top1", "top1", "epochs", "code_version", "hardware", "run_id")
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


def export_best(table: Path, runs: Path, out: Path, data: Path) -> list[dict[str, str | int]]:
    """Export the best run of each setting to a file in `out`, with a table of them, models.csv.

    top1 is the test accuracy after training, file_top1 that of the file on all test images, and
    agreement the share of these to which torch gives the same class, all in percent.
    """
    index, pattern = [], "{dataset}-{arch}-{method}-w{w_bits}a{a_bits}.lowbit"
    rows = best_runs(table, runs)
    names = [check_run_id(pattern.format(**row)) for row in rows]  # before any work starts
    out.mkdir(parents=True, exist_ok=True)
    for name, row in zip(names, rows, strict=True):
        folder = runs / row["run_id"]
        size = export_run(folder, out / name, data)
        found = check_run(out / name, folder, data)
        measured = {"file_top1": f"{found['top1']:.3f}", "agreement": f"{found['agreement']:.3f}"}
        columns = {key: row[key] for key in (*SETTING, *FROM_TABLE)}
        index.append({"file": name, **columns, **measured, "file_bytes": size["file"]})
    text = io.StringIO()
    writer = csv.DictWriter(text, index[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(index)
    write_text(out / INDEX, text.getvalue())
    return index
