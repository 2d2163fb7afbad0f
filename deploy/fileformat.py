"""A graph as the content of a `.lowbit` file, and back: every number is checked before it is used.

docs/deploy.md is the description for other readers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy import container, graph
from deploy.checked import Arrays, Fields, Refused, require
from deploy.graph import (
    COUNTS,
    FLOAT,
    Add,
    Convolution,
    Graph,
    Operation,
    Pool,
    Quantize,
    Relu,
    Weight,
)
from deploy.planes import countable
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import replace_file

MOST_OPERATIONS = 10_000
MOST_VALUES = 2**28  # of all tensors of one image together
MOST_SIDE = 2**16
LARGEST_WINDOW = 256  # kernel, stride or padding


@dataclass(frozen=True)
class About:
    """What a file says besides the graph.

    origin: where the network comes from (run, data set, method, bit-widths, policy). classes: their
    names, in the order of the scores. mean, std: of each channel, for pixels in [0, 1]. crop: the
    share of the shorter side that a central crop keeps; None: the whole image is resized.
    """

    origin: dict
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None


# -- writing ---------------------------------------------------------------------------------


def save(path: str | Path, network: Graph, about: About) -> int:
    """Write a `.lowbit` file; returns its size in bytes."""
    arrays: list[np.ndarray] = []
    numbers = {network.input: 0}  # of the tensors: that of the image, then those of the operations
    numbers |= {op.output: number for number, op in enumerate(network.operations, 1)}
    header = {
        "origin": about.origin,
        "classes": list(about.classes),
        "preprocessing": {"mean": list(about.mean), "std": list(about.std), "crop": about.crop},
        "input": list(network.input_shape),
        "output": numbers[network.output],
        "operations": [_header_entry(op, numbers, arrays) for op in network.operations],
    }
    return container.write(path, header, arrays)


def save_checked(path: str | Path, network: Graph, about: About, what: str) -> None:
    """Write a file, which takes its place once it was read back; InputError says why it cannot be.

    what: the network in that message.
    """
    with replace_file(path) as temporary:
        save(temporary, network, about)
        try:
            load(temporary)
        except InputError as error:
            reason = str(error).removeprefix(f"{temporary}: ")
            raise InputError(f"a file cannot hold {what}: {reason}") from None


def _header_entry(op: Operation, numbers: dict[str, int], arrays: list[np.ndarray]) -> dict:
    """The header's entry of an operation; its numbers are appended to `arrays`."""
    entry = {"operation": type(op).__name__.lower(), "input": numbers[op.input]}
    if isinstance(op, Add):
        return entry | {"other": numbers[op.other]}
    if isinstance(op, Relu):
        return entry | {"ceiling": op.ceiling}
    if isinstance(op, Pool):
        return entry | {"mean": op.mean, "size": op.size} | _window(op)
    if isinstance(op, Quantize):
        arrays += [op.thresholds, op.levels]
        return entry | {"layer": op.layer}
    weight = op.weight
    entry |= {"layer": op.layer, "weight": list(weight.shape), "depthwise": op.depthwise}
    entry |= {"stride": op.stride, "padding": op.padding, "compute": op.compute}
    entry |= {"stored": "values", "scaled": op.scale is not None}
    if weight.codes is None:
        arrays.append(weight.values)
    else:
        entry["stored"] = "levels" if weight.basis is None else "basis"
        levels = weight.levels if weight.basis is None else weight.basis
        arrays += [_packed(weight.codes, weight.levels.shape[1]), levels]
    arrays += [op.shift] if op.scale is None else [op.scale, op.shift]
    return entry


def _window(op: Pool) -> dict:
    return {"kernel": op.kernel, "stride": op.stride, "padding": op.padding}


def _packed(codes: np.ndarray, levels: int) -> np.ndarray:
    """Bit planes (K, bytes) of the codes in their order, least significant plane and bit first."""
    count = (levels - 1).bit_length()
    planes = codes.reshape(-1) >> np.arange(count, dtype=np.uint8)[:, None] & 1
    return np.packbits(planes, axis=1, bitorder="little")


def basis_levels(basis: np.ndarray) -> np.ndarray:
    """Levels (R, 2^K) float32 of bases (R, K), by code: most significant number first, as signs."""
    levels = np.zeros((len(basis), 1), np.float32)
    for step in basis.T[::-1]:
        both = np.stack([levels - step[:, None], levels + step[:, None]], -1)
        levels = both.reshape(len(basis), -1)
    return levels


# -- reading ---------------------------------------------------------------------------------


def load(path: str | Path) -> tuple[Graph, About]:
    """The graph of a file. InputError says in one sentence what is wrong with the file."""
    header, arrays = container.read(path)
    try:
        network, about = _graph(header, arrays), _about(header)
        scores = graph.shapes(network)[network.output][0]
        require(scores == len(about.classes), f"{len(about.classes)} classes for {scores} scores")
        return network, about
    except Refused as error:
        raise InputError(f"{path}: {error}") from None
    except RecursionError:  # of a message that shows a wrong value
        raise InputError(f"{path}: the header is nested too deeply") from None


