"""The 8x8 digits that come with scikit-learn: for unit tests only."""

import numpy as np

from lowbit_core.datasets.sources import Samples
from lowbit_core.runtime.errors import InputError

HOW_TO_GET = "install scikit-learn: `pip install scikit-learn`"


def load(folder: None, split: str) -> Samples:
    """Read one split; pixel values 0 to 16 are stretched to 0 to 255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(f"digits: scikit-learn is not installed; {HOW_TO_GET}") from None
    digits = load_digits()
    test = np.arange(len(digits.target)) % 5 == 0  # every fifth image
    chosen = test if split == "test" else ~test
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return Samples(images[:, None], digits.target[chosen].astype(np.int64), tuple("0123456789"))
