"""The life of one run: train or resume, restart after divergence, write the final record.

A run can be stopped or killed at any moment; the same call then goes on from what was saved.
"""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from lowbit_core.conversion.footprint import size_and_bitops
from lowbit_core.kernels.bindings import kernel_lanes
from lowbit_core.parallel import processes
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime import hardware, signals
from lowbit_core.runtime.errors import DeviceLost
from lowbit_core.runtime.files import locked, remove_leftovers
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_folder import LOWER_WEIGHTS, WEIGHTS, WIDTHS, RunFolder
from lowbit_core.runtime.run_status import RunStatus, run_status
from lowbit_core.training import diagnostics, divergence, loop, state
from lowbit_core.training.build import Place, Run, build_run
from lowbit_core.training.evaluate import evaluate


def train_run(config: dict, method: Method, place: Place, is_loaded: bool = False) -> dict:
    """Train the run that `config` describes; returns its final record (final.json).

    is_loaded: another run loads its weights: if they are missing, it is made again.

    A finished run is not trained again. A run that was stopped goes on from there, and one that
    was killed from its last whole epoch. If another process trains the same run, this call waits
    for it. The processes of one run on several GPUs all make this call; the first one writes.
    Raises InputError for a bad configuration, missing data or damaged input.
    """
    path = place.runs / config["run_id"]
    if not processes.from_first(lambda: _status(config, path, is_loaded))[0]:
        waiting = f"{path}: another process trains this run: waiting for it"
        lock = locked(path / "lock", waiting) if processes.is_first() else contextlib.nullcontext()
        with lock:
            done, damage = processes.from_first(lambda: _status(config, path, is_loaded))
            if not done:
                if damage:
                    say(f"warning: {damage}: the run is made again")
                if processes.is_first():
                    remove_leftovers(path)
                with _device_errors(config["run_id"]):
                    return _train_with_restarts(config, method, place)
    if processes.is_first():  # a kill can come between writing final.json and this
        (path / state.CHECKPOINT).unlink(missing_ok=True)
    return processes.from_first(lambda: RunFolder(path).finished())


def _status(config: dict, path: Path, is_loaded: bool) -> tuple[bool, str]:
    """Whether the run is done, and how its record is damaged, if it is."""
    # Other runs may start from a run without `pretrained`. The weights of a run that no other
    # loads may be missing, where only its records were copied to this machine.
    weights = is_loaded or config["pretrained"] is None or (path / WEIGHTS).exists()
    status, damage = run_status(path, config["run_key"], weights=weights)
    return status is RunStatus.DONE, damage


@contextlib.contextmanager
def _device_errors(run_id: str) -> Iterator[None]:
    """Report a GPU that fails or runs out of memory in one sentence, as DeviceLost."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if not reason.startswith(("CUDA", "cuDNN")):
            raise
        raise DeviceLost(
            f"run {run_id}: the GPU failed ({reason}); what was saved is kept, {signals.AGAIN}"
        ) from error


def _train_with_restarts(config: dict, method: Method, place: Place) -> dict:
    """Train; after divergence begin again at half the learning rate, as the recipe allows."""
    allowed = config["recipe"].get("restarts", 0)
    saved = state.load(config, place)
    earlier = [] if saved is None else saved["before"]
    while True:
        run = build_run(config, method, place, earlier)
        done, sums = state.start(run, saved)
        saved = None  # frees its memory, and a restart does not resume
        row, cause = loop.train(run, done, sums)
        if cause is None or len(earlier) >= allowed:
            return _finish(run, row, cause)
        say(
            f"{config['run_id']}: diverged in epoch {row['epoch']} ({cause['because']}): "
            f"restart {len(earlier) + 1} of {allowed} with lr {run.lr / 2:g}"
        )
        earlier = [*earlier, {"epoch": row["epoch"], "lr": run.lr, **cause}]
        del run  # the memory may not hold two networks


def _finish(run: Run, last: dict | None, cause: dict | None) -> dict:
    """Test, measure and write the final record, from what `loop.train` returned."""
    device, model = run.place.device, run.model if run.ema is None else run.ema.module
    size, fp_size, bitops = size_and_bitops(model, run.report)
    layer, because = (None, None) if cause is None else (cause["layer"], cause["because"])
    epochs = run.recipe["epochs"] if last is None else last["epoch"]
    final = {"run_key": run.config["run_key"], "status": "done" if cause is None else "diverged"}
    final |= dict.fromkeys(("top1", "top5", "test_loss", "val_top1"))
    final |= {"size_bytes": size, "fp_size_bytes": fp_size, "bitops": bitops}
    final |= {"epochs_done": epochs, "lr": run.lr, "diverged_before": run.earlier}
    final |= {"diverged_layer": layer, "diverged_because": because}
    final |= {"nonfinite_batches": divergence.nonfinite_batches(run.model)}
    if run.teachers is not None:
        final |= {"teacher_weights": run.teachers.shares()}
    final |= {"hardware": hardware.hardware_name(device), "device": device.type}
    final |= {"instruction_set": hardware.instruction_set(), "kernel_lanes": kernel_lanes()}
    final |= {"threads": run.place.threads, "processes": processes.world()}
    final |= {"versions": hardware.versions(), "git_commit": hardware.git_commit()}
    final |= {"loader": run.data.train.backend, "compile": run.compiled}
    final |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    final |= {"seconds": time.monotonic() - run.started}
    if cause is None:
        test = evaluate(run, run.data.test)
        final |= {"top1": test["top1"], "top5": test["top5"], "test_loss": test["loss"]}
        final["val_top1"] = last["val_top1"] if last else evaluate(run, run.data.val)["top1"]
        if processes.is_first():
            diagnostics.record_trained(run, model)
        if run.widths is not None:
            run.folder.write_table("widths.csv", WIDTHS, _width_rows(run))
            run.folder.save_tensors(LOWER_WEIGHTS, run.widths.weights())
    run.folder.save_tensors(WEIGHTS, model.state_dict())
    final = run.folder.finish(final)
    run.folder.remove(state.CHECKPOINT)
    return final


def _width_rows(run: Run) -> list[dict]:
    """One row of widths.csv for each lower width of a run that has some."""
    rows = []
    for width in [] if run.widths is None else run.widths.lower:
        test, val = (evaluate(run, data, width.network) for data in (run.data.test, run.data.val))
        size, _, bitops = size_and_bitops(width.network, width.report)
        row = {"w_bits": width.w_bits, "a_bits": width.a_bits, "val_top1": val["top1"]}
        row |= {"top1": test["top1"], "top5": test["top5"], "test_loss": test["loss"]}
        rows.append(row | {"size_bytes": size, "bitops": bitops})
    return rows
