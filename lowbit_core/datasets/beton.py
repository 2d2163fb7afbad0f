"""Writing .beton files in the calling process, and checking one before FFCV opens it.

FFCV's own writer waits forever when one of its worker processes dies. Here its worker function runs
in the calling process: errors reach the caller, and the file has the same bytes each time.
"""

import errno
import queue
from collections.abc import Iterable
from multiprocessing import Value
from pathlib import Path

import numpy as np

from lowbit_core.datasets.catalog import Dataset
from lowbit_core.runtime.backend import import_ffcv
from lowbit_core.runtime.errors import InputError

PAGE_SIZE = 1 << 21  # bytes; one image of 500x500 raw pixels (750 kB) fits
LARGEST_SIDE = 500  # of an image that is not raw, in pixels


def write_beton(
    path: Path, dataset: Dataset, count: int, samples: Iterable[tuple[np.ndarray, int]]
) -> None:
    """Write `count` samples (image, label) to `path`.

    Images are (C, H, W) uint8 for raw sets, (H, W, 3) uint8 of any size otherwise: half of these
    are stored as JPEG of quality 90 and half raw, their longer side at most 500 pixels.
    """
    import_ffcv()
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.types import ALLOC_TABLE_TYPE
    from ffcv.writer import DatasetWriter, worker_job_indexed_dataset

    writer = DatasetWriter(str(path), _fields(dataset), page_size=PAGE_SIZE, num_workers=1)
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


def check_beton(path: Path, dataset: Dataset, count: int) -> None:
    """InputError unless the file's fields, sizes and offsets are such as `write_beton` writes.

    FFCV runs no code from a file, which holds no pickle, but it trusts the types, sizes and offsets
    that the file states.
    """
    import_ffcv()
    from ffcv.types import ALLOC_TABLE_TYPE, TYPE_ID_HANDLER, FieldDescType, HeaderType

    fields = _fields(dataset)
    kinds = {kind: number for number, kind in TYPE_ID_HANDLER.items()}
    expected = np.zeros(len(fields), FieldDescType)
    for row, (name, field) in zip(expected, fields.items(), strict=True):
        row["type_id"] = kinds[type(field)]
        row["name"][: len(name)] = np.frombuffer(name.encode(), "u1")
        row["arguments"][:] = field.to_binary()[0]
    try:
        header = np.fromfile(path, HeaderType, 1)[0]
        start = HeaderType.itemsize
        found = np.fromfile(path, FieldDescType, len(fields), offset=start)
        if header["num_fields"] != len(fields) or header["num_samples"] != count:
            raise ValueError(f"{header['num_fields']} fields, {header['num_samples']} samples")
        for name in expected.dtype.names:
            if not np.array_equal(found[name], expected[name]):
                raise ValueError(f"its fields have another {name}")
        rows = np.dtype([("", field.metadata_type) for field in fields.values()], align=True)
        images = np.fromfile(path, rows, count, offset=start + found.nbytes)["f0"]
        table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=int(header["alloc_table_ptr"]))
        ends = table["ptr"] + table["size"]
        outside = (ends < table["ptr"]) | (ends > path.stat().st_size)
        if len(images) != count or outside.any():
            raise ValueError("samples lie beyond its end")
        if dataset.stored_raw:
            offsets, longest = images, 0
            if (table["size"] != dataset.channels * dataset.side**2).any():
                raise ValueError("samples have other sizes")
        else:
            offsets = images["data_ptr"]
            longest = max(images["width"].max(), images["height"].max())
        if longest > LARGEST_SIDE or not np.isin(offsets, table["ptr"]).all():
            raise ValueError("samples are too large or at other offsets")
    except (IndexError, ValueError, OverflowError, OSError) as error:
        raise InputError(f"{path} is not a .beton file of {dataset.name} ({error})") from None


def _fields(dataset: Dataset) -> dict:
    from ffcv.fields import IntField, NDArrayField, RGBImageField

    if dataset.stored_raw:
        shape = (dataset.channels, dataset.side, dataset.side)
        image = NDArrayField(np.dtype("uint8"), shape)
    else:
        image = RGBImageField(
            write_mode="proportion",
            max_resolution=LARGEST_SIDE,
            compress_probability=0.5,
            jpeg_quality=90,
        )
    return {"image": image, "label": IntField()}


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
