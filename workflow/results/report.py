"""The HTML report of a results folder: one file that opens from disk and fetches nothing.

usage: python -m workflow.results.report FOLDER --out FILE.html

It shows what the tables say; which method leads is decided in compare.py alone.
"""

import argparse
import re
from functools import partial
from pathlib import Path
from statistics import mean, median

import jinja2
import yaml
from markupsafe import Markup

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.comparisons import load_comparisons
from workflow.results import claims, labels
from workflow.results.analysis import SETTING
from workflow.results.columns import read_table
from workflow.results.deployed import plots as deploy_plots
from workflow.results.deployed import table as deploy_table
from workflow.results.main_table import TEMPLATES, blocks
from workflow.results.plots import PLOTS
from workflow.results.record import Record
from workflow.results.report_columns import (
    CHANNEL_ERROR,
    CLAIMS,
    DEPLOY,
    DIAGNOSTICS,
    DIRECT_WEIGHTS,
    OPTIONS,
    PUBLISHED,
    RUNS,
    THEME,
    TIMINGS,
    Number,
    Table,
    accuracy,
    chip,
    distinct,
    duration,
    family_of,
    make_table,
    pair,
    published,
    setting_order,
    summarize,
    swatch,
)


def tiles(results: list[dict], table: list[dict], timings: list[dict]) -> list[tuple[str, str]]:
    """(value, label) of the figures below the title. Only a run that was trained has timings."""
    trained = {row["run_id"] for row in timings}
    failed = sum(row["status"] == "diverged" and row["run_id"] in trained for row in results)
    found = [(str(len(trained)), f"runs, {failed or 'none'} of them diverged")]
    done = [row for row in table if row["n"]]
    full_precision = [row for row in done if row["method"] == "fp"]
    if full_precision:
        best = max(full_precision, key=lambda row: row["top1_mean"])
        where = f"best full precision: {labels.network_name(best)}"
        found.append((f"{best['top1_mean']:.2f} %", where))
    counts = sorted({row["n"] for row in done}) or [0]
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    found.append((seeds, "finished seeds for each method and setting"))
    return [*found, (duration(sum(row["seconds"] for row in timings)), "of training in all")]


def highest_means(table: list[dict]) -> dict[str, list[tuple[str, list[dict]]]]:
    """{bits: (network, its two rows with the highest means)}, for the cards of the headline."""
    found: dict[str, list[tuple[str, list[dict]]]] = {}
    for block in blocks(table):
        for column, bits in enumerate(block["bits"]):
            rows = [cells[column] for name, cells in block["methods"] if name != "fp"]
            done = [row for row in rows if row and row["n"]]
            ranked = sorted(done, key=lambda row: row["top1_mean"], reverse=True)
            found.setdefault(bits, []).append((block["title"], ranked[:2]))
    return found


def main_cell(row: dict | None, seeds: int) -> Number:
    """A cell of the main table; its small line holds what differs from an ordinary cell."""
    if row is None:
        return Number("–")
    done, failed, delta = row["n"], row["diverged"], row["delta_mean"]
    text = accuracy(row) if done else "diverged" if failed else "–"
    if row["published_top1"] is not None:
        text = Markup("{} [{}]").format(text, published(row))
    below = [
        f"{delta:+.2f}".replace("-", "−") if delta is not None and row["method"] != "fp" else "",
        f"n = {done}" if done not in (0, seeds) else "",
        f"{failed:g} diverged" if done and failed else "",
    ]
    kind = "best" if row["best"] else "failed" if failed and not done else ""
    return Number(text, row["top1_mean"], kind, " ".join(filter(None, below)))


def main_tables(table: list[dict]) -> dict[str, Table]:
    """A table for each data set and network, by its caption."""
    found = {}
    for block in blocks(table):
        seeds = max((r["n"] for _, cells in block["methods"] for r in cells if r), default=0)
        rows = [
            [swatch({"method": name}), *(main_cell(row, seeds) for row in cells)]
            for name, cells in block["methods"]
        ]
        families = [labels.method_family(name) for name, _ in block["methods"]]
        caption = f"{block['title']} · n = {seeds}"
        found[caption] = Table(["Method", *block["bits"]], rows, families)
    return found


