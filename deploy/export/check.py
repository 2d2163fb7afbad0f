"""Compares a file with the run that it was exported from, on the run's test images."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from deploy import onnxfile
from deploy.export.run import ORIGIN, lower_widths, read_run
from deploy.network import Network, load
from deploy.onnxfile import OnnxNetwork
from lowbit_core.data.loader import channels_last, make_loader
from lowbit_core.datasets.catalog import Dataset
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError

MOST_POINTS_APART = 0.05  # the accuracies of a file and of torch
MOST_OTHER_CLASSES = 1.0  # percent of the images to which torch gives another class
MOST_IMAGES_APART = 3  # where so few images are more than that


def check_found(path: Path, found: dict) -> None:
    """Raise InputError where `found`, of check_run, says that the file is not the run's network.

    File and torch compute the same sums in another order, so a value at a threshold may get another
    code.
    """
    few = 100 * MOST_IMAGES_APART / found["images"]
    apart, other = abs(found["top1"] - found["top1_torch"]), 100 - found["agreement"]
    legal = max(MOST_POINTS_APART, few)
    if apart > legal + 1e-9:  # both are rounded
        raise InputError(
            f"{path}: its top-1 is {apart:.2f} points from that of torch: at most {legal:.2f} are "
            "legal"
        )
    legal = max(MOST_OTHER_CLASSES, few)
    if other > legal + 1e-9:
        raise InputError(
            f"{path}: torch gives another class to {other:.2f} % of the images: at most "
            f"{legal:.2f} % are legal"
        )


def first_images(count: int | None, data: Dataset) -> np.ndarray | None:
    """The indices of the first `count` test images; None for all."""
    return None if count is None else np.arange(min(count, data.test_images))


class Compared(NamedTuple):
    """Predictions of a file beside those of torch: classes of the file, and numbers of images."""

    classes: list[int]
    right: int
    right_torch: int
    same: int


def compare(
    network: Network | OnnxNetwork,
    model: nn.Module,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Compared:
    """Let both classify normalised images (N, C, H, W) with labels (N,)."""
    classes: list[int] = []
    right = right_torch = same = 0
    for images, labels in batches:
        best = network.scores(images).argmax(1)
        with torch.inference_mode():
            x = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            best_torch = model(x).argmax(1).numpy()
        right += int((best == labels).sum())
        right_torch += int((best_torch == labels).sum())
        same += int((best == best_torch).sum())
        classes += best.tolist()
    return Compared(classes, right, right_torch, same)


def check_run(
    path: Path, folder: Path, data_folder: Path, threads: int = 1, max_images: int | None = None
) -> dict:
    """Accuracy of the file and of torch on the test split, and how often they agree.

    Returns images; top1, top1_torch and agreement in percent; top1_training as the final record
    says it. `max_images`: None for all.
    A file whose name ends with .onnx is ONNX. Raises InputError where the file is not of this run.
    """
    read = onnxfile.load if path.suffix == ".onnx" else load
    network, run = read(path, threads=threads), read_run(folder)
    origin = network.about.origin
    for bits, label in lower_widths(run.config).items():
        if bits == (origin.get("w_bits"), origin.get("a_bits")):
            run = read_run(folder, label)
    for key in ORIGIN:
        has, wanted = origin.get(key), run.config[key]
        if has != wanted:
            raise InputError(
                f"{path} is not of the run in {folder}: its {key} is {has!r}, not {wanted!r}"
            )
    loader = make_loader(
        data_folder / run.data.name,
        "test",
        batch_size=100,
        train=False,
        indices=first_images(max_images, run.data),
        backend=pick_backend(run.config["loader"]),
    )
    batches = ((x.numpy(), labels.numpy()) for x, labels in channels_last(loader.epoch(0)))
    found = compare(network, run.model, batches)
    images = len(found.classes)
    return {
        "images": images,
        "top1": 100 * found.right / images,
        "top1_torch": 100 * found.right_torch / images,
        "top1_training": run.final["top1"],
        "agreement": 100 * found.same / images,
    }
