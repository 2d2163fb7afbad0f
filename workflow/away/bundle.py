"""Run folders packed into a few files that come home from another machine."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_bytes
from workflow.away.queue import Plan, is_done

PART_BYTES = 16 * 2**20  # of one file
TOTAL_BYTES = 60 * 2**20
NAME = "runs.tar.gz"
HEAVY = ("weights.pt", "checkpoint.pt")


def pack(plan: Plan, runs: Path, folder: Path, total: int = TOTAL_BYTES) -> list[str]:
    """Pack the plan's runs into `folder`, parts of at most 16 MiB each; returns what is left out.

    Records come first, then what another machine needs to go on (weights of checkpoints, states of
    unfinished runs), then all other weights while there is room. `total` bounds the bytes in all.
    """
    folders = [runs / run["run_id"] for run in plan.runs if (runs / run["run_id"]).is_dir()]
    begun = {run["run_id"] for run in plan.runs if not is_done(run, runs)}
    starts = {run["run_id"] for run in plan.runs if run["role"] == "checkpoint"}
    records, needed, others = [], [], []
    for one in folders:
        for path in sorted(one.iterdir()):
            if path.name not in HEAVY:
                if path.name != "lock" and not path.name.startswith("."):  # a temporary file
                    records.append(path)
            elif one.name in starts or one.name in begun:
                needed.append(path)
            else:
                others.append(path)
    buffer, left_out, used = io.BytesIO(), [], 0
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=3) as tar:
        for path in [*records, *needed, *others]:
            used += path.stat().st_size  # before compression, which does little for weights
            if path.name in HEAVY and used > total:
                used -= path.stat().st_size
                left_out.append(f"{path.parent.name}/{path.name}")
                continue
            tar.add(path, f"{path.parent.name}/{path.name}")
    data = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{NAME}.*"):
        old.unlink()
    count = -(-len(data) // PART_BYTES)
    for part in range(count):
        piece = data[part * PART_BYTES : (part + 1) * PART_BYTES]
        write_bytes(folder / f"{NAME}.{part + 1}of{count}", piece)
    return left_out


def unpack(folder: Path, out: Path) -> None:
    """Write the run folders packed in `folder` to `out`. InputError for missing or damaged parts."""
    parts = sorted(folder.glob(f"{NAME}.*of*"))
    if not parts:
        raise InputError(f"{folder}: there is no {NAME}.1of1 (or more parts): nothing to merge")
    count = int(parts[0].name.rpartition("of")[2])
    if [path.name for path in parts] != [f"{NAME}.{i}of{count}" for i in range(1, count + 1)]:
        found = ", ".join(path.name for path in parts)
        raise InputError(f"{folder}: {count} parts of {NAME} are needed, but here are {found}")
    data = b"".join(path.read_bytes() for path in parts)
    try:
        whole = gzip.decompress(data)  # at once, so that its checksum is compared
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            tar.extractall(out, filter="data")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{folder}: {NAME} is damaged ({error}): bring it again") from error
