"""The training loop: the steps of an epoch, and what is measured and saved after each epoch."""

import math
import resource
import time
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional

from lowbit_core.data.loader import channels_last
from lowbit_core.parallel import processes, synchronise
from lowbit_core.runtime import signals
from lowbit_core.runtime.progress import Progress
from lowbit_core.runtime.run_folder import METRICS, TIMINGS
from lowbit_core.training import diagnostics, divergence, state
from lowbit_core.training.build import Run
from lowbit_core.training.evaluate import evaluate
from lowbit_core.training.schedule import learning_rate
from lowbit_core.training.state import Sums


def train(run: Run, done: int, sums: Sums) -> tuple[dict | None, dict | None]:
    """Train what is left after `done` epochs and the steps in `sums` of the next one.

    Returns the last epoch's row of metrics.csv (None where no epoch was left) and, if the run
    diverged in it, {"layer", "because"}.
    """
    synchronise.broadcast(run.root)
    synchronise.synchronise_batch_norm(run.root)
    if run.ema is not None:  # `reestimate_batch_norm` trains its batch norms
        synchronise.synchronise_batch_norm(run.ema)
    name, epochs = run.config["run_id"], run.recipe["epochs"]
    progress = Progress(name, epochs, run.data.train.images)
    row = cause = None
    for epoch in range(done + 1, epochs + 1):
        with signals.deferred(f"{name} is saved up to epoch {epoch}"):
            row, cause = train_epoch(run, epoch, sums, progress)
            _stop_requested()
        if cause is not None:
            break
        sums = Sums(run.place.device)
    return row, cause


def train_epoch(run: Run, epoch: int, sums: Sums, progress: Progress) -> tuple[dict, dict | None]:
    """Train the steps of `epoch` that are not in `sums` yet; returns as `train` does."""
    recipe, steps = run.recipe, len(run.data.train)
    total, warmup = steps * recipe["epochs"], int(steps * recipe["warmup_epochs"])
    if run.place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.place.device)
    run.root.train()
    batches = channels_last(islice(run.data.train.epoch(epoch), sums.steps, None))
    asked = time.perf_counter()
    for images, labels in batches:
        sums.waited += time.perf_counter() - asked
        step = (epoch - 1) * steps + sums.steps
        rate = learning_rate(step, total, warmup, run.lr)
        for progress_of_quantizer in run.progress:
            progress_of_quantizer.fill_(step / total)
        train_step(run, images, labels, rate, sums)
        progress.step(epoch, sums.images)
        if _stop_requested() and sums.steps < steps:
            state.save(run, epoch - 1, sums)
            where = f"epoch {epoch} after step {sums.steps} of {steps}"
            signals.leave(f"{run.config['run_id']} is saved in {where}")
        asked = time.perf_counter()
    return _end_epoch(run, epoch, rate, sums, progress)


def train_step(run: Run, images: Tensor, labels: Tensor, rate: float, sums: Sums) -> None:
    """One step of SGD at learning rate `rate`, on this process's part of a batch."""
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    run.optimizer.zero_grad(set_to_none=True)
    with run.autocast():
        scores = run.network(images)
        loss = functional.cross_entropy(
            scores.float(), labels, label_smoothing=run.recipe["label_smoothing"]
        )
        if run.teachers is not None:
            loss = run.teachers.loss(loss, scores, images, labels)
    loss.backward()
    if run.widths is not None:
        run.widths.teach(images, scores, run.autocast())
    learned = [] if run.teachers is None else run.teachers.parameters()
    synchronise.average_gradients([*run.root.parameters(), *learned])
    if run.oscillation is not None:
        run.oscillation.before_step()
    run.optimizer.step()
    if run.oscillation is not None:
        run.oscillation.after_step()
    if run.ema is not None:
        run.ema.update_parameters(run.model)
    sums.add(loss, scores, labels)


def _stop_requested() -> bool:
    """True once any process of this run received a signal: all of them stop after the same step."""
    signals.ask(processes.greatest(signals.number()))
    return signals.asked()


def _end_epoch(run: Run, epoch: int, rate: float, sums: Sums, progress: Progress) -> tuple:
    """Evaluate, write the epoch's rows, look for divergence, save; returns as `train` does."""
    loss, correct = (x.item() for x in processes.summed(torch.stack([sums.loss, sums.correct])))
    seconds, count, device = sums.seconds(), sums.images, run.place.device
    val = evaluate(run, run.data.val)
    row = {"epoch": epoch, "lr": rate, "train_loss": loss / count}
    row |= {"train_top1": 100 * correct / count, "val_loss": val["loss"], "val_top1": val["top1"]}
    timing = {"epoch": epoch, "seconds": seconds, "images_per_s": count / seconds}
    timing |= {"data_wait_share": sums.waited / seconds, "peak_memory_mb": _peak_memory_mb(device)}
    run.folder.append("metrics.csv", METRICS, [row])
    run.folder.append("timings.csv", TIMINGS, [timing])
    synchronise.keep_greatest(divergence.nonfinite_counters(run.model))
    if math.isfinite(row["train_loss"] + row["val_loss"]):
        cause = divergence.dead_quantizer(run.model, diagnostics.record_weights(run, epoch))
        if cause is None:
            state.save(run, epoch)
    else:
        cause = divergence.not_finite(run.model)
    progress.epoch(row, count / seconds)
    return row, cause


def _peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MiB: of the device's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
