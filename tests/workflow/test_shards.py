"""Shards: a data set packed, carried and unpacked is the same to the bit, or refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit_core.data.loader import make_loader
from lowbit_core.runtime.errors import InputError
from workflow.away import shards


@pytest.fixture(scope="module")
def packed(digits_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    shards.write_shards(digits_root / "digits", folder, limit=40_960)
    return folder


def test_what_comes_back_is_what_was_packed(digits_root, packed, tmp_path):
    assert len(list(packed.glob("digits.*.tar"))) > 1
    assert all(path.stat().st_size <= 40_960 for path in packed.iterdir())
    shards.read_shards(packed, "digits", tmp_path)
    for split in ("train", "test"):
        for name in (f"{split}.npy", f"{split}_labels.npy"):
            assert (tmp_path / name).read_bytes() == (digits_root / "digits" / name).read_bytes()
    options = {"batch_size": 50, "train": True, "augmentation": "crop_flip", "backend": "torch"}
    ours, theirs = (
        list(make_loader(folder, "train", **options).epoch(1))
        for folder in (tmp_path, digits_root / "digits")
    )
    for x, y in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


@settings(max_examples=10)
@given(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_strips_are_lossless(count, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, channels, 8, 8), dtype=np.uint8)
    assert (shards._decode(shards._encode(images), images.shape) == images).all()


def test_a_missing_shard_and_a_missing_set_are_named(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "some")
    lost = sorted(folder.iterdir())[1]
    lost.unlink()
    with pytest.raises(InputError, match="shards of digits are needed, but here are"):
        shards.read_shards(folder, "digits", tmp_path / "out")
    with pytest.raises(InputError, match="there is no shard cifar100"):
        shards.read_shards(folder, "cifar100", tmp_path / "out")


def test_damage_is_refused(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "cut")
    first = min(folder.iterdir())
    first.write_bytes(first.read_bytes()[:700])
    with pytest.raises(InputError, match="damaged shard|the shards lack"):
        shards.read_shards(folder, "digits", tmp_path / "out")
    members = shards._read_members(packed, "digits")
    manifest = json.loads(members["train.manifest.json"])
    members["train.manifest.json"] = json.dumps(manifest | {"samples_sha256": "0" * 64}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_read_members", lambda *_: members)
        with pytest.raises(InputError, match="not those that were packed"):
            shards.read_shards(packed, "digits", tmp_path / "out")


def test_a_strip_larger_than_the_limit_is_refused(digits_root, tmp_path):
    with pytest.raises(InputError, match="shard limit"):
        shards.write_shards(digits_root / "digits", tmp_path, limit=20_000)
