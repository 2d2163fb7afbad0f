"""Build what one run trains with: its data, its network and its optimizer."""

import functools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lowbit_core import models
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.data.loader import BatchLoader, make_loader
from lowbit_core.data.splits import split_indices
from lowbit_core.datasets.catalog import dataset as dataset_named
from lowbit_core.datasets.manifest import read_labels
from lowbit_core.kernels.fused import set_compile
from lowbit_core.parallel import processes
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime import hardware
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import WEIGHTS, ReadOnlyFolder, RunFolder
from lowbit_core.training.oscillation import Oscillation, check_oscillation
from lowbit_core.training.schedule import parameter_groups
from lowbit_core.training.trained import Teachers, load_weights, start_from, trained_network
from lowbit_core.training.widths import Widths, begin_momentum, check_widths

CALIBRATION_IMAGES = 256
# On a GPU, shorter runs take less time uncompiled; compiling a whole model takes a minute or more.
MIN_STEPS_TO_COMPILE = 50
MIN_STEPS_TO_COMPILE_MODEL = 2000


@dataclass(frozen=True)
class Place:
    """Where a run trains. None of this changes its numbers, except for the device's arithmetic."""

    data: Path
    runs: Path
    device: torch.device
    threads: int = 1


@dataclass(frozen=True)
class Data:
    """The batches of a run; of `train`, `val` and `test` each process loads its part."""

    train: BatchLoader
    val: BatchLoader
    test: BatchLoader
    fit: BatchLoader  # one batch of training images, the same in every process, for calibration
    held_out: BatchLoader  # one batch of validation images, likewise, for the error by channel


@dataclass(eq=False)
class Run:
    """One attempt to train a run, and what it remembers besides its network and optimizer."""

    config: dict
    method: Method
    place: Place
    earlier: list[dict]  # attempts that diverged; each one halves the learning rate
    folder: RunFolder
    data: Data
    model: nn.Module
    report: list[dict]  # one row per layer: what was quantized, and how
    ema: AveragedModel | None
    optimizer: torch.optim.Optimizer
    network: nn.Module  # what a training step calls: the model, or its compiled form
    compiled: str  # "off", "quantizers" or "model"
    progress: list[Tensor]  # of the quantizers that depend on the share of steps that are done
    oscillation: Oscillation | None  # what the recipe's option `oscillation` keeps of each weight
    widths: Widths | None  # the lower widths of the recipe's option `widths`
    teachers: Teachers | None  # of a recipe with the option `distill`
    started: float = field(default_factory=time.monotonic)  # the time of day may be set back
    start_histograms: dict = field(default_factory=dict)  # of the weights before training
    codes: dict = field(default_factory=dict)  # of the weights at the end of the last epoch

    @property
    def recipe(self) -> dict:
        return self.config["recipe"]

    @property
    def lr(self) -> float:
        """The recipe's peak learning rate, halved by every restart."""
        return self.recipe["lr"] / 2 ** len(self.earlier)

    @property
    def root(self) -> nn.Module:
        """The module that holds all that is trained: the model, and the lower widths if any."""
        return self.model if self.widths is None else nn.ModuleList([self.model, self.widths])

    def autocast(self) -> torch.autocast:
        """The precision of the forward pass."""
        reduced = self.recipe["precision"] == "bf16"
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=reduced)


def build_run(config: dict, method: Method, place: Place, earlier: list[dict] | tuple = ()) -> Run:
    """Build the run that `config` describes, from its seed; nothing is trained or written yet."""
    _require_exact_kernels(config.get("deterministic", False))
    if config["recipe"]["precision"] == "bf16" and place.device.type == "cpu":
        _warn_where_bfloat16_is_emulated()
    torch.set_num_threads(place.threads)
    torch.manual_seed(config["seed"])
    recipe = config["recipe"]
    data = _load_data(config, place)
    model, report = _build_model(config, method, place)
    if "oscillation" in recipe:
        check_oscillation(recipe["oscillation"], method, (row["w_bits"] for row in report))
    widths = None
    if "widths" in recipe:
        check_widths(recipe, method, (config["w_bits"], config["a_bits"]))
        widths = Widths(recipe["widths"], method, model, report, config["seed"])
    ema = None
    if recipe["ema"]:
        average = get_ema_multi_avg_fn(recipe["ema"])
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    teachers = _load_teachers(config, method, place)
    trained = model if widths is None else nn.ModuleList([model, widths])
    optimizer = _make_optimizer(recipe, trained, teachers)
    if widths is not None:
        begin_momentum(optimizer)
    on_gpu = place.device.type == "cuda"
    quantized = any(row["status"] == "quantized" for row in report)
    steps = len(data.train) * recipe["epochs"]
    compiled = _switch_compile(config["compile"], on_gpu, quantized, steps)
    if compiled == "model" and widths is not None:  # only the full width would be compiled
        compiled = "quantizers"
    network = model
    if compiled == "model":  # "reduce-overhead" uses CUDA graphs
        network = torch.compile(model, mode="reduce-overhead" if on_gpu else "default")
    path = place.runs / config["run_id"]
    folder = RunFolder(path) if processes.is_first() else ReadOnlyFolder(path)
    return Run(
        config, method, place, list(earlier),
        folder, data, model, report, ema, optimizer, network, compiled,
        [tensor for name, tensor in model.named_buffers() if name.endswith(".progress")],
        Oscillation(recipe["oscillation"], model, steps) if "oscillation" in recipe else None,
        widths,
        teachers,
    )  # fmt: skip


