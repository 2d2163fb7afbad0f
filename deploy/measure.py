"""Exports trained runs and measures the files: accuracy, size, and the time of one image.

Times depend on the machine and its load, and so does the choice of the kernels. All else of a row
is determined by the run.
"""

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploy import fileformat, int8, onnxfile
from deploy.engine.build import library
from deploy.export.check import compare, first_images
from deploy.export.run import TrainedRun, about, final_record, read_run
from deploy.export.size import entropy_bytes, float32_bytes
from deploy.export.trace import trace
from deploy.graph import Convolution, Graph
from deploy.network import Network, load
from lowbit_core import models
from lowbit_core.data.loader import make_loader
from lowbit_core.datasets.catalog import Dataset
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import json_lines, write_text
from lowbit_core.runtime.progress import say

EXPORTED, DIVERGED, REFUSED = "exported", "diverged", "refused"
FIRST_PREDICTIONS = 500  # images whose predicted classes a row holds
MOST_LEVELS = 16  # of a weight whose codes are counted in a row
BATCH = 250
ROUNDS, CALLS = 7, 3  # of a latency: turns, and calls that are timed together
Call = Callable[[], object]


def write_measurements(
    path: Path, folders: Iterable[Path], data: Path, max_images: int | None
) -> None:
    """Measure each run and write one JSON line for each, in their order."""
    if path.is_dir():
        raise InputError(f"--out {path}: must be a file, not a folder")
    # What cannot be made is said now, not at the end.
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in measure_runs(folders, data, max_images):
        say(f"{row['run_id']}: {summary(row)}")
        rows.append(row)
    write_text(path, json_lines(rows))


def measure_runs(
    folders: Iterable[Path], data_folder: Path, max_images: int | None = None
) -> Iterator[dict]:
    """One row for each run folder.

    run_id, run_key, status: `exported`, `diverged`, or `refused` where a file cannot hold the
    network; only `exported` has more than a `reason`. images, top1: of the file, in percent;
    top1_training: of all test images, as the final record says it; agreement: the share of the
    images to which torch gives the same class, in percent. file_bytes, float32_bytes;
    entropy_bytes: of the file if an ideal coder packed its codes. ms: processor time of one image
    on one thread; x_torch: that of torch with the network in float32, divided by it; x_ort_int8:
    that of onnxruntime with the network in 8 bits, None where it is not installed; kernels: those
    that count, the one with the most layers first. codes: [layer, how many weights have each code]
    of each quantized layer; predictions: classes of the first images.

    max_images: test images to use, None for all. Raises InputError where a run is unfinished or
    damaged, or its test images are missing.
    """
    library()  # without a compiler nothing can be measured
    finals = [(folder, final_record(folder)) for folder in folders]  # before one is measured
    bench = _Bench(data_folder, max_images)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for folder, final in finals:
            yield _measure(folder, final, bench)
    finally:
        torch.set_num_threads(threads)


def summary(row: dict) -> str:
    """A row in one line."""
    if row["status"] != EXPORTED:
        return f"{row['status']}: {row['reason']}"
    ratio = row["x_ort_int8"]
    in_8_bits = "" if ratio is None else f", onnxruntime in int8: {ratio:.1f}"
    return (
        f"top-1 {row['top1']:.2f} % of {row['images']} images ({row['top1_training']:.2f} % after "
        f"training), {row['agreement']:.2f} % as torch, {row['file_bytes']:,} bytes "
        f"({row['float32_bytes'] / row['file_bytes']:.1f} times less than float32; "
        f"{row['entropy_bytes']:,} if an ideal coder packed the codes), "
        f"{row['ms']:.3f} ms an image (torch in float32: {row['x_torch']:.1f} times as long"
        f"{in_8_bits})"
    )


