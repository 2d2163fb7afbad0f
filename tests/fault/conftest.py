"""The uninterrupted sweep that every fault is compared with, and fresh projects to break."""

import pytest
from sweeps import Project


@pytest.fixture(scope="session")
def reference(tmp_path_factory, digits_root):
    """The tiny suite swept without a fault."""
    project = Project(tmp_path_factory.mktemp("reference"), digits_root)
    project.sweep()
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
