"""The committed record of a suite, which grows: finished runs are added to those that it holds.

usage: python -m workflow.reference --suite S [--runs results/runs] [--out FOLDER/record]

It records the runs of the suite that are finished, wherever they were trained, and keeps those of
the record that is there already. With --also it takes runs from the records of other suites, too,
which train some of the same runs.
"""

import csv
import io
import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import json_lines, json_text, locked
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_status import RunStatus, run_status
from workflow.results.columns import REFERENCE, grouped, read_sealed, write_sealed
from workflow.results.record import (
    CHANNELS,
    EPOCHS,
    FILES,
    HISTOGRAMS,
    NO_HISTOGRAMS,
    RUNS,
    SUITE,
    Record,
    csv_text,
    start_of,
    without_test,
    write_record,
    write_texts,
)
from workflow.suite.arguments import suite_parser
from workflow.suite.options import option_pairs
from workflow.suite.suite import Suite, load_suite

MOST_BYTES = 1_000_000  # of a file that is committed
# What differs between two trainings of the same setting by two versions of the code or, as the
# loader, on machines with and without FFCV.
OF_CODE = (
    *("run_id", "run_key", "code_version", "pretrained", "predecessor", "teachers", "role"),
    "loader",
)


@dataclass(frozen=True)
class Joined:
    """The runs of a new record and of an earlier one, as lists of runs."""

    from_new: list[dict] = field(default_factory=list)
    """Runs of the new record that the joined one has."""
    from_earlier: list[dict] = field(default_factory=list)
    """Runs of the earlier record that the joined one has."""
    replaced: list[dict] = field(default_factory=list)
    """Earlier runs left out: their start was trained again, with as many new runs or more."""
    refused: list[dict] = field(default_factory=list)
    """New runs left out: the earlier record has more runs, of another start for the same seed."""
    foreign: list[dict] = field(default_factory=list)
    """Runs of another suite's record left out: their start is not that of the new runs."""
    outside: list[dict] = field(default_factory=list)
    """Earlier runs left out: the suite no longer trains them, or no longer their start."""


def add_earlier(earlier: Path, new: Path, suite: Suite, is_other: bool = False) -> Joined:
    """Add to the record in `new` the runs of the record in `earlier` that it lacks.

    is_other: `earlier` is the record of another suite, whose runs replace none.

    Runs are compared in pairs that start from the same full-precision network, their start. Trained
    again on another machine or by other code, a start has other weights, so its runs are not mixed
    with those of the first: the record that has more runs of the seed counts, on a tie `new`. A
    start that is the same network in both records (kept by workflow/starts.py, or with equal test
    results) has the runs of both, which then name the start in `new` (see start_of). Runs that the
    suite no longer trains, or whose start it does not, are left out. Raises InputError if a record
    is damaged, or has no test accuracies while the suite shows them.
    """
    records = Record(new), Record(earlier)
    if records[1].hides_test and not suite.hides_test:
        raise InputError(
            f"{earlier} is of a suite that chooses on validation images, so it has no test "
            f"accuracies, but suite {suite.name!r} shows them: "
            + ("name a record of another kind" if is_other else "name another --out")
        )
    new_runs, all_old = (record.trained for record in records)
    asked = suite.runs
    order = {_training_of(run): place for place, run in reversed(list(enumerate(asked)))}
    gone = {_id(run) for run in all_old if _training_of(run["config"]) not in order}
    old_runs = [run for run in all_old if not gone & {_id(run), start_of(run)}]
    joined = _joined_starts(new_runs, old_runs, is_other)
    joined.outside.extend(run for run in all_old if run not in old_runs)
    if not joined.from_earlier:
        return joined
    runs = [*joined.from_new, *joined.from_earlier]
    runs.sort(key=lambda run: order[_training_of(run["config"])])
    roles = [asked[order[_training_of(run["config"])]]["role"] for run in runs]
    runs = [run | {"role": role} for run, role in zip(runs, roles, strict=True)]
    ids, kept_ids = list(map(_id, runs)), {*map(_id, joined.from_earlier)}
    parts = [(new, {*ids} - kept_ids), (earlier, kept_ids)]
    shown = next(
        (
            record.histograms
            for record, (_, mine) in zip(records, parts, strict=True)
            if record.histograms["run_id"] in mine
        ),
        NO_HISTOGRAMS,
    )
    pairs = option_pairs(run["config"] | {"pretrained": start_of(run)} for run in runs)
    flags = {"variants": suite.has_variants, "options": bool(pairs)}
    texts = {
        RUNS: json_lines(without_test(run) if suite.hides_test else run for run in runs),
        SUITE: json_text(records[0].settings | flags),
        HISTOGRAMS: json_text(shown),
        EPOCHS: _joined(EPOCHS, parts, ids),
        CHANNELS: _joined(CHANNELS, parts, ids),
    }
    write_texts(new, texts)
    return joined


def _id(run: dict) -> str:
    return run["config"]["run_id"]


def _training_of(config: dict) -> str:
    """What was trained, whatever the version of the code."""
    setting = {key: value for key, value in config.items() if key not in OF_CODE}
    return json.dumps(setting | {"is_start": config["pretrained"] is None}, sort_keys=True)


def _by_start(runs: Iterable[dict]) -> dict[tuple, list[dict]]:
    """The runs by network and seed of the full-precision run that they start from."""
    starts = defaultdict(list)
    for run in runs:
        config = run["config"]
        options = json.dumps(config["arch_options"], sort_keys=True)
        starts[config["dataset"], config["arch"], options, config["seed"]].append(run)
    return starts


