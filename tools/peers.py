"""Installs what an extra of pyproject.toml names, one package after the other.

usage: tools/peers.py bench|onnx

One that cannot be installed here is named; what needs it is left out (a peer of `make bench`, the
export to ONNX and its tests), so this succeeds all the same. The versions are those of
constraints.txt.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def peers(project: dict, extra: str) -> Iterator[str]:
    """The requirements of an extra, with those of the project's own extras that it names."""
    own = re.compile(re.escape(project["name"]) + r"\[(\w+)\]")
    for requirement in project["optional-dependencies"][extra]:
        if named := own.fullmatch(requirement):
            yield from peers(project, named[1])
        else:
            yield requirement


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("extra", choices=sorted(project["optional-dependencies"]))
    for peer in peers(project, parser.parse_args().extra):
        command = [*PIP, "-c", ROOT / "constraints.txt", peer]
        if subprocess.run(command, check=False).returncode:
            print(f"{peer}: not installed (pip's message is above): the rest goes on without it")


if __name__ == "__main__":
    main()