@dataclass
class _Known:
    """The tensors that the operations so far have made: the image is `tensor 0`."""

    shapes: dict[str, tuple[int, int, int]]
    codes: dict[str, Quantize]
    values: int = 0

    def named(self, fields: Fields, key: str) -> str:
        """The name of the tensor whose number `fields` has."""
        return _tensor(fields.whole(key, 0, len(self.shapes) - 1))


def _tensor(number: int) -> str:
    return f"tensor {number}"


def _graph(header: dict, listed: list[np.ndarray]) -> Graph:
    fields, arrays = Fields(header, "the header"), Arrays(listed)
    image, shape = _tensor(0), fields.integers("input", 3, 1, MOST_SIDE)
    known = _Known({image: shape}, {}, math.prod(shape))
    entries = fields.get("operations")
    good = isinstance(entries, list) and 0 < len(entries) <= MOST_OPERATIONS
    require(good, f"the operations are not a list of 1 to {MOST_OPERATIONS}")
    operations = []
    for number, value in enumerate(entries, 1):
        entry = Fields(value, f"operation {number}")
        operations.append(_operation(entry, _tensor(number), arrays, known))
    arrays.end()
    output = known.named(fields, "output")
    require(output not in known.codes, f"the output, {output}, is codes")
    is_scores = output != image and known.shapes[output][1:] == (1, 1)
    require(is_scores, f"the output, {output}, is no scores: its shape is {known.shapes[output]}")
    return Graph(image, shape, output, tuple(operations))


def _operation(entry: Fields, output: str, arrays: Arrays, known: _Known) -> Operation:
    kinds = {kind.__name__.lower(): kind for kind in (Convolution, Quantize, Add, Relu, Pool)}
    kind = kinds[entry.text("operation", tuple(kinds))]
    source = known.named(entry, "input")
    if kind is not Convolution:
        require(source not in known.codes, f"{entry.where}: only a convolution reads codes")
    shape = known.shapes[source]
    if kind is Add:
        other = known.named(entry, "other")
        require(other not in known.codes, f"{entry.where}: only a convolution reads codes")
        require(known.shapes[other] == shape, f"{entry.where}: {other} is not of shape {shape}")
        op = Add(source, other, output)
    elif kind is Relu:
        ceiling = entry.get("ceiling")
        op = Relu(source, output, None if ceiling is None else entry.number("ceiling", 0, 1e30))
    elif kind is Pool:
        op = _pool(entry, source, output, shape)
    elif kind is Quantize:
        op = known.codes[output] = _quantize(entry, arrays, source, output)
    else:
        op = _convolution(entry, arrays, known, source, output)
    made = graph.output_shape(op, shape)
    is_legal = all(1 <= side <= MOST_SIDE for side in made)
    require(is_legal, f"{entry.where}: its output is {made}: sides of 1 to {MOST_SIDE}")
    known.shapes[output] = made
    known.values += math.prod(made)
    require(
        known.values <= MOST_VALUES,
        f"{entry.where}: the tensors hold {known.values} values so far: at most {MOST_VALUES}",
    )
    return op


def _pool(entry: Fields, source: str, output: str, shape: tuple[int, int, int]) -> Pool:
    mean = entry.flag("mean")
    if entry.get("size") is not None:
        return Pool(source, output, mean, size=entry.integers("size", 2, 1, MOST_SIDE))
    require(not mean, f"{entry.where}: a mean has a size")
    kernel = entry.integers("kernel", 2, 1, LARGEST_WINDOW)
    stride = entry.integers("stride", 2, 1, LARGEST_WINDOW)
    padding = entry.integers("padding", 2, 0, LARGEST_WINDOW)
    for side, k, p in zip(shape[1:], kernel, padding, strict=True):
        fits = 2 * p <= k <= side + 2 * p
        require(fits, f"{entry.where}: a window of {k} with padding {p} does not fit {side} pixels")
    return Pool(source, output, mean, kernel, stride, padding)


def _quantize(entry: Fields, arrays: Arrays, source: str, output: str) -> Quantize:
    thresholds = arrays.take("f4", (None,), entry.where)
    require(1 <= len(thresholds) <= 255, f"{entry.where}: {len(thresholds)} thresholds: 1 to 255")
    rising = bool((thresholds[1:] >= thresholds[:-1]).all()) and bool(thresholds[0] > -np.inf)
    require(
        rising and not np.isnan(thresholds).any(),
        f"{entry.where}: thresholds fall, or one is not a number or minus infinity",
    )
    levels = arrays.floats((len(thresholds) + 1,), entry.where)
    return Quantize(entry.text("layer"), source, output, thresholds, levels)


