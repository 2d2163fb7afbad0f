"""The runs of a suite in the order of training; what is left of them, packed for another machine.

usage: python -m workflow.away.queue --suite paper [--datasets cifar100] [--out FOLDER --data data]
"""

import json
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.files import sha256_file, write_json
from lowbit_core.runtime.hardware import git_commit
from lowbit_core.runtime.run_folder import check_run_id
from lowbit_core.runtime.run_status import RunStatus, loaded_runs, run_status
from lowbit_core.training.state import CHECKPOINT
from workflow.away.parcel import pack_data, pack_runs
from workflow.suite.identity import ROOT, SOURCE_SUFFIXES, run_key


@dataclass(frozen=True)
class Queue:
    """A suite's runs (configurations with roles) in the order of training; the code's commit."""

    suite: str
    runs: list[dict]
    commit: str = ""

    def done(self, root: Path) -> set[str]:
        """The ids of runs whose whole record is in `root`, with the weights that others load."""
        loaded = self.loaded
        return {
            run["run_id"]
            for run in self.runs
            if run_status(root / run["run_id"], run["run_key"], weights=run["run_id"] in loaded)[0]
            is RunStatus.DONE
        }

    @property
    def loaded(self) -> set[str]:
        """The ids of the runs whose weights others load, and of all checkpoints."""
        checkpoints = {run["run_id"] for run in self.runs if run["pretrained"] is None}
        return checkpoints.union(*map(loaded_runs, self.runs))


def is_begun(run: dict, root: Path) -> bool:
    """Whether the run was stopped before its end and saved a state to resume from."""
    return (root / run["run_id"] / CHECKPOINT).exists()


def suite_queue(name: str, datasets: str = "", compile: str = "") -> Queue:
    """The queue of a suite. It imports packages that a machine with only torch does not have."""
    from workflow.suite.suite import load_suite

    suite = load_suite(name, compile).only(datasets)
    return Queue(suite.name, ordered(suite.runs), git_commit())


def ordered(runs: list[dict]) -> list[dict]:
    """Sort by network, seed (starts first) and bits, so that a stop leaves whole answers."""
    network, bits = itemgetter("dataset", "arch", "arch_options"), itemgetter("w_bits", "a_bits")
    networks = [network(run) for run in runs]
    extra = ("ablation", "option")
    known = [bits(run) for run in runs if run["role"] not in extra]  # begins with full precision

    def position(run: dict) -> tuple:
        rank = known.index(bits(run)) if bits(run) in known else len(known)
        others = run["pretrained"] is not None, rank, run["role"] in extra
        return networks.index(network(run)), run["seed"], *others

    return sorted(runs, key=position)


def describe(queue: Queue, root: Path) -> str:
    """One line: how many runs the queue has, and how many of them are done, begun and left."""
    done, total = queue.done(root), len(queue.runs)
    begun = sum(is_begun(run, root) for run in queue.runs if run["run_id"] not in done)
    counts = f"{len(done)} done, {begun} begun, {total - len(done)} left"
    return f"suite {queue.suite}: {total} runs, {counts}"


def pack_left(queue: Queue, root: Path, data: Path, out: Path) -> Queue:
    """Pack data sets, begun runs and the starts of others into `out`; returns what is left."""
    done = queue.done(root)
    left = [run for run in queue.runs if run["run_id"] not in done]
    by_id = {run["run_id"]: run for run in queue.runs}
    wanted = [run["run_id"] for run in left]
    for run_id in wanted:  # it grows: what a run loads may itself load another
        wanted += [name for name in loaded_runs(by_id[run_id]) if name not in wanted]
    kept = [run for run in queue.runs if run["run_id"] in wanted]
    for dataset in sorted({run["dataset"] for run in left}):
        if not (out / f"{dataset}.json").exists():
            pack_data(data / dataset, out)
    carried = [run for run in kept if run["run_id"] in done or is_begun(run, root)]
    pack_runs(carried, root, out, queue.suite, float("inf"))
    return Queue(queue.suite, kept, queue.commit)


def code_digests() -> dict[str, str]:
    """SHA-256 of every file of the code that trains, C++ sources included, by its path."""
    files = [*ROOT.glob("lowbit_core/**/*"), *ROOT.glob("baselines/**/*")]
    return {str(f.relative_to(ROOT)): sha256_file(f) for f in files if f.suffix in SOURCE_SUFFIXES}


def write_queue(queue: Queue, folder: Path) -> None:
    """Write queue.json, with digests by which another machine checks that it has the same code."""
    write_json(folder / "queue.json", asdict(queue) | {"code": code_digests()})


def read_queue(folder: Path) -> Queue:
    """Read queue.json. Raises InputError if it is missing, damaged or made with other code, or if a
    run loads another that is not in it."""
    path, here = folder / "queue.json", code_digests()
    try:
        found = json.loads(path.read_text())
        queue = Queue(found["suite"], list(found["runs"]), found["commit"])
        for run in queue.runs:
            for name in (run["run_id"], *loaded_runs(run), run["dataset"]):
                check_run_id(name)
            if run["run_key"] != run_key(run):
                raise ValueError(f"{run['run_id']} is not the run that its key names")
        if not isinstance(queue.commit, str) or not isinstance(queue.suite, str):
            raise TypeError("suite and commit must be text")
        different = sorted({name for name, _ in found["code"].items() ^ here.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is missing or is not a queue ({error}): write it again"
        ) from error
    if different:
        raise InputError(
            f"{path} was made with another {different[0]}: copy the code that wrote it"
        )
    names = {run["run_id"] for run in queue.runs}
    for run in queue.runs:  # a start that is trained already is queued, too
        if lacking := set(loaded_runs(run)) - names:
            raise InputError(f"{path}: {run['run_id']} loads {min(lacking)}: queue that run, too")
    return queue


def main() -> None:
    from workflow.suite.arguments import suite_parser  # as suite_queue

    parser = suite_parser(__doc__)
    parser.add_argument("--datasets", default="", help="only these, separated by commas")
    parser.add_argument("--out", type=Path, help="write the queue to this folder")
    parser.add_argument("--data", type=Path, help="pack data sets and begun runs for it, too")
    arguments = parser.parse_args()
    if arguments.data and not arguments.out:
        raise InputError(f"--data {arguments.data}: name a folder to pack it into by --out, too")
    queue = suite_queue(arguments.suite, arguments.datasets, arguments.compile)
    print(describe(queue, arguments.runs))
    if arguments.out and arguments.data:
        queue = pack_left(queue, arguments.runs, arguments.data, arguments.out)
    if arguments.out:
        write_queue(queue, arguments.out)


if __name__ == "__main__":
    run_cli(main)
