"""From a record to its tidy tables: results, timings, epochs, diagnostics and the ablations."""

import json
from functools import cache
from statistics import mean, median, stdev

from baselines import method as find_method
from lowbit_core.quantizers.basis_activation import WEIGHTINGS
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.errors import InputError
from workflow.comparisons import load_comparisons
from workflow.results.columns import grouped
from workflow.results.compare import difference, judge, pair_runs
from workflow.results.record import Record, mean_of, start_of
from workflow.suite.jobs import ROLES
from workflow.suite.options import option_pairs, option_text, options_of

SETTING = ("dataset", "arch", "w_bits", "a_bits")
TIMINGS = {"seconds": sum, "images_per_s": median, "data_wait_share": median, "peak_memory_mb": max}
"""Columns of timings.csv -> what is made of the values of the epochs."""
MEANS = {"top1": "top1_mean", "mismatch_end": "mismatch_end", "flip_rate_end": "flip_rate_end"}
"""Columns whose means ablation_direct_weights_summary.csv has for a method and another."""


def spread(values: list[float]) -> float | None:
    """Sample standard deviation (ddof 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def mean_and_spread(runs: list[dict], column: str) -> dict:
    """n, diverged, mean and std of a column, which is None for the runs that diverged."""
    known = [run[column] for run in runs if run[column] is not None]
    middle = mean(known) if known else None
    found = {f"{column}_mean": middle, f"{column}_std": spread(known)}
    return {"n": len(known), "diverged": len(runs) - len(known), **found}


def setting_of(row: dict) -> tuple:
    """The data set, the network and the bits of a row."""
    return tuple(row[key] for key in SETTING)


# -- results.csv, timings.csv, epochs.csv, diagnostics.csv -------------------------------------


@cache
def quantizer_facts(name: str, w_bits: int, a_bits: int) -> dict[str, str]:
    """Granularity and initialisation of a method's quantizers; empty for full precision."""
    kinds = find_method(name).kinds(w_bits, a_bits)
    weight, activation = [kind.GRANULARITY for kind in kinds] or ("", "")
    init = "; ".join(dict.fromkeys(kind.INIT for kind in kinds))
    return {"weight_granularity": weight, "activation_granularity": activation, "init": init}


def group_setting(groups: dict[str, dict], key: str) -> str:
    """`codes=0;levels=0.1`: one setting of every quantizer parameter group."""
    return ";".join(f"{name}={groups[name][key]:g}" for name in sorted(groups))


def result_row(suite: str, run: dict) -> dict:
    """One row of results.csv, without what other runs determine."""
    config, final = run["config"], run["final"]
    recipe, exceptions = config["recipe"], config["policy"]["exceptions"]
    accuracies = dict.fromkeys(("top1", "top5", "val_top1"))
    if final["status"] == "done":
        accuracies = {key: float(final[key]) for key in accuracies}
    return {
        **recipe,  # what has no line below stands in one of these under its column's name
        **config["policy"],
        **config,
        **final,
        **final["versions"],
        **quantizer_facts(config["method"], config["w_bits"], config["a_bits"]),
        **accuracies,
        "pretrained": start_of(run),
        "suite": suite,
        "width_of": run.get("width_of"),  # not a column
        "role": run["role"],
        "width": config["arch_options"].get("width"),
        "restarts": len(final["diverged_before"]),
        "checkpoint_top1": run["checkpoint_top1"],
        "epochs": final["epochs_done"],
        "exceptions": json.dumps(exceptions, sort_keys=True) if exceptions else "",
        "signed_layers": run["signed_layers"],
        "zero_level": {True: "yes", False: "no"}.get(run.get("zero_level")),
        "quantizer_weight_decay": group_setting(recipe["quantizer_groups"], "weight_decay"),
        "quantizer_lr_scale": group_setting(recipe["quantizer_groups"], "lr_scale"),
        "epoch_reported": "final",
        "options": option_text(options_of(recipe)),
        "lr": float(final["lr"]),
        "weight_decay": float(recipe["weight_decay"]),
    }


