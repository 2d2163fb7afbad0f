"""Options of a recipe: what a suite may ask for, which runs that makes, and their table."""

import copy
import json
import re

import fake_runs
import pytest
from example_suite import BASE, parse
from tiny_run import config

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from lowbit_core.runtime.run_status import loaded_runs
from workflow.away.queue import Queue, ordered, read_queue, write_queue
from workflow.away.worker import ready
from workflow.results import analysis, claims, tables
from workflow.results.columns import read_table
from workflow.results.main_table import main_table
from workflow.results.record import Record, write_record
from workflow.suite.jobs import read_jobs
from workflow.suite.options import option_pairs, options_of

ALEXNET = {"arch": "alexnet", "arch_options": {"width": 2, "stem": "small"}}


def suite_with(options, methods=("direct",), bits=("W2A2",), **recipe):
    """One network with W2A2, W3A3 and W4A4, and a part of its ablations with options."""
    made = copy.deepcopy(BASE)
    made["experiments"] = [made["experiments"][0]]
    (experiment,) = made["experiments"]
    methods = methods if isinstance(methods, str) else list(methods)
    part = {"methods": methods, "bits": list(bits), "options": options}
    experiment |= {"bits": ["W2A2", "W3A3", "W4A4"], "seeds": [0], "ablations": [part]}
    made["recipes"]["tune"] |= recipe
    return made


def by_name(suite):
    """{(method, w_bits, recipe's name): run} of the runs that start from a checkpoint."""
    return {
        (run["method"], run["w_bits"], run["recipe"]["name"]): run
        for run in suite.runs
        if run["pretrained"]
    }


def refused(made, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(made)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("my.yaml: ")


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", (
    ([], r"ablations\[0\].options: \[\] should be non-empty"),
    ([{}], r"options\[0\]: \{\} should be non-empty"),
    ([{"lr": 0.1}], r"options\[0\]: unknown key 'lr': it must be one of distill, .*start_from"),
    ([{"distill": None}], r"distill: None is not an object"),
    ([{"distill": {"weight": 0}}], r"distill.weight: 0 is less than or equal to the minimum of 0"),
    ([{"distill": {"weight": 1.5}}], r"distill.weight: 1.5 is greater than the maximum of 1"),
    ([{"distill": {"temperature": 0}}], r"temperature: 0 is less than or equal to"),
    ([{"distill": {"teacher": ["pretrained"]}}], r"teacher: \['pretrained'\] is too short"),
    ([{"distill": {"teacher": {"width": 8}}}], r"teacher: .*(unknown key 'width'|'arch' is a req)"),
    ([{"distill": {"teacher": "resnet20"}}], r"'resnet20' is not a bit setting"),
    ([{"distill": {"teacher": {"arch": "vgg"}}}], r"teacher: unknown arch 'vgg': it must"),
    ([{"distill": {"teacher": {"arch": "alexnet", "arch_options": {"stem": "none"}}}}],
     r"distill.teacher: .*'none'"),
    ([{"distill": {"teacher": "W2A2"}}], r"'W2A2': its bits must be higher than W2A2"),
    ([{"distill": {"teacher": "W5A5"}}], r"5 bits are not offered"),
    ([{"start_from": "W9A9"}], r"9 bits are not offered"),
    ([{"start_from": "above"}], r"'above' is not a bit setting"),
    ([{"start_from": "W1A32"}], r"start_from 'W1A32': its bits must be higher than W2A2"),
    ([{"start_from": "FP"}], r"start_from: policy: method 'direct' at W32A32"),
))  # fmt: skip
def test_values_that_are_refused(options, message):
    refused(suite_with(options), message)


def test_what_makes_no_sense_is_refused():
    up = [{"start_from": "next_width"}]
    refused(suite_with(up, bits=["W4A4"]), "'next_width': W4A4 is the highest bit-width at which")
    refused(suite_with(up, methods=["fp"]), "method 'fp' has no other bit-width to start from")
    refused(suite_with([{"distill": {"teacher": "W4A4"}}], methods=["fp"]), "'fp' has no such bits")
    for option in ({"distill": {}}, {"start_from": "W8A8"}):
        made = suite_with([{"distill": {}}])
        made["recipes"]["first"] |= option
        (name,) = option
        refused(made, f"checkpoint_recipe is a recipe with the option '{name}': a checkpoint has")
    refused(suite_with(up, methods="all", bits=["W4A4"]), "fits none of the methods and bits")


