"""Invented suites with their records and tables."""

import shutil
from pathlib import Path

import fake_runs
import pytest

from workflow.results import plots, report


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick suite with its record and its tables."""
    results = tmp_path_factory.mktemp("quick")
    fake_runs.write_suite(results)
    fake_runs.record_suite(results)
    fake_runs.make_tables(results)
    return results


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paper suite with its tables."""
    results = tmp_path_factory.mktemp("paper")
    fake_runs.write_suite(results, dataset="imagenet")
    fake_runs.record_suite(results, "paper")
    fake_runs.make_tables(results)
    return results


@pytest.fixture(scope="session")
def drawn(quick: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the quick suite with its plots and its report, index.html."""
    results = tmp_path_factory.mktemp("drawn") / "results"
    shutil.copytree(quick, results)
    plots.draw_plots(results)
    report.main([str(results), "--out", str(results / "index.html")])
    return results


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One full-precision and one quantized run, no ablation, with plots and report."""
    results = tmp_path_factory.mktemp("bare")
    checkpoint = fake_runs.write_run(results / "runs", "resnet20", "fp", (32, 32), 0)
    lines = [(checkpoint, "checkpoint")]
    for method, bits in (("fp", (32, 32)), ("pact", (2, 2))):
        run = fake_runs.write_run(
            results / "runs", "resnet20", method, bits, 0, pretrained=checkpoint
        )
        lines.append((run, "run"))
    (results / "jobs").mkdir()
    fake_runs.write_job(results / "jobs" / "a.jsonl", lines)
    fake_runs.record_suite(results)
    fake_runs.make_tables(results)
    plots.draw_plots(results)
    report.main([str(results), "--out", str(results / "index.html")])
    return results


@pytest.fixture(scope="session")
def every_method(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network with every method, with tables."""
    results = tmp_path_factory.mktemp("every")
    fake_runs.write_every_method(results)
    fake_runs.make_tables(results)
    return results
