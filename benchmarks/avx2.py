"""Measuring with AVX2 alone: on a processor without AVX-512, or as on one."""

import os

from lowbit_core.kernels.build import TARGET
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.hardware import processor_words

LIMITS = {
    TARGET: "x86-64-v3",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # also in OpenVINO
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def hold_to_avx2() -> None:
    """Hold the kernels, the engine, torch and OpenVINO to AVX2; before any of them computes.

    A processor without AVX-512 needs no holding. Raises InputError on one without AVX2.
    """
    words = processor_words()
    if "avx2" not in words:
        raise InputError("--avx2: this processor has no AVX2: leave the option out")
    if "avx512f" in words:
        os.environ.update(LIMITS)


def held() -> bool:
    """Whether all of them are held; $LOWBIT_TARGET alone leaves torch as it is."""
    return LIMITS.items() <= os.environ.items()
