"""The data sets: names, classes, sizes, numbers of images."""

from dataclasses import dataclass

from lowbit_core.runtime.errors import one_of

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Dataset:
    """An image classification data set."""

    name: str
    classes: int
    channels: int
    side: int  # in pixels; of every image where it is at most 32, and else of the crops
    train_images: int
    test_images: int

    @property
    def stored_raw(self) -> bool:
        """True where pixels are stored as they are; False where images vary in size (JPEG)."""
        return self.side <= 32

    def images(self, split: str) -> int:
        """Number of images in `split`, `train` or `test`."""
        return self.train_images if one_of("split", split, SPLITS) == "train" else self.test_images


_ALL = (
    Dataset("fashion_mnist", 10, 1, 28, 60_000, 10_000),
    Dataset("digits", 10, 1, 8, 1_437, 360),
    Dataset("cifar100", 100, 3, 32, 50_000, 10_000),
    Dataset("imagenet", 1000, 3, 224, 1_281_167, 50_000),
)
DATASETS = {data.name: data for data in _ALL}


def dataset(name: str) -> Dataset:
    """The data set called `name`; `InputError` names the legal ones."""
    return DATASETS[one_of("data set", name, DATASETS)]
