"""The full-precision networks that a suite's runs start from, kept beside its committed record.

usage: python -m workflow.starts keep|use --suite S [--runs results/runs]

A start trained again on another machine is another network, and only runs of one start are compared
in pairs. With the start from here, a method that is added later, anywhere, is paired with all runs
of the record. `keep` packs the finished starts of the suite into results/reference/S/starts (about
4 bytes a weight each); `use` copies them from there to the folder of runs, where the sweep finds
them as if it had trained them.
"""

from pathlib import Path

from lowbit_core.runtime.errors import InputError, run_cli
from lowbit_core.runtime.progress import say
from lowbit_core.runtime.run_status import RunStatus, run_status
from workflow.away.parcel import merge, pack_runs
from workflow.results.columns import REFERENCE
from workflow.suite.arguments import suite_parser
from workflow.suite.suite import Suite, load_suite


def keep(suite: Suite, runs: Path, out: Path) -> list[str]:
    """Pack each finished start of `suite` into a folder of its own in `out`; returns their ids."""
    done = [
        run
        for run in _starts(suite)
        if run_status(runs / run["run_id"], run["run_key"], weights=True)[0] is RunStatus.DONE
    ]
    if not done:
        raise InputError(f"{runs} holds no finished start of suite {suite.name!r}")
    for run in done:
        pack_runs([run], runs, out / run["run_id"], suite.name, total=float("inf"))
    return [run["run_id"] for run in done]


def use(suite: Suite, kept: Path, runs: Path) -> list[str]:
    """Copy the kept starts of `suite` to `runs`; returns the ids of those that are new there.

    Raises InputError if none was trained by this version of the code and of the suite.
    """
    named = [kept / run["run_id"] for run in _starts(suite)]
    if not (found := [folder for folder in named if folder.is_dir()]):
        raise InputError(
            f"{kept} holds no start of this version of suite {suite.name!r} and of the code: "
            "train the suite with its starts"
        )
    return merge(found, runs)


def _starts(suite: Suite) -> list[dict]:
    """The runs of `suite` that start from nothing."""
    return [run for run in suite.runs if run["pretrained"] is None]


def main(argv: list[str] | None = None) -> None:
    parser = suite_parser(__doc__)
    parser.add_argument("command", choices=["keep", "use"])
    args = parser.parse_args(argv)
    suite, kept = load_suite(args.suite, args.compile), REFERENCE / args.suite / "starts"
    if args.command == "keep":
        say(f"{kept} holds {', '.join(keep(suite, args.runs, kept))}")
    else:
        say(f"{args.runs} has {', '.join(use(suite, kept, args.runs)) or 'them all'}")


if __name__ == "__main__":
    run_cli(main)
