"""Sources, written files, manifests, and the messages about bad ones."""

import gzip
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lowbit_core.datasets import cifar100, fashion_mnist, imagenet
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import check, read_labels, read_manifest
from lowbit_core.datasets.prepare import main, prepare
from lowbit_core.datasets.sources import find
from lowbit_core.runtime import backend
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError


@pytest.fixture(scope="session")
def digits_written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "digits"
    prepare(dataset("digits"), folder)
    return folder


@pytest.fixture
def digits(digits_written, tmp_path):
    """A copy that a test may damage."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for file in digits_written.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def write_idx(path: Path, array: np.ndarray, promised: tuple[int, ...] | None = None) -> None:
    sizes = np.array(promised or array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()))


@pytest.fixture
def tiny_idx(tmp_path):
    """A folder of idx files with 6 images a split."""
    for stem in fashion_mnist.STEMS.values():
        write_idx(
            tmp_path / fashion_mnist.IMAGES.format(stem),
            np.arange(6 * 784, dtype=np.uint32).astype(np.uint8).reshape(6, 28, 28),
        )
        write_idx(tmp_path / fashion_mnist.LABELS.format(stem), np.arange(6, dtype=np.uint8))
    return tmp_path


# ---- names


def test_unknown_names_list_the_legal_ones():
    with pytest.raises(InputError, match="'mnist': choose one of fashion_mnist, digits, cifar100"):
        dataset("mnist")
    with pytest.raises(InputError, match="'val': choose one of train, test"):
        dataset("digits").images("val")
    with pytest.raises(InputError, match="'dali': choose one of ffcv, torch"):
        pick_backend("dali")


def test_importing_the_core_does_not_import_ffcv_or_torchvision():
    code = (
        "import sys, lowbit_core.data, lowbit_core.data.loader, lowbit_core.datasets.prepare;"
        "print([m for m in ('ffcv', 'torchvision', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- Fashion-MNIST


def test_idx_is_read(tiny_idx):
    images, labels, names = fashion_mnist.load(tiny_idx, "test")
    assert images.shape == (6, 1, 28, 28) and images.dtype == np.uint8
    assert images[0, 0, 0].tolist() == list(range(28))
    assert labels.tolist() == list(range(6)) and labels.dtype == np.int64
    assert len(names) == 10


@pytest.mark.parametrize(
    "damage",
    ["missing", "empty", "truncated", "flipped", "not gzip", "magic", "short", "long", "side"],
)
def test_bad_idx_images_are_named(tiny_idx, damage):
    path = tiny_idx / fashion_mnist.IMAGES.format("train")
    data, array = path.read_bytes(), np.zeros((6, 28, 28), np.uint8)
    if damage == "missing":
        path.unlink()
    elif damage == "magic":
        write_idx(path, array.reshape(6, 784))
    elif damage == "short":
        write_idx(path, array[:5], promised=array.shape)
    elif damage == "long":
        write_idx(path, array, promised=(5, 28, 28))
    elif damage == "side":
        write_idx(path, array[:, :27])
    else:
        middle = len(data) // 2
        path.write_bytes(
            {
                "empty": b"",
                "truncated": data[:middle],
                "not gzip": b"<html>",
                "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            }[damage]
        )
    with pytest.raises(InputError, match="train-images-idx3-ubyte.gz"):
        fashion_mnist.load(tiny_idx, "train")


def test_idx_counts_must_agree(tiny_idx):
    write_idx(tiny_idx / fashion_mnist.LABELS.format("train"), np.zeros(5, np.uint8))
    with pytest.raises(InputError, match="6 train images but 5 labels"):
        fashion_mnist.load(tiny_idx, "train")


def test_a_set_of_the_wrong_size_is_refused(tiny_idx, tmp_path):
    with pytest.raises(InputError, match="6 train images of fashion_mnist, not 60000"):
        prepare(dataset("fashion_mnist"), tmp_path / "out", tiny_idx)
    small = replace(dataset("fashion_mnist"), train_images=6, test_images=6, classes=5)
    with pytest.raises(InputError, match="run from 0 to 5, not from 0 to 4"):
        prepare(small, tmp_path / "out", tiny_idx)
    assert not (tmp_path / "out").exists()


# ---- where data is looked for


def test_missing_data_says_where_and_how(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWBIT_DATA", str(tmp_path / "mine"))
    with pytest.raises(InputError) as error:
        find("cifar100")
    for part in (str(tmp_path / "mine" / "cifar100"), "data/raw/cifar100", "--download"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="cannot be downloaded: register"):
        find("imagenet", download=True)
    with pytest.raises(InputError, match="nowhere: download it"):
        find("cifar100", tmp_path / "nowhere")


def test_the_environment_comes_before_the_system(tiny_idx, monkeypatch):
    home = tiny_idx / "fashion_mnist"
    home.mkdir()
    for file in tiny_idx.glob("*.gz"):
        file.rename(home / file.name)
    monkeypatch.setenv("LOWBIT_DATA", str(tiny_idx))
    assert find("fashion_mnist") == home
    assert find("digits") is None


def test_command_line_prints_one_sentence(tmp_path):
    command = [
        sys.executable,
        "-m",
        "lowbit_core.datasets.prepare",
        "imagenet",
        "--out",
        str(tmp_path / "out"),
        "--source",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: data set imagenet was not found in")
    assert done.stderr.count("\n") == 1


# ---- CIFAR-100


@pytest.fixture
def cifar_folder(tmp_path, monkeypatch):
    """A folder of 100 classes with 2 and 1 images each; pixels tell class and index."""
    monkeypatch.setattr(cifar100, "PER_CLASS", {"train": 2, "test": 1})
    for split, count in cifar100.PER_CLASS.items():
        for label in range(100):
            folder = tmp_path / "cifar" / split / f"class{label:02d}"
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((32, 32, 3), (label, i, 7), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "cifar"


def test_cifar_folder_is_read_in_class_order(cifar_folder):
    images, labels, names = cifar100.load(cifar_folder, "train")
    assert images.shape == (200, 3, 32, 32)
    assert images[:, :, 5, 5].tolist() == [[c, i, 7] for c in range(100) for i in range(2)]
    assert labels.tolist() == [c for c in range(100) for _ in range(2)]
    assert names[3] == "class03"


@pytest.mark.parametrize(
    "damage, message",
    [
        ("class", r"train: 99 class folders, not 100"),
        ("image", r"class04: 1 PNG files, not 2"),
        ("size", r"0.png: RGB image of 31x32, not RGB of 32x32"),
        ("mode", r"0.png: L image of 32x32"),
        ("broken", r"0.png: unreadable image"),
    ],
)
def test_bad_cifar_folders_are_named(cifar_folder, damage, message):
    file = cifar_folder / "train" / "class04" / "0.png"
    if damage == "class":
        (cifar_folder / "train" / "class99").rename(cifar_folder / "elsewhere")
    elif damage == "image":
        file.unlink()
    elif damage == "broken":
        file.write_bytes(file.read_bytes()[:60])
    else:
        size, mode = ((31, 32), "RGB") if damage == "size" else ((32, 32), "L")
        Image.new(mode, size).save(file)
    with pytest.raises(InputError, match=message):
        cifar100.load(cifar_folder, "train")


def test_cifar_archive_of_another_checksum_is_not_unpickled(tmp_path):
    (tmp_path / cifar100.ARCHIVE).mkdir()
    (tmp_path / cifar100.ARCHIVE / "train").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match="train: its MD5 is .* truncated or corrupt"):
        cifar100.load(tmp_path, "train")


def test_cifar_archive_is_read(tmp_path, monkeypatch):
    import pickle

    folder = tmp_path / cifar100.ARCHIVE
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    parts = {
        "train": {"data": pixels, "fine_labels": [4, 99]},
        "meta": {"fine_label_names": [f"c{i}" for i in range(100)]},
    }
    for name, part in parts.items():
        (folder / name).write_bytes(pickle.dumps(part))
        monkeypatch.setitem(
            cifar100.MD5, name, hashlib.md5((folder / name).read_bytes()).hexdigest()
        )
    images, labels, names = cifar100.load(tmp_path, "train")
    assert np.array_equal(images.reshape(2, -1), pixels) and labels.tolist() == [4, 99]
    assert names[99] == "c99"


# ---- ImageNet


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "I;16", "RGBA"])
def test_images_of_every_mode_become_rgb(tmp_path, mode):
    form = "JPEG" if mode in ("L", "CMYK") else "PNG"  # ImageNet has a PNG named .JPEG
    image = Image.new(mode, (12, 8))
    image.save(tmp_path / "a.JPEG", form)
    found, digest = imagenet.read_image(tmp_path / "a.JPEG")
    assert found.mode == "RGB" and found.size == (12, 8)
    assert digest == hashlib.sha256((tmp_path / "a.JPEG").read_bytes()).digest()


@pytest.fixture
def synsets(tmp_path):
    """Three synsets with 3 training and 1 validation images of different sizes; and the Dataset."""
    rng = np.random.default_rng(0)
    for folder, count in (("train", 3), ("val", 1)):
        for synset in ("n03", "n01", "n02"):
            (tmp_path / "images" / folder / synset).mkdir(parents=True)
            for i in range(count):
                coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                size = (600 if i == 0 else 300, 250 + 10 * i)
                path = tmp_path / "images" / folder / synset / f"{i}.JPEG"
                Image.fromarray(coarse).resize(size, Image.BICUBIC).save(path, quality=95)
    small = replace(dataset("imagenet"), classes=3, train_images=9, test_images=3)
    return tmp_path / "images", small


def test_synsets_are_numbered_in_sorted_order(synsets, tmp_path):
    folder, data = synsets
    prepare(data, tmp_path / "out", folder)
    manifest = check(tmp_path / "out", "train")
    assert manifest["class_names"] == ["n01", "n02", "n03"] and manifest["class_counts"] == [3] * 3
    assert read_labels(tmp_path / "out", "train").tolist() == [0] * 3 + [1] * 3 + [2] * 3
    first = (tmp_path / "out" / "train.beton").read_bytes()
    prepare(data, tmp_path / "out", folder)
    assert (tmp_path / "out" / "train.beton").read_bytes() == first


def test_a_broken_jpeg_is_named_and_the_old_file_stays(synsets, tmp_path, capfd):
    folder, data = synsets
    out = tmp_path / "out"
    prepare(data, out, folder)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    broken = [folder / "train" / "n02" / "1.JPEG", folder / "val" / "n01" / "0.JPEG"]
    broken[0].write_bytes(broken[0].read_bytes()[:-300])
    broken[1].write_bytes(b"not an image")
    Image.new("RGB", (300, 1)).save(folder / "val" / "n02" / "0.JPEG")
    with pytest.raises(InputError, match="3 broken image files") as caught:
        prepare(data, out, folder)
    for words in ("n02/1.JPEG: unreadable", "val/n01/0.JPEG: unreadable", "300x1 pixels"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert "Exception ignored" not in capfd.readouterr().err


def test_images_that_are_converted_are_listed(synsets, tmp_path, capsys):
    folder, data = synsets
    for number, mode in ((0, "L"), (1, "CMYK")):
        path = folder / "train" / "n01" / f"{number}.JPEG"
        Image.open(path).convert(mode).save(path, "JPEG")
    prepare(data, tmp_path / "out", folder)
    listed = {"train/n01/0.JPEG": "L", "train/n01/1.JPEG": "CMYK"}
    assert check(tmp_path / "out", "train")["converted_to_rgb"] == listed
    assert check(tmp_path / "out", "test")["converted_to_rgb"] == {}
    assert "converted to RGB: 1 CMYK, 1 L" in capsys.readouterr().out


def test_bad_synset_folders_are_named(synsets, tmp_path):
    folder, data = synsets
    with pytest.raises(InputError, match="train: 3 synset folders, not 1000"):
        prepare(dataset("imagenet"), tmp_path / "out", folder)
    for file in (folder / "train" / "n01").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="n01: holds no .JPEG file"):
        prepare(data, tmp_path / "out", folder)


# ---- manifests and damage to what was written


def test_manifest_tells_what_was_written(digits_written):
    manifest = read_manifest(digits_written, "test")
    images, labels = (np.load(digits_written / f"test{end}.npy") for end in ("", "_labels"))
    assert manifest["images"] == 360 == len(images) == sum(manifest["class_counts"])
    assert manifest["class_counts"] == np.bincount(labels, minlength=10).tolist()
    assert (manifest["dataset"], manifest["split"]) == ("digits", "test")
    assert (manifest["side"], manifest["channels"], manifest["backend"]) == (8, 1, "ffcv")
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert manifest["samples_sha256"] == digest
    for name, file in manifest["files"].items():
        data = (digits_written / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert {"ffcv", "numpy"} <= manifest["versions"].keys()


def test_writing_again_gives_the_same_bytes(digits_written, tmp_path):
    prepare(dataset("digits"), tmp_path)
    for file in digits_written.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(
    "name, reader", [("train.beton", "ffcv"), ("train.npy", "torch"), ("train_labels.npy", "ffcv")]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_damaged_files_are_named(digits, name, reader, damage):
    check(digits, "train", reader)
    path = digits / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        last = data[-1] ^ 1
        path.write_bytes(
            {"empty": b"", "truncated": data[:-1], "flipped": data[:-1] + bytes([last])}[damage]
        )
    with pytest.raises(InputError) as error:
        check(digits, "train", reader)
    assert str(path) in str(error.value) and "prepare digits --out" in str(error.value)
    check(digits, "test", reader)


def test_large_files_are_checked_by_header(digits, monkeypatch):
    monkeypatch.setattr("lowbit_core.datasets.manifest.FULL_HASH_BELOW", 10_000)
    path = digits / "train.beton"
    check(digits, "train")
    data = bytearray(path.read_bytes())
    data[8] ^= 1  # the low byte of the number of samples
    path.write_bytes(data)
    with pytest.raises(InputError, match="train.beton: its header is not"):
        check(digits, "train")


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "the file is missing"),
        ("", "not a JSON file"),
        ('{"images": 1', "not a JSON file"),
        ("[]", "not a manifest"),
        ('{"images": 1}', "not a manifest"),
    ],
)
def test_bad_manifests_are_named(digits, text, message):
    path = digits / "train.manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=f"train.manifest.json: {message}.*rebuild it with"):
        read_labels(digits, "train")


def test_a_manifest_of_something_else_is_refused(digits):
    path = digits / "train.manifest.json"
    path.write_text((digits / "test.manifest.json").read_text())
    with pytest.raises(InputError, match="describes 'test' of 'digits', not 'train'"):
        check(digits, "train")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"split": "train", "dataset": "mnist"}))
    with pytest.raises(InputError, match="'train' of 'mnist'"):
        check(digits, "train")


def test_verify_hashes_everything(digits, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prepare", "digits", "--out", str(digits), "--verify"])
    main()
    assert "train: intact" in capsys.readouterr().out
    path = digits / "test.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match="test.npy: its checksum"):
        main()


def run_prepare(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["prepare", *map(str, words)])
    main()


def test_splits_that_are_intact_are_kept_and_the_others_written(digits, monkeypatch, capsys):
    """Whatever is said of the source: a folder that does not exist is not even looked into."""
    before = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in digits.iterdir()}
    run_prepare(monkeypatch, "digits", "--out", digits, "--source", digits / "nowhere")
    assert capsys.readouterr().out.count("intact, kept") == 2
    after = {f.name: (f.read_bytes(), f.stat().st_mtime_ns) for f in digits.iterdir()}
    assert after == before

    for name in ("test.npy", "test.beton", "test_labels.npy", "test.manifest.json"):
        good = (digits / name).read_bytes()
        (digits / name).write_bytes(good[:-3])
        run_prepare(monkeypatch, "digits", "--out", digits)
        output = capsys.readouterr().out
        assert "train: prepared and intact, kept" in output and "test: 360 images" in output
        assert (digits / name).read_bytes() == good, name
        assert (digits / "train.beton").stat().st_mtime_ns == before["train.beton"][1]


def test_another_data_set_and_one_without_beton_are_not_kept(digits, monkeypatch, capsys):
    with pytest.raises(InputError, match="fashion_mnist was not found"):
        run_prepare(monkeypatch, "fashion_mnist", "--out", digits, "--source", digits / "nowhere")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "ffcv", None)  # makes the import fail
        prepare(dataset("digits"), digits)
        run_prepare(without, "digits", "--out", digits)
        assert capsys.readouterr().out.count("intact, kept") == 2
    run_prepare(monkeypatch, "digits", "--out", digits)
    assert "kept" not in capsys.readouterr().out
    assert check(digits, "train")["backend"] == "ffcv"


def test_a_missing_ffcv_is_warned_of_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ffcv", None)  # makes the import fail
    monkeypatch.setattr(backend, "_warned", set())
    prepare(dataset("digits"), tmp_path)
    assert pick_backend("ffcv") == "torch"
    assert capsys.readouterr().err.count("warning: ffcv cannot be imported") == 1
    assert not (tmp_path / "train.beton").exists()
    assert check(tmp_path, "train", "torch")["backend"] == "torch"
    with pytest.raises(InputError, match="written without ffcv"):
        check(tmp_path, "train", "ffcv")
