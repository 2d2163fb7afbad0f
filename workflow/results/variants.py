"""Variants of the method's free choices, compared on the validation split alone.

usage: python -m workflow.results.variants --suite tuning --jobs FILES --runs results/runs --out FILE

A variant is a recipe (suite: `recipes`) or a method that is a setting of another; every one trains
from the same checkpoints. Test data are not looked at: what is chosen here must not know them.
"""

import argparse
import zlib
from pathlib import Path
from statistics import mean

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.results.checked import check_jobs, check_run, read_jobs
from workflow.results.claims import MIN_N, bootstrap_interval, difference_text, verdict
from workflow.results.collect import read_json, spread, write_table
from workflow.results.tables import ARCHS, DATASETS, column_order, method_label, method_order

VARIANT_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "bits",
    "method",
    "recipe",
    "change",
    "n",
    "diverged",
    "val_top1_mean",
    "val_top1_std",
    "top1_difference_mean",
    "top1_difference_low",
    "top1_difference_high",
    "verdict",
]
Place = tuple[str, str, int, int]
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
    """In what `recipe` differs from `base`: `levels.lr_scale=0.3`; empty for the base itself."""
    one, two = flat(recipe), flat(base)
    return "; ".join(
        f"{key.removeprefix('quantizer_groups.')}={one.get(key)}"
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    )


def variant_rows(suite: str, runs: list[tuple[dict, dict]]) -> list[dict]:
    """One row per setting and variant, from (configuration, final record) of each run.

    Each is compared, in pairs, to the setting's first method: by the first recipe if it is that
    method itself, by its own recipe if it is a rival.
    """
    settings: dict[Place, dict[Variant, dict[tuple, tuple[dict, dict]]]] = {}
    for config, final in runs:
        if config["method"] == "fp":
            continue
        place = (config["dataset"], config["arch"], config["w_bits"], config["a_bits"])
        variant = (config["method"], config["recipe"]["name"])
        settings.setdefault(place, {}).setdefault(variant, {})[
            config["pretrained"], config["seed"]
        ] = (config, final)
    rows = []
    for place in sorted(settings, key=lambda p: (*p[:2], column_order(*p[2:]))):
        variants = settings[place]
        base = next(iter(variants))
        first = next(iter(variants[base].values()))[0]["recipe"]
        ranked = sorted(variants, key=lambda v: (method_order(v[0]), v[1] != base[1], v[1]))
        for name in ranked:
            same = (base[0], name[1])
            against = same if name[0] != base[0] and same in variants else base
            rows.append(_row(suite, place, name, variants, against, first))
    return rows


def _row(suite, place: Place, name: Variant, variants: dict, against: Variant, first: dict) -> dict:
    mine = variants[name]
    done = {key: final["val_top1"] for key, (_, final) in mine.items() if final["status"] == "done"}
    row = {
        "suite": suite, "dataset": place[0], "arch": place[1], "bits": bits_label(*place[2:]),
        "method": name[0], "recipe": name[1],
        "change": change(next(iter(mine.values()))[0]["recipe"], first),
        "n": len(done), "diverged": len(mine) - len(done),
        "val_top1_mean": mean(done.values()) if done else None,
        "val_top1_std": spread(list(done.values())), "verdict": "undecided",
    }  # fmt: skip
    others = {k: final["val_top1"] for k, (_, final) in variants[against].items()
              if final["status"] == "done"}  # fmt: skip
    both = sorted(done.keys() & others.keys(), key=lambda key: (key[1], key[0]))
    if name == against or not both:
        return row
    differences = [done[key] - others[key] for key in both]
    row["top1_difference_mean"] = mean(differences)
    if len(differences) >= MIN_N:
        interval = bootstrap_interval([differences], zlib.crc32(" ".join(name).encode()))
        row["top1_difference_low"], row["top1_difference_high"] = interval
        row["verdict"] = verdict(interval, row["diverged"], len(variants[against]) - len(others))
    return row


def markdown(rows: list[dict], suite: str) -> str:
    lines = [
        f"# Variants (suite: {suite})", "",
        "Validation top-1 in percent, mean ± sample standard deviation over the seeds; test data "
        "are not looked at. Differences are paired by checkpoint: a recipe of the first method against "
        "its first recipe, another method against the first one by the same recipe, with a 95 % bootstrap interval from three seeds on. Small networks and short "
        "training: they choose between variants, and are not comparable with published numbers.",
        "",
    ]  # fmt: skip
    for dataset, arch, bits in dict.fromkeys((r["dataset"], r["arch"], r["bits"]) for r in rows):
        lines += [
            f"## {DATASETS.get(dataset, dataset)}, {ARCHS.get(arch, arch)}, {bits}", "",
            "| method | recipe | what it changes | n | diverged | validation top-1 | difference "
            "| verdict |",
            "|---|---|---|---:|---:|---:|---:|---|",
        ]  # fmt: skip
        for row in rows:
            if (row["dataset"], row["arch"], row["bits"]) != (dataset, arch, bits):
                continue
            value = "-" if row["val_top1_mean"] is None else f"{row['val_top1_mean']:.2f}"
            value += "" if row["val_top1_std"] is None else f" ± {row['val_top1_std']:.2f}"
            gap = row.get("top1_difference_mean")
            cells = [
                method_label(row["method"]), row["recipe"], row["change"] or "-", str(row["n"]),
                str(row["diverged"]), value,
                "-" if gap is None else difference_text(row), "-" if gap is None else row["verdict"],
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def write_variants(suite: str, runs: list[tuple[dict, dict]], out: Path) -> None:
    """Write `out`.csv and `out`.md."""
    rows = variant_rows(suite, runs)
    write_table(f"{out}.csv", VARIANT_COLUMNS, rows)
    write_text(f"{out}.md", markdown(rows, suite))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--jobs", required=True, nargs="+", help="job files, in the suite's order")
    parser.add_argument("--runs", required=True, type=Path)
    parser.add_argument("--out", required=True, help="path without suffix: .csv and .md")
    args = parser.parse_args(argv)
    check_jobs(args.jobs, args.runs)
    found = []
    for run_id, role in read_jobs(args.jobs).items():
        if role != "checkpoint":
            final = check_run(args.runs / run_id)
            found.append((read_json(args.runs / run_id / "config.json"), final))
    if not found:
        raise InputError(f"suite {args.suite!r} has no run to compare")
    write_variants(args.suite, found, Path(args.out))


if __name__ == "__main__":
    run_cli(main)
