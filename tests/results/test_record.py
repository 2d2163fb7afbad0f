"""The record of a suite's runs, and the tables that are made from it alone."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import fake_runs
import pytest
import yaml

import workflow.results.columns as sealing
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from workflow import reference
from workflow.comparisons import load_comparisons
from workflow.results import analysis, record, tables
from workflow.results.columns import TABLES, Column, columns, read_cells, read_table, write_table
from workflow.results.deployed import table as deploy_table
from workflow.results.record import DEPLOYED, Record, _lower_widths
from workflow.suite.jobs import job_text, mend_jobs, read_jobs

ROOT = Path(__file__).parents[2]
NOT_OF_QUICK = ("variants.csv", "ablation_options.csv", "table_deploy.csv")
MADE = (*(name for name in TABLES if name not in NOT_OF_QUICK), "table_main.md", "table_main.tex",
        "claims.md")  # fmt: skip


def test_results_of_the_suite(quick: Path):
    results = read_table(quick / "results.csv")
    runs = {row["run_id"] for row in results}
    assert len(runs) == len(results) == len(list((quick / "runs").iterdir()))
    failed = [row for row in results if row["status"] == "diverged"]
    assert [(row["arch"], row["method"], row["top1"]) for row in failed] == [
        ("mobilenetv2", "dorefa", None)
    ]
    assert {row["role"] for row in results} == {"run", "ablation", "checkpoint"}
    for row in results:
        if row["role"] == "run" and row["status"] == "done":
            assert row["delta"] == pytest.approx(row["top1"] - row["fp_top1"], abs=2e-3)
    direct = next(row for row in results if row["method"] == "direct")
    assert direct["weight_granularity"] == "per_channel"
    assert direct["quantizer_lr_scale"] == "codes=1;levels=0.1"
    assert (direct["instruction_set"], direct["kernel_lanes"]) == ("AVX512, bf16", 16)


def test_full_precision_is_the_fine_tuned_run(quick: Path):
    mine = [
        r for r in read_table(quick / "results.csv") if (r["arch"], r["seed"]) == ("resnet20", 1)
    ]
    tuned = next(r for r in mine if r["method"] == "fp" and r["role"] == "run")
    checkpoint = next(r for r in mine if r["role"] == "checkpoint")
    direct = next(r for r in mine if r["method"] == "direct")
    assert direct["fp_top1"] == tuned["top1"] != checkpoint["top1"]
    assert direct["checkpoint_top1"] == checkpoint["top1"]


def test_same_bytes_again_from_the_record_alone(quick: Path, tmp_path: Path):
    """In a process of its own: hash seeds and import order differ. No run folder is at hand."""
    shutil.copytree(quick / "record", tmp_path / "record")
    for words in ([], ["--ablations"]):
        command = [sys.executable, "-m", "workflow.results.tables", str(tmp_path), *words]
        subprocess.run(command, cwd=ROOT, check=True)
    for name in MADE:
        assert (tmp_path / name).read_bytes() == (quick / name).read_bytes(), name
    jobs = sorted((quick / "jobs").glob("*.jsonl"))
    settings = Record(quick / "record").settings["suite"]
    record.write_record(settings, read_jobs(jobs), quick / "runs", tmp_path / "again")
    for name in record.FILES:
        assert (tmp_path / "again" / name).read_bytes() == (quick / "record" / name).read_bytes()
        assert (quick / "record" / name).stat().st_size < reference.MOST_BYTES


def test_the_record_says_how_each_run_was_made(quick: Path):
    runs = Record(quick / "record").runs
    assert len(runs) == len(list((quick / "runs").iterdir()))
    for run in runs:
        assert {"seed", "recipe", "code_version", "policy"} <= run["config"].keys()
        assert {"hardware", "versions", "git_commit", "top1", "created"} <= run["final"].keys()


@pytest.mark.parametrize(
    "folder", sorted(reference.REFERENCE.glob("*/record")), ids=lambda path: path.parent.name
)
def test_committed_tables_are_what_the_committed_runs_give(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "record")
    tables.main([str(tmp_path)])
    if not Record(folder).settings["variants"]:
        tables.main([str(tmp_path), "--ablations"])
    if (folder.parent / "ablation_options.csv").exists():
        tables.main([str(tmp_path), "--options"])
    if (folder / DEPLOYED).exists():
        deploy_table.main([str(tmp_path)])
    names = [
        path.name for path in folder.parent.iterdir() if path.suffix in (".csv", ".md", ".tex")
    ]
    assert names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder.parent / name).read_bytes(), name
    assert all(path.stat().st_size < reference.MOST_BYTES for path in folder.iterdir())


def without_last_run(data: bytes) -> bytes:
    """The epochs of all runs but the last one, as after a stop between two files of a record."""
    lines = gzip.decompress(data).decode().splitlines(keepends=True)
    last = lines[-1].partition(",")[0]
    return gzip.compress("".join(line for line in lines if not line.startswith(last)).encode())


def test_epochs_of_runs_that_are_not_listed_count_for_nothing(quick: Path, tmp_path: Path):
    """As after a stop before the list of runs, the last file of a record, was written."""
    shutil.copytree(quick / "record", tmp_path / "record")
    lines = (tmp_path / "record" / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "record" / "runs.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "record" / ".runs.jsonl.sha256").unlink()
    left = json.loads(lines[-1])["config"]["run_id"]
    assert left in Record(quick / "record").epochs
    assert left not in Record(tmp_path / "record").epochs | Record(tmp_path / "record").channels


def test_git_may_replace_a_file_of_a_committed_record(quick: Path, tmp_path: Path, monkeypatch):
    """The digest beside it, which git does not know, is then that of another version."""
    monkeypatch.setattr(record, "REFERENCE", tmp_path / "results" / "reference")
    folder = tmp_path / "results" / "reference" / "quick" / "record"
    shutil.copytree(quick / "record", folder)
    whole = (folder / "runs.jsonl").read_text()
    (folder / "runs.jsonl").write_text(whole.replace('"seed": 1', '"seed": 7', 1))
    assert record.Record(folder).is_committed and record.Record(folder).runs
    shutil.copytree(folder, tmp_path / "elsewhere")
    with pytest.raises(InputError, match="its checksum differs"):
        _ = record.Record(tmp_path / "elsewhere").runs


def test_a_damaged_record_is_refused(quick: Path, tmp_path: Path):
    """Also without its checksums, as it is after a clone."""
    shutil.copytree(quick / "record", tmp_path / "record")

    def refused(name: str, change, message: str) -> None:
        whole = (tmp_path / "record" / name).read_bytes()
        (tmp_path / "record" / name).write_bytes(change(whole))
        with pytest.raises(InputError, match=message) as caught:
            fake_runs.make_tables(tmp_path)
        assert name in str(caught.value)
        (tmp_path / "record" / name).write_bytes(whole)

    refused("runs.jsonl", lambda data: data.replace(b'"seed": 1', b'"seed": 7', 1), "checksum")
    for seal in (tmp_path / "record").glob(".*.sha256"):
        seal.unlink()
    refused("runs.jsonl", lambda data: data[:-40], "not part of a record")
    refused("runs.jsonl", lambda data: b"", "not part of a record")
    refused("suite.json", lambda data: b"{}", "not part of a record")
    refused("epochs.csv.gz", lambda data: data[:-40], "cannot be read")
    refused("epochs.csv.gz", without_last_run, "has no epoch of run .*, which runs.jsonl lists")
    (tmp_path / "record" / "channels.csv.gz").unlink()
    with pytest.raises(InputError, match="channels.csv.gz is missing"):
        fake_runs.make_tables(tmp_path)


def test_a_file_that_a_kill_kept_from_being_replaced_is_still_what_was_written(
    tmp_path, monkeypatch
):
    path = tmp_path / "runs.jsonl"
    sealing.write_sealed(path, b"old")
    writes = []

    def write_once(place, data):
        if writes:
            raise KeyboardInterrupt
        writes.append(place)
        place.write_bytes(data)

    monkeypatch.setattr(sealing, "write_bytes", write_once)
    with pytest.raises(KeyboardInterrupt):
        sealing.write_sealed(path, b"new")
    assert sealing.read_sealed(path) == b"old"
    path.write_bytes(b"new")  # a kill between the second write and the third
    assert sealing.read_sealed(path) == b"new"
    path.write_bytes(b"other")
    with pytest.raises(InputError, match="checksum"):
        sealing.read_sealed(path)


def test_a_damaged_run_is_not_recorded(tmp_path):
    run = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    (tmp_path / "runs" / run / "metrics.csv").write_text("epoch\n")
    with pytest.raises(InputError, match="not what was written"):
        record.write_record({}, {run: "run"}, tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "is missing: the run is not complete"), ("{", "not valid JSON")]
)
def test_incomplete_run_is_one_sentence(tmp_path: Path, text: str | None, message: str):
    run = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    final = tmp_path / "runs" / run / "final.json"
    final.unlink() if text is None else final.write_text(text)
    with pytest.raises(InputError, match=message):
        record.write_record({}, {run: "run"}, tmp_path / "runs", tmp_path / "out")


def test_bad_job_line(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"run_id": "x", "role": "walk", "runs": 1}) + "\n")
    with pytest.raises(InputError, match="'walk' must be one of run, ablation, option, checkpoint"):
        read_jobs([path])
    path.write_text("{nonsense\n")
    with pytest.raises(InputError, match="line 1"):
        read_jobs([path])


# -- ablations and diagnostics ---------------------------------------------------------------


def test_channel_ablation_from_the_runs_that_it_needs(quick: Path, tmp_path: Path):
    """The record of the ablations' methods alone gives the same tables."""
    methods = load_comparisons().ablation_methods
    roles = read_jobs(sorted((quick / "jobs").glob("*.jsonl")))
    few = {run: role for run, role in roles.items() if run.split("-")[2] in methods}
    record.write_record({"suite": "quick"}, few, quick / "runs", tmp_path / "few")
    tables.main([str(tmp_path), "--ablations", "--record", str(tmp_path / "few")])
    made = {path.name for path in tmp_path.glob("*.csv")}
    expected = set(TABLES) - set(NOT_OF_QUICK)
    assert made == {name for name in expected if name.startswith("ablation_")}
    for name in made:
        assert (tmp_path / name).read_bytes() == (quick / name).read_bytes(), name


