"""One sweep (a Snakemake call) at a time in a folder, and signals that reach its jobs."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from lowbit_core.runtime.files import try_lock

LOCK = Path(".snakemake") / "sweep.lock"
OUR_MODULES = ("workflow.", "lowbit_core.")
_lock = None  # open as long as the process lives: the kernel drops the lock when it ends


def begin(folder: Path) -> None:
    """Called once before the first job; ends the process if another sweep works in `folder`."""
    global _lock
    _lock = try_lock(folder / LOCK)
    if _lock is None:
        process = (folder / LOCK).read_text().strip()
        sys.exit(
            f"error: another sweep is running in {folder} (process {process}): wait until it "
            "ends, or stop it"
        )
    _lock.truncate(0)
    print(os.getpid(), file=_lock, flush=True)
    _pass_on_sigterm()


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a symbolic link to `folder`, which may be missing.

    A link that a sweep in this folder uses stays as it is.
    """
    if link.is_symlink() and link.readlink() == folder.resolve():
        return
    link.parent.mkdir(exist_ok=True)
    if lock := try_lock(Path.cwd() / LOCK):
        link.unlink(missing_ok=True)
        link.symlink_to(folder.resolve())
        lock.close()


def make_folder(folder: Path) -> None:
    """Make the folder of the data; ends the process in one sentence if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: configuration data is {str(folder)!r}: {error.strerror}")


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
