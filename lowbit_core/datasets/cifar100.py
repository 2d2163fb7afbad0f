"""CIFAR-100 (Krizhevsky 2009) from the python archive's folder or from a folder of PNG files."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lowbit_core.datasets.sources import Samples, downloading
from lowbit_core.runtime.errors import InputError

ARCHIVE = "cifar-100-python"
# The checksums torchvision uses for the unpacked archive.
MD5 = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
PER_CLASS = {"train": 500, "test": 100}
CLASSES, SIDE = 100, 32
SYSTEM_FOLDER = None
HOW_TO_GET = (
    f"download it with `--download`, or give with `--source` a folder that holds "
    f"{ARCHIVE}/ or {{train,test}}/<class>/*.png"
)


def present(folder: Path) -> bool:
    """True where `folder` holds the archive's folder, or train/ and test/ folders of images."""
    return (folder / ARCHIVE).is_dir() or all((folder / split).is_dir() for split in PER_CLASS)


def load(folder: Path, split: str) -> Samples:
    """Read one split; `InputError` names what is missing, corrupt or of the wrong kind."""
    if (folder / ARCHIVE).is_dir():
        return _load_archive(folder / ARCHIVE, split)
    return _load_images(folder / split, split)


def _load_archive(folder: Path, split: str) -> Samples:
    batch, meta = (_unpickle(folder / name, MD5[name]) for name in (split, "meta"))
    images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, SIDE, SIDE)
    labels = np.asarray(batch["fine_labels"], np.int64)
    return Samples(images, labels, tuple(meta["fine_label_names"]))


def _unpickle(path: Path, md5: str) -> dict:
    """Unpickle a file of known checksum (only then is unpickling safe)."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing") from None
    found = hashlib.md5(data).hexdigest()
    if found != md5:
        raise InputError(f"{path}: its MD5 is {found}, not {md5}: the file is truncated or corrupt")
    return pickle.loads(data, encoding="latin1")


def _load_images(folder: Path, split: str) -> Samples:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(names) != CLASSES:
        raise InputError(f"{folder}: {len(names)} class folders, not {CLASSES}")
    images = np.empty((CLASSES * PER_CLASS[split], 3, SIDE, SIDE), np.uint8)
    labels = np.repeat(np.arange(CLASSES), PER_CLASS[split])
    for label, name in enumerate(names):
        paths = sorted((folder / name).glob("*.png"))
        if len(paths) != PER_CLASS[split]:
            raise InputError(f"{folder / name}: {len(paths)} PNG files, not {PER_CLASS[split]}")
        for i, path in enumerate(paths, start=label * PER_CLASS[split]):
            images[i] = _read_png(path)
    return Samples(images, labels, tuple(names))


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.size != (SIDE, SIDE) or image.mode != "RGB":
                raise InputError(
                    f"{path}: {image.mode} image of {image.width}x{image.height}, "
                    f"not RGB of {SIDE}x{SIDE}"
                )
            return np.asarray(image).transpose(2, 0, 1)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path}: unreadable image ({error})") from None


def download(folder: Path) -> None:
    """Fetch and unpack the archive into `folder`; torchvision checks its MD5."""
    import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

    # isort: split
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    with downloading("cifar100", folder):
        download_and_extract_archive(
            CIFAR100.url, str(folder), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5
        )
