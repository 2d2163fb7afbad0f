"""Suites that ask for `oscillation`, `reestimate_batch_norm` or `widths`, and their tables."""

import fake_runs
import pytest
from example_suite import parse
from test_options import by_name, refused, suite_with

from lowbit_core.runtime.run_folder import WIDTHS, RunFolder
from workflow.results import analysis
from workflow.results.record import Record, write_record
from workflow.suite.options import option_pairs
from workflow.suite.suite import load_suite


@pytest.mark.parametrize(
    "option, message",
    (
        ({"oscillation": {}}, "oscillation: 'method' is a required property"),
        ({"oscillation": {"method": "melt"}}, "method: 'melt' is not one of"),
        ({"oscillation": {"method": "track", "weight": 1}}, "unknown key 'weight'"),
        ({"oscillation": {"method": "dampen", "threshold": 1}}, "unknown key 'threshold'"),
        ({"oscillation": {"method": "freeze", "threshold": 0}}, "threshold: 0 is less than"),
        ({"oscillation": {"method": "freeze", "start": 1}}, "start: 1 is greater than"),
        ({"reestimate_batch_norm": 0}, "0 is less than the minimum"),
        ({"widths": {}}, "widths: 'lower' is a required property"),
        ({"widths": {"lower": []}}, r"lower: \[\] should be non-empty"),
        ({"widths": {"lower": ["W3A3"]}}, "W3A3 follows W2A2"),
    ),
)
def test_values_that_are_refused(option, message):
    refused(suite_with([option]), message)


def test_two_runs_with_one_lower_bit_width_are_refused():
    """Each would have a row of its own for it in the main table."""
    made = suite_with([], widths={"lower": ["W1A1"]})
    made["experiments"][0] |= {"methods": ["direct"], "ablations": []}
    refused(made, r"seed and bits \(W1A1\): a table takes one")
    made["experiments"][0] |= {"bits": ["W2A2"]}
    assert len(parse(made).runs) == 2  # the checkpoint and the run


@pytest.mark.parametrize(
    "option", ({"oscillation": {"method": "track"}}, {"widths": {"lower": ["W1A1"]}})
)
def test_what_makes_no_sense_is_refused_and_left_out_of_all(option):
    (name,) = option
    refused(suite_with([option], methods=("fp",)), f"{name}.*'fp' does not quantize weights")
    found = {
        run["method"] for run in parse(suite_with([option], "all")).runs if name in run["recipe"]
    }
    assert "direct" in found and "fp" not in found
    made = suite_with([option])
    made["recipes"]["first"] |= option
    refused(made, f"option '{name}': a checkpoint is not quantized")


def test_the_resolved_recipe_has_the_defaults_of_its_kind_alone():
    options = [{"oscillation": {"method": method}} for method in ("track", "dampen", "freeze")]
    suite = parse(suite_with(options))
    found = [run["recipe"]["oscillation"] for run in suite.runs if "oscillation" in run["recipe"]]
    assert found == [
        {"method": "track", "momentum": 0.001},
        {"method": "dampen", "momentum": 0.001, "start": 0.25, "weight": 0.1},
        {
            "method": "freeze", "momentum": 0.001, "start": 0.25,
            "threshold": 0.1, "threshold_end": 0.01,
        },
    ]  # fmt: skip


def test_a_lower_width_is_compared_with_the_network_of_that_width(tmp_path):
    """Trained alone: W2A2. Read from W3A3 with the option: 5 points less, at its own size."""
    option = {"widths": {"lower": ["W2A2"]}}
    runs, roles = tmp_path / "runs", {}
    for bits, role in (((3, 3), "option"), ((2, 2), "run"), ((3, 3), "run")):
        roles[fake_run(runs, bits, option if role == "option" else {})] = role
    write_record({"suite": "made"}, roles, runs, tmp_path / "record")
    record = Record(tmp_path / "record")
    rows = analysis.results(record)
    (lower,) = [row for row in rows if row["width_of"]]
    assert lower["run_id"] == f"{lower['width_of']}.w2a2" and lower["role"] == "option"
    assert (lower["w_bits"], lower["a_bits"], lower["top1"]) == (2, 2, 50.0)
    assert (lower["size_bytes"], lower["bitops"]) == (1000, 2000)
    alone = next(row for row in rows if row["w_bits"] == 2 and not row["width_of"])
    pairs = option_pairs(run["config"] for run in record.runs)
    assert (alone["run_id"], lower["run_id"]) in [(a["run_id"], b["run_id"]) for a, b in pairs]
    table = {row["w_bits"]: row for row in analysis.option_rows(record, rows)}
    assert table[2]["top1_on_mean"] == 50.0 and table[2]["top1_off_mean"] == alone["top1"]
    assert table[3]["option"] == "widths" and table[3]["n"] == 1
    known = {row["run_id"] for row in analysis.timings(record)}
    assert known == set(roles)
    assert {row["run_id"] for row in analysis.diagnostics(record, rows)} == set(roles)


def fake_run(runs, bits, option):
    run_id = fake_runs.write_run(runs, "resnet20", "direct", bits, 0)
    if not option:
        return run_id
    other = run_id + "-option"
    (runs / run_id).rename(runs / other)
    folder = RunFolder(runs / other)
    config = folder.read_json("config.json")
    folder.write_json(
        "config.json", config | {"run_id": other, "recipe": config["recipe"] | option}
    )
    row = dict.fromkeys(WIDTHS, 0) | {"w_bits": 2, "a_bits": 2, "top1": 50.0, "top5": 90.0}
    row |= {"size_bytes": 1000, "bitops": 2000, "val_top1": 51.0, "test_loss": 1.5}
    folder.write_table("widths.csv", WIDTHS, [row])
    folder.finish(folder.read_json("final.json"))
    return other


def test_the_suite_zoo_asks_for_every_option():
    asked = {name for run in load_suite("zoo").runs for name in run["recipe"]}
    assert {"oscillation", "reestimate_batch_norm", "widths"} <= asked
    assert by_name(load_suite("zoo"))
