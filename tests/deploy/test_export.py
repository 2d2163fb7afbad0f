"""From a trained run to a file, and what the commands say."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slow_reference import codes_of
from small_networks import CHANNELS, SIDE, about, quantized
from tiny_run import config
from torch import nn

import baselines
from deploy.__main__ import main
from deploy.export import check
from deploy.export.check import check_run
from deploy.export.quantizers import activation_thresholds, weight_codes
from deploy.export.run import ORIGIN, export_run
from deploy.export.size import sizes
from deploy.export.trace import trace
from deploy.fileformat import About, save
from deploy.graph import Convolution, Quantize
from deploy.images import read_images
from deploy.network import load
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.datasets.fashion_mnist import CLASSES
from lowbit_core.models import ARCHS, build
from lowbit_core.quantizers.interface import ActivationQuantizer
from lowbit_core.runtime.errors import InputError
from lowbit_core.training.run import Place, train_run
from workflow.suite.suite import load_suite

ROOT = Path(__file__).parents[2]
METHODS = [m.name for m in baselines.METHODS.values() if m.weight is not None]


@pytest.fixture(scope="module")
def trained(digits_root, tmp_path_factory):
    """(A run's folder, the file that was exported from it, its sizes)."""
    runs = tmp_path_factory.mktemp("runs")
    settings = config("pact", "trained", arch="resnet20", lr=0.1, epochs=2)
    settings |= {"arch_options": {"width": 16, "stem": "small"}}
    train_run(settings, baselines.method("pact"), Place(digits_root, runs, torch.device("cpu")))
    file = runs / "model.lowbit"
    return runs / "trained", file, export_run(runs / "trained", file, digits_root)


def test_the_file_is_as_accurate_as_training_measured(trained, digits_root):
    folder, file, _ = trained
    found = check_run(file, folder, digits_root)
    assert found["images"] == 360
    assert found["top1"] == pytest.approx(found["top1_training"], abs=1)  # 3 of 360 images
    assert found["top1_torch"] == pytest.approx(found["top1_training"])
    assert found["agreement"] >= 99


def test_the_file_is_little_larger_than_what_it_holds(trained):
    _, file, sizes = trained
    assert sizes["information"] < sizes["file"] == file.stat().st_size
    assert sizes["file"] <= 1.03 * sizes["information"]
    assert sizes["file"] < sizes["float32"] / 8  # W2, with float32 in the first and last layer


@pytest.mark.parametrize(
    ("arch", "method", "bits"),
    [
        ("mixed", "lsq", 1), ("mixed", "direct", 2), ("alexnet", "direct", 1),
        ("resnet20", "direct", 1), ("mobilenetv2", "pact", 2), ("resnet18", "adabin", 1),
    ],
)  # fmt: skip
def test_a_small_file_is_its_header_and_little_more_than_its_information(
    arch, method, bits, tmp_path
):
    model, _ = quantized(arch, method, bits, bits)
    graph, path = trace(model, (CHANNELS, SIDE, SIDE)), tmp_path / "model.lowbit"
    save(path, graph, about())
    found, header = sizes(path, graph), int.from_bytes(path.read_bytes()[12:16], "little")
    assert 500 < header < 2000
    assert found["file"] <= 1.03 * found["information"] + 56 + header


# The smallest of the suite `quick`: the header weighs most there.
@pytest.mark.parametrize("method", ["pact", "direct", "lq_channel_aware"])
def test_a_file_of_quick_is_little_larger_than_what_it_holds(method, tmp_path):
    (run,) = (
        run for run in load_suite("quick", "auto").runs
        if (run["arch"], run["method"], run["w_bits"]) == ("resnet20", method, 1)
    )  # fmt: skip
    model = build(run["arch"], 10, 1, **run["arch_options"])
    image = torch.zeros(1, 1, 28, 28)
    convert(model, QuantPolicy(baselines.method(method), run["w_bits"], run["a_bits"]), image)
    calibrate(model, torch.randn(8, 1, 28, 28))
    graph, path = trace(model, (1, 28, 28)), tmp_path / "model.lowbit"
    origin = {key: run[key] for key in ORIGIN} | {"top1": 87.25}
    save(path, graph, About(origin, CLASSES, (0.2860,), (0.3530,), None))
    found = sizes(path, graph)
    assert found["information"] < found["entropy"] <= found["file"] <= 1.03 * found["information"]


@pytest.mark.parametrize(
    ("images", "apart", "is_refused"),
    [(10_000, 0.05, False), (10_000, 0.06, True), (360, 3 / 3.6, False), (360, 4 / 3.6, True)],
)
def test_check_ends_with_an_error_where_a_file_is_not_as_accurate(
    images, apart, is_refused, monkeypatch, capsys
):
    found = {"images": images, "top1": 50.0, "top1_torch": 50 + apart, "top1_training": 50.0}
    monkeypatch.setattr(check, "check_run", lambda *_: found | {"agreement": 99.0})
    monkeypatch.setattr(sys, "argv", ["deploy", "check", "model.lowbit", "run"])
    if is_refused:
        with pytest.raises(InputError, match=f"its top-1 is {apart:.2f} points from that of torch"):
            main()
    else:
        main()
    assert f"{images} test images: top-1 50.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("images", "agreement", "is_refused"),
    [(10_000, 99.0, False), (10_000, 98.9, True), (100, 97.0, False), (100, 96.0, True)],
)
def test_a_file_as_accurate_that_gives_other_classes_is_refused(images, agreement, is_refused):
    found = {"images": images, "top1": 50.0, "top1_torch": 50.0, "agreement": agreement}
    if not is_refused:
        return check.check_found(Path("model.lowbit"), found)
    with pytest.raises(InputError, match=f"another class to {100 - agreement:.2f} % of the images"):
        check.check_found(Path("model.lowbit"), found)


