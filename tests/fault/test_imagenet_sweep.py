"""ImageNet from JPEG files to a table through the real Snakefile, on a sample of real images.

The sample is looked for in $LOWBIT_SHARED/data or ../shared/data beside the project.
"""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image
from sweeps import ROOT, Project, signal_group

SAMPLE = Path(os.environ.get("LOWBIT_SHARED", ROOT.parent / "shared")) / "data" / "imagenet_sample"
CLASSES = 100


def small_imagenet(project: Project) -> None:
    """Let the copy of the project take ImageNet for a set of one image a class of the sample."""
    path = project.folder / "lowbit_core" / "datasets" / "catalog.py"
    before, name, after = path.read_text().partition('"imagenet",')
    for number in ("1000", "1_281_167", "50_000"):
        assert number in after
        after = after.replace(number, str(CLASSES), 1)
    path.write_text(before + name + after)
    suite = (ROOT / "tests" / "fault" / "imagenet.yaml").read_text()
    (project.folder / "config" / "suites" / "tiny.yaml").write_text(suite)


def lay_out(folder: Path) -> dict[str, str]:
    """The sample as {train,val}/<synset>/*.JPEG, a few made odd; their modes by file."""
    files = sorted(SAMPLE.glob("*.JPEG"))
    assert len(files) == CLASSES
    odd = {}
    for split in ("train", "val"):
        for number, file in enumerate(files):
            synset = folder / split / file.name.split("_")[0]
            synset.mkdir(parents=True)
            with Image.open(file) as image:
                mode = {3: "CMYK", 4: "L", 5: "P"}.get(number, image.mode)
                size = {6: (9, 7), 7: (1400, 30)}.get(number, image.size)
                if (mode, size) == (image.mode, image.size):
                    shutil.copy(file, synset)
                else:  # "P" is a PNG that calls itself JPEG, as ImageNet has one
                    form = "PNG" if mode == "P" else "JPEG"
                    image.convert(mode).resize(size).save(synset / file.name, form)
            if mode != "RGB":
                odd[f"{split}/{synset.name}/{file.name}"] = mode
    return odd


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"{SAMPLE} is not there")
def test_from_jpeg_files_to_a_table(tmp_path):
    project = Project(tmp_path / "project", tmp_path / "data")
    small_imagenet(project)
    odd = lay_out(tmp_path / "source")
    config = (f"data_source={tmp_path / 'source'}",)
    project.hold()
    sweep = project.snakemake("results/tiny/results.csv", config=config)
    project.wait_until_held(1, sweep)
    signal_group(sweep, signal.SIGTERM)
    project.release()
    manifests = tmp_path / "data" / "imagenet"
    listed = {}
    for split in ("train", "test"):
        listed |= json.loads((manifests / f"{split}.manifest.json").read_text())["converted_to_rgb"]
    assert listed == odd and len(odd) >= 6
    project.sweep("results/tiny/results.csv", config=config)
    with (project.results / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["role"], row["method"], row["status"]) for row in rows} == {
        ("checkpoint", "fp", "done"), ("run", "fp", "done"), ("run", "direct", "done"),
    }  # fmt: skip
    assert {row["loader"] for row in rows} == {"ffcv"}
    assert all(0 <= float(row["top1"]) <= float(row["top5"]) <= 100 for row in rows)
    assert not list(project.runs.glob("*/checkpoint.pt"))
