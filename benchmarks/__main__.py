"""Measure everything and write results/benchmarks/: `python -m benchmarks [--only NAME] [--quick]`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import loaders, plot, quantizers, startup, steps
from benchmarks.timing import say
from lowbit_core.errors import run_cli
from lowbit_core.files import replace_file
from lowbit_core.fused import compiler_found
from lowbit_core.hardware import git_commit, hardware_name

OUT = Path("results/benchmarks")
PARTS: dict[str, Callable[[int], list[dict]]] = {
    "quantizers": quantizers.measure,
    "growth": quantizers.growth,
    "steps": lambda rounds: steps.measure(steps.NETWORKS, rounds),
    "loaders": lambda rounds: loaders.measure(len(os.sched_getaffinity(0))),
    "startup": lambda rounds: startup.measure(3 if rounds > 3 else 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    arguments = parser.parse_args()
    # One cache for all, as in a sweep; set before anything is compiled.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(".cache/inductor").resolve()))
    if not compiler_found():
        say("warning: no C++ compiler found: the quantizers are measured uncompiled")
    about = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "hardware": hardware_name(quantizers.device()),
        "commit": git_commit(),
    }
    for name in arguments.only or PARTS:
        rows = PARTS[name](3 if arguments.quick else 15)
        if rows:
            table = pd.DataFrame([row | about for row in rows])
            with replace_file(OUT / f"{name}.csv") as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")
            shown = table.drop(columns=list(about)).round(2)
            print(f"\n{name} ({about['hardware']}, {about['threads']} threads)")
            print(shown.to_string(index=False), flush=True)
    made = [OUT / "quantizers.csv", OUT / "steps.csv"]
    if all(path.exists() for path in made):
        plot.draw(*map(pd.read_csv, made), OUT / "speed")
        print(f"\n{OUT}/*.csv, {OUT}/speed.svg and .png are written")


if __name__ == "__main__":
    run_cli(main)
