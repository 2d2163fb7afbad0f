"""Readers without FFCV: used where it is missing, and as the reference of the tests for pixels."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lowbit_core.data.normalisation import CENTER_RATIO
from lowbit_core.datasets.imagenet import read_image
from lowbit_core.runtime.errors import InputError

CROP_SCALE, CROP_RATIO, CROP_TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


class RawReader:
    """Pixels and labels of a raw set from <split>.npy and <split>_labels.npy."""

    name = "torch"

    def __init__(self, data_dir: Path, split: str):
        self.labels = np.load(data_dir / f"{split}_labels.npy")
        self._images = np.load(data_dir / f"{split}.npy", mmap_mode="r")

    def batches(
        self, order: np.ndarray, batch_size: int, seed: int, positions: np.ndarray
    ) -> Iterator[Tensor]:
        """Yield (B, C, H, W) uint8 on the CPU."""
        for start in range(0, len(order), batch_size):
            yield torch.from_numpy(self._images[order[start : start + batch_size]])


class ImageReader:
    """Pixels and labels of a set of image files, cropped and resized to `resolution`.

    Random resized crops follow torchvision's rule. The same seed gives the same crops, with any
    number of threads.
    """

    name = "torch"

    def __init__(
        self,
        data_dir: Path,
        split: str,
        source: Path,
        threads: int,
        resolution: int,
        random_crop: bool,
    ):
        self.labels = np.load(data_dir / f"{split}_labels.npy")
        self._files = (data_dir / f"{split}.files.txt").read_text().splitlines()
        if not source.is_dir():
            raise InputError(f"{source}: the image folder that {data_dir} was made from is missing")
        self._source, self._threads = source, threads
        self._resolution, self._random_crop = resolution, random_crop

    def batches(
        self, order: np.ndarray, batch_size: int, seed: int, positions: np.ndarray
    ) -> Iterator[Tensor]:
        """Yield (B, 3, H, W) uint8 on the CPU.

        positions: of the images of `order` in the epoch; a crop depends on its position and `seed`.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(order), batch_size):
                batch = range(start, min(start + batch_size, len(order)))
                crops = list(pool.map(lambda i: self._read(order[i], (seed, positions[i])), batch))
                yield torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)

    def _read(self, index: int, seed: tuple[int, int]) -> np.ndarray:
        image, _ = read_image(self._source / self._files[index])
        if self._random_crop:
            left, top, width, height = random_crop(image.size, np.random.default_rng(seed))
        else:
            width = height = int(CENTER_RATIO * min(image.size))
            left, top = (image.width - width) // 2, (image.height - height) // 2
        box = (left, top, left + width, top + height)
        # Of Pillow's filters this is the closest to FFCV's area averages.
        return np.asarray(image.resize((self._resolution,) * 2, Image.BILINEAR, box=box))


def random_crop(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop of an image of `size` (width, height)."""
    width, height = size
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*CROP_SCALE)
        aspect = np.exp(rng.uniform(*np.log(CROP_RATIO)))
        w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), w, h
    w, h = min(width, round(height * CROP_RATIO[1])), min(height, round(width / CROP_RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h
