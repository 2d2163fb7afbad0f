"""Data sets: what they are, how they are written as .beton files, checked and loaded.

This module is light; `lowbit_core.data.prepare` writes, `lowbit_core.data.loader` loads.
"""

from dataclasses import dataclass

from lowbit_core.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """An image classification data set. `mean` and `std` are per channel, for pixels in [0, 1].

    `side` is the input side in pixels: of every image up to 32, and of the crop above that.
    """

    name: str
    classes: int
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_images: int
    test_images: int

    @property
    def stored_raw(self) -> bool:
        """True where pixels are stored as they are; False where images vary in size (JPEG)."""
        return self.side <= 32

    def images(self, split: str) -> int:
        """Number of images in `split`, `train` or `test`."""
        return {"train": self.train_images, "test": self.test_images}[check_split(split)]


DATASETS = {
    d.name: d
    for d in (
        Dataset("fashion_mnist", 10, 1, 28, (0.2860,), (0.3530,), 60_000, 10_000),
        Dataset("digits", 10, 1, 8, (0.3053,), (0.3760,), 1_437, 360),
        Dataset(
            "cifar100",
            100,
            3,
            32,
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            50_000,
            10_000,
        ),
        Dataset(
            "imagenet",
            1000,
            3,
            224,
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            1_281_167,
            50_000,
        ),
    )
}
SPLITS = ("train", "test")


def dataset(name: str) -> Dataset:
    """The data set called `name`; `InputError` names the legal ones."""
    if name not in DATASETS:
        raise InputError(f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def check_split(split: str) -> str:
    """Return `split` if it is legal."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return split
