"""Tables for docs/ of what training has shown, from the committed records."""

from collections.abc import Iterator
from statistics import mean

import pandas as pd

from lowbit_core.quantizers.bits import bits_label
from workflow.results.analysis import spread
from workflow.results.claims import ALL, difference_text, p_text
from workflow.results.columns import REFERENCE, grouped, read_table
from workflow.results.compare import FEWEST, Difference, difference, judge, pair_runs
from workflow.results.labels import arch_name, method_label, method_order
from workflow.results.main_table import markdown_table, mean_text
from workflow.results.record import Record, mean_of, start_of
from workflow.results.variants import measured, variant_rows
from workflow.suite.suite import ROOT

TRAINING_COLUMNS = (
    ("training loss", "train_loss", "{:.3f}"),
    ("codes that change", "flip_rate", "{:.1%}"),
    ("mismatch", "mismatch", "{:.3f}"),
)
"""What a table shows of an epoch: its name, the column of the record, and the form of a number."""
RESNET = "resnet20"  # the network of most suites, which their headings do not name
TRAINING_BITS = ((32, 32), (2, 2), (1, 2))  # of weights and activations, as all after it
QUESTIONS = (
    *(("direct", "indirect"), ("direct", "direct_plain"), ("lq_channel_aware", "lq_nets")),
    *(("direct", "lq_nets"), ("direct", "lsq"), ("direct", "pact")),
)
FRESH = (
    ("fresh seeds, W2A2", "claims_confirmed", "finetune"),
    ("fresh seeds, W2A2, slower levels", "claims_confirmed", "levels_slower"),
    ("fresh seeds, W1A2, slower levels", "claims_confirmed_w1a2", "levels_slower"),
)
"""Columns of the table of the questions: its heading, the suite, and the recipe of `direct`."""
SLOWED = ("direct", "indirect")  # the methods that the recipes of these suites train differently
DECOMPOSITION = ((2, 32), (32, 2), (2, 4), (4, 2), (2, 2))


class NotMeasured(Exception):
    """The figures of a table are not among the committed ones."""


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table, its first column flush left; cells without a value are empty."""
    header = [str(name) for name in table.columns]
    rows = [["" if pd.isna(cell) else str(cell) for cell in row] for row in table.to_numpy()]
    return markdown_table(header, rows, "l" + "r" * (len(header) - 1))


def _table(suite: str, name: str) -> list[dict]:
    path = REFERENCE / suite / name
    if not path.exists():
        raise NotMeasured(f"{path.relative_to(ROOT)} is missing (`snakemake reference` makes it)")
    return read_table(path)


def _record(suite: str) -> Record:
    folder = REFERENCE / suite / "record"
    if not folder.exists():
        raise NotMeasured(f"{folder.relative_to(ROOT)} is missing (the suite `{suite}` makes it)")
    return Record(folder)


def claims_accuracy() -> str:
    return _accuracy("claims")


def cifar100_full_accuracy() -> str:
    return _accuracy("cifar100_full")


def zoo_accuracy() -> str:
    return _accuracy("zoo")


def cpu_short_accuracy() -> str:
    return _accuracy("cpu_short")


def architectures_accuracy() -> str:
    return _accuracy("architectures", ("alexnet", "mobilenetv2"))


def _accuracy(suite: str, archs: tuple[str, ...] = (RESNET,)) -> str:
    """Test top-1 of every method and setting without options: mean, spread, seeds."""
    runs = [run for run in _table(suite, "results.csv") if run["role"] != "checkpoint"]
    runs = [run for run in runs if run["arch"] in archs]
    runs = [run for run in runs if run["status"] == "done" and not run["options"]]
    settings = sorted({_setting(run) for run in runs if run["method"] != "fp"}, key=_setting_order)
    first = {arch: (arch, bits) for arch, bits in reversed(settings)}  # shows full precision, too
    rows = []
    for method, mine in sorted(grouped(runs, "method").items(), key=lambda m: method_order(m[0])):
        row = {"method": method_label(method)}
        for setting in settings:
            at = [first.get(run["arch"]) if method == "fp" else _setting(run) for run in mine]
            top1 = [run["top1"] for run, its in zip(mine, at, strict=True) if its == setting]
            cell = f"{mean_text(mean(top1), spread(top1))} ({len(top1)})" if top1 else ""
            row[_setting_heading(*setting)] = cell
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def _setting(run: dict) -> tuple[str, str]:
    return run["arch"], bits_label(run["w_bits"], run["a_bits"])


def _setting_order(setting: tuple[str, str]) -> tuple:
    """W2A2 first, then those of few bits on both sides."""
    arch, bits = setting
    return arch, bits != "W2A2", len(bits), bits


def _setting_heading(arch: str, bits: str) -> str:
    return bits if arch == RESNET else f"{arch_name(arch)} {bits}"


def claims_training() -> str:
    """How the runs of `claims` trained: means over seeds at the first and the last epoch."""
    record = _record("claims")
    groups: dict[tuple[int, int, str], list[list[dict]]] = {}
    for run in record.trained:
        config = run["config"]
        if run["role"] == "checkpoint" or run["final"]["status"] != "done":
            continue
        key = config["w_bits"], config["a_bits"], config["method"]
        epochs = [row for row in record.epochs[config["run_id"]] if row["epoch"]]
        groups.setdefault(key, []).append(epochs)
    rows = []
    for bits in TRAINING_BITS:
        methods = sorted((method for *own, method in groups if (*own,) == bits), key=method_order)
        for method in methods:
            runs = groups[*bits, method]
            row = {"bits": bits_label(*bits), "method": method_label(method), "n": str(len(runs))}
            for name, column, text in TRAINING_COLUMNS:
                for when, at in (("first", 0), ("last", -1)):
                    values = [epochs[at][column] for epochs in runs]
                    shown = "" if None in values else text.format(mean_of(values))
                    row[f"{name}, {when} epoch"] = shown
            rows.append(row)
    return markdown(pd.DataFrame(rows))


def claims_answers() -> str:
    return _comparisons("claims")


def paper_questions() -> str:
    """The differences that answer the paper's questions: in `claims`, and on fresh seeds."""
    rows = {
        (row["method"], row["other"], row["bits"]): row for row in _table("claims", "claims.csv")
    }
    trained = {suite: grouped(_runs(suite), "method") for _, suite, _ in FRESH}
    cells = []
    for method, other in QUESTIONS:
        cells.append({"method": method_label(method), "against": method_label(other)})
        for bits in ("W2A2", "W1A2"):
            row = rows.get((method, other, bits))
            cells[-1][bits] = f"{difference_text(row)}, n = {row['n']}" if row else ""
        for heading, suite, recipe in FRESH:
            both = [_of_recipe(trained[suite].get(name, []), recipe) for name in (method, other)]
            found = difference([pair_runs(*both).differences])
            text = f"{difference_text(found.columns)}, n = {found.n}" if found.n else ""
            cells[-1][heading] = text
    return markdown(pd.DataFrame(cells))


