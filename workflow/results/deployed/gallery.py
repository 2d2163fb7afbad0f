"""What the gallery of a record shows: learned levels, codes, and images that few bits get wrong.

Of one representative network and bit-width it has every method: the levels of three layers epoch by
epoch, and how many weights have each code. Of every network it has a few test images that full
precision classifies right and one quantized run wrong.
"""

import base64
import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from lowbit_core.data.loader import make_loader
from lowbit_core.data.normalisation import MEAN_STD
from lowbit_core.datasets.catalog import dataset
from lowbit_core.datasets.manifest import read_labels, read_manifest
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.runtime.backend import pick_backend
from lowbit_core.runtime.run_folder import RunFolder
from workflow.comparisons import load_comparisons
from workflow.results.columns import grouped
from workflow.results.labels import method_order
from workflow.results.record import Record, finite, representative

MOST_IMAGES = 10
LARGEST_SIDE = 64  # pixels of an image in the gallery
STAGES = ("start", "end")
NO_GALLERY: dict = {"methods": [], "networks": []}
RUN_KEYS = ("run_id", "dataset", "arch", "method", "w_bits", "a_bits", "seed")


def make_gallery(record: Record, measured: dict[str, dict], runs: Path, data: Path) -> dict:
    """{"methods": [levels and codes of a run], "networks": [images of a network]}.

    measured: the rows of the runs that may be shown, with their `codes` and `predictions`. runs,
    data: the folders of runs and of prepared data sets.
    """
    shown = [
        run["config"]
        for run in record.trained
        if run["role"] == "run"
        and measured.get(run["config"]["run_id"], {}).get("status") == "exported"
    ]
    quantized = [run for run in shown if (run["w_bits"], run["a_bits"]) != (FLOAT_BITS,) * 2]
    methods = []
    if of := representative(quantized):
        same = [run for run in quantized if _alike(run) == _alike(of)]
        methods = [_learned(run, measured[run["run_id"]], runs) for run in same]
    networks = [
        _mistakes(mine, [run for run in shown if run["method"] == "fp"], measured, data)
        for _, mine in sorted(grouped(quantized, "dataset", "arch").items())
    ]
    return {"methods": methods, "networks": [one for one in networks if one]}


def joined_galleries(earlier: dict, new: dict, measured: Iterable[str]) -> dict:
    """One gallery of two that were made from parts of one record.

    measured: the run_ids of which the record has measurements; an entry of others is left out. The
    setting, and of each network the run, that stands for all is shown; what is in both is `new`.
    """
    parts = [
        [one for one in gallery["methods"] if one["run_id"] in measured]
        for gallery in (earlier, new)
    ]
    of = representative(parts[1] + parts[0])
    same = {one["method"]: one for part in parts for one in part if _alike(one) == _alike(of)}
    networks = [
        one
        for gallery in (new, earlier)
        for one in gallery["networks"]
        if {one["run_id"], one["fp_run_id"]} <= {*measured}
    ]
    return {
        "methods": sorted(same.values(), key=lambda one: method_order(one["method"])),
        "networks": [
            representative(mine) for _, mine in sorted(grouped(networks, "dataset", "arch").items())
        ],
    }


def _alike(run: dict) -> tuple:
    """What the runs of all methods that are shown beside each other have in common."""
    return run["dataset"], run["arch"], run["w_bits"], run["a_bits"], run["seed"]


def _about(run: dict) -> dict:
    return {key: run[key] for key in RUN_KEYS}


# -- levels and codes ------------------------------------------------------------------------


def _learned(run: dict, row: dict, runs: Path) -> dict:
    """The codes of a run ([layer, counts] of each layer), and of a few layers the levels.

    levels: a list of {layer, epochs: [[epoch, lowest, highest level]], start, end: the levels of
    channel 0, empty where the run kept none}.
    """
    folder = runs / run["run_id"]
    kept = RunFolder(folder).read_json("weight_histograms.json") or {}
    path, states = folder / "weight_state.csv", {}  # a run of float32 weights has none
    if path.exists():
        with path.open(newline="") as file:
            states = grouped(csv.DictReader(file), "layer")
    names = [layer for layer in states if layer in kept] or list(states)
    levels = [
        {
            "layer": layer,
            "epochs": [
                [int(row["epoch"]), finite(row["level_min"]), finite(row["level_max"])]
                for row in states[layer]
            ],
            **{stage: kept.get(layer, {}).get(stage, {}).get("levels", []) for stage in STAGES},
        }
        for layer in dict.fromkeys(names[i] for i in (0, len(names) // 2, -1) if names)
    ]
    return {**_about(run), "levels": levels, "codes": row["codes"]}


# -- images ----------------------------------------------------------------------------------


def _mistakes(
    quantized: list[dict], full: list[dict], measured: dict[str, dict], data: Path
) -> dict | None:
    """Images of a network that the full-precision run gets right and a quantized one wrong.

    quantized: the network's runs, of which the one that stands for them is taken, of the
    benchmark's own method if there is one. full: full-precision runs. None without a partner.
    """
    own = [run for run in quantized if run["method"] == load_comparisons().method]
    run = representative(own or quantized)
    same = ("dataset", "arch", "seed")
    partners = [fp for fp in full if all(fp[key] == run[key] for key in same)]
    if not partners:
        return None
    right, wrong = (measured[one["run_id"]]["predictions"] for one in (partners[0], run))
    folder = data / run["dataset"]
    both = min(len(right), len(wrong))  # they may have been measured on more and on fewer images
    labels = read_labels(folder, "test")[:both].tolist()
    differ = [
        i
        for i, (label, fp, low) in enumerate(zip(labels, right[:both], wrong[:both], strict=True))
        if fp == label != low
    ]
    names = read_manifest(folder, "test")["class_names"]
    chosen = differ[:MOST_IMAGES]
    images = [
        {
            "index": index,
            "png": png,
            "true": names[labels[index]],
            "fp": names[right[index]],
            "quantized": names[wrong[index]],
        }
        for index, png in zip(chosen, _pictures(run, chosen, folder), strict=True)
    ]
    counts = {"looked_at": len(labels), "found": len(differ)}
    return {**_about(run), "fp_run_id": partners[0]["run_id"], **counts, "images": images}


def _pictures(run: dict, indices: list[int], folder: Path) -> list[str]:
    """Test images as PNG in base64, as the network sees them before they are normalised."""
    if not indices:
        return []
    data = dataset(run["dataset"])
    backend = "torch" if data.stored_raw else pick_backend(run["loader"])
    loader = make_loader(
        folder,
        "test",
        batch_size=len(indices),
        train=False,
        indices=np.array(indices),
        backend=backend,
    )
    mean, std = (np.array(values)[:, None, None] for values in MEAN_STD[data.name])
    pictures = []
    for images, _ in loader.epoch(0):
        for image in images.numpy():
            pixels = np.rint(255 * (image * std + mean)).clip(0, 255).astype(np.uint8)
            pictures.append(_png(pixels))
    return pictures


def _png(pixels: np.ndarray) -> str:
    """Pixels (C, H, W) uint8 as PNG in base64; larger images are made smaller."""
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
