"""The HTML report of a results folder: one file that opens from disk and fetches nothing.

usage: python -m workflow.results.report FOLDER --out FILE.html [--plots FOLDER/plots]

It shows what the tables say; which method leads is decided in compare.py alone.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import jinja2
import yaml
from markupsafe import Markup

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.comparisons import load_comparisons
from workflow.results import claims, labels
from workflow.results.analysis import SETTING
from workflow.results.columns import grouped, read_table
from workflow.results.deployed import plots as deploy_plots
from workflow.results.deployed import table as deploy_table
from workflow.results.main_table import TEMPLATES, blocks, mean_text
from workflow.results.plots import PLOTS
from workflow.results.plots.style import GRID, INK, MUTED, si
from workflow.results.record import Record

THEME = {INK: "currentColor", "#000000": "currentColor", MUTED: "var(--muted)",
         GRID: "var(--rule)", "#ffffff": "var(--surface)"}  # fmt: skip
"""Colours of the plots that follow the theme of the page, so that they show on a dark page too."""


class Number(NamedTuple):
    """A table cell, the value that it is sorted by, and a small second line."""

    text: str
    value: float | None = None
    kind: str = ""
    below: str = ""


Shown = str | Callable[[dict], str]
"""How a value is shown: a format, or a function of its row."""
Columns = dict[str, tuple[str, Shown]]
"""Heading -> the column that is shown below it, and how."""


class Table(NamedTuple):
    """Headings, and rows whose first cell is their name and always text.

    families: the family of each row's method, by which the page filters the rows.
    """

    columns: list[str]
    rows: list[list[str | Number]]
    families: list[str]


def make_table(columns: Columns, rows: Iterable[dict]) -> Table:
    rows = list(rows)
    cells = [[cell(row, *shown) for shown in columns.values()] for row in rows]
    return Table(list(columns), cells, list(map(family_of, rows)))


def family_of(row: dict) -> str:
    """The family of a row's method; of a comparison, that of the other method."""
    return labels.method_family(row.get("other") or row["method"])


def cell(row: dict, column: str, shown: Shown) -> str | Number:
    value = row[column]
    if value is None:
        return Number("–")
    text = shown(row) if callable(shown) else f"{value:{shown}}"
    if isinstance(value, str):
        return text
    return Number(text if callable(shown) else text.replace("-", "−"), value)


def summarize(rows: list[dict], statistic: Callable, *names: str) -> list[dict]:
    """One row for each group: the statistic of the numbers that are known, and `runs`."""
    summary = []
    for group in grouped(rows, *names).values():
        known = {name: [r[name] for r in group if r[name] is not None] for name in group[0]}
        numbers = {name: statistic(v) for name, v in known.items() if v and type(v[0]) is float}
        summary.append({**group[0], **numbers, "runs": len(group)})
    return sorted(summary, key=setting_order)


def accuracy(row: dict) -> str:
    """`87.19 ± 0.18`, without ± where there is one seed."""
    return mean_text(row["top1_mean"], row["top1_std"], "\u00a0±\u00a0")


def swatch(row: dict) -> Markup:
    """A dot in the method's colour, and its label."""
    color = labels.method_color(row["method"])
    dot = '<span class="dot" style="--c: {}" aria-hidden="true"></span>{}'
    return Markup(dot).format(THEME.get(color, color), labels.method_label(row["method"]))


def chip(row: dict) -> Markup:
    """The verdict of a row of claims.csv."""
    return Markup('<span class="chip {0}">{0}</span>').format(row["verdict"])


def pair(row: dict) -> Markup:
    """The two methods of a row of claims.csv, in bold if the row answers the claim."""
    text = f"{labels.method_label(row['method'])} against {labels.method_label(row['other'])}"
    return Markup("<b>{}</b>" if row["primary"] else "{}").format(text)


def published(row: dict) -> Markup:
    """The published value of a row of the main table, linked to its source."""
    return Markup('<a href="{}">{:g}</a>').format(row["published_source"], row["published_top1"])


def setting(row: dict, column: str = "method") -> str:
    """`CIFAR-100, ResNet-20, W2A2 · PACT`."""
    return f"{labels.setting_name(row)} · {labels.method_label(row[column])}"


def setting_order(row: dict) -> tuple:
    return *(row.get(name) for name in SETTING), labels.method_order(row["method"])


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def distinct(rows: list[dict], column: str) -> str:
    """Every value that occurs in a column; `none` for an empty cell."""
    found = {"none" if row[column] is None else row[column] for row in rows}
    return " · ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v) for v in found))


# The columns of the tables.