def test_all_methods_leave_out_what_makes_no_sense():
    made = suite_with([{"start_from": "next_width"}], methods="all", bits=["W3A3", "W4A4"])
    made["experiments"][0]["methods"] = "all"
    asked = {key[:2] for key in by_name(parse(made)) if key[2] == "tune+start_from"}
    assert ("direct", 3) in asked and ("lq_nets", 3) in asked
    assert {bits for _, bits in asked} == {3}  # W4A4 is the highest, and fp has no width


# -- which runs an option makes ---------------------------------------------------------------


def test_an_option_adds_the_same_run_with_it_and_the_run_without():
    made = suite_with([{"distill": {}}, {"distill": {"weight": 1}}], ["direct", "indirect", "fp"])
    suite = parse(made)
    found = [run for run in suite.runs if options_of(run["recipe"])]
    assert len(found) == 6 and {run["role"] for run in found} == {"option"}
    for run in found:
        assert run["teachers"] == [run["pretrained"]] and run["method"] in run["run_id"]
    assert found[0]["recipe"]["distill"] == {
        "teacher": "pretrained", "weight": 0.5, "temperature": 1
    }  # fmt: skip
    pairs = option_pairs(suite.runs)
    assert len(pairs) == 6 and suite.has_options and not suite.has_variants
    assert all("distill" in on["recipe"] and "distill" not in off["recipe"] for off, on in pairs)
    assert all(off["method"] == on["method"] and off["seed"] == on["seed"] for off, on in pairs)
    roles = {off["method"]: off["role"] for off, _ in pairs}
    assert roles == {"direct": "run", "fp": "run", "indirect": "ablation"}
    assert not parse(BASE).has_options


def test_the_runs_without_options_are_those_of_a_suite_without_them():
    made = suite_with([{"distill": {}}, {"start_from": "W4A4"}])
    plain = copy.deepcopy(made)
    del plain["experiments"][0]["ablations"][0]["options"]
    keys = {run["run_key"] for run in parse(plain).runs}
    assert keys == {r["run_key"] for r in parse(made).runs if not options_of(r["recipe"])}


def test_a_start_from_the_next_width_is_a_chain():
    suite = parse(suite_with([{"start_from": "next_width"}]))
    runs = by_name(suite)
    two, three = (runs["direct", bits, "tune+start_from"] for bits in (2, 3))
    assert two["predecessor"] == three["run_id"]
    assert three["predecessor"] == runs["direct", 4, "tune"]["run_id"]
    assert two["pretrained"] == three["pretrained"]  # so that it is paired with the run without
    assert {(off["w_bits"], on["w_bits"]) for off, on in option_pairs(suite.runs)} == {
        (2, 2), (3, 3)
    }  # fmt: skip


def test_a_width_that_the_suite_lacks_is_added():
    runs = by_name(parse(suite_with([{"start_from": "W8A8"}])))
    added = runs["direct", 8, "tune"]
    assert added["role"] == "ablation"
    assert runs["direct", 2, "tune+start_from"]["predecessor"] == added["run_id"]


def test_teachers_are_added_and_found():
    teachers = ["pretrained", "W4A4", ALEXNET]
    suite = parse(suite_with([{"distill": {"teacher": teachers}}]))
    runs = by_name(suite)
    run = runs["direct", 2, "tune+distill"]
    checkpoints = {r["arch"]: r["run_id"] for r in suite.runs if not r["pretrained"]}
    assert checkpoints.keys() == {"resnet20", "alexnet"}
    expected = [
        checkpoints["resnet20"], runs["direct", 4, "tune"]["run_id"], checkpoints["alexnet"]
    ]  # fmt: skip
    assert run["teachers"] == expected == loaded_runs(run)
    assert suite.has_options and not suite.has_variants


def test_a_recipe_may_have_an_option_itself():
    made = suite_with([{"start_from": "next_width"}], distill={"weight": 0.9})
    suite = parse(made)
    assert all(r["teachers"] == [r["pretrained"]] for r in suite.runs if r["pretrained"])
    for off, on in option_pairs(suite.runs):
        assert set(options_of(off["recipe"])) == {"distill"}
        assert set(options_of(on["recipe"])) == {"distill", "start_from"}


# -- identity, jobs, queue --------------------------------------------------------------------


