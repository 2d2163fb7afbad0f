"""A network that was read from a `.lowbit` file and is ready to run, without torch."""

import ctypes
import math
import threading
import weakref
from pathlib import Path

import numpy as np

from deploy import fileformat, graph
from deploy.engine import plan
from deploy.engine.arrays import Filled
from deploy.engine.build import library
from deploy.fileformat import About
from deploy.graph import Convolution, Graph
from lowbit_core.runtime.errors import InputError

MOST_THREADS = 1024


def load(
    path: str | Path, *, threads: int = 1, target: str | None = None, kernel: str | None = None
) -> "Network":
    """The network of a `.lowbit` file; InputError says in one sentence why it is refused.

    threads: of one image. target: the instruction set, as the C++ compiler names it (-march);
    None: $LOWBIT_TARGET, or that of this processor. kernel: as for Network.
    """
    return Network(*fileformat.load(path), threads=threads, target=target, kernel=kernel)


def check_threads(threads: int, where: str) -> None:
    """Raise InputError unless it is a number of threads that an engine may start."""
    if not 1 <= threads <= MOST_THREADS:
        raise InputError(f"{where} {threads}: must be from 1 to {MOST_THREADS}")


class Network:
    """Computes scores of images. `about` holds the classes, the preprocessing and the origin.

    Results are the same to the bit on every instruction set, with any number of threads and with
    every kernel. kernel: None measures the kernels that serve a layer and takes the fastest;
    `popcount`, `tables`, `products`, `matrices` or `wide` (tables of 64 outputs) is taken wherever
    it serves, else popcount.
    """

    def __init__(
        self,
        network: Graph,
        about: About,
        *,
        threads: int = 1,
        target: str | None = None,
        flags: tuple[str, ...] = (),
        kernel: str | None = None,
    ) -> None:
        check_threads(threads, "threads")
        number = plan.kernel_number(kernel)
        self.graph, self.about, self.threads = network, about, threads
        self.steps = plan.plan(network)
        output = plan.output_name(network, self.steps)
        memory = plan.place_tensors(network, self.steps, output)
        shapes = graph.shapes(network)
        self.filled = [Filled(step, memory, shapes) for step in self.steps]
        for filled in self.filled:
            filled.step.kernel = number
        self.classes = shapes[output][0]
        self._library = library(target, flags)
        self._lock = threading.Lock()  # one image at a time is in the engine's memory
        steps = (type(self.filled[0].step) * len(self.filled))(*(f.step for f in self.filled))
        offsets = (ctypes.c_int64 * len(memory.offsets))(*memory.offsets)
        self._pointer = self._library.network_new(
            steps,
            len(steps),
            offsets,
            len(offsets),
            memory.size,
            math.prod(network.input_shape),
            network.input_shape[0],
            memory.numbers[output],
            self.classes,
        )
        if not self._pointer:
            raise InputError("the memory does not suffice to run this network")
        weakref.finalize(self, self._library.network_free, self._pointer)

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Scores (N, classes) float32 of normalised images (N, C, H, W).

        The channels may lie last in memory: with many of them that is faster.
        """
        if images.ndim != 4 or images.shape[1:] != self.graph.input_shape:
            raise InputError(
                f"images of shape {images.shape}: must be (N, "
                f"{', '.join(map(str, self.graph.input_shape))})"
            )
        images = images.astype(np.float32, copy=False)
        turned = images.transpose(0, 2, 3, 1)
        channels_last = turned.flags.c_contiguous
        images = turned if channels_last else np.ascontiguousarray(images)
        scores = np.empty((len(images), self.classes), np.float32)
        if len(images) == 0:
            return scores
        with self._lock:
            self._library.network_run(
                self._pointer,
                _floats(images),
                channels_last,
                len(images),
                _floats(scores),
                self.threads,
            )
        return scores

    def run_step(
        self, number: int, x: np.ndarray, other: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(The output (H, W, C) of one step, its integers or None), from its inputs (H, W, C).

        The integers of a convolution by counts are (OH, OW, O, groups of weights, terms of inputs).
        """
        filled = self.filled[number]
        step = filled.step
        x = np.ascontiguousarray(x, np.float32).reshape(step.high, step.wide, step.channels)
        out_shape = (step.out_high, step.out_wide, step.outputs)
        y, counts, pointer = np.empty(out_shape, np.float32), None, None
        if other is not None:
            other = np.ascontiguousarray(other, np.float32).reshape(out_shape)
        if step.kind == plan.COUNT:
            counts = np.empty(filled.terms(), np.int32)
            pointer = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        with self._lock:
            self._library.network_step(
                self._pointer,
                number,
                _floats(x),
                None if other is None else _floats(other),
                _floats(y),
                self.threads,
                pointer,
            )
        return y, counts

    def kernels(self) -> list[tuple[str, str]]:
        """(Layer, how it is computed) of every convolution."""
        rows = []
        for number, step in enumerate(self.steps):
            if isinstance(step.operation, Convolution):
                name = self._library.network_kernel(self._pointer, number).decode()
                kind = "depthwise float32" if step.kind == plan.DEPTHWISE else "float32"
                if step.operation.weight.codes is not None:
                    kind = f"dequantized {kind}"
                rows.append((step.operation.layer, name or kind))
        return rows


def _floats(array: np.ndarray) -> ctypes.c_float:
    """The first number of a contiguous array, whose address is handed over.

    `data_as` would take three microseconds, a tenth of a small layer.
    """
    if array.flags.writeable:
        return ctypes.c_float.from_buffer(array)
    return ctypes.c_float.from_address(array.ctypes.data)  # the caller keeps the array
