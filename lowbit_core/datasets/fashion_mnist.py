"""Fashion-MNIST (Xiao et al. 2017) from its four gzipped idx files."""

import gzip
from pathlib import Path

import numpy as np

from lowbit_core.datasets.sources import Samples, reading
from lowbit_core.runtime.errors import InputError

STEMS = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"
PARTS = [[IMAGES.format(stem) for stem in STEMS.values()]]
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DOWNLOADS = {
    f"{URL}/train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    f"{URL}/train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    f"{URL}/t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    f"{URL}/t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
HOW_TO_GET = (
    "install Debian's package with `apt-get install dataset-fashion-mnist`, "
    "or download it with `--download`"
)
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def load(folder: Path, split: str) -> Samples:
    """Read one split; `InputError` names a file that is missing, truncated or corrupt."""
    images = _read_idx(folder / IMAGES.format(STEMS[split]), (28, 28))
    labels = _read_idx(folder / LABELS.format(STEMS[split]), ())
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return Samples(images[:, None], labels.astype(np.int64), CLASSES)


def _read_idx(path: Path, sides: tuple[int, ...]) -> np.ndarray:
    """A uint8 array (N, *sides): the file holds a magic number, the shape, and the values."""
    with reading(path, "idx file"):
        data = gzip.decompress(path.read_bytes())
        magic, count, *found = np.frombuffer(data, ">u4", 2 + len(sides)).tolist()
        if (magic, *found) != (0x801 + len(sides), *sides):
            raise ValueError(f"of type {magic:#x} and sides {found}, not {list(sides)}")
        return np.frombuffer(data, np.uint8, offset=8 + 4 * len(sides)).reshape(count, *sides)
