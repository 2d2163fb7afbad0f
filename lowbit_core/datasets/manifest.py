"""The files of a prepared data set, and the check that they still are what was written.

<split>.manifest.json  counts, class counts, checksums
<split>.beton          FFCV's file
<split>_labels.npy     labels, int64
<split>.npy            pixels (N, C, H, W) uint8, for the reference loader (raw sets)
<split>.files.txt      source files in order, for the reference loader (ImageNet)
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from lowbit_core.datasets.catalog import DATASETS, check_split
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum

FULL_HASH_BELOW = 256 * 2**20  # bytes; larger files are checked by size and header at load
_KEYS = {
    "dataset",
    "split",
    "images",
    "class_counts",
    "side",
    "channels",
    "class_names",
    "samples_sha256",
    "backend",
    "files",
    "versions",
}
_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("table", "<u8"),
    ]
)  # of a .beton file, version 2
_verified: set[tuple] = set()  # files hashed by this process: path, size, time, digest


def manifest_path(data_dir: str | Path, split: str) -> Path:
    return Path(data_dir) / f"{split}.manifest.json"


def sha256_file(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe(path: Path) -> dict:
    """The entry of a file in the manifest: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def read_manifest(data_dir: str | Path, split: str) -> dict:
    """The manifest of one split; `InputError` if it is missing or malformed."""
    path = manifest_path(data_dir, check_split(split))
    again = _rebuild(data_dir, Path(data_dir).name)
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: the file is missing; {again}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file ({error}); {again}") from None
    if not isinstance(manifest, dict) or not _KEYS <= manifest.keys():
        raise InputError(f"{path}: not a manifest of this version; {again}")
    if manifest["dataset"] not in DATASETS or manifest["split"] != split:
        raise InputError(
            f"{path}: describes {manifest['split']!r} of {manifest['dataset']!r}, "
            f"not {split!r} of one of {', '.join(DATASETS)}; {again}"
        )
    if "checksum" in manifest and manifest["checksum"] != checksum(manifest):
        raise InputError(f"{path}: its checksum differs, it is not what was written; {again}")
    return manifest


def check(data_dir: str | Path, split: str, backend: str = "ffcv", full: bool = False) -> dict:
    """Check the files that `backend` reads against the manifest, and return the manifest.

    Files below 256 MiB are hashed, once in a process. Of larger ones only the size and the header
    are compared, unless `full`. `InputError` names the file and how to write it again.
    """
    manifest = read_manifest(data_dir, split)
    if backend == "ffcv" and manifest["backend"] != "ffcv":
        raise InputError(
            f"{manifest_path(data_dir, split)}: written without ffcv, so there is no "
            f".beton file; {_rebuild(data_dir, manifest['dataset'])}"
        )
    for name, expected in manifest["files"].items():
        if name == f"{split}_labels.npy" or name.endswith(".beton") == (backend == "ffcv"):
            _check_file(Path(data_dir) / name, expected, manifest, full)
    return manifest


def intact(data_dir: str | Path, split: str, name: str, backend: str) -> bool:
    """Whether `split` of data set `name` is prepared for `backend`, and every byte as written."""
    try:
        for reader in {backend, "torch"}:
            manifest = check(data_dir, split, reader, full=True)
    except (InputError, OSError):
        return False
    return manifest["dataset"] == name and manifest["images"] == DATASETS[name].images(split)


def read_labels(data_dir: str | Path, split: str) -> np.ndarray:
    """Labels of `split` in stored order, (N,) int64."""
    manifest = read_manifest(data_dir, split)
    name = f"{split}_labels.npy"
    path = Path(data_dir) / name
    _check_file(path, manifest["files"].get(name, {}), manifest, full=False)
    return np.load(path)


def _check_file(path: Path, expected: dict, manifest: dict, full: bool) -> None:
    again = _rebuild(path.parent, manifest["dataset"])
    if not path.is_file():
        raise InputError(f"{path}: the file is missing; {again}")
    stat = path.stat()
    if stat.st_size != expected.get("bytes"):
        raise InputError(
            f"{path}: {stat.st_size} bytes, but its manifest says {expected.get('bytes')}; {again}"
        )
    if full or stat.st_size < FULL_HASH_BELOW:
        key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, expected.get("sha256"))
        if full or key not in _verified:
            if sha256_file(path) != expected.get("sha256"):
                raise InputError(
                    f"{path}: its checksum is not the manifest's, the file is corrupt; {again}"
                )
            _verified.add(key)
    elif path.suffix == ".beton":
        header = np.fromfile(path, _HEADER, count=1)[0]
        if header["version"] != 2 or header["samples"] != manifest["images"]:
            raise InputError(
                f"{path}: its header is not that of a .beton file of "
                f"{manifest['images']} samples; {again}"
            )


def _rebuild(data_dir: str | Path, name: str) -> str:
    return f"rebuild it with `python -m lowbit_core.datasets.prepare {name} --out {data_dir}`"