def test_a_changed_predecessor_or_teacher_changes_the_run():
    def key(made, name="tune+start_from"):
        return by_name(parse(made))["direct", 2, name]["run_key"]

    def with_wider(width):
        teacher = {"arch": "alexnet", "arch_options": {"width": width, "stem": "small"}}
        return suite_with([{"distill": {"teacher": teacher}}])

    one = suite_with([{"start_from": "next_width"}])
    assert key(one) == key(copy.deepcopy(one))
    other = copy.deepcopy(one)
    other["experiments"][0]["bits"].remove("W4A4")  # then W3A3 begins from the checkpoint
    assert key(one) != key(other)
    assert key(with_wider(2), "tune+distill") != key(with_wider(4), "tune+distill")
    slower = suite_with([{"start_from": "W4A4"}])
    slower["recipes"]["first"]["lr"] = 0.01  # of the checkpoint from which all begin
    assert key(slower) != key(suite_with([{"start_from": "W4A4"}]))


@pytest.mark.parametrize("runs_per_job", (1, 2, 100))
def test_jobs_need_the_jobs_of_what_their_runs_load(runs_per_job):
    options = [{"start_from": "next_width"}, {"distill": {"teacher": ["W4A4", ALEXNET]}}]
    made = suite_with(options, methods=["direct", "pact"], bits=["W2A2", "W3A3"])
    suite = parse(made | {"runs_per_job": runs_per_job})
    job_of = {run["run_id"]: job for job in suite.jobs.values() for run in job.runs}
    done = set()
    while len(done) < len(suite.jobs):  # Snakemake's order; a circle would end it
        free = [n for n, job in suite.jobs.items() if n not in done and done.issuperset(job.needs)]
        assert free
        done.update(free)
    for job in suite.jobs.values():
        assert re.fullmatch(r"[A-Za-z0-9_]+-[a-z0-9]+-s\d+-[0-9a-f]{8}-[a-z]+\d*", job.name)
        assert len(job.runs) <= runs_per_job
        for run in job.runs:
            for name in loaded_runs(run):
                assert job_of[name].name in job.needs
                assert name in {other["run_id"] for other in suite.loaded_by(job)}
    names = suite.jobs_with({"direct"})
    assert names and not any("options" in name for name in names)


def test_a_queue_trains_a_run_after_those_that_it_loads(tmp_path):
    made = suite_with([{"start_from": "next_width"}, {"distill": {"teacher": ["W4A4", ALEXNET]}}])
    suite = parse(made)
    write_queue(Queue("smoke", ordered(suite.runs)), tmp_path)
    queue, done = read_queue(tmp_path), set()
    while len(done) < len(queue.runs):
        free = [run for run in ready(queue, tmp_path, done, done)]
        assert free and all(done.issuperset(loaded_runs(run)) for run in free)
        done.update(run["run_id"] for run in free)
    runs = by_name(suite)
    loaded = {runs["direct", 4, "tune"]["run_id"], runs["direct", 3, "tune+start_from"]["run_id"]}
    assert loaded < queue.loaded and runs["direct", 2, "tune"]["run_id"] not in queue.loaded


def test_a_loaded_run_without_weights_is_not_done(tmp_path):
    start = config("fp", "start") | {"role": "checkpoint"}
    first = config("pact", "first", "b" * 64, pretrained="start") | {"role": "run"}
    second = config("pact", "second", "c" * 64, pretrained="start", predecessor="first")
    folder = RunFolder(tmp_path / "first")
    folder.save_tensors("weights.pt", {})
    folder.finish({"run_key": first["run_key"]})
    folder.remove("weights.pt")
    assert Queue("s", [start, first]).done(tmp_path) == {"first"}
    assert Queue("s", [start, first, second | {"role": "option"}]).done(tmp_path) == set()


