"""Invented suites with their records and tables."""

from pathlib import Path

import fake_runs
import pytest

from workflow.results import tables


def make_tables(folder: Path) -> None:
    """All tables of a results folder, from its record."""
    tables.main([str(folder)])
    tables.main([str(folder), "--ablations"])


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished quick suite with its record and its tables."""
    results = tmp_path_factory.mktemp("quick")
    fake_runs.write_suite(results)
    fake_runs.record_suite(results)
    make_tables(results)
    return results


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A paper suite with its tables."""
    results = tmp_path_factory.mktemp("paper")
    fake_runs.write_suite(results, dataset="imagenet")
    fake_runs.record_suite(results, "paper")
    make_tables(results)
    return results
