"""Where data sets are looked for.

Each source module has `present`, `SYSTEM_FOLDER`, `HOW_TO_GET` and a reader; some have `download`.
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
    """The folder that holds data set `name`; None where it needs none (digits).

    Looks in `given` alone if there is one, else in $LOWBIT_DATA/<name>, data/raw/<name> and the
    system package's folder; downloads to data/raw/<name> when nothing is found and `download`.
    Raises `InputError` that says where it looked and how to get the data.
    """
    module = source_module(name)
    if name == "digits":
        return None
    places = (
        [given]
        if given
        else [
            *([Path(os.environ[ENVIRONMENT]) / name] if os.environ.get(ENVIRONMENT) else []),
            RAW_FOLDER / name,
            *([module.SYSTEM_FOLDER] if module.SYSTEM_FOLDER else []),
        ]
    )
    for place in places:
        if module.present(place):
            return place
    if download and not given:
        if not hasattr(module, "download"):
            raise InputError(f"{name} cannot be downloaded: {module.HOW_TO_GET}")
        module.download(RAW_FOLDER / name)
        return RAW_FOLDER / name
    elsewhere = "" if given else f"; a copy elsewhere is found through --source or ${ENVIRONMENT}"
    raise InputError(
        f"data set {name} was not found in {', '.join(map(str, places))}: "
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
