"""Variants of the method's free choices, compared on the validation split alone.

A variant is a recipe (suite: `recipes`) or a method that is a setting of another; all of them train
from the same checkpoints. Test data are not looked at: what is chosen here must not know them.
"""

from statistics import mean

from lowbit_core.quantizers.bits import bits_label
from workflow.results.analysis import SETTING, setting_of, spread
from workflow.results.claims import difference_text
from workflow.results.compare import adjusted_verdicts, difference, pair_runs
from workflow.results.labels import arch_name, dataset_name, method_label, method_order
from workflow.results.main_table import markdown_table

Variant = tuple[str, str]


def flat(recipe: dict, prefix: str = "") -> dict[str, object]:
    """Nested settings joined by dots, without the recipe's name."""
    found: dict[str, object] = {}
    for key, value in recipe.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif prefix or key != "name":
            found[prefix + key] = value
    return found


def change(recipe: dict, base: dict) -> str:
    """How `recipe` differs from `base`: `levels.lr_scale=0.3`; empty for the base itself."""
    one, two = flat(recipe), flat(base)
    return "; ".join(
        f"{key.removeprefix('quantizer_groups.')}={one.get(key)}"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    )


def variant_rows(suite: str, records: list[dict]) -> list[dict]:
    """One row per setting and variant, from the runs of a record (config, final and role).

    Each is compared, in pairs, to the setting's first method: by the first recipe if it is that
    method itself, by its own recipe if it is a rival. Rows of one setting are adjusted together.
    """
    settings: dict[tuple, dict[Variant, list[dict]]] = {}
    for record in records:
        config = record["config"]
        if record["role"] != "checkpoint" and config["method"] != "fp":
            variants = settings.setdefault(setting_of(config), {})
            variant = (config["method"], config["recipe"]["name"])
            variants.setdefault(variant, []).append(config | record["final"])
    rows = []
    for setting, variants in sorted(settings.items()):
        found = _setting_rows(variants)
        names = {"suite": suite, **dict(zip(SETTING, setting, strict=True))}
        rows += [{**names, "bits": bits_label(*setting[2:]), **row} for row in found]
    return rows


def _setting_rows(variants: dict[Variant, list[dict]]) -> list[dict]:
    base = next(iter(variants))
    rows, compared = [], []
    for name in sorted(variants, key=lambda v: (method_order(v[0]), v[1] != base[1], v[1])):
        same = (base[0], name[1])
        against = same if name[0] != base[0] and same in variants else base
        mine, others = variants[name], variants[against]
        done = [run["val_top1"] for run in mine if run["status"] == "done"]
        row = {
            "method": name[0],
            "recipe": name[1],
            "change": change(mine[0]["recipe"], variants[base][0]["recipe"]),
            "n": len(done),
            "diverged": len(mine) - len(done),
            "val_top1_mean": mean(done) if done else None,
            "val_top1_std": spread(done),
            "verdict": "undecided",
        }
        rows.append(row)
        pairs = pair_runs(mine, others, "val_top1")
        if name == against or not pairs.runs:
            continue
        failed = sum(run["status"] != "done" for run in others)
        found = difference([pairs.differences], row["diverged"], failed)
        row["top1_difference_mean"], row["p"] = found.mean, found.p
        row["top1_difference_low"], row["top1_difference_high"] = found.low, found.high
        compared.append((row, found))
    adjusted = adjusted_verdicts([found for _, found in compared])
    for (row, _), (p, word) in zip(compared, adjusted, strict=True):
        row["p_adjusted"], row["verdict"] = p, word
    return rows


def markdown(rows: list[dict], suite: str) -> str:
    parts = [
        f"# Variants (suite: {suite})",
        "Validation top-1 in percent, mean ± sample standard deviation over the seeds; test data "
        "are not looked at. Differences are paired by checkpoint: a recipe of the first method "
        "against its first recipe, another method against the first one by the same recipe; in "
        "brackets the 95 % interval (Student's t) from three seeds on. The verdicts of one setting "
        "are adjusted for their number (Holm). Small networks and short training: they choose "
        "between variants, and are not comparable with published numbers.",
    ]
    header = ["method", "recipe", "what it changes", "n", "diverged", "validation top-1",
              "difference", "verdict"]  # fmt: skip
    for setting in dict.fromkeys((r["dataset"], r["arch"], r["bits"]) for r in rows):
        mine = [r for r in rows if (r["dataset"], r["arch"], r["bits"]) == setting]
        dataset, arch, bits = setting
        parts += [
            f"## {dataset_name(dataset)}, {arch_name(arch)}, {bits}",
            markdown_table(header, list(map(_line, mine)), "lllrrrrl"),
        ]
    return "\n\n".join(parts) + "\n"


def _line(row: dict) -> list[str]:
    value = "-" if row["val_top1_mean"] is None else f"{row['val_top1_mean']:.2f}"
    value += "" if row["val_top1_std"] is None else f" ± {row['val_top1_std']:.2f}"
    compared = row.get("top1_difference_mean") is not None
    return [
        method_label(row["method"]), row["recipe"], row["change"] or "-", str(row["n"]),
        str(row["diverged"]), value,
        *((difference_text(row), row["verdict"]) if compared else ("-", "-")),
    ]  # fmt: skip
