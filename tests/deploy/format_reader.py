"""A second reader of `.lowbit` files, written from docs/deploy.md: NumPy and the standard library.

It imports nothing of the project, so that a test with it shows whether the description suffices.
It computes in float64, and checks only what shows a file of another format.
"""

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

TYPES = {"u1": np.dtype("u1"), "f4": np.dtype("<f4")}


def read(data: bytes) -> tuple[dict, Iterator[np.ndarray]]:
    """The header of a file, and its arrays in order."""
    mark, version, packed, size = struct.unpack_from("<8sIIQ", data)
    assert mark == bytes.fromhex("934C4F574249540A") and version == 2 and size == len(data)
    assert hashlib.sha256(data[:24] + data[56:]).digest() == data[24:56]
    header = json.loads(zlib.decompress(data[56 : 56 + packed]))
    arrays, end = [], 56 + packed
    for name, shape in header["arrays"]:
        start = -(-end // 8) * 8
        array = np.frombuffer(data, TYPES[name], math.prod(shape), start).reshape(shape)
        arrays.append(array)
        end = start + array.nbytes
    assert -(-end // 8) * 8 == size
    return header, iter(arrays)


def weight(op: dict, arrays: Iterator[np.ndarray]) -> np.ndarray:
    """(O, kh, kw, I)."""
    shape = op["weight"]
    if op["stored"] == "values":
        return next(arrays)
    planes, numbers = next(arrays), next(arrays)
    bits = np.unpackbits(planes, axis=1, count=math.prod(shape), bitorder="little")
    codes = (bits.astype(int) << np.arange(len(planes))[:, None]).sum(0)
    levels = numbers
    if op["stored"] == "basis":
        levels = np.zeros((len(numbers), 2 ** len(planes)), np.float32)
        for k in reversed(range(len(planes))):
            sign = np.where(np.arange(levels.shape[1]) >> k & 1, 1, -1).astype(np.float32)
            levels = levels + sign * numbers[:, k, None]
    rows = np.arange(shape[0])[:, None] if len(levels) > 1 else 0
    return levels[rows, codes.reshape(shape[0], -1)].reshape(shape)


def convolution(op: dict, x: np.ndarray, arrays: Iterator[np.ndarray]) -> np.ndarray:
    w = weight(op, arrays).astype(np.float64)
    scale = next(arrays) if op["scaled"] else np.ones(len(w))
    shift, ((ph, pw), (sh, sw)) = next(arrays), (op["padding"], op["stride"])
    padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw)))
    taps = sliding_window_view(padded, w.shape[1:3], (1, 2))[:, ::sh, ::sw]
    if op["depthwise"]:
        y = np.einsum("cyxij,cij->cyx", taps, w[..., 0])
    else:
        y = np.einsum("cyxij,oijc->oyx", taps, w, optimize=True)
    return scale[:, None, None] * y + shift[:, None, None]


def pool(op: dict, x: np.ndarray) -> np.ndarray:
    if op["size"] is None:
        (ph, pw), (sh, sw) = op["padding"], op["stride"]
        padded = np.pad(x, ((0, 0), (ph, ph), (pw, pw)), constant_values=-np.inf)
        return sliding_window_view(padded, op["kernel"], (1, 2))[:, ::sh, ::sw].max((3, 4))
    parts = [
        [slice(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
        for side, count in zip(x.shape[1:], op["size"], strict=True)
    ]
    reduce = np.mean if op["mean"] else np.max
    return np.stack(
        [np.stack([reduce(x[:, r, c], (1, 2)) for c in parts[1]], -1) for r in parts[0]], 1
    )


def scores(data: bytes, image: np.ndarray) -> np.ndarray:
    """The scores (classes,) that the network of a file gives one image (C, H, W), normalised."""
    header, arrays = read(data)
    assert list(image.shape) == header["input"]
    tensors = [image.astype(np.float64)]
    for op in header["operations"]:
        x, kind = tensors[op["input"]], op["operation"]
        if kind == "convolution":
            y = convolution(op, x, arrays)
        elif kind == "quantize":
            thresholds, levels = next(arrays), next(arrays).astype(np.float64)
            y = levels[(x.astype(np.float32)[..., None] >= thresholds).sum(-1)]
        elif kind == "add":
            y = x + tensors[op["other"]]
        elif kind == "relu":
            y = np.clip(x, 0, op["ceiling"])
        else:
            y = pool(op, x)
        tensors.append(y)
    assert next(arrays, None) is None
    return tensors[header["output"]].ravel()
