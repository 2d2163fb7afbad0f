"""Train the runs of one job, one after the other: `python -m workflow.train --job NAME ...`.

On several GPUs: `torchrun --standalone --nproc-per-node=8 -m workflow.train --job NAME ...`.
"""

import os
from pathlib import Path

from lowbit_core.runtime import signals
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_text
from lowbit_core.runtime.progress import say
from workflow.gpu_slots import take_device


def train_one(run: dict, data: Path, runs: Path, device, is_loaded: bool = False) -> dict:
    """Train one run of a suite, or find it trained, on a torch.device; returns its final record.

    is_loaded: another run loads its weights.
    """
    import baselines
    from lowbit_core.runtime.backend import pick_backend
    from lowbit_core.runtime.memory import keep_freed_memory
    from lowbit_core.training.run import Place, train_run

    keep_freed_memory()
    config = {key: value for key, value in run.items() if key != "role"}
    config["loader"] = pick_backend(run["loader"])
    place = Place(data, runs, device, run["threads"])
    return train_run(config, baselines.method(run["method"]), place, is_loaded)


def main() -> None:
    signals.listen()  # before the imports that take seconds
    from workflow.suite.arguments import suite_parser
    from workflow.suite.jobs import job_text
    from workflow.suite.suite import ROOT, load_suite

    parser = suite_parser(__doc__)
    parser.add_argument("--job", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-gpu", type=int, default=1, help="training processes on one GPU")
    arguments = parser.parse_args()
    if arguments.per_gpu < 1:
        raise InputError(f"--per-gpu is {arguments.per_gpu}: it must be at least 1")
    suite = load_suite(arguments.suite, arguments.compile)
    if arguments.job not in suite.jobs:
        raise InputError(
            f"suite {suite.name!r} has no job {arguments.job!r}: if the suite or the code changed "
            "while the sweep ran, start snakemake again"
        )
    job = suite.jobs[arguments.job]
    # One kernel cache for all jobs, kept between sweeps; set before torch compiles anything.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "inductor"))
    from lowbit_core.parallel import processes

    # The processes of one run need a GPU each.
    device = take_device(1 if processes.launched() else arguments.per_gpu)
    if processes.launched():
        processes.start(device)

    # What the runs load is trained already, unless a file of it was damaged since.
    for run in suite.loaded_by(job):
        train_one(run, arguments.data, arguments.runs, device, is_loaded=True)
    for number, run in enumerate(job.runs, 1):
        say(f"{arguments.job}: run {number} of {len(job.runs)}: {run['run_id']}")
        final = train_one(run, arguments.data, arguments.runs, device)
        result = f"layer {final['diverged_layer']}: {final['diverged_because']}"
        if final["top1"] is not None:
            # What is chosen between variants must not know the test images.
            of, key = ("validation", "val_top1") if suite.hides_test else ("test", "top1")
            result = f"{of} top-1 {final[key]:.2f} %"
        say(f"{run['run_id']}: {final['status']}, {result}")
    if processes.is_first():
        write_text(arguments.out, job_text(job.runs))
    processes.finish()


if __name__ == "__main__":
    run_cli(main)
