"""SIGINT and SIGTERM: training finishes its step, saves, prints one line and exits with 128 + n."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lowbit_core.runtime.errors import StopTraining
from lowbit_core.runtime.progress import speaks

AGAIN = "run the same command again to go on"
_asked: signal.Signals | None = None
_deferred = False


def listen() -> None:
    """From now on SIGINT and SIGTERM ask for a stop instead of ending the process anywhere."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def _note(number: int, _frame: object) -> None:
    ask(number)
    if not _deferred:  # not an exception: Python swallows one that is raised in a destructor
        _say("everything that was done is kept")
        os._exit(128 + number)


def asked() -> bool:
    """True once a signal was received."""
    return _asked is not None


def number() -> int:
    """The number of the signal that was received, 0 if none was."""
    return int(_asked or 0)


def ask(number: int) -> None:
    """Request a stop, as if this process had received signal `number`; 0 requests nothing."""
    global _asked
    if number:
        _asked = signal.Signals(number)


def leave(saved: str) -> None:
    """Print one line that says what was saved, and raise StopTraining."""
    _say(saved)
    raise StopTraining(128 + _asked)


def _say(saved: str) -> None:
    if speaks():
        # Not `print`, which a signal handler may not enter while it runs. The reader may be gone.
        with suppress(OSError):
            os.write(2, f"stopped by {_asked.name}: {saved}; {AGAIN}\n".encode())


@contextmanager
def deferred(saved: str) -> Iterator[None]:
    """Let a signal take effect only when the block ends, or when the block calls `leave`.

    `saved` says what a rerun goes on from. An error after a signal is not reported as one: Ctrl-C
    ends the compiler's processes too.
    """
    global _deferred
    _deferred = True
    try:
        yield
    except Exception as error:
        if asked() and not isinstance(error, OSError):
            leave(f"{saved}; the step was given up ({type(error).__name__})")
        raise
    finally:
        _deferred = False
    if asked():
        leave(saved)
