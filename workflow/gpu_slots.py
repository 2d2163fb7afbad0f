"""Which GPU a training process uses: each GPU has a number of slots, which are taken by file locks.

Snakemake counts processes (`--resources gpu=8`) but does not say which GPU each of them gets.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, NamedTuple

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import try_lock

WAIT_SECONDS = 1.0  # between two attempts while all slots are taken
_taken = []  # the slot of this process, held until it ends


class Slot(NamedTuple):
    """A share of the GPU of index `device`; it is taken as long as `lock` is open."""

    device: int
    lock: IO


def take_slot(names: list[str], per_gpu: int, folder: Path) -> Slot:
    """Take one of `per_gpu` slots on each GPU of `names`; waits while all of them are taken.

    A GPU with fewer processes comes first. When a process ends, in whatever way, its slot is free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        for number in range(per_gpu):
            for index, name in enumerate(names):
                if lock := try_lock(folder / f"{name}.{number}"):
                    return Slot(index, lock)
        if not waiting:
            print(f"waiting for a GPU: {per_gpu} processes use each", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(WAIT_SECONDS)


def take_device(per_gpu: int):
    """The torch.device of this process until it ends: a GPU that at most `per_gpu` processes use.

    Waits while all are taken. The CPU on a machine without GPUs. Raises InputError if torchrun
    started more processes than this machine has GPUs.
    """
    import torch

    count = torch.cuda.device_count()
    if count == 0:
        return torch.device("cpu")
    if count < (asked := int(os.environ.get("LOCAL_WORLD_SIZE", 1))):
        raise InputError(
            f"torchrun started {asked} processes, which need a GPU each: there must be at most "
            f"{count}, the number of GPUs of this machine"
        )
    # Names that are the same in every process, whichever GPUs it can see.
    names = [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]
    slot = take_slot(names, per_gpu, Path(tempfile.gettempdir()) / f"lowbit-gpus-{os.getuid()}")
    _taken.append(slot)
    torch.cuda.set_device(slot.device)
    return torch.device("cuda", slot.device)
