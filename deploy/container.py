"""The container of a `.lowbit` file: a checked header and aligned arrays of numbers.

docs/deploy.md describes it for other readers. Nothing of a file is executed: the header is JSON and
the rest are plain little-endian numbers.
"""

import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_bytes

MAGIC = b"\x93LOWBIT\n"
VERSION = 2
START = struct.Struct("<8sIIQ32s")  # magic, version, bytes of the header, of the file, SHA-256
DIGEST_AT = START.size - 32
ALIGNMENT = 8  # bytes, of the header's end and of each array
MOST_HEADER_BYTES = 2**24  # of the header's text, so that a small file cannot fill the memory
DTYPES = {"u1": np.dtype("u1"), "f4": np.dtype("<f4")}


def _padding(size: int) -> bytes:
    return bytes(-size % ALIGNMENT)


def _digest(data: bytes | memoryview) -> bytes:
    """SHA-256 of a file's bytes without the digest itself."""
    digest = hashlib.sha256(data[:DIGEST_AT])
    digest.update(data[START.size :])
    return digest.digest()


def pack(header: dict, arrays: list[np.ndarray]) -> bytes:
    """The bytes of a file: `header` with the list `arrays` of [type, shape] added, then the arrays.

    arrays: uint8 or float32, in the order in which the header's operations use them.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    listed = [[names[a.dtype.newbyteorder("<")], list(a.shape)] for a in arrays]
    text = json.dumps(header | {"arrays": listed}, separators=(",", ":"), sort_keys=True)
    body = zlib.compress(text.encode(), 9)
    parts = [body, _padding(START.size + len(body))]
    for array in arrays:
        data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        parts += [data, _padding(len(data))]
    rest = b"".join(parts)
    start = START.pack(MAGIC, VERSION, len(body), START.size + len(rest), bytes(32))
    return start[:DIGEST_AT] + _digest(start + rest) + rest


def write(path: str | Path, header: dict, arrays: list[np.ndarray]) -> int:
    """Write a file under a temporary name and rename it; returns its size in bytes."""
    data = pack(header, arrays)
    write_bytes(path, data)
    return len(data)


def read(path: str | Path) -> tuple[dict, list[np.ndarray]]:
    """The header and the arrays of a file. InputError says in one sentence why it is refused."""
    data = Path(path).read_bytes()
    _check_start(data, path)
    size = START.unpack_from(data)[2]
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data[START.size : START.size + size], MOST_HEADER_BYTES)
        if not unpacker.eof:
            raise ValueError("it is too long or cut short")
        header = json.loads(text)
        if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
            raise ValueError("it does not list the arrays")
    except (ValueError, RecursionError, zlib.error) as error:
        raise InputError(f"{path}: the header is not readable ({error})") from None
    offset = START.size + size
    return header, _arrays(data, offset + len(_padding(offset)), header.pop("arrays"), path)


def _check_start(data: bytes, path: str | Path) -> None:
    if data[: len(MAGIC)] != MAGIC:
        raise InputError(f"{path}: not a .lowbit file: it does not begin with the format's mark")
    if len(data) < START.size:
        raise InputError(f"{path}: the file is cut short: {len(data)} bytes")
    _, version, header_size, size, digest = START.unpack_from(data)
    if version != VERSION:
        raise InputError(
            f"{path}: format version {version}: this program reads version {VERSION} only"
        )
    if size != len(data):
        raise InputError(f"{path}: the file has {len(data)} bytes, but was written with {size}")
    if digest != _digest(memoryview(data)):
        raise InputError(f"{path}: the file is damaged: its checksum differs")
    if header_size > len(data) - START.size:
        raise InputError(f"{path}: the header has {header_size} bytes, more than the file")


def _arrays(data: bytes, offset: int, listed: list, path: str | Path) -> list[np.ndarray]:
    arrays = []
    for number, entry in enumerate(listed):
        dtype, shape = _parsed_entry(entry, f"{path}: array {number}")
        count = 1
        for side in shape:
            count *= side
        end = offset + count * dtype.itemsize
        if end > len(data):
            raise InputError(f"{path}: array {number} of shape {shape} ends beyond the file")
        arrays.append(np.frombuffer(data, dtype, count, offset).reshape(shape))
        offset = end + len(_padding(end))
    if offset != len(data):
        raise InputError(f"{path}: {len(data) - offset} bytes belong to no array")
    return arrays


def _parsed_entry(entry: object, where: str) -> tuple[np.dtype, list[int]]:
    """The type and shape of an array, from the header's list."""
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)):
        raise InputError(f"{where}: the entry {entry!r:.60} is not [type, shape]")
    name, shape = entry
    if not isinstance(name, str) or name not in DTYPES:
        raise InputError(f"{where}: the type {name!r:.60} is not one of {', '.join(DTYPES)}")
    if len(shape) > 4 or any(type(side) is not int or not 1 <= side < 2**31 for side in shape):
        raise InputError(
            f"{where}: the shape {shape!r:.60} is not at most four whole numbers from 1 to 2^31 - 1"
        )
    return DTYPES[name], shape
