"""Measure speed and memory, to results/benchmarks/: `python -m benchmarks [--only PART]`."""

import argparse
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from benchmarks import deploy, loaders, plot, quantizers, startup, steps
from benchmarks.timing import DEVICE
from lowbit_core.kernels.fused import compiler_found
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import replace_file
from lowbit_core.runtime.hardware import git_commit, hardware_name
from lowbit_core.runtime.progress import say

PARTS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "quantizers": lambda given: quantizers.measure(3 if given.quick else 15),
    "steps": lambda given: steps.measure(
        given.arch or steps.NETWORKS,
        3 if given.quick else 15,
        given.compile,
        given.bits,
        given.precision or steps.PRECISIONS,
    ),
    "loaders": lambda given: loaders.measure(given.jpegs, 1 if given.quick else 3),
    "startup": lambda given: startup.measure(1 if given.quick else 3),
    "deploy": lambda given: deploy.measure(given.quick),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--only", choices=tuple(PARTS), action="append", help="may be repeated")
    add("--quick", action="store_true", help="3 rounds instead of 15")
    add("--out", type=Path, default=Path("results/benchmarks"), help="a folder for the tables")
    add("--jpegs", type=Path, help="a folder of JPEG files, for ImageNet's loader")
    add("--arch", choices=tuple(steps.NETWORKS), action="append", help="of steps; may be repeated")
    add("--compile", choices=steps.COMPILE, default="quantizers", help="of steps")
    add("--bits", type=int, choices=quantizers.BITS, default=2, help="of steps")
    add("--precision", choices=steps.PRECISIONS, action="append", help="of steps; may be repeated")
    given = parser.parse_args()
    if given.jpegs and not any(given.jpegs.glob("*.JPEG")):
        raise InputError(f"--jpegs {given.jpegs}: it must be a folder that holds *.JPEG files")
    return given


def _write(path: Path, rows: list[dict], about: dict) -> None:
    """Write the rows, with the columns `about` the machine, and print them."""
    table = pd.DataFrame(rows)
    added = {key: value for key, value in about.items() if key not in table}  # deploy has threads
    table = table.assign(**added)
    with replace_file(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    print(f"\n{path.stem} ({about['hardware']}, {about['threads']} threads)")
    print(table.drop(columns=list(added)).round(2).to_string(index=False), flush=True)


def main() -> None:
    given = _arguments()
    # All parts share one cache of kernels, as a sweep does. Set before anything is compiled.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(".cache/inductor").resolve()))
    warnings.simplefilter("ignore")  # torch.ao and Brevitas use what is deprecated
    if not compiler_found():
        say("warning: no C++ compiler found: the quantizers are measured uncompiled")
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"hardware": hardware_name(DEVICE), "commit": git_commit()}
    for name in given.only or PARTS:
        if rows := PARTS[name](given):
            _write(given.out / f"{name}.csv", rows, about)
    made = [given.out / "quantizers.csv", given.out / "steps.csv"]
    if all(path.exists() for path in made):
        plot.draw(*map(pd.read_csv, made), given.out)
        print(f"\n{given.out}/*.csv, {given.out}/speed.svg and .png are written")


if __name__ == "__main__":
    run_cli(main)
