"""What the runs say about each claim: differences in test top-1, paired by checkpoint and seed.

For every setting (dataset, arch, bits) and over all settings of a data set: the mean difference,
its interval and a verdict (workflow/results/compare.py). How to read them: docs/results.md.
"""

from collections.abc import Iterable
from statistics import mean

from lowbit_core.quantizers.bits import bits_label
from workflow.comparisons import load_comparisons
from workflow.results import compare, labels
from workflow.results.columns import grouped
from workflow.results.compare import FEWEST, MARGIN, Difference, Pairs, difference
from workflow.results.main_table import markdown_table
from workflow.results.record import mean_of

ALL = "all"
"""The network and the bits of the row over all settings of a data set."""
NO_SPREAD = "all differences are the same: no interval"
PairedSetting = tuple[str, str, Pairs]
"""A network, its bits, and the pairs of two methods there."""


def claim_rows(results: list[dict]) -> list[dict]:
    """All rows of claims.csv. The order of the rows of `results` does not matter."""
    rows = []
    runs = [run for run in results if run["role"] not in ("checkpoint", "option")]
    for dataset, mine in sorted(grouped(runs, "dataset").items()):
        methods = sorted({run["method"] for run in mine}, key=lambda m: (labels.method_order(m), m))
        for claim in load_comparisons().claims:
            found = []
            for method, other in load_comparisons().pairs(claim, methods):
                names = {"claim": claim.name, "method": method, "other": other}
                names |= {"suite": mine[0]["suite"], "dataset": dataset}
                found += [names | row for row in _rows(settings_of(mine, method, other))]
            for primary in ("", "yes"):
                compare.judge([row for row in found if row["primary"] == primary])
            rows += found
    return rows


def settings_of(runs: list[dict], method: str, other: str) -> list[PairedSetting]:
    """The settings at which the two methods have a pair of runs, by network and bits."""
    found = []
    for (arch, *bits), mine in sorted(grouped(runs, "arch", "w_bits", "a_bits").items()):
        one, two = ([run for run in mine if run["method"] == name] for name in (method, other))
        pairs = compare.pair_runs(one, two)
        if pairs.runs or pairs.diverged or pairs.other_diverged:
            found.append((arch, bits_label(*bits), pairs))
    return found


def _rows(settings: list[PairedSetting]) -> list[dict]:
    """A row for each setting, and the row over all of them that is the primary answer."""
    rows = []
    for arch, bits, pairs in settings:
        found = difference([pairs.differences], pairs.diverged, pairs.other_diverged)
        rows.append(_row(arch, bits, [[pairs]], found))
    if len(settings) > 1:
        rows.append(_over_all(settings))
    for row in rows[-1:]:
        row["primary"] = "yes"
    return rows


def _over_all(settings: list[PairedSetting]) -> dict:
    """The row over all settings: the differences of a checkpoint are averaged over settings first.

    Only settings and checkpoints that all have in common are used (_common); otherwise differences
    between settings would count as differences between checkpoints. Networks with too few
    checkpoints for an interval are left out, unless all are. Runs that diverged always count.
    """
    networks = {arch: _common([s for s in settings if s[0] == arch]) for arch, _, _ in settings}
    enough = {arch: used for arch, used in networks.items() if len(used[0][2].keys) >= FEWEST}
    few = sorted(networks.keys() - enough.keys()) if enough else []
    networks = enough or networks
    used = {(arch, bits) for mine in networks.values() for arch, bits, _ in mine}
    found = difference(
        [_checkpoint_means([pairs for _, _, pairs in mine]) for mine in networks.values()],
        sum(pairs.diverged for _, _, pairs in settings),
        sum(pairs.other_diverged for _, _, pairs in settings),
    )
    fewer = [
        f"{labels.arch_name(arch)} {bits}"
        for arch, bits, _ in settings
        if arch in networks and (arch, bits) not in used
    ]
    notes = [f"left out, n below {FEWEST}: {', '.join(map(labels.arch_name, few))}"] if few else []
    notes += [f"left out, too few starts in common: {', '.join(fewer)}"] if fewer else []
    return _row(ALL, ALL, [[s[2] for s in mine] for mine in networks.values()], found, notes)


def _common(settings: list[PairedSetting]) -> list[PairedSetting]:
    """The settings of one network, each reduced to the checkpoints that all of them have.

    A setting with fewer than half as many checkpoints as the one with most is left out. Then the
    one with fewest is left out, again and again, until at least FEWEST checkpoints are common.
    """
    most = max(len(pairs.keys) for _, _, pairs in settings)
    ranked = sorted(
        (s for s in settings if 2 * len(s[2].keys) >= most), key=lambda s: -len(s[2].keys)
    )
    while True:
        shared = set.intersection(*({*pairs.keys} for _, _, pairs in ranked))
        if len(ranked) == 1 or len(shared) >= min(FEWEST, most):
            break
        ranked.pop()
    chosen = {bits for _, bits, _ in ranked}
    return [(arch, bits, pairs.only(shared)) for arch, bits, pairs in settings if bits in chosen]


