"""Add the measurements of exported runs to a record, with a gallery of what these runs learned.

usage: python -m workflow.results.deployed.gather --record F/record --measured FILES \
           [--runs results/runs] [--data data] [--add]

The files are those of `python -m deploy measure --out`. The record gets deploy.jsonl, one line for
each run, and gallery.json. A record that grows is measured in parts, since the weights of its
earlier runs may be gone: with --add it keeps what it holds of them, and a run that was never
measured has no line. Measure full-precision runs together with those that start from the same
network: the images of the gallery are chosen by the answers of both.
"""

import argparse
import json
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import json_lines, json_text
from workflow.results.columns import AGAIN
from workflow.results.deployed.gallery import NO_GALLERY, joined_galleries, make_gallery
from workflow.results.record import DEPLOYED, GALLERY, Record, is_of, write_texts

FOR_THE_GALLERY = ("codes", "predictions")  # keys that a line of the record lacks


def read_measured(paths: Iterable[Path]) -> dict[str, dict]:
    """{run_id: row} of files that `python -m deploy measure` wrote; InputError for another file."""
    rows = {}
    for path in paths:
        try:
            for line in path.read_text().splitlines():
                row = json.loads(line)
                row["status"], row["run_key"], row["reason"]
                if row["status"] == "exported":
                    itemgetter(*FOR_THE_GALLERY)(row)
                rows[row["run_id"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} holds no measurements: name a file of `python -m deploy measure --out`; "
                f"if a sweep wrote it, {AGAIN}"
            ) from error
    return rows


def measured_runs(record: Record, measured: dict[str, dict], add: bool) -> list[dict]:
    """The row of every run of a record; InputError if one was not measured, or is another now.

    add: a run that was not measured has the row of the record, if it is of the same training.
    Then every measured run must be one of the record.
    """
    ids = {run["config"]["run_id"] for run in record.trained}
    if add and (others := sorted(measured.keys() - ids)):
        raise InputError(
            f"{record.folder} has no run {others[0]}, which was measured: name the record of its "
            "suite, or add the run to this one first (python -m workflow.reference)"
        )
    found = []
    for run in record.trained:
        row = measured.get(run["config"]["run_id"])
        if row is None and add:
            row = record.deployed.get(run["config"]["run_id"])
            found += [row] if row else []
            continue
        if row is None or not is_of(row, run):
            what = "was not measured" if row is None else "was measured before it was trained anew"
            raise InputError(
                f"{record.folder}: its run {run['config']['run_id']} {what}: "
                "make it with `python -m deploy measure`, and gather again"
            )
        found.append(row)
    return found


def write_deployment(
    record: Record, measured: dict[str, dict], runs: Path, data: Path, add: bool = False
) -> None:
    """Write deploy.jsonl and gallery.json to the folder of a record; add: see measured_runs."""
    rows = {row["run_id"]: row for row in measured_runs(record, measured, add)}
    fresh = {run_id: row for run_id, row in rows.items() if run_id in measured}
    gallery = make_gallery(record, fresh, runs, data)
    if add:
        earlier = record.gallery if (record.folder / GALLERY).exists() else NO_GALLERY
        gallery = joined_galleries(earlier, gallery, rows)
    shown = [{k: v for k, v in row.items() if k not in FOR_THE_GALLERY} for row in rows.values()]
    write_texts(record.folder, {DEPLOYED: json_lines(shown), GALLERY: json_text(gallery)})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="the folder of a record")
    parser.add_argument("--measured", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="the prepared data sets")
    parser.add_argument(
        "--add", action="store_true", help="keep what the record holds of runs not measured now"
    )
    args = parser.parse_args(argv)
    record, measured = Record(args.record), read_measured(args.measured)
    write_deployment(record, measured, args.runs, args.data, args.add)


if __name__ == "__main__":
    run_cli(main)
