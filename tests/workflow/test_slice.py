"""Slices: carried to a machine with only torch, stopped and continued, brought home and merged."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_runs import write_run
from tiny_run import config

from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.files import locked, write_json
from lowbit_core.runtime.run_folder import RunFolder
from workflow.away import bundle
from workflow.away.cost import Costs, kind, network, steps_an_epoch
from workflow.away.merge import merge, suites_of
from workflow.away.queue import Plan, describe, is_done, ordered, read_plan, suite_plan, write_plan
from workflow.away.shards import write_shards
from workflow.away.worker import Sweep
from workflow.results.reference import write_reference

ROOT = Path(__file__).parents[2]
FORBIDDEN = (
    "snakemake",
    "mlflow",
    "ffcv",
    "numba",
    "jsonschema",
    "yaml",
    "jinja2",
    "sklearn",
    "pandas",
    "seaborn",
    "matplotlib",
)
HOOK = f"""
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {FORBIDDEN!r}:
            return super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def planned(run_id, method="fp", pretrained=None, role="run", **changes):
    key = run_id.ljust(64, "0")
    return config(method, run_id, key, pretrained=pretrained, threads=1, **changes) | {"role": role}


@pytest.fixture
def plan():
    return Plan(
        "tiny",
        (
            planned("ckpt", role="checkpoint"),
            planned("fp", pretrained="ckpt"),
            planned("direct", "direct", pretrained="ckpt"),
        ),
    )


@pytest.fixture
def machine(tmp_path, digits_root, plan):
    """A folder with the sources and a slice, and what runs the slice in it without other packages."""
    home = tmp_path / "machine"
    for name in ("lowbit_core", "baselines", "workflow"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    write_shards(digits_root / "digits", home / "slice")
    write_plan(Plan(plan.suite, plan.runs, "0123456789ab"), home / "slice")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)

    def start(*options):
        command = [
            sys.executable,
            "-m",
            "workflow.away.worker",
            "--plan",
            "slice",
            "--home",
            "home",
            "--budget-minutes",
            "9",
            *options,
        ]
        settings = os.environ | {"PYTHONPATH": f"{hook}{os.pathsep}{home}"}
        return subprocess.Popen(command, cwd=home, env=settings, stderr=subprocess.PIPE, text=True)

    start.home = home
    return start


def numbers(folder):
    return (folder / "metrics.csv").read_bytes()


def test_a_slice_trains_with_torch_alone_and_comes_home(machine, plan, tmp_path):
    process = machine("--workers", "2")
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "suite tiny: 3 runs, 0 done" in said and "timing 2 kinds" in said
    assert "suite tiny: 3 runs, 3 done, 0 begun, 0 left" in said
    home = machine.home / "home"
    runs = tmp_path / "results" / "runs"
    assert merge([home], runs) == ["ckpt", "direct", "fp"]
    assert suites_of([home]) == {"tiny": plan.roles}
    assert all(is_done(run, runs) for run in plan.runs)
    assert json.loads((runs / "fp" / "final.json").read_text())["git_commit"] == "0123456789ab"
    assert merge([home], runs) == []
    there, here = tmp_path / "there", tmp_path / "here"
    for place, record in ((machine.home / "results" / "runs", there), (runs, here)):
        write_reference(plan.suite, {}, plan.roles, place, record)
    assert "results.csv" in os.listdir(there)
    for path in there.iterdir():  # the tables of the carried runs are those of the machine's own
        assert (here / path.name).read_bytes() == path.read_bytes(), path.name
    again = machine()  # nothing left: no process is started
    assert "0 left" in again.communicate(timeout=120)[1] and again.returncode == 0


def test_a_stopped_slice_goes_on_elsewhere_to_the_same_numbers(machine, plan, tmp_path):
    runs = machine.home / "results" / "runs"
    with locked(runs / "direct" / "lock", ""):  # so that it cannot end before it is stopped
        process = machine()
        while not (runs / "ckpt" / "metrics.csv").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and "stopped by a signal" in said
    other = tmp_path / "other"
    for name in ("lowbit_core", "baselines", "workflow", "slice"):
        shutil.copytree(machine.home / name, other / name)
    merge([machine.home / "home"], other / "slice" / "runs")
    for place in (other, machine.home):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "workflow.away.worker",
                "--plan",
                "slice",
                "--budget-minutes",
                "9",
            ],
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    for run in plan.runs:
        one, two = (place / "results" / "runs" / run["run_id"] for place in (other, machine.home))
        assert numbers(one) == numbers(two)


def test_other_code_than_the_plan_s_is_refused(machine):
    file = machine.home / "lowbit_core" / "basis.py"
    file.write_text(file.read_text() + "\nEXTRA = 1\n")
    process = machine()
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert said.count("\n") == 1 and "another lowbit_core/basis.py" in said


