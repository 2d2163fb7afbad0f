"""The HTML report of a suite: one file that opens from disk and fetches nothing."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup

from baselines import METHODS
from lowbit_core.quantizers.bits import bits_label
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.results.checked import check_table
from workflow.results.claims import (
    CLAIM_COLUMNS,
    QUESTIONS,
    difference_text,
    diverged_text,
    place_text,
)
from workflow.results.claims import caption as claims_caption
from workflow.results.collect import (
    CHANNEL_SUMMARY_COLUMNS,
    DIAGNOSTIC_COLUMNS,
    DIRECT_SUMMARY_COLUMNS,
    TIMING_COLUMNS,
)
from workflow.results.plots import GRID, INK, MUTED, si
from workflow.results.tables import (
    ARCHS,
    DATASETS,
    PAPER_SUITES,
    TABLE_COLUMNS,
    TEMPLATES,
    blocks,
    method_label,
    method_order,
    read_results,
)

PLOTS = {
    "accuracy_vs_bits": (
        "Accuracy against bit-width",
        (
            "Look at the distance to the dashed full-precision line as bits go; methods whose bands "
            "overlap are not told apart by these seeds."
        ),
    ),
    "accuracy_vs_bitops": (
        "Accuracy against bit operations",
        (
            "All methods of one setting cost the same bit operations, so height alone separates them; "
            "the grey steps are the best accuracy for at most that cost."
        ),
    ),
    "accuracy_vs_size": (
        "Accuracy against model size",
        (
            "Stored size counts packed codes, levels and the layers that stay in full precision, "
            "which is why half the bits do not halve the file."
        ),
    ),
    "channel_error_heatmap": (
        "Channel error heat map",
        (
            "Each strip is a layer, each cell one of its channels from low to high variance: blue "
            "channels are represented better by the channel-aware quantizer, red ones pay for it."
        ),
    ),
    "weight_histograms": (
        "Weight histograms",
        (
            "Where training gathers the latent weights at the levels, the lower row peaks at the "
            "dashed lines; the lines themselves move as the levels are learned."
        ),
    ),
    "training_curves": (
        "Training curves",
        (
            "All methods start from one checkpoint; look at how fast each recovers and whether any is "
            "still rising at the last epoch."
        ),
    ),
    "levels_and_flips": (
        "Flips of codes and spans of levels",
        (
            "Upper row: a rate that stays high means codes that never settle, one near zero from the "
            "start means weights that cannot move. Lower row: levels that shrink or spread away from "
            "where they began."
        ),
    ),
    "mismatch": (
        "Mismatch of trained and used weights",
        (
            "In the upper row, lower means that gradient descent moves nearly the weights the network "
            "uses; in the lower row, falling means that the codes settle."
        ),
    ),
}
COMMANDS = (
    ("make all", "set up, then train the default suite and make this page"),
    ("snakemake --cores 2 all", "the same, inside the environment"),
    ("snakemake results/ablation_channel_error.csv", "the channel-error ablation alone"),
    ("snakemake --cores 2 all --config suite=paper", "another suite (its data must be at hand)"),
    ("make ui", "browse every run in MLflow on 127.0.0.1"),
    ("make test", "the test suite"),
)
INK_METHOD = "#000000"
"""Black is drawn in the text colour, so that it shows on a dark page too."""


def web_method(name: str) -> Method:
    """A method with a colour that works on a light and on a dark page."""
    method = METHODS[name]
    return replace(method, color="currentColor") if method.color == INK_METHOD else method


def inline_svg(path: Path, title: str) -> Markup:
    """A Matplotlib SVG made part of the page: own ids, theme colours, no fixed size."""
    text = path.read_text()
    if "<svg" not in text:
        raise InputError(f"{path} is not an SVG file: make the plots again")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    prefix = path.stem.replace("_", "-")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = text.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    text = re.sub(r"\n\s*", "\n", text)
    colors = {
        INK: "currentColor",
        INK_METHOD: "currentColor",
        MUTED: "var(--muted)",
        GRID: "var(--rule)",
        "#ffffff": "var(--surface)",
    }
    for color, theme in colors.items():
        text = text.replace(color, theme)
    head = f'<svg role="img" aria-label="{title}"'
    return Markup(text.replace("<svg", head, 1))


def points(value: float) -> str:
    """A signed difference in percentage points."""
    return f"{value:+.2f}".replace("-", "−")


def accuracy(cell: dict) -> str:
    """`87.19 ± 0.18`, without ± where there is one seed."""
    std = cell["top1_std"]
    return f"{cell['top1_mean']:.2f}" + ("" if std is None else f"\u00a0±\u00a0{std:.2f}")


def number_cell(value: float | None, text: str | None = None, digits: int = 2) -> dict:
    """A table cell: what is shown and the number it sorts by."""
    if value is None or pd.isna(value):
        return {"text": "–", "sort": ""}
    return {"text": text if text is not None else f"{value:.{digits}f}", "sort": f"{value:.10g}"}


def read_rows(path: str, columns: list[str]) -> list[dict]:
    """A table as dicts; empty cells are None."""
    check_table(path, columns)
    table = pd.read_csv(path).astype(object)
    return table.where(table.notna(), None).to_dict("records")


def place(row: dict) -> str:
    """`ResNet-20 W2A2`, with its data set where it is not the default one."""
    name = f"{ARCHS.get(row['arch'], row['arch'])}, {bits_label(row['w_bits'], row['a_bits'])}"
    if row["dataset"] == "fashion_mnist":
        return name
    return f"{DATASETS.get(row['dataset'], row['dataset'])}, {name}"


def standing(cells: list[dict]) -> dict | None:
    """Who is first in one column, by how much, and whether that is clear."""
    ranked = sorted(
        (c for c in cells if c["n"] and c["method"] != "fp"),
        key=lambda c: c["top1_mean"],
        reverse=True,
    )
    if not ranked:
        return None
    best = ranked[0]
    line = {"method": web_method(best["method"]), "value": accuracy(best), "best": best}
    if len(ranked) == 1:
        return {**line, "chip": "no rival", "tone": "", "text": "the only method that finished"}
    rival = ranked[1]
    lead = best["top1_mean"] - rival["top1_mean"]
    gap = f"{lead:.2f} points over {method_label(rival['method'])}"
    if best["best"]:
        return {
            **line,
            "chip": "clear lead",
            "tone": "good",
            "text": f"{gap}, more than one std (n = {best['n']})",
        }
    if best["top1_std"] is None or rival["top1_std"] is None:
        return {
            **line,
            "chip": "single seed",
            "tone": "",
            "text": f"{gap}; one seed tells no spread",
        }
    if best["diverged"]:
        return {
            **line,
            "chip": "unstable",
            "tone": "bad",
            "text": f"{gap}, but {best['diverged']} of its runs diverged",
        }
    return {
        **line,
        "chip": "within one std",
        "tone": "",
        "text": f"{gap}: not told apart (n = {best['n']})",
    }


def headline(table: list[dict]) -> dict:
    """The best method per setting in plain words, with one card per bit-width."""
    cards, firsts, clear, single = [], {}, 0, 0
    found = blocks(table)
    several = len({block["dataset"] for block in found}) > 1
    for bits in dict.fromkeys(bits for block in found for bits in block["bits"]):
        lines = []
        for block in found:
            if bits not in block["bits"]:
                continue
            column = block["bits"].index(bits)
            line = standing([cells[column] for _, cells in block["methods"] if cells[column]])
            where = block["title"] if several else ARCHS.get(block["arch"], block["arch"])
            if line is None:
                lines.append(
                    {
                        "where": where,
                        "method": None,
                        "chip": "diverged",
                        "tone": "bad",
                        "text": "no method finished",
                    }
                )
                continue
            firsts[line["method"].label] = firsts.get(line["method"].label, 0) + 1
            clear += line["chip"] == "clear lead"
            single += line["chip"] == "single seed"
            lines.append({**line, "where": where})
        cards.append({"bits": bits, "lines": lines})
    if not firsts:
        return {"summary": "No quantized run finished.", "cards": cards}
    settings = sum(firsts.values())
    order = sorted(firsts.items(), key=lambda item: (-item[1], item[0]))
    name, count = order[0]
    others = "; ".join(f"{other} in {n}" for other, n in order[1:])
    text = f"{name} has the highest mean accuracy in {count} of {settings} settings"
    text += f" ({others})." if others else "."
    text += (
        f" The leader of a setting is more than one standard deviation ahead in {clear} of them"
        if clear
        else " In no setting is the leader more than one standard deviation ahead"
    )
    if single:
        text += f"; settings with a single seed, which can show no such lead: {single}"
    text += "."
    return {"summary": text, "cards": cards}


def compare(settings: list[tuple[str, float, float | None]], first: str, second: str) -> dict:
    """Verdict on `first` being more accurate than `second`: (place, difference, std) each."""
    if not settings:
        return {
            "chip": "Not tested by this run",
            "tone": "",
            "text": f"No setting has both {first} and {second}.",
        }
    known = [(where, diff, std) for where, diff, std in settings if std is not None]
    wins = [where for where, diff, std in known if diff > std]
    losses = [where for where, diff, std in known if -diff > std]
    higher = sum(diff > 0 for _, diff, _ in settings)
    text = (
        f"{first} is the more accurate of the two in {higher} of {len(settings)} settings"
        f" (mean difference {points(sum(d for _, d, _ in settings) / len(settings))} points)."
    )
    named = [
        f"{len(places)} ({'; '.join(places)})" if places else "none" for places in (wins, losses)
    ]
    text += f" Clearly better: {named[0]}. Clearly worse: {named[1]}."
    if single := len(settings) - len(known):
        text += f" Settings with a single seed, which count for neither: {single}."
    if wins and not losses:
        return {"chip": "Accuracy: supported by this run", "tone": "good", "text": text}
    if wins:
        return {"chip": "Accuracy: mixed in this run", "tone": "", "text": text}
    return {"chip": "Accuracy: not supported by this run", "tone": "bad", "text": text}


def counted(name: str, good: int, total: int, text: str) -> dict:
    """Verdict on something that holds in `good` of `total` settings."""
    if total == 0:
        return {"chip": f"{name}: not tested by this run", "tone": "", "text": ""}
    chip, tone = (
        ("supported by this run", "good")
        if good == total
        else (("mixed in this run", "") if good else ("not supported by this run", "bad"))
    )
    return {"chip": f"{name}: {chip}", "tone": tone, "text": text}


def channel_claim(summary: list[dict]) -> dict:
    """Claim 2: counting each channel's error suits the majority of channels."""
    direct = [row for row in summary if row["method"] == "direct"]
    aware = [row for row in direct if row["variant"] == "inverse_variance"]
    plain = {place(row): row for row in direct if row["variant"] == "equal"}
    better = sum(row["share_of_channels_improved"] > 50 for row in aware)
    differences = []
    for row in aware:
        rival = plain[place(row)]
        if row["top1_mean"] is None or rival["top1_mean"] is None:
            continue
        known = row["top1_std"] is not None and rival["top1_std"] is not None
        std = max(row["top1_std"], rival["top1_std"]) if known else None
        differences.append((place(row), row["top1_mean"] - rival["top1_mean"], std))
    networks: dict[str, dict[str, dict]] = {}
    for row in summary:
        name = f"{place(row)} · {method_label(row['method'])}"
        networks.setdefault(name, {})[row["variant"]] = row
    rows = []
    for name, variants in networks.items():
        drawn = [variants[v] for v in ("equal", "inverse_variance", "median")]
        rows.append(
            [
                {"text": name},
                *(number_cell(row["share_of_channels_improved"], digits=1) for row in drawn[1:]),
                *(number_cell(row["median_error_variant"], digits=4) for row in drawn),
                *(
                    number_cell(row["top1_mean"], accuracy(row) if row["top1_n"] else None)
                    for row in drawn
                ),
            ]
        )
    shares = [row["share_of_channels_improved"] for row in aware]
    text = (
        (
            f"On held-out data the error falls for more than half of the channels in {better} of "
            f"{len(aware)} settings (between {min(shares):.0f} and {max(shares):.0f} % of channels)."
        )
        if aware
        else ""
    )
    return {
        "title": "Channel-aware activations",
        "claim": "Claim: one quantizer a layer, fitted so that every channel's error counts "
        "relative to its own power, suits most channels better than one fitted to all "
        "values alike.",
        "verdicts": [
            counted("Channel error", better, len(aware), text),
            compare(differences, method_label("direct"), method_label("direct_plain")),
        ],
        "caption": "Channel errors by weighting, and top-1 of the method that trains with it",
        "columns": [
            "Setting · measured network",
            "Improved, inverse variance (%)",
            "Improved, median (%)",
            "Median error, equal",
            "Error, inverse variance",
            "Error, median",
            "Top-1, equal",
            "Top-1, inverse variance",
            "Top-1, median",
        ],
        "rows": rows,
    }


