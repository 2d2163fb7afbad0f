"""Augmentation of a whole batch at once, in torch, on the device.

All random numbers of an epoch are drawn at its start on the CPU from a seed, one set for each
position in the epoch's order. So they are the same on every device, for both loaders, and after a
resume.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lowbit_core.runtime.errors import InputError

# The names that crop, and those that flip. Images of varying size are cropped by their reader.
CROP, FLIP = {"crop", "crop_flip"}, {"flip", "crop_flip", "resized_crop_flip"}
RAW_AUGMENTATIONS = ("none", "flip", "crop", "crop_flip")
IMAGE_AUGMENTATIONS = ("none", "resized_crop_flip")


def check_augmentation(name: str, raw: bool) -> str:
    """Return `name` if it is legal for raw images (`raw`) or else for images of varying size.

    Raises InputError if it is not.
    """
    legal = RAW_AUGMENTATIONS if raw else IMAGE_AUGMENTATIONS
    if name not in legal:
        raise InputError(f"unknown augmentation {name!r}: choose one of {', '.join(legal)}")
    return name


class Draws(NamedTuple):
    """The random choices of an epoch: crop offsets (N, 2) int64, in pixels, and flips (N,) bool."""

    offsets: Tensor | None
    flips: Tensor | None


def padding(side: int) -> int:
    """Pixels of zero padding on each edge before a crop: 4 for 32, 3 for 28."""
    return side // 8


def draw(name: str, count: int, side: int, seed: int) -> Draws:
    """The choices of augmentation `name` for `count` images of `side` pixels."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(2 * padding(side) + 1, (count, 2), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    return Draws(offsets if name in CROP else None, flips if name in FLIP else None)


def apply(images: Tensor, draws: Draws, batch: slice) -> Tensor:
    """Crop and flip images (B, C, H, W), those at positions `batch` of the epoch; same shape."""
    if draws.offsets is not None:
        images = _shift(images, draws.offsets[batch].to(images.device))
    if draws.flips is not None:
        flips = draws.flips[batch].to(images.device)
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    return images


def _shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Pad with zeros and crop to the same size, each image at its offset of (B, 2)."""
    height, width = images.shape[2:]
    pad = padding(height)
    windows = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    windows = windows.unfold(2, height, 1).unfold(3, width, 1)  # a view: every window of the image
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]