def results(record: Record) -> list[dict]:
    """All rows of results.csv, with each run's distance to full precision. Percent values."""
    rows = [result_row(record.suite, run) for run in record.runs]
    full_precision = {
        (row["dataset"], row["arch"], row["seed"]): row["top1"]
        for row in rows
        if row["method"] == "fp" and row["role"] == "run"
    }
    for row in rows:
        if row["role"] == "checkpoint":
            row["checkpoint_top1"] = row["top1"]
            continue
        row["fp_top1"] = full_precision.get((row["dataset"], row["arch"], row["seed"]))
        if row["top1"] is not None and row["fp_top1"] is not None:
            row["delta"] = row["top1"] - row["fp_top1"]

    def order(row: dict) -> tuple:
        return *setting_of(row), row["method"], row["seed"], ROLES.index(row["role"]), row["run_id"]

    return sorted(rows, key=order)


def timings(record: Record) -> list[dict]:
    """Seconds in all, median images a second and wait share, peak MB, for every run."""
    rows = []
    for run_id in sorted(run["config"]["run_id"] for run in record.trained):
        row = {"run_id": run_id, "seconds": 0}
        for key, statistic in TIMINGS.items():
            values = [epoch[key] for epoch in record.epochs.get(run_id, [])]
            if known := [value for value in values if value is not None]:
                row[key] = statistic(known)
        rows.append(row)
    return rows


def weight_facts(record: Record, run_id: str) -> dict[str, float | None]:
    """Mismatch, flip rate, levels of one run at its start and its end, as means over its layers."""
    epochs = [row for row in record.epochs.get(run_id, []) if row["used_levels"] is not None]
    if not epochs:
        return {}
    first, last = epochs[0], epochs[-1]
    return {
        "mismatch_start": first["mismatch"],
        "mismatch_end": last["mismatch"],
        "flip_rate_mean": mean_of(row["flip_rate"] for row in epochs[1:]),
        "flip_rate_first": epochs[1]["flip_rate"] if len(epochs) > 1 else None,
        "flip_rate_end": last["flip_rate"],
        "used_level_share": last["used_levels"],
        "used_level_share_lowest": last["used_levels_lowest"],
        "level_span": last["level_span"],
        "oscillating": last.get("oscillating"),
    }


def diagnostics(record: Record, runs: list[dict]) -> list[dict]:
    """How codes and levels moved in every quantized run, and its dead channels where measured."""
    rows = []
    for run in runs:
        if run["w_bits"] == FLOAT_BITS and run["a_bits"] == FLOAT_BITS or run["width_of"]:
            continue
        channels = record.channels.get(run["run_id"], [])
        dead = mean_of(float(row["error_equal"] is None) for row in channels)
        rows.append({**run, **weight_facts(record, run["run_id"]), "dead_channel_share": dead})
    return rows


# -- ablation: channel errors ----------------------------------------------------------------


def channel_errors(record: Record, runs: list[dict]) -> list[dict]:
    """One row per run, layer and channel of the finished runs that measured their channels."""
    return [
        {**run, **channel}
        for run in runs
        if run["status"] == "done" and run["role"] != "option"
        for channel in record.channels.get(run["run_id"], [])
    ]


def summarize_channel_errors(channels: list[dict], runs: list[dict]) -> list[dict]:
    """Per setting and weighting: share of channels whose error falls, median error, top-1."""
    measured = [row for row in channels if row["error_equal"] is not None]
    summary = []
    for _, rows in sorted(grouped(measured, "dataset", "arch", "method", *SETTING[2:]).items()):
        equal = [row["error_equal"] for row in rows]
        here = [run for run in runs if setting_of(run) == setting_of(rows[0])]
        here = [run for run in here if run["role"] != "option"]
        trained_with = load_comparisons().channel_error.get(rows[0]["method"], {})
        for weighting in WEIGHTINGS:
            errors = [row[f"error_{weighting}"] for row in rows]
            improved = [new < old for new, old in zip(errors, equal, strict=True)]
            trained = trained_with.get(weighting)
            top1 = mean_and_spread([run for run in here if run["method"] == trained], "top1")
            share = 100.0 * mean(improved) if weighting != "equal" else None
            summary.append({
                **rows[0],
                **top1,
                "variant": weighting,
                "seeds": len({row["seed"] for row in rows}),
                "channels": len(rows),
                "share_of_channels_improved": share,
                "median_error_equal": median(equal),
                "median_error_variant": median(errors),
                "trained_with": trained,
                "top1_n": top1["n"],
            })  # fmt: skip
    return summary


