"""A prepared data set as a few compressed files, to be carried to a machine without network.

Shards are tar archives of lossless WebP strips: up to 500 images one below the other, in stored
order. CIFAR-100 takes 95 MiB of its 176. Only NumPy and Pillow are needed to read them back, and the
checksum of the pixels says that nothing was lost.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, features

from lowbit_core.datasets.catalog import SPLITS, dataset
from lowbit_core.datasets.manifest import check, describe, manifest_path
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum, replace_file, write_json

SHARD_BYTES = 50 * 2**20  # of one shard, at most: CIFAR-100 makes two
STRIP = 500  # images in a strip: WebP takes 16383 pixels
EFFORT = {"quality": 75, "method": 4}  # half a second a strip; more gains a percent or two


def write_shards(data_dir: Path, out: Path, limit: int = SHARD_BYTES) -> list[Path]:
    """Pack the prepared raw data set in `data_dir` into shards of at most `limit` bytes in `out`.

    Raises InputError for a set of image files of varying size, which are compressed already.
    """
    _need_webp()
    members = [member for split in SPLITS for member in _members(data_dir, split)]
    name = json.loads(members[0][1])["dataset"]
    packed = sum(_tar_bytes(data) for _, data in members)
    room = limit - tarfile.RECORDSIZE
    share = packed / -(-packed // room)  # of each shard, were strips divisible
    groups: list[list] = [[]]
    filled = 0
    for member in members:
        size = _tar_bytes(member[1])
        if size > room:
            raise InputError(f"shard limit {limit} bytes: {member[0]} of {name} takes {size} bytes")
        held = sum(_tar_bytes(data) for _, data in groups[-1])
        if groups[-1] and (held + size > room or filled >= share * len(groups)):
            groups.append([])
        groups[-1].append(member)
        filled += size
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{name}.*.tar"):
        old.unlink()
    paths = [out / f"{name}.{i}of{len(groups)}.tar" for i in range(1, len(groups) + 1)]
    for path, group in zip(paths, groups, strict=True):
        with replace_file(path) as temporary, tarfile.open(temporary, "w") as tar:
            for member, data in group:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return paths


def read_shards(folder: Path, name: str, data_dir: Path) -> None:
    """Write the data set `name`, packed in `folder`, to `data_dir` for the loader without FFCV.

    Raises InputError for a missing or damaged shard, and for pixels that are not those packed.
    """
    _need_webp()
    members = _read_members(folder, name)
    for split in SPLITS:
        manifest = json.loads(members[f"{split}.manifest.json"])
        data = dataset(manifest["dataset"])
        images = np.empty((manifest["images"], data.channels, data.side, data.side), np.uint8)
        labels = np.load(io.BytesIO(members[f"{split}_labels.npy"]))
        for start in range(0, len(images), STRIP):
            part = images[start : start + STRIP]
            part[:] = _decode(members[_strip_name(split, start)], part.shape)
        digest = hashlib.sha256(images)
        digest.update(labels.astype("<i8"))
        if digest.hexdigest() != manifest["samples_sha256"]:
            raise InputError(
                f"{folder}: the {split} images of {name} are not those that were packed: "
                "pack and bring them again"
            )
        names = [f"{split}.npy", f"{split}_labels.npy"]
        for file, array in zip(names, (images, labels), strict=True):
            with replace_file(data_dir / file) as temporary, open(temporary, "wb") as stream:
                np.save(stream, array)
        files = {file: describe(data_dir / file) for file in names}
        manifest |= {"backend": "torch", "files": files}
        write_json(manifest_path(data_dir, split), manifest | {"checksum": checksum(manifest)})


def _members(data_dir: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the archive members of one split."""
    manifest = check(data_dir, split, "torch")
    if not dataset(manifest["dataset"]).stored_raw:
        raise InputError(
            f"data set {manifest['dataset']}: its images are JPEG files already: carry its folder"
        )
    yield f"{split}.manifest.json", json.dumps(manifest).encode()
    yield f"{split}_labels.npy", (data_dir / f"{split}_labels.npy").read_bytes()
    images = np.load(data_dir / f"{split}.npy", mmap_mode="r")
    for start in range(0, len(images), STRIP):
        yield _strip_name(split, start), _encode(np.asarray(images[start : start + STRIP]))


def _strip_name(split: str, start: int) -> str:
    return f"{split}/{start // STRIP:04d}.webp"


def _encode(images: np.ndarray) -> bytes:
    """Images (N, C, H, W) of one or three channels, one below the other, as lossless WebP."""
    rows = images.transpose(0, 2, 3, 1).reshape(-1, images.shape[3], images.shape[1])
    rows = np.ascontiguousarray(rows.repeat(3, 2) if rows.shape[2] == 1 else rows)
    buffer = io.BytesIO()
    Image.fromarray(rows).save(buffer, "webp", lossless=True, **EFFORT)
    return buffer.getvalue()


def _decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    count, channels, height, width = shape
    with Image.open(io.BytesIO(data)) as image:
        rows = np.asarray(image.convert("RGB"))[:, :, :channels]
    return rows.reshape(count, height, width, channels).transpose(0, 3, 1, 2)


def _tar_bytes(data: bytes) -> int:
    return tarfile.BLOCKSIZE * (1 - (-len(data) // tarfile.BLOCKSIZE))


def _read_members(folder: Path, name: str) -> dict[str, bytes]:
    paths = sorted(folder.glob(f"{name}.*of*.tar"))
    if not paths:
        raise InputError(
            f"{folder}: there is no shard {name}.*of*.tar: bring the data set's shards"
        )
    count = int(paths[0].name.split(".")[1].partition("of")[2])
    if len(paths) != count:
        found = ", ".join(path.name for path in paths)
        raise InputError(f"{folder}: {count} shards of {name} are needed, but here are {found}")
    members = {}
    for path in paths:
        try:
            with tarfile.open(path) as tar:
                members |= {m.name: tar.extractfile(m).read() for m in tar}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{path}: damaged shard ({error}): bring it again") from error
    return _Members(members, folder)


class _Members(dict):
    """Contents by name; a name that is not there is a damaged shard."""

    def __init__(self, members: dict[str, bytes], folder: Path) -> None:
        super().__init__(members)
        self.folder = folder

    def __missing__(self, name: str) -> bytes:
        raise InputError(f"{self.folder}: the shards lack {name}: pack and bring them again")


def _need_webp() -> None:
    if not features.check("webp"):
        raise InputError("Pillow is built without WebP here: install a Pillow that has it")
