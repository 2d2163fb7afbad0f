"""What the runs say about each claim: differences in test top-1, paired by checkpoint and seed.

usage: python -m workflow.results.claims --results results/results.csv --out results/claims

For every setting (dataset, arch, bits) and over all settings of a data set: the mean difference, a
bootstrap interval and a verdict. How to read them: docs/results.md.
"""

import argparse
import zlib
from statistics import mean

import numpy as np
import pandas as pd

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import run_cli
from lowbit_core.runtime.files import write_text
from workflow.results.checked import ALL
from workflow.results.collect import write_table
from workflow.results.tables import (
    ARCHS,
    DATASETS,
    PAPER_SUITES,
    column_order,
    method_label,
    method_order,
    read_results,
)

CLAIM_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "bits",
    "claim",
    "method",
    "other",
    "n",
    "pairs",
    "diverged",
    "other_diverged",
    "top1_mean",
    "other_top1_mean",
    "top1_difference_mean",
    "top1_difference_low",
    "top1_difference_high",
    "verdict",
    "note",
]
DIRECT_UPDATE, CHANNEL_AWARE, BASELINE = "direct update", "channel-aware", "baseline"
QUESTIONS = {
    DIRECT_UPDATE: "Does training the used weights beat training a shadow weight?",
    CHANNEL_AWARE: "Do channel-aware activations beat plain ones?",
    BASELINE: "Does the method beat each baseline?",
}
OWN = ("direct", "direct_plain", "direct_median", "direct_sign", "indirect")
"""The method and its variants: what is not a baseline of it."""
MIN_N = 3  # independent differences that an interval needs
RESAMPLES = 10_000
SHARE = 0.95


def comparisons(methods: set[str]) -> list[tuple[str, str, str]]:
    """(claim, method, other) among `methods`; every method that is not our own is a baseline."""
    found = [
        (DIRECT_UPDATE, "direct", "indirect"),
        (CHANNEL_AWARE, "direct", "direct_plain"),
        (CHANNEL_AWARE, "lq_channel_aware", "lq_nets"),
    ]
    baselines = sorted(methods - {*OWN, "fp"}, key=method_order)
    found += [(BASELINE, "direct", name) for name in baselines]
    return [(claim, one, other) for claim, one, other in found if {one, other} <= methods]


def bootstrap_interval(groups: list[list[float]], seed: int) -> tuple[float, float]:
    """Percentile interval (95 %) of the mean of the groups' means, resampled within each group."""
    draw = np.random.default_rng(seed)
    means = [
        np.asarray(group)[draw.integers(0, len(group), (RESAMPLES, len(group)))].mean(1)
        for group in groups
    ]
    low, high = np.quantile(np.mean(means, axis=0), [(1 - SHARE) / 2, (1 + SHARE) / 2])
    return float(low), float(high)


def verdict(interval: tuple[float, float] | None, diverged: int, other_diverged: int) -> str:
    """leads or trails where the interval excludes 0; a method with a diverged run leads nothing."""
    if interval is not None and interval[0] > 0 and not diverged:
        return "leads"
    if interval is not None and interval[1] < 0 and not other_diverged:
        return "trails"
    return "undecided"


def claim_rows(results: pd.DataFrame) -> list[dict]:
    """All rows of claims.csv. The order of the rows of `results` does not matter."""
    runs = results[results["role"] != "checkpoint"]
    rows = []
    for dataset in sorted(runs["dataset"].unique()):
        mine = runs[runs["dataset"] == dataset]
        for claim, method, other in comparisons(set(mine["method"])):
            settings = [
                found
                for where, group in mine.groupby(["arch", "w_bits", "a_bits"])
                if (found := _compared(group, where, method, other)) is not None
            ]
            settings.sort(key=lambda s: (s["arch"], column_order(*s["widths"])))
            texts = [_row(setting, [setting["differences"]]) for setting in settings]
            if len(settings) > 1:
                texts.append(_over_all(settings))
            for row in texts:
                row.update(
                    {
                        "suite": runs["suite"].iloc[0],
                        "dataset": dataset,
                        "claim": claim,
                        "method": method,
                        "other": other,
                    }
                )
            rows += [_finished(row) for row in texts]
    return rows


def _compared(group: pd.DataFrame, where: tuple, method: str, other: str) -> dict | None:
    """The pairs of one setting; None where there is none."""
    one, two = (
        {(r.pretrained, r.seed): r for r in group[group["method"] == name].itertuples()}
        for name in (method, other)
    )
    both = sorted(one.keys() & two.keys(), key=lambda key: (key[1], key[0]))
    if not both:
        return None
    done = [key for key in both if one[key].status == two[key].status == "done"]
    arch, w_bits, a_bits = where
    return {
        "arch": arch,
        "bits": bits_label(w_bits, a_bits),
        "widths": (w_bits, a_bits),
        "checkpoints": done,
        "differences": [one[key].top1 - two[key].top1 for key in done],
        "values": ([one[key].top1 for key in done], [two[key].top1 for key in done]),
        "diverged": sum(one[key].status != "done" for key in both),
        "other_diverged": sum(two[key].status != "done" for key in both),
    }


