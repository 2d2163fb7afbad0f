"""The main table: architecture x bits x method, as rows, Markdown and LaTeX."""

import csv
from collections.abc import Iterable
from pathlib import Path
from statistics import mean

import jinja2
from tabulate import tabulate

from baselines import METHODS
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import InputError
from workflow.results.analysis import SETTING, setting_of, spread
from workflow.results.compare import adjusted_verdicts, difference, pair_runs
from workflow.results.labels import (
    arch_name,
    dataset_name,
    is_paper_suite,
    method_label,
    method_order,
)
from workflow.suite.suite import ROOT

TEMPLATES = Path(__file__).with_name("templates")
PUBLISHED = ROOT / "config" / "published.csv"
PUBLISHED_COLUMNS = (
    "dataset", "arch", "method", "w_bits", "a_bits", "top1", "first_last_layer", "shortcut",
    "pretrained", "epochs", "source_url", "note",
)  # fmt: skip
POLICY_WORDS = {"fp": "full precision", "8bit": "8 bit"}
"""Policies as results.csv names them -> as published.csv does."""
POLICY_NAMES = {
    "first_last_layer": "first and last layer",
    "shortcut": "shortcut",
    "pretrained": "pretrained",
    "epochs": "epochs",
}


def main_table(results: list[dict], published: list[dict]) -> list[dict]:
    """One row per dataset, arch, bits and method: mean, std (ddof 1) and n over the seeds."""
    cells: dict[tuple, dict[str, list[dict]]] = {}  # {setting: {method: its runs}}
    seen = set()
    for run in results:
        if run["role"] != "run":
            continue
        key = (*setting_of(run), run["method"], run["seed"])
        if key in seen:
            raise InputError(
                f"{run['run_id']}: a second run of the same arch, method, bits and seed in suite "
                f"{run['suite']!r}: a table takes one"
            )
        seen.add(key)
        cells.setdefault(setting_of(run), {}).setdefault(run["method"], []).append(run)
    for source in published:  # methods that are not trained here stand beside ours
        if setting_of(source) in cells and source["method"] not in METHODS:
            cells[setting_of(source)].setdefault(source["method"], [])
    rows = []
    for setting, methods in cells.items():
        best = leader({name: runs for name, runs in methods.items() if name != "fp"})
        context = next(runs for _, runs in sorted(methods.items()) if runs)
        for name, runs in methods.items():
            row = _row(setting, name, runs)
            row["suite"] = context[0]["suite"]
            row["best"] = "yes" if name == best else ""
            rows.append(row | beside(row, published, our_policy(runs or context)))
    return sorted(rows, key=_order)


def _row(setting: tuple, name: str, runs: list[dict]) -> dict:
    top1 = [run["top1"] for run in runs if run["top1"] is not None]
    delta = [run["delta"] for run in runs if run["delta"] is not None]
    return {
        **dict(zip(SETTING, setting, strict=True)),
        "method": name,
        "label": method_label(name),
        "n": len(top1),
        "diverged": len(runs) - len(top1),
        "top1_mean": mean(top1) if top1 else None,
        "top1_std": spread(top1),
        "delta_mean": mean(delta) if delta else None,
    }


def _order(row: dict) -> tuple:
    bits = row["w_bits"], row["a_bits"]
    network = row["dataset"], row["arch"]
    return *network, row["w_bits"] != FLOAT_BITS, *bits, method_order(row["method"])


def leader(methods: dict[str, list[dict]]) -> str | None:
    """The method with the highest mean, if it leads every other method that has a finished run.

    The p values are adjusted for the number of rivals.
    """
    means = {
        name: mean(done)
        for name, runs in methods.items()
        if (done := [run["top1"] for run in runs if run["top1"] is not None])
    }
    if len(means) < 2:
        return None
    best = max(means, key=means.__getitem__)
    found = []
    for rival in means.keys() - {best}:
        pairs = pair_runs(methods[best], methods[rival])
        diverged = sum(run["status"] != "done" for run in methods[best])
        found.append(difference([pairs.differences], diverged))
    return best if all(word == "leads" for _, word in adjusted_verdicts(found)) else None


# -- published values -----------------------------------------------------------------------


