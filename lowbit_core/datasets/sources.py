"""Where the original files of data sets are searched.

Each data set has a module here with `present`, `SYSTEM_FOLDER`, `HOW_TO_GET` and functions that
read it (`load`, or `listing` and `read_image`); some have `download`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from lowbit_core.runtime.errors import InputError

RAW_FOLDER = Path("data/raw")
ENVIRONMENT = "LOWBIT_DATA"


class Samples(NamedTuple):
    """Decoded images (N, C, H, W) uint8, labels (N,) int64, and class names by label."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


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
    module = source_module(name)
    if name == "digits":
        return None
    folders = (
        [given]
        if given
        else [
            *([Path(os.environ[ENVIRONMENT]) / name] if os.environ.get(ENVIRONMENT) else []),
            RAW_FOLDER / name,
            *([module.SYSTEM_FOLDER] if module.SYSTEM_FOLDER else []),
        ]
    )
    for folder in folders:
        if module.present(folder):
            return folder
    if download and not given:
        if not hasattr(module, "download"):
            raise InputError(f"{name} cannot be downloaded: {module.HOW_TO_GET}")
        module.download(RAW_FOLDER / name)
        return RAW_FOLDER / name
    elsewhere = "" if given else f"; a copy elsewhere is found through --source or ${ENVIRONMENT}"
    raise InputError(
        f"data set {name} was not found in {', '.join(map(str, folders))}: "
        f"{module.HOW_TO_GET}{elsewhere}"
    )


@contextmanager
def downloading(name: str, folder: Path) -> Iterator[None]:
    """Make `folder`; turn a failed download into one `InputError`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(f"data set {name} could not be downloaded to {folder}: {error}") from None
