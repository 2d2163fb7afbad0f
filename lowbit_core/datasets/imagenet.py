"""ImageNet (ILSVRC 2012) from its folder of synsets: {train,val}/<synset>/*.JPEG."""

import hashlib
import io
from pathlib import Path

from PIL import Image

from lowbit_core.runtime.errors import InputError

FOLDERS = {"train": "train", "test": "val"}
SYSTEM_FOLDER = None
SMALLEST = 2  # pixels on a side of which a central crop can be taken
HOW_TO_GET = (
    "register at https://image-net.org, unpack ILSVRC2012 as {train,val}/<synset>/*.JPEG "
    "and give the folder with `--source`"
)


def present(folder: Path) -> bool:
    """True where `folder` holds train/ and val/."""
    return all((folder / name).is_dir() for name in FOLDERS.values())


def listing(folder: Path, split: str, classes: int) -> tuple[list[str], list[int], list[str]]:
    """Files (relative to `folder`), their class indices, and the synsets in sorted order."""
    root = folder / FOLDERS[split]
    synsets = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(synsets) != classes:
        raise InputError(f"{root}: {len(synsets)} synset folders, not {classes}")
    files, labels = [], []
    for label, synset in enumerate(synsets):
        found = sorted(
            path.name
            for path in (root / synset).iterdir()
            if path.suffix.lower() in (".jpeg", ".jpg")
        )
        if not found:
            raise InputError(f"{root / synset}: holds no .JPEG file")
        files += [f"{FOLDERS[split]}/{synset}/{name}" for name in found]
        labels += [label] * len(found)
    return files, labels, synsets


def look(path: Path) -> str:
    """The mode of an image file (`RGB`, `L`, `CMYK`, ...), read to its end. Raises InputError.

    A JPEG is decoded at an eighth of its size: enough to find one that was cut short.
    """
    try:
        with Image.open(path) as image:
            mode, size = image.mode, image.size
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            if min(size) < SMALLEST:
                raise ValueError(f"{size[0]}x{size[1]} pixels, less than {SMALLEST} on a side")
            return mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: unreadable image ({error})") from None


def read_image(path: Path) -> tuple[Image.Image, bytes]:
    """Decode a file of any mode (grey, CMYK, palette) to RGB; also the SHA-256 of its bytes."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB"), hashlib.sha256(data).digest()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: unreadable image ({error})") from None
