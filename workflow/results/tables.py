"""The main table: architecture x bits x method, as CSV, Markdown and LaTeX."""

import argparse
import csv
from pathlib import Path
from statistics import mean

import jinja2
import pandas as pd

from baselines import METHODS
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.results.checked import PUBLISHED_ONLY, check_table
from workflow.results.collect import RESULT_COLUMNS, spread, write_table

TABLE_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "w_bits",
    "a_bits",
    "method",
    "label",
    "n",
    "diverged",
    "top1_mean",
    "top1_std",
    "delta_mean",
    "best",
    "published_top1",
    "published_difference",
    "published_policy",
    "published_source",
    "published_note",
]
DATASETS = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet",
    "digits": "Digits",
}
ARCHS = {
    "alexnet": "AlexNet (BN)",
    "mobilenetv2": "MobileNetV2",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
}
PAPER_SUITES = ("paper", "paper_shortcut_fp")
"""The suites whose networks, data and lengths are those of the published numbers."""
PUBLISHED_COLUMNS = (
    "dataset",
    "arch",
    "method",
    "w_bits",
    "a_bits",
    "top1",
    "first_last_layer",
    "shortcut",
    "pretrained",
    "epochs",
    "source_url",
    "note",
)
POLICY_WORDS = {"fp": "full precision", "8bit": "8 bit"}
"""Policies as results.csv names them -> as published.csv does."""
TEMPLATES = Path(__file__).with_name("templates")


def read_results(path: str | Path) -> pd.DataFrame:
    """results.csv; an empty text cell is '' and an empty number is NaN."""
    check_table(path, RESULT_COLUMNS)
    table = pd.read_csv(
        path,
        keep_default_na=False,
        na_values={
            name: [""]
            for name in (
                "top1",
                "top5",
                "fp_top1",
                "delta",
                "checkpoint_top1",
                "val_top1",
                "size_bytes",
                "bitops",
            )
        },
    )
    if table.empty:
        raise InputError(f"{path} holds no run: a table needs at least one")
    return table


def method_label(name: str) -> str:
    return METHODS[name].label if name in METHODS else PUBLISHED_ONLY.get(name, name)


def method_order(name: str) -> int:
    """Full precision first, then the order of the methods' table, then context methods."""
    names = ["fp", *(n for n in METHODS if n != "fp"), *PUBLISHED_ONLY]
    return names.index(name) if name in names else len(names)


def column_order(w_bits: int, a_bits: int) -> tuple[int, int]:
    """Few bits first, weights before activations."""
    return w_bits, a_bits


def leader(cells: list[dict]) -> str | None:
    """The method that leads `cells` by more than one std, or None.

    The std is the larger of the leader's and the runner-up's. One seed, a diverged seed or no
    rival: no leader.
    """
    ranked = sorted(
        (cell for cell in cells if cell["n"]), key=lambda cell: cell["top1_mean"], reverse=True
    )
    if len(ranked) < 2:
        return None
    best, rival = ranked[:2]
    if best["top1_std"] is None or rival["top1_std"] is None or best["diverged"]:
        return None
    lead = best["top1_mean"] - rival["top1_mean"]
    return best["method"] if lead > max(best["top1_std"], rival["top1_std"]) else None


def read_published(path: str | Path, suite: str) -> list[dict]:
    """The published rows for a paper suite; no other suite is comparable and gets none."""
    if suite not in PAPER_SUITES:
        return []
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
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
        if not row["source_url"].startswith(("http://", "https://")):
            raise InputError(f"{path}: the row {', '.join(key)} has no source URL: add one")
        if key in seen:
            raise InputError(f"{path}: the row {', '.join(key)} stands twice: keep one")
        seen.add(key)
        if not (row["w_bits"].isdecimal() and row["a_bits"].isdecimal()):
            raise InputError(f"{path}: the row {', '.join(key)}: bits must be whole numbers")
        try:
            float(row["top1"])
        except ValueError:
            raise InputError(f"{path}: the row {', '.join(key)}: top1 must be a number") from None
        row["w_bits"], row["a_bits"] = int(row["w_bits"]), int(row["a_bits"])
    return rows


def our_policy(runs: pd.DataFrame) -> dict[str, str]:
    """The policies of one cell's runs, in the words of published.csv."""

    def values(column: str) -> str:
        found = sorted({str(value) for value in runs[column]})
        return "/".join(POLICY_WORDS.get(value, value) for value in found)

    pretrained = {bool(value) for value in runs["pretrained"]}
    return {
        "first_last_layer": values("first_last"),
        "shortcut": values("shortcut"),
        "pretrained": "/".join("yes" if value else "no" for value in sorted(pretrained)),
        "epochs": values("epochs"),
    }


