"""One run on several processes, one a GPU, that `torchrun` starts: what they share.

Every process holds the whole network and reads its part of each batch. Gradients are averaged,
batch norm and the quantizers' fits see the whole batch, and the first process alone writes. Without
`start`, or with one process, every function here is the identity.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from lowbit_core.runtime.errors import InputError

_alone = False


def launched() -> bool:
    """True in a process that torchrun started."""
    return dist.is_torchelastic_launched()


def start(device: torch.device) -> None:
    """Join the other processes: NCCL between GPUs, Gloo between processors."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no need of its name
    gpu = device.type == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")


def finish() -> None:
    """Leave the others, where there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Number of processes that train the run."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """True in the process that writes files."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within the block every process is for itself: all do the same on the same data."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def local_batch(batch_size: int) -> int:
    """This process's part of a batch. Raises InputError where the parts would differ."""
    if batch_size % world():
        raise InputError(
            f"batch_size {batch_size} cannot be shared by {world()} processes: choose a number of "
            "GPUs that divides it"
        )
    return batch_size // world()


def summed(x: Tensor) -> Tensor:
    """The sum of x over the processes, the same to the bit in all of them. No gradient."""
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """The processes' x, one a row."""
    if world() == 1:
        return x[None]
    rows = torch.zeros(world(), *x.shape, dtype=x.dtype, device=x.device)
    rows[rank()] = x
    return summed(rows)


def batch_sums(sums: Tensor, size: int) -> tuple[Tensor, int]:
    """Sums (S, P, M) of blocks of this process's part, and values a channel, of the whole batch.

    Folded to (S, 1, M) in float64 on the way, so that little is sent.
    """
    if world() == 1:
        return sums, size
    return summed(sums.double().sum(1, keepdim=True)), size * world()


def greatest(value: int) -> int:
    """The greatest of the processes' numbers; between processors alone, so no GPU is waited for."""
    if world() == 1:
        return value
    held = torch.tensor(value)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held)


def from_first(ask: Callable[[], object]) -> object:
    """What `ask()` says in the first process, a JSON value. An error there is raised everywhere."""
    if world() == 1:
        return ask()
    value, error, of_input = None, None, False
    if is_first():
        try:
            value = ask()
        except (InputError, OSError) as caught:
            error, of_input = str(caught), isinstance(caught, InputError)
    said = json.dumps([value, error, of_input]).encode()
    data = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    length = torch.tensor(len(data))
    dist.broadcast(length, 0)
    data = data if is_first() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    value, error, of_input = json.loads(data.numpy().tobytes())
    if error is not None:
        raise (InputError if of_input else OSError)(error)
    return value
