"""Where the original files of data sets are searched, and how they are read.

Each data set has a module here with `HOW_TO_GET` and `load` (`listing` and `read_image` where
images vary in size). One whose files are searched has `present`, and may have `SYSTEM_FOLDER`, the
folder of a system package, and `download`.
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
    """The samples of one split, by index, and the class names by label.

    `images`: pixels (N, C, H, W) uint8, or the names of image files. `labels`: (N,) int64.
    """

    images: np.ndarray | list[str]
    labels: np.ndarray
    class_names: Sequence[str]


def source_module(name: str) -> ModuleType:
    """The module that reads data set `name`."""
    return import_module(f"lowbit_core.datasets.{name}")


def find(name: str, given: Path | None = None, download: bool = False) -> Path | None:
    """The folder that holds data set `name`; None for digits, which needs no folder.

    Searches only `given` if it is not None, else $LOWBIT_DATA/<name>, data/raw/<name> and the
    folder of the system's package. If nothing is found and `download` is true, the data set is
    downloaded to data/raw/<name>. Raises `InputError` that names the searched folders and how to
    get the data.
    """
    module, root = source_module(name), os.environ.get(ENVIRONMENT)
    if not hasattr(module, "present"):
        return None
    usual = (root and Path(root, name), RAW_FOLDER / name, getattr(module, "SYSTEM_FOLDER", None))
    folders = [given] if given else [folder for folder in usual if folder]
    for folder in folders:
        if module.present(folder):
            return folder
    if download and not given:
        return _downloaded(name, module)
    elsewhere = "" if given else f"; a copy elsewhere is found through --source or ${ENVIRONMENT}"
    raise InputError(
        f"data set {name} was not found in {', '.join(map(str, folders))}: "
        f"{module.HOW_TO_GET}{elsewhere}"
    )


def _downloaded(name: str, module: ModuleType) -> Path:
    if not hasattr(module, "download"):
        raise InputError(f"{name} cannot be downloaded: {module.HOW_TO_GET}")
    import lowbit_core.runtime.torchvision_ops  # noqa: F401  `download` imports torchvision

    folder = RAW_FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        module.download(folder)
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


def class_folders(root: Path, kind: str, count: int, suffixes: Sequence[str]) -> dict:
    """{class folder of `root`: names of its files with one of the suffixes}, all in sorted order.

    InputError unless there are `count` folders; it calls them `kind`.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    if len(folders) != count:
        raise InputError(f"{root}: {len(folders)} {kind} folders, not {count}")
    return {
        folder: sorted(f.name for f in folder.iterdir() if f.suffix.lower() in suffixes)
        for folder in folders
    }