def test_channel_summary(quick: Path):
    channels = read_table(quick / "ablation_channel_error.csv")
    dead = [row for row in channels if row["error_equal"] is None]
    assert dead and all(row["channel"] == 31 for row in dead)
    wanted = ("resnet20", "direct", 2)
    [row] = [
        r
        for r in read_table(quick / "ablation_channel_error_summary.csv")
        if (r["arch"], r["method"], r["w_bits"], r["variant"]) == (*wanted, "inverse_variance")
    ]
    mine = [
        r
        for r in channels
        if r["error_equal"] is not None and (r["arch"], r["method"], r["w_bits"]) == wanted
    ]
    better = [r for r in mine if r["error_inverse_variance"] < r["error_equal"]]
    assert row["channels"] == len(mine) == 3 * 63
    assert row["share_of_channels_improved"] == pytest.approx(
        100 * len(better) / len(mine), abs=1e-3
    )
    assert (row["trained_with"], row["top1_n"]) == ("direct", 3)


def test_whether_a_grid_holds_zero_is_in_the_tables(quick: Path):
    """In the made suite every grid but that of one bit does."""
    for name in ("results.csv", "table_main.csv"):
        for row in read_table(quick / name):
            expected = {1: "no", 32: None}.get(row["w_bits"], "yes")
            assert row["zero_level"] == expected, (name, row["method"])


