"""Batches of normalised images, the same to the bit for the same seed, from FFCV or plain torch."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit_core.data import augment
from lowbit_core.data.normalisation import MEAN_STD
from lowbit_core.data.resident_reader import ResidentReader, fits
from lowbit_core.datasets.catalog import Dataset, dataset
from lowbit_core.datasets.manifest import check, read_manifest
from lowbit_core.runtime.backend import BACKENDS, import_ffcv
from lowbit_core.runtime.errors import InputError


@dataclass(eq=False)
class BatchLoader:
    """Batches of one split; made by `make_loader`.

    `len()` is the number of batches of an epoch, `images` the number of its images. `epoch(e)`
    depends only on the loader's arguments and e, so a resumed run sees the same batches.
    """

    reader: object
    data: Dataset
    indices: np.ndarray
    batch_size: int
    train: bool
    augmentation: str
    seed: int
    device: torch.device
    side: int
    share: tuple[int, int]

    def __post_init__(self) -> None:
        self._labels = torch.from_numpy(self.reader.labels[self.indices])
        self.backend, count = self.reader.name, len(self.indices)
        # x / 255 normalised by mean and std, as one multiplication and one addition.
        mean, std = map(torch.tensor, MEAN_STD[self.data.name])
        self._scale = (1 / (255 * std)).view(1, -1, 1, 1).to(self.device)
        self._shift = (-mean / std).view(1, -1, 1, 1).to(self.device)
        self.images = count // self.batch_size * self.batch_size if self.train else count

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def epoch(self, e: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W) float32 normalised, labels (B,) int64), on the device.

        Training epochs are shuffled and drop the last partial batch; others keep the given order.
        With a share, B counts only this process's part of each training batch.
        """
        positions = np.arange(len(self.indices))
        if self.train:
            positions = np.random.default_rng(_hash("order", self.seed, e)).permutation(positions)
        places, batch_size = self._places_of_share()
        if len(places) == 0:  # more processes than images
            return
        draws = augment.draw(
            self.augmentation, self.images, self.side, _hash("augmentation", self.seed, e)
        )
        positions = positions[places]
        batches = self.reader.batches(
            self.indices[positions], batch_size, _hash("crop", self.seed, e), places
        )
        # Copied once an epoch: a copy in each step would make the processor wait for the device.
        rows = torch.from_numpy(places)
        draws = augment.Draws(*(d if d is None else d[rows].to(self.device) for d in draws))
        labels = self._labels[torch.from_numpy(positions)].to(self.device)
        with closing(batches):
            for i, pixels in enumerate(batches):
                batch = slice(i * batch_size, i * batch_size + len(pixels))
                pixels = augment.apply(self._moved(pixels), draws, batch)
                # A conversion, not a view: FFCV reuses the memory of `pixels`.
                images = pixels.to(torch.float32).mul_(self._scale).add_(self._shift)
                yield images, labels[batch]

    def _places_of_share(self) -> tuple[np.ndarray, int]:
        """The positions in the epoch's order that this process reads, and its images per batch."""
        (part, parts), places = self.share, np.arange(self.images)
        if not self.train:
            return places[part::parts], self.batch_size
        size = self.batch_size // parts
        batches = places.reshape(-1, self.batch_size)
        return batches[:, part * size : (part + 1) * size].reshape(-1), size

    def _moved(self, pixels: Tensor) -> Tensor:
        """`pixels` on the device, copied through pinned memory: the step does not wait for it."""
        if pixels.device.type == "cpu" and self.device.type == "cuda":
            return pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.to(self.device)


