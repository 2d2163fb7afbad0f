"""Writing .beton files in this process.

FFCV's own writer waits for ever when one of its worker processes dies; here its worker function
runs in the calling process, so errors reach the caller and the file is the same each time.
"""

import errno
import queue
from collections.abc import Iterable
from multiprocessing import Value
from pathlib import Path

import numpy as np

from lowbit_core.data import Dataset
from lowbit_core.data.backend import import_ffcv

PAGE_SIZE = 1 << 21  # bytes; one image of 500x500 raw pixels (750 kB) fits


def write_beton(
    path: Path, dataset: Dataset, count: int, samples: Iterable[tuple[np.ndarray, int]]
) -> None:
    """Write `count` samples (image, label) to `path`.

    Images are (C, H, W) uint8 for raw sets, (H, W, 3) uint8 of any size otherwise: half of these
    are stored as JPEG of quality 90 and half raw, their longer side at most 500 pixels.
    """
    import_ffcv()
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE
    from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

    if dataset.stored_raw:
        shape = (dataset.channels, dataset.side, dataset.side)
        image_field = NDArrayField(np.dtype("uint8"), shape)
    else:
        image_field = RGBImageField(
            write_mode="proportion", max_resolution=500, compress_probability=0.5, jpeg_quality=90
        )
    writer = DatasetWriter(
        str(path), {"image": image_field, "label": IntField()}, page_size=PAGE_SIZE, num_workers=1
    )
    writer.num_samples = count
    writer.prepare()
    todo, allocations = queue.SimpleQueue(), queue.SimpleQueue()
    todo.put([(i, i) for i in range(count)])
    todo.put(None)
    random_state = np.random.get_state()
    np.random.seed(0)  # which images are stored as JPEG
    try:
        allocator = MemoryAllocator(str(path), writer.data_region_start, PAGE_SIZE)
        worker_job_indexed_dataset(
            todo,
            writer.metadata_sm,
            writer.metadata_type,
            writer.fields,
            allocator,
            Value("Q", 0),
            allocations,
            _InOrder(samples),
        )
        writer.finalize(allocations.get())
        pages = allocator.next_page_allocated.value
        whole = allocator.offset + pages * PAGE_SIZE + count * ALLOC_TABLE_TYPE.itemsize
    finally:
        np.random.set_state(random_state)
        _release(writer.metadata_sm)
    if path.stat().st_size != whole:  # FFCV ignores short writes
        raise OSError(errno.ENOSPC, "the .beton file was cut short", str(path))


def _release(shared) -> None:
    """Unlink the writer's shared memory; after an error numpy may still hold its buffer."""
    try:
        shared.close()
    except BufferError:
        pass
    shared.unlink()


class _InOrder:
    """Makes an iterable look like the indexable that the writer reads from first to last."""

    def __init__(self, samples: Iterable[tuple[np.ndarray, int]]):
        self._samples = iter(samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return next(self._samples)
