"""Packs the runs of a suite into jobs, each of which one process trains."""

import itertools
from dataclasses import dataclass

from lowbit_core.runtime.run_status import loaded_runs
from workflow.comparisons import load_comparisons
from workflow.suite.jobs import main_role

OPTIONS = "options"
"""The kind of the jobs whose runs have options."""


@dataclass(frozen=True)
class Job:
    """Runs that one process trains, all from the same checkpoint, in this order."""

    name: str
    runs: tuple[dict, ...]
    """Resolved run configurations, each with its `role`."""
    needs: tuple[str, ...] = ()
    """The jobs that train the checkpoint and the other runs whose weights these runs load."""

    @property
    def keys(self) -> list[str]:
        return [run["run_key"] for run in self.runs]


def pack(runs: list[dict], runs_per_job: int) -> dict[str, Job]:
    """The jobs of runs, of which each comes after the runs that it loads."""
    starts: dict[str, str] = {}
    depths: dict[str, int] = {}
    unique: dict[str, dict] = {}
    for run in runs:
        run_id = run["run_id"]
        depths[run_id] = 1 + max((depths[name] for name in loaded_runs(run)), default=-1)
        role = main_role(run["role"], unique.get(run_id, run)["role"])
        unique[run_id] = {**run, "role": role}
        if not run["pretrained"]:
            base = f"{run['dataset']}-{run['arch']}-s{run['seed']}-{run['run_key'][:8]}"
            starts[run_id] = base
    # The runs that feed the ablation tables go into jobs of their own, so that
    # `snakemake results/ablation_channel_error.csv` trains little else. So do runs with options,
    # by their depth (the longest chain of runs that each loads): no two jobs need each other then.
    ablation_methods = {"fp", *load_comparisons().ablation_methods}
    members: dict[str, dict[tuple[str, int], list[dict]]] = {base: {} for base in starts.values()}
    for run_id, run in unique.items():
        if run["pretrained"]:
            kind = "ablation" if run["method"] in ablation_methods else "rest"
            if run["role"] == "option" or depths[run_id] > 1:
                kind = OPTIONS
            kinds = members[starts[run["pretrained"]]]
            kinds.setdefault((kind, depths[run_id]), []).append(run)
    jobs, owner = {}, {}
    for run_id, base in starts.items():
        owner[run_id] = name = f"{base}-checkpoint"
        jobs[name] = Job(name, (unique[run_id],))
    for base, kinds in members.items():
        parts: dict[str, itertools.count] = {}
        for (kind, _), chosen in sorted(kinds.items(), key=_order):
            count = parts.setdefault(kind, itertools.count())
            for start in range(0, len(chosen), runs_per_job):
                packed = tuple(chosen[start : start + runs_per_job])
                name = f"{base}-{kind}{next(count)}"
                needs = (owner[loaded] for run in packed for loaded in loaded_runs(run))
                jobs[name] = Job(name, packed, tuple(dict.fromkeys(needs)))
                owner |= dict.fromkeys((run["run_id"] for run in packed), name)
    return jobs


def _order(item: tuple[tuple[str, int], list[dict]]) -> tuple:
    kind, depth = item[0]
    return kind == OPTIONS, kind, depth  # runs with options load runs of the other kinds
