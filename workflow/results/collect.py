"""Gather run folders into the tidy result tables. The same runs give the same bytes."""

import argparse
import csv
import io
import json
import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

from baselines import method as find_method
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_json
from workflow.results.checked import ROLES, check_jobs, read_jobs, write_table_text

RESULT_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "width",
    "method",
    "w_bits",
    "a_bits",
    "seed",
    "role",
    "status",
    "restarts",
    "diverged_layer",
    "top1",
    "top5",
    "fp_top1",
    "delta",
    "checkpoint_top1",
    "val_top1",
    "epochs",
    "size_bytes",
    "bitops",
    "first_last",
    "shortcut",
    "exceptions",
    "signed_layers",
    "weight_granularity",
    "activation_granularity",
    "init",
    "pretrained",
    "quantizer_weight_decay",
    "quantizer_lr_scale",
    "schedule",
    "epoch_reported",
    "batch_size",
    "lr",
    "weight_decay",
    "augmentation",
    "train_images",
    "val_images",
    "loader",
    "compile",
    "precision",
    "code_version",
    "torch",
    "torchvision",
    "ffcv",
    "python",
    "hardware",
    "threads",
    "run_id",
]
TIMING_COLUMNS = ["run_id", "seconds", "images_per_s", "data_wait_share", "peak_memory_mb"]
CHANNEL_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "method",
    "w_bits",
    "a_bits",
    "seed",
    "run_id",
    "layer",
    "channel",
    "variance",
    "error_equal",
    "error_inverse_variance",
    "error_median",
]
CHANNEL_SUMMARY_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "method",
    "w_bits",
    "a_bits",
    "variant",
    "seeds",
    "channels",
    "share_of_channels_improved",
    "median_error_equal",
    "median_error_variant",
    "trained_with",
    "top1_mean",
    "top1_std",
    "top1_n",
]
DIRECT_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "w_bits",
    "a_bits",
    "seed",
    "method",
    "status",
    "top1",
    "mismatch_start",
    "mismatch_end",
    "flip_rate_mean",
    "flip_rate_end",
    "used_level_share",
    "run_id",
]
DIRECT_SUMMARY_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "w_bits",
    "a_bits",
    "method",
    "other",
    "n",
    "top1_mean",
    "other_top1_mean",
    "top1_difference_mean",
    "top1_difference_std",
    "mismatch_end",
    "other_mismatch_end",
    "mismatch_end_difference_mean",
    "mismatch_end_difference_std",
    "flip_rate_end",
    "other_flip_rate_end",
]

EPOCH_COLUMNS = [
    "run_id",
    "epoch",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "mismatch",
    "flip_rate",
    "level_span",
    "used_levels",
]
DIAGNOSTIC_COLUMNS = [
    "suite",
    "dataset",
    "arch",
    "method",
    "w_bits",
    "a_bits",
    "seed",
    "role",
    "status",
    "top1",
    "mismatch_start",
    "mismatch_end",
    "flip_rate_first",
    "flip_rate_end",
    "used_level_share",
    "used_level_share_lowest",
    "level_span",
    "dead_channel_share",
    "run_id",
]

VARIANTS = ("equal", "inverse_variance", "median")
TRAINED_WITH = {
    ("direct", "equal"): "direct_plain",
    ("direct", "inverse_variance"): "direct",
    ("direct", "median"): "direct_median",
    ("lq_nets", "equal"): "lq_nets",
    ("lq_nets", "inverse_variance"): "lq_channel_aware",
}
"""The method that trains with an activation weighting, given the method that was measured."""
DIRECT_FAMILY = ("direct", "indirect", "direct_sign")
PERCENT = {"top1", "top5", "fp_top1", "delta", "checkpoint_top1", "val_top1"}


def spread(values: list[float]) -> float | None:
    """Sample standard deviation (ddof 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def as_text(column: str, value: object) -> str:
    """One table cell: fixed float formats, empty for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        percent = column in PERCENT or column.startswith(
            ("top1", "other_top1", "val_top1", "delta", "share")
        )
        return f"{value:.3f}" if percent else f"{value:.6g}"
    return str(value)


