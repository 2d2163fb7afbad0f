"""Image files as the input of a network: decoded by Pillow, resized and normalised by numpy."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from deploy.fileformat import About
from lowbit_core.runtime.errors import InputError

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


def read_images(paths: Iterable[Path], about: About, shape: tuple[int, int, int]) -> np.ndarray:
    """Normalised images (N, C, H, W) float32, as the evaluation of the training run reads them.

    An image is made grey or RGB. Networks for photographs get a central crop, others the whole
    image, resized to H x W where it has another size. InputError names a file that is no image.
    """
    return normalised(np.stack([_pixels(path, about, shape) for path in paths]), about)


def normalised(pixels: np.ndarray, about: About) -> np.ndarray:
    """(pixels / 255 - mean) / std of uint8 (N, C, H, W), as one multiplication and one addition.

    In float32 and in the order in which training does it, so that the bits are the same.
    """
    mean = np.array(about.mean, np.float32)[:, None, None]
    std = np.array(about.std, np.float32)[:, None, None]
    scale, shift = np.float32(1) / (np.float32(255) * std), -mean / std
    return pixels.astype(np.float32) * scale + shift


def _pixels(path: Path, about: About, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (C, H, W)."""
    from PIL import Image

    channels, high, wide = shape
    modes = {1: "L", 3: "RGB"}
    if channels not in modes:
        raise InputError(f"{path}: the network reads {channels} channels: images have 1 or 3")
    try:
        with Image.open(path) as opened:
            if opened.mode not in EIGHT_BITS:  # brighter pixels would be cut off
                raise InputError(
                    f"{path}: its pixels are of mode {opened.mode!r}: legal are those of 8 bits, "
                    f"{', '.join(EIGHT_BITS)}"
                )
            image = opened.convert(modes[channels])
    except InputError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)  # a damaged image is an OSError without one
        raise InputError(f"{path}: not a readable image ({reason})") from None
    except Exception as error:  # readers of rare formats raise errors of many kinds
        raise InputError(f"{path}: not a readable image ({error})") from None
    box = None
    if about.crop is not None:
        side = max(1, int(about.crop * min(image.size)))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
    if box is not None or image.size != (wide, high):
        image = image.resize((wide, high), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
