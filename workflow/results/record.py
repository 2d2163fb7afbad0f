"""The record of a suite's runs: a few small files that all tables, plots and reports are made from.

usage: python -m workflow.results.record --suite S --jobs FILES [--runs results/runs] --out F/record

Only this module and `deployed/gallery.py`, for its figures, read finished run folders for results.
`workflow.reference` records the finished runs of a suite without job files, wherever they were
trained.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

from lowbit_core.quantizers.bits import bits_label, parse_bits
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import json_lines, json_text
from lowbit_core.runtime.run_folder import CHANNEL_ERROR, METRICS, TIMINGS, RunFolder
from workflow.comparisons import load_comparisons
from workflow.results.columns import AGAIN, COMMITTED, REFERENCE, grouped, read_sealed, write_sealed
from workflow.suite.arguments import suite_parser
from workflow.suite.jobs import OF_TEST, check_jobs, check_run, read_jobs
from workflow.suite.options import option_pairs
from workflow.suite.suite import hides_test, load_suite

RUNS, SUITE, EPOCHS, CHANNELS, HISTOGRAMS = FILES = (
    "runs.jsonl", "suite.json", "epochs.csv.gz", "channels.csv.gz", "histograms.json",
)  # fmt: skip
DEPLOYED, GALLERY = "deploy.jsonl", "gallery.json"  # of suites that measure exported networks
WEIGHTS = ("mismatch", "flip_rate", "level_span", "used_levels", "used_levels_lowest")
OSCILLATING = "oscillating"  # the last column of epochs, only where a run tracked it
EPOCH_COLUMNS = ("run_id", *METRICS, *TIMINGS[1:], *WEIGHTS)
CHANNEL_COLUMNS = ("run_id", *CHANNEL_ERROR)
TEXTS = ("run_id", "layer")  # every other column holds numbers
NO_HISTOGRAMS: dict = {"run_id": None, "layers": {}}


# -- reading ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A record folder. Reading a file that is missing or damaged raises InputError."""

    folder: Path

    @property
    def is_committed(self) -> bool:
        return self.folder.resolve().parent.parent == REFERENCE.resolve()

    @cached_property
    def settings(self) -> dict:
        """{"suite": the suite's file, "variants", "options": whether it compares them}"""
        with self._reading(SUITE) as text:
            settings = json.loads(text)
            settings["suite"]["suite"], settings["variants"]
        return settings

    @property
    def hides_test(self) -> bool:
        """Whether it has the test accuracies of its starts alone."""
        return hides_test(self.settings["suite"], self.settings["variants"])

    @property
    def suite(self) -> str:
        return self.settings["suite"]["suite"]

    @cached_property
    def runs(self) -> list[dict]:
        """One dict a run: role, config, final, signed_layers, zero_level, checkpoint_top1.

        Old records have no zero_level. A run of the option `widths` is followed by a dict for each
        lower bit-width, whose `width_of` is the run_id of the run.
        """
        hides_test = self.hides_test
        with self._reading(RUNS) as text:
            runs = [json.loads(line) for line in text.splitlines()]
            for run in runs or [{}]:  # no run at all is an error, too
                run["role"], run["config"]["run_id"], run["config"]["recipe"]["name"]
                run["final"]["status"], hides_test or run["final"]["top1"]
        return [one for run in runs for one in (run, *_lower_widths(run))]

    @property
    def trained(self) -> list[dict]:
        """The runs that were trained: `runs` without the rows of lower bit-widths."""
        return [run for run in self.runs if "width_of" not in run]

    @cached_property
    def epochs(self) -> dict[str, list[dict]]:
        """{run_id: one row an epoch}, numbers as float, empty cells and NaN as None."""
        rows = self._rows(EPOCHS, EPOCH_COLUMNS)
        for run in self.trained:
            run_id = run["config"]["run_id"]
            final = run["final"]  # a run of no epochs has no rows
            has_epochs = final["status"] == "done" and final.get("epochs_done") != 0
            if has_epochs and run_id not in rows:
                raise InputError(
                    f"{self.folder / EPOCHS} has no epoch of run {run_id}, which {RUNS} lists: "
                    f"{COMMITTED if self.is_committed else AGAIN}"
                )
        return rows

    @cached_property
    def channels(self) -> dict[str, list[dict]]:
        """{run_id: one row a layer and channel} of the runs that measured their channels."""
        return self._rows(CHANNELS, CHANNEL_COLUMNS)

    @cached_property
    def histograms(self) -> dict:
        """The weight histograms of one run: {"run_id": ..., "layers": ...}."""
        with self._reading(HISTOGRAMS) as text:
            histograms = json.loads(text)
            histograms["run_id"], histograms["layers"]
        return histograms

    @cached_property
    def deployed(self) -> dict[str, dict]:
        """{run_id: what was measured of its file} (see deploy/measure.py); empty if nothing was.

        What was measured of an earlier training of a run is left out.
        """
        if not (self.folder / DEPLOYED).exists():
            return {}
        with self._reading(DEPLOYED) as text:
            rows = {row["run_id"]: row for row in map(json.loads, text.splitlines())}
            for row in rows.values():
                row["status"], row["reason"], row["run_key"]
        return {
            run_id: rows[run_id]
            for run in self.trained
            if (run_id := run["config"]["run_id"]) in rows and is_of(rows[run_id], run)
        }

    @cached_property
    def gallery(self) -> dict:
        """What deployed/gallery.py chose: {"methods": [...], "networks": [...]}."""
        with self._reading(GALLERY) as text:
            gallery = json.loads(text)
            gallery["methods"], gallery["networks"]
        return gallery

    def _rows(self, name: str, columns: tuple[str, ...]) -> dict[str, list[dict]]:
        with self._reading(name) as text:
            header, *rows = csv.reader(io.StringIO(text, newline=""))
            if tuple(header) not in (columns, (*columns, OSCILLATING)):
                raise ValueError(f"its columns must be {', '.join(columns)}")
            cells = [dict(zip(header, row, strict=True)) for row in rows]
            # A stop between two files of a record leaves rows of runs that are not listed yet.
            listed = {run["config"]["run_id"] for run in self.trained}
            return grouped(
                (
                    {k: v if k in TEXTS else finite(v) for k, v in row.items()}
                    for row in cells
                    if row["run_id"] in listed
                ),
                "run_id",
            )

    @contextmanager
    def _reading(self, name: str) -> Iterator[str]:
        """The text of a file; what is wrong in it becomes an InputError that names the file."""
        path = self.folder / name
        data = read_sealed(path, committed=self.is_committed)
        try:
            yield data.decode()
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            remedy = COMMITTED if self.is_committed else AGAIN
            raise InputError(f"{path} is not part of a record ({error}): {remedy}") from error


