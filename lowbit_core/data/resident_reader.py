"""Reads batches of uint8 pixels that a GPU holds whole: a step neither copies nor waits."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHARE = 0.25  # the most that pixels may take of the device's free memory


class ResidentReader:
    """Pixels and labels of a raw set; each process copies the pixels to the device once."""

    name = "resident"

    def __init__(self, data_dir: Path, split: str, device: torch.device):
        self.labels = np.load(data_dir / f"{split}_labels.npy")
        path = data_dir / f"{split}.npy"
        stat = path.stat()
        self._images = _on_device(str(path.resolve()), stat.st_mtime_ns, stat.st_size, device)

    def batches(
        self, order: np.ndarray, batch_size: int, seed: int, positions: np.ndarray
    ) -> Iterator[Tensor]:
        """Yield (B, C, H, W) uint8 on the device."""
        chosen = torch.from_numpy(order).to(self._images.device)
        for start in range(0, len(order), batch_size):
            yield self._images[chosen[start : start + batch_size]]


@lru_cache(maxsize=8)
def _on_device(path: str, mtime_ns: int, size: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.load(path)).to(device)


def fits(data_dir: Path, split: str, device: torch.device) -> bool:
    """True where `device` is a GPU with enough free memory for the pixels of a raw set."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return (data_dir / f"{split}.npy").stat().st_size < SHARE * free
