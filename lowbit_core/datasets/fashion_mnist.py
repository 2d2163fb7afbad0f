"""Fashion-MNIST (Xiao et al. 2017) from its four gzipped idx files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from lowbit_core.datasets.sources import Samples, downloading
from lowbit_core.runtime.errors import InputError

STEMS = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOW_TO_GET = (
    "install Debian's package with `apt-get install dataset-fashion-mnist`, "
    "or download it with `--download`"
)
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIDE = 28


def present(folder: Path) -> bool:
    """True where `folder` holds the files, sound or not."""
    return all((folder / IMAGES.format(stem)).is_file() for stem in STEMS.values())


def load(folder: Path, split: str) -> Samples:
    """Read one split; `InputError` names a file that is missing, truncated or corrupt."""
    stem = STEMS[split]
    images = _read_idx(folder / IMAGES.format(stem), 3)
    labels = _read_idx(folder / LABELS.format(stem), 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise InputError(
            f"{folder / IMAGES.format(stem)}: images are {images.shape[1]}x"
            f"{images.shape[2]}, not {SIDE}x{SIDE}"
        )
    if len(images) != len(labels):
        raise InputError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    return Samples(images[:, None], labels.astype(np.int64), CLASSES)


def _read_idx(path: Path, dims: int) -> np.ndarray:
    """A uint8 array of `dims` dimensions from an idx file: 4 bytes magic, sizes, then data."""
    try:
        with gzip.open(path) as stream:
            data = stream.read()
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: truncated or corrupt gzip file ({error})") from None
    header = 4 + 4 * dims
    if len(data) < header or data[:4] != bytes((0, 0, 8, dims)):
        raise InputError(
            f"{path}: not an idx file of bytes with {dims} dimensions "
            f"(it starts with {data[:4].hex() or 'nothing'})"
        )
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", dims, 4))
    if len(data) - header != int(np.prod(shape)):
        raise InputError(
            f"{path}: its header promises {int(np.prod(shape))} bytes of data for "
            f"shape {shape}, but it holds {len(data) - header}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def download(folder: Path) -> None:
    """Fetch the four files into `folder`; torchvision checks their MD5."""
    import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

    # isort: split
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    with downloading("fashion_mnist", folder):
        for name, md5 in FashionMNIST.resources:
            download_url(FashionMNIST.mirrors[0] + name, str(folder), name, md5)
