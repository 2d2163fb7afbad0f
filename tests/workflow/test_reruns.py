"""What reruns a job, and deletes its outputs, in the real Snakefile: only what changes a result."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from workflow.guard import point_to
from workflow.suite.suite import ROOT, parse_suite

SUITE = (ROOT / "tests" / "fault" / "tiny.yaml").read_text()
JOBS = [f"results/tiny/jobs/{job}.jsonl" for job in parse_suite(SUITE, "tiny.yaml").jobs]
RECORD = ("runs.jsonl", "suite.json", "epochs.csv.gz", "channels.csv.gz", "histograms.json")
MADE = (
    *(f"{name}.csv" for name in ("results", "table_main", "timings", "claims", "diagnostics")),
    *("epochs.csv", "table_main.md", "table_main.tex", "claims.md"),
)


def snakemake(folder, *words, config=(), python=sys.executable, targets=JOBS):
    """Run snakemake in `folder`; returns its output."""
    command = [python, "-m", "snakemake", "--cores", "2", *words, "--config", "suite=tiny", *config]
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}
    done = subprocess.run(
        [*command, "--", *targets],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def swept(tmp_path_factory, digits_root):
    """A checkout in which Snakemake takes every job of the tiny suite for done."""
    folder = tmp_path_factory.mktemp("swept")
    for name in ("Snakefile", "workflow", "lowbit_core", "baselines", "config", "profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "config" / "suites" / "tiny.yaml").write_text(SUITE)
    shutil.copytree(digits_root / "digits", folder / "data" / "digits")
    (folder / "results" / "tiny" / "jobs").mkdir(parents=True)
    for job in JOBS:
        (folder / job).touch()
    snakemake(folder, "--touch", "--forceall")
    return folder


@pytest.fixture
def checkout(swept, tmp_path):
    """The same, moved to another place."""
    return Path(shutil.copytree(swept, tmp_path / "moved", symlinks=True))


def test_settings_that_change_no_result_rerun_nothing(checkout):
    assert "Nothing to be done" in snakemake(checkout, "-n")  # moved
    config = (
        "data_source=/nowhere",
        "download=False",
        "datasets=digits",
        "compile=off",  # which is what the suite says
        f"data={checkout / 'other'}",
    )
    python = checkout / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    words = ("-n", "--cores", "1", "--resources", "gpu=2")
    for one in ("per_gpu=3", "gpus_per_run=2"):
        output = snakemake(checkout, *words, config=(*config, one), python=python)
        assert "Nothing to be done" in output


def take_for_done(checkout, targets):
    """Let Snakemake take the record and the targets for made, by the code as it is."""
    (checkout / "results" / "tiny" / "record").mkdir()
    for file in (*(f"results/tiny/record/{name}" for name in RECORD), *targets):
        (checkout / file).touch()
    snakemake(checkout, "--touch", "--forceall", targets=targets)


def test_a_key_that_changes_no_run_makes_the_record_anew(checkout):
    targets = ["results/tiny/record/runs.jsonl"]
    take_for_done(checkout, targets)
    assert "Nothing to be done" in snakemake(checkout, "-n", targets=targets)
    suite = yaml.safe_load(SUITE) | {"deploy_images": 7}
    (checkout / "config" / "suites" / "tiny.yaml").write_text(yaml.safe_dump(suite))
    output = snakemake(checkout, "-n", targets=targets)
    assert "rule record" in output and "rule train" not in output


def test_changed_code_draws_anew_and_trains_nothing(checkout):
    made = [f"results/tiny/{name}" for name in MADE]
    take_for_done(checkout, made)
    assert "Nothing to be done" in snakemake(checkout, "-n", targets=made)
    for name, text in (("new_plot.py", "WIDTH = 3\n"), ("templates/report.css", "p {}\n")):
        changed = checkout / "workflow" / "results" / name
        before = changed.read_text() if changed.exists() else ""
        changed.write_text(text)
        output = snakemake(checkout, "-n", targets=made)
        assert "rule tables" in output and "rule record" not in output and "train" not in output
        changed.write_text(before)


@pytest.mark.parametrize(
    ("target", "words"),
    (
        (
            "results/tiny/variants.csv",
            "error: results/tiny has no such table: its suite has no variants",
        ),
        ("results/tiny/ablation_options.csv", "its suite has no options"),
        ("results/reference/made/results.csv", "its suite compares recipes and makes variants.csv"),
    ),
)
def test_a_table_that_the_suite_does_not_make_is_not_planned(checkout, target, words):
    record = checkout / "results" / "reference" / "made" / "record"
    record.mkdir(parents=True)
    (record / "suite.json").write_text(json.dumps({"suite": {"suite": "made"}, "variants": True}))
    (record / "runs.jsonl").touch()
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "suite=tiny", "--", target]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def test_a_damaged_record_of_another_suite_stops_no_sweep(checkout):
    record = checkout / "results" / "reference" / "made" / "record"
    record.mkdir(parents=True)
    assert "Nothing to be done" in snakemake(checkout, "-n")
    command = [sys.executable, "-m", "snakemake", "-n", "--config", "suite=tiny", "--", "reference"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "made/record/suite.json is missing" in done.stderr
    (record / "suite.json").write_text(json.dumps({"suite": {"suite": "made"}, "variants": True}))
    (record / "runs.jsonl").touch()
    output = snakemake(checkout, "-n", targets=["reference"])
    assert "rule variants" in output and "results/reference/made/variants.csv" in output


def test_only_what_determines_the_runs_is_recorded(checkout):
    records = [path for path in (checkout / ".snakemake" / "metadata").rglob("*") if path.is_file()]
    recorded = [json.loads(path.read_text()) for path in records]
    keys = [str(job.keys) for job in parse_suite(SUITE, "tiny.yaml").jobs.values()]
    assert [r["params"] for r in recorded if r["rule"] == "prepare_data"] == [[], []]
    trained = sorted(r["params"] for r in recorded if r["rule"] == "train")
    assert trained == sorted(["'tiny'", key] for key in keys)
    places = (str(checkout), str(checkout / "data"))
    assert not any(name.startswith(places) for r in recorded for name in r["input"])


def test_another_compile_setting_trains_other_runs_from_the_same_data(checkout):
    before = parse_suite(SUITE, "tiny.yaml").jobs.keys()
    other = parse_suite(SUITE, "tiny.yaml", "quantizers").jobs.keys()
    assert before.isdisjoint(other)
    command = (sys.executable, "-m", "snakemake", "-n", "--config", "suite=tiny")
    command += ("compile=quantizers", "--", f"results/tiny/jobs/{min(other)}.jsonl")
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    assert "rule train" in done.stdout and "prepare_data" not in done.stdout


def test_a_rerun_keeps_prepared_data_that_are_intact(checkout):
    """Whatever the reason, even if the original files are gone and there is no network."""
    files = {f.name: f.read_bytes() for f in (checkout / "data" / "digits").iterdir()}
    words = ("--forcerun", "prepare_data", "--until", "prepare_data")
    output = snakemake(checkout, *words, config=("data_source=/nowhere", "download=False"))
    assert "1 of 1 steps (100%) done" in output
    assert "intact, kept" in (checkout / "results/tiny/logs/prepare_digits.log").read_text()
    assert {f.name: f.read_bytes() for f in (checkout / "data" / "digits").iterdir()} == files
    assert "Nothing to be done" in snakemake(checkout, "-n")


def test_a_missing_data_set_is_prepared_before_training(checkout):
    shutil.rmtree(checkout / "data")
    (checkout / JOBS[0]).unlink()
    output = snakemake(checkout, "-n")
    assert output.index("rule prepare_data") < output.index("rule train")


def test_the_link_to_the_data_stays_while_a_sweep_uses_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    link = Path(".snakemake") / "data"
    point_to(link, Path("one"))
    assert link.resolve() == tmp_path / "one"
    point_to(link, Path("two"))
    assert link.resolve() == tmp_path / "two"
    with open(".snakemake/sweep.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        point_to(link, Path("one"))
        assert link.resolve() == tmp_path / "two"
    point_to(link, Path("one"))
    assert link.resolve() == tmp_path / "one"
