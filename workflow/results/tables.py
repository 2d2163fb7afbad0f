"""Make the tables of a results folder from its record.

usage: python -m workflow.results.tables results/smoke
   or: python -m workflow.results.tables results/smoke --ablations [--record FOLDER]
   or: python -m workflow.results.tables results/smoke --options

The first form makes the main tables, of a suite that compares variants its one table. The second
makes the two ablation tables, which need the runs of a few methods only; the third that of options,
of a suite that trains runs without and with an option of their recipe.
"""

import argparse
from pathlib import Path

from lowbit_core.runtime.errors import run_cli
from lowbit_core.runtime.files import write_text
from workflow.results import analysis, claims, main_table, variants
from workflow.results.columns import read_table, write_table
from workflow.results.record import Record


def write_tables(folder: Path, record: Record) -> None:
    """results.csv and its kin, the main table and the claims; or the table of variants."""
    if record.settings["variants"]:
        rows = variants.variant_rows(record.settings["suite"], record.runs)
        write_table(folder / "variants.csv", rows)
        write_text(folder / "variants.md", variants.markdown(rows, record.settings["suite"]))
        return
    results = analysis.results(record)
    write_table(folder / "results.csv", results)
    write_table(folder / "timings.csv", analysis.timings(record))
    epochs = [row for _, rows in sorted(record.epochs.items()) for row in rows]
    write_table(folder / "epochs.csv", epochs)
    write_table(folder / "diagnostics.csv", analysis.diagnostics(record, results))
    results = read_table(folder / "results.csv")  # so that every table shows the same digits
    rows = main_table.main_table(results, main_table.read_published(record.suite))
    write_table(folder / "table_main.csv", rows)
    rows = read_table(folder / "table_main.csv")
    write_text(folder / "table_main.md", main_table.markdown(rows, record.suite))
    write_text(folder / "table_main.tex", main_table.latex(rows, record.suite))
    write_table(folder / "claims.csv", claims.claim_rows(results))
    rows = read_table(folder / "claims.csv")
    write_text(folder / "claims.md", claims.markdown(rows, record.suite))


def write_ablations(folder: Path, record: Record) -> None:
    """The tables of the two ablations with their summaries."""
    results = analysis.results(record)
    channels = analysis.channel_errors(record, results)
    direct = analysis.direct_weights(record, results)
    for name, rows in {
        "channel_error": channels,
        "channel_error_summary": analysis.summarize_channel_errors(channels, results),
        "direct_weights": direct,
        "direct_weights_summary": analysis.summarize_direct_weights(direct),
    }.items():
        write_table(folder / f"ablation_{name}.csv", rows)


def write_options(folder: Path, record: Record) -> None:
    """The table of options, off against on."""
    rows = analysis.option_rows(record, analysis.results(record))
    write_table(folder / "ablation_options.csv", rows)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the results folder")
    parser.add_argument("--record", type=Path, help="its record folder by default")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ablations", action="store_true", help="only the ablation tables")
    form.add_argument("--options", action="store_true", help="only the table of options")
    args = parser.parse_args(argv)
    record = Record(args.record or args.folder / "record")
    write = write_ablations if args.ablations else write_options if args.options else write_tables
    write(args.folder, record)


if __name__ == "__main__":
    run_cli(main)
