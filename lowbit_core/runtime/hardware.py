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


def instruction_set() -> str:
    """What torch uses of this processor, such as `AVX2`; `AVX512, bf16` where bfloat16 is computed
    by instructions and not emulated."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability}, bf16" if computes_bfloat16() else capability


def computes_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(processor_words())


def processor_words() -> set[str]:
    """The words with which Linux describes this processor, `avx2` for instance; else none."""
    cpuinfo = Path("/proc/cpuinfo")
    return {*cpuinfo.read_text().split()} if cpuinfo.exists() else set()


def versions() -> dict[str, str]:
    """Versions of the packages that can change a number; missing packages are left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "ffcv", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str:
    """$LOWBIT_COMMIT, or this checkout's commit, `-dirty` if files differ; empty outside git."""
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    git = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=12"]
    with suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    return ""