def test_a_file_of_another_run_is_not_checked(trained, digits_root, tmp_path):
    model, _ = quantized("resnet20", "direct", 2, 2)
    save(tmp_path / "other.lowbit", trace(model, (CHANNELS, SIDE, SIDE)), about())
    with pytest.raises(InputError, match="is not of the run"):
        check_run(tmp_path / "other.lowbit", trained[0], digits_root)
    strange = replace(about(), origin=about().origin | {"w_bits": [2], "a_bits": {"a": 2}})
    save(tmp_path / "strange.lowbit", trace(model, (CHANNELS, SIDE, SIDE)), strange)
    with pytest.raises(InputError, match="is not of the run"):
        check_run(tmp_path / "strange.lowbit", trained[0], digits_root)


def command(*words) -> subprocess.CompletedProcess:
    """`python -m deploy`, where an import of torch fails."""
    code = (
        "import sys, runpy; sys.modules['torch'] = None; runpy.run_module('deploy', alter_sys=True)"
    )
    code = code.replace("run_module('deploy'", "run_module('deploy', run_name='__main__'")
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_prediction_needs_no_torch(trained, digits_root, tmp_path):
    pixels = np.load(digits_root / "digits" / "test.npy")[:2, 0]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    done = command("predict", trained[1], *paths)
    assert done.returncode == 0, done.stderr
    network = load(trained[1])
    scores = network.scores(read_images(paths, network.about, (1, 8, 8)))
    for line, path, row in zip(done.stdout.splitlines(), paths, scores, strict=True):
        assert line.startswith(f"{path}: {row.argmax()} ")
        shares = [float(share) for share in re.findall(r"([\d.]+) %", line)]
        assert len(shares) == 5 and shares == sorted(shares, reverse=True)


def test_an_image_that_cannot_be_read_does_not_stop_the_others(trained, digits_root, tmp_path):
    image = tmp_path / "0.png"
    Image.fromarray(np.load(digits_root / "digits" / "test.npy")[0, 0]).save(image)
    done = command("predict", trained[1], "README.md", image)
    assert done.returncode == 2 and done.stdout.startswith(f"{image}: ")
    first, last = done.stderr.splitlines()
    assert "README.md: not a readable image" in first
    assert last == "error: 1 of 2 images are not read"


def test_pixels_are_normalised_as_in_training(trained, digits_root, tmp_path):
    from lowbit_core.data.loader import make_loader

    loader = make_loader(digits_root / "digits", "test", batch_size=1, train=False, backend="torch")
    expected, _ = next(iter(loader.epoch(0)))
    Image.fromarray(np.load(digits_root / "digits" / "test.npy")[0, 0]).save(tmp_path / "0.png")
    made = read_images([tmp_path / "0.png"], load(trained[1]).about, (1, 8, 8))
    np.testing.assert_array_equal(made, expected.numpy())


