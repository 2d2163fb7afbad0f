"""The main table: architecture x bits x method, as rows, Markdown and LaTeX."""

from pathlib import Path

import jinja2
from tabulate import tabulate

from baselines import METHODS
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import InputError
from workflow.results import labels
from workflow.results.analysis import SETTING, mean_and_spread, setting_of
from workflow.results.columns import columns, grouped, read_cells
from workflow.results.compare import adjusted_verdicts, difference, pair_runs
from workflow.results.record import mean_of
from workflow.suite.suite import ROOT

TEMPLATES = Path(__file__).with_name("templates")
PUBLISHED = ROOT / "config" / "published.csv"
PUBLISHED_KEYS = ("dataset", "arch", "method", "w_bits", "a_bits", "shortcut")
PUBLISHED_COLUMNS = columns(
    "dataset arch method w_bits a_bits top1 first_last_layer shortcut pretrained epochs "
    "source_url note"
)
POLICY_WORDS = {"fp": "full precision", "8bit": "8 bit"}
"""Policies as results.csv names them -> as published.csv does."""


def main_table(results: list[dict], published: list[dict]) -> list[dict]:
    """One row per dataset, arch, bits and method: mean, std (ddof 1) and n over the seeds."""
    results = [run for run in results if run["role"] == "run"]
    for runs in grouped(results, *SETTING, "method", "seed").values():
        if len(runs) > 1:
            raise InputError(
                f"{runs[1]['run_id']}: a second run of the same arch, method, bits and seed in "
                f"suite {runs[1]['suite']!r}: a table takes one"
            )
    rows = []
    for setting, cells in grouped(results, *SETTING).items():
        methods = grouped(cells, "method")
        best = leader({name: runs for name, runs in methods.items() if name != "fp"})
        context = min(methods.items())[1]
        for source in published:  # methods that are not trained here stand beside ours
            if setting_of(source) == setting and source["method"] not in METHODS:
                methods.setdefault(source["method"], [])
        for name, runs in methods.items():
            row = {
                **{key: cells[0][key] for key in ("suite", *SETTING)},
                "method": name,
                "label": labels.method_label(name),
                "zero_level": zero_level(runs),
                **mean_and_spread(runs, "top1"),
                "delta_mean": mean_of(run["delta"] for run in runs),
                "best": "yes" if name == best else "",
            }
            rows.append(row | beside(row, published, our_policy(runs or context)))
    return sorted(rows, key=_order)


def _order(row: dict) -> tuple:
    bits = row["w_bits"], row["a_bits"]
    network = row["dataset"], row["arch"]
    return *network, row["w_bits"] != FLOAT_BITS, *bits, labels.method_order(row["method"])


def zero_level(runs: list[dict]) -> str:
    """yes if zero is a level of the weights in every run, no if not; empty where none is known."""
    known = {run["zero_level"] for run in runs} - {None}
    return "" if not known else "yes" if known == {"yes"} else "no"


def leader(methods: dict[str, list[dict]]) -> str | None:
    """The method with the highest mean, if it leads every other method that has a finished run.

    The p values are adjusted for the number of rivals.
    """
    found = {name: mean_and_spread(runs, "top1") for name, runs in methods.items()}
    means = {name: row["top1_mean"] for name, row in found.items() if row["n"]}
    if len(means) < 2:
        return None
    best = max(means, key=means.__getitem__)
    rivals = [
        difference([pair_runs(methods[best], methods[rival]).differences], found[best]["diverged"])
        for rival in means.keys() - {best}
    ]
    return best if all(word == "leads" for _, word in adjusted_verdicts(rivals)) else None


# -- published values -----------------------------------------------------------------------


def read_published(suite: str, path: Path = PUBLISHED) -> list[dict]:
    """The published rows for a paper suite; no other suite is comparable and gets none."""
    if not labels.is_paper_suite(suite):
        return []
    cells = read_cells(path, path.read_bytes(), PUBLISHED_COLUMNS, "correct it")
    rows = [{**row, "w_bits": int(row["w_bits"]), "a_bits": int(row["a_bits"])} for row in cells]
    for key, same in grouped(rows, *PUBLISHED_KEYS).items():
        where = f"{path}: the row {', '.join(map(str, key))}"
        if len(same) > 1:
            raise InputError(f"{where} stands twice: keep one")
        if not same[0]["top1"]:
            raise InputError(f"{where} has no top1: add it")
        if not same[0]["source_url"].startswith(("http://", "https://")):
            raise InputError(f"{where} has no source URL: add one")
    return rows


def our_policy(runs: list[dict]) -> dict[str, str]:
    """The policies of one cell's runs, in the words of published.csv."""
    values = {
        "first_last_layer": {run["first_last"] for run in runs},
        "shortcut": {run["shortcut"] for run in runs},
        "pretrained": {"yes" if run["pretrained"] else "no" for run in runs},
        "epochs": {run["epochs"] for run in runs},
    }
    return {
        name: "/".join(POLICY_WORDS.get(value, value) for value in sorted(map(str, found)))
        for name, found in values.items()
    }


