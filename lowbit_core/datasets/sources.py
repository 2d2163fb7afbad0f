"""Where the original files of data sets are searched, and how they are read.

Each data set has a module here with `HOW_TO_GET` and `load` (`listing` and `read_image` where
images vary in size). One whose files are searched has `PARTS`, lists of which one must be in the
folder, and may have `SYSTEM_FOLDER`, of a system package, and `DOWNLOADS`, MD5 by address.
"""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from lowbit_core.runtime.errors import InputError

RAW_FOLDER = Path("data/raw")
ENVIRONMENT = "LOWBIT_DATA"
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError)


class Samples(NamedTuple):
    """The samples of one split."""

    images: np.ndarray | list[str]  # pixels (N, C, H, W) uint8, or the names of image files
    labels: np.ndarray  # (N,) int64
    class_names: Sequence[str]  # by label


def source_module(name: str) -> ModuleType:
    """The module that reads data set `name`."""
    return import_module(f"lowbit_core.datasets.{name}")


def find(name: str, given: Path | None = None, download: bool = False) -> Path | None:
    """The folder that holds data set `name`; None for digits, which needs no folder.

    Searches only `given` if it is not None, else $LOWBIT_DATA/<name>, data/raw/<name> and the
    folder of the system's package. If nothing is found and `download` is true, the data set is
    downloaded to data/raw/<name>.
    """
    module, root = source_module(name), os.environ.get(ENVIRONMENT)
    if not hasattr(module, "PARTS"):
        return None
    usual = (root and Path(root, name), RAW_FOLDER / name, getattr(module, "SYSTEM_FOLDER", None))
    folders = [given] if given else [folder for folder in usual if folder]
    for folder in folders:
        if any(all((folder / part).exists() for part in parts) for parts in module.PARTS):
            return folder
    if not download or given:
        elsewhere = f"; a copy elsewhere is found through --source or ${ENVIRONMENT}"
        raise InputError(
            f"data set {name} was not found in {', '.join(map(str, folders))}: "
            f"{module.HOW_TO_GET}{'' if given else elsewhere}"
        )
    if not hasattr(module, "DOWNLOADS"):
        raise InputError(f"{name} cannot be downloaded: {module.HOW_TO_GET}")
    return _download(module.DOWNLOADS, name, RAW_FOLDER / name)


def _download(checksums: dict[str, str], name: str, folder: Path) -> Path:
    """Fetch the files from the addresses, and compare them with their MD5."""
    import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

    # isort: split
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        for address, md5 in checksums.items():
            download_and_extract_archive(address, folder, md5=md5)
    except (OSError, RuntimeError) as error:
        raise InputError(f"data set {name} could not be downloaded to {folder}: {error}") from None
    return folder


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn what a missing or damaged file raises into one InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing") from None
    except DAMAGE as error:
        raise InputError(f"{path}: unreadable {kind} ({error})") from None


def class_folders(root: Path, kind: str, classes: int, suffixes: tuple[str, ...]) -> Samples:
    """The images <class>/<name> of `root`, in sorted order; an InputError calls classes `kind`."""
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(names) != classes:
        raise InputError(f"{root}: {len(names)} {kind} folders, not {classes}")
    files, labels = [], []
    for label, name in enumerate(names):
        found = [
            f"{name}/{f.name}" for f in (root / name).iterdir() if f.suffix.lower() in suffixes
        ]
        if not found:
            raise InputError(f"{root / name}: holds no {suffixes[0].upper()} file")
        files += sorted(found)
        labels += [label] * len(found)
    return Samples(files, np.array(labels), names)