@pytest.mark.parametrize(
    ("text", "said"), [(None, "is missing"), ("{}", "not a plan"), ("[", "not a plan")]
)
def test_a_bad_plan_is_one_sentence(tmp_path, text, said):
    if text is not None:
        (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=said):
        read_plan(tmp_path)


# -- order, cost, choice ---------------------------------------------------------------------


def test_the_paper_s_plan_tells_most_first():
    runs = suite_plan("paper", "cifar100").runs
    networks = [run["arch"] for run in runs]
    assert list(dict.fromkeys(networks)) == ["resnet20", "resnet18", "alexnet", "mobilenetv2"]
    first = [run for run in runs if run["arch"] == "resnet20" and run["seed"] == 0]
    assert list(runs[: len(first)]) == first
    assert [run["role"] for run in first[:2]] == ["checkpoint", "run"] and first[1][
        "method"
    ] == "fp"
    bits = [f"W{run['w_bits']}A{run['a_bits']}" for run in first[2:]]
    assert list(dict.fromkeys(bits))[:3] == ["W2A2", "W1A2", "W3A3"]
    seen = set()
    for run in runs:
        assert run["pretrained"] is None or run["pretrained"] in seen
        seen.add(run["run_id"])
    assert ordered(runs) == list(runs)


def write_epochs(runs, run, seconds):
    folder = runs / run["run_id"]
    folder.mkdir(parents=True)
    write_json(folder / "config.json", run)
    rows = "".join(f"{i},{s},1,0,1\n" for i, s in enumerate(seconds, 1))
    (folder / "timings.csv").write_text(
        "epoch,seconds,images_per_s,data_wait_share,peak_memory_mb\n" + rows
    )
    return folder


def test_costs_come_from_timing_until_runs_tell_better(tmp_path):
    direct, fp = planned("a", "direct"), planned("b", "fp")
    costs = Costs()
    assert costs.seconds(direct) is None
    costs.add_timed(direct, 0.2)
    costs.add_timed(fp, 0.1)
    assert costs.step(direct) == 0.2
    write_epochs(tmp_path, fp, [9.0, 0.25, 0.25])  # 5 steps an epoch, the first one compiles
    costs.look(tmp_path)
    assert costs.step(fp) == pytest.approx(0.05)
    assert costs.step(direct) == pytest.approx(0.1)  # half of what was timed, as for fp
    assert network(direct) == network(fp) and kind(direct) != kind(fp)
    whole, rest = costs.seconds(direct), costs.seconds(direct, done=3)
    assert whole - rest == pytest.approx(3 * steps_an_epoch(direct) * 0.1)


def test_what_was_timed_is_kept_by_hardware(tmp_path):
    run, path = planned("a"), tmp_path / "costs.json"
    for hardware, seconds in (("H", 0.1), ("J", 0.2)):
        costs = Costs(hardware=hardware)
        costs.remember(path)
        assert costs.step(run) is None
        costs.add_timed(run, seconds)
        costs.store()
    for hardware, seconds in (("H", 0.1), ("J", 0.2), ("K", None)):
        costs = Costs(hardware=hardware)
        costs.remember(path)
        assert costs.step(run) == seconds


def test_runs_of_other_hardware_do_not_count(tmp_path):
    run = planned("a")
    folder = write_epochs(tmp_path, run, [1.0])
    write_json(folder / "final.json", {"hardware": "another"})
    costs = Costs(hardware="this")
    costs.look(tmp_path)
    assert costs.step(run) is None


def test_what_fits_is_chosen_and_what_was_begun_goes_on(tmp_path, plan):
    costs = Costs()
    state = Sweep(plan, tmp_path, costs)
    assert state.choose(60)["run_id"] == "ckpt"  # the others wait for it, whatever they cost
    folder = write_epochs(tmp_path, plan.runs[0], [1.0])
    (folder / "weights.pt").touch()
    write_json(folder / "final.json", {"run_key": plan.runs[0]["run_key"]})
    costs.add_timed(plan.runs[1], 1000.0)
    costs.add_timed(plan.runs[2], 0.1)
    assert state.choose(60)["run_id"] == "direct"
    assert state.choose(1)["run_id"] == "fp"  # nothing fits: the first, to be continued
    write_epochs(tmp_path, plan.runs[1], [1.0])
    assert state.choose(1)["run_id"] == "fp" and state.choose(60)["run_id"] == "direct"
    state.under_way.add("direct")
    assert state.choose(60)["run_id"] == "fp"
    state.failed["fp"] = "why"
    assert state.choose(60) is None
    assert "3 runs, 1 done, 1 begun, 2 left" in describe(plan, tmp_path, costs)


def test_nothing_is_started_from_a_checkpoint_that_failed(tmp_path, plan):
    state = Sweep(plan, tmp_path, Costs(), failed={"ckpt": "why"})
    assert state.left() == [] and state.choose(60) is None


# -- bringing home and merging ---------------------------------------------------------------


