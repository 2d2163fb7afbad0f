"""Draw the plots of a results folder.

usage: python -m workflow.results.plots FOLDER [--out FOLDER/plots]
"""

import argparse
from pathlib import Path

from lowbit_core.runtime.errors import run_cli
from workflow.results.plots import draw_plots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="results folder")
    parser.add_argument("--out", type=Path, help="folder of the plots (FOLDER/plots)")
    args = parser.parse_args()
    draw_plots(args.folder, args.out)


if __name__ == "__main__":
    run_cli(main)
