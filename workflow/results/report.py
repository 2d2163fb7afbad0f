"""The HTML report of a results folder: one file that opens from disk and fetches nothing.

usage: python -m workflow.results.report FOLDER --out FILE.html [--plots FOLDER/plots]

It shows what the tables say; which method leads is decided in compare.py alone.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import jinja2
import yaml
from markupsafe import Markup

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.comparisons import load_comparisons
from workflow.results import claims
from workflow.results.columns import read_table
from workflow.results.labels import (
    arch_name,
    dataset_name,
    is_paper_suite,
    method_color,
    method_label,
    method_order,
)
from workflow.results.main_table import TEMPLATES, blocks
from workflow.results.plot_style import GRID, INK, MUTED, si
from workflow.results.plots import PLOTS, network_name
from workflow.results.record import Record

TABLES = ("results", "timings", "diagnostics", "table_main", "claims",
          "ablation_channel_error_summary", "ablation_direct_weights_summary")  # fmt: skip
THEME = {INK: "currentColor", "#000000": "currentColor", MUTED: "var(--muted)",
         GRID: "var(--rule)", "#ffffff": "var(--surface)"}  # fmt: skip
"""Colours of the plots that follow the theme of the page, so that they show on a dark page too."""

# -- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A table cell, the value that it is sorted by, and a small second line."""

    text: str
    value: float | None = None
    kind: str = ""
    below: str = ""


@dataclass(frozen=True)
class Table:
    """A table as the template draws it. A cell is text or a Number; the first one names the row."""

    caption: str
    columns: list[str]
    rows: list[list[str | Number]]


Columns = dict[str, tuple[str, str | Callable[[dict], str]]]
"""Heading -> the column of a row, and how it is shown: a format, or a function of the row."""


def cell(row: dict, column: str, shown: str | Callable[[dict], str]) -> str | Number:
    value = row[column]
    if value is None:
        return Number("–")
    if callable(shown):
        text = shown(row)
    else:
        text = value if isinstance(value, str) else format(value, shown).replace("-", "−")
    return text if isinstance(value, str) else Number(text, value)


def make_table(
    caption: str, first: str, name: Callable[[dict], str], columns: Columns, rows: Iterable[dict]
) -> Table:
    """`first` is the heading above the rows' names."""
    cells = [[name(row), *(cell(row, *shown) for shown in columns.values())] for row in rows]
    return Table(caption, [first, *columns], cells)


def summarize(rows: list[dict], key: Callable, statistic: Callable) -> list[dict]:
    """One row for each key, in its order: the statistic of the known numbers, and `runs`."""
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=key):
        groups.setdefault(key(row), []).append(row)
    summary = []
    for group in groups.values():
        known = {name: [r[name] for r in group if r[name] is not None] for name in group[0]}
        numbers = {name: statistic(v) for name, v in known.items() if v and type(v[0]) is float}
        summary.append({**group[0], **numbers, "runs": len(group)})
    return summary


# -- words -----------------------------------------------------------------------------------


def accuracy(row: dict) -> str:
    """`87.19 ± 0.18`, without ± where there is one seed."""
    std = row["top1_std"]
    return f"{row['top1_mean']:.2f}" + ("" if std is None else f"\u00a0±\u00a0{std:.2f}")


def swatch(method: str) -> Markup:
    """A dot in the method's colour, and its label."""
    color = method_color(method)
    dot = '<span class="dot" style="--c: {}" aria-hidden="true"></span>{}'
    return Markup(dot).format(THEME.get(color, color), method_label(method))


def chip(row: dict) -> Markup:
    """The verdict of a row of claims.csv."""
    return Markup('<span class="chip {0}">{0}</span>').format(row["verdict"])


def link(row: dict, text: str) -> Markup:
    """A published value, linked to its source."""
    title, source = row["published_note"] or "", row["published_source"]
    return Markup('<a href="{}" title="{}">{}</a>').format(source, title, text)


def setting_order(row: dict) -> tuple:
    order = method_order(row["method"])
    return row["dataset"], row["arch"], row["w_bits"], row["a_bits"], order


def setting_name(row: dict) -> str:
    return f"{network_name(row)}, {bits_label(row['w_bits'], row['a_bits'])}"


def setting_method(row: dict, column: str = "method") -> str:
    return f"{setting_name(row)} · {method_label(row[column])}"


