"""The tables: their columns with types and text formats; writing, reading and checking them.

A table is written together with a hidden file that holds its SHA-256, so that a damaged table is
noticed when it is read.
"""

import csv
import gzip
import hashlib
import io
import math
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_bytes
from workflow.results.labels import method_names
from workflow.suite.jobs import ROLES

STATUSES = ("done", "diverged")
VERDICTS = ("leads", "trails", "equal", "undecided")
FORMATS = {"percent": ".3f", "p": ".3g"}
AGAIN = "delete it and run `snakemake` again"


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: str = "text"
    """name (text that is never empty), text, whole, number, percent, p, method or choice."""
    legal: tuple[str, ...] = ()
    """The values of a choice."""

    def text(self, value: object) -> str:
        """The cell of `value`: empty for None, a fixed format for floats."""
        if value is None:
            return ""
        if isinstance(value, float):
            text = format(value, FORMATS.get(self.kind, ".6g"))
            return "0.000" if text == "-0.000" else text
        return str(value)

    def fault(self, cell: str) -> str | None:
        """What the cell should be; None if it is that."""
        if self.kind in ("choice", "method"):
            legal = method_names() if self.kind == "method" else self.legal
            return None if cell in legal else f"one of {', '.join(legal)}"
        if self.kind in ("text", "name"):
            is_right = cell.isprintable() and (cell or self.kind == "text")
            return None if is_right else "printable text"
        if self.kind == "whole":
            return None if cell.isdecimal() and len(cell) < 16 else "a whole number"
        try:
            return None if cell == "" or math.isfinite(float(cell)) else "a finite number"
        except ValueError:
            return "a number"

    def value(self, cell: str) -> int | float | str | None:
        """The value of a cell that has no fault; None for an empty one."""
        if cell == "":
            return None
        if self.kind not in ("whole", "number", "percent", "p"):
            return cell
        return int(cell) if cell.isdecimal() else float(cell)


def _columns(kind: str, names: str) -> tuple[Column, ...]:
    return tuple(Column(name, kind) for name in names.split())


names, texts, wholes, numbers, percents, p_values = (
    partial(_columns, kind) for kind in ("name", "text", "whole", "number", "percent", "p")
)
METHOD = Column("method", "method")
STATUS = Column("status", "choice", STATUSES)
ROLE = Column("role", "choice", ROLES)
VERDICT = Column("verdict", "choice", VERDICTS)
BITS = wholes("w_bits a_bits")
NETWORK = names("suite dataset arch")

