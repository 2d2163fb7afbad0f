"""How large a file is, and how much of it is information."""

import lzma
from pathlib import Path

import numpy as np

from deploy.graph import Convolution, Graph, Quantize


def sizes(path: Path, network: Graph) -> dict[str, int]:
    """Bytes of a file, of the information in it, and of what coders make of it.

    information: what no reader could do without: every code in its bits, every other number in four
    bytes. Header, checksum and alignment are what the file adds. entropy: see `entropy_bytes`.
    compressed: the file after LZMA. float32: the same network in full precision.
    """
    bits = 0
    for op in network.operations:
        if isinstance(op, Quantize):
            bits += 32 * (op.thresholds.size + op.levels.size)
        if isinstance(op, Convolution):
            weight = op.weight
            floats = op.shift.size + (0 if op.scale is None else op.scale.size)
            if weight.codes is None:
                floats += weight.values.size
            else:
                floats += (weight.levels if weight.basis is None else weight.basis).size
                bits += weight.codes.size * (weight.levels.shape[1] - 1).bit_length()
            bits += 32 * floats
    data = path.read_bytes()
    return {
        "file": len(data),
        "information": -(-bits // 8),
        "compressed": len(lzma.compress(data, preset=9)),
        "entropy": entropy_bytes(len(data), network),
        "float32": float32_bytes(network),
    }


def float32_bytes(network: Graph) -> int:
    """Bytes of the numbers of a network in full precision, with batch norm folded."""
    return 4 * sum(_numbers(op) for op in network.operations)


def entropy_bytes(file_bytes: int, network: Graph) -> int:
    """The bytes of a file if an ideal coder packed the codes of each layer by their frequencies.

    Each code then takes the entropy of the layer's codes, in place of its bits.
    """
    saved = 0.0
    for op in network.operations:
        if isinstance(op, Convolution) and op.weight.codes is not None:
            codes, bits = op.weight.codes, (op.weight.levels.shape[1] - 1).bit_length()
            shares = np.bincount(codes.ravel()) / codes.size
            used = shares[shares > 0]
            saved += codes.size * (bits + float((used * np.log2(used)).sum()))
    return file_bytes - int(saved // 8)


def _numbers(op: object) -> int:
    """Parameters of a layer in full precision, with batch norm folded."""
    if not isinstance(op, Convolution):
        return 0
    return int(np.prod(op.weight.shape)) + op.shift.size