def read_published(suite: str, path: Path = PUBLISHED) -> list[dict]:
    """The published rows for a paper suite; no other suite is comparable and gets none."""
    if not is_paper_suite(suite):
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *cells = csv.reader(file, strict=True)
        rows = [dict(zip(header, line, strict=True)) for line in cells]
    except (ValueError, csv.Error) as error:  # ValueError: no header, a short row, not UTF-8
        raise InputError(
            f"{path} is not a CSV table with cells for all its columns: {error}"
        ) from None
    if missing := [name for name in PUBLISHED_COLUMNS if name not in header]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in (*PUBLISHED_COLUMNS[:5], "shortcut") if row[name])
        where = f"{path}: the row {', '.join(key)}"
        if not row["source_url"].startswith(("http://", "https://")):
            raise InputError(f"{where} has no source URL: add one")
        if key in seen:
            raise InputError(f"{where} stands twice: keep one")
        seen.add(key)
        if not (row["w_bits"].isdecimal() and row["a_bits"].isdecimal()):
            raise InputError(f"{where}: bits must be whole numbers")
        try:
            float(row["top1"])
        except ValueError:
            raise InputError(f"{where}: top1 must be a number") from None
        row["w_bits"], row["a_bits"] = int(row["w_bits"]), int(row["a_bits"])
    return rows


def our_policy(runs: list[dict]) -> dict[str, str]:
    """The policies of one cell's runs, in the words of published.csv."""

    def values(found: Iterable) -> str:
        return "/".join(POLICY_WORDS.get(v, v) for v in sorted({str(value) for value in found}))

    return {
        "first_last_layer": values(run["first_last"] for run in runs),
        "shortcut": values(run["shortcut"] for run in runs),
        "pretrained": values("yes" if run["pretrained"] else "no" for run in runs),
        "epochs": values(run["epochs"] for run in runs),
    }


def policy_differences(ours: dict[str, str], source: dict) -> str:
    """How a published row was made otherwise than ours: `shortcut: ours quantized, theirs ...`."""
    names = dict(POLICY_NAMES)
    if source["method"] == "fp":
        names = {key: names[key] for key in ("pretrained", "epochs")}
    if not source["arch"].startswith("resnet"):
        names.pop("shortcut", None)
    differences = [
        f"{name}: ours {ours[key]}, theirs {source[key]}"
        for key, name in names.items()
        if source[key] and source[key] != ours[key]
    ]
    if unknown := [name for key, name in names.items() if not source[key]]:
        differences.append(f"not stated: {', '.join(unknown)}")
    return "; ".join(differences)


def beside(row: dict, published: list[dict], ours: dict[str, str]) -> dict:
    """The columns of the main table about the published value of a cell; empty without one."""
    keys = ("dataset", "arch", "w_bits", "a_bits", "method")
    found = [one for one in published if all(one[key] == row[key] for key in keys)]
    if not found:
        return {}
    alike = [one for one in found if one["shortcut"] == ours["shortcut"]]
    source = [*alike, *found][0]
    return {
        "published_top1": source["top1"],
        "published_difference": row["top1_mean"] - float(source["top1"]) if row["n"] else None,
        "published_policy": policy_differences(ours, source),
        "published_source": source["source_url"],
        "published_note": source["note"],
    }


# -- text ------------------------------------------------------------------------------------


def measured_text(row: dict) -> str:
    """`84.20 ± 0.31 (3)`; `diverged` where no seed finished; `-` where nothing was run."""
    if row["n"] == 0:
        return "diverged" if row["diverged"] else "-"
    text = f"{row['top1_mean']:.2f}"
    if row["top1_std"] is not None:
        text += f" ± {row['top1_std']:.2f}"
    failed = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{text} ({row['n']}{failed})"


