"""Train one run: from scratch or from a checkpoint, resumable at every epoch and stopped step."""

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lowbit_core import models
from lowbit_core.conversion.footprint import size_and_bitops
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.data.loader import BatchLoader, make_loader
from lowbit_core.data.splits import split_indices
from lowbit_core.datasets.catalog import dataset as dataset_named
from lowbit_core.datasets.manifest import read_labels
from lowbit_core.kernels.fused import set_compile
from lowbit_core.parallel import processes, synchronise
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime import hardware, signals
from lowbit_core.runtime.errors import DeviceLost, InputError
from lowbit_core.runtime.files import locked, remove_leftovers
from lowbit_core.runtime.progress import Progress, say
from lowbit_core.runtime.run_folder import (
    CHANNEL_ERROR,
    METRICS,
    TABLES,
    TIMINGS,
    WEIGHT_STATE,
    WEIGHTS,
    RunFolder,
    UnwrittenFolder,
    load_tensors,
)
from lowbit_core.training import diagnostics
from lowbit_core.training.schedule import learning_rate, parameter_groups

CALIBRATION_IMAGES = 256
MIN_STEPS_TO_COMPILE = 50
MIN_STEPS_TO_COMPILE_MODEL = 2000  # a minute or more goes into it
CHECKPOINT = "checkpoint.pt"
MEASURED = ("weight_histograms.json", "channel_error.csv")


@dataclass(frozen=True)
class Place:
    """Where a run trains: nothing here may change its numbers, but for the device's arithmetic."""

    data: Path
    runs: Path
    device: torch.device
    threads: int = 1


def unfinished(config: dict, runs: Path) -> str | None:
    """None if the run folder holds this very run, whole; else the damage in one sentence, or ""."""
    path = runs / config["run_id"]
    if not (path / "final.json").exists():
        return ""
    try:
        # Others start from a checkpoint; another run's weights may have stayed on its machine.
        weights = config["pretrained"] is None or (path / WEIGHTS).exists()
        final = RunFolder(path).finished(weights)
    except (InputError, OSError) as error:
        return str(error)
    return None if final.get("run_key") == config["run_key"] else ""


def is_finished(config: dict, runs: Path) -> bool:
    """True if the run folder holds the final record of exactly this configuration, undamaged."""
    return unfinished(config, runs) is None


def train_run(config: dict, method: Method, place: Place) -> dict:
    """Train the run that `config` describes; returns its final record (final.json).

    The processes of one run call it alike; the first of them writes.
    Does nothing if it is finished; goes on from where it was stopped, at worst from the last epoch.
    Of two processes with the same run one waits for the other.
    Raises InputError for a bad configuration, missing data or damaged input.
    """
    path = place.runs / config["run_id"]
    if not processes.from_first(lambda: is_finished(config, place.runs)):
        with _held_by_first(path):
            damage = processes.from_first(lambda: unfinished(config, place.runs))
            if damage is not None:
                if damage:
                    say(f"warning: {damage}: the run is made again")
                if processes.is_first():
                    remove_leftovers(path)
                with _device_errors(config["run_id"]):
                    return _with_restarts(config, method, place)
    if processes.is_first():
        (path / CHECKPOINT).unlink(missing_ok=True)  # a kill came between final.json and this
    return processes.from_first(lambda: RunFolder(path).finished())


def _held_by_first(path: Path) -> contextlib.AbstractContextManager:
    if not processes.is_first():
        return contextlib.nullcontext()
    return locked(path / "lock", f"{path}: another process trains this run: waiting for it")