def direct_claim(summary: list[dict]) -> dict:
    """Claim 1: updating the quantized weights themselves beats updating a shadow weight."""
    pairs = [row for row in summary if row["other"] == "indirect"]
    closer = sum(row["mismatch_end_difference_mean"] < 0 for row in pairs)
    columns = [
        "Setting · direct against",
        "Seeds",
        "Top-1 direct",
        "Top-1 other",
        "Difference",
        "Mismatch direct",
        "Mismatch other",
        "Flips direct",
        "Flips other",
    ]
    rows = []
    for row in summary:
        std = row["top1_difference_std"]
        difference = points(row["top1_difference_mean"]) + (f" ± {std:.2f}" if std else "")
        rows.append(
            [
                {"text": f"{place(row)} · {method_label(row['other'])}"},
                number_cell(row["n"], digits=0),
                number_cell(row["top1_mean"]),
                number_cell(row["other_top1_mean"]),
                number_cell(row["top1_difference_mean"], difference),
                number_cell(row["mismatch_end"], digits=3),
                number_cell(row["other_mismatch_end"], digits=3),
                *(
                    number_cell(
                        row[key], f"{100 * row[key]:.2f} %" if row[key] is not None else None
                    )
                    for key in ("flip_rate_end", "other_flip_rate_end")
                ),
            ]
        )
    return {
        "title": "Direct update of quantized weights",
        "claim": "Claim: methods that quantize a full-precision shadow weight update a tensor the "
        "network does not use; updating the quantized weights themselves removes that "
        "mismatch and gives better networks.",
        "verdicts": [
            counted(
                "Mismatch",
                closer,
                len(pairs),
                "At the end of training the distance between trained and used weights is "
                f"smaller with direct updates in {closer} of {len(pairs)} settings.",
            ),
            compare(
                [
                    (place(row), row["top1_difference_mean"], row["top1_difference_std"])
                    for row in pairs
                ],
                method_label("direct"),
                method_label("indirect"),
            ),
        ],
        "caption": "Same levels, same recipe, paired by seed; mismatch and flip rate of the last "
        "epoch",
        "columns": columns,
        "rows": rows,
    }


