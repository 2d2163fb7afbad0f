"""Which loader reads the data: FFCV, or the plain torch reference where FFCV cannot be imported."""

import sys
from unittest.mock import patch

from lowbit_core.runtime.errors import InputError

BACKENDS = ("ffcv", "torch")
_said: set[str] = set()


def pick_backend(requested: str) -> tuple[str, str]:
    """The backend to use and why. A fall-back is said aloud once a process, on stderr."""
    if requested not in BACKENDS:
        raise InputError(f"unknown loader {requested!r}: choose one of {', '.join(BACKENDS)}")
    if requested == "torch":
        return "torch", "requested"
    try:
        import_ffcv()
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        reason = f"ffcv cannot be imported ({error})"
        if reason not in _said:
            print(f"warning: {reason}: loading with the slower torch reference", file=sys.stderr)
            _said.add(reason)
        return "torch", reason
    return "ffcv", "requested"


def import_ffcv() -> None:
    """Import ffcv in a second instead of four.

    It keeps two integers in a numba dictionary, whose code is compiled at each import, but reads
    them outside compiled code only: a plain dictionary does.
    """
    import numba.typed

    with patch.object(numba.typed, "Dict", dict):
        import ffcv  # noqa: F401
