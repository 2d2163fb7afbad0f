"""Choice of the loader: FFCV, or plain torch where FFCV cannot be imported."""

import sys
from unittest.mock import patch

from lowbit_core.runtime.errors import one_of

BACKENDS = ("ffcv", "torch")
_warned: set[str] = set()


def pick_backend(requested: str) -> str:
    """The backend to use. Falling back to torch prints one warning a process, on stderr."""
    if one_of("loader", requested, BACKENDS) == "ffcv":
        try:
            import_ffcv()
        except (ImportError, OSError) as error:  # OSError: a shared library is missing
            text = f"ffcv cannot be imported ({error}): data are loaded by torch, which is slower"
            if text not in _warned:
                print(f"warning: {text}", file=sys.stderr)
                _warned.add(text)
            return "torch"
    return requested


def import_ffcv() -> None:
    """Import ffcv in one second instead of four.

    ffcv keeps two integers in a numba dictionary, which numba compiles at each import. Compiled
    code never reads them, so a plain dictionary is enough.
    """
    import numba.typed

    with patch.object(numba.typed, "Dict", dict):
        import ffcv  # noqa: F401
