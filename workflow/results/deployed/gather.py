"""Add the measurements of exported runs to a record, with a gallery of what these runs learned.

usage: python -m workflow.results.deployed.gather --record F/record --measured FILES \
           [--runs results/runs] [--data data] [--add]

The files are those of `python -m deploy measure --out`. The record gets deploy.jsonl, one line for
each run, and gallery.json. A record that grows is measured in parts, since the weights of its
earlier runs may be gone: with --add it keeps what it holds of them, and a run that was never
measured has no line.
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


def measured_runs(record: Record, measured: dict[str, dict], add: bool) -> list[dict]:
    """The row of every run of a record; InputError if one was not measured, or is another now.

    add: a run that was not measured has the row of the record, or none.
    """
    found = []
    for run in record.trained:
        config = run["config"]
        row = measured.get(config["run_id"])
        if row is None and add:
            found += _earlier(record, run)
            continue
        if row is None or row["run_key"] != config["run_key"]:
            what = "was not measured" if row is None else "was measured before it was trained anew"
            raise InputError(
                f"{record.folder}: its run {config['run_id']} {what}: "
                "make it with `python -m deploy measure`, and gather again"
            )
        found.append(row)
    return found


def _earlier(record: Record, run: dict) -> list[dict]:
    """The row of a run in the record itself, if there is one and it is of the same training."""
    row = record.deployed.get(run["config"]["run_id"])
    is_same = row and row.get("top1_training") in (None, run["final"]["top1"])
    return [row] if is_same else []


def _grown(earlier: dict, new: dict) -> dict:
    """A gallery with the networks of both; the new one counts where it shows as many methods."""
    networks = {(one["dataset"], one["arch"]): one for one in earlier["networks"] + new["networks"]}
    methods = max(new["methods"], earlier["methods"], key=len)
    return {"methods": methods, "networks": [one for _, one in sorted(networks.items())]}


def write_deployment(
    record: Record, measured: dict[str, dict], runs: Path, data: Path, add: bool = False
) -> None:
    """Write deploy.jsonl and gallery.json to the folder of a record; add: see measured_runs."""
    rows = measured_runs(record, measured, add)
    fresh = {row["run_id"]: row for row in rows if row["run_id"] in measured}
    gallery = make_gallery(record, fresh, runs, data)
    if add and record.deployed:
        gallery = _grown(record.gallery, gallery)
    shown = [{k: v for k, v in row.items() if k not in FOR_THE_GALLERY} for row in rows]
    write_texts(record.folder, {DEPLOYED: json_lines(shown), GALLERY: json_text(gallery)})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="the folder of a record")
    parser.add_argument("--measured", type=Path, nargs="+", required=True)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--data", type=Path, default=Path("data"), help="the prepared data sets")
    parser.add_argument(
        "--add", action="store_true", help="to what the record holds of runs not measured now"
    )
    args = parser.parse_args(argv)
    record, measured = Record(args.record), read_measured(args.measured)
    write_deployment(record, measured, args.runs, args.data, args.add)


if __name__ == "__main__":
    run_cli(main)