def finished(runs, run, top1=60.0, weights=b"w" * 100, epochs=2):
    folder = write_epochs(runs, run, [1.0] * epochs)
    (folder / "weights.pt").write_bytes(weights)
    RunFolder(folder).finish(
        {
            "run_key": run["run_key"],
            "status": "done",
            "top1": top1,
            "top5": 80.0,
            "test_loss": 1.0,
            "val_top1": 61.0,
            "epochs_done": epochs,
            "hardware": "H",
            "created": "today",
        }
    )
    return folder


def test_what_others_need_has_room_before_what_they_do_not(tmp_path, plan):
    runs = tmp_path / "runs"
    noise = os.urandom(3000)
    for run in plan.runs:
        finished(runs, run, weights=noise)
    records = sum(p.stat().st_size for p in runs.rglob("*.*") if p.name != "weights.pt")
    left_out = bundle.pack(plan, runs, tmp_path / "home", total=records + 6100)
    assert left_out == ["direct/weights.pt"]
    left_out = bundle.pack(plan, runs, tmp_path / "home", total=records + 3100)
    assert left_out == ["fp/weights.pt", "direct/weights.pt"]
    bundle.unpack(tmp_path / "home", tmp_path / "back")
    assert (tmp_path / "back" / "ckpt" / "weights.pt").read_bytes() == noise
    assert {p.name for p in (tmp_path / "back").iterdir()} == {"ckpt", "fp", "direct"}
    assert all(is_done(run, tmp_path / "back") for run in plan.runs)


def test_parts_are_small_and_all_needed(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(bundle, "PART_BYTES", 1000)
    finished(tmp_path / "runs", plan.runs[0], weights=os.urandom(3500))
    bundle.pack(plan, tmp_path / "runs", tmp_path / "home")
    parts = sorted((tmp_path / "home").iterdir())
    assert len(parts) >= 4 and all(path.stat().st_size <= 1000 for path in parts)
    bundle.unpack(tmp_path / "home", tmp_path / "back")
    parts[1].write_bytes(b"x" * 1000)
    with pytest.raises(InputError, match="is damaged"):
        bundle.unpack(tmp_path / "home", tmp_path / "again")
    parts[1].unlink()
    with pytest.raises(InputError, match="parts of runs.tar.gz are needed"):
        bundle.unpack(tmp_path / "home", tmp_path / "again")


def test_merging_takes_the_more_complete_of_each_run(tmp_path, plan):
    ckpt, fp, direct = plan.runs
    finished(tmp_path / "a" / "runs", ckpt)
    write_epochs(tmp_path / "a" / "runs", fp, [1.0, 2.0])
    write_epochs(tmp_path / "b" / "runs", fp, [1.0])
    finished(tmp_path / "b" / "runs", direct)
    (finished(tmp_path / "out", direct) / "weights.pt").unlink()  # left on its machine
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out") == ["ckpt", "direct", "fp"]
    assert (tmp_path / "out" / "direct" / "weights.pt").exists()
    with (tmp_path / "out" / "fp" / "timings.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    assert merge([tmp_path / "b", tmp_path / "a"], tmp_path / "out") == []


def test_a_conflict_is_refused_in_one_sentence_and_nothing_is_copied(tmp_path, plan):
    finished(tmp_path / "a" / "runs", plan.runs[0])
    finished(tmp_path / "a" / "runs", plan.runs[1], top1=60.0)
    finished(tmp_path / "b" / "runs", plan.runs[1], top1=61.0)
    with pytest.raises(
        InputError, match="run fp was trained twice .* 60.0 on H .* 61.0 on H"
    ) as error:
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    path = tmp_path / "b" / "runs" / "fp" / "metrics.csv"
    path.write_text("other")
    RunFolder(path.parent).finish({"run_key": plan.runs[1]["run_key"], "top1": 1.0})
    path.write_text("damaged")
    with pytest.raises(InputError, match="metrics.csv is not what was written"):
        merge([tmp_path / "b"], tmp_path / "out")
    other = plan.runs[0] | {"run_key": "f" * 64}
    write_epochs(tmp_path / "c" / "runs", other, [1.0])
    with pytest.raises(InputError, match="ckpt has 2 different run keys"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "out")
    with pytest.raises(InputError, match="nothing to merge"):
        merge([tmp_path], tmp_path / "out")


def test_merged_runs_are_tracked(tmp_path, plan):
    home = tmp_path / "home"
    (tmp_path / "runs").mkdir()
    run_id = write_run(tmp_path / "runs", "resnet20", "direct", (2, 2), 0)
    stored = json.loads((tmp_path / "runs" / run_id / "config.json").read_text())
    one = Plan("tiny", (stored | {"role": "run"},))
    bundle.pack(one, tmp_path / "runs", home)
    write_plan(one, home)
    out = tmp_path / "results"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "workflow.away.merge",
            str(home),
            "--runs",
            str(out / "runs"),
            "--store",
            str(out / "mlflow"),
            "--data",
            str(tmp_path / "data"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 runs are new" in done.stdout and "1 runs of suite tiny are in" in done.stdout
