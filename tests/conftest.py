"""Settings and data that several test modules share."""

import pytest
import torch
from hypothesis import settings

# The same examples each time; a loaded machine must not fail a test by its clock.
settings.register_profile("lowbit", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("lowbit")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """A test that fails must fail again."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """A data folder that holds the prepared data set `digits`."""
    from lowbit_core.datasets.catalog import dataset
    from lowbit_core.datasets.prepare import prepare

    root = tmp_path_factory.mktemp("datasets")
    prepare(dataset("digits"), root / "digits")
    return root
