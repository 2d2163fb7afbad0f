"""Loaders: both backends give the same batches, in an order that the seed and epoch determine."""

import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lowbit_core.data import augment, ffcv_reader, resident_reader
from lowbit_core.data.loader import make_loader
from lowbit_core.data.normalisation import MEAN_STD
from lowbit_core.data.splits import split_indices
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import read_manifest
from lowbit_core.datasets.prepare import prepare
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum, write_json

BACKENDS = ("ffcv", "torch")


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(dataset("digits"), folder)
    return folder


def epoch(folder, e=0, split="train", **options):
    """All images and labels of one epoch."""
    options = {"batch_size": 100, "train": True} | options
    batches = list(make_loader(folder, split, **options).epoch(e))
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("augmentation", augment.RAW_AUGMENTATIONS)
def test_backends_agree_to_the_bit(digits, augmentation):
    options = dict(augmentation=augmentation, seed=5, e=2)
    assert same(*(epoch(digits, backend=b, **options) for b in BACKENDS))
    assert same(*(epoch(digits, backend=b, split="test", train=False) for b in BACKENDS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_are_those_stored(digits, backend):
    images, labels = epoch(digits, split="test", train=False, backend=backend)
    data = dataset("digits")
    raw = torch.from_numpy(np.load(digits / "test.npy"))
    expected = (raw / 255 - MEAN_STD[data.name][0][0]) / MEAN_STD[data.name][1][0]
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)
    assert labels.tolist() == np.load(digits / "test_labels.npy").tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_repeats_resumes_and_differs(digits, backend):
    loader = make_loader(
        digits,
        "train",
        batch_size=64,
        train=True,
        augmentation="crop_flip",
        seed=1,
        backend=backend,
    )
    run = [[(x.clone(), y.clone()) for x, y in loader.epoch(e)] for e in range(3)]
    resumed = make_loader(
        digits,
        "train",
        batch_size=64,
        train=True,
        augmentation="crop_flip",
        seed=1,
        backend=backend,
    )
    for (x, y), (x2, y2) in zip(run[2], resumed.epoch(2), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert not torch.equal(run[0][0][1], run[1][0][1])
    # seed + epoch as the seed would make these two the same
    assert not torch.equal(
        epoch(digits, 0, seed=1, backend=backend)[1], epoch(digits, 1, seed=0, backend=backend)[1]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_index_comes_once(digits, backend):
    chosen = np.arange(0, 1400, 7)
    labels = np.load(digits / "train_labels.npy")
    raw = epoch(digits, train=False, backend=backend, batch_size=33)[0]
    for train in (True, False):
        images, found = epoch(digits, indices=chosen, train=train, batch_size=50, backend=backend)
        position = [int(np.flatnonzero((raw == x).all((1, 2, 3)))[0]) for x in images]
        assert sorted(position) == chosen.tolist()
        assert found.tolist() == labels[position].tolist()
        assert (position == chosen.tolist()) == (not train)


@pytest.mark.parametrize("backend", BACKENDS)
def test_partial_batches_are_kept_only_in_evaluation(digits, backend):
    options = dict(batch_size=64, indices=np.arange(100), backend=backend)
    loader = make_loader(digits, "train", train=False, **options)
    assert [len(y) for _, y in loader.epoch(0)] == [64, 36]
    assert (len(loader), loader.images, loader.backend) == (2, 100, backend)
    loader = make_loader(digits, "train", train=True, **options)
    assert [len(y) for _, y in loader.epoch(0)] == [64]
    assert (len(loader), loader.images) == (1, 64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_can_be_kept_and_left_early(digits, backend):
    threads, before = torch.get_num_threads(), threading.active_count()
    kept = epoch(digits, split="test", train=False, batch_size=10, backend=backend)
    single = epoch(digits, split="test", train=False, batch_size=360, backend=backend)
    assert same(kept, single)
    loader = make_loader(digits, "train", batch_size=10, train=True, backend=backend)
    for _ in range(3):
        for _ in loader.epoch(0):
            break
    both = zip(loader.epoch(0), loader.epoch(0), strict=True)  # two epochs at once
    assert all(torch.equal(a[0], b[0]) for a, b in both)
    assert torch.get_num_threads() == threads and threading.active_count() == before


def test_augmentation_does_what_it_says(digits):
    plain, _ = epoch(digits, seed=3)
    flipped, _ = epoch(digits, seed=3, augmentation="flip")
    is_flipped = (flipped == plain.flip(3)).all((1, 2, 3))
    assert ((flipped == plain).all((1, 2, 3)) | is_flipped).all()
    assert 0.4 < is_flipped.float().mean() < 0.6

    images = torch.randint(1, 256, (64, 3, 16, 16), dtype=torch.uint8)
    draws = augment.draw("crop", 64, 16, seed=0)
    pad = augment.padding(16)
    padded = torch.nn.functional.pad(images, (pad,) * 4)
    found = augment.apply(images, draws, slice(0, 64))
    for i, (top, left) in enumerate(draws.offsets.tolist()):
        assert torch.equal(found[i], padded[i, :, top : top + 16, left : left + 16])
    assert draws.offsets.unique().tolist() == list(range(2 * pad + 1))


def test_validation_uses_no_augmentation_numbers_of_training(digits):
    """Reading a validation set between epochs changes nothing in training."""
    train = make_loader(digits, "train", batch_size=50, train=True, augmentation="crop_flip")
    val = make_loader(digits, "test", batch_size=50, train=False)
    alone = [x.clone() for x, _ in train.epoch(1)]
    list(val.epoch(0))
    assert all(torch.equal(a, x) for a, (x, _) in zip(alone, train.epoch(1), strict=True))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"backend": "dali"}, "'dali': choose one of ffcv, torch"),
        ({"augmentation": "mixup"}, "'mixup': choose one of none, flip, crop, crop_flip"),
        ({"augmentation": "resized_crop_flip"}, "'resized_crop_flip': choose one of none"),
        ({"split": "val"}, "'val': choose one of train, test"),
        ({"batch_size": 0}, "batch size 0: must be 1 to 1437"),
        ({"batch_size": 1438}, "batch size 1438: must be 1 to 1437"),
        ({"indices": [0, 1437]}, "from 0 to 1437|from 0 to 1436"),
        ({"indices": [-1]}, "from 0 to 1436"),
        ({"indices": []}, "at least one"),
        ({"threads": 0}, "threads 0: must be at least 1"),
        ({"resolution": 32}, "resolution 32: digits is always loaded at 8"),
    ],
)
def test_illegal_arguments_are_named(digits, options, said):
    with pytest.raises(InputError, match=said):
        epoch(digits, **options)