# -- the table --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A results folder: direct at W2A2, and with an option on top, with the accuracies below."""
    results = tmp_path_factory.mktemp("options")
    lines = []
    for seed in range(3):
        start = fake_runs.write_run(results / "runs", "resnet20", "fp", (32, 32), seed)
        lines.append((start, "checkpoint"))
        for method, bits, options, top1, role in (
            ("fp", (32, 32), {}, 90.0, "run"),
            ("direct", (2, 2), {}, 80.0 + seed, "run"),
            ("pact", (2, 2), {}, 70.0 + seed, "run"),
            ("direct", (2, 2), {"distill": {"weight": 0.5}}, 81.0 + 1.5 * seed, "option"),
            ("direct", (2, 2), {"start_from": "W3A3"}, 79.9 + seed + seed % 2 / 10, "option"),
            ("direct", (2, 2), {"distill": {"weight": 0.5}, "start_from": "W3A3"}, 85, "option"),
        ):
            if options:
                fake_runs.write_run(results / "new", "resnet20", method, bits, seed,
                                    pretrained=start, top1=float(top1))  # fmt: skip
                run = add_options(results, options)
            else:
                run = fake_runs.write_run(results / "runs", "resnet20", method, bits, seed,
                                          pretrained=start, top1=top1)  # fmt: skip
            lines.append((run, role))
    (results / "jobs").mkdir()
    fake_runs.write_job(results / "jobs" / "a.jsonl", lines)
    fake_runs.record_suite(results)
    tables.main([str(results)])
    tables.main([str(results), "--ablations"])
    tables.main([str(results), "--options"])
    return results


def add_options(results, options):
    """Move the run folder in new/ to runs/, with options in its recipe and another name."""
    (old,) = (results / "new").iterdir()
    settings, final = (json.loads((old / f"{n}.json").read_text()) for n in ("config", "final"))
    name = f"{settings['run_id']}-{'-'.join(options)}"
    settings |= {"run_id": name, "recipe": settings["recipe"] | options}
    (old / "config.json").write_text(json.dumps(settings))
    rest = {key: value for key, value in final.items() if key not in ("files", "checksum")}
    RunFolder(old).finish(rest)
    old.rename(results / "runs" / name)
    return name


def test_golden_table(folder):
    rows = {
        (row["option"], row["value"]): row
        for row in read_table(folder / "ablation_options.csv")
        if row["base"] is None
    }
    distill, start = "distill(weight=0.5)", "start_from(W3A3)"
    assert rows.keys() >= {("distill", distill), ("start_from", start)}
    row = rows["distill", distill]
    assert (row["method"], row["w_bits"], row["n"], row["diverged"]) == ("direct", 2, 3, 0)
    assert (row["top1_off_mean"], row["top1_on_mean"]) == (81.0, 82.5)
    # Differences 1, 1.5, 2: standard error 0.5 / sqrt(3), t(2) = 4.303.
    assert row["top1_difference_mean"] == 1.5
    assert row["top1_difference_low"] == pytest.approx(1.5 - 4.303 * 0.5 / 3**0.5, abs=1e-3)
    assert row["verdict"] == "leads"
    row = rows["start_from", start]  # -0.1, 0, -0.1: within half a point
    assert row["verdict"] == "equal"


def test_a_run_with_several_options_is_compared_with_most_of_them(folder):
    rows = read_table(folder / "ablation_options.csv")
    (row,) = [row for row in rows if row["base"]]
    assert (row["option"], row["base"]) == ("start_from", "distill(weight=0.5)")
    assert (row["top1_off_mean"], row["top1_on_mean"], row["top1_difference_mean"]) == (
        82.5,
        85,
        2.5,
    )


def test_runs_with_options_are_in_no_other_comparison(folder):
    results = read_table(folder / "results.csv")
    assert sum(row["options"] is not None for row in results) == 9
    plain = [row for row in results if row["options"] is None]
    assert claims.claim_rows(results) == claims.claim_rows(plain)
    assert main_table(results, []) == main_table(plain, [])
    record = Record(folder / "record")
    assert analysis.direct_weights(record, results) == analysis.direct_weights(record, plain)
    assert record.settings["options"] is True and record.settings["variants"] is False
    channels = read_table(folder / "ablation_channel_error.csv")
    assert {row["run_id"] for row in channels} <= {row["run_id"] for row in plain}


def test_two_recipes_with_one_option_are_refused(folder, tmp_path):
    roles = read_jobs((folder / "jobs").glob("*.jsonl"))
    write_record({"suite": "quick"}, roles, folder / "runs", tmp_path / "record")
    record = Record(tmp_path / "record")
    results = analysis.results(record)
    for run in list(record.runs):
        if run["role"] != "checkpoint" and run["config"]["seed"] == 0:
            other = copy.deepcopy(run)
            other["config"]["run_id"] += "-x"
            other["config"]["recipe"]["lr"] = 0.5
            record.runs.append(other)
            results.append({**next(r for r in results if r["run_id"] == run["config"]["run_id"]),
                            "run_id": other["config"]["run_id"]})  # fmt: skip
    with pytest.raises(InputError, match="has several recipes of suite 'quick'"):
        analysis.option_rows(record, results)
