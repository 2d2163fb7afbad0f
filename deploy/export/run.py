"""Reads the network of a finished run and writes it to a file."""

import csv
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
from lowbit_core.quantizers.bits import bits_label, parse_bits
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import replace_file, write_bytes
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import LOWER_WEIGHTS, RunFolder, load_tensors
from lowbit_core.training.trained import trained_network
from lowbit_core.training.widths import Widths

# What a file says of the run that it comes from, besides its test accuracy.
ORIGIN = ("run_id", "dataset", "arch", "arch_options", "method", "w_bits", "a_bits", "policy")


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished run: its configuration, its final record and its network, ready to evaluate."""

    config: dict
    final: dict
    model: nn.Module
    data: Dataset


def final_record(folder: Path) -> dict:
    """What a finished run wrote last; InputError where a run is unfinished or damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such run folder")
    final = RunFolder(folder).finished(weights=True)
    if final is None:
        raise InputError(f"{folder}: not the folder of a finished run: it has no final.json")
    return final


def read_run(folder: Path, bits: str | None = None) -> TrainedRun:
    """The run in `folder`, at its bit-width, or at a lower one that it was trained for as well.

    Bit-widths and test accuracy of `config` and `final` are then those of the lower one. Raises
    InputError where the run is not finished, diverged or damaged, or has no such bit-width, and
    where one of its numbers is not finite (a lower bit-width may diverge alone).
    """
    final, files = final_record(folder), RunFolder(folder)
    config = files.read_json("config.json")
    if config is None:
        raise InputError(f"{folder}: not the folder of a finished run: it has no config.json")
    if final["status"] != "done":
        raise InputError(f"{folder}: the run is {final['status']}: there is no network to export")
    data, method = dataset(config["dataset"]), baselines.method(config["method"])
    run = TrainedRun(config, final, trained_network(folder, method), data)
    if bits is not None and parse_bits(bits, "--bits") != (config["w_bits"], config["a_bits"]):
        run = _lower_width(files, run, method, bits)
    parameters = dict(run.model.named_parameters())
    for name, tensor in run.model.state_dict().items():  # a bound in a buffer may be infinite
        if tensor.isnan().any() or (name in parameters and tensor.isinf().any()):
            raise InputError(
                f"{folder}: a number of {name} is not finite: there is no network to export"
            )
    run.model.eval().to(memory_format=torch.channels_last)
    return run


def lower_widths(config: dict) -> dict[tuple[int, int], str]:
    """The lower bit-widths that a run was trained for (option `widths`): their labels, by bits."""
    settings = config["recipe"].get("widths", {"lower": []})
    return {parse_bits(label, "widths.lower"): label for label in settings["lower"]}


def _lower_width(files: RunFolder, run: TrainedRun, method: Method, bits: str) -> TrainedRun:
    config, wanted = run.config, parse_bits(bits, "--bits")
    labels = lower_widths(config)
    if wanted not in labels:
        legal = ", ".join([bits_label(config["w_bits"], config["a_bits"]), *labels.values()])
        raise InputError(f"--bits {bits}: the run in {files.path} has {legal}")
    report, settings = files.read_json("layers.json"), config["recipe"]["widths"]
    widths = Widths(settings, method, run.model, report, config["seed"])
    (width,) = (w for w in widths.lower if (w.w_bits, w.a_bits) == wanted)
    try:
        width.network.load_state_dict(load_tensors(files.path / LOWER_WEIGHTS)[bits_label(*wanted)])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{files.path / LOWER_WEIGHTS} does not fit the run: rerun it") from error
    with (files.path / "widths.csv").open(newline="") as rows:
        (top1,) = (
            float(row["top1"])
            for row in csv.DictReader(rows)
            if (int(row["w_bits"]), int(row["a_bits"])) == wanted
        )
    lower = config | {"w_bits": wanted[0], "a_bits": wanted[1]}
    return TrainedRun(lower, run.final | {"top1": top1}, width.network, run.data)


def export_run(folder: Path, out: Path, data_folder: Path, bits: str | None = None) -> dict:
    """Write the run's network to `out`; returns its sizes (see `sizes`).

    data_folder holds the prepared data sets; class names are read from there, if it is there.
    bits: as for `read_run`.
    """
    run = read_run(folder, bits)
    network = trace(run.model, (run.data.channels, run.data.side, run.data.side))
    fileformat.save_checked(out, network, about(run, data_folder), f"the network of {folder}")
    return sizes(out, network)


def export_onnx(
    folder: Path, out: Path, data_folder: Path, *, as_qonnx: bool = False, bits: str | None = None
) -> tuple[int, str]:
    """Write the run's network to `out` as ONNX; returns the size in bytes and what `verify` says.

    as_qonnx: as QONNX, whose quantizers are single nodes. bits: as for `read_run`. The file's
    metadata say how images are normalised, and name the classes. Raises InputError where the file
    is not verified to compute the network: `out` is not written then.
    """
    need("onnx")
    from deploy.export.onnx import onnx_model
    from deploy.export.qonnx import qonnx_model

    run = read_run(folder, bits)
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
    except InputError as error:
        say(f"the file numbers its classes, since no names are known: {error}")
        return tuple(str(number) for number in range(data.classes))
