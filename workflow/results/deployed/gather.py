"""Add the measurements of exported runs to a record, with a gallery of what these runs learned.

usage: python -m workflow.results.deployed.gather --record F/record --measured FILES \
           [--runs results/runs] [--data data]

The files are those of `python -m deploy measure --out`. The record gets deploy.jsonl, one line for
each run, and gallery.json.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import json_lines, json_text
from workflow.results.columns import AGAIN
from workflow.results.deployed.gallery import make_gallery
from workflow.results.record import DEPLOYED, GALLERY, Record, write_texts

FOR_THE_GALLERY = ("codes", "predictions", "run_key")  # keys that a line of the record lacks


def read_measured(paths: Iterable[Path]) -> dict[str, dict]:
    """{run_id: row} of files that `python -m deploy measure` wrote; InputError for another file."""
    rows = {}
    for path in paths:
        try:
            for line in path.read_text().splitlines():
                row = json.loads(line)
                row["status"], row["run_key"], row["reason"]
                rows[row["run_id"]] = row
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} holds no measurements ({error!r}): {AGAIN}") from error
    return rows


def measured_runs(record: Record, measured: dict[str, dict]) -> list[dict]:
    """The row of every run of a record; InputError if one was not measured, or is another now."""
    found = []
    for run in record.trained:
        config = run["config"]
        row = measured.get(config["run_id"])
        if row is None or row["run_key"] != config["run_key"]:
            what = "was not measured" if row is None else "was measured before it was trained anew"
            raise InputError(
                f"{record.folder}: its run {config['run_id']} {what}: "
                "make it with `python -m deploy measure`, and gather again"
            )
        found.append(row)
    return found


def write_deployment(record: Record, measured: dict[str, dict], runs: Path, data: Path) -> None:
    """Write deploy.jsonl and gallery.json to the folder of a record."""
    rows = measured_runs(record, measured)
    gallery = make_gallery(record, {row["run_id"]: row for row in rows}, runs, data)
    shown = [{k: v for k, v in row.items() if k not in FOR_THE_GALLERY} for row in rows]
    write_texts(record.folder, {DEPLOYED: json_lines(shown), GALLERY: json_text(gallery)})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="the folder of a record")
    parser.add_argument("--measured", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="the prepared data sets")
    args = parser.parse_args(argv)
    write_deployment(Record(args.record), read_measured(args.measured), args.runs, args.data)


if __name__ == "__main__":
    run_cli(main)
