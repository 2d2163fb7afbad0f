"""CIFAR-100 (Krizhevsky 2009) from the python archive's folder or from a folder of PNG files."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from lowbit_core.datasets.sources import Samples, class_folders, reading
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
HOW_TO_GET = (
    f"download it with `--download`, or give with `--source` a folder that holds "
    f"{ARCHIVE}/ or {{train,test}}/<class>/*.png"
)


def present(folder: Path) -> bool:
    """True where `folder` holds the archive's folder, or train/ and test/ folders of images."""
    return (folder / ARCHIVE).is_dir() or all((folder / split).is_dir() for split in PER_CLASS)


def load(folder: Path, split: str) -> Samples:
    """Read one split; `InputError` names what is missing, corrupt or of the wrong kind."""
    if not (folder / ARCHIVE).is_dir():
        return _load_images(folder / split, PER_CLASS[split])
    batch, meta = (_unpickle(folder / ARCHIVE / name, MD5[name]) for name in (split, "meta"))
    images = np.asarray(batch["data"], np.uint8).reshape(-1, 3, SIDE, SIDE)
    return Samples(images, np.asarray(batch["fine_labels"], np.int64), meta["fine_label_names"])


def _unpickle(path: Path, md5: str) -> dict:
    """Unpickle a file of known checksum (only then is unpickling safe)."""
    with reading(path, "file"):
        data = path.read_bytes()
    found = hashlib.md5(data).hexdigest()
    if found != md5:
        raise InputError(f"{path}: its MD5 is {found}, not {md5}: the file is truncated or corrupt")
    return pickle.loads(data, encoding="latin1")


def _load_images(folder: Path, per_class: int) -> Samples:
    classes = class_folders(folder, "class", CLASSES, (".png",))
    for path, names in classes.items():
        if len(names) != per_class:
            raise InputError(f"{path}: {len(names)} PNG files, not {per_class}")
    images = np.stack([_read_png(path / name) for path, names in classes.items() for name in names])
    labels = np.repeat(np.arange(CLASSES), per_class)
    return Samples(images, labels, [path.name for path in classes])


def _read_png(path: Path) -> np.ndarray:
    with reading(path, "image"), Image.open(path) as image:
        pixels = np.asarray(image)
    if image.size != (SIDE, SIDE) or image.mode != "RGB":
        kind = f"{image.mode} image of {image.width}x{image.height}"
        raise InputError(f"{path}: {kind}, not RGB of {SIDE}x{SIDE}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def download(folder: Path) -> None:
    """Fetch and unpack the archive into `folder`; torchvision checks its MD5."""
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(
        CIFAR100.url, str(folder), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5
    )
