"""What plots are made from: the tables of a results folder, with names for their rows."""

from pathlib import Path
from typing import Protocol

import pandas as pd
from matplotlib.figure import Figure

from lowbit_core.quantizers.bits import bits_label
from workflow.results import analysis, labels
from workflow.results.columns import TABLES, read_table
from workflow.results.record import Record

SETTING = list(analysis.SETTING)  # pandas takes a tuple for one name
NETWORK = SETTING[:2]
NO_RUN = "no finished quantized run"
MOST_COLUMNS = 4  # settings or layers beside each other in a figure of two rows
Drawn = tuple[Figure, str] | str
"""A figure and what it shows, or the reason why there is nothing to draw."""


def read_frame(path: Path) -> pd.DataFrame:
    """A table with NaN for empty numbers, and with `bits` where it has bit-widths."""
    columns = TABLES[path.name]
    numbers = {column.name: float for column in columns if column.kind in ("number", "percent")}
    names = [column.name for column in columns]
    table = pd.DataFrame(read_table(path), columns=names).astype(numbers)
    if "w_bits" in names:
        table["bits"] = list(map(bits_label, table["w_bits"], table["a_bits"]))
    return table


class Data:
    """What the plots are made from; a table with bit-widths also has `bits`, such as W2A2.

    cells: cells of the main table with a finished run, and their cost; quantized: those that are
    not full precision; runs: finished runs of the main sweep; direct: finished runs of the
    direct-weights ablation; claims: comparisons; channels: one activation error a row. Raises
    InputError if a table is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        runs, cells = read_frame(folder / "results.csv"), read_frame(folder / "table_main.csv")
        direct, key = read_frame(folder / "ablation_direct_weights.csv"), [*SETTING, "method"]
        self.runs = runs[(runs["role"] == "run") & (runs["status"] == "done")]
        costs = self.runs.groupby(key)[["bitops", "size_bytes"]].mean()
        self.cells = cells[cells["n"] > 0].join(costs, on=key)
        self.quantized = self.cells[self.cells["method"] != "fp"]
        self.direct = direct[direct["status"] == "done"]
        self.claims = read_frame(folder / "claims.csv")
        self.channels = read_frame(folder / "ablation_channel_error.csv")
        self.epochs = read_frame(folder / "epochs.csv")
        record = Record(folder / "record")
        self.histograms = record.histograms
        self.note = note_of(record)


def note_of(record: Record) -> str:
    """The suite, for the headings of its plots."""
    note = f"suite: {record.suite}"
    is_paper = labels.is_paper_suite(record.suite)
    return note if is_paper else f"{note}, not comparable with published numbers"


class Cells(Protocol):
    """What a plot of accuracies needs: one row a network, bits and method, with `top1_mean`."""

    cells: pd.DataFrame
    quantized: pd.DataFrame


def panel_name(row: pd.Series, of: pd.DataFrame) -> str:
    """The network of a row; its data set too, if the rows of `of` have several."""
    is_one = of["dataset"].nunique() == 1
    return labels.arch_name(row["arch"]) if is_one else labels.network_name(row)


def run_name(run: pd.Series | dict) -> str:
    name = f"{labels.method_label(run['method'])}, {labels.arch_name(run['arch'])}"
    return f"{name}, {bits_label(run['w_bits'], run['a_bits'])}, seed {run['seed']}"


def of_network(table: pd.DataFrame, row: pd.Series | dict) -> pd.DataFrame:
    """The rows of `table` that have the data set and the network of `row`."""
    return table[(table["dataset"] == row["dataset"]) & (table["arch"] == row["arch"])]


def drawing_order(table: pd.DataFrame) -> list[str]:
    """The methods of `table`; the first method of the legend is drawn last, above the others."""
    return sorted(table["method"].unique(), key=labels.method_order, reverse=True)


def full_precision(data: Cells, row: pd.Series) -> pd.Series | None:
    """The full-precision cell of the network of `row`."""
    here = of_network(data.cells, row)
    return next((cell for _, cell in here.iterrows() if cell["method"] == "fp"), None)
