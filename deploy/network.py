"""A network that was read from a `.lowbit` file and is ready to run, without torch."""

import ctypes
import math
import operator
import os
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy import fileformat, graph
from deploy.engine import plan
from deploy.engine.arrays import Filled
from deploy.engine.build import library
from deploy.fileformat import About
from deploy.graph import Convolution, Graph
from lowbit_core.runtime.errors import InputError

MOST_THREADS = 1024
NO_MEMORY = "the memory does not suffice to run this network"
CALLS = 7  # of which the fastest counts, where numbers of threads are compared
GAIN = 0.9  # of the time with half the threads: with less gain they are not worth it


class Computed(NamedTuple):
    """How a convolution is computed: by a kernel that counts, or by sums of floats."""

    layer: str
    how: str
    counts: bool


def load(
    path: str | Path,
    *,
    threads: int | None = 1,
    target: str | None = None,
    kernel: str | None = None,
) -> "Network":
    """The network of a `.lowbit` file; InputError says in one sentence why it is refused.

    threads: of one image; None: as many as are fastest, measured here. target: the instruction
    set, as the C++ compiler names it (-march); None: $LOWBIT_TARGET, or that of this processor.
    kernel: as for Network.
    """
    return Network(*fileformat.load(path), threads=threads, target=target, kernel=kernel)


def check_threads(threads: int, where: str) -> int:
    """The number of threads. InputError unless it is a whole one that an engine may start."""
    try:
        number = operator.index(threads)
    except TypeError:
        number = 0
    if not 1 <= number <= MOST_THREADS:
        raise InputError(f"{where} {threads}: must be a whole number from 1 to {MOST_THREADS}")
    return number


class _Process:
    """What a forked process must know: the threads of its parent are gone.

    They may be torch's as well, which shares the library of threads with the engine, so nothing
    here can tell whether there were any.
    """

    may_start = True
    networks: weakref.WeakSet = weakref.WeakSet()

    @classmethod
    def forked(cls) -> None:
        cls.may_start = False
        for network in cls.networks:  # a thread of the parent may have held the lock
            network._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Process.forked)


class Network:
    """Computes scores of images. `about` holds the classes, the preprocessing and the origin.

    Results are the same to the bit on every instruction set, with any number of threads and with
    every kernel. threads: None measures one image and takes as many as are fastest. kernel: None
    measures the kernels that serve a layer and takes the fastest; `popcount`, `tables`, `products`,
    `matrices` or `wide` (tables of 64 outputs) is taken wherever it serves, else popcount. A forked
    process computes on one thread.
    """

    def __init__(
        self,
        network: Graph,
        about: About,
        *,
        threads: int | None = 1,
        target: str | None = None,
        flags: tuple[str, ...] = (),
        kernel: str | None = None,
    ) -> None:
        threads = threads if threads is None else check_threads(threads, "threads")
        number = plan.kernel_number(kernel)
        self.graph, self.about = network, about
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
            raise InputError(NO_MEMORY)
        weakref.finalize(self, self._library.network_free, self._pointer)
        _Process.networks.add(self)
        self.threads = 1 if threads is None else threads
        if threads is None and _Process.may_start:
            self._take_fastest_threads()

    def _take_fastest_threads(self) -> None:
        """Double the threads, up to the processors of this process, as long as that gains."""
        image = np.zeros((1, *self.graph.input_shape), np.float32)

        def seconds() -> float:
            times = []
            for _ in range(CALLS):
                began = time.perf_counter()
                self.scores(image)
                times.append(time.perf_counter() - began)
            return min(times)

        known, most = seconds(), min(_processors(), MOST_THREADS)
        while 2 * self.threads <= most:
            self.threads *= 2
            before, known = known, seconds()
            if known > GAIN * before:
                self.threads //= 2
                return

    def scores(self, images: np.ndarray) -> np.ndarray:
        """Scores (N, classes) float32 of normalised images (N, C, H, W).

        The channels may lie last in memory: with many of them that is faster. InputError names a
        wrong shape or type. A pixel that is not a number reaches no threshold.
        """
        try:
            images = np.asarray(images)
        except (ValueError, TypeError, RuntimeError) as error:
            kind = type(images).__name__
            raise InputError(f"images of type {kind} are no array of numbers ({error})") from None
        if images.dtype.kind not in "biuf":
            raise InputError(f"images of type {images.dtype}: must be real numbers")
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
        threads = self._threads()
        with self._lock:
            done = self._library.network_run(
                self._pointer, _floats(images), channels_last, len(images), _floats(scores), threads
            )
        if not done:
            raise InputError(NO_MEMORY)
        return scores

    def _threads(self) -> int:
        """Those that this process may use: with more, it would wait for threads that are gone."""
        return self.threads if _Process.may_start else 1

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
        if step.kind == plan.Kind.COUNTS:
            counts = np.empty(filled.terms(), np.int32)
            pointer = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        threads = self._threads()
        with self._lock:
            self._library.network_step(
                self._pointer,
                number,
                _floats(x),
                None if other is None else _floats(other),
                _floats(y),
                threads,
                pointer,
            )
        return y, counts

    def kernels(self) -> list[Computed]:
        """How every convolution is computed, in their order."""
        rows = []
        for number, step in enumerate(self.steps):
            if isinstance(step.operation, Convolution):
                how = self._library.network_kernel(self._pointer, number).decode()
                counts = step.kind == plan.Kind.COUNTS
                if not counts:
                    how = f"float32 ({how})" if how else "float32"
                    if step.kind == plan.Kind.DEPTHWISE:
                        how = f"depthwise {how}"
                    if step.operation.weight.codes is not None:
                        how = f"dequantized {how}"
                rows.append(Computed(step.operation.layer, how, counts))
        return rows

    def counting_kernels(self) -> str:
        """The kernels that count, the one with the most layers first, with ` + ` between them."""
        counted = Counter(row.how for row in self.kernels() if row.counts)
        return " + ".join(name for name, _ in counted.most_common())


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _floats(array: np.ndarray) -> ctypes.c_float:
    """The first number of a contiguous array, whose address is handed over.

    `data_as` would take three microseconds, a tenth of a small layer.
    """
    if array.flags.writeable:
        return ctypes.c_float.from_buffer(array)
    return ctypes.c_float.from_address(array.ctypes.data)  # the caller keeps the array