def test_a_record_without_a_later_column_has_empty_cells(quick: Path, tmp_path: Path):
    """As those are that were committed before there was the column."""
    later = ("instruction_set", "kernel_lanes")
    shutil.copytree(quick / "record", tmp_path / "record")
    runs = [json.loads(line) for line in (quick / "record" / "runs.jsonl").open()]
    assert all(run.pop("zero_level", "absent") != "absent" for run in runs)
    assert all(run["final"].pop(name) for run in runs for name in later)
    text = "".join(json.dumps(run) + "\n" for run in runs)
    record.write_sealed(tmp_path / "record" / "runs.jsonl", text.encode())
    tables.main([str(tmp_path)])
    rows = read_table(tmp_path / "results.csv")
    assert {row[name] for row in rows for name in ("zero_level", *later)} == {None}


def test_a_grid_holds_zero_if_every_layer_does():
    layers = [{"zero_level": None}, {"zero_level": True}]
    assert record._zero_level(layers) is True
    assert record._zero_level([*layers, {"zero_level": False}]) is False
    assert record._zero_level([{"zero_level": None}, {}]) is None


def test_direct_ablation_is_paired_by_seed(quick: Path):
    runs = read_table(quick / "ablation_direct_weights.csv")
    top1 = {(r["method"], r["seed"]): r["top1"] for r in runs if r["w_bits"] == 2}
    gaps = [top1["direct", s] - top1["indirect", s] for s in range(3)]
    [row] = [
        r
        for r in read_table(quick / "ablation_direct_weights_summary.csv")
        if r["w_bits"] == 2 and r["other"] == "indirect"
    ]
    assert row["n"] == 3
    assert row["top1_difference_mean"] == pytest.approx(mean(gaps), abs=1e-3)
    assert row["top1_difference_std"] == pytest.approx(stdev(gaps), abs=1e-3)
    assert all(r["used_level_share"] == 1 for r in runs)


