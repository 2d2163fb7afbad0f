"""What a run was made with: processor, versions, code."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

COMMIT = "LOWBIT_COMMIT"


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions that can change a number; a package that is missing is left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "ffcv", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit of this checkout, `-dirty` where files differ from it; empty outside git.

    A copy of the code that was carried elsewhere names its commit by $LOWBIT_COMMIT.
    """
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    root = Path(__file__).parent
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
