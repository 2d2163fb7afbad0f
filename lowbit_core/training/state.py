"""How a run begins, what is saved of it, and how it resumes: with the same bytes in the end."""

import time

import torch
from torch import Tensor

from lowbit_core.conversion.layers import calibrate
from lowbit_core.data.loader import all_images
from lowbit_core.parallel import processes
from lowbit_core.runtime import hardware
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import MEASURED, TABLES, WEIGHTS, load_tensors
from lowbit_core.training import diagnostics
from lowbit_core.training.build import Place, Run

CHECKPOINT = "checkpoint.pt"


class Sums:
    """Running sums of one epoch, from its start or from what `save` saved of them."""

    def __init__(self, device: torch.device, saved: dict | None = None) -> None:
        # On the device: no step waits for a number.
        self.loss, self.correct = torch.zeros((), device=device), torch.zeros((), device=device)
        self.steps = self.images = 0
        self.began, self.waited = time.perf_counter(), 0.0  # seconds; waited: for data
        if saved is not None and saved["sums"] is not None:
            sums = saved["sums"]
            rows = sums["rows"]  # one per process, so that they are added in the same order again
            if len(rows) != processes.world():
                rows = rows.sum(0) * (torch.arange(processes.world()) == 0)[:, None]
            self.loss, self.correct = rows[processes.rank()].to(device)
            self.steps, self.images = saved["step"], sums["count"]
            self.began, self.waited = self.began - sums["seconds"], sums["waited"]

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> None:
        """Add one step of this process: its mean loss, scores (B, classes) and labels (B,)."""
        self.loss += loss.detach() * len(labels)
        self.correct += (scores.detach().argmax(1) == labels).sum()
        self.images += len(labels) * processes.world()
        self.steps += 1

    def seconds(self) -> float:
        """Seconds of training in this epoch so far, before and after a stop."""
        return time.perf_counter() - self.began

    def to_save(self) -> dict:
        rows = processes.gathered(torch.stack([self.loss, self.correct])).cpu()
        times = {"seconds": self.seconds(), "waited": self.waited}
        return {"rows": rows, "count": self.images} | times


def save(run: Run, epoch: int, sums: Sums | None = None) -> None:
    """Save what a rerun needs after `epoch` whole epochs and the steps of the next in `sums`."""
    random = {"cpu": torch.get_rng_state()}
    if run.place.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(run.place.device)
    run.folder.save_tensors(
        CHECKPOINT,
        {
            "run_key": run.config["run_key"],
            "versions": hardware.versions(),
            "epoch": epoch,
            "step": 0 if sums is None else sums.steps,
            "sums": None if sums is None else sums.to_save(),
            "random": random,
            "tables": run.folder.tables(),
            "model": run.model.state_dict(),
            "ema": None if run.ema is None else run.ema.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "codes": run.codes,
            "start": run.start_histograms,
            "compiled": run.compiled,
            "before": run.earlier,
            "widths": None if run.widths is None else run.widths.state(),
            "oscillation": None if run.oscillation is None else run.oscillation.state(),
            "teachers": None if run.teachers is None else run.teachers.pi.detach(),
        },
    )


def load(config: dict, place: Place) -> dict | None:
    """The saved state to resume from, or None. Warns of one that is damaged or of another run."""
    path = place.runs / config["run_id"] / CHECKPOINT
    saved = reason = None
    try:
        saved = load_tensors(path) if path.exists() else None
    except InputError as error:
        reason = str(error)
    processes.greatest(0)  # waits until all processes have read it: the first will overwrite it
    if saved is not None:
        if not isinstance(saved, dict) or saved.get("run_key") != config["run_key"]:
            reason = f"checkpoint {path} is of another run"
        elif "before" not in saved or saved["versions"] != hardware.versions():
            reason = f"checkpoint {path} was made by other versions"
    if reason is not None:
        say(f"warning: {reason}: the run begins again")
    return saved if reason is None else None


def start(run: Run, saved: dict | None) -> tuple[int, Sums]:
    """Resume from `saved`, or calibrate and begin without it.

    Returns the number of whole epochs that are done, and the sums of the next one so far.
    """
    if saved is None:  # what the folder holds belongs to another configuration or attempt
        run.folder.remove("final.json", WEIGHTS, CHECKPOINT, *MEASURED, *TABLES)
    else:
        _restore(run, saved)
    run.folder.write_json("config.json", run.config)
    run.folder.write_json("layers.json", run.report)
    if saved is None:
        if any(row["activation_quantizer"] for row in run.report):
            with processes.alone():
                calibrate(run.model, all_images(run.data.fit))
                for width in [] if run.widths is None else run.widths.lower:
                    calibrate(width.network, all_images(run.data.fit))
        run.start_histograms = diagnostics.weight_histograms(run.model)
        diagnostics.record_weights(run, 0)
    return 0 if saved is None else saved["epoch"], Sums(run.place.device, saved)


def _restore(run: Run, saved: dict) -> None:
    run.model.load_state_dict(saved["model"])
    if run.ema is not None:
        run.ema.load_state_dict(saved["ema"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.codes, run.start_histograms = saved["codes"], saved["start"]
    if run.oscillation is not None:
        run.oscillation.restore(saved["oscillation"])
    if run.widths is not None:
        run.widths.restore(saved["widths"])
    if run.teachers is not None:
        run.teachers.pi.data.copy_(saved["teachers"])
    run.folder.restore_tables(saved["tables"])
    torch.set_rng_state(saved["random"]["cpu"])
    if run.place.device.type == "cuda" and "cuda" in saved["random"]:
        torch.cuda.set_rng_state(saved["random"]["cuda"], run.place.device)