def _runs(suite: str) -> list[dict]:
    """What a suite trained from its starts: configuration, final record and starting network."""
    return [
        {**run["config"], **run["final"], "pretrained": start_of(run)}
        for run in _record(suite).trained
        if run["role"] != "checkpoint"
    ]


def _of_recipe(runs: list[dict], recipe: str) -> list[dict]:
    """The runs by a recipe, or by another one that trains their method in the same way."""
    named = [run for run in runs if run["recipe"]["name"] == recipe]
    return named or [run for run in runs if run["method"] not in SLOWED]


def claims_decomposition() -> str:
    """Test top-1 of `direct` with few bits in weights, activations or both, and the loss to `fp`.

    Bits with fewer than three starts are left out, and all rows are of the starts that they have in
    common. A loss is paired by start.
    """
    runs = [run for run in _table("claims", "results.csv") if run["status"] == "done"]
    trained = grouped((run for run in runs if not run["options"]), "method")
    by_bits = grouped(trained.get("direct", []), "w_bits", "a_bits")
    full = [run for run in trained.get("fp", []) if run["role"] != "checkpoint"]
    pairs = {bits: pair_runs(by_bits.get(bits, []), full, "top1") for bits in DECOMPOSITION}
    shown = [bits for bits in DECOMPOSITION if len(pairs[bits].keys) >= FEWEST]
    common = set.intersection({*pairs[(2, 2)].keys}, *({*pairs[bits].keys} for bits in shown))
    if len(shown) < 2 or len(common) < FEWEST:
        raise NotMeasured(f"of `direct` fewer than {FEWEST} starts have several of these bits")
    rows = []
    for bits in shown:
        found = pairs[bits].only(common)
        top1 = [mine["top1"] for mine, _ in found.runs]
        middle = mean_text(mean(top1), spread(top1))
        loss = difference_text(difference([found.differences]).columns)
        rows.append({"bits": bits_label(*bits), "top-1": middle, "minus full precision": loss})
        rows[-1]["n"] = str(len(top1))
    return markdown(pd.DataFrame(rows))


def zoo_answers() -> str:
    return _comparisons("zoo")


def cpu_short_answers() -> str:
    return _comparisons("cpu_short")