def table_text(columns: list[str], rows: list[dict]) -> str:
    """`rows` (dicts; absent keys are empty cells) as CSV with Unix line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([as_text(column, row.get(column)) for column in columns] for row in rows)
    return text.getvalue()


def write_table(path: str | Path, columns: list[str], rows: list[dict]) -> None:
    """Write `rows` as a CSV file with its seal."""
    write_table_text(path, table_text(columns, rows))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file in a run folder; InputError if there is no such file."""
    if not path.exists():
        raise InputError(f"{path} is missing: the run is not complete, run it again")
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    """A JSON file of a run folder; InputError if it is missing or not JSON."""
    if not path.exists():
        raise InputError(f"{path} is missing: the run is not complete, run it again")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}): remove it and run again") from error


def number(text: str) -> float | None:
    return float(text) if text else None


def quantizer_facts(name: str) -> dict[str, str]:
    """Granularity and initialisation of a method's quantizers; empty for full precision."""
    found = find_method(name)
    kinds = [f.func if isinstance(f, partial) else f for f in (found.weight, found.activation)]
    weight, activation = kinds
    return {
        "weight_granularity": weight.GRANULARITY if weight else "",
        "activation_granularity": activation.GRANULARITY if activation else "",
        "init": "; ".join(dict.fromkeys(kind.INIT for kind in kinds if kind)),
    }


def group_setting(groups: dict[str, dict], key: str) -> str:
    """`codes=0;levels=0.1`: one setting of every quantizer parameter group."""
    return ";".join(f"{name}={groups[name][key]:g}" for name in sorted(groups))


def result_row(suite: str, folder: Path, role: str) -> dict:
    """One row of results.csv from a run folder, without what other runs determine."""
    config, final = read_json(folder / "config.json"), read_json(folder / "final.json")
    layers = read_json(folder / "layers.json")
    recipe, policy, versions = config["recipe"], config["policy"], final["versions"]
    done = final["status"] == "done"
    copied = ("dataset", "arch", "method", "w_bits", "a_bits", "seed", "code_version")
    return {
        **{key: config[key] for key in copied},
        **{key: versions.get(key) for key in ("torch", "torchvision", "ffcv", "python")},
        **{
            key: final.get(key)
            for key in ("status", "diverged_layer", "size_bytes", "bitops", "hardware")
        },
        **{
            key: recipe.get(key)
            for key in (
                "schedule",
                "batch_size",
                "augmentation",
                "train_images",
                "val_images",
                "precision",
            )
        },
        **quantizer_facts(config["method"]),
        "suite": suite,
        "role": role,
        "width": config["arch_options"].get("width"),
        "restarts": len(final["diverged_before"]),
        "top1": float(final["top1"]) if done else None,
        "top5": float(final["top5"]) if done else None,
        "val_top1": float(final["val_top1"]) if done else None,
        "epochs": final["epochs_done"],
        "first_last": policy["first_last"],
        "shortcut": policy["shortcut"],
        "exceptions": json.dumps(policy["exceptions"], sort_keys=True)
        if policy["exceptions"]
        else "",
        "signed_layers": sum(
            1 for layer in layers if layer["status"] == "quantized" and layer["signed"]
        ),
        "pretrained": config["pretrained"],
        "quantizer_weight_decay": group_setting(recipe["quantizer_groups"], "weight_decay"),
        "quantizer_lr_scale": group_setting(recipe["quantizer_groups"], "lr_scale"),
        "epoch_reported": "final",
        "lr": float(final["lr"]),
        "weight_decay": float(recipe["weight_decay"]),
        "loader": final["loader"],
        "compile": final["compile"],
        "threads": final["threads"],
        "run_id": folder.name,
    }


def sort_key(row: dict) -> tuple:
    return (
        row["dataset"],
        row["arch"],
        row["w_bits"],
        row["a_bits"],
        row["method"],
        row["seed"],
        ROLES.index(row["role"]),
        row["run_id"],
    )


def collect_results(suite: str, runs: Path, roles: dict[str, str]) -> list[dict]:
    """All rows of results.csv, with each run's distance to full precision. Percent values."""
    rows = [result_row(suite, runs / run_id, role) for run_id, role in roles.items()]
    full_precision = {
        (row["dataset"], row["arch"], row["seed"]): row["top1"]
        for row in rows
        if row["method"] == "fp" and row["role"] == "run"
    }
    checkpoints: dict[str, float] = {}
    for row in rows:
        source = row["run_id"] if row["role"] == "checkpoint" else row["pretrained"]
        if source and source not in checkpoints:
            checkpoints[source] = read_json(runs / source / "final.json")["top1"]
        row["checkpoint_top1"] = checkpoints.get(source)
        if row["role"] != "checkpoint":
            row["fp_top1"] = full_precision.get((row["dataset"], row["arch"], row["seed"]))
        if row["top1"] is not None and row.get("fp_top1") is not None:
            row["delta"] = row["top1"] - row["fp_top1"]
    return sorted(rows, key=sort_key)


