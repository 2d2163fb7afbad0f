"""SIGINT and SIGTERM: training ends its step, saves, and leaves with one line and exit code 128 + n."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lowbit_core.runtime.errors import StopTraining
from lowbit_core.runtime.progress import speaks

AGAIN = "run the same command again to go on"
_asked: signal.Signals | None = None
_held = False


def listen() -> None:
    """From now on SIGINT and SIGTERM ask for a stop instead of ending the process anywhere."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _note)


def _note(number: int, _frame: object) -> None:
    global _asked
    _asked = signal.Signals(number)
    if not _held:  # not an exception: Python swallows one that is raised in a destructor
        _say("everything that was done is kept")
        os._exit(128 + number)


def asked() -> bool:
    """True once a signal came."""
    return _asked is not None


def number() -> int:
    """The signal that came, 0 if none did."""
    return int(_asked or 0)


def ask(number: int) -> None:
    """Note a signal that another process of this run was sent; 0: none."""
    global _asked
    if number:
        _asked = signal.Signals(number)


def leave(saved: str) -> None:
    """End the process: raises StopTraining after one line that tells what was saved."""
    _say(saved)
    raise StopTraining(128 + _asked)


def _say(saved: str) -> None:
    if not speaks():
        return
    with suppress(OSError):  # the reader may be gone; not print, which must not be entered twice
        os.write(2, f"stopped by {_asked.name}: {saved}; {AGAIN}\n".encode())


@contextmanager
def held(saved: str) -> Iterator[None]:
    """A signal waits until the block ends, or until the block itself calls `leave`.

    `saved` tells what a rerun goes on from. An error that comes with the signal (it ends the
    compiler's processes too) is not reported as one.
    """
    global _held
    _held = True
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if asked():
            leave(f"{saved}; the step was given up ({type(error).__name__})")
        raise
    finally:
        _held = False
    if asked():
        leave(saved)
