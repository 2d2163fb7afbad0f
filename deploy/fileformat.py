"""A graph as the content of a `.lowbit` file, and back: every number is checked before it is used.

docs/deploy.md is the description for other readers.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy import container, graph
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

    model: where the network comes from (run, data set, method, widths, policy). classes: their
    names, in the order of the scores. mean, std: of each channel, for pixels in [0, 1]. crop: the
    share of the shorter side that a central crop keeps; None: the whole image is resized.
    """

    model: dict
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float | None


# -- writing ---------------------------------------------------------------------------------


def save(path: str | Path, network: Graph, about: About) -> int:
    """Write a `.lowbit` file; returns its size in bytes."""
    arrays: list[np.ndarray] = []
    shapes = graph.shapes(network)
    operations = [_entry(op, shapes[op.output], arrays) for op in network.operations]
    header = {
        "model": about.model,
        "classes": list(about.classes),
        "preprocessing": {"mean": list(about.mean), "std": list(about.std), "crop": about.crop},
        "input": {"name": network.input, "shape": list(network.input_shape)},
        "output": network.output,
        "operations": operations,
    }
    return container.write(path, header, arrays)


def save_whole(path: str | Path, network: Graph, about: About, what: str) -> None:
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


def _entry(op: Operation, shape: tuple[int, int, int], arrays: list[np.ndarray]) -> dict:
    """The header's entry of an operation; its numbers are appended to `arrays`."""
    kind = type(op).__name__.lower()
    entry = {"operation": kind, "output": op.output, "shape": list(shape), "input": op.input}
    if isinstance(op, Add):
        return entry | {"other": op.other}
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
        _need(scores == len(about.classes), f"{len(about.classes)} classes for {scores} scores")
        return network, about
    except _Refused as error:
        raise InputError(f"{path}: {error}") from None


class _Refused(Exception):
    """What is wrong in a file, without its name."""


def _need(condition: bool, fault: str) -> None:
    if not condition:
        raise _Refused(fault)


class _Fields:
    """The fields of a JSON object, each checked when it is taken."""

    def __init__(self, value: object, where: str) -> None:
        _need(isinstance(value, dict), f"{where} is not an object")
        self._value, self.where = value, where

    def get(self, key: str) -> object:
        _need(key in self._value, f"{self.where} has no {key!r}")
        return self._value[key]

    def text(self, key: str, legal: tuple[str, ...] = ()) -> str:
        value = self.get(key)
        _need(isinstance(value, str) and len(value) <= 500, f"{self.where}: {key!r} is no name")
        choices = ", ".join(legal)
        _need(not legal or value in legal, f"{self.where}: {key} {value!r} is none of {choices}")
        return value

    def flag(self, key: str) -> bool:
        _need(isinstance(self.get(key), bool), f"{self.where}: {key!r} is not true or false")
        return self.get(key)

    def integers(self, key: str, count: int, low: int, high: int) -> tuple[int, ...]:
        value = self.get(key)
        good = isinstance(value, list) and len(value) == count
        good = good and all(type(v) is int and low <= v <= high for v in value)
        limits = f"{count} whole numbers from {low} to {high}"
        _need(good, f"{self.where}: {key} {str(value)[:60]} is not {limits}")
        return tuple(value)

    def number(self, key: str, low: float, high: float) -> float:
        value = self.get(key)
        good = type(value) in (int, float) and low <= value <= high
        _need(good, f"{self.where}: {key} {str(value)[:60]} is not a number from {low} to {high}")
        return float(value)


