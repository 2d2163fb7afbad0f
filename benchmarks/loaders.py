"""Images a second: the FFCV loader against torchvision's DataLoader, same images, same cores.

Each loader runs in a new process, because the two disturb each other in one. Both give batches of
normalised float images that are cropped and flipped at random. The first epoch is left out: in it
FFCV compiles, and torchvision starts its workers.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

# isort: split
from torchvision import transforms

from benchmarks.steps import NETWORKS, Setting, training_step
from lowbit_core.data import augment
from lowbit_core.data.loader import make_loader
from lowbit_core.datasets.beton import write_beton
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.sources import source_module
from lowbit_core.kernels.fused import set_compile
from lowbit_core.runtime.backend import import_ffcv
from lowbit_core.runtime.progress import say

DATA = Path(__file__).parents[1] / "data"
SETS = ("cifar100", "fashion_mnist")
CORES = len(os.sched_getaffinity(0))
SPAWN = get_context("spawn")
BATCH, JPEG_BATCH = 128, 32
TRAIN = {"batch_size": BATCH, "train": True, "augmentation": "crop_flip"}


def measure(jpegs: Path | None, repeats: int = 3) -> list[dict]:
    """Rows: data, loader, images/s (median, slowest, fastest epoch), ratio to torchvision.

    jpegs: a folder of JPEG files, for the pipeline of ImageNet.
    """
    rows = []
    of_set = {"torchvision": torchvision, "ffcv": ffcv, "ffcv + step": ffcv_and_steps}
    for name in SETS:
        if (DATA / name / "train.manifest.json").exists():
            rows += _compare(name, of_set, DATA / name, repeats)
        else:
            say(f"loaders: {DATA / name} is not prepared; it is left out")
    if jpegs is None:
        say("loaders: --jpegs names no folder; ImageNet's pipeline is left out")
        return rows
    of_jpegs = {"torchvision": torchvision_jpegs, "ffcv": ffcv_jpegs}
    return rows + _compare("imagenet", of_jpegs, jpegs, repeats)


def _compare(data: str, loaders: dict[str, Callable], source: Path, repeats: int) -> list[dict]:
    rows = []
    for name, loader in loaders.items():
        say(f"loader {name} on {data}")
        with ProcessPoolExecutor(1, SPAWN, torch.set_num_threads, (CORES,)) as process:
            row = process.submit(loader, source, 1 + repeats).result()
        rows.append({"data": data, "loader": name, "cores": CORES, **row})
        if "wait_share" not in row:  # where a network is trained, its steps set the rate
            rows[-1]["ratio"] = row["images_per_s"] / rows[0]["images_per_s"]
    return rows


def _rate(epochs) -> dict:
    """Median, least and most images/s of the epochs (iterators of batches) after the first."""
    rates = []
    for batches in epochs:
        began = time.perf_counter()
        count = sum(len(images) for images, _ in batches)
        rates.append(count / (time.perf_counter() - began))
    rates = sorted(rates[1:])
    return {"images_per_s": rates[len(rates) // 2], "slowest": rates[0], "fastest": rates[-1]}


def torchvision(source: Path, epochs: int) -> dict:
    pixels = np.load(source / "train.npy")  # (N, C, H, W)
    side = pixels.shape[-1]
    crop = transforms.RandomCrop(side, padding=side // 8)
    first = (lambda item: Image.fromarray(item.transpose(1, 2, 0).squeeze()), crop)
    return _data_loader(pixels, first, pixels.shape[1], BATCH, epochs)


def torchvision_jpegs(source: Path, epochs: int) -> dict:
    first = (lambda path: Image.open(path).convert("RGB"), transforms.RandomResizedCrop(224))
    return _data_loader(sorted(source.glob("*.JPEG")) * 10, first, 3, JPEG_BATCH, epochs)


def _data_loader(items, first: tuple, channels: int, batch: int, epochs: int) -> dict:
    """The rate of a DataLoader of `items`: `first` makes a cropped picture, the rest is alike."""
    normal = transforms.Normalize((0.5,) * channels, (0.25,) * channels)
    flip = transforms.RandomHorizontalFlip()
    transform = transforms.Compose([*first, flip, transforms.ToTensor(), normal])
    batches = {"batch_size": batch, "shuffle": True, "drop_last": True}
    batches["collate_fn"] = lambda found: default_collate([(transform(item), 0) for item in found])
    workers = {"num_workers": CORES, "persistent_workers": True, "multiprocessing_context": "fork"}
    loader = DataLoader(items, **batches, **workers)
    return _rate(loader for _ in range(epochs))


def ffcv(source: Path, epochs: int) -> dict:
    loader = make_loader(source, "train", threads=CORES, **TRAIN)
    return _rate(loader.epoch(e) for e in range(epochs))


def ffcv_jpegs(source: Path, epochs: int) -> dict:
    """The sample JPEGs, each ten times in an epoch, through the reader for ImageNet.

    Part of the gain is in the .beton file: images are scaled to 500 pixels, half of them decoded.
    """
    import_ffcv()
    from lowbit_core.data.ffcv_reader import FfcvReader

    files = sorted(source.glob("*.JPEG")) * 10
    read = source_module("imagenet").read_image
    order = np.arange(len(files))

    def epoch(e: int) -> Iterator[tuple]:
        draws = augment.draw("resized_crop_flip", len(files), 224, e)
        for i, pixels in enumerate(reader.batches(order, JPEG_BATCH, e, order)):
            batch = slice(i * JPEG_BATCH, i * JPEG_BATCH + len(pixels))
            yield augment.apply(pixels, draws, batch).float().mul_(0.017).sub_(2.1), None

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "train.beton"
        samples = ((np.asarray(read(file)[0]), 0) for file in files)
        write_beton(path, dataset("imagenet"), len(files), samples)
        reader = FfcvReader(path, CORES, 224, True)
        return _rate(map(epoch, range(epochs)))


def ffcv_and_steps(source: Path, _: int) -> dict:
    """Share of the second epoch in which training ResNet-20 (W2A2, direct) waits for the loader."""
    set_compile(True)
    step = training_step("direct", Setting(NETWORKS["resnet20"]))
    loader = make_loader(source, "train", indices=np.arange(30 * BATCH), **TRAIN)
    for e in range(2):
        stepped, began = 0.0, time.perf_counter()
        for _ in loader.epoch(e):
            loaded = time.perf_counter()
            step()
            stepped += time.perf_counter() - loaded
        seconds = time.perf_counter() - began
    rate = loader.images / seconds
    return {
        "images_per_s": rate,
        "slowest": rate,
        "fastest": rate,
        "wait_share": 1 - stepped / seconds,
    }
