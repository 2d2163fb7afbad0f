"""Reads the network of a finished run and writes it to a file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import baselines
from deploy import fileformat
from deploy.export.size import sizes
from deploy.export.trace import trace
from deploy.export.verify import verify
from deploy.fileformat import About
from deploy.onnxfile import need
from lowbit_core.data.normalisation import CENTER_RATIO, MEAN_STD
from lowbit_core.datasets.catalog import Dataset, dataset
from lowbit_core.datasets.manifest import read_manifest
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import replace_file, write_bytes
from lowbit_core.runtime.run_folder import RunFolder
from lowbit_core.training.trained import trained_network

# What a file says of the run that it comes from, besides its test accuracy.
ORIGIN = ("run_id", "dataset", "arch", "arch_options", "method", "w_bits", "a_bits", "policy")


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run: its configuration, its final record and its network, ready to evaluate."""

    config: dict
    final: dict
    model: nn.Module
    data: Dataset


def read_run(folder: Path) -> TrainedRun:
    """The run in `folder`. Raises InputError where it is not finished, diverged or damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such run folder")
    files = RunFolder(folder)
    config, final = files.read_json("config.json"), files.finished(weights=True)
    if config is None or final is None:
        raise InputError(f"{folder}: not the folder of a finished run: it has no final.json")
    if final["status"] != "done":
        raise InputError(f"{folder}: the run is {final['status']}: there is no network to export")
    data, method = dataset(config["dataset"]), baselines.method(config["method"])
    model = trained_network(folder, method)
    model.eval().to(memory_format=torch.channels_last)
    return TrainedRun(config, final, model, data)


def export_run(folder: Path, out: Path, data_folder: Path) -> dict:
    """Write the run's network to `out`; returns its sizes (see `sizes`).

    data_folder holds the prepared data sets; class names are read from there, if it is there.
    """
    run = read_run(folder)
    network = trace(run.model, (run.data.channels, run.data.side, run.data.side))
    fileformat.save_checked(out, network, about(run, data_folder), f"the network of {folder}")
    return sizes(out, network)


def export_onnx(
    folder: Path, out: Path, data_folder: Path, *, as_qonnx: bool = False
) -> tuple[int, str]:
    """Write the run's network to `out` as ONNX; returns the size in bytes and what `verify` says.

    as_qonnx: as QONNX, whose quantizers are single nodes. The file's metadata say how images are
    normalised, and name the classes. Raises InputError where the file is not verified to compute
    the network: `out` is not written then.
    """
    need("onnx")
    from deploy.export.onnx import onnx_model
    from deploy.export.qonnx import qonnx_model

    run = read_run(folder)
    network = trace(run.model, (run.data.channels, run.data.side, run.data.side))
    model = qonnx_model(network) if as_qonnx else onnx_model(network)
    for key, value in asdict(about(run, data_folder)).items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    data = model.SerializeToString(deterministic=True)
    with replace_file(out) as temporary:
        write_bytes(temporary, data)
        try:
            verified = verify(temporary, network, run.model)
        except InputError as error:
            reason = str(error).removeprefix(f"{temporary}: ")
            raise InputError(f"{out} is not written: {reason}") from None
    return len(data), verified


def about(run: TrainedRun, data_folder: Path) -> About:
    """What a file says of a run besides its network."""
    mean, std = MEAN_STD[run.data.name]
    origin = {key: run.config[key] for key in ORIGIN}
    return About(
        origin | {"top1": run.final["top1"]},
        class_names(run.data, data_folder),
        mean,
        std,
        None if run.data.stored_raw else CENTER_RATIO,
    )


def class_names(data: Dataset, data_folder: Path) -> tuple[str, ...]:
    """The names in the data set's manifest; the numbers of the classes where there is none."""
    try:
        return tuple(read_manifest(data_folder / data.name, "test")["class_names"])
    except InputError:
        return tuple(str(number) for number in range(data.classes))
