"""Reads batches of uint8 pixels from a .beton file through FFCV.

This module imports ffcv. A process keeps the compiled FFCV loader of each file and pipeline,
because making one takes about a second and it can read any order and batch size.
"""

import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from queue import Empty

import numba
import numpy as np
import torch
from ffcv.fields.decoders import (
    CenterCropRGBImageDecoder,
    NDArrayDecoder,
    RandomResizedCropRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.transforms import ToTensor
from torch import Tensor

from lowbit_core.data.normalisation import CENTER_RATIO
from lowbit_core.runtime.errors import InputError

TIMEOUT = 120.0  # seconds without a batch until an error is raised; compilation takes a few


class FfcvReader:
    """Pixels and labels of one .beton file.

    resolution: None for raw sets, else the side in pixels of the crops of images of varying size:
    random resized crops if `random_crop`, else the central 7/8 of the shorter side. FFCV draws
    random crops in its own threads, so the same seed gives the same crops only if `threads` is 1.
    Raw sets always use one thread: it copies about a million small images a second, and compiles
    faster.
    """

    name = "ffcv"

    def __init__(self, path: Path, threads: int, resolution: int | None, random_crop: bool):
        stat = path.stat()
        self._random_crop, self._channels_last = random_crop, resolution is not None
        threads = 1 if resolution is None else min(threads, numba.config.NUMBA_NUM_THREADS)
        torch_threads = torch.get_num_threads()
        try:
            self._loader = _compiled_loader(
                str(path.resolve()),
                stat.st_mtime_ns,
                stat.st_size,
                threads,
                resolution,
                random_crop,
            )
        finally:
            torch.set_num_threads(torch_threads)  # FFCV sets it for the whole process

    @property
    def labels(self) -> np.ndarray:
        """Labels in stored order, (N,) int64."""
        reader = self._loader.reader
        return reader.metadata[f"f{reader.field_names.index('label')}"]

    def batches(
        self, order: np.ndarray, batch_size: int, seed: int, positions: np.ndarray
    ) -> Iterator[Tensor]:
        """Yield (B, C, H, W) uint8 on the CPU; each batch overwrites the one before.

        Random crops are drawn from `seed` and the first of `positions`, so that each process of a
        run draws different ones.
        """
        self._loader.batch_size = batch_size
        torch_threads = torch.get_num_threads()
        seed = (seed + int(positions[0])) % 2**32
        batches = _Batches(self._loader, order, seed if self._random_crop else None)
        try:
            for (images,) in batches:
                if torch.get_num_threads() != torch_threads:
                    torch.set_num_threads(torch_threads)
                yield images.permute(0, 3, 1, 2) if self._channels_last else images
        finally:
            batches.stop()
            torch.set_num_threads(torch_threads)


@lru_cache(maxsize=16)
def _compiled_loader(
    path: str, mtime_ns: int, size: int, threads: int, resolution: int | None, random_crop: bool
) -> Loader:
    if resolution is None:
        decoder = NDArrayDecoder()
    elif random_crop:
        decoder = RandomResizedCropRGBImageDecoder((resolution, resolution))
    else:
        decoder = CenterCropRGBImageDecoder((resolution, resolution), CENTER_RATIO)
    try:
        # Labels are read from the file's metadata, which saves compiling a pipeline.
        return Loader(
            path,
            batch_size=1,
            num_workers=threads,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            drop_last=False,
            pipelines={"image": [decoder, ToTensor()], "label": None},
        )
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a readable .beton file ({error!r})") from None


@numba.njit
def _seed_this_thread(seed):
    np.random.seed(seed)


class _Batches(EpochIterator):
    """FFCV's iterator over one epoch; it raises the errors of its thread and can be stopped."""

    def __init__(self, loader: Loader, order: np.ndarray, crop_seed: int | None):
        self.error, self._hangs = None, False
        self._crop_seed = crop_seed
        super().__init__(loader, order)

    def run(self) -> None:
        try:
            if self._crop_seed is not None:
                _seed_this_thread(self._crop_seed)
            super().run()
        except BaseException as error:  # without this the consumer would wait for ever
            self.error = error

    def __next__(self) -> tuple[Tensor, ...]:
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                item = self.output_queue.get(timeout=1)
                break
            except Empty:
                if self.error is not None:
                    raise RuntimeError(
                        f"{self.loader.fname}: FFCV's loader thread failed: {self.error!r}"
                    ) from self.error
                if time.monotonic() > deadline:
                    self._hangs = True
                    raise RuntimeError(
                        f"{self.loader.fname}: FFCV gave no batch in {TIMEOUT:.0f} s"
                    ) from None
        if item is None:
            raise StopIteration
        return item[1]

    def stop(self) -> None:
        """End the thread, also in the middle of an epoch; a thread that hangs is abandoned."""
        self.terminate_event.set()
        while self.is_alive() and not self._hangs:
            try:  # makes room, in case the thread waits to put a batch
                self.output_queue.get(timeout=0.01)
            except Empty:
                pass
        self.close()
        self.closed = True
