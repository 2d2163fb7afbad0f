"""Atomic writes (a reader sees the old file or the new one, never half of one) and file locks."""

import errno
import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the error of a full disk names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of killed processes. No other process may be writing in `folder`."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock on `path`, which ends with the process; print `waiting` if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            print(f"warning: {path.parent} is on a file system without locks", file=sys.stderr)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """The file at `path`, locked until it is closed or the process ends; None if it is locked."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        return None


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file by `data`, on the disk when this returns."""
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave an empty file


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())


def json_text(value: object) -> str:
    """JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def json_lines(rows: Iterable[object]) -> str:
    """One line of JSON for each row, with sorted keys."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)


def write_json(path: str | Path, value: object) -> None:
    write_text(path, json_text(value))


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(record: dict) -> str:
    """SHA-256 (hex) of a JSON object without its entry `checksum`."""
    content = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