def collect_timings(runs: Path, results: list[dict]) -> list[dict]:
    """Seconds in all, median images a second and wait share, peak MB, for every run."""
    rows = []
    for run_id in sorted(row["run_id"] for row in results):
        epochs = read_rows(runs / run_id / "timings.csv")
        column = {
            name: [value for row in epochs if (value := number(row[name])) is not None]
            for name in TIMING_COLUMNS[1:]
        }
        rows.append(
            {
                "run_id": run_id,
                "seconds": sum(column["seconds"]),
                "images_per_s": median(column["images_per_s"]) if column["images_per_s"] else None,
                "data_wait_share": median(column["data_wait_share"])
                if column["data_wait_share"]
                else None,
                "peak_memory_mb": max(column["peak_memory_mb"], default=None),
            }
        )
    return rows


def collect_channel_error(runs: Path, results: list[dict]) -> list[dict]:
    """One row per run, layer and channel of the runs that measured their channels."""
    rows = []
    for run in results:
        path = runs / run["run_id"] / "channel_error.csv"
        measured = run["method"] in ("direct", "lq_nets") and run["a_bits"] != FLOAT_BITS
        if not measured or run["status"] != "done":
            continue
        for channel in read_rows(path):
            rows.append(
                {
                    **{key: run[key] for key in CHANNEL_COLUMNS[:8]},
                    "layer": channel["layer"],
                    "channel": int(channel["channel"]),
                    **{key: number(channel[key]) for key in CHANNEL_COLUMNS[10:]},
                }
            )
    return rows


def example_channels(channels: list[dict]) -> list[dict]:
    """The rows of the one direct run that the heat map shows."""
    run = representative(
        row for row in channels if row["method"] == "direct" and row["error_equal"]
    )
    return [row for row in channels if run is not None and row["run_id"] == run["run_id"]]


def summarize_channel_error(channels: list[dict], results: list[dict]) -> list[dict]:
    """Per setting and variant: share of channels whose error falls, median error, top-1."""
    settings: dict[tuple, list[dict]] = {}
    for row in channels:
        if row["error_equal"] is not None:
            settings.setdefault(tuple(row[key] for key in CHANNEL_COLUMNS[:6]), []).append(row)
    summary = []
    for setting, rows in sorted(settings.items()):
        _suite, dataset, arch, method, w_bits, a_bits = setting
        equal = [row["error_equal"] for row in rows]
        for variant in VARIANTS:
            errors = [row[f"error_{variant}"] for row in rows]
            improved = [new < old for new, old in zip(errors, equal, strict=True)]
            trained = TRAINED_WITH.get((method, variant))
            top1 = [
                row["top1"]
                for row in results
                if row["method"] == trained
                and row["top1"] is not None
                and (row["dataset"], row["arch"], row["w_bits"], row["a_bits"])
                == (dataset, arch, w_bits, a_bits)
            ]
            summary.append(
                {
                    **dict(zip(CHANNEL_COLUMNS[:6], setting, strict=True)),
                    "variant": variant,
                    "seeds": len({row["seed"] for row in rows}),
                    "channels": len(rows),
                    "share_of_channels_improved": 100.0 * mean(improved)
                    if variant != "equal"
                    else None,
                    "median_error_equal": median(equal),
                    "median_error_variant": median(errors),
                    "trained_with": trained,
                    "top1_mean": mean(top1) if top1 else None,
                    "top1_std": spread(top1),
                    "top1_n": len(top1),
                }
            )
    return summary


def weight_epochs(folder: Path) -> list[dict]:
    """weight_state.csv as means over the layers: one row an epoch, from 0 (before training).

    level_span is the distance of the outer levels, 1 before training.
    """
    path = folder / "weight_state.csv"
    if not path.exists():  # nothing is quantized
        return []
    states = read_rows(path)
    first = states[0]["epoch"]
    start = {row["layer"]: _span(row) for row in states if row["epoch"] == first}
    epochs: dict[int, list[dict]] = {}
    for row in states:
        epochs.setdefault(int(row["epoch"]), []).append(row)
    return [
        {
            "epoch": epoch,
            "mismatch": _mean(finite(row["mismatch"]) for row in rows),
            "flip_rate": _mean(finite(row["flip_rate"]) for row in rows),
            "level_span": _mean(
                _span(row) / start[row["layer"]] for row in rows if start[row["layer"]]
            ),
            "used_levels": _mean(finite(row["used_levels"]) for row in rows),
            "used_levels_lowest": min(float(row["used_levels"]) for row in rows),
        }
        for epoch, rows in sorted(epochs.items())
    ]


