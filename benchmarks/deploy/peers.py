"""The peers: torch, onnxruntime and OpenVINO, with the network in float32 and in 8 bits.

The 8-bit form is onnxruntime's (see deploy/int8.py). OpenVINO reads the same file.
"""

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.deploy.subjects import CALIBRATION_IMAGES, Subject
from benchmarks.timing import now, timed
from deploy.int8 import NEEDS as INT8
from deploy.int8 import onnxruntime_call, write_int8
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.progress import say

FLOAT32 = ("onnx", "onnxruntime")
Call = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Files:
    """A subject in full precision, and its ONNX files; None where they could not be made."""

    model: nn.Module
    float32: Path | None
    int8: Path | None


@dataclass(frozen=True)
class Peer:
    """How a peer is called in tables, what it needs, and how it is set up.

    bits: of weights and activations. start(files, images, threads) returns the function that
    computes the outputs of the images.
    """

    label: str
    bits: int
    needs: tuple[str, ...]
    start: Callable[[Files, np.ndarray, int], Call]

    @property
    def method(self) -> str:
        return "fp" if self.bits == FLOAT_BITS else "int8"

    def path(self, files: Files) -> Path | None:
        """The ONNX file that it runs; None for torch."""
        if not self.needs:
            return None
        return files.float32 if self.bits == FLOAT_BITS else files.int8


def found(*modules: str) -> bool:
    """Whether modules can be imported; says once which one is missing."""
    return all(_found(name) for name in modules)


@cache
def _found(name: str) -> bool:
    try:
        import_module(name)
    except Exception as error:  # of any kind: a peer may not fit this machine
        reason = (str(error) or type(error).__name__).splitlines()[0]
        say(f"{name}: its columns stay empty (make bench installs it): {reason}")
        return False
    return True


def versions() -> dict[str, str]:
    """Of the peers' packages, as far as they are installed."""
    found = {}
    for package in ("onnx", "onnxruntime", "openvino"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_files(subject: Subject, folder: Path) -> Files:
    """The subject's ONNX files in `folder`, as far as the packages for them are installed."""
    float32, int8 = folder / "float32.onnx", folder / "int8.onnx"
    if not found("onnx"):
        return Files(subject.model(), None, None)
    subject.write_onnx(float32)
    if not found(*INT8):
        return Files(subject.model(), float32, None)
    write_int8(float32, int8, subject.images(CALIBRATION_IMAGES))
    return Files(subject.model(), float32, int8)


# -- torch -----------------------------------------------------------------------------------


def _faster_layout(make: Callable[[torch.memory_format], Call]) -> Call:
    """Of torch's two memory layouts, the one that is faster with the number of threads in use."""
    layouts = (torch.contiguous_format, torch.channels_last)
    calls = {str(layout): make(layout) for layout in layouts}
    clock = time.process_time if torch.get_num_threads() == 1 else now
    seconds = timed(calls, 3, clock=clock)
    return calls[min(seconds, key=lambda name: sorted(seconds[name])[1])]


def _torch(files: Files, images: np.ndarray, frozen: bool) -> Call:
    def make(layout: torch.memory_format) -> Call:
        model = copy.deepcopy(files.model).to(memory_format=layout)
        x = torch.from_numpy(images).contiguous(memory_format=layout)
        if frozen:
            with torch.no_grad():
                model = torch.jit.freeze(torch.jit.trace(model, x))

        def run() -> np.ndarray:
            with torch.inference_mode():
                return model(x).numpy()

        return run

    return _faster_layout(make)


# -- onnxruntime and OpenVINO ----------------------------------------------------------------


def _openvino(path: Path, images: np.ndarray, threads: int) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(images.shape))
    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: next(iter(request.infer({0: images}, share_inputs=True).values()))


PEERS = {
    "torch": Peer("torch", 32, (), lambda files, x, _: _torch(files, x, frozen=False)),
    "torch_frozen": Peer(
        "torch, frozen", 32, (), lambda files, x, _: _torch(files, x, frozen=True)
    ),
    "ort_fp32": Peer("onnxruntime", 32, FLOAT32, lambda f, x, n: onnxruntime_call(f.float32, x, n)),
    "ort_int8": Peer("onnxruntime", 8, INT8, lambda f, x, n: onnxruntime_call(f.int8, x, n)),
    "openvino_int8": Peer(
        "OpenVINO", 8, (*INT8, "openvino"), lambda f, x, n: _openvino(f.int8, x, n)
    ),
}
"""By the name in the columns: x_torch is the time of `torch` over the time of the row."""
