"""The tables of docs/deploy.md, from the rows of deploy.csv."""

import pandas as pd

from benchmarks.deploy.peers import PEERS
from workflow.results.labels import method_label
from workflow.results.main_table import markdown_table

LABELS = {
    "torch": "torch",
    "torch_frozen": "torch, frozen",
    "ort_fp32": "ORT float32",
    "ort_int8": "ORT int8",
    "openvino_int8": "OpenVINO int8",
}
RATIOS = ("torch", "ort_int8")  # of layers


def network_table(found: pd.DataFrame, network: str, batch: int, threads: int = 1) -> str:
    """A row for each peer and width: kernels, ms, the ratio to every peer, and bytes."""
    found = found.query("network == @network and batch == @batch and threads == @threads")
    rows = [
        [
            _name(row),
            "" if row["method"] in ("fp", "int8") else row["kernel"],
            f"{row['ms']:.3g}",
            *(_ratio(row[f"x_{peer}"]) for peer in PEERS),
            "" if pd.isna(row["file_bytes"]) else f"{int(row['file_bytes']):,}",
        ]
        for _, row in found.iterrows()
    ]
    header = ["", "kernels", "ms", *(LABELS[peer] for peer in PEERS), "bytes"]
    return _without_empty(header, rows)


def layer_table(found: pd.DataFrame) -> str:
    """Single convolutions: ms of the peers, then ratios to torch / to onnxruntime int8."""
    found = found[found["network"].str.startswith("conv")]
    names = list(found["network"].unique())
    rows = []
    for name, mine in found.groupby(found.apply(_name, axis=1), sort=False):
        by_layer = mine.set_index("network")
        is_peer = by_layer["method"].iloc[0] in ("fp", "int8")
        cells = [
            f"{row['ms']:.3g}"
            if is_peer
            else " / ".join(_ratio(row[f"x_{peer}"]) for peer in RATIOS)
            for row in (by_layer.loc[layer] for layer in names)
        ]
        rows.append([f"{name}, ms" if is_peer else name, *cells])
    header = ["", *(name.removeprefix("conv 3x3 ") for name in names)]
    return markdown_table(header, rows, "l" + "r" * len(names))


def _name(row: pd.Series) -> str:
    if row["method"] == "fp":
        return {"onnxruntime": "onnxruntime float32"}.get(row["kernel"], row["kernel"])
    if row["method"] == "int8":
        return f"{row['kernel']} int8"
    return f"W{row['w_bits']}A{row['a_bits']}, {method_label(row['method'])}"


def _ratio(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"


def _without_empty(header: list[str], rows: list[list[str]]) -> str:
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in rows]
    numbers = {"": "l", "kernels": "l"}
    return markdown_table(
        [header[i] for i in kept], cells, "".join(numbers.get(header[i], "r") for i in kept)
    )