def zoo_options() -> str:
    """Test top-1 without and with each option, the difference and the verdict."""
    rows = [
        {
            "option": row["value"] + (f", with {row['base']}" if row["base"] else ""),
            "bits": bits_label(row["w_bits"], row["a_bits"]),
            "method": method_label(row["method"]),
            "off": f"{row['top1_off_mean']:.2f}",
            "on": f"{row['top1_on_mean']:.2f}",
            "difference": difference_text(row),
            "verdict": row["verdict"],
        }
        for row in _table("zoo", "ablation_options.csv")
    ]
    return markdown(pd.DataFrame(rows))


def architectures_answers() -> str:
    return _comparisons("architectures")


def _comparisons(suite: str) -> str:
    """The difference of every comparison of a suite: each setting, all of them, the verdict."""
    rows = _table(suite, "claims.csv")
    settings = {(row["arch"], row["bits"]) for row in rows if ALL not in (row["arch"], row["bits"])}
    return markdown(pd.DataFrame(_answers(rows, sorted(settings, key=_setting_order))))


def _answers(rows: list[dict], settings: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    for (_, method, other), mine in grouped(rows, "claim", "method", "other").items():
        (primary,) = (row for row in mine if row["primary"])
        found = {(row["arch"], row["bits"]): row for row in mine}
        cells = {"method": method_label(method), "against": method_label(other)}
        for setting in settings:
            row = found.get(setting)
            cells[_setting_heading(*setting)] = (
                f"{difference_text(row)}, n = {row['n']}" if row else ""
            )
        if len(settings) > 1:
            cells["over all"] = f"{difference_text(primary)}, n = {primary['n']}"
        yield cells | {"p, adjusted": p_text(primary), "verdict": primary["verdict"]}


def claims_choices() -> str:
    return _variants("claims_choices")


def claims_rates() -> str:
    return _variants("claims_rates")


def claims_confirmed() -> str:
    return _variants("claims_confirmed")


def claims_confirmed_w1a2() -> str:
    return _variants("claims_confirmed_w1a2")


def cifar100_full_levels() -> str:
    return _variants("cifar100_full_levels")


def _variants(suite: str) -> str:
    """Top-1 of every variant of the method's choices, and its difference, by the suite's images."""
    cells = []
    record = _record(suite)
    measure = measured(record.settings["suite"])
    heading = {"val_top1": "validation top-1", "top1": "test top-1"}[measure]
    rows = variant_rows(record.settings["suite"], record.runs)
    has_bits = len({row["bits"] for row in rows}) > 1
    for row in rows:
        middle = mean_text(row[f"{measure}_mean"], row[f"{measure}_std"])
        cells.append({"bits": row["bits"]} if has_bits else {})
        cells[-1] |= {"method": method_label(row["method"]), "what it changes": row["change"] or ""}
        cells[-1][heading] = f"{middle} ({row['n']})"
        if row.get("p") is not None:
            cells[-1] |= {"difference": difference_text(row), "p, adjusted": p_text(row)}
            cells[-1]["verdict"] = row["verdict"]
    return markdown(pd.DataFrame(cells))


def precision() -> str:
    """Validation top-1 of training in bfloat16 minus float32, paired by start, by the one rule."""
    runs = [run | {"precision": run["recipe"]["precision"]} for run in _runs("precision")]
    rows, quantized = [], []
    for method, mine in grouped(runs, "method").items():
        both = grouped(mine, "precision")
        pairs = pair_runs(both.get("bf16", []), both.get("fp32", []), "val_top1")
        found = difference([pairs.differences], pairs.diverged, pairs.other_diverged)
        bf16, fp32 = (mean_of(pair[i]["val_top1"] for pair in pairs.runs) for i in (0, 1))
        rows.append({"method": method, "found": found, "fp32": fp32, "bf16": bf16})
        if method != "fp":  # it tells nothing of quantizers, and would hide what they lose
            quantized.append(dict(zip(pairs.keys, pairs.differences, strict=True)))
    judge(rows)
    rows.sort(key=lambda row: method_order(row["method"]))
    # Runs that share their start are not independent: each start counts once, by its mean over the
    # methods. Starts that a method lacks would add differences between methods.
    common = set.intersection(*map(set, quantized)) if quantized else set()
    means = [mean_of(found[key] for found in quantized) for key in sorted(common)]
    rows.append({"found": difference([means])})
    judge(rows[-1:])
    return markdown(pd.DataFrame(map(_precision_cells, rows)))


def _precision_cells(row: dict) -> dict[str, str]:
    found: Difference = row["found"]
    cells = {"method": method_label(row["method"]) if "method" in row else "quantized methods"}
    for name in ("fp32", "bf16"):
        cells[name] = f"{row[name]:.2f}" if row.get(name) is not None else ""
    cells |= {"n": str(found.n), "bf16 minus fp32": difference_text(found.columns)}
    return cells | {"verdict": row["verdict"]}
