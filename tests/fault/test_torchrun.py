"""One run on two processes: stopped under torchrun, gone on with through the real Snakefile."""

import json
import signal
import sys

import pytest
from sweeps import signal_group


@pytest.mark.slow
def test_a_sweep_with_two_processes_a_run_is_stopped_and_goes_on(project):
    job = project.jobs()[0]
    target, config = f"results/tiny/jobs/{job}.jsonl", ("gpus_per_run=2",)
    words = ["--suite", "tiny", "--job", job, "--data", str(project.data), "--out", target]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    project.hold()
    trained = project.start(
        sys.executable, *torchrun, "-m", "workflow.train", *words, "--runs", "results/runs"
    )
    project.wait_until_held(2, trained)
    signal_group(trained, signal.SIGTERM)
    assert (
        project.said().count("stopped by SIGTERM") == 1 and not (project.folder / target).exists()
    )
    project.release()
    said = project.sweep(target, config=config)
    assert "error" not in said
    run = json.loads((project.folder / target).read_text().splitlines()[0])["run_id"]
    final = json.loads((project.runs / run / "final.json").read_text())
    assert (final["status"], final["processes"]) == ("done", 2)
    rows = (project.runs / run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]
    assert said.count(f"{run}: done, test top-1") <= 1  # only the first process speaks