def _checkpoint_means(used: list[Pairs]) -> list[float]:
    """The mean difference of each checkpoint over settings that have the same ones."""
    rows = zip(*(pairs.differences for pairs in used), strict=True)
    return [round(mean(row), compare.DIGITS) for row in rows]


def _row(
    arch: str, bits: str, networks: list[list[Pairs]], found: Difference, notes: Iterable[str] = ()
) -> dict:
    """networks: of each one, the pairs of its settings."""
    runs = [[pair for pairs in mine for pair in pairs.runs] for mine in networks]
    if found.p is None:
        is_few = any(len(mine[0].keys) < FEWEST for mine in networks)
        notes = [*notes, f"n below {FEWEST}: no interval" if is_few else NO_SPREAD]
    return {
        "arch": arch,
        "bits": bits,
        "primary": "",
        "n": found.n,
        "pairs": sum(map(len, runs)),
        "diverged": found.diverged,
        "other_diverged": found.other_diverged,
        "top1_mean": mean_of(mean_of(one["top1"] for one, _ in mine) for mine in runs),
        "other_top1_mean": mean_of(mean_of(two["top1"] for _, two in mine) for mine in runs),
        **found.columns,
        "note": "; ".join(notes),
        "found": found,
    }


# -- text ------------------------------------------------------------------------------------


def difference_text(row: dict) -> str:
    """`+0.42 [+0.10, +0.71]`, without the interval where there is none."""
    if row["top1_difference_mean"] is None:
        return "–"
    text = f"{row['top1_difference_mean']:+.2f}"
    if row.get("top1_difference_low") is not None:
        text += f" [{row['top1_difference_low']:+.2f}, {row['top1_difference_high']:+.2f}]"
    return text.replace("-", "−")


def p_text(row: dict) -> str:
    """The p value of no difference, adjusted for the number of comparisons: `0.043`."""
    p = row["p_adjusted"]
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def place_text(row: dict) -> str:
    """The setting of a row: `CIFAR-100, ResNet-20, W2A2`, or `CIFAR-100, all settings`."""
    if row["arch"] == ALL:
        return f"{labels.dataset_name(row['dataset'])}, all settings"
    return f"{labels.network_name(row)}, {row['bits']}"


def diverged_text(row: dict) -> str:
    counts = row["diverged"], row["other_diverged"]
    return "{} / {}".format(*counts) if any(counts) else "–"


def caption(suite: str) -> str:
    is_small = not labels.is_paper_suite(suite)
    small = "small networks and short training; nothing follows for full-length training"
    return (f"Suite {suite}: {small}. " if is_small else "") + (
        "Differences in test top-1, in points, paired by checkpoint and seed; in brackets the 95 % "
        "interval of the mean over n checkpoints (Student's t). Verdicts: leads and trails where "
        f"the interval excludes 0, equal where it lies within ±{MARGIN:g} points, else undecided; "
        f"fewer than {FEWEST} checkpoints: no interval, undecided. The row over all settings "
        "(bold), or the only setting, answers the question. The bold rows of a question are "
        "adjusted for their number (Holm) before they get a verdict, and so are the others: one "
        "whose interval leaves out 0 can still be undecided. Diverged: runs of the method / of the "
        "other, which enter no difference; a method of which a run diverged leads and equals none."
    )


def markdown(rows: list[dict], suite: str) -> str:
    parts = [f"# Claims (suite: {suite})", caption(suite)]
    header = ["suite", "setting", "method", "against", "n", "top-1", "other", "difference",
              "p, adjusted", "diverged", "verdict"]  # fmt: skip
    for claim in load_comparisons().claims:
        lines = [_line(row) for row in rows if row["claim"] == claim.name]
        text = (
            markdown_table(header, lines, "llllrrrrrrl") if lines else "Not tested by this suite."
        )
        parts += [f"## {claim.question}", text]
    return "\n\n".join(parts) + "\n"


def _line(row: dict) -> list[str]:
    tops = [row["top1_mean"], row["other_top1_mean"]]
    setting = place_text(row)
    return [
        row["suite"],
        f"**{setting}**" if row["primary"] else setting,
        labels.method_label(row["method"]),
        labels.method_label(row["other"]),
        str(row["n"]),
        *("–" if value is None else f"{value:.2f}" for value in tops),
        difference_text(row),
        p_text(row),
        diverged_text(row),
        row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
    ]
