"""The files of a prepared data set, and the check that they still are what was written.

<split>.manifest.json  counts, class counts, checksums
<split>.beton          FFCV's file
<split>_labels.npy     labels, int64
<split>.npy            pixels (N, C, H, W) uint8, for the reference loader (raw sets)
<split>.files.txt      source files in order, for the reference loader (ImageNet)
"""

import json
from pathlib import Path

import numpy as np

from lowbit_core.datasets.catalog import DATASETS, SPLITS
from lowbit_core.runtime.errors import InputError, one_of
from lowbit_core.runtime.files import checksum, sha256_file

FULL_HASH_BELOW = 256 * 2**20  # bytes; larger files are checked by size and header at load
_KEYS = {"dataset", "split", "images", "class_counts", "side", "channels", "class_names"}
_KEYS |= {"samples_sha256", "backend", "files", "versions"}
# Of a .beton file, version 2: version, number of fields, page size, number of samples, table.
_HEADER = np.dtype("<u2, <u2, <u4, <u8, <u8")
_verified: set[tuple] = set()  # files hashed by this process: path, size, time, digest


def manifest_path(data_dir: str | Path, split: str) -> Path:
    return Path(data_dir) / f"{split}.manifest.json"


def describe(path: Path) -> dict:
    """The entry of a file in the manifest: its size in bytes and its SHA-256."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def read_manifest(data_dir: str | Path, split: str) -> dict:
    """The manifest of one split; `InputError` if it is missing or malformed."""
    path = manifest_path(data_dir, one_of("split", split, SPLITS))
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict) or not _KEYS <= manifest.keys():
            fault = "not a manifest of this version"
        elif manifest["dataset"] not in DATASETS or manifest["split"] != split:
            fault = f"describes {manifest['split']!r} of {manifest['dataset']!r}, "
            fault += f"not {split!r} of one of {', '.join(DATASETS)}"
        elif "checksum" in manifest and manifest["checksum"] != checksum(manifest):
            fault = "its checksum differs, it is not what was written"
        else:
            return manifest
    except FileNotFoundError:
        fault = "the file is missing"
    except ValueError as error:
        fault = f"not a JSON file ({error})"
    raise _damaged(path, fault, Path(data_dir).name)


def check(data_dir: str | Path, split: str, backend: str = "ffcv", full: bool = False) -> dict:
    """Check the files that `backend` reads against the manifest, and return the manifest.

    Files below 256 MiB are hashed, once in a process. Of larger ones only the size and the header
    are compared. `full`: every file of the split is hashed, also those that `backend` does not
    read. `InputError` names the file and how to write it again.
    """
    manifest = read_manifest(data_dir, split)
    if backend == "ffcv" and manifest["backend"] != "ffcv":
        fault = "written without ffcv, so there is no .beton file"
        raise _damaged(manifest_path(data_dir, split), fault, manifest["dataset"])
    for name in manifest["files"]:
        is_read = name.endswith("_labels.npy") or name.endswith(".beton") == (backend == "ffcv")
        if full or is_read:
            _check_file(Path(data_dir, name), manifest, full)
    return manifest


def intact(data_dir: str | Path, split: str, name: str, backend: str) -> bool:
    """Whether `split` of data set `name` is prepared for `backend`, and every byte as written."""
    try:
        manifest = check(data_dir, split, backend, full=True)
        return manifest["dataset"] == name and manifest["images"] == DATASETS[name].images(split)
    except (InputError, OSError):
        return False


def read_labels(data_dir: str | Path, split: str) -> np.ndarray:
    """Labels of `split` in stored order, (N,) int64."""
    path = Path(data_dir, f"{split}_labels.npy")
    _check_file(path, read_manifest(data_dir, split), full=False)
    return np.load(path)


def _check_file(path: Path, manifest: dict, full: bool) -> None:
    expected = manifest["files"].get(path.name, {})
    if not path.is_file():
        raise _damaged(path, "the file is missing", manifest["dataset"])
    stat, fault = path.stat(), ""
    key = (path.resolve(), stat.st_size, stat.st_mtime_ns, expected.get("sha256"))
    if stat.st_size != expected.get("bytes"):
        fault = f"{stat.st_size} bytes, but its manifest says {expected.get('bytes')}"
    elif full or (stat.st_size < FULL_HASH_BELOW and key not in _verified):
        if sha256_file(path) != expected.get("sha256"):
            fault = "its checksum is not the manifest's, the file is corrupt"
        else:
            _verified.add(key)
    elif path.suffix == ".beton" and key not in _verified:
        version, _, _, samples, _ = np.fromfile(path, _HEADER, count=1)[0]
        if version != 2 or samples != manifest["images"]:
            fault = f"its header is not that of a .beton file of {manifest['images']} samples"
    if fault:
        raise _damaged(path, fault, manifest["dataset"])


def _damaged(path: Path, fault: str, name: str) -> InputError:
    again = f"python -m lowbit_core.datasets.prepare {name} --out {path.parent}"
    return InputError(f"{path}: {fault}; rebuild it with `{again}`")
