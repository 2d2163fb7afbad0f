"""User-facing errors: one sentence, exit code 2, no traceback."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """Bad input. The message names the value, where it stands and what is allowed."""


class DeviceLost(RuntimeError):
    """The GPU failed in a step. The message says what a rerun goes on from."""


class StopTraining(SystemExit):
    """A signal asked the run to stop; its state is saved and a rerun resumes it."""


def run_cli(main: Callable[[], None]) -> None:
    """Call `main`; turn `InputError` and `OSError` into one line on stderr and exit code 2.

    `DeviceLost` likewise, with exit code 3: the same command may succeed elsewhere.
    """
    try:
        main()
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DeviceLost as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