def test_an_image_of_sixteen_bits_is_refused(trained, tmp_path):
    """Pillow would cut off every pixel above 255."""
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep.png: its pixels are of mode 'I;16': legal are"):
        read_images([tmp_path / "deep.png"], load(trained[1]).about, (1, 8, 8))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("predict", "README.md", "README.md"), "README.md: not a .lowbit file"),
        (("predict", "missing.lowbit", "x.png"), "error: missing.lowbit: No such file"),
        (("predict", "tests", "x.png"), "error: tests: Is a directory"),
        (("export", "run", "--out", "x.onnx"), "--out x.onnx with --format lowbit: the name of"),
        (("export", "run", "--out", "x", "--format", "onnx"), "--out x with --format onnx: the"),
        (("export", "run", "--out", "x.lowbit"), "`python -m deploy export` needs torch, which"),
        (("check", "x.lowbit", "run"), "`python -m deploy check` needs torch, which is not"),
        (("show", "README.md"), "not a .lowbit file"),
        (("predict", "--threads", "0", "x.lowbit", "x.png"), "--threads 0: must be a whole number"),
    ],
)
def test_commands_refuse_in_one_sentence(words, reason):
    done = command(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_image_that_is_none_is_refused(trained):
    done = command("predict", trained[1], "README.md")
    assert done.returncode == 2 and "README.md: not a readable image" in done.stderr


def test_a_missing_image_is_one_sentence(trained):
    done = command("predict", trained[1], "none.png")
    assert done.stderr == "error: none.png: not a readable image (No such file or directory)\n"


def test_without_the_data_set_classes_are_numbers_and_it_says_so(trained, tmp_path, capsys):
    export_run(trained[0], tmp_path / "out.lowbit", tmp_path / "no-data")
    assert load(tmp_path / "out.lowbit").about.classes == tuple(map(str, range(10)))
    said = capsys.readouterr().err
    assert "the file numbers its classes" in said and "no-data" in said


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such run folder"):
        export_run(tmp_path / "none", tmp_path / "out", tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="has no final.json"):
        export_run(tmp_path / "run", tmp_path / "out", tmp_path)


# -- quantizers as numbers -------------------------------------------------------------------


def _widths(name: str) -> list[tuple[int, int]]:
    method = baselines.method(name)
    widths = getattr(method, "w_bits", None) or (1, 2, 3, 4, 8)
    return [(bits, bits) for bits in widths if bits in (1, 2, 3, 4, 8)]


@pytest.mark.parametrize("method", METHODS)
def test_codes_and_levels_are_the_weight(method):
    for w_bits, _ in _widths(method):
        torch.manual_seed(0)
        quantizer = baselines.method(method).weight(torch.randn(6, 5, 3, 3) / 10, w_bits)
        weight = weight_codes("layer", quantizer)
        expected = quantizer.eval()().detach().permute(0, 2, 3, 1).numpy()
        top = np.abs(expected).max()
        np.testing.assert_allclose(weight.dequantized(), expected, rtol=0, atol=1e-6 * top)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
def test_thresholds_are_the_quantizer_to_the_bit(method, signed):
    for _, a_bits in _widths(method):
        if a_bits == 8:
            continue  # neighbouring levels of a basis may differ by a rounding
        torch.manual_seed(0)
        quantizer = baselines.method(method).activation(a_bits, signed).eval()
        quantizer.calibrate(torch.randn(4, 3, 8, 8))
        thresholds, levels = activation_thresholds("layer", quantizer)
        near = [np.nextafter(thresholds, np.float32(side)) for side in (-np.inf, np.inf)]
        random = np.random.default_rng(0).normal(0, 2, 2000).astype(np.float32)
        x = np.concatenate([thresholds, *near, random, np.float32([0, -0.0, 1e30, -1e30])])
        x = x[np.isfinite(x)]
        made = levels[codes_of(x, Quantize("", "", "", thresholds, levels))]
        expected = quantizer(torch.from_numpy(x).view(1, 1, 1, -1)).detach().numpy().ravel()
        np.testing.assert_array_equal(made, expected)


class _PerChannel(ActivationQuantizer):
    def levels(self):
        return torch.tensor([0.0, 1.0])

    def forward(self, x):
        return (x > 0).float() * (x < 3)


def test_a_quantizer_that_is_no_staircase_is_refused():
    with pytest.raises(InputError, match="not one rising staircase"):
        activation_thresholds("layer", _PerChannel(1, True))


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_every_layer_is_in_the_graph(arch):
    model, _ = quantized(arch, "direct", 2, 2)
    graph = trace(model, (CHANNELS, SIDE, SIDE))
    layers = [op.layer for op in graph.operations if isinstance(op, Convolution)]
    names = {n for n, m in model.named_modules() if type(m).__name__ in ("QuantLayer", "Linear")}
    names |= {n for n, m in model.named_modules() if type(m) is nn.Conv2d}
    assert sorted(layers) == sorted(names)


def test_what_a_file_cannot_hold_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(InputError, match="cannot hold a GELU"):
        trace(model, (3, 8, 8))


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class _Flipped(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x.flip(-1), weight, bias)


@pytest.mark.parametrize("kind", [_Doubled, _Flipped, nn.Linear])
def test_a_plain_layer_that_computes_something_else_is_refused(kind):
    layer = kind(3, 4, 1) if kind is _Flipped else kind(3, 4)
    model = nn.Sequential(layer) if kind is _Flipped else nn.Sequential(nn.Flatten(), layer)
    if kind is nn.Linear:
        layer.forward = lambda x: 2 * nn.Linear.forward(layer, x)
    with pytest.raises(InputError, match=f"{kind.__name__}.*a file cannot hold|own forward"):
        trace(model, (3, 1, 1))