class _Arrays:
    """The arrays of a file, taken in order; each must have the expected type and shape."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        self._left = arrays[::-1]

    def take(self, dtype: str, shape: tuple[int | None, ...], where: str) -> np.ndarray:
        """The next array; None in `shape` stands for any length."""
        _need(bool(self._left), f"{where}: the file has too few arrays")
        array = self._left.pop()
        fits = len(array.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        _need(fits, f"{where}: an array has the shape {array.shape}, not {shape}")
        _need(array.dtype == container.DTYPES[dtype], f"{where}: an array is not of type {dtype}")
        return array

    def floats(self, shape: tuple[int | None, ...], where: str) -> np.ndarray:
        array = self.take("f4", shape, where)
        _need(bool(np.isfinite(array).all()), f"{where}: a number is not finite")
        return array

    def end(self) -> None:
        _need(not self._left, f"{len(self._left)} arrays belong to no operation")


@dataclass
class _Known:
    """The tensors that the operations so far have made."""

    shapes: dict[str, tuple[int, int, int]]
    codes: dict[str, Quantize]
    values: int = 0


def _graph(header: dict, listed: list[np.ndarray]) -> Graph:
    fields, arrays = _Fields(header, "the header"), _Arrays(listed)
    first = _Fields(fields.get("input"), "the input")
    name, shape = first.text("name"), first.integers("shape", 3, 1, MOST_SIDE)
    known = _Known({name: shape}, {}, math.prod(shape))
    entries = fields.get("operations")
    good = isinstance(entries, list) and 0 < len(entries) <= MOST_OPERATIONS
    _need(good, f"the operations are not a list of 1 to {MOST_OPERATIONS}")
    operations = []
    for number, value in enumerate(entries):
        entry = _Fields(value, f"operation {number}")
        operations.append(_operation(entry, arrays, known))
    arrays.end()
    output = fields.text("output")
    _need(output in known.shapes and output not in known.codes, f"output {output!r} is not made")
    _need(output != name and known.shapes[output][1:] == (1, 1), f"output {output!r} is no scores")
    return Graph(name, shape, output, tuple(operations))


def _operation(entry: _Fields, arrays: _Arrays, known: _Known) -> Operation:
    kinds = {kind.__name__.lower(): kind for kind in (Convolution, Quantize, Add, Relu, Pool)}
    kind = kinds[entry.text("operation", tuple(kinds))]
    source, output = entry.text("input"), entry.text("output")
    _need(source in known.shapes, f"{entry.where}: tensor {source!r} is not made before")
    _need(output not in known.shapes, f"{entry.where}: tensor {output!r} is made twice")
    if kind is not Convolution:
        _need(source not in known.codes, f"{entry.where}: only a convolution reads codes")
    shape = known.shapes[source]
    if kind is Add:
        other = entry.text("other")
        _need(other not in known.codes, f"{entry.where}: only a convolution reads codes")
        _need(known.shapes.get(other) == shape, f"{entry.where}: {other!r} is not of shape {shape}")
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
    _need(is_legal, f"{entry.where}: its output is {made}: sides of 1 to {MOST_SIDE}")
    written = entry.integers("shape", 3, 1, MOST_SIDE)
    _need(written == made, f"{entry.where}: its output is {made}, not {written} as written")
    known.shapes[output] = made
    known.values += math.prod(made)
    _need(
        known.values <= MOST_VALUES,
        f"{entry.where}: the tensors hold {known.values} values so far: at most {MOST_VALUES}",
    )
    return op


def _pool(entry: _Fields, source: str, output: str, shape: tuple[int, int, int]) -> Pool:
    mean = entry.flag("mean")
    if entry.get("size") is not None:
        return Pool(source, output, mean, size=entry.integers("size", 2, 1, MOST_SIDE))
    _need(not mean, f"{entry.where}: a mean has a size")
    kernel = entry.integers("kernel", 2, 1, LARGEST_WINDOW)
    stride = entry.integers("stride", 2, 1, LARGEST_WINDOW)
    padding = entry.integers("padding", 2, 0, LARGEST_WINDOW)
    for side, k, p in zip(shape[1:], kernel, padding, strict=True):
        fits = 2 * p <= k <= side + 2 * p
        _need(fits, f"{entry.where}: a window of {k} with padding {p} does not fit {side} pixels")
    return Pool(source, output, mean, kernel, stride, padding)


def _quantize(entry: _Fields, arrays: _Arrays, source: str, output: str) -> Quantize:
    thresholds = arrays.take("f4", (None,), entry.where)
    _need(1 <= len(thresholds) <= 255, f"{entry.where}: {len(thresholds)} thresholds: 1 to 255")
    rising = bool((thresholds[1:] >= thresholds[:-1]).all()) and bool(thresholds[0] > -np.inf)
    _need(rising and not np.isnan(thresholds).any(), f"{entry.where}: thresholds do not rise")
    levels = arrays.floats((len(thresholds) + 1,), entry.where)
    return Quantize(entry.text("layer"), source, output, thresholds, levels)


def _convolution(
    entry: _Fields, arrays: _Arrays, known: _Known, source: str, output: str
) -> Convolution:
    where, (channels, *sides) = entry.where, known.shapes[source]
    shape = entry.integers("weight", 4, 1, MOST_SIDE)
    stride = entry.integers("stride", 2, 1, LARGEST_WINDOW)
    padding = entry.integers("padding", 2, 0, LARGEST_WINDOW)
    depthwise, compute = entry.flag("depthwise"), entry.text("compute", (COUNTS, FLOAT))
    outputs, *kernel, inputs = shape
    _need(
        max(kernel) <= LARGEST_WINDOW,
        f"{where}: the kernel {kernel}: sides of 1 to {LARGEST_WINDOW}",
    )
    for side, k, p in zip(sides, kernel, padding, strict=True):
        _need(k <= side + 2 * p, f"{where}: a kernel of {k} does not fit {side} pixels")
        _need(p < k, f"{where}: a padding of {p} is not less than the kernel of {k}")
    fits = (outputs, inputs) == (channels, 1) if depthwise else inputs == channels
    _need(fits, f"{where}: a weight of shape {shape} does not fit {channels} channels")
    padded = channels * math.prod(s + 2 * p for s, p in zip(sides, padding, strict=True))
    _need(
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
        _need(
            counted,
            f"{where}: compute 'counts': it cannot be computed by counts, so 'float' is legal",
        )
    layer = entry.text("layer")
    return Convolution(
        layer, source, output, stride, padding, depthwise, compute, weight, scale, shift
    )


def _weight(entry: _Fields, arrays: _Arrays, shape: tuple[int, ...]) -> Weight:
    where, stored = entry.where, entry.text("stored", ("values", "levels", "basis"))
    if stored == "values":
        return Weight(values=arrays.floats(shape, where))
    size = math.prod(shape)
    planes = arrays.take("u1", (None, -(-size // 8)), where)
    count = len(planes)
    _need(1 <= count <= 8, f"{where}: {count} planes of codes: 1 to 8")
    numbers = arrays.floats((None, count if stored == "basis" else None), where)
    rows = len(numbers)
    _need(rows in (1, shape[0]), f"{where}: {rows} rows of levels: 1 or {shape[0]}, the outputs")
    bits = np.unpackbits(planes, axis=1, count=size, bitorder="little")
    codes = (bits << np.arange(count, dtype=np.uint8)[:, None]).sum(0, dtype=np.uint8)
    codes = codes.reshape(shape)
    if stored == "basis":
        levels = basis_levels(numbers)
        _need(bool(np.isfinite(levels).all()), f"{where}: a level is not finite")
        return Weight(codes=codes, levels=levels, basis=numbers)
    levels = numbers.shape[1]
    _need(2 <= levels <= 256, f"{where}: {levels} levels: 2 to 256")
    _need((levels - 1).bit_length() == count, f"{where}: {levels} levels in {count} planes")
    _need(bool(codes.max() < levels), f"{where}: a code is beyond the {levels} levels")
    return Weight(codes=codes, levels=numbers)


def _about(header: dict) -> About:
    fields = _Fields(header, "the header")
    steps = _Fields(fields.get("preprocessing"), "the preprocessing")
    channels = header["input"]["shape"][0]
    classes, model = fields.get("classes"), fields.get("model")
    good = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    _need(good, "the classes are no list of names")
    odd = [name for name in classes if not name.isprintable()]
    _need(not odd, f"the class {odd[:1]!r} holds a character that cannot be printed")
    _need(isinstance(model, dict), "the model is not an object")
    numbers = []
    for key, low in (("mean", -1e6), ("std", 1e-6)):
        value = steps.get(key)
        good = isinstance(value, list) and len(value) == channels
        good = good and all(type(v) in (int, float) and low <= v <= 1e6 for v in value)
        _need(good, f"the preprocessing: {key} is not {channels} numbers")
        numbers.append(tuple(map(float, value)))
    crop = steps.get("crop")
    crop = None if crop is None else steps.number("crop", 1e-3, 1)
    return About(model, tuple(classes), numbers[0], numbers[1], crop)