def policy_differences(ours: dict[str, str], source: dict) -> str:
    """How the policy of a published row differs: `shortcut: ours quantized, theirs ...`."""
    keys = ["pretrained", "epochs"] if source["method"] == "fp" else list(ours)
    if "shortcut" in keys and not source["arch"].startswith("resnet"):
        keys.remove("shortcut")
    names = {key: key.replace("first_last", "first and last").replace("_", " ") for key in keys}
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
    found = [one for one in published if all(one[k] == row[k] for k in (*SETTING, "method"))]
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


def mean_text(mean: float, std: float | None, join: str = " ± ") -> str:
    """`84.20 ± 0.31`, without ± where there is one seed."""
    return f"{mean:.2f}" + ("" if std is None else f"{join}{std:.2f}")


def measured_text(row: dict) -> str:
    """`84.20 ± 0.31 (3)`; `diverged` where no seed finished; `-` where nothing was run."""
    if row["n"] == 0:
        return "diverged" if row["diverged"] else "-"
    failed = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{mean_text(row['top1_mean'], row['top1_std'])} ({row['n']}{failed})"


def blocks(rows: list[dict]) -> list[dict]:
    """One block per dataset and arch: its title, its bits, and per method its cells (or None).

    Full precision, if it was run, comes first and has the same cell for all bits.
    """
    found = []
    for mine in grouped(rows, "dataset", "arch").values():
        cells = {(r["method"], r["w_bits"], r["a_bits"]): r for r in mine}
        bits = sorted({key[1:] for key in cells if key[0] != "fp"})
        names = sorted({r["method"] for r in mine} - {"fp"}, key=labels.method_order)
        methods = [("fp", [row] * len(bits)) for row in mine if row["method"] == "fp"]
        methods += [(name, [cells.get((name, *pair)) for pair in bits]) for name in names]
        names = [bits_label(*pair) for pair in bits]
        found.append({"title": labels.network_name(mine[0]), "bits": names, "methods": methods})
    return found


def caption(suite: str) -> str:
    text = (
        "Test top-1 accuracy in percent, final epoch: mean ± sample standard deviation over seeds "
        "(number of seeds). Bold: leads every other method of its column (paired by checkpoint and "
        "seed, Student's t, p below 0.05 after Holm's adjustment for the number of rivals)."
    )
    if labels.is_paper_suite(suite):
        return text + " In brackets: the published value and its source."
    small = "small networks and short training, not comparable with published numbers"
    return f"Suite {suite}: {small}. {text}"


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
        lines = [
            [suite, labels.method_label(name), *map(cell, cells)]
            for name, cells in block["methods"]
        ]
        header = ["suite", "method", *block["bits"]]
        align = "ll" + "r" * len(block["bits"])
        parts += [f"## {block['title']}", markdown_table(header, lines, align)]
    if known := [row for row in rows if row.get("published_top1")]:
        header = ["setting", "method", "ours", "published", "difference", "policy differs in"]
        lines = list(map(_beside_published, known))
        parts += ["## Beside published values", markdown_table(header, lines, "llrrrl")]
    return "\n\n".join(parts) + "\n"


def _beside_published(row: dict) -> list[str]:
    gap = row["published_difference"]
    return [
        labels.setting_name(row),
        row["label"],
        measured_text(row),
        f"[{row['published_top1']}]({row['published_source']})",
        "-" if gap is None else f"{gap:+.2f}",
        "; ".join(filter(None, [row["published_policy"], row["published_note"]])),
    ]


TEX_SPECIAL = {letter: rf"\{letter}" for letter in "&%$#_{}"}
TEX_SPECIAL |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX_SPECIAL |= {"±": r"$\pm$"}


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return text.translate(str.maketrans(TEX_SPECIAL))


def latex(rows: list[dict], suite: str) -> str:
    """A booktabs table with one block per dataset and arch; published sources are numbered."""
    found = [row["published_source"] for row in rows if row.get("published_source")]
    sources = list(dict.fromkeys(found))

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
        for name, cells in block["methods"]:
            shown = list(map(cell, cells))
            if name == "fp" and shown:  # one cell for all bits
                shown = [rf"\multicolumn{{{len(shown)}}}{{c}}{{{shown[0]}}}"]
            lines.append({"label": tex(labels.method_label(name)), "name": name, "cells": shown})
        drawn.append({"title": tex(block["title"]), "columns": block["bits"], "rows": lines})
    return latex_template("table_main.tex.j2").render(
        caption=tex(caption(suite)), suite=suite, blocks=drawn, sources=[tex(s) for s in sources]
    )


def latex_template(name: str) -> jinja2.Template:
    """A template of a LaTeX file."""
    environment = jinja2.Environment(
        *("<%", "%>", "<<", ">>", "<#", "#>"),  # braces belong to LaTeX
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