def channels_last(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches with images (B, C, H, W) in channels_last layout: no layer has to copy them."""
    for images, labels in batches:
        yield images.contiguous(memory_format=torch.channels_last), labels


def all_images(data: BatchLoader) -> Tensor:
    """All images of a loader (N, C, H, W), in the memory layout that its reader gives them."""
    return torch.cat([images for images, _ in data.epoch(0)])


def make_loader(
    data_dir: str | Path,
    split: str,
    *,
    batch_size: int,
    train: bool,
    indices: np.ndarray | None = None,
    augmentation: str = "none",
    seed: int = 0,
    device: str | torch.device = "cpu",
    backend: str = "ffcv",
    threads: int = 1,
    resolution: int | None = None,
    resident: bool | None = None,
    share: tuple[int, int] = (0, 1),
) -> BatchLoader:
    """A loader of `split` ("train" or "test") from the folder that `prepare` wrote.

    train: shuffle each epoch by (seed, epoch) and drop the last partial batch, else keep the order.
    indices: the samples to load, (N,) integers; all of them when None.
    augmentation: "none", "flip", "crop", "crop_flip" for raw sets (zero padding of side // 8);
        "none" (centre crop) or "resized_crop_flip" for ImageNet. ImageNet's random crops differ
        between the two backends, and with FFCV they repeat only if there is one thread.
    resolution: side of ImageNet's crops in pixels, by default 224; not for raw sets.
    resident: keep the pixels of a raw set on the device; None does so on a GPU with enough memory.
    share: (part, parts): load one of `parts` equal parts of every training batch, or of the images
        of an evaluation; together the parts are what one process alone would load.
    Order, augmentation and pixels of raw sets are the same to the bit for both backends and for
    resident pixels. Raises InputError for an illegal argument, or if a file is not as written.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown loader {backend!r}: choose one of {', '.join(BACKENDS)}")
    data_dir, device = Path(data_dir), torch.device(device)
    data = dataset(read_manifest(data_dir, split)["dataset"])
    if resident and not data.stored_raw:
        raise InputError(f"resident pixels: not for {data.name}, whose images vary in size")
    if resident is None:
        resident = data.stored_raw and fits(data_dir, split, device)
    manifest = check(data_dir, split, "torch" if resident else backend)
    augment.check_augmentation(augmentation, data.stored_raw)
    if data.stored_raw and resolution is not None:
        raise InputError(f"resolution {resolution}: {data.name} is always loaded at {data.side}")
    if threads < 1:
        raise InputError(f"threads {threads}: must be at least 1")
    indices = _check_indices(indices, manifest["images"], f"{data_dir}/{split}")
    _check_batches(batch_size, train, share, len(indices), f"{data_dir}/{split}")
    side = data.side if resolution is None else resolution
    if resident:
        reader = ResidentReader(data_dir, split, device)
    else:
        crop = augmentation == "resized_crop_flip"
        reader = _reader(data, data_dir, split, backend, threads, side, crop)
    return BatchLoader(
        reader, data, indices, batch_size, train, augmentation, seed, device, side, share
    )


def _reader(
    data: Dataset, folder: Path, split: str, backend: str, threads: int, side: int, crop: bool
):
    """A reader of files on disk; its module is imported here, as FFCV or Pillow may be missing."""
    manifest = read_manifest(folder, split)
    if backend == "ffcv":
        import_ffcv()
        from lowbit_core.data.ffcv_reader import FfcvReader
        from lowbit_core.datasets.beton import check_beton

        path = folder / f"{split}.beton"
        check_beton(path, data, manifest["images"])
        return FfcvReader(path, threads, None if data.stored_raw else side, crop)
    from lowbit_core.data.torch_reader import ImageReader, RawReader

    if data.stored_raw:
        return RawReader(folder, split)
    return ImageReader(folder, split, Path(manifest["source"]), threads, side, crop)


def _check_batches(batch_size: int, train: bool, share: tuple, images: int, where: str) -> None:
    if batch_size < 1 or (train and batch_size > images):
        raise InputError(
            f"batch size {batch_size}: must be 1 to {images}, the images of {where} in use"
        )
    if not 0 <= share[0] < share[1] or (train and batch_size % share[1]):
        raise InputError(
            f"share {share}: the part must be from 0 to below the number of parts, which must "
            f"divide the batch size {batch_size}"
        )


def _check_indices(indices: np.ndarray | None, count: int, where: str) -> np.ndarray:
    indices = np.asarray(np.arange(count) if indices is None else indices, dtype=np.int64)
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= count:
        raise InputError(f"indices of {where}: must be at least one, from 0 to {count - 1}")
    return indices


def _hash(*parts: object) -> int:
    """A 63-bit seed. Unlike seed + epoch, it never gives two runs the same stream."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
