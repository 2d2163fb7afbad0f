"""Check every output that the Snakefile declares: `python -m tests.check_outputs SUITE`.

The list comes from `snakemake --summary`, so an output added to a rule is checked without a
change here. Tables are read with the columns, types and checksums of workflow/results/columns.py.
All faults are printed; the exit code is 1 if there is one.
"""

import json
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from workflow.results import columns
from workflow.suite.suite import DEFAULT_SUITE, ROOT, load_suite

MOST_APART = 0.2  # points between a file and its training: single images of thousands differ


def require(condition: object, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def read_table(path: Path) -> list[dict]:
    rows = columns.read_table(path)
    require(rows, "it has no rows")
    return rows


def check_svg(path: Path) -> None:
    root = ElementTree.parse(path).getroot()
    require(root.tag.endswith("}svg") and len(root), "it is not an SVG drawing")


def check_png(path: Path) -> None:
    with Image.open(path) as image:
        image.load()
        require(len(set(image.convert("L").get_flattened_data())) > 1, "the picture is blank")


class _Page(HTMLParser):
    """Counts the tags of a page, and collects the addresses that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.foreign: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        for name, value in attrs:
            loads = name == "src" or (tag == "link" and name == "href")
            if loads and value and not value.startswith("data:"):
                self.foreign.append(value)


def check_html(path: Path) -> None:
    text = path.read_text()
    page = _Page()
    page.feed(text)
    page.close()
    require(text.rstrip().endswith("</html>"), "it does not end with </html>")
    require(page.tags["table"], "it has no table")
    require(page.tags["img"] + page.tags["svg"], "it has no picture")
    require(not page.foreign, f"it loads other files: {page.foreign[:3]}")


def check_lines(path: Path) -> None:
    """Check a job file, the runs of a record or measurements: one run in JSON on each line."""
    key = "status" if "deploy" in (path.parent.name, path.stem) else "role"
    for line in path.read_text().splitlines():
        require(key in json.loads(line), f"{line[:80]!r} is not a run")


CHECKS: dict[str, Callable[[Path], object]] = {
    ".csv": read_table,
    ".gz": columns.read_sealed,
    ".svg": check_svg,
    ".png": check_png,
    ".html": check_html,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": check_lines,
}


def declared_outputs(suite: str) -> list[Path]:
    """Output files of all rules needed for `all`, as the Snakefile declares them."""
    command = [sys.executable, "-m", "snakemake", "--config", f"suite={suite}", "--summary", "all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("output_file\t"))
    return [ROOT / line.split("\t")[0] for line in lines[start + 1 :] if "\t" in line]


def check_runs(suite: str, results: Path) -> None:
    """The tables hold exactly the suite's runs, each once."""
    expected = {
        run["run_id"]
        for job in load_suite(suite).jobs.values()
        for run in job.runs
        if run["role"] != "checkpoint"
    }
    for name in ("results.csv", "timings.csv"):
        found = Counter(row["run_id"] for row in read_table(results / name))
        require(set(found) >= expected, f"{name} lacks {sorted(expected - set(found))}")
        require(max(found.values()) == 1, f"{name} repeats {found.most_common(1)}")


def check_deployment(suite: str, results: Path) -> None:
    """Every run of the suite has a row; files are as accurate as training measured, or nearly."""
    rows = {row["run_id"]: row for row in read_table(results / "table_deploy.csv")}
    expected = {run["run_id"] for run in load_suite(suite).runs}
    require(set(rows) == expected, f"table_deploy.csv lacks {sorted(expected - set(rows))}")
    for run_id, row in rows.items():
        require(row["export"] != "refused", f"{run_id} has no file: {row['reason']}")
        apart = abs(row["difference"] or 0)
        require(apart < MOST_APART, f"the file of {run_id} is {apart} points from its training")
    quantized = [row for row in rows.values() if row["w_bits"] < 3 and row["export"] == "exported"]
    require(all(row["compression"] > 2 for row in quantized), "a file of few bits is large")


def check_tracking(suite: str) -> None:
    """MLflow's database holds each of the suite's runs once, finished."""
    expected = {run["run_key"] for job in load_suite(suite).jobs.values() for run in job.runs}
    database = sqlite3.connect(ROOT / "results" / "mlflow" / "mlflow.db")
    rows = database.execute(
        "select tags.value, runs.status from runs join tags using (run_uuid)"
        " join experiments using (experiment_id)"
        " where tags.key = 'run_key' and experiments.name = ?",
        (suite,),
    ).fetchall()
    database.close()
    found = Counter(key for key, _ in rows)
    require(set(found) >= expected, f"MLflow lacks {len(expected - set(found))} runs")
    require(f"report-{suite}" in found, "MLflow lacks the report run")
    require(max(found.values()) == 1, f"MLflow repeats {found.most_common(1)}")
    open_runs = [key for key, status in rows if status != "FINISHED" and key in expected]
    require(not open_runs, f"MLflow shows finished runs as running: {open_runs}")


def check_file(path: Path) -> None:
    require(path.stat().st_size > 0, "it is empty")
    CHECKS.get(path.suffix, Path.read_bytes)(path)


def main() -> None:
    [suite] = sys.argv[1:]
    outputs = declared_outputs(suite)
    checks: dict[object, Callable[[], object]] = {
        path: partial(check_file, path) for path in outputs
    }
    results = ROOT / "results" if suite == DEFAULT_SUITE else ROOT / "results" / suite
    checks["runs"] = partial(check_runs, suite, results)
    if load_suite(suite).config["deploy"]:
        checks["deployment"] = partial(check_deployment, suite, results)
    checks["tracking"] = partial(check_tracking, suite)
    faults = 0
    for name, check in checks.items():
        try:
            check()
        except (ValueError, OSError, SyntaxError, sqlite3.Error) as error:
            faults += 1
            print(f"{name}: {error}", file=sys.stderr)
    print(f"{len(outputs)} declared outputs checked, {faults} faults")
    sys.exit(1 if faults or not outputs else 0)


if __name__ == "__main__":
    main()