@dataclass(eq=False)
class _Bench:
    """What the runs of one process share: test images, and float32 networks to compare with."""

    data_folder: Path
    max_images: int | None
    batches: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    peers: dict[str, dict[str, Call]] = field(default_factory=dict)

    def test_batches(self, run: TrainedRun) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Normalised test images (N, C, H, W) with labels (N,), kept where they are small."""
        name = run.data.name
        if not run.data.stored_raw:
            return self._read(run)
        if name not in self.batches:
            self.batches[name] = list(self._read(run))
        return self.batches[name]

    def _read(self, run: TrainedRun) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        data = run.data
        # Of raw sets both backends give the same pixels, and FFCV would compile for seconds.
        backend = "torch" if data.stored_raw else pick_backend(run.config["loader"])
        loader = make_loader(
            self.data_folder / data.name,
            "test",
            batch_size=BATCH,
            train=False,
            indices=first_images(self.max_images, data),
            backend=backend,
        )
        for images, labels in loader.epoch(0):
            yield images.contiguous().numpy().copy(), labels.numpy().copy()

    def peers_of(self, run: TrainedRun) -> dict[str, Call]:
        """What computes one image by a network like the run's: `torch` in float32, in its faster
        memory layout, and `ort_int8` if onnxruntime is installed."""
        config = run.config
        key = json.dumps([run.data.name, config["arch"], config["arch_options"]], sort_keys=True)
        if key not in self.peers:
            self.peers[key] = _peers(config["arch"], config["arch_options"], run.data)
        return self.peers[key]


def _measure(folder: Path, final: dict, bench: _Bench) -> dict:
    if final["status"] != "done":
        reason = f"layer {final['diverged_layer']}: {final['diverged_because']}"
        return _row(folder.resolve().name, final["run_key"], DIVERGED, reason)
    run = read_run(folder)
    shape = (run.data.channels, run.data.side, run.data.side)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.lowbit"
        try:
            graph = trace(run.model, shape)
            fileformat.save(path, graph, about(run, bench.data_folder))
            network = load(path)
        except InputError as error:
            reason = str(error).removeprefix(f"{path}: ")
            return _row(run.config["run_id"], run.config["run_key"], REFUSED, reason)
        file_bytes = path.stat().st_size
    found = compare(network, run.model, bench.test_batches(run))
    images = len(found.classes)
    return {
        **_row(run.config["run_id"], run.config["run_key"], EXPORTED, ""),
        "images": images,
        "top1": 100 * found.right / images,
        "agreement": 100 * found.same / images,
        "top1_training": run.final["top1"],
        "file_bytes": file_bytes,
        "entropy_bytes": entropy_bytes(file_bytes, graph),
        "float32_bytes": float32_bytes(graph),
        **_latency(network, bench.peers_of(run), shape),
        "codes": code_counts(graph),
        "predictions": found.classes[:FIRST_PREDICTIONS],
    }


def _row(run_id: str, run_key: str, status: str, reason: str) -> dict:
    return {"run_id": run_id, "run_key": run_key, "status": status, "reason": reason}


def code_counts(graph: Graph) -> list[tuple[str, list[int]]]:
    """(Layer, how many of its weights have each code, from the lowest level on), in their order."""
    counts = []
    for op in graph.operations:
        if isinstance(op, Convolution) and op.weight.codes is not None:
            levels = op.weight.levels.shape[1]
            if levels <= MOST_LEVELS:
                found = np.bincount(op.weight.codes.ravel(), minlength=levels).tolist()
                counts.append((op.layer, found))
    return counts


# -- time ------------------------------------------------------------------------------------


def _latency(network: Network, peers: dict[str, Call], shape: tuple[int, int, int]) -> dict:
    image = np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)
    seconds = _timed({"file": lambda: network.scores(image), **peers})

    def times_as_long(name: str) -> float | None:
        if name not in seconds:
            return None
        return float(np.median(np.divide(seconds[name], seconds["file"])))

    return {
        "ms": 1000 * float(np.median(seconds["file"])),
        "x_torch": times_as_long("torch"),
        "x_ort_int8": times_as_long("ort_int8"),
        "kernels": network.counting_kernels(),
    }


def _peers(arch: str, options: dict, data: Dataset) -> dict[str, Call]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build(arch, data.classes, data.channels, **options).eval()
        images = torch.randn(int8.CALIBRATION_IMAGES, data.channels, data.side, data.side)
    peers = {"torch": _torch_call(model, images[:1])}
    if all(map(onnxfile.is_installed, int8.NEEDS)):
        peers["ort_int8"] = _int8_call(model, images.numpy())
    return peers


def _int8_call(model: nn.Module, images: np.ndarray) -> Call:
    from deploy.export.onnx import onnx_model

    with tempfile.TemporaryDirectory() as temporary:
        float32, in_8_bits = (Path(temporary) / name for name in ("float32.onnx", "int8.onnx"))
        float32.write_bytes(onnx_model(trace(model, images.shape[1:])).SerializeToString())
        int8.write_int8(float32, in_8_bits, images)
        return int8.onnxruntime_call(in_8_bits, images[:1], threads=1)


def _torch_call(model: nn.Module, image: torch.Tensor) -> Call:
    layouts = (torch.contiguous_format, torch.channels_last)
    calls = {str(layout): _in_layout(model, image, layout) for layout in layouts}
    seconds = _timed(calls)
    return calls[min(calls, key=lambda name: float(np.median(seconds[name])))]


def _in_layout(model: nn.Module, image: torch.Tensor, layout: torch.memory_format) -> Call:
    own, x = copy.deepcopy(model).to(memory_format=layout), image.contiguous(memory_format=layout)

    def run() -> object:
        with torch.inference_mode():
            return own(x)

    return run


def _timed(calls: dict[str, Call]) -> dict[str, list[float]]:
    """{name: seconds of one call in each turn}, after two calls that fill the caches.

    Processor time of this process: other work of the machine hardly counts.
    """
    for call in calls.values():
        call(), call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(CALLS):
                call()
            seconds[name].append((time.process_time() - began) / CALLS)
    return seconds
