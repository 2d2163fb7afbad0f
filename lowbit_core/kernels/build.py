"""Builds the kernels' library once, keeps it in a cache and loads it by ctypes."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from lowbit_core.runtime.files import locked, replace_file

FOLDER = Path(__file__).parent
# No fused multiply-add: eager arithmetic has none, and levels must be equal to the last bit.
FLAGS = (
    "-std=c++17", "-O3", "-fopenmp", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-shared", "-fPIC",
    # On an AMD processor that it does not know, g++ would split every unaligned store in two.
    *(["-mtune=haswell"] if platform.machine() == "x86_64" else []),
)  # fmt: skip
COMPILERS = ("g++", "clang++", "c++")
TARGET = "LOWBIT_TARGET"


def compiler() -> str | None:
    """The path of a C++ compiler, or None where there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def target() -> str:
    """The instruction set to build for, as the compiler's -march names it.

    It is $LOWBIT_TARGET, or else this processor's own. Results are the same with any.
    """
    return os.environ.get(TARGET) or "native"


def cache_folder() -> Path:
    """This user's cache. All checkouts share it: a library's name hashes what it is built from."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowbit-bench"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built if they are not in the cache.

    None where that fails; one sentence on stderr then says why.
    """
    try:
        return _declared(ctypes.CDLL(str(built(FOLDER, "kernels", (*FLAGS, f"-march={target()}")))))
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip().splitlines()[0]
        print(f"warning: the quantizers' kernels cannot be built: {reason}", file=sys.stderr)
        return None


def built(folder: Path, name: str, flags: tuple[str, ...]) -> Path:
    """The library of the C++ files in and below `folder`, from the cache or built now.

    Raises OSError where no compiler is found, CalledProcessError where it fails.
    """
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C++ compiler is found")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".cpp", ".h"))
    code = {str(f.relative_to(folder)): f.read_text() for f in files}
    parts = (code, *flags, version.stdout, _processor())
    path = cache_folder() / f"{name}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if path.exists():
        return path
    with locked(path.with_suffix(".lock"), f"waiting for another process that builds the {name}"):
        if not path.exists():
            with replace_file(path) as temporary:
                sources = [str(folder / file) for file in code if file.endswith(".cpp")]
                words = [command, *flags, *sources, "-o", str(temporary)]
                subprocess.run(words, capture_output=True, text=True, check=True)
    return path


def _processor() -> str:
    """The processor's name and features, which -march=native depends on.

    They belong to the library's name because machines of different kinds may share a cache.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    wanted = ("flags", "Features", "model name", "vendor_id")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}
_ARGUMENTS = {  # the types of each kernel's arguments
    "quantize_and_sum": "pilllpiifpppp",
    "quantize": "pilpiifp",
    "clip_round": "pilpppifpppp",
    "apply_ste_mask": "pipplpp",
    "quantize_in_pieces": "pilppiifpppp",
    "pieces_gradient": "pippplppipiifpppp",
    "update_basis": "pllllpiiipp",
    "quantize_rows": "pllpipp",
    "order_rows": "pli",
    "direct_weight": "pllpip",
    "basis_gradient": "pppllipp",
    "relaxed_rows": "pllpipp",
    "two_levels": "pllppp",
    "two_levels_gradient": "pppppllp",
    "threshold_and_mean_above": "plfpp",
    "dorefa_weight": "plpp",
    "dorefa_gradient": "pplp",
}


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, letters in _ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in letters], None
    return library