def policy_differences(ours: dict[str, str], source: dict, method: str, arch: str) -> str:
    """In what a published row was made otherwise than ours: `shortcut: ours quantized, theirs ...`."""
    names = {
        "first_last_layer": "first and last layer",
        "shortcut": "shortcut",
        "pretrained": "pretrained",
        "epochs": "epochs",
    }
    if method == "fp":
        names = {key: names[key] for key in ("pretrained", "epochs")}
    if not arch.startswith("resnet"):
        names.pop("shortcut", None)
    told = [
        f"{name}: ours {ours[key]}, theirs {source[key]}"
        for key, name in names.items()
        if source[key] and source[key] != ours[key]
    ]
    unknown = [name for key, name in names.items() if not source[key]]
    return "; ".join([*told, *([f"not stated: {', '.join(unknown)}"] if unknown else [])])


def main_table(results: pd.DataFrame, published: list[dict]) -> list[dict]:
    """One row per dataset, arch, bits and method: mean, std (ddof 1) and n over the seeds."""
    runs = results[results["role"] == "run"]
    key = ["dataset", "arch", "w_bits", "a_bits", "method"]
    if (twice := runs[runs.duplicated([*key, "seed"])]).size:
        first = twice.iloc[0]
        raise InputError(
            f"{first['run_id']}: a second run of the same arch, method, bits and seed in suite "
            f"{first['suite']!r}: a table takes one"
        )
    printed: dict[tuple, list[dict]] = {}
    for row in published:
        printed.setdefault(tuple(row[name] for name in key), []).append(row)
    policies = {where: our_policy(group) for where, group in runs.groupby(key)}
    rows: dict[tuple, dict] = {}
    for where, group in runs.groupby(key):
        done = group[group["status"] == "done"]
        top1 = done["top1"].tolist()
        delta = done["delta"].dropna().tolist()
        rows[where] = {
            "n": len(top1),
            "diverged": len(group) - len(top1),
            "top1_mean": mean(top1) if top1 else None,
            "top1_std": spread(top1),
            "delta_mean": mean(delta) if delta else None,
        }
    columns = {where[:4] for where in rows}
    for where in printed:
        if where[:4] in columns and where[4] in PUBLISHED_ONLY:
            rows[where] = {"n": 0, "diverged": 0}
    suite = runs["suite"].iloc[0] if len(runs) else results["suite"].iloc[0]
    for where, row in rows.items():
        # Context methods are set beside the policies of our runs at the same bits.
        ours = policies.get(where) or next(p for w, p in policies.items() if w[:4] == where[:4])
        candidates = printed.get(where, [])
        alike = [found for found in candidates if found["shortcut"] == ours["shortcut"]]
        source = next(iter([*alike, *candidates]), {})
        row.update(dict(zip(key, where, strict=True)))
        row.update(
            {
                "suite": suite,
                "label": method_label(row["method"]),
                "published_top1": source.get("top1"),
                "published_difference": row["top1_mean"] - float(source["top1"])
                if source and row["n"]
                else None,
                "published_policy": policy_differences(ours, source, where[4], where[1])
                if source
                else None,
                "published_source": source.get("source_url"),
                "published_note": source.get("note"),
            }
        )
    for column in columns:
        cells = [row for where, row in rows.items() if where[:4] == column]
        best = leader([row for row in cells if row["method"] != "fp"])
        for row in cells:
            row["best"] = "yes" if row["method"] == best else ""
    return sorted(
        rows.values(),
        key=lambda row: (
            row["dataset"],
            row["arch"],
            row["w_bits"] != FLOAT_BITS,
            column_order(row["w_bits"], row["a_bits"]),
            method_order(row["method"]),
        ),
    )


def measured_text(row: dict, plus_minus: str) -> str:
    """`84.20 ± 0.31 (3)`; `diverged` where no seed finished; `-` where nothing was run."""
    if row["n"] == 0:
        return "diverged" if row["diverged"] else "-"
    text = f"{row['top1_mean']:.2f}"
    if row["top1_std"] is not None:
        text += f" {plus_minus} {row['top1_std']:.2f}"
    failed = f", {row['diverged']} diverged" if row["diverged"] else ""
    return f"{text} ({row['n']}{failed})"


