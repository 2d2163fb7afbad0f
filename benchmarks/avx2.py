"""Measuring as on a processor without AVX-512, on one that has it."""

import os

from lowbit_core.kernels.build import TARGET

LIMITS = {
    TARGET: "x86-64-v3",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # also in OpenVINO
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def hold_to_avx2() -> None:
    """Hold the kernels, the engine, torch and OpenVINO to AVX2; before any of them computes."""
    os.environ.update(LIMITS)


def held() -> bool:
    """Whether all of them are held; $LOWBIT_TARGET alone leaves torch as it is."""
    return LIMITS.items() <= os.environ.items()
