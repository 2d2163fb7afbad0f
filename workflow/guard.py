"""One sweep (a Snakemake call) at a time in a folder, and signals that reach its jobs."""

import fcntl
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

OUR_MODULES = ("workflow.", "lowbit_core.")
_lock = None  # open as long as the process lives: the kernel drops the lock when it ends


def begin(folder: Path) -> None:
    """Called once before the first job; ends the process if another sweep works in `folder`."""
    global _lock
    _lock, is_ours = _try_lock(folder)
    if not is_ours:
        _lock.seek(0)
        sys.exit(
            f"error: another sweep is running in {folder} (process {_lock.read().strip()}): "
            "wait until it ends, or stop it"
        )
    _lock.truncate(0)
    print(os.getpid(), file=_lock, flush=True)
    _pass_on_sigterm()


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, which is made if it is missing.

    A link that a sweep in this folder uses stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() == folder.resolve():
        return
    link.parent.mkdir(exist_ok=True)
    lock, is_ours = _try_lock(Path.cwd())
    with lock:
        if is_ours:
            link.unlink(missing_ok=True)
            link.symlink_to(folder.resolve())


def _try_lock(folder: Path) -> tuple[IO[str], bool]:
    """The lock file of the sweeps in `folder`; False if another process has locked it."""
    file = (folder / ".snakemake" / "sweep.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return file, False
    return file, True


def _pass_on_sigterm() -> None:
    """Send SIGTERM on to the jobs, for which Snakemake itself would only wait."""
    answer_of_snakemake = signal.getsignal(signal.SIGTERM)
    if not callable(answer_of_snakemake):
        return

    def stop(number: int, frame: FrameType | None) -> None:
        answer_of_snakemake(number, frame)
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(word.startswith(OUR_MODULES) for word in child.cmdline()):
                    child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
