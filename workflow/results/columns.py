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
from collections.abc import Iterable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import write_bytes
from workflow.results.labels import method_names
from workflow.suite.jobs import ROLES

STATUSES = ("done", "diverged")
VERDICTS = ("leads", "trails", "equal", "undecided")
FORMATS = {"percent": ".3f", "p": ".3g"}
AGAIN = "delete it and run `snakemake` again"
REFERENCE = Path(__file__).parents[2] / "results" / "reference"  # what is committed
COMMITTED = "restore it with `git checkout`"  # of records whose runs may be nowhere else


NETWORK = "suite dataset arch"
SETTING = f"{NETWORK} w_bits a_bits"
KINDS = {
    "name": f"{NETWORK} run_id layer source_url",
    "text": """
        diverged_layer first_last first_last_layer shortcut exceptions weight_granularity
        activation_granularity init pretrained quantizer_weight_decay quantizer_lr_scale schedule
        epoch_reported augmentation loader compile precision code_version torch torchvision ffcv
        python hardware instruction_set variant trained_with other label best published_policy
        published_source published_note bits claim primary note recipe base change option options
        value reason kernels""",
    "whole": "w_bits a_bits seed restarts epoch channel seeds channels n pairs",
    "percent": """
        top1 top5 fp_top1 delta checkpoint_top1 val_top1 share_of_channels_improved top1_mean
        top1_std other_top1_mean top1_difference_mean top1_difference_std top1_difference_low
        top1_difference_high delta_mean val_top1_mean val_top1_std top1_off_mean
        top1_on_mean top1_training difference agreement""",
    "p": "p p_adjusted",
    "method": "method",
}
"""Kinds of columns -> the columns; a column that is not listed holds numbers."""
CHOICES = {
    "role": ROLES, "status": STATUSES, "verdict": VERDICTS, "zero_level": ("yes", "no", ""),
    "export": ("exported", "diverged", "refused"),
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    kind: str
    """name (text that is never empty), text, whole, number, percent, p, method or choice."""

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
            legal = method_names() if self.kind == "method" else CHOICES[self.name]
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


def columns(names: str) -> tuple[Column, ...]:
    """The columns of the names, which are separated by spaces."""
    kinds = {name: kind for kind, listed in KINDS.items() for name in listed.split()}
    kinds |= dict.fromkeys(CHOICES, "choice")
    return tuple(Column(name, kinds.get(name, "number")) for name in names.split())


NAMES = {
    "results.csv": f"""
        {NETWORK} width method w_bits a_bits seed role status restarts diverged_layer top1 top5
        fp_top1 delta checkpoint_top1 val_top1 epochs size_bytes bitops first_last shortcut
        exceptions signed_layers zero_level weight_granularity activation_granularity init
        pretrained options quantizer_weight_decay quantizer_lr_scale schedule epoch_reported
        batch_size lr weight_decay augmentation train_images val_images loader compile precision
        code_version torch torchvision ffcv python hardware instruction_set kernel_lanes threads
        run_id""",
    "timings.csv": "run_id seconds images_per_s data_wait_share peak_memory_mb",
    "epochs.csv": """
        run_id epoch train_loss train_top1 val_loss val_top1 mismatch flip_rate level_span
        used_levels""",
    "diagnostics.csv": f"""
        {NETWORK} method w_bits a_bits seed role status top1 mismatch_start mismatch_end
        flip_rate_first flip_rate_end oscillating used_level_share used_level_share_lowest
        level_span dead_channel_share run_id""",
    "ablation_channel_error.csv": f"""
        {NETWORK} method w_bits a_bits seed run_id layer channel variance error_equal
        error_inverse_variance error_median""",
    "ablation_channel_error_summary.csv": f"""
        {NETWORK} method w_bits a_bits variant seeds channels share_of_channels_improved
        median_error_equal median_error_variant trained_with top1_mean top1_std top1_n""",
    "ablation_direct_weights.csv": f"""
        {SETTING} seed method status top1 mismatch_start mismatch_end flip_rate_mean flip_rate_end
        used_level_share run_id""",
    "ablation_direct_weights_summary.csv": f"""
        {SETTING} method other n top1_mean other_top1_mean top1_difference_mean
        top1_difference_std mismatch_end other_mismatch_end mismatch_end_difference_mean
        mismatch_end_difference_std flip_rate_end other_flip_rate_end""",
    "ablation_options.csv": f"""
        {SETTING} method option value base n diverged off_diverged top1_off_mean top1_on_mean
        top1_difference_mean top1_difference_std top1_difference_low top1_difference_high p
        p_adjusted verdict""",
    "table_main.csv": f"""
        {SETTING} method label zero_level n diverged top1_mean top1_std delta_mean best
        published_top1 published_difference published_policy published_source published_note""",
    "claims.csv": f"""
        {NETWORK} bits claim method other primary n pairs diverged other_diverged top1_mean
        other_top1_mean top1_difference_mean top1_difference_std top1_difference_low
        top1_difference_high p p_adjusted verdict note""",
    "table_deploy.csv": f"""
        {NETWORK} method w_bits a_bits seed role export reason images top1 top1_training difference
        agreement file_bytes entropy_bytes float32_bytes compression ms x_torch x_ort_int8
        kernels run_id""",
    "variants.csv": f"""
        {NETWORK} bits method recipe change n diverged val_top1_mean val_top1_std top1_mean top1_std
        top1_difference_mean top1_difference_low top1_difference_high p p_adjusted verdict""",
}
TABLES = {table: columns(names) for table, names in NAMES.items()}
"""The columns of every table, by its file's name."""


def grouped(rows: Iterable[dict], *names: str) -> dict[Any, list[dict]]:
    """The rows by their values of one column, or of several as a tuple; both keep their order."""
    groups: dict[Any, list[dict]] = {}
    key = itemgetter(*names)
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


# -- writing and reading ---------------------------------------------------------------------


def write_table(path: str | Path, rows: list[dict]) -> None:
    """Write `rows` (absent keys are empty cells) as the table that the file's name says."""
    table = TABLES[Path(path).name]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.name for column in table])
    writer.writerows([column.text(row.get(column.name)) for column in table] for row in rows)
    write_sealed(path, text.getvalue().encode())