def blocks(rows: list[dict]) -> list[dict]:
    """One block per dataset and arch: its bit settings, and per method its cells (or None)."""
    found = []
    for dataset, arch in dict.fromkeys((row["dataset"], row["arch"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["arch"]) == (dataset, arch)]
        bits = sorted(
            {(r["w_bits"], r["a_bits"]) for r in mine if r["method"] != "fp"},
            key=lambda pair: column_order(*pair),
        )
        cells = {(r["method"], r["w_bits"], r["a_bits"]): r for r in mine}
        methods = sorted({r["method"] for r in mine}, key=method_order)
        found.append(
            {
                "dataset": dataset,
                "arch": arch,
                "title": f"{DATASETS.get(dataset, dataset)}, {ARCHS.get(arch, arch)}",
                "bits": [bits_label(*pair) for pair in bits],
                "full_precision": next((r for r in mine if r["method"] == "fp"), None),
                "methods": [
                    (m, [cells.get((m, *pair)) for pair in bits]) for m in methods if m != "fp"
                ],
            }
        )
    return found


def caption(suite: str) -> str:
    text = (
        "Test top-1 accuracy in percent, final epoch: mean ± sample standard deviation over seeds "
        "(number of seeds). Bold: leads the runner-up by more than one standard deviation, the "
        "larger of the two."
    )
    if suite in PAPER_SUITES:
        return text + " In brackets: the published value and its source."
    return (
        f"Suite {suite}: small networks and short training, not comparable with published "
        f"numbers. {text}"
    )


def markdown(rows: list[dict], suite: str) -> str:
    """One Markdown table per dataset and arch, with the sources of published values linked."""

    def cell(row: dict | None) -> str:
        if row is None:
            return "-"
        text = measured_text(row, "±")
        text = f"**{text}**" if row["best"] else text
        if row["published_top1"]:
            text += f" [[{row['published_top1']}]({row['published_source']})]"
        return text

    lines = [f"# Main table (suite: {suite})", "", caption(suite), ""]
    for block in blocks(rows):
        lines += [f"## {block['title']}", ""]
        lines += ["| suite | method | " + " | ".join(block["bits"]) + " |"]
        lines += ["|---|---|" + "---:|" * len(block["bits"])]
        for method, cells in block["methods"]:
            line = [suite, method_label(method), *map(cell, cells)]
            lines.append("| " + " | ".join(line) + " |")
        if block["full_precision"]:
            text = cell(block["full_precision"])
            line = [suite, method_label("fp"), *[text] * len(block["bits"])]
            lines.insert(len(lines) - len(block["methods"]), "| " + " | ".join(line) + " |")
        lines.append("")
    beside = [row for row in rows if row["published_top1"]]
    if beside:
        lines += [
            "## Beside published values",
            "",
            "| setting | method | ours | published | difference | made otherwise |",
            "|---|---|---:|---:|---:|---|",
        ]
    for row in beside:
        setting = f"{DATASETS[row['dataset']]}, {ARCHS[row['arch']]}"
        bits = bits_label(row["w_bits"], row["a_bits"])
        gap = row["published_difference"]
        remarks = "; ".join(filter(None, [row["published_policy"], row["published_note"]]))
        cells = [
            f"{setting}, {bits}",
            row["label"],
            measured_text(row, "±"),
            f"[{row['published_top1']}]({row['published_source']})",
            "-" if gap is None else f"{gap:+.2f}",
            remarks,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if beside:
        lines.append("")
    return "\n".join(lines)


TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


def tex(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(TEX_SPECIAL.get(letter, letter) for letter in text)


def latex(rows: list[dict], suite: str) -> str:
    """A booktabs table with one block per dataset and arch; published sources are numbered."""
    sources = list(
        dict.fromkeys(row["published_source"] for row in rows if row["published_source"])
    )

    def cell(row: dict | None) -> str:
        if row is None:
            return "--"
        text = tex(measured_text(row, "±"))
        text = rf"\textbf{{{text}}}" if row["best"] else text
        if row["published_top1"]:
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
            {
                "label": tex(method_label(method)),
                "full_precision": False,
                "cells": [cell(row) for row in cells],
            }
            for method, cells in block["methods"]
        ]
        drawn.append({"title": tex(block["title"]), "columns": block["bits"], "rows": lines})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("table_main.tex.j2").render(
        caption=tex(caption(suite)), suite=suite, blocks=drawn, sources=[tex(s) for s in sources]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, help="results.csv")
    parser.add_argument("--published", required=True, help="published.csv")
    parser.add_argument("--out", required=True, help="path without suffix: .csv, .md and .tex")
    args = parser.parse_args(argv)
    results = read_results(args.results)
    suite = results["suite"].iloc[0]
    rows = main_table(results, read_published(args.published, suite))
    write_table(f"{args.out}.csv", TABLE_COLUMNS, rows)
    write_text(f"{args.out}.md", markdown(rows, suite))
    write_text(f"{args.out}.tex", latex(rows, suite))


if __name__ == "__main__":
    run_cli(main)
