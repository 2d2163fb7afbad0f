"""Compares a file with the run that it was exported from, on the run's test images."""

from pathlib import Path

import numpy as np
import torch

from deploy import onnxfile
from deploy.export.run import read_run
from deploy.network import load
from lowbit_core.data.loader import channels_last, make_loader
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError

KEYS = ("run_id", "dataset", "arch", "arch_options", "method", "w_bits", "a_bits", "policy")


@torch.no_grad()
def check_run(
    path: Path, folder: Path, data_folder: Path, threads: int = 1, most: int | None = None
) -> dict:
    """Accuracy of the file and of torch on the test split, and how often they agree.

    Returns images; top1, top1_torch and agreement in percent; top1_training as the final record
    says it. `most` images: None for all.
    A file whose name ends with .onnx is ONNX. Raises InputError where the file is not of this run.
    """
    read = onnxfile.load if path.suffix == ".onnx" else load
    network, run = read(path, threads=threads), read_run(folder)
    for key in KEYS:
        has, wanted = network.about.origin.get(key), run.config[key]
        if has != wanted:
            raise InputError(
                f"{path} is not of the run in {folder}: its {key} is {has!r}, not {wanted!r}"
            )
    loader = make_loader(
        data_folder / run.data.name,
        "test",
        batch_size=100,
        train=False,
        indices=None if most is None else np.arange(min(most, run.data.test_images)),
        backend=pick_backend(run.config["loader"]),
    )
    right = right_torch = same = images = 0
    for batch, labels in channels_last(loader.epoch(0)):
        expected = run.model(batch).numpy()
        scores = network.scores(batch.numpy())
        best, best_torch = scores.argmax(1), expected.argmax(1)
        right += int((best == labels.numpy()).sum())
        right_torch += int((best_torch == labels.numpy()).sum())
        same += int((best == best_torch).sum())
        images += len(labels)
    return {
        "images": images,
        "top1": 100 * right / images,
        "top1_torch": 100 * right_torch / images,
        "top1_training": run.final["top1"],
        "agreement": 100 * same / images,
    }
