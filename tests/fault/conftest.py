"""The uninterrupted sweep that every fault is compared with, and fresh projects to break."""

import math
import time

import pytest
from sweeps import Project

BEGAN = time.monotonic()
SOAK_SECONDS = 15 * 60.0  # of 20 minutes in `make soak`; the rest is for what was begun


@pytest.fixture
def last_kill(request):
    """The clock's time after which nothing more is killed; only the long form has one."""
    return BEGAN + SOAK_SECONDS if request.node.get_closest_marker("soak") else math.inf


@pytest.fixture(scope="session")
def reference(tmp_path_factory, digits_root):
    """The tiny suite swept without a fault, one process at a time."""
    project = Project(tmp_path_factory.mktemp("reference"), digits_root)
    project.sweep(cores=1)
    return project


@pytest.fixture
def project(tmp_path, digits_root):
    return Project(tmp_path, digits_root)


@pytest.fixture
def trained(reference, tmp_path, digits_root):
    """A project in which the reference sweep's checkpoint is trained already."""
    project = Project(tmp_path, digits_root)
    project.adopt(reference, reference.jobs()[:1])
    return project