def is_of(measured: dict, run: dict) -> bool:
    """Whether a row of deploy.jsonl was measured of this training of a run."""
    final, has_diverged = run["final"], measured["status"] == "diverged"
    return (
        measured["run_key"] == run["config"]["run_key"]
        and has_diverged == (final["status"] == "diverged")
        and measured.get("top1_training") in (None, final.get("top1"))
    )


def _lower_widths(run: dict) -> Iterator[dict]:
    """The lower bit-widths of a run as runs of their own; their run_id ends with their bits.

    Of a run that diverged nothing was measured, and each of its bit-widths has diverged.
    """
    rows = run.get("widths", [])
    if run["final"]["status"] == "diverged" and "widths" in run["config"]["recipe"]:
        for label in run["config"]["recipe"]["widths"]["lower"]:
            bits = zip(("w_bits", "a_bits"), parse_bits(label, "widths.lower"), strict=True)
            rows = [*rows, {**dict(bits), "size_bytes": None, "bitops": None}]
    for row in rows:
        bits = {"w_bits": row["w_bits"], "a_bits": row["a_bits"]}
        run_id = f"{run['config']['run_id']}.{bits_label(*bits.values()).lower()}"
        config = {**run["config"], **bits, "run_id": run_id}
        # At another bit-width the grid may hold zero or not: the report of layers does not say.
        whole = {"width_of": run["config"]["run_id"], "zero_level": None}
        yield {**run, **whole, "config": config, "final": {**run["final"], **row}}


def finite(text: str) -> float | None:
    """The number; None for an empty cell, NaN and infinity (of a run that diverged)."""
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


def start_of(run: dict) -> str | None:
    """The id, in the record, of the full-precision network that a run starts from.

    It differs from the one in the run's configuration if later code trained that network again.
    """
    return run.get("start", run["config"]["pretrained"])


# -- writing ---------------------------------------------------------------------------------


def write_record(
    settings: dict, roles: dict[str, str], runs: Path, out: Path, has_variants: bool = False
) -> None:
    """Write the record of the runs in `roles` ({run_id: role}, all of them finished) to `out`.

    `settings`: the suite's file; `has_variants`: it compares recipes. If it does so on validation
    images, test accuracies are recorded of its starts alone. Raises InputError if a run is damaged.
    """
    records = [_run(runs / run_id, role) for run_id, role in roles.items()]
    tops = {record["config"]["run_id"]: record["final"]["top1"] for record in records}
    for record in records:
        start = record["config"]["pretrained"]
        if start and start not in tops:
            check_run(runs / start)
            tops[start] = RunFolder(runs / start).read_json("final.json")["top1"]
        record["checkpoint_top1"] = tops.get(start)
    has_options = bool(option_pairs(record["config"] for record in records))
    epochs = [row for run_id in roles for row in _epochs(runs / run_id)]
    channels = [
        {"run_id": run_id, **row}
        for run_id, role in roles.items()
        if role != "option"  # their channels tell of an option, not of a weighting
        for row in _read_rows(runs / run_id / "channel_error.csv")
    ]
    tracked = any(row.get(OSCILLATING) is not None for row in epochs)
    epoch_columns = (*EPOCH_COLUMNS, OSCILLATING) if tracked else EPOCH_COLUMNS
    hidden = hides_test(settings, has_variants)
    texts = {
        RUNS: json_lines(without_test(run) if hidden else run for run in records),
        SUITE: json_text({"suite": settings, "variants": has_variants, "options": has_options}),
        EPOCHS: csv_text(epoch_columns, epochs),
        CHANNELS: csv_text(CHANNEL_COLUMNS, channels),
        HISTOGRAMS: json_text(_histograms(records, runs)),
    }
    write_texts(out, texts)


