"""What a run is made with: processor or GPU, versions of packages, commit."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

COMMIT = "LOWBIT_COMMIT"


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        if model := re.search("^model name.*?:(.*)", Path("/proc/cpuinfo").read_text(), re.M):
            return " ".join(model[1].split())
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that can change a number; missing packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "ffcv", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str:
    """The commit of this checkout, with `-dirty` where files differ from it; empty outside git.

    Where the code was copied to a machine without git, $LOWBIT_COMMIT gives the commit.
    """
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    git, folder = ["git", "describe", "--always", "--dirty", "--abbrev=12"], Path(__file__).parent
    try:
        return subprocess.check_output(
            git, cwd=folder, stderr=subprocess.DEVNULL, text=True, timeout=10
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return ""
