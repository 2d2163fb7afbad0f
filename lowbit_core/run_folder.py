"""The files of one run (results/runs/<run_id>/): append-only tables, checkpoint, final record."""

import csv
import io
import json
from pathlib import Path

import torch

from lowbit_core.errors import InputError
from lowbit_core.files import write_bytes, write_json, write_text

METRICS = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
TIMINGS = ("epoch", "seconds", "images_per_s", "data_wait_share", "peak_memory_mb")
WEIGHT_STATE = (
    "epoch",
    "layer",
    "mismatch",
    "flip_rate",
    "level_min",
    "level_max",
    "used_levels",
)
CHANNEL_ERROR = (
    "layer",
    "channel",
    "variance",
    "error_equal",
    "error_inverse_variance",
    "error_median",
)


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.8g}" if isinstance(value, float) else value


def table_text(columns: tuple[str, ...], rows: list[dict], header: bool = True) -> str:
    """CSV text with a fixed float format, so that equal runs give equal bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({c: _cell(row[c]) for c in columns} for row in rows)
    return text.getvalue()


class RunFolder:
    """Paths and tables of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, columns: tuple[str, ...], rows: list[dict]) -> None:
        """Add rows to the table `name`; the header comes with the first."""
        path = self.path / name
        with path.open("a") as file:
            file.write(table_text(columns, rows, header=path.stat().st_size == 0))

    def keep_until(self, name: str, epoch: int) -> None:
        """Drop the rows of epochs after `epoch` (a killed run wrote them past its checkpoint)."""
        path = self.path / name
        if not path.exists():
            return
        lines = path.read_text().splitlines(keepends=True)
        kept = [lines[0]] if lines and lines[0].endswith("\n") else []
        for line in lines[1:]:
            first = line.partition(",")[0]
            if line.endswith("\n") and first.isdecimal() and int(first) <= epoch:
                kept.append(line)
        write_text(path, "".join(kept))

    def write_table(self, name: str, columns: tuple[str, ...], rows: list[dict]) -> None:
        write_text(self.path / name, table_text(columns, rows))

    def read_json(self, name: str) -> dict | None:
        """The JSON file's value; None if it is not there; InputError if it is not JSON."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise InputError(
                f"{path} is not valid JSON ({error}): delete the folder {self.path} and rerun"
            ) from error

    def write_json(self, name: str, value: object) -> None:
        write_json(self.path / name, value)

    def save_tensors(self, name: str, value: dict) -> None:
        buffer = io.BytesIO()  # so that a full disk is an OSError, not one of torch's own
        torch.save(value, buffer)
        write_bytes(self.path / name, buffer.getvalue())

    def load_tensors(self, name: str) -> dict | None:
        """The saved dict; None if it is not there; InputError if it cannot be read."""
        path = self.path / name
        return load_tensors(path) if path.exists() else None


def load_tensors(path: Path) -> dict:
    """Read tensors without running code. Raises InputError naming a missing or damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} is missing: rerun the job that trains it") from error
    except Exception as error:  # torch raises many types for a damaged file
        raise InputError(
            f"checkpoint {path} is corrupt ({type(error).__name__}): delete it and run again"
        ) from error