def test_any_method_that_measures_its_channels_is_in_the_ablation(tmp_path: Path):
    """Which runs measured their channels is read from the runs, not from a list of names."""
    runs = tmp_path / "runs"
    run = fake_runs.write_run(runs, "resnet20", "pact", (2, 2), 0)
    header = "layer,channel,variance,error_equal,error_inverse_variance,error_median"
    fake_runs.write_rows(runs / run / "channel_error.csv", header, [("a", 0, 1, 0.5, 0.4, 0.3)])
    RunFolder(runs / run).finish(RunFolder(runs / run).read_json("final.json"))
    record.write_record({"suite": "made"}, {run: "run"}, runs, tmp_path / "record")
    tables.main([str(tmp_path), "--ablations"])
    [row] = read_table(tmp_path / "ablation_channel_error.csv")
    assert (row["method"], row["error_median"]) == ("pact", 0.3)
    summary = read_table(tmp_path / "ablation_channel_error_summary.csv")
    assert [r["variant"] for r in summary] == ["equal", "inverse_variance", "median"]
    assert summary[0]["trained_with"] is None


def test_diagnostics_of_a_run_by_hand(tmp_path):
    """Two layers whose levels grow to twice and to half of their span; flips 40 % and 20 %."""
    run = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    rows = [
        (0, "a", 0.1, "", -1, 1, 1.0), (0, "b", 0.3, "", -2, 2, 1.0),
        (1, "a", 0.2, 0.5, -2, 2, 0.5), (1, "b", 0.4, 0.3, -1, 1, 1.0),
    ]  # fmt: skip
    header = "epoch,layer,mismatch,flip_rate,level_min,level_max,used_levels"
    folder = tmp_path / "runs" / run
    fake_runs.write_rows(folder / "weight_state.csv", header, rows)
    RunFolder(folder).finish(RunFolder(folder).read_json("final.json"))
    record.write_record({"suite": "made"}, {run: "run"}, tmp_path / "runs", tmp_path / "record")
    assert analysis.weight_facts(Record(tmp_path / "record"), run) == pytest.approx(
        {
            "mismatch_start": 0.2, "mismatch_end": 0.3, "flip_rate_mean": 0.4,
            "flip_rate_first": 0.4, "flip_rate_end": 0.4, "used_level_share": 0.75,
            "used_level_share_lowest": 0.5, "level_span": 1.25, "oscillating": None,
        }
    )  # fmt: skip


