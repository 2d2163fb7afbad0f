"""What a suite still has to train, in which order and at what cost; a slice of it to carry away.

usage: python -m workflow.away.queue --suite paper [--datasets cifar100] [--out slice --data data]
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowbit_core.quantizers.bits import bits_label
from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import write_json
from lowbit_core.runtime.run_folder import check_run_id
from workflow.away.cost import Costs, epochs_done

ROOT = Path(__file__).parents[2]
PLAN = "plan.json"
SOURCES = ("lowbit_core", "baselines")  # the code that trains


@dataclass(frozen=True)
class Plan:
    """The runs of a suite in the order of training; each is a resolved configuration with a role."""

    suite: str
    runs: tuple[dict, ...]
    commit: str = ""
    """Of the code, where the plan came from elsewhere."""

    @property
    def roles(self) -> dict[str, str]:
        return {run["run_id"]: run["role"] for run in self.runs}

    @property
    def datasets(self) -> list[str]:
        return sorted({run["dataset"] for run in self.runs})


def is_done(run: dict, runs: Path) -> bool:
    """True where `runs` holds the final record of exactly this run (a checkpoint's weights too)."""
    folder = runs / run["run_id"]
    if not (folder / "final.json").exists():
        return False
    if run["role"] == "checkpoint" and not (folder / "weights.pt").exists():
        return False
    return json.loads((folder / "final.json").read_text()).get("run_key") == run["run_key"]


def suite_plan(name: str, datasets: str = "", compile: str = "") -> Plan:
    """The plan of a suite. Imports what the bare machine may lack."""
    from workflow.suite.suite import load_suite

    suite = load_suite(name, compile).only(datasets)
    unique = {run["run_id"]: run for job in suite.jobs.values() for run in job.runs}
    return Plan(suite.name, tuple(ordered(unique.values())))


def ordered(runs: Iterable[dict]) -> list[dict]:
    """By network, then seed, then bits, each as the suite lists them: every part tells most early."""
    runs = list(runs)
    networks = [_network(run) for run in runs]
    bits = list(dict.fromkeys(_bits(r) for r in runs if r["role"] == "run" and _bits(r) != "FP"))

    def place(run: dict) -> tuple:
        label = _bits(run)
        rank = -1 if label == "FP" else bits.index(label) if label in bits else len(bits)
        first = run["role"] != "checkpoint"
        return networks.index(_network(run)), run["seed"], first, rank, run["role"] == "ablation"

    return sorted(runs, key=place)


def _bits(run: dict) -> str:
    return bits_label(run["w_bits"], run["a_bits"])


def _network(run: dict) -> str:
    return json.dumps([run["dataset"], run["arch"], run["arch_options"]], sort_keys=True)


# -- what is printed -------------------------------------------------------------------------


def describe(plan: Plan, runs: Path, costs: Costs) -> str:
    """The plan in words: runs, what is done, predicted hours of what is left; a line a network."""
    groups: dict[str, list[dict]] = {}
    for run in plan.runs:
        groups.setdefault(f"{run['dataset']} {run['arch']}", []).append(run)
    lines = [_line(f"suite {plan.suite}", plan.runs, runs, costs)]
    if len(groups) > 1:
        lines += [_line(f"  {name}", group, runs, costs) for name, group in groups.items()]
    return "\n".join(lines)


def _line(name: str, group: Iterable[dict], runs: Path, costs: Costs) -> str:
    group = list(group)
    left = [run for run in group if not is_done(run, runs)]
    done = {run["run_id"]: epochs_done(runs / run["run_id"]) for run in left}
    seconds = [costs.seconds(run, done[run["run_id"]]) for run in left]
    known = [s for s in seconds if s is not None]
    text = f"{name}: {len(group)} runs, {len(group) - len(left)} done, "
    text += f"{sum(map(bool, done.values()))} begun, {len(left)} left"
    if known:
        text += f", {sum(known) / 3600:.2f} h predicted"
    if len(known) < len(left):
        text += f", {len(left) - len(known)} of unknown cost"
    return text


# -- carrying a slice ------------------------------------------------------------------------


def source_digests(root: Path = ROOT) -> dict[str, str]:
    """SHA-256 of every file of the code that trains, by its path."""
    files = sorted(path for folder in SOURCES for path in (root / folder).rglob("*.py"))
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_slice(plan: Plan, runs: Path, data: Path, out: Path) -> list[Path]:
    """Write plan, data shards and begun runs to `out`, for a machine that has none of them.

    Finished runs are left out, but for the checkpoints that others start from.
    """
    from lowbit_core.runtime.hardware import git_commit  # imports torch
    from workflow.away.shards import write_shards

    left = [run for run in plan.runs if not is_done(run, runs)]
    needed = {run["pretrained"] for run in left}
    kept = [run for run in plan.runs if run in left or run["run_id"] in needed]
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "runs", ignore_errors=True)
    for run in kept:
        folder = runs / run["run_id"]
        if run not in left or (folder / "checkpoint.pt").exists():
            shutil.copytree(folder, out / "runs" / run["run_id"])
    for dataset in sorted({run["dataset"] for run in left}):
        if not list(out.glob(f"{dataset}.*of*.tar")):
            write_shards(data / dataset, out)
    write_plan(Plan(plan.suite, tuple(kept), git_commit()), out)
    return sorted(path for path in out.rglob("*") if path.is_file())


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan to `folder`, with what tells whether code elsewhere is the same."""
    write_json(
        folder / PLAN,
        {
            "suite": plan.suite,
            "runs": plan.runs,
            "commit": plan.commit,
            "sources": source_digests(),
        },
    )


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`; InputError if it is missing, damaged or made for other code."""
    path = folder / PLAN
    try:
        found = json.loads(path.read_text())
        plan = Plan(found["suite"], tuple(found["runs"]), found["commit"])
        for run in plan.runs:
            for name in (run["run_id"], run["pretrained"] or run["run_id"], run["dataset"]):
                check_run_id(name)
        planned = found["sources"]
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is missing: write it with `python -m workflow.away.queue`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a plan ({error}): write it again") from error
    here = source_digests()
    names = sorted(planned.keys() | here.keys())
    other = [name for name in names if planned.get(name) != here.get(name)]
    if other:
        raise InputError(f"{path} was made with another {other[0]}: bring the code of the plan")
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--datasets", default="", help="only these, separated by commas")
    parser.add_argument("--compile", default="", help="not the suite's own setting")
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, help="write the slice to this folder")
    arguments = parser.parse_args()
    plan = suite_plan(arguments.suite, arguments.datasets, arguments.compile)
    costs = Costs()
    costs.look(arguments.runs)
    print(describe(plan, arguments.runs, costs))
    if arguments.out:
        for path in write_slice(plan, arguments.runs, arguments.data, arguments.out):
            print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_cli(main)