def read_table(path: str | Path) -> list[dict]:
    """The rows of a table: numbers as int or float, text as str, empty cells as None.

    Raises InputError if the table is not what was written, or its columns or a cell are not those
    that its name says.
    """
    table = TABLES[Path(path).name]
    committed = REFERENCE.resolve() in Path(path).resolve().parents
    remedy = "delete it and run `snakemake reference`" if committed else AGAIN
    if committed and not Path(path).exists():
        raise InputError(f"{path} is missing: `snakemake reference` makes it")
    rows = read_cells(path, read_sealed(path, committed), table, remedy)
    return [{c.name: c.value(row[c.name]) for c in table} for row in rows]


def read_cells(
    path: str | Path, data: bytes, table: tuple[Column, ...], remedy: str
) -> list[dict[str, str]]:
    """The rows of a CSV text as they stand there; InputError, with a remedy, for a wrong cell."""
    try:
        lines = list(csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV table ({error}): {remedy}") from None
    if not lines:
        raise InputError(f"{path} is empty, which no CSV table is: {remedy}")
    header, *rows = lines
    expected = [column.name for column in table]
    if header != expected:
        missing = [name for name in expected if name not in header]
        unknown = [name for name in header if name not in expected]
        wrong = f"lacks the columns {', '.join(missing)[:200]!r}" if missing else ""
        wrong = wrong or (f"has unknown columns {', '.join(unknown)[:200]!r}" if unknown else "")
        wrong = wrong or "has its columns in another order"
        raise InputError(f"{path} {wrong}; legal are {', '.join(expected)}: {remedy}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(
                f"{path}, row {number} has {len(row)} cells of {len(header)}: {remedy}"
            )
        for column, cell in zip(table, row, strict=True):
            if (legal := column.fault(cell)) is not None:
                raise InputError(
                    f"{path}, row {number}: {column.name} is {cell[:80]!r}, not {legal}: {remedy}"
                )
    return [dict(zip(header, row, strict=True)) for row in rows]


def write_sealed(path: str | Path, data: bytes) -> None:
    """Write a file (compressed if it ends with .gz) and, hidden beside it, its SHA-256."""
    path = Path(path)
    data = gzip.compress(data, mtime=0) if path.suffix == ".gz" else data
    seal = hashlib.sha256(data).hexdigest().encode() + b"\n"
    earlier = _seal(path).read_bytes() if path.exists() and _seal(path).exists() else b""
    write_bytes(_seal(path), seal + earlier)  # while the file is replaced, either one is right
    write_bytes(path, data)
    write_bytes(_seal(path), seal)


def read_sealed(path: str | Path, committed: bool = False) -> bytes:
    """What `write_sealed` wrote; InputError if it is missing or not what was written.

    committed: the file is in Git, and its runs may be lost, so that no command can make it again.
    Git replaces it, but not the hidden digest beside it, so the digest is not compared.
    """
    path = Path(path)
    again, missing = (COMMITTED, COMMITTED) if committed else (AGAIN, "run `snakemake` again")
    if not path.exists():
        raise InputError(f"{path} is missing: {missing}")
    data, seal = path.read_bytes(), _seal(path)
    is_sealed = seal.exists() and not committed
    if is_sealed and hashlib.sha256(data).hexdigest().encode() not in seal.read_bytes().split():
        raise InputError(f"{path} is not what was written, its checksum differs: {again}")
    try:
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): {again}") from error


def _seal(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")
