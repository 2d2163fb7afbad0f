"""ImageNet (ILSVRC 2012) from its folder of synsets: {train,val}/<synset>/*.JPEG."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from lowbit_core.datasets.sources import Samples, class_folders, reading
from lowbit_core.runtime.errors import InputError

FOLDERS = {"train": "train", "test": "val"}
PARTS = [list(FOLDERS.values())]
SMALLEST = 2  # pixels on a side of which a central crop can be taken
HOW_TO_GET = (
    "register at https://image-net.org, unpack ILSVRC2012 as {train,val}/<synset>/*.JPEG "
    "and give the folder with `--source`"
)


def listing(folder: Path, split: str, classes: int) -> Samples:
    """One split: its files, relative to `folder`, and the synsets, both in sorted order."""
    found = class_folders(folder / FOLDERS[split], "synset", classes, (".jpeg", ".jpg"))
    return found._replace(images=[f"{FOLDERS[split]}/{file}" for file in found.images])


def look(path: Path) -> str | InputError:
    """The mode of an image file (`RGB`, `L`, `CMYK`, ...), read to its end; or what is wrong.

    A JPEG is decoded at an eighth of its size: enough to find one that was cut short.
    """
    try:
        with reading(path, "image"), Image.open(path) as image:
            mode, (width, height) = image.mode, image.size
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
            if min(width, height) < SMALLEST:
                raise ValueError(f"{width}x{height} pixels, less than {SMALLEST} on a side")
            return mode
    except InputError as error:
        return error


def read_image(path: Path) -> tuple[Image.Image, bytes]:
    """Decode a file of any mode (grey, CMYK, palette) to RGB; also the SHA-256 of its bytes."""
    with reading(path, "image"):
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB"), hashlib.sha256(data).digest()