def published_rows(table: list[dict]) -> list[dict]:
    """Our cells that have a published value, with the difference and what was made otherwise."""
    return [
        {
            "place": place(row),
            "method": row["label"],
            "source": row["published_source"],
            "published": row["published_top1"],
            "note": row["published_note"],
            "policy": row["published_policy"],
            "ours": number_cell(row["top1_mean"], accuracy(row) if row["n"] else None),
            "difference": number_cell(
                row["published_difference"],
                None
                if row["published_difference"] is None
                else points(row["published_difference"]),
            ),
        }
        for row in table
        if row["published_top1"] is not None
    ]


TONES = {"leads": "good", "trails": "bad", "undecided": ""}


def paired_tables(rows: list[dict]) -> list[dict]:
    """claims.csv as the template draws it: one table a question."""
    found = []
    for claim, question in QUESTIONS.items():
        drawn = [
            {
                "place": f"{place_text(row)} · {method_label(row['method'])} against "
                f"{method_label(row['other'])}",
                "verdict": row["verdict"],
                "tone": TONES[row["verdict"]],
                "note": row["note"],
                "cells": [
                    number_cell(row["n"], digits=0),
                    number_cell(row["top1_mean"]),
                    number_cell(row["other_top1_mean"]),
                    number_cell(row["top1_difference_mean"], difference_text(row)),
                    {"text": diverged_text(row), "sort": row["diverged"]},
                ],
            }
            for row in rows
            if row["claim"] == claim
        ]
        found.append({"question": question, "rows": drawn})
    return found


