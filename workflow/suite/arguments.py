"""The command-line arguments that several programs share: which suite, and where runs are."""

import argparse
from pathlib import Path

from workflow.suite.suite import COMPILE_MODES


def suite_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with --suite, --compile and --runs; `doc` begins with what the program does."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--suite", required=True)
    parser.add_argument(
        "--compile", choices=COMPILE_MODES, default="", help="instead of the suite's setting"
    )
    parser.add_argument("--runs", type=Path, default=Path("results/runs"))
    return parser