def test_jobs_of_another_version_of_the_suite_make_no_record(tmp_path):
    run_id = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    job = tmp_path / "job.jsonl"
    job.write_text(job_text([{"run_id": run_id, "role": "run"}]))
    call = ["--suite", "smoke", "--jobs", str(job), "--runs", str(tmp_path / "runs")]
    with pytest.raises(InputError, match="has no run .*, which a job trained: the suite or the"):
        record.main([*call, "--out", str(tmp_path / "record")])


def test_a_run_of_no_epochs_has_no_rows(tmp_path):
    run_id = fake_runs.write_run(tmp_path / "runs", "resnet20", "fp", (32, 32), 0)
    folder = RunFolder(tmp_path / "runs" / run_id)
    for name in ("metrics.csv", "timings.csv"):
        path = folder.path / name
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    folder.finish(folder.read_json("final.json") | {"epochs_done": 0})
    record.write_record({"suite": "made"}, {run_id: "run"}, folder.path.parent, tmp_path / "record")
    assert Record(tmp_path / "record").epochs.get(run_id, []) == []


def test_the_share_of_oscillating_weights_reaches_the_diagnostics(tmp_path):
    """It is the mean over the layers that were tracked; of a run that tracked none it is empty."""
    tracked = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    other = fake_runs.write_run(tmp_path / "runs", "resnet20", "lq_nets", (2, 2), 0)
    rows = [
        (0, "a", 0.1, "", -1, 1, 1.0, 0), (0, "b", 0.3, "", -2, 2, 1.0, ""),
        (0, "c", 0.3, "", -2, 2, 1.0, 0), (1, "a", 0.2, 0.5, -2, 2, 0.5, 0.25),
        (1, "b", 0.4, 0.3, -1, 1, 1.0, ""), (1, "c", 0.2, 0.5, -2, 2, 0.5, 0.75),
    ]  # fmt: skip
    header = "epoch,layer,mismatch,flip_rate,level_min,level_max,used_levels,oscillating"
    folder = tmp_path / "runs" / tracked
    fake_runs.write_rows(folder / "weight_state.csv", header, rows)
    RunFolder(folder).finish(RunFolder(folder).read_json("final.json"))
    roles = {tracked: "run", other: "run"}
    record.write_record({"suite": "made"}, roles, tmp_path / "runs", tmp_path / "record")
    made = Record(tmp_path / "record")
    found = {row["run_id"]: row for row in analysis.diagnostics(made, analysis.results(made))}
    assert found[tracked]["oscillating"] == 0.5
    assert found[other]["oscillating"] is None


def test_diagnostics_count_dead_channels_and_keep_diverged_runs(quick):
    found = read_table(quick / "diagnostics.csv")
    quantized = [r for r in read_table(quick / "results.csv") if r["w_bits"] != 32]
    assert len(found) == len(quantized)
    assert [r["method"] for r in found if r["status"] == "diverged"] == ["dorefa"]
    measured = {r["method"]: r["dead_channel_share"] for r in found}
    assert measured["direct"] == pytest.approx(1 / 64)
    assert measured["pact"] is None


# -- columns, comparisons and labels ---------------------------------------------------------


