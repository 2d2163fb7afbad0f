"""Variants of the method's free choices, compared on validation images.

A variant is a method with a recipe of the suite; all of them train from the same checkpoints. What
is chosen must not know the test images, so a suite looks at them only to confirm a choice that was
made before, on fresh seeds: with `compare_on: test`.
"""

import pandas as pd

from lowbit_core.quantizers.bits import bits_label
from workflow.results.analysis import SETTING, mean_and_spread
from workflow.results.claims import difference_text
from workflow.results.columns import grouped
from workflow.results.compare import difference, judge, pair_runs
from workflow.results.labels import method_label, method_order, network_name
from workflow.results.main_table import markdown_table, mean_text
from workflow.results.record import start_of
from workflow.suite.suite import hides_test


def change(recipe: dict, base: dict) -> str:
    """How `recipe` differs from `base`: `levels.lr_scale=0.3`; empty for the base itself."""
    one, two = (pd.json_normalize(r).to_dict("records")[0] for r in (recipe, base))
    return "; ".join(
        f"{key.removeprefix('quantizer_groups.')}={one.get(key)}"
        for key in sorted(one.keys() | two.keys())
        if key != "name" and one.get(key) != two.get(key)
    )


def variant_rows(suite: dict, records: list[dict]) -> list[dict]:
    """One row per setting and variant, from the runs of a record (config, final and role).

    suite: its file. The base of a setting is the method and recipe that it names first. Other
    recipes of that method are compared with the base, in pairs; another method with the base's
    method by the same recipe or, where that was not trained, with the base. Rows of one setting
    are adjusted together. A setting with one variant compares nothing and has no row.
    """
    runs = [
        {
            **record["config"],
            **record["final"],
            "pretrained": start_of(record),
            "variant": record["config"]["recipe"]["name"],
        }
        for record in records
        if record["role"] != "checkpoint"
    ]
    rows = []
    for setting, mine in sorted(grouped(runs, *SETTING).items()):
        names = {"suite": suite["suite"], **dict(zip(SETTING, setting, strict=True))}
        names["bits"] = bits_label(*setting[2:])
        variants = grouped(mine, "method", "variant")
        if len(variants) > 1:
            order = _named(suite, {method for method, _ in variants})
            base = min(variants, key=lambda one: order.get(one, len(order)))
            rows += [names | row for row in _setting_rows(variants, base, measured(suite))]
    return rows


def measured(suite: dict) -> str:
    """The accuracy that a suite compares: `val_top1` or `top1`, of validation or test images."""
    return "val_top1" if hides_test(suite, True) else "top1"


def _named(suite: dict, methods: set[str]) -> dict[tuple[str, str], int]:
    """The place of each (method, recipe) that the suite names; `all` stands for `methods`."""
    by_label = sorted(methods, key=lambda method: (method_order(method), method))
    named = dict.fromkeys(
        (method, experiment["recipe"])
        for experiment in suite["experiments"]
        for method in (by_label if experiment["methods"] == "all" else experiment["methods"])
    )
    return {one: place for place, one in enumerate(named)}


def _setting_rows(
    variants: dict[tuple[str, str], list[dict]], base: tuple[str, str], measure: str
) -> list[dict]:
    rows = []
    for name in sorted(variants, key=lambda v: (method_order(v[0]), v[1] != base[1], v[1])):
        same = (base[0], name[1])
        against = same if name[0] != base[0] and same in variants else base
        mine, others = variants[name], variants[against]
        done = [run for run in mine if run["status"] == "done"]
        row = {
            "method": name[0],
            "recipe": name[1],
            "change": change(mine[0]["recipe"], variants[base][0]["recipe"]),
            **mean_and_spread(done, measure),
            "diverged": len(mine) - len(done),
            "verdict": "undecided",
        }
        rows.append(row)
        pairs = pair_runs(mine, others, measure)
        if name == against or not pairs.runs:
            continue
        failed = sum(run["status"] != "done" for run in others)
        found = difference([pairs.differences], row["diverged"], failed)
        row |= {**found.columns, "found": found}
    judge([row for row in rows if "found" in row])
    return rows


def markdown(rows: list[dict], suite: dict) -> str:
    measure = measured(suite)
    images, about, purpose = {
        "val_top1": ("validation", "test data are not looked at", "they choose between variants"),
        "top1": (
            "test",
            "the recipes were chosen before, on validation images",
            "they confirm a choice",
        ),
    }[measure]
    parts = [
        f"# Variants (suite: {suite['suite']})",
        f"{images.capitalize()} top-1 in percent, mean ± sample standard deviation over the seeds; "
        f"{about}. Differences are paired by checkpoint: a recipe of the first method "
        "against its first recipe, another method against the first one by the same recipe; in "
        "brackets the 95 % interval (Student's t) from three seeds on. The verdicts of one setting "
        f"are adjusted for their number (Holm). Small networks and short training: {purpose}, and "
        "are not comparable with published numbers.",
    ]
    header = ["method", "recipe", "what it changes", "n", "diverged",
              f"{images} top-1", "difference", "verdict"]  # fmt: skip
    for mine in grouped(rows, "dataset", "arch", "bits").values():
        title = f"## {network_name(mine[0])}, {mine[0]['bits']}"
        lines = [_line(row, measure) for row in mine]
        parts += [title, markdown_table(header, lines, "lllrrrrl")]
    return "\n\n".join(parts) + "\n"


def _line(row: dict, measure: str) -> list[str]:
    mean, compared = row[f"{measure}_mean"], row.get("top1_difference_mean") is not None
    return [
        method_label(row["method"]),
        row["recipe"],
        row["change"] or "-",
        str(row["n"]),
        str(row["diverged"]),
        "-" if mean is None else mean_text(mean, row[f"{measure}_std"]),
        *((difference_text(row), row["verdict"]) if compared else ("-", "-")),
    ]