def _make_optimizer(
    recipe: dict, model: nn.Module, teachers: Teachers | None
) -> torch.optim.Optimizer:
    """SGD by the recipe, on all that is trained. The loop sets the learning rate in every step."""
    decay, settings = recipe["weight_decay"], recipe["quantizer_groups"]
    groups = parameter_groups(model, recipe["lr"], decay, settings)
    return torch.optim.SGD(
        groups + (teachers.groups() if teachers else []),
        lr=recipe["lr"],
        momentum=recipe["momentum"],
        nesterov=recipe["nesterov"] and recipe["momentum"] > 0,
        fused=True,
    )


@functools.cache  # once a process
def _warn_where_bfloat16_is_emulated() -> None:
    if not hardware.computes_bfloat16():
        say(
            "warning: precision bf16: this processor has no bfloat16 instructions: torch emulates "
            "them, and a training step takes several times as long as in fp32"
        )


def _require_exact_kernels(exact: bool) -> None:
    """Allow only CUDA kernels that add in a fixed order; an operation without one is an error."""
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
    torch.use_deterministic_algorithms(exact)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time


def _load_data(config: dict, place: Place) -> Data:
    recipe, folder = config["recipe"], place.data / config["dataset"]
    batch_size = recipe["batch_size"]
    counts = {key: recipe[key] for key in ("train_images", "val_images")}
    train, val = split_indices(read_labels(folder, "train"), **counts)
    if len(train) < batch_size:
        raise InputError(
            f"recipe {recipe['name']!r}: batch_size is {batch_size}, more than the {len(train)} "
            "training images: choose a smaller one"
        )
    processes.check_batch_size(batch_size)
    # `part`: each process loads its part of a batch; `whole`: each loads the same images.
    whole = {"seed": config["seed"], "backend": config["loader"]}
    whole |= {"device": place.device, "threads": place.threads}
    part = whole | {"share": (processes.rank(), processes.world())}
    augmented = {"train": True, "augmentation": recipe["augmentation"]}
    large = {"train": False, "batch_size": recipe["eval_batch_size"]}
    few = {"train": False, "batch_size": CALIBRATION_IMAGES}
    fit, held_out = (_evenly_spaced(indices, CALIBRATION_IMAGES) for indices in (train, val))
    return Data(
        make_loader(folder, "train", indices=train, batch_size=batch_size, **augmented, **part),
        make_loader(folder, "train", indices=val, **large, **part),
        make_loader(folder, "test", **large, **part),
        make_loader(folder, "train", indices=fit, **few, **whole),
        make_loader(folder, "train", indices=held_out, **few, **whole),
    )


def _evenly_spaced(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the indices, evenly spaced: data sets may be stored class by class."""
    chosen = np.linspace(0, len(indices), min(count, len(indices)), endpoint=False)
    return indices[chosen.astype(np.int64)]


def _build_model(config: dict, method: Method, place: Place) -> tuple[nn.Module, list[dict]]:
    """The quantized network on the device, in channels_last layout, and its report."""
    info = dataset_named(config["dataset"])
    model = models.build(config["arch"], info.classes, info.channels, **config["arch_options"])
    if config.get("predecessor"):
        start_from(model, trained_network(place.runs / config["predecessor"], method))
    elif config["pretrained"]:
        load_weights(model, place.runs / config["pretrained"] / WEIGHTS, config)
    policy = QuantPolicy(method, config["w_bits"], config["a_bits"], **config["policy"])
    image = torch.zeros(1, info.channels, info.side, info.side, device=place.device)
    model = model.to(place.device)
    report = convert(model, policy, image)
    return model.to(place.device, memory_format=torch.channels_last), report


def _load_teachers(config: dict, method: Method, place: Place) -> Teachers | None:
    if not config.get("teachers"):
        return None
    networks = [trained_network(place.runs / name, method) for name in config["teachers"]]
    return Teachers(networks, config["recipe"]["distill"], place.device)


def _switch_compile(mode: str, on_gpu: bool, quantized: bool, steps: int) -> str:
    """Switch compiled quantizers on or off; returns what is compiled: off, quantizers or model."""
    if mode == "auto":
        mode = "quantizers"
        if on_gpu and steps < MIN_STEPS_TO_COMPILE:
            mode = "off"
        elif on_gpu and steps >= MIN_STEPS_TO_COMPILE_MODEL:
            mode = "model"
    if mode == "model" and processes.world() > 1:  # communication would split the graph
        mode = "quantizers"
    wanted = mode == "model" or (mode == "quantizers" and quantized)
    return mode if set_compile(wanted) else "off"
