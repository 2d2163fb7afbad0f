"""The same seed gives the same bytes, whatever number of jobs runs at once. Exact CUDA kernels."""

import os

import pytest
import torch
from sweeps import Project, assert_same_runs
from test_signals import config

import baselines
from lowbit_core.training.run import Place, train_run


def test_four_jobs_at_once_give_the_bytes_of_one_at_a_time(reference, tmp_path, digits_root):
    """The reference is swept on one core, two runs a job; here every run is a job of its own."""
    project = Project(tmp_path, digits_root, runs_per_job=1)
    project.sweep(cores=4)
    assert len(project.jobs()) == 5 > len(reference.jobs())
    assert project.tables() == reference.tables()
    assert_same_runs(project.runs, reference.runs)


@pytest.mark.parametrize("method", ("direct", "lq_nets", "pact", "dorefa"))
def test_exact_kernels_are_asked_for_by_a_switch(method, digits_root, tmp_path, monkeypatch):
    """No operation of ours lacks an exact kernel; on a processor the switch changes no bit."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    place = Place(digits_root, tmp_path, torch.device("cpu"))
    for name, exact in (("usual", False), ("exact", True)):
        settings = config(method) | {"run_id": name, "deterministic": exact}
        train_run(settings, baselines.method(method), place)
        assert torch.are_deterministic_algorithms_enabled() == exact
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == exact
    torch.use_deterministic_algorithms(False)
    assert_same_runs(tmp_path / "usual", tmp_path / "exact", {"."})
