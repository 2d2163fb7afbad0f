"""The committed record of a suite's runs, and the tables, plots and report made from it alone.

usage: python -m workflow.results.reference write --suite cpu_short
   or: python -m workflow.results.reference tables [results/reference/cpu-short ...]

`write` gathers the finished runs of a suite, wherever they were trained, into a few small files in
results/reference/<suite>/. `tables` needs only those: no run folders, no training.
"""

import argparse
import gzip
import json
import tempfile
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_bytes, write_json, write_text
from lowbit_core.runtime.progress import say
from workflow.away.queue import is_done, suite_plan
from workflow.results import claims, collect, plots, report, tables, variants
from workflow.results.checked import check_run, check_table
from workflow.suite.suite import ROOT, load_suite

REFERENCE = Path("results/reference")
REPORTS = Path("reports/reference")
PUBLISHED = ROOT / "config" / "published.csv"
RUNS, SUITE, EPOCHS = "runs.jsonl", "suite.json", "epochs.csv.gz"
VARIANTS = "variants"
HISTOGRAMS, CHANNELS = "weight_histograms.json", "channel_error_example.csv"
MOST_BYTES = 1_000_000  # of one file: the folder is for a repository


def write_reference(
    suite: str,
    config: dict,
    roles: dict[str, str],
    runs: Path,
    out: Path,
    has_variants: bool = False,
) -> None:
    """Write the record of the runs in `roles` ({run_id: role}, all of them finished) to `out`.

    `has_variants`: the suite compares recipes on validation data (Suite.has_variants).
    Raises InputError if a run is damaged or a file gets too large for a repository.
    """
    finals = {run_id: check_run(runs / run_id) for run_id in roles}
    if not has_variants:
        _write_tables(suite, roles, runs, out)
    write_json(out / SUITE, {"suite": config, **({VARIANTS: True} if has_variants else {})})
    write_text(
        out / RUNS,
        "".join(
            json.dumps(_record(run_id, roles[run_id], finals[run_id], runs), sort_keys=True) + "\n"
            for run_id in roles
        ),
    )
    for path in sorted(out.iterdir()):
        if path.stat().st_size > MOST_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size} bytes: write fewer data sets at once"
            )


def _write_tables(suite: str, roles: dict[str, str], runs: Path, out: Path) -> None:
    """The tables that run folders are gathered into."""
    results = collect.collect_results(suite, runs, roles)
    channels = collect.collect_channel_error(runs, results)
    direct = collect.collect_direct_weights(runs, results)
    made = {
        "results.csv": (collect.RESULT_COLUMNS, results),
        "timings.csv": (collect.TIMING_COLUMNS, collect.collect_timings(runs, results)),
        "diagnostics.csv": (
            collect.DIAGNOSTIC_COLUMNS, collect.collect_diagnostics(runs, results),
        ),
        "ablation_channel_error_summary.csv": (
            collect.CHANNEL_SUMMARY_COLUMNS, collect.summarize_channel_error(channels, results),
        ),
        "ablation_direct_weights.csv": (collect.DIRECT_COLUMNS, direct),
        "ablation_direct_weights_summary.csv": (
            collect.DIRECT_SUMMARY_COLUMNS, collect.summarize_direct_weights(direct),
        ),
        CHANNELS: (collect.CHANNEL_COLUMNS, collect.example_channels(channels)),
    }  # fmt: skip
    for name, (columns, rows) in made.items():
        collect.write_table(out / name, columns, rows)
    epochs = collect.table_text(collect.EPOCH_COLUMNS, collect.collect_epochs(runs, results))
    write_bytes(out / EPOCHS, gzip.compress(epochs.encode(), mtime=0))
    write_json(out / HISTOGRAMS, collect.collect_histograms(runs, results))


def _record(run_id: str, role: str, final: dict, runs: Path) -> dict:
    """One line of runs.jsonl: the resolved configuration and the final record of a run."""
    kept = {name: value for name, value in final.items() if name not in ("files", "checksum")}
    return {"role": role, "config": collect.read_json(runs / run_id / "config.json"), "final": kept}


