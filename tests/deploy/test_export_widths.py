"""The lower bit-widths of a run that was trained for several can be exported, too."""

import csv
import shutil

import pytest
import torch
from tiny_run import config

import baselines
from deploy.export.check import check_run
from deploy.export.run import export_run
from deploy.network import load
from lowbit_core.runtime.errors import InputError
from lowbit_core.runtime.run_folder import RunFolder
from lowbit_core.training.run import Place, train_run


@pytest.fixture(scope="module")
def trained(digits_root, tmp_path_factory):
    """The folder of a run at W3A3 that was trained for W2A2 and W1A1 as well."""
    runs = tmp_path_factory.mktemp("runs")
    settings = config("direct", "trained", arch="resnet20", lr=0.1, epochs=2, w=3, a=3)
    settings |= {"arch_options": {"width": 8, "stem": "small"}}
    settings["recipe"] = settings["recipe"] | {"widths": {"lower": ["W2A2", "W1A1"]}}
    train_run(settings, baselines.method("direct"), Place(digits_root, runs, torch.device("cpu")))
    return runs / "trained"


@pytest.mark.parametrize("bits", ["W2A2", "W1A1"])
def test_a_lower_width_is_as_accurate_as_training_measured(trained, bits, digits_root, tmp_path):
    file = tmp_path / "model.lowbit"
    size = export_run(trained, file, digits_root, bits)
    found, origin = check_run(file, trained, digits_root), load(file).about.origin
    with (trained / "widths.csv").open(newline="") as rows:
        (top1,) = (
            float(row["top1"]) for row in csv.DictReader(rows) if f"W{row['w_bits']}" == bits[:2]
        )
    assert found["top1_training"] == origin["top1"] == pytest.approx(top1)
    assert found["top1_torch"] == pytest.approx(top1)
    assert found["top1"] == pytest.approx(top1, abs=1)  # 3 of 360 images
    assert f"W{origin['w_bits']}A{origin['a_bits']}" == bits
    assert size["file"] < export_run(trained, tmp_path / "full.lowbit", digits_root)["file"]


def test_the_full_width_may_be_named(trained, digits_root, tmp_path):
    export_run(trained, tmp_path / "one.lowbit", digits_root)
    export_run(trained, tmp_path / "other.lowbit", digits_root, "W3A3")
    assert (tmp_path / "one.lowbit").read_bytes() == (tmp_path / "other.lowbit").read_bytes()


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        ("W4A4", "--bits W4A4: the run in .* has W3A3, W2A2, W1A1"),
        ("W2", "--bits: 'W2' is not a bit setting"),
    ],
)
def test_another_width_is_refused(trained, bits, reason, digits_root, tmp_path):
    with pytest.raises(InputError, match=reason):
        export_run(trained, tmp_path / "model.lowbit", digits_root, bits)
    assert not (tmp_path / "model.lowbit").exists()


@pytest.mark.parametrize("name", ["stem.0.weight", "stem.1.running_var"])
def test_a_width_that_is_no_network_is_refused(name, trained, digits_root, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    networks = torch.load(folder / "widths.pt", weights_only=True)
    networks["W1A1"][name] = networks["W1A1"][name] * torch.nan  # a copy: widths share weights
    files = RunFolder(folder)
    files.save_tensors("widths.pt", networks)
    final = files.read_json("final.json")
    files.finish({key: final[key] for key in final if key not in ("files", "checksum")})
    with pytest.raises(InputError, match=f"{name} is not finite: there is no network to export"):
        export_run(folder, tmp_path / "model.lowbit", digits_root, "W1A1")
    export_run(folder, tmp_path / "model.lowbit", digits_root, "W2A2")
