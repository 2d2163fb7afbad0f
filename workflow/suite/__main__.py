"""Write a suite as expanded into runs: `python -m workflow.suite NAME --out FILE`."""

import argparse
from pathlib import Path

from lowbit_core.runtime.errors import run_cli
from lowbit_core.runtime.files import write_json
from workflow.suite.suite import COMPILE_MODES, load_suite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--compile", choices=COMPILE_MODES, default="")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite, arguments.compile)
    expanded = {"suite": suite.config, "runs": suite.runs, "hides_test": suite.hides_test}
    write_json(arguments.out, expanded)


if __name__ == "__main__":
    run_cli(main)
