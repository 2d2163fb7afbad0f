"""Batches of normalised images, the same to the bit for the same seed, by FFCV or plain torch."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit_core.data import augment
from lowbit_core.data.normalisation import MEAN_STD
from lowbit_core.data.resident_reader import ResidentReader, fits
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import check, read_manifest
from lowbit_core.runtime.backend import BACKENDS, import_ffcv
from lowbit_core.runtime.errors import InputError


class BatchLoader:
    """Made by `make_loader`. `len()` counts batches, `images` the images of an epoch.

    `epoch(e)` depends only on the loader's arguments and e: a resumed run sees the same batches.
    """

    def __init__(
        self,
        reader,
        data,
        indices: np.ndarray,
        *,
        batch_size: int,
        train: bool,
        augmentation: str,
        seed: int,
        device: torch.device,
        side: int,
        share: tuple[int, int],
    ):
        self._reader, self._indices = reader, indices
        self._labels = torch.from_numpy(reader.labels[indices])
        self._train, self._augmentation, self._seed = train, augmentation, seed
        self._device, self._side = device, side
        # x / 255 normalised by mean and std, as one multiplication and one addition.
        mean, std = map(torch.tensor, MEAN_STD[data.name])
        self._scale = (1 / (255 * std)).view(1, -1, 1, 1).to(device)
        self._shift = (-mean / std).view(1, -1, 1, 1).to(device)
        self.batch_size, self._share = batch_size, share
        self.backend = reader.name
        count = len(indices)
        self.images = count // batch_size * batch_size if train else count

    def __len__(self) -> int:
        return -(-self.images // self.batch_size)

    def epoch(self, e: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, H, W) float32 normalised, labels (B,) int64), on the device.

        Training epochs are shuffled and drop the last partial batch; others keep the given order.
        With a share, B is this process's part of each training batch.
        """
        positions = np.arange(len(self._indices))
        if self._train:
            positions = np.random.default_rng(_hash("order", self._seed, e)).permutation(positions)
        places, batch_size = self._own_places()
        if len(places) == 0:  # more processes than images
            return
        draws = augment.draw(
            self._augmentation, self.images, self._side, _hash("augmentation", self._seed, e)
        )
        positions = positions[places]
        batches = self._reader.batches(
            self._indices[positions], batch_size, _hash("crop", self._seed, e), places
        )
        # Copied once an epoch: a copy in each step would make the processor wait for the device.
        own = torch.from_numpy(places)
        draws = augment.Draws(*(d if d is None else d[own].to(self._device) for d in draws))
        labels = self._labels[torch.from_numpy(positions)].to(self._device)
        with closing(batches):
            for i, pixels in enumerate(batches):
                batch = slice(i * batch_size, i * batch_size + len(pixels))
                pixels = augment.apply(self._moved(pixels), draws, batch)
                # A conversion, not a view: FFCV reuses the memory of `pixels`.
                images = pixels.to(torch.float32).mul_(self._scale).add_(self._shift)
                yield images, labels[batch]

    def _own_places(self) -> tuple[np.ndarray, int]:
        """The places in an epoch's order that this process reads, and its images a batch."""
        (part, parts), places = self._share, np.arange(self.images)
        if not self._train:
            return places[part::parts], self.batch_size
        own = self.batch_size // parts
        batches = places.reshape(-1, self.batch_size)
        return batches[:, part * own : (part + 1) * own].reshape(-1), own

    def _moved(self, pixels: Tensor) -> Tensor:
        """`pixels` on the device; through pinned memory, so that the copy need not be waited for."""
        if pixels.device.type == "cpu" and self._device.type == "cuda":
            return pixels.pin_memory().to(self._device, non_blocking=True)
        return pixels.to(self._device)


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

    train: shuffle each epoch by (seed, epoch) and drop the last partial batch; else keep the order.
    indices: the samples to load, (N,) integers; all of them when None.
    augmentation: "none", "flip", "crop", "crop_flip" for raw sets (zero padding of side // 8);
        "none" (centre crop) or "resized_crop_flip" for ImageNet, whose crops are not the same for
        both backends, and repeat under FFCV only with one thread.
    resolution: side of ImageNet's crops in pixels, by default 224; not for raw sets.
    resident: keep the pixels of a raw set on the device; None does so on a GPU that has the room.
    share: (part, parts): of every training batch, or of the images of an evaluation, one of `parts`
        parts; together they are the batches of one process. `parts` must divide batch_size.
    Order, augmentation and pixels of raw sets are the same to the bit for both backends and for
    resident pixels.
    Raises `InputError` for an illegal argument and for files that are not what was written.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown loader {backend!r}: choose one of {', '.join(BACKENDS)}")
    data_dir = Path(data_dir)
    device = torch.device(device)
    data = dataset(read_manifest(data_dir, split)["dataset"])
    if resident and not data.stored_raw:
        raise InputError(f"resident pixels: not for {data.name}, whose images vary in size")
    if resident is None:
        resident = data.stored_raw and fits(data_dir, split, device)
    manifest = check(data_dir, split, "torch" if resident else backend)
    augment.check_augmentation(augmentation, data.stored_raw)
    if data.stored_raw and resolution is not None:
        raise InputError(f"resolution {resolution}: {data.name} is always loaded at {data.side}")
    indices = _check_indices(indices, manifest["images"], f"{data_dir}/{split}")
    if batch_size < 1 or (train and batch_size > len(indices)):
        raise InputError(
            f"batch size {batch_size}: must be 1 to {len(indices)}, "
            f"the number of images of {data_dir}/{split} in use"
        )
    if not 0 <= share[0] < share[1] or (train and batch_size % share[1]):
        raise InputError(
            f"share {share}: a part from 0 to below the number of parts, which must divide the "
            f"batch size {batch_size}"
        )
    if threads < 1:
        raise InputError(f"threads {threads}: must be at least 1")
    side = data.side if resolution is None else resolution
    random_crop = augmentation == "resized_crop_flip"
    if resident:
        reader = ResidentReader(data_dir, split, device)
    elif backend == "ffcv":
        import_ffcv()
        from lowbit_core.data.ffcv_reader import FfcvReader
        from lowbit_core.datasets.beton import check_beton

        check_beton(data_dir / f"{split}.beton", data, manifest["images"])
        reader = FfcvReader(
            data_dir / f"{split}.beton", threads, None if data.stored_raw else side, random_crop
        )
    else:
        from lowbit_core.data.torch_reader import ImageReader, RawReader

        if data.stored_raw:
            reader = RawReader(data_dir, split)
        else:
            source = Path(manifest["source"])
            reader = ImageReader(data_dir, split, source, threads, side, random_crop)
    return BatchLoader(
        reader,
        data,
        indices,
        batch_size=batch_size,
        train=train,
        seed=seed,
        augmentation=augmentation,
        device=device,
        side=side,
        share=share,
    )


def _check_indices(indices: np.ndarray | None, count: int, where: str) -> np.ndarray:
    if indices is None:
        return np.arange(count, dtype=np.int64)
    indices = np.asarray(indices, dtype=np.int64)
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= count:
        raise InputError(f"indices of {where}: must be at least one, from 0 to {count - 1}")
    return indices


def _hash(*parts: object) -> int:
    """A 63-bit seed; unlike seed + epoch it never gives two runs the same stream."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