def deployment(folder: Path, plots: Path, record: Record) -> dict | None:
    """What the page shows of exported networks; None for a record that has none."""
    if not record.deployed:
        return None
    rows = read_table(folder / "table_deploy.csv")
    sizes = ("file_bytes", "entropy_bytes", "compression")
    done = [
        row | {key: float(row[key]) for key in sizes} for row in rows if row["export"] == "exported"
    ]
    means = summarize([row for row in done if row["role"] == "run"], mean, *SETTING, "method")
    return {
        "caption": deploy_table.caption(rows, record.suite),
        "table": make_table(DEPLOY, means),
        "failures": deploy_table.failures(rows),
        "count": len(done),
        "plots": figures(deploy_plots.PLOTS, plots),
        "networks": record.gallery["networks"],
    }


def figures(titles: dict[str, tuple], plots: Path) -> list[tuple]:
    """(Name, title, SVG) of plots {name: (title, how it is drawn)}."""
    return [
        (name, title, inline_svg(plots / f"{name}.svg", title))
        for name, (title, _) in titles.items()
    ]


def inline_svg(path: Path, title: str) -> Markup:
    """A Matplotlib SVG as a part of the page: ids of its own, theme colours, no fixed size."""
    text = path.read_text() if path.exists() else ""
    if "<svg" not in text:
        raise InputError(f"{path} is missing or not an SVG file: make the plots again")
    head, body = text[text.index("<svg") :].split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg role="img" aria-label="{title}"')
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    for mark in (' id="', "url(#", 'href="#'):
        body = body.replace(mark, f"{mark}{path.stem}-")
    for color, theme in THEME.items():
        body = body.replace(color, theme)
    return Markup(f"{head}>" + re.sub(r"\n\s*", "\n", body))


def _timed(folder: Path, results: list[dict], timings: list[dict]) -> list[dict]:
    """The rows of timings.csv with the method of each run."""
    method_of = {row["run_id"]: row["method"] for row in results}
    if unknown := {row["run_id"] for row in timings} - method_of.keys():
        raise InputError(
            f"{folder / 'timings.csv'} has run {min(unknown)}, which results.csv lacks: make both "
            "tables again"
        )
    return [row | {"method": method_of[row["run_id"]]} for row in timings]


def render(folder: Path) -> str:
    """The page as text; InputError names a table or plot that is missing or damaged."""

    def read(name: str) -> list[dict]:
        return read_table(folder / f"{name}.csv")

    plots = folder / "plots"
    results, table, timings, claim_rows = map(read, ("results", "table_main", "timings", "claims"))
    channels = read("ablation_channel_error_summary")
    direct = read("ablation_direct_weights_summary")
    record = Record(folder / "record")
    options = read("ablation_options") if record.settings.get("options") else []
    diagnostics = [row for row in read("diagnostics") if row["role"] != "option"]
    known = [row for row in table if row["published_top1"] is not None]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {
        f.__name__: f for f in (accuracy, bits_label, chip, distinct, pair, swatch)
    }
    environment.globals |= {
        "method_label": labels.method_label,
        "setting_name": labels.setting_name,
    }
    environment.filters |= {"arch_name": labels.arch_name, "dataset_name": labels.dataset_name}
    return environment.get_template("report.html.j2").render(
        suite=record.suite,
        paper=labels.is_paper_suite(record.suite),
        config=yaml.safe_dump(record.settings["suite"], allow_unicode=True, width=96),
        results=results,
        main=[row for row in results if row["role"] == "run"],
        tiles=tiles(results, table, timings),
        highest=highest_means(table),
        main_tables=main_tables(table),
        families=sorted(set(map(family_of, [*table, *results])), key=labels.family_order),
        published=make_table(PUBLISHED, known),
        plots=figures(PLOTS, plots),
        deployment=deployment(folder, plots, record),
        channel_rows=channels,
        channels=make_table(CHANNEL_ERROR, channels),
        direct_rows=direct,
        direct=make_table(DIRECT_WEIGHTS, direct),
        claims={
            claim.question: [row for row in claim_rows if row["claim"] == claim.name]
            for claim in load_comparisons().claims
        },
        claim_table=partial(make_table, CLAIMS),
        claims_caption=claims.caption(record.suite),
        difference=claims.difference_text,
        margin=claims.MARGIN,
        place=claims.place_text,
        option_rows=options,
        options=make_table(OPTIONS, options),
        diagnostics=make_table(DIAGNOSTICS, summarize(diagnostics, mean, *SETTING, "method")),
        runs=make_table(RUNS, sorted(results, key=lambda r: (*setting_order(r), r["seed"]))),
        timings=make_table(TIMINGS, summarize(_timed(folder, results, timings), median, "method")),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    args = parser.parse_args(argv)
    write_text(args.out, render(args.folder))


if __name__ == "__main__":
    run_cli(main)
