"""The tables of the report: their columns, and how a value is shown in a cell."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from markupsafe import Markup

from lowbit_core.quantizers.bits import bits_label
from workflow.results import claims, labels
from workflow.results.analysis import SETTING
from workflow.results.columns import KINDS, grouped
from workflow.results.main_table import mean_text
from workflow.results.plots.style import GRID, INK, MUTED, si

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
    """One row for each group: the statistic of the numbers that are known, and `runs`.

    Columns of whole numbers, such as the seed, are those of the group's first row.
    """
    whole = KINDS["whole"].split()
    summary = []
    for group in grouped(rows, *names).values():
        known = {name: [r[name] for r in group if r[name] is not None] for name in group[0]}
        numbers = {
            name: statistic(values)
            for name, values in known.items()
            if values and name not in whole and not isinstance(values[0], str)
        }
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
    "Policy differs in": ("published_policy", ""), "Note": ("published_note", ""),
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
    "Same class as torch (%)": ("agreement", ".2f"),
    "File": ("file_bytes", lambda row: si(row["file_bytes"], "B")),
    "Entropy coded": ("entropy_bytes", lambda row: si(row["entropy_bytes"], "B")),
    "Times smaller": ("compression", ".1f"), "ms an image": ("ms", ".3f"),
    "Torch in float32, times as long": ("x_torch", ".2f"),
    "onnxruntime int8, times as long": ("x_ort_int8", ".2f"),
}  # fmt: skip
