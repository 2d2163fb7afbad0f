"""Deployment in a sweep, through the real Snakefile: what it makes, and what makes it run again."""

import shutil

import pytest
from sweeps import ROOT, Project, assert_same_runs

from workflow.results.columns import read_table

TARGETS = (
    "results/tiny/table_deploy.csv",
    "results/tiny/table_deploy.md",
    "results/tiny/table_deploy.tex",
    "results/tiny/plots/accuracy_vs_file_size.svg",
    "results/tiny/plots/code_histograms.png",
    "reports/tiny/index.html",
)


@pytest.fixture(scope="module")
def deployed(reference, tmp_path_factory, digits_root):
    """The tiny suite with `deploy: true`, whose runs were trained already."""
    project = Project(tmp_path_factory.mktemp("deployed"), digits_root)
    shutil.copytree(
        ROOT / "deploy", project.folder / "deploy", ignore=shutil.ignore_patterns("__pycache__")
    )
    suite = project.folder / "config" / "suites" / "tiny.yaml"
    suite.write_text(suite.read_text() + "deploy: true\n")
    project.adopt(reference, reference.jobs())
    project.sweep(*TARGETS)
    return project


def planned(project: Project) -> str:
    """What a sweep would do now."""
    command = ("snakemake", "-n", "--config", "suite=tiny", f"data={project.data}", "--", *TARGETS)
    assert project.start(*command, log="plan").wait() == 0, project.said("plan")
    return project.said("plan")


def test_every_run_is_exported_and_as_accurate_as_it_was_trained(deployed, reference):
    rows = read_table(deployed.results / "table_deploy.csv")
    assert {row["run_id"] for row in rows} == {path.name for path in reference.runs.iterdir()}
    assert {row["export"] for row in rows} == {"exported"}
    for row in rows:
        assert row["images"] == 360 and abs(row["difference"]) < 1
    assert {row["compression"] > 1 for row in rows if row["w_bits"] == 2} == {True}
    page = (deployed.folder / TARGETS[-1]).read_text()
    assert 'id="deployment"' in page and 'id="accuracy_vs_latency"' in page


def test_a_second_sweep_has_nothing_to_do(deployed):
    assert "Nothing to be done" in deployed.sweep(*TARGETS)


def test_code_that_exports_measures_again_and_trains_nothing(deployed):
    path = deployed.folder / "deploy" / "planes.py"
    before = path.read_text()
    path.write_text(f"{before}\n# A comment changes nothing.\n")
    assert "Nothing to be done" in planned(deployed)
    path.write_text(f"{before}\nUNUSED = 1\n")
    plan = planned(deployed)
    path.write_text(before)
    assert "rule deploy:" in plan and "rule deploy_tables:" in plan and "rule train:" not in plan


def test_a_damaged_network_is_named_and_trained_again(deployed, reference):
    name = next(path.name for path in deployed.runs.iterdir() if "lq_nets" in path.name)
    weights = deployed.runs / name / "weights.pt"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.rmtree(deployed.results / "deploy")
    for made in ("record/deploy.jsonl", "table_deploy.csv"):
        (deployed.results / made).unlink()
    assert deployed.snakemake(*TARGETS).wait() != 0
    assert f"{name}/weights.pt is not what was written" in deployed.said()
    assert "run `snakemake` again, which trains it anew" in deployed.said()
    assert not (deployed.runs / name / "final.json").exists()
    deployed.sweep(*TARGETS)
    assert_same_runs(deployed.runs, reference.runs)
    test_every_run_is_exported_and_as_accurate_as_it_was_trained(deployed, reference)
