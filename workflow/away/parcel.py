"""Parcels: data sets and run folders in files of at most 16 MiB, carried between machines.

usage: python -m workflow.away.parcel merge FOLDER ... [--runs results/runs]

The parcels NAME.1, NAME.2, ... are the pieces of a zip archive. NAME.json lists their SHA-256.
"""

import argparse
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lowbit_core.datasets.catalog import SPLITS, dataset
from lowbit_core.datasets.manifest import check, describe, manifest_path
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import (
    checksum,
    replace_file,
    sha256_file,
    try_lock,
    write_bytes,
    write_json,
)
from lowbit_core.runtime.run_folder import LOWER_WEIGHTS, WEIGHTS, RunFolder, check_run_id
from lowbit_core.runtime.run_status import loaded_runs
from lowbit_core.training.state import CHECKPOINT

PARCEL_BYTES = 16 * 2**20  # the most of one file
TOTAL_BYTES = 60 * 2**20  # the most of the runs that come back together, before compression
RUNS = "runs"  # the name of the parcels that hold run folders
ABOUT = "about.json"  # in these parcels: the suite, and the role of each run in it
COMPARED = ("status", "top1", "top5", "test_loss", "val_top1", "epochs_done")  # of final.json


def write_parcels(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """Write {member: content} as parcels of `name`, in the place of earlier ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            # A fixed date: the same content gives the same bytes.
            archive.writestr(zipfile.ZipInfo(member), content, zipfile.ZIP_DEFLATED)
    buffer.seek(0)
    pieces = list(iter(lambda: buffer.read(PARCEL_BYTES), b""))
    paths = [folder / f"{name}.{number}" for number in range(1, len(pieces) + 1)]
    with tempfile.TemporaryDirectory(dir=_made(folder), prefix=".new.") as scratch:
        for path, piece in zip(paths, pieces, strict=True):
            write_bytes(Path(scratch) / path.name, piece)
        for path in paths:  # only now the earlier ones go
            (Path(scratch) / path.name).replace(path)
    index = folder / f"{name}.json"
    write_json(index, [hashlib.sha256(piece).hexdigest() for piece in pieces])
    for old in {*folder.glob(f"{name}.*")} - {*paths, index}:
        old.unlink()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def open_parcels(folder: Path, name: str) -> zipfile.ZipFile:
    """The archive in the parcels of `name`. Raises InputError naming a missing or damaged one."""
    index, whole = folder / f"{name}.json", io.BytesIO()
    try:
        digests = list(json.loads(index.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{index} is missing or damaged ({error}): copy it again") from error
    for number, digest in enumerate(digests, 1):
        path = folder / f"{name}.{number}"
        if not path.is_file() or sha256_file(path) != digest:
            raise InputError(f"{path} is missing or damaged: copy it again")
        whole.write(path.read_bytes())
    try:
        return zipfile.ZipFile(whole)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{index} names no parcels of an archive ({error}): copy it again"
        ) from error


def pack_data(data_dir: Path, out: Path) -> None:
    """Pack a prepared data set. Raises InputError for images of varying size, stored as JPEG."""
    members = {}
    for split in SPLITS:
        manifest = check(data_dir, split, "torch")
        name = manifest["dataset"]
        if not dataset(name).stored_raw:
            raise InputError(f"data set {name} consists of JPEG files: copy its folder {data_dir}")
        images = np.load(data_dir / f"{split}.npy")  # (N, C, H, W) uint8
        for axis in (1, 2, 3):  # differences of neighbours, modulo 256, compress better
            images = np.diff(images, axis=axis, prepend=np.uint8(0))
        members[f"{split}.pixels"] = images.tobytes()
        members[f"{split}.labels"] = np.load(data_dir / f"{split}_labels.npy").tobytes()
        members[f"{split}.json"] = json.dumps(manifest).encode()
    write_parcels(out, name, members)


def unpack_data(folder: Path, name: str, data_dir: Path) -> None:
    """Write the data set to `data_dir` without FFCV's files. InputError if the SHA-256 differs."""
    if not (folder / f"{name}.json").exists():
        raise InputError(f"{folder} holds no data set {name}: write the queue with --data")
    archive, info = open_parcels(folder, name), dataset(name)
    for split in SPLITS:
        try:
            manifest = json.loads(archive.read(f"{split}.json"))
            images = np.frombuffer(archive.read(f"{split}.pixels"), np.uint8)
            images = images.reshape(-1, info.channels, info.side, info.side)
            labels = np.frombuffer(archive.read(f"{split}.labels"), np.int64)
            expected = manifest["samples_sha256"]
        except (KeyError, ValueError) as error:
            raise InputError(f"{folder}: the parcels {name} hold no data set ({error})") from error
        for axis in (1, 2, 3):
            images = images.cumsum(axis, dtype=np.uint8)
        digest = hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
        if digest != expected:
            raise InputError(f"{folder}: the {split} images of {name} are not those packed")
        arrays = {f"{split}.npy": images, f"{split}_labels.npy": labels}
        for file, array in arrays.items():
            with replace_file(data_dir / file) as temporary, temporary.open("wb") as stream:
                np.save(stream, array)
        manifest |= {"backend": "torch", "files": {f: describe(data_dir / f) for f in arrays}}
        write_json(manifest_path(data_dir, split), manifest | {"checksum": checksum(manifest)})


def pack_runs(
    runs: Sequence[dict], root: Path, out: Path, suite: str, total: float = TOTAL_BYTES
) -> list[str]:
    """Pack the folders in `root` of the given runs; returns the files that are left out.

    Tables and other small files are packed in any case. Then, as far as `total` bytes suffice,
    weights that others start from and states to resume from, and last the other weights.
    """
    starts = {run["run_id"] for run in runs if run["pretrained"] is None}
    starts = starts.union(*map(loaded_runs, runs))

    def rank(path: Path) -> int:
        networks = (WEIGHTS, LOWER_WEIGHTS)
        spare = path.name in networks and path.parent.name not in starts
        return 2 if spare else int(path.name in (*networks, CHECKPOINT))

    found = [path for run in runs for path in sorted((root / run["run_id"]).glob("[!.]*"))]
    units: dict[tuple[str, str], list[Path]] = {}  # the networks of a run are of use together
    for path in (path for path in found if path.name != "lock"):
        name = WEIGHTS if path.name == LOWER_WEIGHTS else path.name
        units.setdefault((path.parent.name, name), []).append(path)
    members, left_out = {}, []
    for unit in sorted(units.values(), key=lambda paths: rank(paths[0])):
        names = [f"{path.parent.name}/{path.name}" for path in unit]
        size = sum(path.stat().st_size for path in unit)
        if rank(unit[0]) and size > total:
            left_out += names
            continue
        members |= {name: path.read_bytes() for name, path in zip(names, unit, strict=True)}
        total -= size
    about = {"suite": suite, "roles": {run["run_id"]: run["role"] for run in runs}}
    write_parcels(out, RUNS, members | {ABOUT: json.dumps(about).encode()})
    return left_out


def merge(sources: Iterable[Path], runs: Path) -> list[str]:
    """Copy the runs in the parcels of `sources` to `runs`; returns those that are new or longer.

    A damaged run in `runs` gives way to a finished one. Nothing is copied, and InputError says why,
    if records disagree or a finished run in a parcel is damaged.
    """
    chosen: dict[str, Path] = {}
    archives = [(source, open_parcels(source, RUNS)) for source in sources]
    for source, archive in archives:
        _about(archive, source)
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runs.parent, prefix=".merge.") as scratch:
        origin = {}  # of an unpacked folder: the parcels that it came in
        for number, (source, archive) in enumerate(archives):
            unpacked = Path(scratch) / f"{number}.new"
            archive.extractall(unpacked)  # no member's path can lead out of it
            for folder in [path.parent for path in unpacked.glob("*/config.json")]:
                check_run_id(folder.name)
                here = chosen.get(folder.name, runs / folder.name)
                origin[folder] = source
                gives_way = (folder / "final.json").exists() and not _is_sound(here)
                is_here = (here / "config.json").exists()
                is_alone = folder.name not in chosen and (gives_way or not is_here)
                both = [folder] if is_alone else [here, folder]
                _check_agreement(both, [origin.get(path, path) for path in both])
                if max(both, key=_completeness) is folder:
                    chosen[folder.name] = folder
        with _idle([runs / run_id for run_id in chosen]):
            for run_id, folder in chosen.items():  # renamed, so that there is never a part of one
                if (runs / run_id).exists():
                    (runs / run_id).rename(Path(scratch) / f"{run_id}.old")
                folder.rename(runs / run_id)
    return sorted(chosen)


