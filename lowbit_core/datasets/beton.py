"""Writing .beton files in the calling process, and checking one before FFCV opens it.

FFCV's own writer waits forever when one of its worker processes dies. Here the calling process does
the work of the only worker: errors reach the caller, and the file has the same bytes each time.
"""

import errno
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

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
    from ffcv.writer import DatasetWriter, handle_sample

    fields = _fields(dataset)
    writer = DatasetWriter(str(path), fields, page_size=PAGE_SIZE, num_workers=1)
    writer.num_samples = count
    writer.prepare()
    writer.metadata_sm.close()  # memory shared with FFCV's worker processes: there are none
    writer.metadata_sm.unlink()
    rows = np.zeros(count, writer.metadata_type)
    allocator = MemoryAllocator(str(path), writer.data_region_start, PAGE_SIZE)
    random_state = np.random.get_state()
    np.random.seed(0)  # which images are stored as JPEG
    try:
        with allocator:
            for i, sample in enumerate(samples):
                handle_sample(sample, i, rows.dtype.names, rows, allocator, fields)
    finally:
        np.random.set_state(random_state)
    writer.metadata_sm = SimpleNamespace(buf=rows.tobytes())
    writer.finalize(allocator.allocations)
    pages = allocator.next_page_allocated.value
    whole = allocator.offset + pages * PAGE_SIZE + count * ALLOC_TABLE_TYPE.itemsize
    if path.stat().st_size != whole:  # FFCV ignores short writes
        raise OSError(errno.ENOSPC, "the .beton file was cut short", str(path))


def check_beton(path: Path, dataset: Dataset, count: int) -> None:
    """InputError unless the file's fields, sizes and offsets are such as `write_beton` writes.

    FFCV runs no code from a file, which holds no pickle, but it trusts the types, sizes and offsets
    that the file states.
    """
    import_ffcv()
    from ffcv import types

    fields = _fields(dataset)
    kinds = {kind: number for number, kind in types.TYPE_ID_HANDLER.items()}
    expected = np.zeros(len(fields), types.FieldDescType)
    for row, (name, field) in zip(expected, fields.items(), strict=True):
        row["type_id"] = kinds[type(field)]
        row["name"][: len(name)] = np.frombuffer(name.encode(), "u1")
        row["arguments"][:] = field.to_binary()[0]
    try:
        header = np.fromfile(path, types.HeaderType, 1)[0]
        start = types.HeaderType.itemsize
        found = np.fromfile(path, types.FieldDescType, len(fields), offset=start)
        rows = types.get_metadata_type(list(fields.values()))
        images = np.fromfile(path, rows, count, offset=start + found.nbytes)["f0"]
        table = np.fromfile(path, types.ALLOC_TABLE_TYPE, offset=int(header["alloc_table_ptr"]))
        ends = table["ptr"] + table["size"]
        beyond = (ends < table["ptr"]) | (ends > path.stat().st_size)
        if dataset.stored_raw:
            offsets, misfits = images, table["size"] != dataset.channels * dataset.side**2
        else:
            offsets = images["data_ptr"]
            misfits = np.maximum(images["width"], images["height"]) > LARGEST_SIDE
        faults = {
            "another header": (header["num_fields"], header["num_samples"]) != (len(fields), count),
            "fields of other kinds": found.tobytes() != expected.tobytes(),
            "samples beyond its end": len(images) != count or beyond.any(),
            "samples of other sizes": misfits.any(),
            "samples at other offsets": not np.isin(offsets, table["ptr"]).all(),
        }
        if any(faults.values()):
            raise ValueError("it has " + " and ".join(name for name in faults if faults[name]))
    except (IndexError, ValueError, OverflowError, OSError) as error:
        raise InputError(f"{path} is not a .beton file of {dataset.name} ({error})") from None


def _fields(dataset: Dataset) -> dict:
    from ffcv.fields import IntField, NDArrayField, RGBImageField

    if dataset.stored_raw:
        image = NDArrayField(np.dtype("u1"), (dataset.channels, dataset.side, dataset.side))
    else:
        image = RGBImageField("proportion", LARGEST_SIDE, jpeg_quality=90, compress_probability=0.5)
    return {"image": image, "label": IntField()}