def without_test(run: dict) -> dict:
    """The run without its accuracy on test images, unless it is a start: no choice may know it."""
    if run["config"]["pretrained"] is None:
        return run
    final, *widths = (
        {key: value for key, value in row.items() if key not in OF_TEST}
        for row in (run["final"], *run.get("widths", ()))
    )
    return run | {"final": final} | ({"widths": widths} if widths else {})


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write files of a record, {name: text}."""
    for name, text in texts.items():
        write_sealed(folder / name, text.encode())


def _run(folder: Path, role: str) -> dict:
    config = check_run(folder)
    final = RunFolder(folder).read_json("final.json")
    layers = RunFolder(folder).read_json("layers.json") or []
    rows = _read_rows(folder / "widths.csv")
    widths = [
        {key: (float if "top" in key or "loss" in key else int)(row[key]) for key in row}
        for row in rows
    ]
    return {
        **({"widths": widths} if widths else {}),
        "role": role,
        "config": config,
        "final": {key: final[key] for key in final if key not in ("files", "checksum")},
        "signed_layers": sum(row["status"] == "quantized" and row["signed"] for row in layers),
        "zero_level": _zero_level(layers),
    }


def _zero_level(layers: list[dict]) -> bool | None:
    """Whether zero is a level of the weights of every quantized layer; None if none is known."""
    known = [row["zero_level"] for row in layers if row.get("zero_level") is not None]
    return all(known) if known else None


def _epochs(folder: Path) -> list[dict]:
    """One row an epoch: metrics, timings and the means of the weights' state over the layers."""
    epochs = _weight_epochs(_read_rows(folder / "weight_state.csv"))
    for row in _read_rows(folder / "metrics.csv") + _read_rows(folder / "timings.csv"):
        epochs.setdefault(int(row["epoch"]), {}).update(row)
    return [{**row, "run_id": folder.name, "epoch": epoch} for epoch, row in sorted(epochs.items())]


def _weight_epochs(states: list[dict[str, str]]) -> dict[int, dict]:
    """weight_state.csv as means over the layers, by epoch, from 0 (before training).

    level_span is the distance of the outer levels, divided by what it was at the first epoch.
    """
    epochs, start = {}, {}
    for epoch, rows in sorted(grouped(states, "epoch").items(), key=lambda item: int(item[0])):
        spans = {row["layer"]: float(row["level_max"]) - float(row["level_min"]) for row in rows}
        start = start or spans
        means = {
            name: mean_of(finite(row.get(name, "")) for row in rows)
            for name in ("mismatch", "flip_rate", "used_levels", OSCILLATING)
        }
        epochs[int(epoch)] = {
            **means,
            "level_span": mean_of(spans[name] / start[name] for name in spans if start[name]),
            "used_levels_lowest": min(float(row["used_levels"]) for row in rows),
        }
    return epochs


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are finite numbers; None if there is none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return mean(known) if known else None


def representative(rows: Iterable[dict]) -> dict | None:
    """One run to look at closely: W2A2 if there is one, the arch with most seeds, lowest seed."""
    rows = list(rows)
    networks = grouped(rows, "dataset", "arch")
    seeds = {network: len({row["seed"] for row in mine}) for network, mine in networks.items()}

    def order(row: dict) -> tuple:
        network, bits = (row["dataset"], row["arch"]), (row["w_bits"], row["a_bits"])
        return bits != (2, 2), -seeds[network], *network, *bits, row["seed"]

    return min(rows, key=order, default=None)


def _histograms(records: list[dict], runs: Path) -> dict:
    """The weight histograms of the representative run of the benchmark's own method."""
    run = representative(
        record["config"]
        for record in records
        if record["config"]["method"] == load_comparisons().method
        and (record["role"], record["final"]["status"]) == ("run", "done")
    )
    layers = run and RunFolder(runs / run["run_id"]).read_json("weight_histograms.json")
    return {"run_id": run["run_id"], "layers": layers} if layers else NO_HISTOGRAMS


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table of a run folder; none if the run did not write it."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def csv_text(columns: tuple[str, ...], rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = suite_parser(__doc__)
    parser.add_argument("--jobs", nargs="+", required=True, help="exactly their runs, all finished")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    suite = load_suite(args.suite, args.compile)
    check_jobs(args.jobs, args.runs)
    trained, roles = read_jobs(args.jobs), suite.roles
    if unknown := sorted(trained.keys() - roles.keys()):
        raise InputError(
            f"suite {suite.name!r} has no run {unknown[0]!r}, which a job trained: the suite or "
            "the code changed while the sweep ran, so start snakemake again"
        )
    roles = {run_id: roles[run_id] for run_id in trained}
    write_record(suite.config, roles, args.runs, args.out, suite.has_variants)


if __name__ == "__main__":
    run_cli(main)
