"""Communication between the processes of one run, which `torchrun` starts, one for each GPU.

Every process has the whole network and reads its part of each batch. Gradients are averaged, batch
norm and the quantizers' fits see the whole batch, and only the first process writes files. Before
`start`, or with one process, every function here returns what it is given.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lowbit_core.runtime.errors import InputError

_alone = False


def launched() -> bool:
    """True in a process that torchrun started."""
    return dist.is_torchelastic_launched()


def start(device: torch.device) -> None:
    """Join the other processes: by NCCL for tensors on GPUs, by Gloo for tensors on CPUs."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: its name may not resolve
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


def finish() -> None:
    """Leave the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Number of processes that train this run together; 1 inside `alone`."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """True in process 0, the only one that writes files."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block no process communicates: all compute the same from the same data."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def check_batch_size(batch_size: int) -> None:
    """Raise InputError if the processes cannot have equal parts of a batch."""
    if batch_size % world():
        raise InputError(
            f"batch_size {batch_size} cannot be shared by {world()} processes: choose a number of "
            "GPUs that divides it"
        )


def summed(x: Tensor) -> Tensor:
    """The sum of x over the processes, the same to the bit in each of them. It has no gradient."""
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def gathered(x: Tensor) -> Tensor:
    """The x of all processes, stacked: (processes, *x.shape)."""
    if world() == 1:
        return x[None]
    rows = torch.zeros(world(), *x.shape, dtype=x.dtype, device=x.device)
    rows[rank()] = x
    return summed(rows)


def batch_sums(sums: Tensor, size: int) -> tuple[Tensor, int]:
    """Turn sums (S, P, M) and values per channel `size` of one part into those of the batch.

    The P blocks are added before they are sent: the sums become (S, 1, M), in float64.
    """
    if world() == 1:
        return sums, size
    return summed(sums.double().sum(1, keepdim=True)), size * world()


def greatest(value: int) -> int:
    """The greatest of the processes' numbers, compared on CPUs: no process waits for its GPU."""
    if world() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def from_first(function: Callable[[], Any]) -> Any:
    """What `function()` returns (a JSON value) or raises (InputError, OSError) in process 0."""
    if world() == 1:
        return function()
    value, error, of_input = None, None, False
    if is_first():
        try:
            value = function()
        except (InputError, OSError) as caught:
            error, of_input = str(caught), isinstance(caught, InputError)
    message = json.dumps([value, error, of_input]).encode()
    data = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    length = torch.tensor(len(data))
    dist.broadcast(length, 0)
    data = data if is_first() else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(data, 0)
    value, error, of_input = json.loads(data.numpy().tobytes())
    if error is not None:
        raise (InputError if of_input else OSError)(error)
    return value
