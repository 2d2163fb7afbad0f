"""The tables of docs/deploy_speed.md, from the rows of deploy.csv."""

from pathlib import Path

import pandas as pd

from benchmarks.deploy.peers import PEERS
from deploy import fileformat
from deploy.export.size import sizes
from lowbit_core.quantizers.bits import bits_label
from workflow.results.labels import method_label, method_order
from workflow.results.main_table import markdown_table

LABELS = {
    "torch": "torch",
    "torch_frozen": "torch, frozen",
    "ort_fp32": "ORT float32",
    "ort_int8": "ORT int8",
    "openvino_int8": "OpenVINO int8",
}
RATIOS = ("torch", "ort_int8")  # of layers, by default
UNIFORM, BASIS = "pact", "lq_nets"
AIM_COLUMNS = (
    ("resnet18 224x224", "ResNet-18", "torch"),
    ("resnet18 224x224", "ResNet-18", "ort_int8"),
    ("resnet18 224x224", "ResNet-18", "openvino_int8"),
    ("resnet20 32x32", "ResNet-20", "ort_int8"),
)
FLOORS = {
    (1, 1, UNIFORM): (10, 2.4, 2, 2.5),
    (1, 2, UNIFORM): (7.5, 1.8, 1.5, 1.6),
    (2, 2, UNIFORM): (5.5, 1.35, 1.1, 1.2),
    (2, 2, BASIS): (5, 1.2, 1, 1.15),
    (3, 3, UNIFORM): (4, 1, 0.85, 1),
    (4, 4, UNIFORM): (4, 0.95, 0.8, 1),
}
"""The least ratio of each bit-width and method, in the order of AIM_COLUMNS."""
AIMS = {
    (1, 1, UNIFORM): (13, 3, 2.5, 3),
    (1, 2, UNIFORM): (10, 2.3, 1.9, 2.2),
    (2, 2, UNIFORM): (7, 1.7, 1.4, 1.6),
    (2, 2, BASIS): (6, 1.4, 1.15, 1.5),
    (3, 3, UNIFORM): (5.5, 1.3, 1.1, 1),
    (4, 4, UNIFORM): (4.8, 1.1, 1, 1),
}
"""The ratio to aim at, which is not below the floor."""


def network_table(found: pd.DataFrame, network: str, batch: int, threads: int = 1) -> str:
    """A row for each peer and bit-width: kernels, ms, the ratio to every peer, and bytes."""
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


def layer_table(found: pd.DataFrame, ratios: tuple[str, ...] = RATIOS) -> str:
    """Single convolutions: ms of the peers, then ratios to the peers of `ratios`, by a slash."""
    found = found[found["network"].str.startswith("conv")]
    names = list(found["network"].unique())
    rows = []
    for name, mine in found.groupby(found.apply(_name, axis=1), sort=False):
        by_layer = mine.set_index("network")
        is_peer = by_layer["method"].iloc[0] in ("fp", "int8")
        cells = [
            f"{row['ms']:.3g}"
            if is_peer
            else " / ".join(_ratio(row[f"x_{peer}"]) for peer in ratios)
            for row in (by_layer.loc[layer] for layer in names)
        ]
        rows.append([f"{name}, ms" if is_peer else name, *cells])
    header = ["", *(name.removeprefix("conv 3x3 ") for name in names)]
    return markdown_table(header, rows, "l" + "r" * len(names))


def aims_table(found: pd.DataFrame) -> str:
    """Measured (floor, aim), one image on one thread; in bold where the floor is reached."""
    found = found.query("batch == 1 and threads == 1")
    rows = []
    for (w_bits, a_bits, method), floors in FLOORS.items():
        cells = [f"W{w_bits}A{a_bits}, {'uniform' if method == UNIFORM else 'basis'}"]
        mine = found.query("w_bits == @w_bits and a_bits == @a_bits and method == @method")
        ratios, aims = mine.set_index("network"), AIMS[w_bits, a_bits, method]
        for (network, _, peer), floor, aim in zip(AIM_COLUMNS, floors, aims, strict=True):
            ratio = ratios.at[network, f"x_{peer}"]
            text = f"**{ratio:.2f}**" if ratio >= floor else f"{ratio:.2f}"
            cells.append(f"{text} ({floor:g}, {aim:g})")
        rows.append(cells)
    header = ["", *(f"{name}, {LABELS[peer]}" for _, name, peer in AIM_COLUMNS)]
    return markdown_table(header, rows, "l" + "r" * len(AIM_COLUMNS))


def threads_table(found: pd.DataFrame) -> str:
    """ms of one image on one thread and on two, and the ratio, of each peer and bit-width."""
    networks = {name: label for name, label, _ in AIM_COLUMNS}
    found = found[(found["batch"] == 1) & found["network"].isin(list(networks))]
    names = found.apply(_name, axis=1)
    times = found.set_index(["network", names, "threads"])["ms"]
    rows = []
    for name in names.unique():
        cells = [name]
        for network in networks:
            one, two = times[network, name, 1], times[network, name, 2]
            cells += [f"{one:.3g}", f"{two:.3g}", _ratio(one / two)]
        rows.append(cells)
    header = [f"{label}, {of}" for label in networks.values() for of in ("one", "two", "ratio")]
    return markdown_table(["", *header], rows, "l" + "r" * len(header))


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


def sizes_table(folder: Path) -> str:
    """Bytes of each exported file in a folder, of what it holds, and of what coders make of it."""
    rows = []
    for path in folder.glob("*.lowbit"):
        graph, about = fileformat.load(path)
        method, bits = about.origin["method"], (about.origin["w_bits"], about.origin["a_bits"])
        found = sizes(path, graph)
        cells = [f"{method_label(method)}, {bits_label(*bits)}"]
        cells += [f"{found[name]:,}" for name in ("float32", "information", "file")]
        cells += [f"{100 * (found['file'] / found['information'] - 1):.1f} %"]
        cells += [f"{found[name]:,}" for name in ("entropy", "compressed")]
        rows.append((bits, method_order(method), cells))
    header = ["network", "float32", "information", "file", "more", "ideal coder", "LZMA"]
    return markdown_table(header, [cells for *_, cells in sorted(rows)], "l" + "r" * 6)