@contextlib.contextmanager
def _device_errors(run_id: str) -> Iterator[None]:
    """A GPU that fails or has no memory left, in one sentence."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not reason.startswith(("CUDA", "cuDNN")):
            raise
        raise DeviceLost(
            f"run {run_id}: the GPU failed ({reason}); what was saved is kept, {signals.AGAIN}"
        ) from error


def _with_restarts(config: dict, method: Method, place: Place) -> dict:
    """Train; a run that diverges begins again, each time at half the lr, if its recipe allows it."""
    allowed, before = config["recipe"].get("restarts", 0), []
    while True:
        run = _Run(config, method, place, before)
        row = run.train()
        if run.diverged is None or len(run.before) >= allowed:
            return run.finish(row)
        say(
            f"{config['run_id']}: diverged in epoch {row['epoch']} ({run.diverged['because']}): "
            f"restart {len(run.before) + 1} of {allowed} with lr {run.lr / 2:g}"
        )
        before = [*run.before, {"epoch": row["epoch"], "lr": run.lr, **run.diverged}]
        del run  # two networks may not fit


def seconds_per_step(config: dict, method: Method, place: Place, steps: int = 6) -> float:
    """Seconds of an uncompiled training step of this run, from the second of two short epochs.

    Leaves nothing behind and needs no checkpoint.
    """
    batch = config["recipe"]["batch_size"]
    recipe = config["recipe"] | {"epochs": 2, "train_images": steps * batch, "val_images": batch}
    short = config | {"recipe": recipe, "pretrained": None, "compile": "off", "run_id": "timing"}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stderr(io.StringIO()):
        run = _Run(short, method, replace(place, runs=Path(scratch)))
        run._start()
        for epoch in (1, 2):
            run._train_epoch(epoch, Progress("timing", 2, run.train_data.images))
        seconds = (
            (Path(scratch) / "timing" / "timings.csv").read_text().splitlines()[-1].split(",")[1]
        )
    return float(seconds) / steps


class _Run:
    def __init__(self, config: dict, method: Method, place: Place, before: list = ()) -> None:
        """`before`: the attempts of this run that diverged."""
        self.config, self.recipe, self.place = config, config["recipe"], place
        self.method = method
        self.before, self.diverged = list(before), None
        folder = RunFolder if processes.is_first() else UnwrittenFolder
        self.folder = folder(place.runs / config["run_id"])
        self.started = time.monotonic()  # the clock of the day may be set back
        _switch_exactness(config.get("deterministic", False))
        torch.set_num_threads(place.threads)
        torch.manual_seed(config["seed"])
        self._load_data()
        self._build_model(method)
        self.compiled = self._switch_compile()
        self.network = self.model  # what a training step calls
        if self.compiled == "model":
            # "reduce-overhead": CUDA graphs, where there is a GPU.
            mode = "reduce-overhead" if place.device.type == "cuda" else "default"
            self.network = torch.compile(self.model, mode=mode)

    @property
    def lr(self) -> float:
        """The recipe's peak learning rate, halved by every restart."""
        return self.recipe["lr"] / 2 ** len(self.before)

    def _switch_compile(self) -> str:
        """Switch the quantizers' compilation; returns what is compiled: off, quantizers, model."""
        asked = self.config["compile"]
        quantized = any(row["status"] == "quantized" for row in self.report)
        steps = len(self.train_data) * self.recipe["epochs"]
        if asked == "auto":
            asked = "quantizers"
            if self.place.device.type == "cuda":  # where the compiler makes the kernels
                asked = "off" if steps < MIN_STEPS_TO_COMPILE else "quantizers"
                asked = "model" if steps >= MIN_STEPS_TO_COMPILE_MODEL else asked
        if asked == "model" and processes.world() > 1:  # what is sent divides the graph
            asked = "quantizers"
        wanted = asked == "model" or (asked == "quantizers" and quantized)
        return asked if set_compile(wanted) else "off"

    def _load_data(self) -> None:
        recipe, place = self.recipe, self.place
        data = place.data / self.config["dataset"]
        train, val = split_indices(
            read_labels(data, "train"),
            train_images=recipe["train_images"],
            val_images=recipe["val_images"],
        )
        if len(train) < recipe["batch_size"]:
            raise InputError(
                f"recipe {recipe['name']!r}: batch_size is {recipe['batch_size']}, more than the "
                f"{len(train)} training images: choose a smaller one"
            )

        own = (processes.rank(), processes.world())
        processes.local_batch(recipe["batch_size"])  # an error here, not in the middle

        def loader(split: str, indices, is_train: bool, batch: int, share=own):
            return make_loader(
                data,
                split,
                batch_size=batch,
                indices=indices,
                train=is_train,
                augmentation=recipe["augmentation"] if is_train else "none",
                seed=self.config["seed"],
                device=place.device,
                backend=self.config["loader"],
                threads=place.threads,
                share=share,
            )

        large = recipe["eval_batch_size"]
        self.train_data = loader("train", train, True, recipe["batch_size"])
        self.val_data = loader("train", val, False, large)
        self.test_data = loader("test", None, False, large)
        whole = (0, 1)
        few = CALIBRATION_IMAGES
        self.fit_data = loader("train", _evenly(train, few), False, few, whole)
        self.held_out_data = loader("train", _evenly(val, few), False, few, whole)

    def _build_model(self, method: Method) -> None:
        config, info = self.config, dataset_named(self.config["dataset"])
        model = models.build(config["arch"], info.classes, info.channels, **config["arch_options"])
        if config["pretrained"]:
            path = self.place.runs / config["pretrained"] / "weights.pt"
            try:
                model.load_state_dict(load_tensors(path))
            except RuntimeError as error:
                raise InputError(
                    f"checkpoint {path} does not fit arch {config['arch']!r} with options "
                    f"{config['arch_options']}"
                ) from error
            if _first_bad_layer(model) is not None:
                raise InputError(
                    f"checkpoint {path} diverged: lower the lr of its recipe and rerun"
                )
        plan = QuantPolicy(method, config["w_bits"], config["a_bits"], **config["policy"])
        device = self.place.device
        image = torch.zeros(1, info.channels, info.side, info.side, device=device)
        self.model = model.to(device)
        self.report = convert(self.model, plan, image)
        self.model = self.model.to(device, memory_format=torch.channels_last)
        self.ema = None
        if self.recipe["ema"]:
            average = get_ema_multi_avg_fn(self.recipe["ema"])
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, self.recipe),
            lr=self.lr,
            momentum=self.recipe["momentum"],
            nesterov=self.recipe["nesterov"] and self.recipe["momentum"] > 0,
            fused=True,
        )

    # -- state ------------------------------------------------------------------------------

    def _save(self, epoch: int, step: int = 0, sums: dict | None = None) -> None:
        """Save what a rerun needs after `epoch` whole epochs and `step` steps of the next."""
        self.folder.save_tensors(
            CHECKPOINT,
            {
                "run_key": self.config["run_key"],
                "versions": hardware.versions(),
                "epoch": epoch,
                "step": step,
                "sums": sums,
                "random": _random_state(self.place.device),
                "tables": self.folder.tables(),
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "codes": self.codes,
                "start": self.start_histograms,
                "compiled": self.compiled,
                "before": self.before,
            },
        )

    def _saved(self) -> dict | None:
        """The checkpoint to go on from; one that is damaged or of another run is said aloud."""
        try:
            state = self.folder.load_tensors(CHECKPOINT)
        except InputError as error:
            reason = str(error)
        else:
            if state is None:
                return None
            path = self.folder.path / CHECKPOINT
            if not isinstance(state, dict) or state.get("run_key") != self.config["run_key"]:
                reason = f"checkpoint {path} is of another run"
            elif "before" not in state or state["versions"] != hardware.versions():
                reason = f"checkpoint {path} was made by other versions"
            elif len(state["before"]) < len(self.before):
                return None  # of the attempt that diverged
            else:
                return state
        say(f"warning: {reason}: the run begins again")
        return None

    def _start(self) -> int:
        """Resume where the run was stopped, or calibrate and begin; returns the epochs already done."""
        state = self._saved()
        processes.greatest(0)  # all have read it before the first goes on and writes
        self.resumed = (0, None)  # steps done of the next epoch, and its sums
        if state is not None:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.codes, self.start_histograms = state["codes"], state["start"]
            self.resumed, self.before = (state["step"], state["sums"]), state["before"]
            self.folder.restore_tables(state["tables"])
            _set_random_state(state["random"], self.place.device)
        else:
            # What is there belongs to another configuration.
            self.folder.remove("final.json", "weights.pt", CHECKPOINT, *MEASURED, *TABLES)
        self.folder.write_json("config.json", self.config)
        self.folder.write_json("layers.json", self.report)
        if state is not None:
            return state["epoch"]
        if any(row["activation_quantizer"] for row in self.report):
            with processes.alone():
                calibrate(self.model, _all_images(self.fit_data))
        self.start_histograms = diagnostics.weight_histograms(self.model)
        self.codes = {}
        self._record_weights(0)
        return 0

    def _record_weights(self, epoch: int) -> set[str]:
        """Append to weight_state.csv; returns the layers whose weights are all one value."""
        rows, self.codes = diagnostics.weight_state(self.model, self.codes)
        if rows:
            rows = [{"epoch": epoch, **row} for row in rows]
            self.folder.append("weight_state.csv", WEIGHT_STATE, rows)
        return {row["layer"] for row in rows if row["dead"]}

    # -- training ---------------------------------------------------------------------------

    def train(self) -> dict | None:
        """Train what is left; returns the last epoch's row. `diverged` tells whether it broke."""
        done = self._start()
        synchronise.spread(self.model)
        synchronise.synchronise_batch_norm(self.model)
        epochs = self.recipe["epochs"]
        progress = Progress(self.config["run_id"], epochs, self.train_data.images)
        row = None  # stays so for 0 epochs, and where all of them were done before
        for epoch in range(done + 1, epochs + 1):
            with signals.held(f"{self.config['run_id']} is saved up to epoch {epoch}"):
                row = self._train_epoch(epoch, progress)
                self._stop_asked()
            if self.diverged is not None:
                break
        return row

    def _stop_asked(self) -> bool:
        """True once a signal came to one of the run's processes: all of them stop at one step."""
        signals.ask(processes.greatest(signals.number()))
        return signals.asked()

    def _train_epoch(self, epoch: int, progress: Progress) -> dict:
        recipe, model, device = self.recipe, self.model, self.place.device
        steps = len(self.train_data)
        total, warmup = steps * recipe["epochs"], int(steps * recipe["warmup_epochs"])
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model.train()
        first, sums = self.resumed
        self.resumed = (0, None)
        loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
        began, waited, count, asked = time.perf_counter(), 0.0, 0, time.perf_counter()
        if sums is not None:
            rows = sums["rows"]  # of each process: added up again as without the stop
            if len(rows) != processes.world():
                rows = rows.sum(0) * (torch.arange(processes.world()) == 0)[:, None]
            loss_sum, correct = rows[processes.rank()].to(device)
            began, waited, count = began - sums["seconds"], sums["waited"], sums["count"]
        batches = islice(self.train_data.epoch(epoch), first, None)
        for index, (images, labels) in enumerate(batches, first):
            waited += time.perf_counter() - asked
            rate = learning_rate((epoch - 1) * steps + index, total, warmup, self.lr)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["lr_scale"]
            images = images.contiguous(memory_format=torch.channels_last)
            self.optimizer.zero_grad(set_to_none=True)
            with self._precision():
                scores = self.network(images)
                loss = functional.cross_entropy(
                    scores.float(), labels, label_smoothing=recipe["label_smoothing"]
                )
            loss.backward()
            synchronise.average_gradients(model.parameters())
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update_parameters(model)
            loss_sum += loss.detach() * len(labels)
            correct += (scores.detach().argmax(1) == labels).sum()
            count += len(labels) * processes.world()
            progress.step(epoch, count)
            if self._stop_asked() and index + 1 < steps:
                seconds = time.perf_counter() - began
                rows = processes.gathered(torch.stack([loss_sum, correct])).cpu()
                sums = {"rows": rows, "count": count}
                self._save(epoch - 1, index + 1, sums | {"seconds": seconds, "waited": waited})
                done = f"epoch {epoch} after step {index + 1} of {steps}"
                signals.leave(f"{self.config['run_id']} is saved in {done}")
            asked = time.perf_counter()
        loss_sum, correct = processes.summed(torch.stack([loss_sum, correct]))
        row = {
            "epoch": epoch,
            "lr": rate,
            "train_loss": loss_sum.item() / count,
            "train_top1": 100 * correct.item() / count,
        }
        seconds = time.perf_counter() - began
        val = self.evaluate(self.val_data)
        row |= {"val_loss": val["loss"], "val_top1": val["top1"]}
        self.folder.append("metrics.csv", METRICS, [row])
        self.folder.append(
            "timings.csv",
            TIMINGS,
            [
                {
                    "epoch": epoch,
                    "seconds": seconds,
                    "images_per_s": count / seconds,
                    "data_wait_share": waited / seconds,
                    "peak_memory_mb": _peak_memory_mb(device),
                }
            ],
        )
        synchronise.keep_greatest(diagnostics.nonfinite_counters(self.model))
        if math.isfinite(row["train_loss"] + row["val_loss"]):
            self.diverged = self._dead_quantizer(self._record_weights(epoch))
            if self.diverged is None:
                self._save(epoch)
        else:
            layer = self._first_layer_not_finite()
            self.diverged = {"layer": layer, "because": "the loss is not finite"}
        progress.epoch(row, count / seconds)
        return row

    def _precision(self):
        if self.recipe["precision"] == "bf16":
            return torch.autocast(self.place.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _dead_quantizer(self, weights: set[str]) -> dict | None:
        """The first layer whose weights (in `weights`) or inputs can only be one value, if any."""
        inputs = diagnostics.collapsed_activations(self.model)
        for layer, _ in self.model.named_modules():
            if layer in weights | inputs:
                what = "weights" if layer in weights else "quantized inputs"
                return {"layer": layer, "because": f"all {what} are one value"}
        return None

    @torch.no_grad()
    def evaluate(self, data) -> dict[str, float]:
        """Mean loss, top-1 and top-5 in percent over all images of `data`."""
        model = self.model if self.ema is None else self.ema
        model.eval()
        # Summed on the device: reading a number back would make the processor wait in every batch.
        sums = torch.zeros(4, dtype=torch.float64, device=self.place.device)
        for images, labels in data.epoch(0):
            with self._precision():
                scores = model(images.contiguous(memory_format=torch.channels_last)).float()
            loss = functional.cross_entropy(scores, labels, reduction="sum")
            best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
            sums[0] += loss
            sums[1] += best[:, 0].sum()
            sums[2] += best.sum()
            sums[3] += len(labels)
        loss, hits1, hits5, count = processes.summed(sums).tolist()
        return {"loss": loss / count, "top1": 100 * hits1 / count, "top5": 100 * hits5 / count}

    # -- the end ----------------------------------------------------------------------------

    def finish(self, last: dict | None) -> dict:
        """Test, measure and write the final record; `last` is the row that `train` returned."""
        status, model = "done" if self.diverged is None else "diverged", self.model
        if self.ema is not None:
            model = self.ema.module
        size, fp_size, bitops = size_and_bitops(model, self.report)
        synchronise.keep_greatest(diagnostics.nonfinite_counters(self.model))
        nonfinite = diagnostics.nonfinite_batches(self.model)
        final = {
            "run_key": self.config["run_key"],
            "status": status,
            "top1": None,
            "top5": None,
            "test_loss": None,
            "val_top1": None,
            "epochs_done": self.recipe["epochs"] if last is None else last["epoch"],
            "size_bytes": size,
            "fp_size_bytes": fp_size,
            "bitops": bitops,
            "hardware": hardware.hardware_name(self.place.device),
            "device": self.place.device.type,
            "threads": self.place.threads,
            "processes": processes.world(),
            "versions": hardware.versions(),
            "git_commit": hardware.git_commit(),
            "loader": self.train_data.backend,
            "compile": self.compiled,
            "diverged_layer": None if self.diverged is None else self.diverged["layer"],
            "diverged_because": None if self.diverged is None else self.diverged["because"],
            "diverged_before": self.before,
            "lr": self.lr,
            "nonfinite_batches": nonfinite,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self.started,
        }
        if self.diverged is None:
            test = self.evaluate(self.test_data)
            final |= {"top1": test["top1"], "top5": test["top5"], "test_loss": test["loss"]}
            final["val_top1"] = last["val_top1"] if last else self.evaluate(self.val_data)["top1"]
            if processes.is_first():
                self._measure(model)
        self.folder.save_tensors("weights.pt", model.state_dict())
        final = self.folder.finish(final)
        self.folder.remove(CHECKPOINT)
        return final

    def _first_layer_not_finite(self) -> str | None:
        """The layer whose input was not finite first: in the most batches, of several the first."""
        seen = diagnostics.nonfinite_batches(self.model)
        return max(seen, key=seen.get) if seen else _first_bad_layer(self.model)

    def _measure(self, model: nn.Module) -> None:
        end = diagnostics.weight_histograms(model)
        if end:
            start = self.start_histograms
            histograms = {name: {"start": start[name], "end": end[name]} for name in end}
            self.folder.write_json("weight_histograms.json", histograms)
        plain = [m for m in model.modules() if isinstance(m, BasisActivation)]
        if plain and self.method.measures_channels:
            images = map(_all_images, (self.fit_data, self.held_out_data))
            rows = diagnostics.channel_errors(model, *images)
            self.folder.write_table("channel_error.csv", CHANNEL_ERROR, rows)


def _switch_exactness(exact: bool) -> None:
    """Only CUDA kernels that add in a fixed order, or an error where there is none."""
    if exact:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(exact)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time


def _evenly(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the indices, at even distances: data sets may be stored class by class."""
    places = np.linspace(0, len(indices), min(count, len(indices)), endpoint=False)
    return indices[places.astype(np.int64)]


def _all_images(data: BatchLoader) -> Tensor:
    return torch.cat([images for images, _ in data.epoch(0)])


def _first_bad_layer(model: nn.Module) -> str | None:
    """The first layer with a parameter or buffer that is not finite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name.rpartition(".")[0]
    return None


def _random_state(device: torch.device) -> dict:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _peak_memory_mb(device: torch.device) -> float:
    """Peak memory of the device's allocator, or of this process on a CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
