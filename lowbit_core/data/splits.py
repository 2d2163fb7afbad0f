"""The fixed split of the training images into a training and a validation part."""

import numpy as np

from lowbit_core.runtime.errors import InputError

SPLIT_SEED = 2020  # one split for all runs, whatever their seed


def split_indices(
    labels: np.ndarray, *, val_images: int, train_images: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint sorted indices (train, val) into `labels` (N,), each with the classes' proportions.

    The validation images depend on `val_images` alone. train_images: None takes all others.
    Raises InputError where there are not as many images.
    """
    labels = np.asarray(labels)
    if val_images < 0 or val_images > len(labels):
        raise InputError(f"val_images {val_images}: must be 0 to {len(labels)}")
    rest = len(labels) - val_images
    train_images = rest if train_images is None else train_images
    if train_images < 1 or train_images > rest:
        raise InputError(
            f"train_images {train_images}: must be 1 to {rest}, "
            f"the number of images besides {val_images} for validation"
        )
    rng = np.random.default_rng(SPLIT_SEED)
    members = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    val, members = _take(members, val_images)
    train, _ = _take(members, train_images)
    return train, val


def _take(members: list[np.ndarray], count: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(`count` indices, taken from the front of each class in proportion; each class's others)."""
    sizes = np.array([len(m) for m in members])
    quota, remainder = np.divmod(sizes * count, sizes.sum())
    largest = np.argsort(-remainder, kind="stable")[: count - quota.sum()]
    quota[largest] += 1
    taken = np.sort(np.concatenate([m[:q] for m, q in zip(members, quota, strict=True)]))
    return taken.astype(np.int64), [m[q:] for m, q in zip(members, quota, strict=True)]
