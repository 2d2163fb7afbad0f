"""The real data sets, where they are: Fashion-MNIST, CIFAR-100 as PNG files, a sample of ImageNet.

The last two are looked for in $LOWBIT_SHARED/data or ../shared/data beside the project.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowbit_core.data import ffcv_reader
from lowbit_core.data.loader import make_loader
from lowbit_core.data.normalisation import MEAN_STD
from lowbit_core.data.splits import split_indices
from lowbit_core.datasets import fashion_mnist
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import check, read_labels
from lowbit_core.datasets.prepare import prepare

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("LOWBIT_SHARED", ROOT.parent / "shared")) / "data"


def needs(path: Path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path} is not there")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "fashion_mnist"
    prepare(dataset("fashion_mnist"), folder, fashion_mnist.SYSTEM_FOLDER)
    return folder


@needs(fashion_mnist.SYSTEM_FOLDER)
def test_fashion_mnist(fashion):
    data = dataset("fashion_mnist")
    assert check(fashion, "train", full=True)["class_counts"] == [6000] * 10
    assert check(fashion, "test", full=True)["class_counts"] == [1000] * 10
    pixels = np.load(fashion / "train.npy") / 255.0
    assert pixels.mean() == pytest.approx(MEAN_STD[data.name][0][0], abs=1e-3)
    assert pixels.std() == pytest.approx(MEAN_STD[data.name][1][0], abs=1e-3)
    train, val = split_indices(read_labels(fashion, "train"), val_images=5000)
    for split, indices, training in (
        ("train", train, True),
        ("train", val, False),
        ("test", None, False),
    ):
        options = dict(
            batch_size=128,
            train=training,
            indices=indices,
            seed=1,
            augmentation="crop_flip" if training else "none",
        )
        ours, reference = (
            make_loader(fashion, split, backend=b, **options).epoch(3) for b in ("ffcv", "torch")
        )
        for (x, y), (x2, y2) in zip(ours, reference, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)


@needs(fashion_mnist.SYSTEM_FOLDER)
def test_a_second_loader_costs_next_to_nothing(fashion):
    def start() -> None:
        for split, training in (("train", True), ("test", False)):
            next(make_loader(fashion, split, batch_size=128, train=training).epoch(0))

    start()
    made = ffcv_reader._compiled_loader.cache_info().misses
    start()
    assert ffcv_reader._compiled_loader.cache_info().misses == made


@pytest.mark.slow
@needs(SHARED / "unpack_cifar100.py")
def test_cifar100_from_images(tmp_path):
    subprocess.run([sys.executable, SHARED / "unpack_cifar100.py", tmp_path / "png"], check=True)
    data = dataset("cifar100")
    prepare(data, tmp_path / "out", tmp_path / "png")
    shutil.rmtree(tmp_path / "png")  # 60,000 files
    assert check(tmp_path / "out", "train")["class_counts"] == [500] * 100
    assert check(tmp_path / "out", "test")["class_names"][:2] == ["apple", "aquarium_fish"]
    pixels = np.load(tmp_path / "out" / "train.npy", mmap_mode="r")[::5] / 255.0
    assert pixels.mean((0, 2, 3)) == pytest.approx(MEAN_STD[data.name][0], abs=3e-3)
    assert pixels.std((0, 2, 3)) == pytest.approx(MEAN_STD[data.name][1], abs=3e-3)
    options = dict(batch_size=500, train=True, augmentation="crop_flip", indices=np.arange(5000))
    ours, reference = (
        make_loader(tmp_path / "out", "train", backend=b, **options).epoch(0)
        for b in ("ffcv", "torch")
    )
    for (x, y), (x2, y2) in zip(ours, reference, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


@pytest.fixture(scope="module")
def imagenet_sample(tmp_path_factory):
    """One image a class of 100 classes, the same for both splits."""
    folder = tmp_path_factory.mktemp("imagenet")
    for file in sorted((SHARED / "imagenet_sample").glob("*.JPEG")):
        for split in ("train", "val"):
            synset = folder / "source" / split / file.name.split("_")[0]
            synset.mkdir(parents=True)
            shutil.copy(file, synset)
    prepare(
        replace(dataset("imagenet"), classes=100, train_images=100, test_images=100),
        folder / "out",
        folder / "source",
    )
    return folder / "out"


@needs(SHARED / "imagenet_sample")
def test_imagenet_evaluation_pixels_agree(imagenet_sample):
    options = dict(batch_size=30, train=False)
    ours, reference = (
        make_loader(imagenet_sample, "test", backend=b, **options) for b in ("ffcv", "torch")
    )
    levels = 255 * torch.tensor(MEAN_STD["imagenet"][1]).view(1, 3, 1, 1)  # in pixel values
    sizes, differences = [], []
    for (x, y), (x2, y2) in zip(ours.epoch(0), reference.epoch(0), strict=True):
        assert torch.equal(y, y2) and x.shape[1:] == x2.shape[1:] == (3, 224, 224)
        sizes.append(len(x))
        differences.append(((x - x2) * levels).abs().mean((1, 2, 3)))
    assert sizes == [30, 30, 30, 10]
    # Half of FFCV's images went through JPEG once more, and the larger ones were resized twice.
    differences = torch.cat(differences)
    assert differences.mean() < 3 and differences.max() < 12


@needs(SHARED / "imagenet_sample")
@pytest.mark.parametrize("backend", ["ffcv", "torch"])
def test_imagenet_training_crops_repeat_with_the_seed(imagenet_sample, backend):
    loaders = [
        make_loader(
            imagenet_sample,
            "train",
            batch_size=32,
            train=True,
            seed=seed,
            augmentation="resized_crop_flip",
            resolution=64,
            backend=backend,
        )
        for seed in (1, 1, 2)
    ]
    assert loaders[0].images == 96
    runs = [[(x, y) for x, y in loader.epoch(1)] for loader in loaders]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(runs[0], runs[1], strict=True))
    assert runs[0][0][0].shape == (32, 3, 64, 64)
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    assert not torch.equal(runs[0][0][0], next(loaders[0].epoch(2))[0])


@needs(SHARED / "imagenet_sample")
def test_imagenet_shares_have_the_crops_of_one_process(imagenet_sample):
    whole, *parts = (
        make_loader(
            imagenet_sample,
            "train",
            batch_size=32,
            train=True,
            augmentation="resized_crop_flip",
            resolution=32,
            backend="torch",
            share=share,
        ).epoch(1)
        for share in ((0, 1), (0, 2), (1, 2))
    )
    for (x, y), *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([images for images, _ in own]), x)
        assert torch.equal(torch.cat([labels for _, labels in own]), y)