def _is_sound(folder: Path) -> bool:
    """Whether it holds a run whose files are as they were written."""
    if not (folder / "config.json").exists():
        return False
    try:
        RunFolder(folder).read_json("config.json")
        RunFolder(folder).finished((folder / WEIGHTS).exists())
    except InputError:
        return False
    return True


def _completeness(folder: Path) -> tuple[bool, bool, int]:
    """What is compared: first whether it is finished, then weights or a state, then epochs."""
    timings = folder / "timings.csv"
    epochs = timings.read_bytes().count(b"\n") if timings.exists() else 0
    saved = (folder / WEIGHTS).exists() or (folder / CHECKPOINT).exists()
    return (folder / "final.json").exists(), saved, epochs


@contextmanager
def _idle(folders: list[Path]) -> Iterator[None]:
    """Hold the locks of those run folders that exist; InputError if some are being trained."""
    locks = {folder: try_lock(folder / "lock") for folder in folders if folder.exists()}
    try:
        if busy := [str(folder) for folder, lock in locks.items() if lock is None]:
            raise InputError(
                f"being trained: {', '.join(busy)}: stop that, or wait for it, and merge again"
            )
        yield
    finally:
        for lock in filter(None, locks.values()):
            lock.close()


def _check_agreement(folders: list[Path], origins: list[Path]) -> None:
    """Raise InputError unless all folders have one run key, and finished ones the same results.

    origins: the parcels, or the folder, that each came from.
    """
    run_id = folders[0].name
    keys = [_run_key(*both) for both in zip(folders, origins, strict=True)]
    if len({*keys}) > 1:
        pairs = zip(keys, origins, strict=True)
        both = " and ".join(f"{key} from {origin}" for key, origin in pairs)
        raise InputError(f"run {run_id} has two different run keys, {both}: remove the wrong one")
    found = [_final(*both) for both in zip(folders, origins, strict=True)]
    finals = [final for final in found if final]
    if any(final[name] != finals[0][name] for final in finals[1:] for name in COMPARED):
        both = " and ".join(f"{f['top1']} on {f['hardware']} ({f['created']})" for f in finals)
        text = f"run {run_id} was trained twice with different results, top-1 {both}"
        places = " or in ".join(map(str, origins))
        raise InputError(f"{text}: remove the one that is not wanted, in {places}")