def _joined_starts(new: list[dict], old: list[dict], is_other: bool) -> Joined:
    """What becomes of the runs of both records (see add_earlier)."""
    by_start = _by_start(new), _by_start(old)
    joined = Joined()
    for start in {**by_start[0], **by_start[1]}:
        ours, theirs = (runs.get(start, []) for runs in by_start)
        if _start_results(ours) and _start_results(ours) == _start_results(theirs):
            again = {_training_of(run["config"]) for run in ours}
            joined.from_new.extend(ours)
            ids = ([_id(run) for run in _starts(runs)] for runs in (theirs, ours))
            same = dict(zip(*ids, strict=True))
            rest = [run for run in theirs if _training_of(run["config"]) not in again]
            joined.from_earlier.extend(_from_start(run, same) for run in rest)
        elif ours and (is_other or len(ours) >= len(theirs)):
            joined.from_new.extend(ours)
            (joined.foreign if is_other else joined.replaced).extend(theirs)
        else:
            joined.from_earlier.extend(theirs)
            joined.refused.extend(ours)
    return joined


def _from_start(run: dict, same: dict[str, str]) -> dict:
    """The run, from the start that `same` names in place of its own; itself if none is named."""
    start = start_of(run)
    return run if same.get(start, start) == start else run | {"start": same[start]}


def _starts(runs: list[dict]) -> list[dict]:
    return [run for run in runs if run["config"]["pretrained"] is None]


def _start_results(runs: list[dict]) -> list[tuple]:
    """What tells the full-precision starts among `runs` apart: equal test losses, equal weights."""
    finals = [run["final"] for run in _starts(runs)]
    return [(final["top1"], final["top5"], final["test_loss"]) for final in finals]


def _joined(name: str, parts: list[tuple[Path, set[str]]], ids: list[str]) -> str:
    """A table of the records in `parts` with the rows of the runs in `ids`, in that order.

    parts: record folders with the ids of the runs that are taken from each. Trained twice by the
    same code, a run has the same id in both.
    """
    rows: dict[str, list[dict]] = {}
    columns: dict[str, None] = {}
    for folder, mine in parts:
        text = read_sealed(folder / name, Record(folder).is_committed)
        table = csv.DictReader(io.StringIO(text.decode(), newline=""))
        columns |= dict.fromkeys(table.fieldnames or ())
        rows |= grouped((row for row in table if row["run_id"] in mine), "run_id")
    return csv_text(tuple(columns), [row for run_id in ids for row in rows.get(run_id, ())])


def finished_runs(suite: Suite, runs: Path) -> dict[str, str]:
    """{run_id: role} of the suite's finished runs."""
    return {
        run["run_id"]: run["role"]
        for run in suite.runs
        if run_status(runs / run["run_id"], run["run_key"], weights=False)[0] is RunStatus.DONE
    }


def _check_kept(joined: Joined, out: Path) -> None:
    """Raise InputError if runs of the record in `out` would be lost."""
    for lost, why in (
        (joined.replaced, "whose start was trained again and has as many new runs or more"),
        (joined.outside, "which the suite no longer trains, or no longer from this start"),
    ):
        if lost:
            raise InputError(
                f"{out} has {len(lost)} runs, such as {_id(lost[0])}, {why}: --replace drops them, "
                "--out FOLDER/record writes another record"
            )


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder in `parent` for the new record, in the place of one that a kill left behind."""
    folder = parent / ".record.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main(argv: list[str] | None = None) -> None:
    parser = suite_parser(__doc__)
    parser.add_argument(
        "--datasets", default="", help="add only runs on these, separated by commas"
    )
    parser.add_argument(
        "--out", type=Path, help="by default results/reference/<suite>/record of this checkout"
    )
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="RECORD", help="of other suites"
    )
    parser.add_argument(
        "--replace", action="store_true",
        help="drop recorded runs whose start was trained again, or that the suite no longer has",
    )  # fmt: skip
    args = parser.parse_args(argv)
    suite = load_suite(args.suite, args.compile)
    out = args.out or REFERENCE / args.suite / "record"
    roles = finished_runs(suite.only(args.datasets), args.runs)
    if not roles:
        raise InputError(f"{args.runs} holds no finished run of suite {args.suite!r}")
    waiting = f"waiting: another process adds to {out}"
    with locked(out.parent / ".record.lock", waiting), _scratch(out.parent) as new:
        write_record(suite.config, roles, args.runs, new, suite.has_variants)
        joined = add_earlier(out, new, suite) if (out / RUNS).exists() else Joined()
        if not args.replace:
            _check_kept(joined, out)
        also = [add_earlier(record, new, suite, is_other=True) for record in args.also]
        for name in FILES:
            if (size := (new / name).stat().st_size) > MOST_BYTES:
                raise InputError(
                    f"{out / name} would have {size} bytes: it must have at most {MOST_BYTES}, so "
                    "name fewer data sets by --datasets, and another --out for the others"
                )
        for name in reversed(FILES):  # the list of runs last: until then the old one counts
            write_sealed(out / name, read_sealed(new / name))
    others = sum(len(one.from_earlier) for one in also)
    say(
        f"{out} holds {len(Record(out).trained)} runs of {len(suite.runs)} of suite {args.suite}, "
        f"{len(joined.from_earlier)} of them kept, {others} from other suites"
    )
    foreign = [run for one in also for run in one.foreign]
    for left_out, why in (
        (joined.refused, "new: the record has more runs of this seed, from another start"),
        (joined.replaced, "replaced, since their start was trained again"),
        (joined.outside, "no longer in the suite"),
        (foreign, "of another suite: their start is another network"),
    ):
        if left_out:
            say(f"left out, {why}: {', '.join(sorted(map(_id, left_out)))}")


if __name__ == "__main__":
    run_cli(main)
