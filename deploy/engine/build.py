"""Builds the engine's library once for each instruction set, and declares its functions."""

import ctypes
import functools
import platform
import subprocess
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from lowbit_core.kernels import build
from lowbit_core.runtime.errors import InputError

FOLDER = Path(__file__).parent
# The compiler fuses no multiplication and sum by itself: results must not depend on what it can.
FLAGS = (
    "-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
    "-Wno-psabi", "-shared", "-fPIC",
    *(["-mtune=haswell"] if platform.machine() == "x86_64" else []),
)  # fmt: skip

_TYPES = {"i": c_int32, "f": c_float, "p": c_void_p}


class Step(ctypes.Structure):
    """The struct Step of step.h, field for field; without a letter a field is an int32."""

    _fields_ = [
        (name, _TYPES[letter or "i"])
        for name, _, letter in (
            field.partition(":")
            for field in (
                "kind input other output channels high wide outputs out_high out_wide kernel_high "
                "kernel_wide stride_high stride_wide pad_high pad_wide relu ceiling:f shift:p "
                "weight:p window:p thresholds threshold:p level:p a_planes a_groups a_bits:p "
                "a_multiplier:p a_group:p a_value:p a_offset:f a_halves w_levels w_planes w_groups "
                "w_codes:p w_bits:p w_multiplier:p w_group:p w_value:p w_offset:p kernel"
            ).split()
        )
    ]


@functools.cache
def library(target: str | None = None, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The engine for an instruction set, a value of -march; None: that of the kernels.

    InputError says in one sentence why it cannot be built.
    """
    try:
        march = f"-march={target or build.target()}"
        path = build.built(FOLDER, "engine", (*FLAGS, march, *flags))
        return _declared(ctypes.CDLL(str(path)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[0]
        raise InputError(f"the engine that runs networks cannot be built: {reason}") from error


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    floats = POINTER(c_float)
    functions = {
        "step_size": (c_int32, []),
        "network_new": (
            c_void_p,
            [
                POINTER(Step),
                c_int32,
                POINTER(c_int64),
                c_int32,
                c_int64,
                c_int64,
                c_int32,
                c_int32,
                c_int64,
            ],  # fmt: skip
        ),
        "network_free": (None, [c_void_p]),
        "network_kernel": (c_char_p, [c_void_p, c_int32]),
        "network_run": (c_int32, [c_void_p, floats, c_int32, c_int64, floats, c_int32]),
        "network_step": (
            None,
            [c_void_p, c_int32, floats, floats, floats, c_int32, POINTER(c_int32)],
        ),
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    assert library.step_size() == ctypes.sizeof(Step), "Step differs from the struct of step.h"
    return library