# -- ablation: direct weights ----------------------------------------------------------------


def direct_weights(record: Record, runs: list[dict]) -> list[dict]:
    """The runs of both methods of each pair that is compared, at the settings where both ran."""
    pairs = load_comparisons().direct_weights
    order = list(dict.fromkeys(name for pair in pairs for name in pair))
    family = [run for run in runs if run["method"] in order and run["w_bits"] != FLOAT_BITS]
    # A lower bit-width of a run with several has no weights of its own to tell of.
    family = [run for run in family if run["role"] != "option" and not run.get("width_of")]
    ran = {(setting_of(run), run["method"]) for run in family}
    both = [(at, pair) for at, _ in ran for pair in pairs if {(at, m) for m in pair} <= ran]
    compared = {(at, name) for at, pair in both for name in pair}
    rows = [
        {**run, **(weight_facts(record, run["run_id"]) if run["status"] == "done" else {})}
        for run in family
        if (setting_of(run), run["method"]) in compared
    ]
    return sorted(rows, key=lambda r: (*setting_of(r), r["seed"], order.index(r["method"])))


def summarize_direct_weights(rows: list[dict]) -> list[dict]:
    """The first method of a pair minus the second, paired by checkpoint and seed."""
    summary = []
    for _, found in sorted(grouped(rows, *SETTING).items()):
        methods = grouped(found, "method")
        for method, other in load_comparisons().direct_weights:
            pairs = pair_runs(methods.get(method, []), methods.get(other, []))
            if not pairs.runs:
                continue
            accuracy = difference([pairs.differences])
            mismatch = [one["mismatch_end"] - two["mismatch_end"] for one, two in pairs.runs]
            row = {key: found[0][key] for key in ("suite", *SETTING)}
            row |= {"method": method, "other": other, "n": accuracy.n, **accuracy.columns}
            row["mismatch_end_difference_mean"] = mean(mismatch)
            row["mismatch_end_difference_std"] = spread(mismatch)
            for column, name in MEANS.items():
                row[name] = mean_of(one[column] for one, _ in pairs.runs)
                row[f"other_{name}"] = mean_of(two[column] for _, two in pairs.runs)
            summary.append(row)
    return summary


# -- ablation: options of a recipe -------------------------------------------------------------


def option_rows(record: Record, results: list[dict]) -> list[dict]:
    """One row for each option with its value, network, bits and method.

    The test accuracies of the runs with the option (on) minus those without it (off). The rows of
    one option and data set are judged together. `results`: the rows of results.csv.
    """
    row_of = {row["run_id"]: row for row in results}
    pairs = []
    for off, on in option_pairs(
        run["config"] | {"pretrained": start_of(run)} for run in record.runs
    ):
        before, after = options_of(off["recipe"]), options_of(on["recipe"])
        added = {name: after[name] for name in after if name not in before}
        row = row_of[on["run_id"]]
        names = {"option": "+".join(sorted(added)), "value": option_text(added)}
        rest = {"off": row_of[off["run_id"]], "on": row, "base": option_text(before)}
        pairs.append({**{key: row[key] for key in (*SETTING, "method")}, **names, **rest})
    rows = []
    for group in grouped(pairs, *SETTING, "method", "option", "value", "base").values():
        off, on = ([pair[key] for pair in group] for key in ("off", "on"))
        if len({run["seed"] for run in on}) < len(on):
            raise InputError(
                f"{on[-1]['run_id']}: option {group[0]['option']!r} has several recipes of suite "
                f"{record.suite!r} to be compared with: ask for it in one of them"
            )
        found = pair_runs(on, off)
        compared = difference([found.differences], found.diverged, found.other_diverged)
        rows.append({
            **group[0],
            "suite": record.suite,
            "n": compared.n,
            "diverged": found.diverged,
            "off_diverged": found.other_diverged,
            "top1_off_mean": mean_of(run["top1"] for _, run in found.runs),
            "top1_on_mean": mean_of(run["top1"] for run, _ in found.runs),
            **compared.columns,
            "found": compared,
        })  # fmt: skip
    for together in grouped(rows, "dataset", "option").values():
        judge(together)
    return sorted(rows, key=lambda row: (row["option"], row["value"], *(row[k] for k in SETTING)))
