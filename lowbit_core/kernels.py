"""Kernels of our own for the processor (kernels.cpp): built once, cached, called without a compiler.

torch.compile makes a quantizer one pass too, but costs a process seconds of imports and tracing, each
call ten times the dispatch, and cannot hand a value's ReLU, levels, gate and sums over in one pass
(docs/performance.md). Every function here takes and gives what the function of the same name does
that it stands in for; float32 tensors on the processor alone.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from lowbit_core.files import locked, replace_file

SOURCE = Path(__file__).with_name("kernels.cpp")
# No fused multiply-add: eager arithmetic has none, and levels must be equal to the last bit.
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-shared", "-fPIC",
    # What it tunes for on an unknown AMD splits every unaligned store in two.
    *(["-mtune=haswell"] if platform.machine() == "x86_64" else []),
)  # fmt: skip
COMPILERS = ("g++", "clang++", "c++")
WEIGHTINGS = {"equal": 0, "inverse_variance": 1, "median": 2}


def compiler() -> str | None:
    """Path of a C++ compiler, if there is one."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def cache_folder() -> Path:
    """Of this user, shared by all checkouts: a library is named by all that it is made from."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit-bench"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built if need be; None, with one sentence on stderr, where that fails."""
    try:
        return _declared(ctypes.CDLL(str(_built())))
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[0]
        print(f"warning: the quantizers' kernels cannot be built: {reason}", file=sys.stderr)
        return None


def _built() -> Path:
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C++ compiler is found")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    parts = (SOURCE.read_text(), *FLAGS, version.stdout, _processor())
    path = cache_folder() / f"kernels-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with locked(
            path.with_suffix(".lock"), "waiting for another process that builds the kernels"
        ):
            if not path.exists():
                with replace_file(path) as temporary:
                    words = [command, *FLAGS, str(SOURCE), "-o", str(temporary)]
                    subprocess.run(words, capture_output=True, text=True, check=True)
    return path


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("flags", "Features", "model name", "vendor_id")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_FLOAT = ctypes.c_float
_TYPES = {
    "quantize_and_sum": [
        _POINTER, _LONG, _LONG, _LONG, _POINTER, _INT, _INT, _FLOAT, *[_POINTER] * 4,
    ],
    "quantize": [_POINTER, _LONG, _POINTER, _INT, _INT, _FLOAT, _POINTER],
    "clip_round": [_POINTER, _LONG, *[_POINTER] * 3, _INT, _FLOAT, *[_POINTER] * 4],
    "through_gate": [*[_POINTER] * 3, _LONG, _POINTER, _POINTER],
    "update_basis": [
        _POINTER, *[_LONG] * 4, _POINTER, _INT, _INT, _INT, _POINTER, _POINTER,
    ],
    "quantize_rows": [_POINTER, _LONG, _LONG, _POINTER, _INT, _POINTER, _POINTER],
    "order_rows": [_POINTER, _LONG, _INT],
    "direct_weight": [_POINTER, _LONG, _LONG, _POINTER, _INT, _POINTER],
    "basis_gradient": [*[_POINTER] * 3, _LONG, _LONG, _INT, _POINTER, _POINTER],
    "dorefa_weight": [_POINTER, _LONG, _POINTER, _POINTER],
    "dorefa_gradient": [_POINTER, _POINTER, _LONG, _POINTER],
}  # fmt: skip


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, types in _TYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, None
    return library


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def usable(*arguments: object) -> bool:
    """Whether the kernels take these arguments: float32 on the processor, and a library."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.dtype is not torch.uint8]
    return (
        all(x.dtype is torch.float32 and x.device.type == "cpu" for x in tensors)
        and library() is not None
    )


# -- activations -----------------------------------------------------------------------------


def quantize_and_sum(x, v, signed, ceiling=math.inf, fork=False):
    y, gate = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if fork else None
    bits = len(v)
    sums = torch.empty(2 + bits + bits * (bits + 1) // 2, x.shape[0], x.shape[2])
    library().quantize_and_sum(
        _at(x), *x.shape, _at(v), bits, signed, ceiling, _at(y), _at(relu), _at(gate), _at(sums)
    )
    return y, relu, gate, sums


def quantize(x, v, signed, ceiling=math.inf):
    x = _dense(x)
    y = torch.empty_like(x)
    library().quantize(_at(x), x.numel(), _at(v), len(v), signed, ceiling, _at(y))
    return y


def _dense(x: Tensor) -> Tensor:
    """x, or a copy of it without gaps; its own order of memory is kept."""
    in_place = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if in_place else x.contiguous()


def update_basis(sums, v, channels, size, weighting, signed):
    new, bad = torch.empty_like(v), torch.empty((), dtype=torch.bool)
    library().update_basis(
        _at(sums), *sums.shape[1:], channels, size, _at(v), len(v), signed, WEIGHTINGS[weighting],
        _at(new), _at(bad),
    )  # fmt: skip
    return new, bad


def clip_round(x, top, bottom, step, signed, ceiling):
    x = _dense(x)
    y = torch.empty_like(x)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), None, None, None,
    )  # fmt: skip
    return y


def clip_round_gated(x, top, bottom, step, signed, ceiling, fork):
    y, gate = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if fork else None
    bad = torch.empty((), dtype=torch.bool)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), _at(relu), _at(gate), _at(bad),
    )  # fmt: skip
    return y, relu, gate, bad


def through_gate(g, g_relu, gate):
    to = torch.empty_like(g)
    library().through_gate(_at(g), _at(g_relu), _at(gate), g.numel(), _at(to), None)
    return to


def through_gate_summed(g, g_relu, gate):
    to, sums = torch.empty_like(g), torch.empty(2)
    library().through_gate(_at(g), _at(g_relu), _at(gate), g.numel(), _at(to), _at(sums))
    return to, sums[0], sums[1]


# -- weights ---------------------------------------------------------------------------------


def quantize_rows(x, v):
    y = torch.empty_like(x)
    library().quantize_rows(_at(x), *x.shape, _at(v), v.shape[1], _at(y), None)
    return y


def refit_rows(x, v):
    y, fit = torch.empty_like(x), torch.empty_like(v)
    library().quantize_rows(_at(x), *x.shape, _at(v), v.shape[1], _at(y), _at(fit))
    return y, fit


def direct_weight(z, v):
    w, v = torch.empty_like(z), v.clone()
    library().direct_weight(_at(z), *z.shape, _at(v), v.shape[1], _at(w))
    return w, v


def direct_gradient(g, z, v):
    codes, basis = torch.empty_like(z), torch.empty_like(v)
    library().basis_gradient(_at(g), _at(z), _at(v), *z.shape, v.shape[1], _at(codes), _at(basis))
    return codes, basis


def indirect_weight(w, v):
    v = v.clone()
    library().order_rows(_at(v), *v.shape)
    return quantize_rows(w, v), v


def indirect_gradient(g, w, v):
    basis = torch.empty_like(v)
    library().basis_gradient(_at(g), _at(w), _at(v), *w.shape, v.shape[1], None, _at(basis))
    return basis


def dorefa_weight(w, steps):
    u, y = torch.tanh(w), torch.empty_like(w)
    library().dorefa_weight(_at(u), u.numel(), _at(steps), _at(y))
    return y


def dorefa_gradient(g, w):
    u, to = torch.tanh(w), torch.empty_like(w)
    library().dorefa_gradient(_at(g), _at(u), u.numel(), _at(to))
    return to
