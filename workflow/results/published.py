"""The published accuracies (config/published.csv) that are set beside those of a paper suite."""

import csv
from collections.abc import Iterable
from pathlib import Path

from lowbit_core.runtime.errors import InputError
from workflow.results.labels import is_paper_suite
from workflow.suite.suite import ROOT

PATH = ROOT / "config" / "published.csv"
COLUMNS = (
    "dataset", "arch", "method", "w_bits", "a_bits", "top1", "first_last_layer", "shortcut",
    "pretrained", "epochs", "source_url", "note",
)  # fmt: skip
POLICY_WORDS = {"fp": "full precision", "8bit": "8 bit"}
"""Policies as results.csv names them -> as published.csv does."""
NAMES = {
    "first_last_layer": "first and last layer",
    "shortcut": "shortcut",
    "pretrained": "pretrained",
    "epochs": "epochs",
}


def read_published(suite: str, path: Path = PATH) -> list[dict]:
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
    if missing := [name for name in COLUMNS if name not in header]:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}")
    seen = set()
    for row in rows:
        key = tuple(row[name] for name in (*COLUMNS[:5], "shortcut") if row[name])
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
    names = dict(NAMES)
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