def joined(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# -- headline and main table -----------------------------------------------------------------


def tiles(results: list[dict], table: list[dict], timings: list[dict]) -> list[tuple[str, str]]:
    """(value, label) of the figures below the title."""
    failed = sum(row["status"] == "diverged" for row in results)
    found = [(str(len(results)), f"runs, {failed or 'none'} of them diverged")]
    full_precision = [row for row in table if row["method"] == "fp" and row["n"]]
    if full_precision:
        best = max(full_precision, key=lambda row: row["top1_mean"])
        found.append((f"{best['top1_mean']:.2f} %", f"best full precision: {network_name(best)}"))
    seeds = sorted({int(row["n"] + row["diverged"]) for row in table} - {0})
    fewer = f", {seeds[0]} at the least" if len(seeds) > 1 else ""
    found.append((str(seeds[-1]), f"seed{'s' * (seeds[-1] > 1)} a method{fewer}"))
    found.append((duration(sum(row["seconds"] for row in timings)), "of training in all"))
    return found


def highest_means(table: list[dict]) -> dict[str, list[tuple[str, list[dict]]]]:
    """{bits: (network, its two rows with the highest means)}, for the cards of the headline."""
    found: dict[str, list[tuple[str, list[dict]]]] = {}
    for block in blocks(table):
        for column, bits in enumerate(block["bits"]):
            rows = [cells[column] for _, cells in block["methods"]]
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
        text = Markup("{} {}").format(text, link(row, f"[{row['published_top1']:g}]"))
    below = [
        f"{delta:+.2f}".replace("-", "−") if delta is not None and row["method"] != "fp" else "",
        f"n = {done}" if done not in (0, seeds) else "",
        f"{failed:g} diverged" if done and failed else "",
    ]
    kind = "best" if row["best"] else "failed" if failed and not done else ""
    return Number(text, row["top1_mean"], kind, " ".join(filter(None, below)))


def main_tables(table: list[dict]) -> list[Table]:
    """One table for each data set and network."""
    found = []
    for block in blocks(table):
        fp = [("fp", [block["full_precision"]] * len(block["bits"]))]
        lines = [*(fp if block["full_precision"] else []), *block["methods"]]
        seeds = max((row["n"] for _, rows in lines for row in rows if row), default=0)
        caption = f"{block['title']} · {seeds} seed{'s' * (seeds != 1)}"
        rows = [[swatch(name), *(main_cell(row, seeds) for row in line)] for name, line in lines]
        found.append(Table(caption, ["Method", *block["bits"]], rows))
    return found


# -- the columns of the other tables ---------------------------------------------------------

PUBLISHED: Columns = {
    "Ours": ("top1_mean", accuracy),
    "Published": ("published_top1", lambda row: link(row, f"{row['published_top1']:g}")),
    "Difference": ("published_difference", "+.2f"),
    "Made otherwise": ("published_policy", ""),
    "Note": ("published_note", ""),
}
CLAIMS: Columns = {
    "Setting": ("arch", claims.place_text),
    "n": ("n", "d"),
    "Top-1": ("top1_mean", ".2f"),
    "Other": ("other_top1_mean", ".2f"),
    "Difference [95 %]": ("top1_difference_mean", claims.difference_text),
    "p": ("p", ".3f"),
    "Adjusted p": ("p_adjusted", ".3f"),
    "Diverged": ("diverged", claims.diverged_text),
    "Verdict": ("verdict", lambda row: Markup("{} {}").format(chip(row), row["note"] or "")),
}
CHANNEL_ERROR: Columns = {
    "Weighting": ("variant", lambda row: row["variant"].replace("_", " ")),
    "Channels improved (%)": ("share_of_channels_improved", ".1f"),
    "Median error": ("median_error_variant", ".4f"),
    "Trained with it": ("trained_with", lambda row: method_label(row["trained_with"])),
    "Top-1": ("top1_mean", accuracy),
}
DIRECT_WEIGHTS: Columns = {
    "Seeds": ("n", "d"),
    "Mismatch direct": ("mismatch_end", ".3f"),
    "Mismatch other": ("other_mismatch_end", ".3f"),
    "Flips direct": ("flip_rate_end", ".2%"),
    "Flips other": ("other_flip_rate_end", ".2%"),
    "Top-1 direct": ("top1_mean", ".2f"),
    "Top-1 other": ("other_top1_mean", ".2f"),
}
DIAGNOSTICS: Columns = {
    "Runs": ("runs", "d"),
    "Flips, first epoch": ("flip_rate_first", ".1%"),
    "Flips, last epoch": ("flip_rate_end", ".2%"),
    "Levels in use": ("used_level_share", ".1%"),
    "In the worst layer": ("used_level_share_lowest", ".1%"),
    "Span of levels, start = 1": ("level_span", ".3f"),
    "Mismatch": ("mismatch_end", ".3f"),
    "Dead channels": ("dead_channel_share", ".1%"),
}
RUNS: Columns = {
    "Data": ("dataset", lambda row: dataset_name(row["dataset"])),
    "Network": ("arch", lambda row: arch_name(row["arch"])),
    "Bits": ("w_bits", lambda row: bits_label(row["w_bits"], row["a_bits"])),
    "Seed": ("seed", "d"),
    "Role": ("role", ""),
    "Status": ("status", ""),
    "Top-1": ("top1", ".2f"),
    "Δ FP": ("delta", "+.2f"),
    "Top-5": ("top5", ".2f"),
    "Epochs": ("epochs", "g"),
    "Size": ("size_bytes", lambda row: si(row["size_bytes"], "B")),
    "BitOps": ("bitops", lambda row: si(row["bitops"])),
    "Run": ("run_id", lambda row: Markup("<code>{}</code>").format(row["run_id"])),
}
TIMINGS: Columns = {
    "Runs": ("runs", "d"),
    "Seconds a run": ("seconds", ".1f"),
    "Images/s": ("images_per_s", ".0f"),
    "Data wait": ("data_wait_share", ".1%"),
    "Peak MB": ("peak_memory_mb", ".0f"),
}


def claim_table(rows: list[dict]) -> Table:
    """The rows of claims.csv that answer one question; the primary ones are in bold."""

    def name(row: dict) -> Markup:
        pair = f"{method_label(row['method'])} against {method_label(row['other'])}"
        return Markup("<b>{}</b>" if row["primary"] else "{}").format(pair)

    return make_table("Top-1 of two methods, paired", "Methods", name, CLAIMS, rows)


# -- the page --------------------------------------------------------------------------------


def distinct(rows: list[dict], column: str) -> str:
    """Every value that occurs in a column; `none` for an empty cell."""
    found = {"none" if row[column] is None else row[column] for row in rows}
    return " · ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v) for v in found))


def config_sections(config: dict) -> list[tuple[str, str]]:
    """The resolved configuration as YAML: one section per nested entry, the rest together."""
    nested = {key: value for key, value in config.items() if isinstance(value, dict)}
    flat = {key: value for key, value in config.items() if key not in nested}
    return [
        (name, yaml.safe_dump(value, sort_keys=True, allow_unicode=True, width=96).rstrip())
        for name, value in ({"suite": flat} | nested).items()
        if value
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
    tables = {name: read_table(folder / f"{name}.csv") for name in TABLES}
    results, table, timings = (tables[name] for name in ("results", "table_main", "timings"))
    record, methods = Record(folder / "record"), {row["run_id"]: row["method"] for row in results}
    timed = [{**row, "method": methods[row["run_id"]]} for row in timings]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {
        "accuracy": accuracy, "chip": chip, "claim_table": claim_table, "distinct": distinct,
        "difference_text": claims.difference_text, "method_label": method_label,
        "place_text": claims.place_text, "swatch": swatch,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(
        suite=record.suite,
        paper=is_paper_suite(record.suite),
        main=[row for row in results if row["role"] == "run"],
        results=results,
        table=table,
        joined=joined,
        tiles=tiles(results, table, timings),
        claims=[
            (claim.name, claim.question, [r for r in tables["claims"] if r["claim"] == claim.name])
            for claim in load_comparisons().claims
        ],
        claims_caption=claims.caption(record.suite),
        highest=highest_means(table),
        main_tables=main_tables(table),
        published=make_table(
            "Ours, the published value and the difference in points", "Setting · method",
            setting_method, PUBLISHED, (r for r in table if r["published_top1"] is not None),
        ),
        plots=[(name, inline_svg(plots / f"{name}.svg", plot[0])) for name, plot in PLOTS.items()],
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", required=True, type=Path, help="HTML file to write")
    parser.add_argument("--plots", type=Path, help="folder of the plots (FOLDER/plots)")
    args = parser.parse_args(argv)
    write_text(args.out, render(args.folder, args.plots or args.folder / "plots"))


if __name__ == "__main__":
    run_cli(main)
