"""Write a data set as .beton files with manifests. Splits that are there and intact are kept.

usage: python -m lowbit_core.datasets.prepare DATASET --out DIR [--source DIR] [--download]
       python -m lowbit_core.datasets.prepare DATASET --out DIR --verify
"""

import argparse
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lowbit_core.datasets.beton import write_beton
from lowbit_core.datasets.catalog import SPLITS, Dataset, dataset
from lowbit_core.datasets.imagenet import look, read_image
from lowbit_core.datasets.manifest import check, describe, intact, manifest_path
from lowbit_core.datasets.sources import Samples, find, source_module
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import checksum, remove_leftovers, replace_file, write_json


def prepare(
    data: Dataset, out: Path, source: Path | None = None, download: bool = False, splits=SPLITS
) -> None:
    """Write `splits` of `data` into `out`. A split's files are replaced once it was read whole.

    source, download: where the images are, see `find`. Image files of all splits are read first:
    InputError names every one that cannot be read. Without ffcv only the files of the reference
    loader are written, and the manifest says so.
    """
    if out.is_dir():
        remove_leftovers(out)
    folder = find(data.name, source, download)
    backend = pick_backend("ffcv")
    loaded = {split: _load(data, folder, split) for split in splits}
    others = {} if data.stored_raw else _other_modes(folder, loaded)
    for split, samples in loaded.items():
        files, digest = _write_files(data, folder, out, split, samples, backend)
        packages = ("numpy", "pillow", "ffcv") if backend == "ffcv" else ("numpy", "pillow")
        manifest = {
            "dataset": data.name,
            "split": split,
            "images": len(samples.labels),
            "class_counts": np.bincount(samples.labels, minlength=data.classes).tolist(),
            "class_names": list(samples.class_names),
            "side": data.side,
            "channels": data.channels,
            "samples_sha256": digest,
            "backend": backend,
            "files": {name: describe(out / name) for name in files},
            "versions": {name: version(name) for name in packages},
        }
        if not data.stored_raw:
            manifest |= {"source": str(folder.resolve()), "converted_to_rgb": others[split]}
        write_json(manifest_path(out, split), manifest | {"checksum": checksum(manifest)})
        print(f"{out}/{split}: {len(samples.labels)} images of {data.name}, {backend}")
        if counts := Counter(others.get(split, {}).values()):
            text = ", ".join(f"{n} {mode}" for mode, n in sorted(counts.items()))
            print(f"{out}/{split}: converted to RGB: {text} (names in the manifest)")


def _load(data: Dataset, folder: Path | None, split: str) -> Samples:
    """The pixels of a raw set or else the file names; InputError if counts or labels are wrong."""
    module = source_module(data.name)
    if data.stored_raw:
        samples = module.load(folder, split)
    else:
        samples = module.listing(folder, split, data.classes)
    labels, count = samples.labels, data.images(split)
    if len(labels) != count:
        raise InputError(f"{folder}: {len(labels)} {split} images of {data.name}, not {count}")
    if labels.min() < 0 or labels.max() >= data.classes:
        found, legal = f"from {labels.min()} to {labels.max()}", f"from 0 to {data.classes - 1}"
        raise InputError(f"{folder}: {split} labels of {data.name} run {found}, not {legal}")
    return samples


def _other_modes(folder: Path, loaded: dict[str, Samples]) -> dict[str, dict[str, str]]:
    """Colour modes other than RGB by split and file; InputError names every unreadable file."""
    others, broken = {}, []
    for split, (files, _, _) in loaded.items():
        modes = dict(zip(files, _in_chunks(look, folder, files), strict=True))
        others[split] = {name: mode for name, mode in modes.items() if mode != "RGB"}
        broken += [str(mode) for mode in modes.values() if isinstance(mode, InputError)]
    if broken:
        count, text = len(broken), "; ".join(broken)
        raise InputError(f"{count} broken image files, nothing was written: {text}")
    return others


def _write_files(
    data: Dataset, folder: Path | None, out: Path, split: str, samples: Samples, backend: str
) -> tuple[list[str], str]:
    """Write all but the manifest; return the files' names and the SHA-256 of pixels and labels."""
    pixels, labels, digest = samples.images, samples.labels, hashlib.sha256()
    if data.stored_raw:
        digest.update(np.ascontiguousarray(pixels))
    else:
        pixels = _decoded(folder, samples.images, digest)
    names = [f"{split}.npy" if data.stored_raw else f"{split}.files.txt", f"{split}_labels.npy"]
    if backend == "ffcv":
        names.append(f"{split}.beton")
        with replace_file(out / names[-1]) as temporary:
            write_beton(temporary, data, len(labels), zip(pixels, labels, strict=True))
    else:
        deque(pixels, maxlen=0)  # every file is decoded once, so that a broken one is found here
    digest.update(labels.astype("<i8"))
    for name, content in zip(names[:2], (samples.images, labels), strict=True):
        with replace_file(out / name) as temporary, temporary.open("wb") as stream:
            if name.endswith(".npy"):
                np.save(stream, content)
            else:
                stream.write("".join(f"{file}\n" for file in content).encode())
    return names, digest.hexdigest()


def _decoded(folder: Path, files: list[str], digest) -> Iterator[np.ndarray]:
    """Images (H, W, 3) in order, decoded by all cores; `digest` is updated with each checksum."""
    for image, file_digest in _in_chunks(read_image, folder, files):
        digest.update(file_digest)
        yield np.asarray(image)


def _in_chunks(work: Callable[[Path], object], folder: Path, files: list[str]) -> Iterator:
    """`work(path)` for every file in order, by all cores, with few results in memory at a time."""
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(files), 16 * threads):
            yield from pool.map(
                work, [folder / name for name in files[start : start + 16 * threads]]
            )


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
            check(args.out, split, "torch", full=True)
            print(f"{args.out}/{split}: intact")
        return
    backend = pick_backend("ffcv")
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