def make_tables(folder: Path, out: Path) -> None:
    """Make the main table and claims in `folder` again, and plots and report in `out`.

    Of variants: their one table, in `folder`. Raises InputError if a file of `folder` is missing, or
    its tables and its runs disagree.
    """
    records = _read_records(folder / RUNS)
    if collect.read_json(folder / SUITE).get(VARIANTS):
        suite = collect.read_json(folder / SUITE)["suite"]["suite"]
        variants.write_variants(
            suite,
            [(r["config"], r["final"]) for r in records if r["role"] != "checkpoint"],
            folder / "variants",
        )
        return
    _check_results(folder, records)
    at = {name: str(folder / name) for name in (
        "results.csv", "timings.csv", "diagnostics.csv", "claims.csv", "table_main.csv",
        "ablation_channel_error_summary.csv", "ablation_direct_weights.csv",
        "ablation_direct_weights_summary.csv", CHANNELS, HISTOGRAMS, SUITE,
    )}  # fmt: skip
    tables.main(["--results", at["results.csv"], "--published", str(PUBLISHED),
                 "--out", str(folder / "table_main")])  # fmt: skip
    claims.main(["--results", at["results.csv"], "--out", str(folder / "claims")])
    with tempfile.TemporaryDirectory() as scratch:
        epochs = Path(scratch) / "epochs.csv"
        try:
            epochs.write_bytes(gzip.decompress((folder / EPOCHS).read_bytes()))
        except (OSError, EOFError) as error:
            raise InputError(f"{folder / EPOCHS} cannot be read ({error})") from error
        plots.main(["--results", at["results.csv"], "--epochs", str(epochs),
                    "--histograms", at[HISTOGRAMS], "--channel-error", at[CHANNELS],
                    "--direct-weights", at["ablation_direct_weights.csv"],
                    "--out", str(out / "plots")])  # fmt: skip
    [suite] = set(tables.read_results(at["results.csv"])["suite"])
    report.main(["--suite", suite, "--results", at["results.csv"], "--timings", at["timings.csv"],
                 "--tables", at["table_main.csv"], "--claims", at["claims.csv"],
                 "--diagnostics", at["diagnostics.csv"],
                 "--channel-summary", at["ablation_channel_error_summary.csv"],
                 "--direct-summary", at["ablation_direct_weights_summary.csv"],
                 "--plots", str(out / "plots"), "--config", at[SUITE],
                 "--out", str(out / "index.html")])  # fmt: skip


def _read_records(path: Path) -> list[dict]:
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record["role"], record["config"]["run_id"], record["final"]["status"]
    except FileNotFoundError:
        raise InputError(f"{path} is missing: `write` makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of runs ({error})") from error
    return records


def _check_results(folder: Path, records: list[dict]) -> None:
    """results.csv holds what the records say, run by run."""
    wanted = {
        r["config"]["run_id"]: (
            r["final"]["status"], str(r["config"]["seed"]),
            collect.as_text("top1", r["final"]["top1"]), r["final"]["hardware"],
        )
        for r in records
    }  # fmt: skip
    check_table(folder / "results.csv", collect.RESULT_COLUMNS)
    found = {
        row["run_id"]: tuple(row[name] for name in ("status", "seed", "top1", "hardware"))
        for row in collect.read_rows(folder / "results.csv")
    }
    for run_id in sorted(wanted.keys() | found.keys()):
        if wanted.get(run_id) != found.get(run_id):
            raise InputError(
                f"{folder}: run {run_id} is {found.get(run_id)} in results.csv and "
                f"{wanted.get(run_id)} in {RUNS}"
            )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write", help="gather the finished runs of a suite")
    write.add_argument("--suite", required=True)
    write.add_argument("--datasets", default="", help="only these, separated by commas")
    write.add_argument("--compile", default="", help="not the suite's own setting")
    write.add_argument("--runs", type=Path, default=Path("results/runs"))
    write.add_argument("--out", type=Path, help="results/reference/<suite> by default")
    make = commands.add_parser("tables", help="tables, plots and report of what is committed")
    make.add_argument("folders", type=Path, nargs="*", help="all of results/reference by default")
    make.add_argument("--out", type=Path, default=REPORTS, help="plots and report, by folder name")
    args = parser.parse_args(argv)
    if args.command == "write":
        plan = suite_plan(args.suite, args.datasets, args.compile)
        done = {r["run_id"]: r["role"] for r in plan.runs if is_done(r, args.runs)}
        if not done:
            raise InputError(f"{args.runs} holds no finished run of suite {args.suite!r}")
        out = args.out or REFERENCE / args.suite.replace("_", "-")
        suite = load_suite(args.suite, args.compile)
        write_reference(args.suite, suite.config, done, args.runs, out, suite.has_variants)
        say(f"{len(done)} of {len(plan.runs)} runs of suite {args.suite} are in {out}")
        args.folders, args.out = [out], REPORTS
    for folder in args.folders or sorted(path for path in REFERENCE.glob("*") if path.is_dir()):
        make_tables(folder, args.out / folder.name)
        drawn = args.out / folder.name
        say(f"{folder}: tables" + (f"; {drawn}: plots and report" if drawn.exists() else ""))


if __name__ == "__main__":
    run_cli(main)
