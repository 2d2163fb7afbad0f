"""Wrong files: a good one with a change in its header, its numbers or its bytes.

Nothing here needs torch, so that it also runs in a process that checks each access to memory.
"""

import json

import numpy as np

from deploy import container, fileformat
from deploy.network import Network
from lowbit_core.runtime.errors import InputError

TEXTS = ("counts", "basis", "\ud800", "\x1b[31m", "two\nlines")


def parts(path):
    """(header, arrays) of a file, with the list of the arrays' shapes."""
    header, arrays = container.read(path)
    return json.loads(json.dumps(header)), arrays


def _mutate(value, rng):
    """Another JSON value in the place of one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):  # small ones wire a graph anew
        few = int(rng.integers(12))
        return int(rng.choice([0, -1, few, value - 1, value + 1, value * 2, 2**31, 2**62]))
    if isinstance(value, list) and len(value) > 1:
        return value[1:] if rng.random() < 0.5 else [*value, value[0]]
    choices = [None, 7, *TEXTS, [], {}, 1.5, float("nan")]
    return choices[rng.integers(len(choices))]


def _mutant(header, arrays, rng):
    """The header with one field changed, or the arrays with one of them changed."""
    header, arrays = json.loads(json.dumps(header)), list(arrays)
    if rng.random() < 0.7:
        target = header
        while True:
            keys = range(len(target)) if isinstance(target, list) else sorted(target)
            key = keys[int(rng.integers(len(keys)))]
            child = target[key]
            if not isinstance(child, dict | list) or not child or rng.random() < 0.1:
                break
            target = child
        if rng.random() < 0.1:
            del target[key]
        else:
            target[key] = _mutate(child, rng)
        return header, arrays
    place = int(rng.integers(len(arrays)))
    array = arrays[place].copy()
    kind = rng.integers(4)
    if kind == 0:
        del arrays[place]
    elif kind == 1:
        arrays[place] = array[..., :-1]
    elif kind == 2 and array.size:
        array.ravel()[rng.integers(array.size)] = 255 if array.dtype == np.uint8 else np.nan
        arrays[place] = array
    else:
        data = bytearray(array.tobytes())
        for at in rng.integers(len(data), size=3):
            data[at] ^= int(rng.integers(256))
        arrays[place] = np.frombuffer(bytes(data), array.dtype).reshape(array.shape)
    return header, arrays


def try_mutants(path, folder, count, seed=5, **options):
    """Load `count` mutants of a file, and run those that load: (how many were refused, and run).

    One in ten keeps the checksum that it had, the others get a right one. options: of Network.
    """
    rng = np.random.default_rng(seed)
    header, arrays = parts(path)
    ran = refused = 0
    for number in range(count):
        if number % 5 == 0:  # of the bytes themselves
            data = bytearray(path.read_bytes())
            for at in rng.integers(len(data), size=int(rng.integers(1, 4))):
                data[at] = int(rng.integers(256))
            data = bytes(data[: rng.integers(1, len(data) + 1)] if rng.random() < 0.3 else data)
            if number % 2 and len(data) > container.START.size:
                start, rest = data[: container.DIGEST_AT], data[container.START.size :]
                digest = container._digest(start + bytes(32) + rest)
                data = start + digest + rest
            (folder / "mutant.lowbit").write_bytes(data)
        else:
            changed = _mutant(header, arrays, rng)
            container.write(folder / "mutant.lowbit", *changed)
        try:
            net = Network(*fileformat.load(folder / "mutant.lowbit"), **options)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        said = f"{net.about.origin} {net.about.classes} {net.kernels()}"
        assert said.isprintable() and said.encode()
        images = rng.normal(0, 1, (1, *net.graph.input_shape)).astype(np.float32)
        assert net.scores(images).shape == (1, net.classes)
        ran += 1
    return refused, ran