PUBLISHED: Columns = {
    "Setting · method": ("method", setting), "Ours": ("top1_mean", accuracy),
    "Published": ("published_top1", published), "Difference": ("published_difference", "+.2f"),
    "Made otherwise": ("published_policy", ""), "Note": ("published_note", ""),
}  # fmt: skip
CLAIMS: Columns = {
    "Methods": ("method", pair), "Setting": ("arch", claims.place_text),
    "Verdict": ("verdict", lambda row: Markup("{} {}").format(chip(row), row["note"] or "")),
    "n": ("n", "d"), "Difference [95 %]": ("top1_difference_mean", claims.difference_text),
    "p": ("p", ".2g"), "Adjusted p": ("p_adjusted", ".2g"), "Top-1": ("top1_mean", ".2f"),
    "Other": ("other_top1_mean", ".2f"), "Diverged": ("diverged", claims.diverged_text),
}  # fmt: skip
CHANNEL_ERROR: Columns = {
    "Setting · measured network": ("method", setting),
    "Weighting": ("variant", lambda row: row["variant"].replace("_", " ")),
    "Channels improved (%)": ("share_of_channels_improved", ".1f"),
    "Median error": ("median_error_variant", ".3g"),
    "Trained with it": ("trained_with", lambda row: labels.method_label(row["trained_with"])),
    "Top-1": ("top1_mean", accuracy),
}
DIRECT_WEIGHTS: Columns = {
    "Setting · direct against": ("other", lambda row: setting(row, "other")), "n": ("n", "d"),
    "Mismatch direct": ("mismatch_end", ".3f"), "Mismatch other": ("other_mismatch_end", ".3f"),
    "Flips direct": ("flip_rate_end", ".2%"), "Flips other": ("other_flip_rate_end", ".2%"),
    "Top-1 direct": ("top1_mean", ".2f"), "Top-1 other": ("other_top1_mean", ".2f"),
    "Difference": ("top1_difference_mean", "+.2f"), "Std": ("top1_difference_std", ".2f"),
}  # fmt: skip
DIAGNOSTICS: Columns = {
    "Setting · method": ("method", setting), "Runs": ("runs", "d"),
    "Flips, first epoch": ("flip_rate_first", ".1%"), "Last epoch": ("flip_rate_end", ".2%"),
    "Levels in use": ("used_level_share", ".1%"),
    "In the worst layer": ("used_level_share_lowest", ".1%"),
    "Span of levels, start = 1": ("level_span", ".3f"), "Mismatch": ("mismatch_end", ".3f"),
    "Dead channels": ("dead_channel_share", ".1%"),
}  # fmt: skip
OPTIONS: Columns = {
    "Setting · method": ("method", setting), "Option": ("value", ""), "Both have": ("base", ""),
    "n": ("n", "d"), "Off": ("top1_off_mean", ".2f"), "On": ("top1_on_mean", ".2f"),
    "Difference [95 %]": ("top1_difference_mean", claims.difference_text),
    "Adjusted p": ("p_adjusted", ".2g"), "Verdict": ("verdict", chip),
}  # fmt: skip
RUNS: Columns = {
    "Method": ("method", swatch),
    "Data": ("dataset", lambda row: labels.dataset_name(row["dataset"])),
    "Network": ("arch", lambda row: labels.arch_name(row["arch"])),
    "Bits": ("run_id", lambda row: bits_label(row["w_bits"], row["a_bits"])),
    "Seed": ("seed", "d"), "Role": ("role", ""), "Status": ("status", ""),
    "Options": ("options", ""),
    "Top-1": ("top1", ".2f"), "Δ FP": ("delta", "+.2f"), "Top-5": ("top5", ".2f"),
    "Epochs": ("epochs", "g"), "Size": ("size_bytes", lambda row: si(row["size_bytes"], "B")),
    "BitOps": ("bitops", lambda row: si(row["bitops"])), "Zero level": ("zero_level", ""),
    "Run": ("run_id", lambda row: Markup("<code>{}</code>").format(row["run_id"])),
}  # fmt: skip
TIMINGS: Columns = {
    "Method": ("method", swatch), "Runs": ("runs", "d"), "Seconds a run": ("seconds", ".1f"),
    "Images/s": ("images_per_s", ".0f"), "Data wait": ("data_wait_share", ".1%"),
    "Peak MB": ("peak_memory_mb", ".0f"),
}  # fmt: skip

DEPLOY: Columns = {
    "Setting · method": ("method", setting), "Runs": ("runs", "d"),
    "Top-1 of the file": ("top1", ".2f"), "After training": ("top1_training", ".2f"),
    "As torch (%)": ("agreement", ".2f"),
    "File": ("file_bytes", lambda row: si(row["file_bytes"], "B")),
    "Entropy coded": ("entropy_bytes", lambda row: si(row["entropy_bytes"], "B")),
    "Times smaller": ("compression", ".1f"), "ms an image": ("ms", ".3f"),
    "Torch in float32, times as long": ("x_torch", ".2f"),
}  # fmt: skip


def tiles(results: list[dict], table: list[dict], timings: list[dict]) -> list[tuple[str, str]]:
    """(value, label) of the figures below the title."""
    failed = sum(row["status"] == "diverged" for row in results)
    found = [(str(len(results)), f"runs, {failed or 'none'} of them diverged")]
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


def render(folder: Path, plots: Path) -> str:
    """The page as text; InputError names a table or plot that is missing or damaged."""

    def read(name: str) -> list[dict]:
        return read_table(folder / f"{name}.csv")

    results, table, timings, claim_rows = map(read, ("results", "table_main", "timings", "claims"))
    channels = read("ablation_channel_error_summary")
    direct = read("ablation_direct_weights_summary")
    record = Record(folder / "record")
    options = read("ablation_options") if record.settings.get("options") else []
    diagnostics = [row for row in read("diagnostics") if row["role"] != "option"]
    method_of = {row["run_id"]: row["method"] for row in results}
    timed = [row | {"method": method_of[row["run_id"]]} for row in timings]
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
        timings=make_table(TIMINGS, summarize(timed, median, "method")),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    parser.add_argument("--plots", type=Path, help="folder of the plots (FOLDER/plots)")
    args = parser.parse_args(argv)
    write_text(args.out, render(args.folder, args.plots or args.folder / "plots"))


if __name__ == "__main__":
    run_cli(main)