def test_a_table_is_read_as_it_was_written(tmp_path: Path):
    row = {"run_id": "a", "seconds": 1.5, "images_per_s": 3, "data_wait_share": None}
    write_table(tmp_path / "timings.csv", [row])
    assert read_table(tmp_path / "timings.csv") == [row | {"peak_memory_mb": None}]
    assert Column("x", "percent").text(-0.0001) == "0.000"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "direkt"}, "method is 'direkt': it must be one of"),
        ({"direct_weights": "indirect"}, "must be a list of .method, other."),
        ({"variants": "indirect"}, "must be a list of methods"),
        ({"claims": {"new": {"question": "Why?"}}}, "claims.new .* must be question, pairs"),
        ({"claims": {"new": {"question": "Why?", "pairs": [["fp"]]}}}, "list of .method, other."),
        ({"channel_error": {"direct": {"mean": "pact"}}}, "is 'mean': it must be one of equal"),
        ({"extra": 1}, "keys of the file"),
    ],
)
def test_comparisons_are_checked(tmp_path: Path, change: dict, message: str):
    data = yaml.safe_load((ROOT / "config" / "comparisons.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data | change))
    with pytest.raises(InputError, match=message) as caught:
        load_comparisons(tmp_path / "mine.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("variants: [pact]\n", "key 'variants' is given twice"),
        ("", "method is \\['direct'\\]: it must be one of"),
    ],
)
def test_a_key_given_twice_and_a_list_for_a_name_are_refused(tmp_path, line, message):
    text = (ROOT / "config" / "comparisons.yaml").read_text() + line
    if not line:
        text = text.replace("method: direct\n", "method: [direct]\n")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_comparisons(tmp_path / "mine.yaml")


def test_a_user_can_add_a_claim(tmp_path: Path):
    data = yaml.safe_load((ROOT / "config" / "comparisons.yaml").read_text())
    data["claims"]["mine"] = {"question": "Does PACT beat DoReFa?", "pairs": [["pact", "dorefa"]]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    found = load_comparisons(tmp_path / "mine.yaml")
    assert found.pairs(found.claims[-1], ["dorefa", "pact"]) == [("pact", "dorefa")]
    assert found.pairs(found.claims[-1], ["pact"]) == []


def test_every_width_of_a_run_that_diverged_has_diverged():
    config = {
        "run_id": "r",
        "w_bits": 3,
        "a_bits": 2,
        "recipe": {"widths": {"lower": ["W2A2", "W1A2"]}},
    }
    final = {"status": "diverged", "top1": None, "size_bytes": 5, "bitops": 6}
    found = list(_lower_widths({"config": config, "final": final}))
    assert [run["config"]["run_id"] for run in found] == ["r.w2a2", "r.w1a2"]
    assert [(run["config"]["w_bits"], run["final"]["status"]) for run in found] == [
        (2, "diverged"),
        (1, "diverged"),
    ]
    assert {run["final"]["size_bytes"] for run in found} == {None}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("a", "lacks the columns 'b'; legal are a, b"),
        ("a,b,c", "has unknown columns 'c'; legal are a, b"),
        ("b,a", "has its columns in another order; legal are a, b"),
    ],
)
def test_what_is_wrong_with_a_header_is_named(header, words):
    with pytest.raises(InputError, match=words):
        read_cells("t.csv", header.encode(), columns("a b"), "remedy")


def test_a_run_whose_weights_are_on_another_machine_is_kept(tmp_path, capsys):
    run_id = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    job = tmp_path / "job.jsonl"
    job.write_text(job_text([{"run_id": run_id, "role": "run"}]))
    weights, content = tmp_path / "runs" / run_id / "weights.pt", b"a network"
    weights.write_bytes(content)
    folder = RunFolder(weights.parent)
    final = folder.read_json("final.json")
    folder.finish({key: final[key] for key in final if key not in ("files", "checksum")})
    weights.unlink()
    mend_jobs([job], tmp_path / "runs")
    assert job.exists() and (tmp_path / "runs" / run_id / "final.json").exists()
    assert "copy it from the machine that trained the run" in capsys.readouterr().err
    weights.write_bytes(content[:-1])  # damaged, it is no use
    mend_jobs([job], tmp_path / "runs")
    assert not job.exists() and not (tmp_path / "runs" / run_id / "final.json").exists()


def test_a_run_whose_configuration_is_unreadable_is_trained_anew(tmp_path, capsys):
    run_id = fake_runs.write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    job = tmp_path / "job.jsonl"
    job.write_text(job_text([{"run_id": run_id, "role": "run"}]))
    (tmp_path / "runs" / run_id / "config.json").write_text('{"run_id": ')
    mend_jobs([job], tmp_path / "runs")
    assert not job.exists() and not (tmp_path / "runs" / run_id / "final.json").exists()
    assert "run `snakemake` again" in capsys.readouterr().err
