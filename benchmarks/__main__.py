"""Measure and write results/benchmarks/: `python -m benchmarks [--only NAME] [--quick]`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import loaders, plot, quantizers, startup, steps
from benchmarks.timing import say
from lowbit_core.kernels.fused import compiler_found
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import replace_file
from lowbit_core.runtime.hardware import git_commit, hardware_name

OUT = Path("results/benchmarks")
ROUNDS, QUICK_ROUNDS = 15, 3


def _loaders(rounds: int, jpegs: Path | None) -> list[dict]:
    repeats = 3 if rounds > QUICK_ROUNDS else 1
    return loaders.measure(len(os.sched_getaffinity(0)), jpegs, repeats)


PARTS: dict[str, Callable[[int, Path | None], list[dict]]] = {
    "quantizers": lambda rounds, _: quantizers.measure(rounds),
    "growth": lambda rounds, _: quantizers.growth(rounds),
    "steps": lambda rounds, _: steps.measure(steps.NETWORKS, rounds),
    "loaders": _loaders,
    "startup": lambda rounds, _: startup.measure(3 if rounds > QUICK_ROUNDS else 1),
}


def _write(name: str, rows: list[dict], about: dict) -> None:
    """Write the rows to `name`.csv, with the columns `about` the machine, and print them."""
    table = pd.DataFrame([row | about for row in rows])
    with replace_file(OUT / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    print(f"\n{name} ({about['hardware']}, {about['threads']} threads)")
    print(table.drop(columns=list(about)).round(2).to_string(index=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=tuple(PARTS), action="append", help="may be repeated")
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}"
    )
    parser.add_argument("--jpegs", type=Path, help="a folder of JPEG files, for ImageNet's loader")
    arguments = parser.parse_args()
    if arguments.jpegs and not any(arguments.jpegs.glob("*.JPEG")):
        raise InputError(f"--jpegs {arguments.jpegs}: it must be a folder that holds *.JPEG files")
    # All parts share one cache of kernels, as a sweep does. Set before anything is compiled.
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
        rows = PARTS[name](QUICK_ROUNDS if arguments.quick else ROUNDS, arguments.jpegs)
        if rows:
            _write(name, rows, about)
    made = [OUT / "quantizers.csv", OUT / "steps.csv"]
    if all(path.exists() for path in made):
        plot.draw(*map(pd.read_csv, made), OUT / "speed")
        print(f"\n{OUT}/*.csv, {OUT}/speed.svg and .png are written")


if __name__ == "__main__":
    run_cli(main)
