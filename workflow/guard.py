"""What holds for a whole sweep: one at a time in a folder, and signals that reach its jobs."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import psutil

OURS = ("workflow.", "lowbit_core.")
_lock = None  # open for the life of the process: the kernel drops the lock with it


def begin(folder: Path) -> None:
    """Called once before the first job; ends the process if another sweep works in `folder`."""
    global _lock
    _lock = (folder / ".snakemake" / "sweep.lock").open("a+")
    try:
        fcntl.flock(_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _lock.seek(0)
        sys.exit(
            f"error: another sweep is running in {folder} (process {_lock.read().strip()}): "
            "wait until it ends, or stop it"
        )
    _lock.truncate(0)
    print(os.getpid(), file=_lock, flush=True)
    _pass_on_sigterm()


def _pass_on_sigterm() -> None:
    """Snakemake answers SIGTERM by waiting for running jobs: they are told to stop."""
    snakemakes_own = signal.getsignal(signal.SIGTERM)

    def stop(number: int, frame: object) -> None:
        snakemakes_own(number, frame)
        for child in psutil.Process().children(recursive=True):
            try:
                if any(word.startswith(OURS) for word in child.cmdline()):
                    child.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    if callable(snakemakes_own):
        signal.signal(signal.SIGTERM, stop)