TABLES: dict[str, tuple[Column, ...]] = {
    "results.csv": (
        *NETWORK, *numbers("width"), METHOD, *BITS, *wholes("seed"), ROLE, STATUS,
        *wholes("restarts"), *texts("diverged_layer"),
        *percents("top1 top5 fp_top1 delta checkpoint_top1 val_top1"),
        *numbers("epochs size_bytes bitops"), *texts("first_last shortcut exceptions"),
        *numbers("signed_layers"),
        *texts("weight_granularity activation_granularity init pretrained"),
        *texts("quantizer_weight_decay quantizer_lr_scale schedule epoch_reported"),
        *numbers("batch_size lr weight_decay"), *texts("augmentation"),
        *numbers("train_images val_images"),
        *texts("loader compile precision code_version torch torchvision ffcv python hardware"),
        *numbers("threads"), *names("run_id"),
    ),
    "timings.csv": (
        *names("run_id"), *numbers("seconds images_per_s data_wait_share peak_memory_mb"),
    ),
    "epochs.csv": (
        *names("run_id"), *wholes("epoch"), *numbers("train_loss"), *numbers("train_top1 val_loss"),
        *percents("val_top1"), *numbers("mismatch flip_rate level_span used_levels"),
    ),
    "diagnostics.csv": (
        *NETWORK, METHOD, *BITS, *wholes("seed"), ROLE, STATUS, *percents("top1"),
        *numbers("mismatch_start mismatch_end flip_rate_first flip_rate_end"),
        *numbers("used_level_share used_level_share_lowest level_span dead_channel_share"),
        *names("run_id"),
    ),
    "ablation_channel_error.csv": (
        *NETWORK, METHOD, *BITS, *wholes("seed"), *names("run_id layer"), *wholes("channel"),
        *numbers("variance error_equal error_inverse_variance error_median"),
    ),
    "ablation_channel_error_summary.csv": (
        *NETWORK, METHOD, *BITS, *texts("variant"), *wholes("seeds channels"),
        *percents("share_of_channels_improved"),
        *numbers("median_error_equal median_error_variant"), *texts("trained_with"),
        *percents("top1_mean top1_std"), *numbers("top1_n"),
    ),
    "ablation_direct_weights.csv": (
        *NETWORK, *BITS, *wholes("seed"), METHOD, STATUS, *percents("top1"),
        *numbers("mismatch_start mismatch_end flip_rate_mean flip_rate_end used_level_share"),
        *names("run_id"),
    ),
    "ablation_direct_weights_summary.csv": (
        *NETWORK, *BITS, METHOD, *texts("other"), *wholes("n"),
        *percents("top1_mean other_top1_mean top1_difference_mean top1_difference_std"),
        *numbers("mismatch_end other_mismatch_end"),
        *numbers("mismatch_end_difference_mean mismatch_end_difference_std"),
        *numbers("flip_rate_end other_flip_rate_end"),
    ),
    "table_main.csv": (
        *NETWORK, *BITS, METHOD, *texts("label"), *wholes("n"), *numbers("diverged"),
        *percents("top1_mean top1_std delta_mean"), *texts("best"),
        *numbers("published_top1 published_difference"),
        *texts("published_policy published_source published_note"),
    ),
    "claims.csv": (
        *NETWORK, *texts("bits claim"), METHOD, *texts("other primary"), *wholes("n pairs"),
        *numbers("diverged other_diverged"),
        *percents("top1_mean other_top1_mean top1_difference_mean top1_difference_std"),
        *percents("top1_difference_low top1_difference_high"), *p_values("p p_adjusted"),
        VERDICT, *texts("note"),
    ),
    "variants.csv": (
        *NETWORK, *texts("bits"), METHOD, *texts("recipe change"), *wholes("n"),
        *numbers("diverged"), *percents("val_top1_mean val_top1_std top1_difference_mean"),
        *percents("top1_difference_low top1_difference_high"), *p_values("p p_adjusted"),
        VERDICT,
    ),
}  # fmt: skip
"""The columns of every table, by its file's name."""


# -- writing and reading ---------------------------------------------------------------------


def write_table(path: str | Path, rows: list[dict]) -> None:
    """Write `rows` (absent keys are empty cells) as the table that the file's name says."""
    columns = TABLES[Path(path).name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    writer.writerows([column.text(row.get(column.name)) for column in columns] for row in rows)
    write_sealed(path, text.getvalue().encode())


def read_table(path: str | Path) -> list[dict]:
    """The rows of a table: numbers as int or float, text as str, empty cells as None.

    Raises InputError if the table is not what was written, or its columns or a cell are not those
    that its name says.
    """
    path = Path(path)
    columns = TABLES[path.name]
    data = read_sealed(path)
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV table ({error or 'it is empty'}): {AGAIN}") from None
    expected = [column.name for column in columns]
    if header != expected:
        wrong = [name for name in expected if name not in header] or header
        raise InputError(f"{path} lacks the columns {', '.join(wrong)[:200]!r}: {AGAIN}")
    found = []
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path}, row {number} has {len(row)} cells of {len(header)}: {AGAIN}")
        for column, cell in zip(columns, row, strict=True):
            if (legal := column.fault(cell)) is not None:
                raise InputError(
                    f"{path}, row {number}: {column.name} is {cell[:80]!r}, not {legal}: {AGAIN}"
                )
        found.append({c.name: c.value(cell) for c, cell in zip(columns, row, strict=True)})
    return found


def write_sealed(path: str | Path, data: bytes) -> None:
    """Write a file (compressed if it ends with .gz) and, hidden beside it, its SHA-256."""
    path = Path(path)
    data = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    write_bytes(_seal(path), hashlib.sha256(data).hexdigest().encode() + b"\n")
    write_bytes(path, data)


def read_sealed(path: str | Path) -> bytes:
    """What `write_sealed` wrote; InputError if it is missing or not what was written."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} is missing: run `snakemake` again")
    data, seal = path.read_bytes(), _seal(path)
    if seal.exists() and seal.read_bytes().strip() != hashlib.sha256(data).hexdigest().encode():
        raise InputError(f"{path} is not what was written, its checksum differs: {AGAIN}")
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): {AGAIN}") from error


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
