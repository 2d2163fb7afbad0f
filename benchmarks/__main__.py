"""Measure speed and memory, to results/benchmarks/: `python -m benchmarks [--only PART]`."""

import argparse
import os
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from benchmarks import avx2, deploy, loaders, quantizers, startup, steps
from benchmarks.pages import plot
from benchmarks.peers import PEERS, find_peer
from benchmarks.timing import DEVICE
from lowbit_core.kernels.bindings import kernel_lanes
from lowbit_core.kernels.fused import compiler_found
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import replace_file, write_json
from lowbit_core.runtime.hardware import git_commit, hardware_name, instruction_set, versions
from lowbit_core.runtime.memory import keep_freed_memory
from lowbit_core.runtime.progress import say

OUT = Path("results/benchmarks")
PARTS: dict[str, Callable[[argparse.Namespace], Iterable[dict]]] = {
    "quantizers": lambda given: quantizers.measure(3 if given.quick else 15),
    "steps": lambda given: steps.measure(
        given.arch or steps.NETWORKS,
        3 if given.quick else 15,
        given.compile,
        given.bits,
        given.precision or (["fp32"] if given.avx2 else steps.PRECISIONS),
    ),
    "loaders": lambda given: loaders.measure(given.jpegs, 1 if given.quick else 3),
    "startup": lambda given: startup.measure(1 if given.quick else 3),
    "deploy": lambda given: deploy.measure(given.quick),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--only", choices=tuple(PARTS), action="append", help="may be repeated")
    add("--quick", action="store_true", help="fewer rounds and tiny exported networks: a try")
    add(
        "--out",
        type=Path,
        help="a folder for the tables: by default results/benchmarks, or with_options in it",
    )
    add("--jpegs", type=Path, help="a folder of JPEG files, for ImageNet's loader")
    add("--arch", choices=tuple(steps.NETWORKS), action="append", help="of steps; may be repeated")
    add("--compile", choices=steps.COMPILE, default="quantizers", help="of steps")
    add("--bits", type=int, choices=quantizers.BITS, default=2, help="of steps")
    add("--precision", choices=steps.PRECISIONS, action="append", help="of steps; may be repeated")
    add("--avx2", action="store_true", help="AVX2 alone, float32; the processor may have more")
    given = parser.parse_args()
    # What the pages do not show takes the place of no table that they show.
    given.out = given.out or OUT / ("with_options" if _settings(given) else "")
    if given.jpegs and not any(given.jpegs.glob("*.JPEG")):
        raise InputError(f"--jpegs {given.jpegs}: it must be a folder that holds *.JPEG files")
    of_part = dict.fromkeys(("arch", "bits", "compile", "precision"), "steps")
    for option, part in (of_part | {"jpegs": "loaders"}).items():
        is_given = getattr(given, option) != parser.get_default(option)
        if is_given and given.only and part not in given.only:
            raise InputError(f"--{option} is of the part {part}: add --only {part}")
    if given.avx2 and "bf16" in (given.precision or ()):
        raise InputError("--avx2 --precision bf16: without bf16 instructions only fp32 is measured")
    return given


def _settings(given: argparse.Namespace) -> dict:
    """The options that make the figures others than those of the pages, with their values."""
    usual = {"quick": False, "arch": None, "bits": 2, "compile": "quantizers", "precision": None}
    found = {name: getattr(given, name) for name in usual}
    return {name: value for name, value in found.items() if value != usual[name]}


def _about(given: argparse.Namespace) -> dict:
    """The machine, the versions and the options that a table was measured with."""
    about = {"hardware": hardware_name(DEVICE), "instruction_set": instruction_set()}
    about |= {"kernel_lanes": kernel_lanes(), "threads": torch.get_num_threads()}
    if avx2.held():
        about["instruction_set"] = "AVX2, held to it"
    peers = {name: version(name) for name in PEERS if find_peer(name)} | deploy.versions()
    about |= {"date": datetime.now(UTC).date().isoformat(), "versions": versions() | peers}
    return about | {"commit": git_commit(), "settings": _settings(given)}


def _write(path: Path, rows: Iterable[dict], about: dict) -> None:
    """Write rows to `path`.csv and what they are measured with to `path`.json; print them.

    What has been compared is written at once, so that a part that is stopped keeps it. The last
    `path`.json says that the table is complete.
    """
    measured: list[dict] = []
    for row in rows:
        if not measured:  # before the table of an earlier run is gone
            write_json(path.with_suffix(".json"), about | {"complete": False})
        measured.append(row)
        table = pd.DataFrame(measured)
        with replace_file(path.with_suffix(".csv")) as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    if not measured:
        return
    write_json(path.with_suffix(".json"), about | {"complete": True})
    print(f"\n{path.name} ({about['hardware']}, {about['threads']} threads)")
    print(table.round(2).to_string(index=False), flush=True)


def main() -> None:
    given = _arguments()
    if given.avx2:
        avx2.hold_to_avx2()
    keep_freed_memory()  # as in training
    # All parts share one cache of kernels, as a sweep does. Set before anything is compiled.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(".cache/inductor").resolve()))
    warnings.simplefilter("ignore")  # torch.ao and Brevitas use what is deprecated
    if not compiler_found():
        say("warning: no C++ compiler found: the quantizers are measured uncompiled")
    about = _about(given)
    for name in given.only or PARTS:
        path = given.out / (f"{name}_avx2" if given.avx2 else name)
        _write(path, PARTS[name](given), about)
    made = [given.out / "quantizers.csv", given.out / "steps.csv"]
    if all(path.exists() for path in made):
        plot.draw(*map(pd.read_csv, made), given.out)
    pages = "" if _settings(given) else f"; the pages: python -m benchmarks.document {given.out}"
    print(f"\nwritten to {given.out}{pages}")


if __name__ == "__main__":
    run_cli(main)
