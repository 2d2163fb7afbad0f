"""The documented example of a new method really is all that it takes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

CHECK = """
import torch
import baselines
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.conversion.layers import calibrate
from lowbit_core.models import build
from workflow.suite.suite import load_suite

torch.manual_seed(0)
runs = [run for job in load_suite("quick").jobs.values() for run in job.runs]
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
    for folder in ("lowbit_core", "baselines", "workflow", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / example[1]).write_text(example[2])
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
