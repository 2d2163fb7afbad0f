"""The pages name only what exists; the example of a new method really is all that it takes."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import baselines
from benchmarks import document

ROOT = Path(__file__).parents[2]
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
CODE = (
    "lowbit_core",
    "baselines",
    "deploy",
    "workflow",
    "config",
    "profiles",
    "benchmarks",
    "tests",
    "tools",
)
EXAMPLE = "baselines/ternary.py"

CHECK = """
import torch
import baselines
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.conversion.layers import calibrate
from lowbit_core.models import build
from workflow.suite.suite import load_suite

torch.manual_seed(0)
runs = [run for job in load_suite("cpu_short").jobs.values() for run in job.runs]
assert any(run["method"] == "ternary" for run in runs)
model = build("resnet20", 10, 1, width=8)
images = torch.randn(8, 1, 16, 16)
convert(model, QuantPolicy(baselines.method("ternary"), 2, 2), images[:1])
calibrate(model, images)
model.train()(images).sum().backward()
quantizer = model.blocks[0].conv1.weight_quantizer
assert quantizer.weight.grad.abs().sum() > 0
assert all(len(row.unique()) <= 3 for row in quantizer().flatten(1))
"""


def test_the_example_method_appears_in_every_suite_and_trains(tmp_path):
    text = (ROOT / "docs" / "architecture.md").read_text()
    example = re.search(r"`(baselines/\w+\.py)`:\n\n```python\n(.*?)```", text, re.DOTALL)
    assert len(example[2].splitlines()) <= 40
    for folder in ("lowbit_core", "baselines", "workflow", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / example[1]).write_text(example[2])
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def exists(name: str) -> bool:
    """Whether a path, or the end of a path, is in the tree."""
    return (ROOT / name).exists() or any(
        str(path).endswith(f"/{name}") for folder in CODE for path in (ROOT / folder).rglob("*")
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_module_test_and_target_that_a_page_names_exists(page):
    text = page.read_text()
    paths = {name.split("::")[0].rstrip("/") for name in re.findall(r"`([\w./:-]+)`", text)}
    paths = {
        p for p in paths if p.startswith(CODE) and "/" in p or p.endswith((".py", ".cpp", ".h"))
    }
    paths |= {
        name.replace(".", "/") + ("" if (ROOT / name.replace(".", "/")).is_dir() else ".py")
        for name in re.findall(r"-m ([\w.]+)", text)
        if name.startswith(CODE)
    }
    links = re.findall(r"\]\(([^)#\s:]+)[)#]", text)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    targets = (ROOT / "Makefile").read_text()
    wrong = [name for name in paths - {EXAMPLE} if not exists(name)]
    wrong += [name for name in links if not (page.parent / name).exists()]
    wrong += [
        name for name in re.findall(r"\b(test_\w+)\b(?!\.)", text) if f"def {name}(" not in tests
    ]
    wrong += [name for name in re.findall(r"`make (\w+)", text) if f"\n{name}:" not in targets]
    assert not wrong


METHODS_PAGE = (ROOT / "docs" / "methods.md").read_text()


def table_rows(title: str) -> list[list[str]]:
    """The cells of the table below a title of docs/methods.md, without its header."""
    section = METHODS_PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_table_of_methods_says_what_the_code_does():
    rows = {name: row for row in table_rows("Weights") for name in re.findall(r"`(\w+)`", row[0])}
    assert rows.keys() >= baselines.METHODS.keys()
    named = " ".join(row[0] for row in table_rows("Activations"))
    for name, method in baselines.METHODS.items():
        _, _, _, granularity, zero, _, decoding, bits, _ = rows[name]
        assert (f"`{name}` (ablation)" in rows[name][0]) == method.ablation
        if method.weight is None:
            continue
        assert f"`{name}`" in named or method.ablation
        assert bits.split()[0] == ("all" if method.w_bits is None else str(*method.w_bits))
        k, o = 2 if method.offers(2) else method.w_bits[0], 5
        quantizer = method.weight(torch.randn(o, 30), k)
        assert quantizer.GRANULARITY == f"per_{granularity}"
        assert bool((quantizer.levels() == 0).any()) == zero.startswith("yes")
        numbers = {"1": 1, "2": 2, "K": k, "O": o, "2 O": 2 * o, "K O": k * o}
        assert quantizer.level_numbers() == numbers[decoding], name


def test_published_values_of_the_page_are_those_of_the_file():
    with (ROOT / "config" / "published.csv").open() as file:
        known = {row["top1"] for row in csv.DictReader(file)}
    values = re.findall(r"\b\d\d\.\d+\b", " ".join(map(" ".join, table_rows("Published top-1"))))
    values = [value for value in values if len(value) < 6]  # no arXiv number
    assert len(values) > 50 and set(values) <= known


def test_differences_in_the_sentences_are_those_of_the_committed_tables():
    """Tables that `python -m benchmarks.document` writes have a test of their own."""
    tables = sorted((ROOT / "results" / "reference").rglob("*.md"))
    for name in ("evidence.md", "method.md"):
        page = (ROOT / "docs" / name).read_text()
        text, regions = document.REGION.sub("", page), document.REGION.finditer(page)
        shown = "".join([path.read_text() for path in tables] + [region[0] for region in regions])
        known = set(re.findall(r"[+−][\d.]+ \[.+?\]", shown))
        said = set(re.findall(r"[+−]\d+\.\d\d\s+\[[^]]+\]", text))
        assert said and {re.sub(r"\s+", " ", one) for one in said} <= known, name
