"""Train the runs of one job, one after the other: `python -m workflow.train --job NAME ...`.

On several GPUs: `torchrun --standalone --nproc-per-node=8 -m workflow.train --job NAME ...`.
"""

import argparse
import os
from pathlib import Path

from lowbit_core.runtime import signals
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from lowbit_core.runtime.progress import say
from workflow.gpu_slots import Slot, gpu_names, lock_folder, take_slot


def main() -> None:
    signals.listen()  # before the imports that take seconds
    import baselines
    from lowbit_core.runtime.backend import pick_backend
    from workflow.suite.jobs import job_text
    from workflow.suite.suite import COMPILE_MODES, ROOT, load_suite

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-gpu", type=int, default=1, help="training processes on one GPU")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="", help="not the suite's own")
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite, arguments.compile)
    if arguments.job not in suite.jobs:
        raise InputError(
            f"suite {suite.name!r} has no job {arguments.job!r}: if the suite or the code changed "
            "while the sweep ran, start snakemake again"
        )
    job = suite.jobs[arguments.job]
    # One kernel cache for all jobs, kept between sweeps; set before torch compiles anything.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "inductor"))
    import torch

    from lowbit_core.parallel import processes
    from lowbit_core.training.run import Place, train_run

    slot = _take_gpu(arguments.per_gpu)  # it is held until the process ends
    device = torch.device("cuda", slot.device) if slot else torch.device("cpu")
    if processes.launched():
        processes.start(device)
    place = Place(arguments.data, arguments.runs, device, suite.config["threads"])

    def train(run: dict) -> dict:
        config = {key: value for key, value in run.items() if key != "role"}
        config["loader"] = pick_backend(run["loader"])
        return train_run(config, baselines.method(run["method"]), place)

    if job.needs:  # trained already, unless a file of it was damaged since
        train(suite.jobs[job.needs].runs[0])
    for number, run in enumerate(job.runs, 1):
        say(f"{arguments.job}: run {number} of {len(job.runs)}: {run['run_id']}")
        say(f"{run['run_id']}: {_outcome(train(run))}")
    if processes.is_first():
        write_text(arguments.out, job_text(job.runs))
    processes.finish()


def _take_gpu(per_gpu: int) -> Slot | None:
    """A slot on a GPU, waiting for one if it must; None on a machine without GPUs."""
    import torch

    from lowbit_core.parallel import processes

    if not torch.cuda.is_available():
        return None
    names = gpu_names()
    if processes.launched():  # the processes of one run need a GPU each
        per_gpu = 1
        if (count := int(os.environ["LOCAL_WORLD_SIZE"])) > len(names):
            raise InputError(f"a run on {count} GPUs: this machine has {len(names)}")
    slot = take_slot(names, per_gpu, lock_folder())
    torch.cuda.set_device(slot.device)
    return slot


def _outcome(final: dict) -> str:
    """How a run ended, in a few words, from its final record."""
    if final["top1"] is None:
        reason = f"layer {final['diverged_layer']}: {final['diverged_because']}"
    else:
        reason = f"test top-1 {final['top1']:.2f} %"
    return f"{final['status']}, {reason}"


if __name__ == "__main__":
    run_cli(main)