def diagnostic_rows(rows: list[dict]) -> list[list[dict]]:
    """diagnostics.csv as means over the seeds of each setting and method."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("dataset", "arch", "w_bits", "a_bits", "method"))
        groups.setdefault(key, []).append(row)
    columns = (
        ("flip_rate_first", 100, 1),
        ("flip_rate_end", 100, 2),
        ("used_level_share", 100, 1),
        ("used_level_share_lowest", 100, 1),
        ("level_span", 1, 3),
        ("mismatch_end", 1, 3),
        ("dead_channel_share", 100, 1),
    )
    drawn = []
    for key in sorted(groups, key=lambda key: (*key[:4], method_order(key[4]))):
        group = groups[key]
        cells = [
            {"text": f"{place(group[0])} · {method_label(key[4])}"},
            number_cell(len(group), digits=0),
        ]
        for column, factor, digits in columns:
            known = [row[column] for row in group if row[column] is not None]
            value = factor * sum(known) / len(known) if known else None
            cells.append(number_cell(value, digits=digits))
        drawn.append(cells)
    return drawn


def table_blocks(table: list[dict]) -> list[dict]:
    """The main table as the template draws it."""

    def cell(row: dict | None, seeds: int) -> dict:
        if row is None:
            return {"text": "–", "sort": ""}
        shown = {
            "text": "–",
            "sort": "",
            "best": row["best"] == "yes",
            "published": row["published_top1"],
            "source": row["published_source"],
            "note": row["published_note"],
        }
        if row["n"]:
            shown |= {"text": accuracy(row), "sort": f"{row['top1_mean']:.6g}"}
            if row["delta_mean"] is not None and row["method"] != "fp":
                shown["delta"] = points(row["delta_mean"])
            if row["n"] != seeds:
                shown["delta"] = f"{shown.get('delta', '')} n = {row['n']}".strip()
            if row["diverged"]:
                shown["delta"] = f"{shown.get('delta', '')} {row['diverged']} diverged".strip()
        elif row["diverged"]:
            shown |= {"text": "diverged", "failed": True}
        return shown

    def drawn(name: str) -> dict:
        known = name in METHODS
        return web_method(name) if known else {"label": method_label(name), "color": "var(--rule)"}

    found = []
    for block in blocks(table):
        fp = block["full_precision"]
        drawn_cells = [c for _, cells in block["methods"] for c in cells if c]
        seeds = max((c["n"] for c in [*drawn_cells, *filter(None, [fp])]), default=0)
        rows = [
            {"method": drawn(name), "cells": [cell(c, seeds) for c in cells]}
            for name, cells in block["methods"]
        ]
        if fp:
            cells = [cell(fp, seeds) for _ in block["bits"]]
            rows.insert(0, {"method": drawn("fp"), "cells": cells, "reference": True})
        title = f"{block['title']} · {seeds} seed{'s' if seeds != 1 else ''}"
        found.append({"title": title, "bits": block["bits"], "rows": rows})
    return found


def run_rows(results: pd.DataFrame) -> list[dict]:
    """All runs as the template draws them."""

    def text(value: float, digits: int = 2) -> str:
        return "" if pd.isna(value) else f"{value:.{digits}f}"

    order = results.assign(order=[method_order(name) for name in results["method"]]).sort_values(
        ["dataset", "arch", "w_bits", "a_bits", "order", "seed", "role"]
    )
    return [
        {
            "method": web_method(run.method),
            "dataset": DATASETS.get(run.dataset, run.dataset),
            "arch": ARCHS.get(run.arch, run.arch),
            "bits": bits_label(run.w_bits, run.a_bits),
            "seed": run.seed,
            "role": run.role,
            "status": run.status,
            "top1": text(run.top1),
            "delta": "" if pd.isna(run.delta) else f"{run.delta:+.2f}",
            "top5": text(run.top5),
            "epochs": run.epochs,
            "run_id": run.run_id,
            "size": "" if pd.isna(run.size_bytes) else si(run.size_bytes, "B"),
            "size_sort": text(run.size_bytes, 0),
            "bitops": "" if pd.isna(run.bitops) else si(run.bitops),
            "bitops_sort": text(run.bitops, 0),
        }
        for run in order.itertuples()
    ]


def distinct(results: pd.DataFrame, columns: dict[str, str]) -> list[tuple[str, str]]:
    """(name, values) for each column: every value that occurs, `none` for an empty one."""
    return [
        (name, " · ".join(sorted({str(value) or "none" for value in results[column]})))
        for column, name in columns.items()
    ]


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def timing_table(results: pd.DataFrame, timings: pd.DataFrame) -> dict:
    """Medians per method over its runs, and the total."""
    merged = timings.merge(results[["run_id", "method"]], on="run_id")
    rows = []
    for name in sorted(merged["method"].unique(), key=method_order):
        mine = merged[merged["method"] == name]
        middle = mine[["seconds", "images_per_s", "data_wait_share", "peak_memory_mb"]].median()
        wait = middle["data_wait_share"]
        rows.append(
            {
                "method": web_method(name),
                "cells": [
                    number_cell(len(mine), digits=0),
                    number_cell(middle["seconds"], digits=1),
                    number_cell(middle["images_per_s"], digits=0),
                    number_cell(wait, f"{100 * wait:.1f} %"),
                    number_cell(middle["peak_memory_mb"], digits=0),
                ],
            }
        )
    return {
        "summary": f"Training took {duration(merged['seconds'].sum())} of epochs over "
        f"{len(merged)} runs, summed over parallel jobs; the table holds medians.",
        "columns": ["Method", "Runs", "Seconds a run", "Images/s", "Data wait", "Peak MB"],
        "rows": rows,
    }


def joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def tiles(results: pd.DataFrame, timings: pd.DataFrame) -> list[dict]:
    """The figures under the title."""
    failed = int((results["status"] == "diverged").sum())
    fp = results[
        (results["method"] == "fp") & (results["role"] == "run") & (results["status"] == "done")
    ]
    found = [
        {
            "value": len(results),
            "label": f"runs, {failed} of them diverged" if failed else "runs, none diverged",
        }
    ]
    if len(fp):
        means = fp.groupby(["dataset", "arch"])["top1"].mean()
        dataset, arch = means.idxmax()
        found.append(
            {
                "value": f"{means.max():.2f} %",
                "label": f"best full precision: {ARCHS.get(arch, arch)}, "
                f"{DATASETS.get(dataset, dataset)}",
            }
        )
    main = results[results["role"] == "run"]
    seeds = main.groupby("arch")["seed"].nunique()
    most = [ARCHS.get(arch, arch) for arch in seeds[seeds == seeds.max()].index]
    found.append(
        {
            "value": int(seeds.max()),
            "label": f"seed{'s' if seeds.max() > 1 else ''} of {joined(most)}"
            + (f", {seeds.min()} elsewhere" if seeds.min() < seeds.max() else ""),
        }
    )
    found.append({"value": duration(timings["seconds"].sum()), "label": "of training in all"})
    return found


def config_sections(path: str) -> list[tuple[str, str]]:
    """The resolved configuration as YAML: one section per nested entry, the rest together."""
    try:
        config = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    flat = {key: value for key, value in config.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in config.items() if isinstance(value, dict)}
    return [
        (name, yaml.safe_dump(value, sort_keys=True, allow_unicode=True, width=96).rstrip())
        for name, value in ({"suite": flat} | nested).items()
        if value
    ]


def render(args: argparse.Namespace) -> str:
    """The page as text."""
    check_table(args.timings, TIMING_COLUMNS)
    results, timings = read_results(args.results), pd.read_csv(args.timings)
    if set(results["suite"]) != {args.suite}:
        raise InputError(
            f"{args.results} holds suite {results['suite'].iloc[0]!r}, "
            f"not {args.suite!r}: give the results of the suite"
        )
    table = [{**row, "best": row["best"] or ""} for row in read_rows(args.tables, TABLE_COLUMNS)]
    claims = read_rows(args.claims, CLAIM_COLUMNS)
    main = results[results["role"] == "run"]
    found = blocks(table)
    facts = {
        "methods": main[main["method"] != "fp"]["method"].nunique(),
        "datasets": joined([DATASETS.get(d, d) for d in sorted(main["dataset"].unique())]),
        "archs": joined([ARCHS.get(a, a) for a in sorted(main["arch"].unique())]),
        "bits": joined(list(dict.fromkeys(b for block in found for b in block["bits"])) or ["FP"]),
    }
    policies = {
        "first_last": "First and last layer",
        "shortcut": "Shortcut convolutions",
        "exceptions": "Exceptions",
        "width": "Width",
        "epochs": "Epochs",
        "epoch_reported": "Epoch reported",
        "schedule": "Schedule",
        "batch_size": "Batch size",
        "lr": "Learning rate",
        "weight_decay": "Weight decay",
        "quantizer_lr_scale": "Quantizer learning-rate scale",
        "quantizer_weight_decay": "Quantizer weight decay",
        "augmentation": "Augmentation",
        "train_images": "Training images",
        "val_images": "Validation images",
        "precision": "Precision",
        "loader": "Loader",
        "compile": "Compile",
    }
    machine = {
        "hardware": "Hardware",
        "threads": "Threads a run",
        "python": "Python",
        "torch": "PyTorch",
        "torchvision": "torchvision",
        "ffcv": "FFCV",
        "code_version": "Quant-core version",
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        suite=args.suite,
        paper=args.suite in PAPER_SUITES,
        facts=facts,
        tiles=tiles(results, timings),
        headline=headline(table),
        blocks=table_blocks(table),
        beside=published_rows(table),
        plots=[
            {
                "name": name,
                "title": title,
                "caption": text,
                "svg": inline_svg(Path(args.plots) / f"{name}.svg", title),
            }
            for name, (title, text) in PLOTS.items()
        ],
        claims=[
            channel_claim(read_rows(args.channel_summary, CHANNEL_SUMMARY_COLUMNS)),
            direct_claim(read_rows(args.direct_summary, DIRECT_SUMMARY_COLUMNS)),
        ],
        paired=paired_tables(claims),
        paired_caption=claims_caption(args.suite),
        diagnostics=diagnostic_rows(read_rows(args.diagnostics, DIAGNOSTIC_COLUMNS)),
        runs=run_rows(results),
        policies=distinct(main, policies),
        machine=distinct(results, machine),
        config=config_sections(args.config),
        timings=timing_table(results, timings),
        commands=COMMANDS,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--results", required=True, help="results.csv")
    parser.add_argument("--timings", required=True, help="timings.csv")
    parser.add_argument("--tables", required=True, help="table_main.csv")
    parser.add_argument("--claims", required=True, help="claims.csv")
    parser.add_argument("--diagnostics", required=True, help="diagnostics.csv")
    parser.add_argument("--channel-summary", required=True)
    parser.add_argument("--direct-summary", required=True)
    parser.add_argument("--plots", required=True, help="folder of the plots")
    parser.add_argument("--config", required=True, help="resolved configuration, JSON")
    parser.add_argument("--out", required=True, help="HTML file to write")
    args = parser.parse_args(argv)
    write_text(args.out, render(args))


if __name__ == "__main__":
    run_cli(main)
