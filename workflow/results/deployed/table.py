"""The table of exported runs: accuracy of the file, its size, and the time of one image.

usage: python -m workflow.results.deployed.table results/smoke
"""

import argparse
from pathlib import Path

from lowbit_core.datasets.catalog import dataset
from lowbit_core.quantizers.bits import FLOAT_BITS, bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from workflow.results import labels
from workflow.results.columns import grouped, read_table, write_table
from workflow.results.main_table import latex_template, markdown_table, tex
from workflow.results.record import Record
from workflow.suite.jobs import ROLES

CONFIG = ("dataset", "arch", "method", "w_bits", "a_bits", "seed", "run_id")
HEADINGS = (
    "method", "bits", "seed", "role", "top-1", "after training", "same class, %", "bytes",
    "entropy-coded", "x smaller", "ms", "x torch", "x int8",
)  # fmt: skip
ALIGN = "llrlrrrrrrrrr"


def deploy_rows(record: Record) -> list[dict]:
    """One row for each run of a record whose exported file was measured, or why it has none.

    difference: top1 minus top1_training where the file saw all test images. Raises InputError for a
    record without measurements.
    """
    if not record.deployed:
        raise InputError(f"{record.folder} holds no measurements of exported runs (deploy.jsonl)")
    rows = []
    for run in record.trained:
        config = run["config"]
        measured = record.deployed.get(config["run_id"])
        if measured is None:
            continue
        row = {**measured, **{key: config[key] for key in CONFIG}}
        row |= {"suite": record.suite, "role": run["role"], "export": measured["status"]}
        if row["export"] == "exported":
            if row["images"] == dataset(row["dataset"]).test_images:
                row["difference"] = float(row["top1"] - row["top1_training"])
            row["compression"] = row["float32_bytes"] / row["file_bytes"]
            row |= {key: float(row[key]) for key in ("top1", "top1_training", "agreement")}
        rows.append(row)
    return sorted(rows, key=_order)


def _order(row: dict) -> tuple:
    network = row["dataset"], row["arch"]
    bits = row["w_bits"] != FLOAT_BITS, row["w_bits"], row["a_bits"]
    which = labels.method_order(row["method"]), row["seed"], ROLES.index(row["role"])
    return *network, *bits, *which, row["run_id"]


def cells_of(row: dict) -> list[str]:
    """The cells of a run below HEADINGS."""
    begin = [labels.method_label(row["method"]), bits_label(row["w_bits"], row["a_bits"])]
    begin += [str(row["seed"]), row["role"]]
    if row["export"] != "exported":
        return [*begin, row["export"], *["-"] * (len(HEADINGS) - len(begin) - 1)]
    return [
        *begin, f"{row['top1']:.2f}", f"{row['top1_training']:.2f}", f"{row['agreement']:.2f}",
        f"{row['file_bytes']:,}", f"{row['entropy_bytes']:,}", f"{row['compression']:.1f}",
        f"{row['ms']:.3f}", f"{row['x_torch']:.2f}",
        "-" if row["x_ort_int8"] is None else f"{row['x_ort_int8']:.2f}",
    ]  # fmt: skip


def caption(rows: list[dict], suite: str) -> str:
    """What the columns mean, in one paragraph."""
    images = sorted({row["images"] for row in rows if row["images"]})
    return (
        f"Suite {suite}: runs exported to one file each. Test top-1 in percent, of the file on "
        f"{' or '.join(f'{count:,}' for count in images) or 'no'} test images, and after training "
        "on all of them; the share of the images to which torch gives the same class; bytes of the "
        "file, those if an ideal coder packed its codes, and how much smaller the file is than "
        "float32; milliseconds of processor time of one image on one thread, and how many times as "
        "long torch takes in float32, and onnxruntime in int8. The last three columns depend on "
        "the machine."
    )


def _networks(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    return [
        (labels.network_name(mine[0]), mine) for mine in grouped(rows, "dataset", "arch").values()
    ]


def failures(rows: list[dict]) -> list[dict]:
    """The runs without a file."""
    return [row for row in rows if row["export"] != "exported"]


def markdown(rows: list[dict], suite: str) -> str:
    """One Markdown table for each network, and the reason of each run that has no file."""
    parts = [f"# Exported networks (suite: {suite})", caption(rows, suite)]
    for title, mine in _networks(rows):
        parts += [f"## {title}", markdown_table(list(HEADINGS), list(map(cells_of, mine)), ALIGN)]
    if failed := failures(rows):
        lines = [f"- `{row['run_id']}` ({row['export']}): {row['reason']}" for row in failed]
        parts += ["## Without a file", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def latex(rows: list[dict], suite: str) -> str:
    """A longtable with one block for each network."""
    blocks = [
        {"title": tex(title), "rows": [list(map(tex, cells_of(row))) for row in mine]}
        for title, mine in _networks(rows)
    ]
    return latex_template("table_deploy.tex.j2").render(
        caption=tex(caption(rows, suite)), suite=suite, blocks=blocks, align=ALIGN,
        headings=list(map(tex, HEADINGS)),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the results folder")
    args = parser.parse_args(argv)
    record = Record(args.folder / "record")
    write_table(args.folder / "table_deploy.csv", deploy_rows(record))
    rows = read_table(args.folder / "table_deploy.csv")  # so that all show the same digits
    write_text(args.folder / "table_deploy.md", markdown(rows, record.suite))
    write_text(args.folder / "table_deploy.tex", latex(rows, record.suite))


if __name__ == "__main__":
    run_cli(main)
