"""Which GPU a training process uses: each GPU has a number of slots, which are taken by file locks.

Snakemake counts processes (`--resources gpu=8`) but does not say which GPU each of them gets.
"""

import fcntl
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple

WAIT_SECONDS = 1.0  # between two attempts while all slots are taken


class Slot(NamedTuple):
    """A share of the GPU of index `device`; it is taken as long as `lock` is open."""

    device: int
    lock: IO


def lock_folder() -> Path:
    """Where this user's processes on this machine keep their locks."""
    return Path(tempfile.gettempdir()) / f"lowbit-gpus-{os.getuid()}"


def take_slot(names: list[str], per_gpu: int, folder: Path) -> Slot:
    """Take one of `per_gpu` slots on each GPU of `names`; waits while all of them are taken.

    A GPU with fewer processes comes first. When a process ends, in whatever way, its slot is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        for number in range(per_gpu):
            for index, name in enumerate(names):
                lock = (folder / f"{name}.{number}").open("w")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return Slot(index, lock)
                except BlockingIOError:
                    lock.close()
        if not waiting:
            print(f"waiting for a GPU: {per_gpu} processes use each", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(WAIT_SECONDS)


def gpu_names() -> list[str]:
    """Names of the visible GPUs that are the same in every process, whichever GPUs it can see."""
    import torch

    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]
