"""One run on two processes through the real Snakefile and torchrun: stopped, and gone on with."""

import json
import signal

import pytest
from sweeps import signal_group


@pytest.mark.slow
def test_a_sweep_with_two_processes_a_run_is_stopped_and_goes_on(project):
    job = project.jobs()[0]
    target, config = f"results/tiny/jobs/{job}.jsonl", ("gpus_per_run=2",)
    sweep = project.snakemake(target, config=config)
    project.wait_for("results/runs/*/metrics.csv", sweep, "train_loss")
    signal_group(sweep, signal.SIGTERM)
    assert "stopped by SIGTERM" in project.said() or (project.folder / target).exists()
    said = project.sweep(target, config=config)
    assert "error" not in said
    run = json.loads((project.folder / target).read_text().splitlines()[0])["run_id"]
    final = json.loads((project.runs / run / "final.json").read_text())
    assert (final["status"], final["processes"]) == ("done", 2)
    rows = (project.runs / run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    assert said.count(f"{run}: done, test top-1") <= 1  # only the first process speaks
