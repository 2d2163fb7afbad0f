"""Which GPU a training process uses: free places are taken by file locks, so that jobs share GPUs.

Snakemake counts processes (`--resources gpu=8`) but does not say which GPU each gets.
"""

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple

LOOK_EVERY = 1.0  # seconds between looks while all places are taken


class Slot(NamedTuple):
    """A place on the device of index `device`; it is held while `lock` is open."""

    device: int
    lock: IO


def lock_folder() -> Path:
    """Where this user's processes on this machine keep their locks."""
    return Path(tempfile.gettempdir()) / f"lowbit-gpus-{os.getuid()}"


def take_slot(names: list[str], per_device: int, folder: Path) -> Slot:
    """Take one of `per_device` places on each device of `names`; waits while all are taken.

    The emptiest device comes first. A process that dies gives its place back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = False
    while True:
        for place in range(per_device):
            for index, name in enumerate(names):
                lock = (folder / f"{name}.{place}").open("w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return Slot(index, lock)
                except BlockingIOError:
                    lock.close()
        if not said:
            print(
                f"waiting for a GPU: {per_device} processes use each", file=sys.stderr, flush=True
            )
            said = True
        time.sleep(LOOK_EVERY)


def gpu_names() -> list[str]:
    """The visible GPUs by a name that is the same in every process, whatever each can see."""
    import torch

    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]
