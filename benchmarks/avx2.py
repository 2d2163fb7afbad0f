"""Measuring with AVX2 alone: on a processor without AVX-512, or as on one."""

import os
from pathlib import Path

from lowbit_core.kernels.build import TARGET

LIMITS = {
    TARGET: "x86-64-v3",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # also in OpenVINO
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def hold_to_avx2() -> None:
    """Hold the kernels, the engine, torch and OpenVINO to AVX2; before any of them computes.

    A processor without AVX-512 needs no holding.
    """
    if has_avx512():
        os.environ.update(LIMITS)


def has_avx512() -> bool:
    """Whether this processor has AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512f" in cpuinfo.read_text().split()


def held() -> bool:
    """Whether all of them are held; $LOWBIT_TARGET alone leaves torch as it is."""
    return LIMITS.items() <= os.environ.items()