def _span(row: dict[str, str]) -> float:
    return float(row["level_max"]) - float(row["level_min"])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return mean(known) if known else None


def finite(text: str) -> float | None:
    """The number; None for an empty cell, NaN and infinity (of a run that diverged)."""
    value = number(text)
    return value if value is not None and math.isfinite(value) else None


def weight_facts(folder: Path) -> dict[str, float | None]:
    """Mismatch, flip rate, levels of one run at the start and at the end, as means over its layers."""
    epochs = weight_epochs(folder)
    if not epochs:
        return {}
    first, last = epochs[0], epochs[-1]
    return {
        "mismatch_start": first["mismatch"],
        "mismatch_end": last["mismatch"],
        "flip_rate_mean": _mean(row["flip_rate"] for row in epochs[1:]),
        "flip_rate_first": epochs[1]["flip_rate"] if len(epochs) > 1 else None,
        "flip_rate_end": last["flip_rate"],
        "used_level_share": last["used_levels"],
        "used_level_share_lowest": last["used_levels_lowest"],
        "level_span": last["level_span"],
    }


def collect_epochs(runs: Path, results: list[dict]) -> list[dict]:
    """Losses, accuracies and weights' state of every run, epoch by epoch."""
    rows = []
    for run_id in sorted(row["run_id"] for row in results):
        epochs = {row["epoch"]: row for row in weight_epochs(runs / run_id)}
        metrics = runs / run_id / "metrics.csv"
        for row in read_rows(metrics) if metrics.exists() else []:  # none: it had 0 epochs
            values = {key: finite(row[key]) for key in EPOCH_COLUMNS[2:6]}
            epochs.setdefault(int(row["epoch"]), {}).update(values)
        rows += [{**row, "run_id": run_id, "epoch": epoch} for epoch, row in sorted(epochs.items())]
    return rows


def collect_diagnostics(runs: Path, results: list[dict]) -> list[dict]:
    """How codes and levels moved in every quantized run, and its dead channels where measured."""
    rows = []
    for run in results:
        if run["w_bits"] == FLOAT_BITS and run["a_bits"] == FLOAT_BITS:
            continue
        folder, dead = runs / run["run_id"], None
        if (folder / "channel_error.csv").exists():
            dead = _mean(
                float(row["error_equal"] == "") for row in read_rows(folder / "channel_error.csv")
            )
        rows.append({**run, **weight_facts(folder), "dead_channel_share": dead})
    return rows


def representative(rows: Iterable[dict]) -> dict | None:
    """One run to look at closely: W2A2 if there is one, the arch with most seeds, lowest seed."""
    rows = list(rows)
    seeds: dict[tuple, set[int]] = {}
    for row in rows:
        seeds.setdefault((row["dataset"], row["arch"]), set()).add(row["seed"])

    def order(row: dict) -> tuple:
        where = row["dataset"], row["arch"]
        two_bits = (row["w_bits"], row["a_bits"]) == (2, 2)
        return not two_bits, -len(seeds[where]), *where, row["w_bits"], row["a_bits"], row["seed"]

    return min(rows, key=order, default=None)


def collect_histograms(runs: Path, results: list[dict]) -> dict:
    """weight_histograms.json of the representative direct run: {"run_id": ..., "layers": ...}."""
    run = representative(
        row
        for row in results
        if (row["method"], row["role"], row["status"]) == ("direct", "run", "done")
    )
    path = runs / run["run_id"] / "weight_histograms.json" if run else None
    if path is None or not path.exists():
        return {"run_id": None, "layers": {}}
    return {"run_id": run["run_id"], "layers": read_json(path)}