def _final(folder: Path, origin: Path) -> dict | None:
    """The final record of a run, if it has one; InputError if the run is not what was written."""
    with _named(folder, origin):
        return RunFolder(folder).finished((folder / WEIGHTS).exists())


@contextmanager
def _named(folder: Path, origin: Path) -> Iterator[None]:
    """Errors of the block name the parcels a run came in, not the folder it is unpacked in."""
    try:
        yield
    except InputError as error:
        if folder == origin:
            raise
        raise InputError(f"{origin}: {str(error).replace(str(folder), folder.name)}") from error


def _run_key(folder: Path, origin: Path) -> str:
    with _named(folder, origin):
        config = RunFolder(folder).read_json("config.json")
    if not isinstance(config, dict) or not isinstance(config.get("run_key"), str):
        raise InputError(
            f"{origin}: config.json of run {folder.name} has no run_key: pack it again"
        )
    return config["run_key"]


def _about(archive: zipfile.ZipFile, source: Path) -> dict:
    """The suite of the parcels in `source`, whose archive this is, and the roles of its runs."""
    try:
        about = json.loads(archive.read(ABOUT))
        for name in (about["suite"], *about["roles"], *about["roles"].values()):
            check_run_id(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{source}: {ABOUT} is missing or damaged ({error}): pack it again"
        ) from error
    return about


def track(sources: Iterable[Path], runs: Path) -> None:
    """Bring MLflow up to date with the merged runs of the sources' parcels."""
    from workflow.track import Store, TrackedRun, suite_hides_test, sync

    for source in sources:
        about = _about(open_parcels(source, RUNS), source)
        hides = suite_hides_test(about["suite"])
        folders = {runs / run: role for run, role in about["roles"].items()}
        tracked = [TrackedRun(path, role, hides) for path, role in folders.items() if path.is_dir()]
        sync(Store(runs.parent / "mlflow"), about["suite"], tracked)
        print(f"{len(tracked)} runs of suite {about['suite']} are in {runs.parent}/mlflow")


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge runs that were trained on other machines.")
    parser.add_argument("command", choices=["merge"])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--no-sync", action="store_true", help="do not bring MLflow up to date")
    arguments = parser.parse_args()
    changed = merge(arguments.folders, arguments.runs)
    print(f"{len(changed)} runs are new or longer in {arguments.runs}")
    if not arguments.no_sync:
        track(arguments.folders, arguments.runs)


if __name__ == "__main__":
    run_cli(main)