def test_a_failing_ffcv_thread_is_reported(digits, monkeypatch):
    loader = make_loader(digits, "train", batch_size=50, train=True)

    def fail(*args):
        raise OSError("disk gone")

    monkeypatch.setattr(ffcv_reader._Batches, "run_pipeline", fail)
    with pytest.raises(RuntimeError, match="loader thread failed: OSError"):
        next(loader.epoch(0))


def test_a_hanging_ffcv_thread_is_given_up(digits, monkeypatch):
    loader = make_loader(digits, "train", batch_size=50, train=True)
    monkeypatch.setattr(ffcv_reader, "TIMEOUT", 0.5)
    over = threading.Event()

    def hang(*args):
        over.wait()
        raise StopIteration

    monkeypatch.setattr(ffcv_reader._Batches, "run_pipeline", hang)
    with pytest.raises(RuntimeError, match="no batch in"):
        next(loader.epoch(0))
    over.set()


# ---- splits


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.data())
@settings(max_examples=80, deadline=None)
def test_splits_are_disjoint_stratified_and_fixed(class_sizes, data):
    labels = np.random.default_rng(0).permutation(
        np.repeat(np.arange(len(class_sizes)), class_sizes)
    )
    val_images = data.draw(st.integers(0, len(labels) - 1))
    train_images = data.draw(st.none() | st.integers(1, len(labels) - val_images))
    train, val = split_indices(labels, val_images=val_images, train_images=train_images)
    assert len(val) == val_images and len(train) == (train_images or len(labels) - val_images)
    assert len(np.union1d(train, val)) == len(train) + len(val)
    for part, members in (
        (val, np.arange(len(labels))),
        (train, np.setdiff1d(np.arange(len(labels)), val)),
    ):
        for c, size in enumerate(np.bincount(labels[members], minlength=len(class_sizes))):
            assert abs((labels[part] == c).sum() - size * len(part) / len(members)) < 1
    again = split_indices(labels, val_images=val_images, train_images=1)[1]
    assert np.array_equal(again, val)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"val_images": -1}, "val_images -1: must be 0 to 100"),
        ({"val_images": 101}, "val_images 101: must be 0 to 100"),
        ({"val_images": 10, "train_images": 0}, "train_images 0: must be 1 to 90"),
        ({"val_images": 10, "train_images": 91}, "train_images 91: must be 1 to 90"),
    ],
)
def test_illegal_splits_are_named(options, said):
    with pytest.raises(InputError, match=said):
        split_indices(np.arange(100) % 10, **options)


@pytest.mark.parametrize("augmentation", augment.RAW_AUGMENTATIONS)
def test_resident_pixels_are_the_same_to_the_bit(digits, augmentation):
    for options in (
        {"augmentation": augmentation, "seed": 5, "e": 2, "indices": np.arange(7, 900)},
        {"split": "test", "train": False},
    ):
        assert same(epoch(digits, resident=True, **options), epoch(digits, **options))


def test_a_gpu_with_room_keeps_the_pixels(digits, monkeypatch):
    size = (digits / "train.npy").stat().st_size
    free = [8 * size]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 10 * size))
    device = torch.device("cuda")
    assert resident_reader.fits(digits, "train", device)
    assert not resident_reader.fits(digits, "train", torch.device("cpu"))
    free[0] = 2 * size
    assert not resident_reader.fits(digits, "train", device)
    folder = digits.parent / "jpeg"
    shutil.copytree(digits, folder)
    manifest = read_manifest(folder, "train") | {"dataset": "imagenet"}
    write_json(folder / "train.manifest.json", manifest | {"checksum": checksum(manifest)})
    with pytest.raises(InputError, match="resident pixels"):
        make_loader(folder, "train", batch_size=4, train=True, resident=True)


class CrossDevice(TorchDispatchMode):
    """Notes each operation with a CPU tensor: on a GPU the processor waits for it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        flat = tree_leaves((args, kwargs, result))
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in flat):
            self.seen.append(str(function))
        return result


def test_between_batches_of_resident_pixels_nothing_crosses_to_the_device(digits):
    # "meta" stands for the GPU: a copy from the processor's memory shows the same way.
    loader = make_loader(
        digits,
        "train",
        batch_size=100,
        train=True,
        augmentation="crop_flip",
        device="meta",
        resident=True,
    )
    batches = loader.epoch(0)
    next(batches)
    with CrossDevice() as crossings:
        rest = list(batches)
    assert len(rest) == len(loader) - 1
    assert crossings.seen == []
    without = make_loader(
        digits, "train", batch_size=100, train=True, device="meta", backend="torch"
    ).epoch(0)
    next(without)
    with CrossDevice() as crossings:
        next(without)
    assert crossings.seen  # the check can fail
