"""Errors that a user sees: one sentence and an exit code, no traceback."""

import sys
from collections.abc import Callable, Collection


class InputError(ValueError):
    """Bad input. The message names the value, where it was given and which values are legal."""


class DeviceLost(RuntimeError):
    """The GPU failed during a step. The message names the state that a rerun continues from."""


class StopTraining(SystemExit):
    """A signal asked the run to stop. Its state is saved, and a rerun resumes it."""


def one_of(kind: str, value: str, legal: Collection[str]) -> str:
    """Return `value`; InputError names the legal ones if it is none of them."""
    if value not in legal:
        raise InputError(f"unknown {kind} {value!r}: choose one of {', '.join(legal)}")
    return value


def run_cli(main: Callable[[], None]) -> None:
    """Call `main`. An error becomes one line and exit code 2; 3 if another device may succeed."""
    try:
        main()
    except (InputError, OSError, DeviceLost) as error:
        is_of_file = isinstance(error, OSError) and error.filename is not None
        text = f"{error.filename2 or error.filename}: {error.strerror}" if is_of_file else error
        print(f"error: {text}", file=sys.stderr)
        sys.exit(3 if isinstance(error, DeviceLost) else 2)