def _convolution(
    entry: Fields, arrays: Arrays, known: _Known, source: str, output: str
) -> Convolution:
    where, (channels, *sides) = entry.where, known.shapes[source]
    shape = entry.integers("weight", 4, 1, MOST_SIDE)
    stride = entry.integers("stride", 2, 1, LARGEST_WINDOW)
    padding = entry.integers("padding", 2, 0, LARGEST_WINDOW)
    depthwise, compute = entry.flag("depthwise"), entry.text("compute", (COUNTS, FLOAT))
    outputs, *kernel, inputs = shape
    require(
        max(kernel) <= LARGEST_WINDOW,
        f"{where}: the kernel {kernel}: sides of 1 to {LARGEST_WINDOW}",
    )
    for side, k, p in zip(sides, kernel, padding, strict=True):
        require(k <= side + 2 * p, f"{where}: a kernel of {k} does not fit {side} pixels")
        require(p < k, f"{where}: a padding of {p} is not less than the kernel of {k}")
    fits = (outputs, inputs) == (channels, 1) if depthwise else inputs == channels
    require(fits, f"{where}: a weight of shape {shape} does not fit {channels} channels")
    padded = channels * math.prod(s + 2 * p for s, p in zip(sides, padding, strict=True))
    require(
        padded <= MOST_VALUES,
        f"{where}: the padded input has {padded} values: at most {MOST_VALUES}",
    )
    weight = _weight(entry, arrays, shape)
    scale = arrays.floats((outputs,), where) if entry.flag("scaled") else None
    shift = arrays.floats((outputs,), where)
    if compute == COUNTS:
        counted = source in known.codes and weight.codes is not None and not depthwise
        counted = counted and countable(
            weight.levels, known.codes[source].levels, math.prod(shape[1:])
        )
        require(
            counted,
            f"{where}: compute 'counts': it cannot be computed by counts, so 'float' is legal",
        )
    layer = entry.text("layer")
    return Convolution(
        layer, source, output, stride, padding, depthwise, compute, weight, scale, shift
    )


def _weight(entry: Fields, arrays: Arrays, shape: tuple[int, ...]) -> Weight:
    where, stored = entry.where, entry.text("stored", ("values", "levels", "basis"))
    if stored == "values":
        return Weight(values=arrays.floats(shape, where))
    size = math.prod(shape)
    planes = arrays.take("u1", (None, -(-size // 8)), where)
    count = len(planes)
    require(1 <= count <= 8, f"{where}: {count} planes of codes: 1 to 8")
    numbers = arrays.floats((None, count if stored == "basis" else None), where)
    rows = len(numbers)
    require(rows in (1, shape[0]), f"{where}: {rows} rows of levels: 1 or {shape[0]}, the outputs")
    bits = np.unpackbits(planes, axis=1, count=size, bitorder="little")
    codes = (bits << np.arange(count, dtype=np.uint8)[:, None]).sum(0, dtype=np.uint8)
    codes = codes.reshape(shape)
    if stored == "basis":
        levels = basis_levels(numbers)
        require(bool(np.isfinite(levels).all()), f"{where}: a level is not finite")
        return Weight(codes=codes, levels=levels, basis=numbers)
    levels = numbers.shape[1]
    require(2 <= levels <= 256, f"{where}: {levels} levels: 2 to 256")
    require((levels - 1).bit_length() == count, f"{where}: {levels} levels in {count} planes")
    require(bool(codes.max() < levels), f"{where}: a code is beyond the {levels} levels")
    return Weight(codes=codes, levels=numbers)


def _about(header: dict) -> About:
    fields = Fields(header, "the header")
    steps = Fields(fields.get("preprocessing"), "the preprocessing")
    channels = header["input"][0]
    classes, origin = fields.get("classes"), fields.get("origin")
    good = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(good, "the classes are no list of names")
    require(isinstance(origin, dict), "the origin is not an object")
    odd = [text for text in _strings([classes, origin]) if not text.isprintable()]
    require(not odd, f"the text {odd[:1]!r} holds a character that cannot be printed")
    numbers = []
    for key, low in (("mean", -1e6), ("std", 1e-6)):
        value = steps.get(key)
        good = isinstance(value, list) and len(value) == channels
        good = good and all(type(v) in (int, float) and low <= v <= 1e6 for v in value)
        require(good, f"the preprocessing: {key} is not {channels} numbers")
        numbers.append(tuple(map(float, value)))
    crop = steps.get("crop")
    crop = None if crop is None else steps.number("crop", 1e-3, 1)
    return About(origin, tuple(classes), numbers[0], numbers[1], crop)


def _strings(value: object) -> Iterator[str]:
    """Every key and every text in a JSON value."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list):
            left += part