def collect_direct_weights(runs: Path, results: list[dict]) -> list[dict]:
    """Direct and its counterparts, at the settings where a counterpart ran."""
    setting = ("dataset", "arch", "w_bits", "a_bits")
    family = [
        row for row in results if row["method"] in DIRECT_FAMILY and row["w_bits"] != FLOAT_BITS
    ]
    compared = {tuple(row[key] for key in setting) for row in family if row["method"] != "direct"}
    rows = [row for row in family if tuple(row[key] for key in setting) in compared]
    facts = [
        {**row, **(weight_facts(runs / row["run_id"]) if row["status"] == "done" else {})}
        for row in rows
    ]
    return sorted(
        facts,
        key=lambda row: (
            *(row[key] for key in setting),
            row["seed"],
            DIRECT_FAMILY.index(row["method"]),
        ),
    )


def summarize_direct_weights(rows: list[dict]) -> list[dict]:
    """Direct minus each counterpart, paired by seed: mean, std (ddof 1) and n."""
    setting = ("suite", "dataset", "arch", "w_bits", "a_bits")
    runs = {
        (tuple(row[key] for key in setting), row["method"], row["seed"]): row
        for row in rows
        if row["status"] == "done"
    }
    summary = []
    for where in sorted({key[0] for key in runs}):
        for other in DIRECT_FAMILY[1:]:
            pairs = [
                (run, runs[where, other, seed])
                for (place, method, seed), run in sorted(runs.items(), key=lambda kv: kv[0][2])
                if place == where and method == "direct" and (where, other, seed) in runs
            ]
            if not pairs:
                continue

            def average(index: int, column: str, pairs: list[tuple] = pairs) -> float | None:
                values = [p[index][column] for p in pairs if p[index][column] is not None]
                return mean(values) if values else None

            accuracy = [a["top1"] - b["top1"] for a, b in pairs]
            mismatch = [a["mismatch_end"] - b["mismatch_end"] for a, b in pairs]
            summary.append(
                {
                    **dict(zip(setting, where, strict=True)),
                    "method": "direct",
                    "other": other,
                    "n": len(pairs),
                    "top1_mean": average(0, "top1"),
                    "other_top1_mean": average(1, "top1"),
                    "top1_difference_mean": mean(accuracy),
                    "top1_difference_std": spread(accuracy),
                    "mismatch_end": average(0, "mismatch_end"),
                    "other_mismatch_end": average(1, "mismatch_end"),
                    "mismatch_end_difference_mean": mean(mismatch),
                    "mismatch_end_difference_std": spread(mismatch),
                    "flip_rate_end": average(0, "flip_rate_end"),
                    "other_flip_rate_end": average(1, "flip_rate_end"),
                }
            )
    return summary


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--runs", required=True, type=Path, help="folder of run folders")
    parser.add_argument("--jobs", required=True, nargs="+", help="job files of the suite")
    outputs = (
        "results",
        "timings",
        "channel-error",
        "channel-summary",
        "direct-weights",
        "direct-summary",
        "epochs",
        "diagnostics",
        "histograms",
    )
    for name in outputs:
        parser.add_argument(f"--{name}", help=f"write this file ({name})")
    args = parser.parse_args(argv)

    check_jobs(args.jobs, args.runs)
    results = collect_results(args.suite, args.runs, read_jobs(args.jobs))
    if args.results:
        write_table(args.results, RESULT_COLUMNS, results)
    if args.timings:
        write_table(args.timings, TIMING_COLUMNS, collect_timings(args.runs, results))
    if args.epochs:
        write_table(args.epochs, EPOCH_COLUMNS, collect_epochs(args.runs, results))
    if args.diagnostics:
        write_table(args.diagnostics, DIAGNOSTIC_COLUMNS, collect_diagnostics(args.runs, results))
    if args.histograms:
        write_json(args.histograms, collect_histograms(args.runs, results))
    if args.channel_error or args.channel_summary:
        channels = collect_channel_error(args.runs, results)
        if args.channel_error:
            write_table(args.channel_error, CHANNEL_COLUMNS, channels)
        if args.channel_summary:
            summary = summarize_channel_error(channels, results)
            write_table(args.channel_summary, CHANNEL_SUMMARY_COLUMNS, summary)
    if args.direct_weights or args.direct_summary:
        rows = collect_direct_weights(args.runs, results)
        if args.direct_weights:
            write_table(args.direct_weights, DIRECT_COLUMNS, rows)
        if args.direct_summary:
            write_table(args.direct_summary, DIRECT_SUMMARY_COLUMNS, summarize_direct_weights(rows))


if __name__ == "__main__":
    run_cli(main)
