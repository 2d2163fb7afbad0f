"""The files of one run (results/runs/<run_id>/): append-only tables, checkpoint, final record.

Damage to any file is noticed: files of tensors have a CRC for each zip record, final.json has a
checksum of itself and of each other file, and the checkpoint has a copy of the growing tables.
"""

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import torch

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import checksum, sha256_file, write_bytes, write_json, write_text

TABLES = ("metrics.csv", "timings.csv", "weight_state.csv")
WEIGHTS, LOWER_WEIGHTS = "weights.pt", "widths.pt"  # of the network, and of its lower widths
MEASURED = ("weight_histograms.json", "channel_error.csv", "widths.csv", LOWER_WEIGHTS)
SEALED = ("config.json", "layers.json", *TABLES, *MEASURED, WEIGHTS)

METRICS = ("epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1")
TIMINGS = ("epoch", "seconds", "images_per_s", "data_wait_share", "peak_memory_mb")
WEIGHT_STATE = ("epoch", "layer", "mismatch", "flip_rate", "level_min", "level_max", "used_levels")
WEIGHT_STATE += ("oscillating",)
WIDTHS = ("w_bits", "a_bits", "top1", "top5", "val_top1", "test_loss", "size_bytes", "bitops")
CHANNEL_ERROR = ("layer", "channel", "variance")
CHANNEL_ERROR += ("error_equal", "error_inverse_variance", "error_median")


def check_run_id(name: object) -> str:
    """Return `name` if it is one plain folder name; raise InputError if it could lead elsewhere."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise InputError(
            f"run {name!r}: a run's name consists of letters, digits, `_`, `-` and `.`, and does "
            "not begin with `-` or `.`"
        )
    return name


def table_text(columns: tuple[str, ...], rows: list[dict], header: bool = True) -> str:
    """CSV text with floats of eight digits, so that equal runs give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    for row in rows:
        cells = (row[column] for column in columns)
        writer.writerow(f"{cell:.8g}" if isinstance(cell, float) else cell for cell in cells)
    return text.getvalue()


class RunFolder:
    """The folder of one run, which is made if it is missing: reads and writes its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def append(self, name: str, columns: tuple[str, ...], rows: list[dict]) -> None:
        """Append rows to the table `name`; a new table gets its header first."""
        path = self.path / name
        try:
            with path.open("a") as file:
                file.write(table_text(columns, rows, header=path.stat().st_size == 0))
        except OSError as error:
            error.filename = str(path)  # the error of a full disk names no file
            raise

    def tables(self) -> dict[str, str]:
        """The text of each table that exists, by file name; the checkpoint has this copy."""
        paths = [self.path / name for name in TABLES]
        return {path.name: path.read_text() for path in paths if path.exists()}

    def restore_tables(self, texts: dict[str, str]) -> None:
        """Write the tables back as they were; rows that were written later are removed."""
        for name in TABLES:
            if name in texts:
                write_text(self.path / name, texts[name])
            else:
                self.remove(name)

    def write_table(self, name: str, columns: tuple[str, ...], rows: list[dict]) -> None:
        write_text(self.path / name, table_text(columns, rows))

    def read_json(self, name: str) -> dict | None:
        """The JSON file's value; None if it is not there; InputError if it is not JSON."""
        path = self.path / name
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error})") from error

    def write_json(self, name: str, value: object) -> None:
        write_json(self.path / name, value)

    def remove(self, *names: str) -> None:
        """Delete those of the named files that exist."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def finish(self, final: dict) -> dict:
        """Write final.json: `final`, a checksum of each of the run's files, and one of itself."""
        paths = [self.path / name for name in SEALED if (self.path / name).exists()]
        final = final | {"files": {path.name: sha256_file(path) for path in paths}}
        final |= {"checksum": checksum(final)}
        self.write_json("final.json", final)
        return final

    def finished(self, weights: bool = False) -> dict | None:
        """final.json or None; InputError if it, or a file (weights.pt if `weights`), is damaged."""
        final, path = self.read_json("final.json"), self.path / "final.json"
        if final is None:
            return None
        if not isinstance(final, dict) or not {"checksum", "files"} <= final.keys():
            raise InputError(f"{path} is not a final record of this version")
        if final["checksum"] != checksum(final):
            raise InputError(f"{path} is not what was written: its checksum differs")
        for name, expected in final["files"].items():
            path = self.path / name
            if name in (WEIGHTS, LOWER_WEIGHTS) and not weights:
                continue
            if not path.exists():
                raise InputError(f"{path} is missing")
            if sha256_file(path) != expected:
                raise InputError(f"{path} is not what was written: its checksum differs")
        return final

    def save_tensors(self, name: str, value: dict) -> None:
        buffer = io.BytesIO()  # a full disk then raises OSError, not an error of torch's writer
        torch.save(value, buffer)
        write_bytes(self.path / name, buffer.getvalue())


class ReadOnlyFolder(RunFolder):
    """The run's folder in every process but the first, which alone writes: nothing is written."""

    def _ignore(self, *_arguments: object) -> None:
        """Write nothing."""

    append = restore_tables = write_table = write_json = save_tensors = remove = _ignore

    def finish(self, final: dict) -> dict:
        return final


def load_tensors(path: Path) -> dict:
    """Read tensors without running code. Raises InputError naming a missing or damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch does not compare the records with their CRC
                raise zipfile.BadZipFile
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"checkpoint {path} is missing: rerun the job that trains it") from error
    except Exception as error:  # torch raises many types for a damaged file
        raise InputError(
            f"checkpoint {path} is corrupt ({type(error).__name__}): delete it and run again"
        ) from error
