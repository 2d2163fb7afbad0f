"""Which loader reads the data: FFCV, or the plain torch reference where FFCV cannot be imported."""

import sys

from lowbit_core.errors import InputError

BACKENDS = ("ffcv", "torch")
_said: set[str] = set()


def pick_backend(requested: str) -> tuple[str, str]:
    """The backend to use and why. A fall-back is said aloud once a process, on stderr."""
    if requested not in BACKENDS:
        raise InputError(f"unknown loader {requested!r}: choose one of {', '.join(BACKENDS)}")
    if requested == "torch":
        return "torch", "requested"
    try:
        import ffcv  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        reason = f"ffcv cannot be imported ({error})"
        if reason not in _said:
            print(f"warning: {reason}: loading with the slower torch reference", file=sys.stderr)
            _said.add(reason)
        return "torch", reason
    return "ffcv", "requested"
