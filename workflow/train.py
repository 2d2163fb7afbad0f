"""Train the runs of one job, one after the other: `python -m workflow.train --job NAME ...`."""

import argparse
import json
import os
import sys
from pathlib import Path

import baselines
from lowbit_core.data.backend import pick_backend
from lowbit_core.errors import InputError, run_cli
from lowbit_core.files import write_text
from workflow.suite import COMPILE_MODES, ROOT, load_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", choices=COMPILE_MODES, default="", help="not the suite's own")
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite, arguments.compile)
    if arguments.job not in suite.jobs:
        raise InputError(
            f"suite {suite.name!r} has no job {arguments.job!r}: if the suite or the code changed "
            "while the sweep ran, start snakemake again"
        )
    # One kernel cache for all jobs, kept between sweeps; set before torch compiles anything.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".cache" / "inductor"))
    import torch

    from lowbit_core.training import Place, is_finished, train_run

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = Place(arguments.data, arguments.runs, device, suite.config["threads"])
    job = suite.jobs[arguments.job]
    runs = job.runs
    if job.needs and not is_finished(suite.jobs[job.needs].runs[0], arguments.runs):
        raise InputError(
            f"the checkpoint run {runs[0]['pretrained']} is not complete in {arguments.runs}: "
            f"delete {arguments.out.parent / job.needs}.jsonl and run snakemake again"
        )
    lines = []
    for number, run in enumerate(runs, 1):
        print(
            f"{arguments.job}: run {number} of {len(runs)}: {run['run_id']}",
            file=sys.stderr,
            flush=True,
        )
        config = {key: value for key, value in run.items() if key != "role"}
        config["loader"] = pick_backend(run["loader"])[0]
        final = train_run(config, baselines.method(run["method"]), place)
        top1 = "diverged" if final["top1"] is None else f"test top-1 {final['top1']:.2f} %"
        print(f"{run['run_id']}: {final['status']}, {top1}", file=sys.stderr, flush=True)
        lines.append(json.dumps({"run_id": run["run_id"], "role": run["role"]}))
    write_text(arguments.out, "".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    run_cli(main)
