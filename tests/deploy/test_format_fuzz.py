"""Wrong files by the hundred: each is refused in one sentence, or runs within its own memory."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutants import try_mutants
from small_networks import about, every_operation, one_layer, targets

from deploy import fileformat
from deploy.engine.plan import KERNELS
from deploy.graph import Graph, Pool, shapes

MUTANTS = 500
FEW = 50  # mutants with each kernel, and with each instruction set
SOAK = 100  # mutants of each combination in the long form


def codebook() -> Graph:
    """A layer with signed inputs whose weights the kernel `matrices` keeps in memory as codes."""
    rng = np.random.default_rng(0)
    basis = rng.uniform(0.1, 1, (70, 2)).astype(np.float32)
    levels = fileformat.basis_levels(basis)
    graph = one_layer(rng, levels, np.arange(-2.0, 2.0), 448, 70, 5, 3, 1, 1)
    scores = Pool("y", "scores", True, size=(1, 1))
    return replace(graph, output="scores", operations=(*graph.operations, scores))


GRAPHS = {"small": every_operation, "codebook": codebook}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{Name of a graph: its file}."""
    folder, paths = tmp_path_factory.mktemp("files"), {}
    for name, make in GRAPHS.items():
        graph = make()
        classes, channels = shapes(graph)[graph.output][0], graph.input_shape[0]
        paths[name] = folder / f"{name}.lowbit"
        fileformat.save(paths[name], graph, about(classes, channels))
    return paths


def test_mutants_of_a_file_are_refused_or_run(files, tmp_path):
    refused, ran = try_mutants(files["small"], tmp_path, MUTANTS)
    assert refused + ran == MUTANTS
    assert refused > MUTANTS / 2 and ran > 20  # both happen, or the test tests little


CHECKED = """
import json, sys
from pathlib import Path
from mutants import try_mutants
flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
for path, count, options in json.loads(sys.argv[2]):
    print(*try_mutants(Path(path), Path(sys.argv[1]), count, flags=flags, **options), flush=True)
"""


def run_checked(folder: Path, cases: list[tuple[Path, int, dict]]) -> None:
    """Try mutants in a process whose engine is built so that each access to memory is checked.

    cases: (file, number of mutants, options of Network).
    """
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    found = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    here = Path(__file__).parent
    environment = os.environ | {
        "LD_PRELOAD": found,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
        "PYTHONPATH": f"{here.parents[1]}:{here}",
    }
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, folder, json.dumps(cases, default=str)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [sum(both) for both in numbers] == [count for _, count, _ in cases]
    for (_, ran), (_, count, _) in zip(numbers, cases, strict=True):
        assert ran >= count / 25  # or the case tests little


# The sets of instructions for which a kernel has code of its own, besides that of this processor.
TARGETS = ["native", *(t for t in targets() if t in ("x86-64-v2", "x86-64-v3"))]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_mutants_read_no_memory_that_is_not_theirs(target, files, tmp_path):
    """Every kernel by name and two threads, on the small network and on one with a codebook."""
    cases = [(files["small"], MUTANTS, {})] if target == "native" else []
    for path in files.values():
        for seed, kernel in enumerate(KERNELS):
            options = {"target": target, "kernel": kernel, "threads": 2, "seed": seed}
            cases.append((path, FEW, options))
    run_checked(tmp_path, cases)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", GRAPHS)
def test_many_mutants_read_no_memory_that_is_not_theirs(name, target, files, tmp_path):
    """All combinations of kernel, instruction set, number of threads and network."""
    combinations = [(kernel, threads) for kernel in (None, *KERNELS) for threads in (1, 2, 3)]
    cases = [
        (files[name], SOAK, {"target": target, "kernel": k, "threads": n, "seed": 100 + seed})
        for seed, (k, n) in enumerate(combinations)
    ]
    run_checked(tmp_path, cases)