def _row(setting: dict, groups: list[list[float]], note: str = "") -> dict:
    """One row; `groups` hold the independent differences, one group a network."""
    groups = [group for group in groups if group]
    count = min(map(len, groups), default=0)
    one, two = setting["values"]
    return {
        **{key: setting[key] for key in ("arch", "bits", "diverged", "other_diverged")},
        "n": sum(map(len, groups)),
        "pairs": len(setting["differences"]),
        "top1_mean": mean(one) if one else None,
        "other_top1_mean": mean(two) if two else None,
        "top1_difference_mean": mean(map(mean, groups)) if groups else None,
        "groups": groups if count >= MIN_N else None,
        "note": note or ("" if count >= MIN_N else f"n below {MIN_N}: no interval"),
    }


def _over_all(settings: list[dict]) -> dict:
    """All settings of a data set: the settings of one checkpoint are averaged to one difference.

    Networks with too few checkpoints for an interval are left out, unless all are.
    """
    networks: dict[str, dict[tuple, list[float]]] = {}
    for setting in settings:
        of = networks.setdefault(setting["arch"], {})
        for checkpoint, difference in zip(
            setting["checkpoints"], setting["differences"], strict=True
        ):
            of.setdefault(checkpoint, []).append(difference)
    enough = {arch for arch, of in networks.items() if len(of) >= MIN_N}
    left_out = sorted(networks.keys() - enough) if enough else []
    used = [setting for setting in settings if setting["arch"] not in left_out]
    together = {
        "arch": ALL,
        "bits": ALL,
        "differences": [d for setting in used for d in setting["differences"]],
        "values": tuple([v for s in used for v in s["values"][index]] for index in (0, 1)),
        **{key: sum(setting[key] for setting in used) for key in ("diverged", "other_diverged")},
    }
    groups = [
        [mean(of[checkpoint]) for checkpoint in sorted(of, key=lambda key: (key[1], key[0]))]
        for arch, of in sorted(networks.items())
        if arch not in left_out
    ]
    names = ", ".join(ARCHS.get(arch, arch) for arch in left_out)
    note = f"left out, n below {MIN_N}: {names}" if left_out else ""
    return _row(together, groups, note)


def _finished(row: dict) -> dict:
    """The row with its interval and verdict, rounded as it is written."""
    groups = row.pop("groups")
    interval = None
    if groups is not None:
        # The same draws for a pair either way round, so that only the signs change.
        pair = sorted([row["method"], row["other"]])
        name = " ".join([row["dataset"], row["arch"], row["bits"], *pair])
        interval = bootstrap_interval(groups, zlib.crc32(name.encode()))
        row["top1_difference_low"], row["top1_difference_high"] = interval
    row["verdict"] = verdict(interval, row["diverged"], row["other_diverged"])
    for key, value in row.items():
        if isinstance(value, float):
            row[key] = round(value, 3) + 0.0  # no -0
    return row


# -- text ------------------------------------------------------------------------------------


def difference_text(row: dict) -> str:
    """`+0.42 [+0.10, +0.71]`, without the interval where there is none."""
    if row["top1_difference_mean"] is None:
        return "–"
    text = f"{row['top1_difference_mean']:+.2f}"
    if row.get("top1_difference_low") is not None:
        text += f" [{row['top1_difference_low']:+.2f}, {row['top1_difference_high']:+.2f}]"
    return text.replace("-", "−")


def place_text(row: dict) -> str:
    name = DATASETS.get(row["dataset"], row["dataset"])
    if row["arch"] == ALL:
        return f"{name}, all"
    return f"{name}, {ARCHS.get(row['arch'], row['arch'])}, {row['bits']}"


def diverged_text(row: dict) -> str:
    if not (row["diverged"] or row["other_diverged"]):
        return "–"
    return f"{row['diverged']} / {row['other_diverged']}"


def caption(suite: str) -> str:
    text = (
        "Differences in test top-1, in points, paired by checkpoint and seed; in brackets a 95 % "
        f"bootstrap interval over the n checkpoints ({RESAMPLES:,} resamples, seeded). With three "
        "checkpoints the interval is the range of the three differences, which misses the truth "
        "in about one case of four: the rows over all settings tell more. Fewer than three: no "
        "interval, no verdict. Diverged: runs of the method / of the other that enter no "
        "difference; a method with one leads nothing."
    )
    return (
        text
        if suite in PAPER_SUITES
        else (
            f"Suite {suite}: small networks and short training; nothing follows for full-length "
            f"training. {text}"
        )
    )


def markdown(rows: list[dict], suite: str) -> str:
    lines = [f"# Claims (suite: {suite})", "", caption(suite), ""]
    for claim, question in QUESTIONS.items():
        mine = [row for row in rows if row["claim"] == claim]
        lines += [f"## {question}", ""]
        if not mine:
            lines += ["Not tested by this suite.", ""]
            continue
        lines += [
            "| suite | setting | method | against | n | top-1 | other | difference | diverged "
            "| verdict |",
            "|---|---|---|---|---:|---:|---:|---:|---:|---|",
        ]
        for row in mine:
            cells = [
                suite,
                place_text(row),
                method_label(row["method"]),
                method_label(row["other"]),
                str(row["n"]),
                *(
                    "–" if row[key] is None else f"{row[key]:.2f}"
                    for key in ("top1_mean", "other_top1_mean")
                ),
                difference_text(row),
                diverged_text(row),
                row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, help="results.csv")
    parser.add_argument("--out", required=True, help="path without suffix: .csv and .md")
    args = parser.parse_args(argv)
    results = read_results(args.results)
    rows = claim_rows(results)
    write_table(f"{args.out}.csv", CLAIM_COLUMNS, rows)
    write_text(f"{args.out}.md", markdown(rows, results["suite"].iloc[0]))


if __name__ == "__main__":
    run_cli(main)