def blocks(rows: list[dict]) -> list[dict]:
    """One block per dataset and arch: its bit settings, and per method its cells (or None)."""
    found = []
    for dataset, arch in dict.fromkeys((row["dataset"], row["arch"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["arch"]) == (dataset, arch)]
        bits = sorted({(r["w_bits"], r["a_bits"]) for r in mine if r["method"] != "fp"})
        cells = {(r["method"], r["w_bits"], r["a_bits"]): r for r in mine}
        methods = sorted({r["method"] for r in mine} - {"fp"}, key=method_order)
        found.append({
            "dataset": dataset,
            "arch": arch,
            "title": f"{dataset_name(dataset)}, {arch_name(arch)}",
            "bits": [bits_label(*pair) for pair in bits],
            "full_precision": next((r for r in mine if r["method"] == "fp"), None),
            "methods": [(name, [cells.get((name, *pair)) for pair in bits]) for name in methods],
        })  # fmt: skip
    return found


def caption(suite: str) -> str:
    text = (
        "Test top-1 accuracy in percent, final epoch: mean ± sample standard deviation over seeds "
        "(number of seeds). Bold: leads every other method of its column (paired by checkpoint and "
        "seed, Student's t, p below 0.05 after Holm's adjustment for the number of rivals)."
    )
    if is_paper_suite(suite):
        return text + " In brackets: the published value and its source."
    return (
        f"Suite {suite}: small networks and short training, not comparable with published "
        f"numbers. {text}"
    )


def markdown_table(header: list[str], rows: list[list[str]], align: str) -> str:
    """A Markdown table; `align`: one letter a column, l or r."""
    words = [{"l": "left", "r": "right"}[letter] for letter in align]
    return tabulate(rows, header, tablefmt="pipe", disable_numparse=True, colalign=words)


def markdown(rows: list[dict], suite: str) -> str:
    """One Markdown table per dataset and arch, with the sources of published values linked."""

    def cell(row: dict | None) -> str:
        if row is None:
            return "-"
        text = measured_text(row)
        text = f"**{text}**" if row["best"] else text
        if row.get("published_top1"):
            text += f" [[{row['published_top1']}]({row['published_source']})]"
        return text

    parts = [f"# Main table (suite: {suite})", caption(suite)]
    for block in blocks(rows):
        lines = [[suite, method_label(name), *map(cell, cells)] for name, cells in block["methods"]]
        if block["full_precision"]:
            text = cell(block["full_precision"])
            lines.insert(0, [suite, method_label("fp"), *[text] * len(block["bits"])])
        header = ["suite", "method", *block["bits"]]
        align = "ll" + "r" * len(block["bits"])
        parts += [f"## {block['title']}", markdown_table(header, lines, align)]
    if known := [row for row in rows if row.get("published_top1")]:
        header = ["setting", "method", "ours", "published", "difference", "made otherwise"]
        lines = list(map(_beside_published, known))
        parts += ["## Beside published values", markdown_table(header, lines, "llrrrl")]
    return "\n\n".join(parts) + "\n"


def _beside_published(row: dict) -> list[str]:
    gap = row["published_difference"]
    bits = bits_label(row["w_bits"], row["a_bits"])
    return [
        f"{dataset_name(row['dataset'])}, {arch_name(row['arch'])}, {bits}",
        row["label"],
        measured_text(row),
        f"[{row['published_top1']}]({row['published_source']})",
        "-" if gap is None else f"{gap:+.2f}",
        "; ".join(filter(None, [row["published_policy"], row["published_note"]])),
    ]


TEX_SPECIAL = str.maketrans(
    {letter: rf"\{letter}" for letter in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return text.translate(TEX_SPECIAL)


def latex(rows: list[dict], suite: str) -> str:
    """A booktabs table with one block per dataset and arch; published sources are numbered."""
    sources = list(
        dict.fromkeys(row["published_source"] for row in rows if row.get("published_source"))
    )

    def cell(row: dict | None) -> str:
        if row is None:
            return "--"
        text = tex(measured_text(row))
        text = rf"\textbf{{{text}}}" if row["best"] else text
        if row.get("published_top1"):
            number = sources.index(row["published_source"]) + 1
            text += rf" [{row['published_top1']}\textsuperscript{{{number}}}]"
        return text

    drawn = []
    for block in blocks(rows):
        lines = []
        if row := block["full_precision"]:
            span = rf"\multicolumn{{{len(block['bits'])}}}{{c}}{{{cell(row)}}}"
            cells = [span] if block["bits"] else []
            lines.append({"label": tex(row["label"]), "full_precision": True, "cells": cells})
        lines += [
            {"label": tex(method_label(name)), "full_precision": False, "cells": map(cell, cells)}
            for name, cells in block["methods"]
        ]
        drawn.append({"title": tex(block["title"]), "columns": block["bits"], "rows": lines})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        block_start_string="<%", block_end_string="%>",
        variable_start_string="<<", variable_end_string=">>",
        comment_start_string="<#", comment_end_string="#>",
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    return environment.get_template("table_main.tex.j2").render(
        caption=tex(caption(suite)), suite=suite, blocks=drawn, sources=[tex(s) for s in sources]
    )
