"""Write a data set as .beton files with manifests. Splits that are there and intact are kept.

usage: python -m lowbit_core.datasets.prepare DATASET --out DIR [--source DIR] [--download]
       python -m lowbit_core.datasets.prepare DATASET --out DIR --verify
"""

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lowbit_core.datasets.catalog import SPLITS, Dataset, dataset
from lowbit_core.datasets.manifest import check, describe, intact, manifest_path
from lowbit_core.datasets.sources import find, source_module
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import (
    checksum,
    remove_leftovers,
    replace_file,
    write_json,
    write_text,
)


def prepare(
    data: Dataset,
    out: Path,
    source: Path | None = None,
    download: bool = False,
    splits: Sequence[str] = SPLITS,
) -> None:
    """Write `splits` of `data` into `out`. A split's files are replaced once it was read whole.

    source, download: where the images are, see `find`. Image files of all splits are read first:
    InputError names every one that cannot be read. Without ffcv only the files of the reference
    loader are written, and the manifest says so.
    """
    if out.is_dir():
        remove_leftovers(out)
    folder = find(data.name, source, download)
    backend, _ = pick_backend("ffcv")
    others = {} if data.stored_raw else _look_at_images(data, folder, splits)
    for split in splits:
        if data.stored_raw:
            manifest = _write_raw(data, folder, split, out, backend)
        else:
            manifest = _write_images(data, folder, split, out, backend, others[split])
        write_json(manifest_path(out, split), {**manifest, "checksum": checksum(manifest)})
        print(f"{out}/{split}: {manifest['images']} images of {data.name}, {backend}")


def _write_raw(data: Dataset, folder: Path | None, split: str, out: Path, backend: str) -> dict:
    images, labels, class_names = source_module(data.name).load(folder, split)
    _check_counts(data, split, labels, folder)
    names = [f"{split}.npy", f"{split}_labels.npy"]
    if backend == "ffcv":
        names.append(f"{split}.beton")
        _write_beton(out / names[-1], data, len(labels), zip(images, labels, strict=True))
    _save(out / names[0], images)
    _save(out / names[1], labels)
    digest = hashlib.sha256(np.ascontiguousarray(images))
    digest.update(labels.astype("<i8"))
    return _manifest(data, split, labels, class_names, digest.hexdigest(), out, names, backend)


def _look_at_images(
    data: Dataset, folder: Path, splits: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Colour modes of the image files that are not RGB, by split and file name.

    InputError names every file that cannot be read.
    """
    broken: list[str] = []
    modes: dict[str, dict[str, str]] = {}
    for split in splits:
        files, labels, _ = source_module(data.name).listing(folder, split, data.classes)
        _check_counts(data, split, np.asarray(labels), folder)
        found = _in_chunks(_mode_or_error, [folder / name for name in files])
        modes[split] = {}
        for name, mode in zip(files, found, strict=True):
            if isinstance(mode, InputError):
                broken.append(str(mode))
            elif mode != "RGB":
                modes[split][name] = mode
    if broken:
        raise InputError(
            f"{len(broken)} broken image files, nothing was written: {'; '.join(broken)}"
        )
    return modes


def _mode_or_error(path: Path) -> str | InputError:
    try:
        return source_module("imagenet").look(path)
    except InputError as error:
        return error


def _write_images(
    data: Dataset, folder: Path, split: str, out: Path, backend: str, others: dict[str, str]
) -> dict:
    files, labels, synsets = source_module(data.name).listing(folder, split, data.classes)
    labels = np.asarray(labels, np.int64)
    _check_counts(data, split, labels, folder)
    digest = hashlib.sha256()
    samples = zip(_decoded(folder, files, digest), labels, strict=True)
    names = [f"{split}.files.txt", f"{split}_labels.npy"]
    if backend == "ffcv":
        names.append(f"{split}.beton")
        _write_beton(out / names[-1], data, len(labels), samples)
    else:
        for _ in samples:  # every file is decoded once, so that a broken one is found here
            pass
    digest.update(labels.astype("<i8"))
    write_text(out / names[0], "\n".join(files) + "\n")
    _save(out / names[1], labels)
    manifest = _manifest(data, split, labels, synsets, digest.hexdigest(), out, names, backend)
    if others:
        counts = ", ".join(f"{n} {mode}" for mode, n in sorted(Counter(others.values()).items()))
        print(f"{out}/{split}: converted to RGB: {counts} (names in the manifest)")
    return manifest | {"source": str(folder.resolve()), "converted_to_rgb": others}


def _decoded(folder: Path, files: list[str], digest) -> Iterator[np.ndarray]:
    """Images (H, W, 3) in order, decoded by all cores; `digest` is updated with each checksum."""
    read_image = source_module("imagenet").read_image
    for image, file_digest in _in_chunks(read_image, [folder / name for name in files]):
        digest.update(file_digest)
        yield np.asarray(image)


def _in_chunks(work: Callable[[Path], object], paths: list[Path]) -> Iterator:
    """`work(path)` for every path in order, by all cores, with few results in memory at a time."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(paths), 16 * threads):
            yield from pool.map(work, paths[start : start + 16 * threads])


def _write_beton(path: Path, data: Dataset, count: int, samples) -> None:
    from lowbit_core.datasets.beton import write_beton

    with replace_file(path) as temporary:
        write_beton(temporary, data, count, samples)


def _save(path: Path, array: np.ndarray) -> None:
    with replace_file(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, array)


def _check_counts(data: Dataset, split: str, labels: np.ndarray, folder: Path | None) -> None:
    if len(labels) != data.images(split):
        raise InputError(
            f"{folder}: {len(labels)} {split} images of {data.name}, not {data.images(split)}"
        )
    if labels.min() < 0 or labels.max() >= data.classes:
        raise InputError(
            f"{folder}: {split} labels of {data.name} run from {labels.min()} to "
            f"{labels.max()}, not from 0 to {data.classes - 1}"
        )


def _manifest(
    data: Dataset,
    split: str,
    labels: np.ndarray,
    class_names,
    samples_sha256: str,
    out: Path,
    names: list[str],
    backend: str,
) -> dict:
    packages = ("numpy", "pillow", "ffcv") if backend == "ffcv" else ("numpy", "pillow")
    return {
        "dataset": data.name,
        "split": split,
        "images": len(labels),
        "class_counts": np.bincount(labels, minlength=data.classes).tolist(),
        "class_names": list(class_names),
        "side": data.side,
        "channels": data.channels,
        "samples_sha256": samples_sha256,
        "backend": backend,
        "files": {name: describe(out / name) for name in names},
        "versions": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a data set as .beton files.")
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--source", type=Path, help="folder that holds the data set")
    parser.add_argument("--download", action="store_true", help="download it if it is not found")
    parser.add_argument("--verify", action="store_true", help="only check what --out holds")
    args = parser.parse_args()
    data = dataset(args.dataset)
    if args.verify:
        for split in SPLITS:
            for backend in {check(args.out, split, "torch")["backend"], "torch"}:
                check(args.out, split, backend, full=True)
            print(f"{args.out}/{split}: intact")
        return
    backend, _ = pick_backend("ffcv")
    kept = [split for split in SPLITS if intact(args.out, split, data.name, backend)]
    for split in kept:
        print(f"{args.out}/{split}: prepared and intact, kept; to write it again, delete it first")
    missing = [split for split in SPLITS if split not in kept]
    try:
        if missing:
            prepare(data, args.out, args.source, args.download, missing)
    except OSError as error:
        raise InputError(f"{data.name} could not be written to {args.out}: {error}") from None


if __name__ == "__main__":
    run_cli(main)
