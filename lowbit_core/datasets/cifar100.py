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
PARTS = [[ARCHIVE], ["train", "test"]]
PER_CLASS = {"train": 500, "test": 100}
CLASSES, SIDE = 100, 32
DOWNLOADS = {
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"
}
HOW_TO_GET = (
    f"download it with `--download`, or give with `--source` a folder that holds "
    f"{ARCHIVE}/ or {{train,test}}/<class>/*.png"
)


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
    files, labels, names = class_folders(folder, "class", CLASSES, (".png",))
    for name, count in zip(names, np.bincount(labels), strict=True):
        if count != per_class:
            raise InputError(f"{folder / name}: {count} PNG files, not {per_class}")
    return Samples(np.stack([_read_png(folder / file) for file in files]), labels, names)


def _read_png(path: Path) -> np.ndarray:
    with reading(path, "image"), Image.open(path) as image:
        pixels = np.asarray(image)
    if image.size != (SIDE, SIDE) or image.mode != "RGB":
        kind = f"{image.mode} image of {image.width}x{image.height}"
        raise InputError(f"{path}: {kind}, not RGB of {SIDE}x{SIDE}")
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
