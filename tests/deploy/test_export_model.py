"""A network of anyone's own training loop becomes a file, or is refused in one sentence."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

# isort: split
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers

import baselines
import deploy
from deploy.export import export_model
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import InputError

ROOT = Path(__file__).parents[2]
SIDE = 32
IMAGES = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class _Narrow(ResNet):
    """torchvision's, with an eighth of the planes in its blocks."""

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 8, *arguments, **options)

    def __init__(self, block, blocks):
        super().__init__(block, blocks)
        self.fc = nn.Linear(self.inplanes, 4)


def resnet18():
    return _Narrow(BasicBlock, [2, 2, 2, 2])


def resnet50():
    return _Narrow(Bottleneck, [3, 4, 6, 3])


def mobilenet_v2():
    return models.mobilenet_v2(num_classes=4, width_mult=0.25)


def vgg16():
    narrow = [width if width == "M" else width // 8 for width in cfgs["D"]]
    net = VGG(make_layers(narrow, batch_norm=True), num_classes=4, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(2)
    net.classifier = nn.Sequential(
        nn.Linear(256, 32), nn.ReLU(True), nn.Dropout(),
        nn.Linear(32, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 4),
    )  # fmt: skip
    return net


def plain():
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


class Functions(nn.Module):
    """Functions and methods in the place of modules, values that are read twice and in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        y = self.conv1(x)
        x = self.norm(y) + y  # the norm is not all that reads the convolution
        kept = x
        functional.relu(x, inplace=True)  # changes `kept`, too
        x = functional.max_pool2d(self.conv2(kept), kernel_size=2).relu_()
        x = torch.add(functional.avg_pool2d(self.conv3(x), 2), functional.avg_pool2d(x, 2))
        x = functional.dropout(functional.relu6(x), 0.5, self.training)
        return self.fc(x.mean([-2, -1]).view(x.size(0), -1))


NETWORKS = (resnet18, resnet50, mobilenet_v2, vgg16, plain, Functions)


def trained(network, method="direct", bits="W2A2"):
    """A quantized network after a few steps, still in training mode."""
    torch.manual_seed(0)
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    baselines.quantize(model, method, bits, IMAGES)
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(IMAGES)
    return model


def agree(model, path):
    """Whether the engine gives torch's scores for most images (as in test_engine.py)."""
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(IMAGES.clone()).numpy()
    scores = deploy.load(path).scores(IMAGES.numpy())
    near = np.abs(scores - expected).max(1) <= 1e-4 * np.abs(expected).max()
    return near.mean() >= 0.75 and np.ptp(expected, axis=0).max() > 1e-3


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)
@pytest.mark.parametrize(("method", "bits"), [("direct", "W2A2"), ("lsq", "W4A4")])
def test_the_file_gives_the_scores_of_torch(network, method, bits, tmp_path):
    model = trained(network, method, bits)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    sizes = export_model(model, IMAGES, tmp_path / "model.lowbit")
    assert agree(model, tmp_path / "model.lowbit")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(state[k], value) for k, value in model.state_dict().items())
    assert sizes["file"] == (tmp_path / "model.lowbit").stat().st_size
    assert sizes["information"] < sizes["file"] < sizes["information"] + 16_000


def test_the_size_is_that_of_the_codes(tmp_path):
    model = models.resnet18(num_classes=10)
    baselines.quantize(model, "pact", "W2A2", IMAGES[:2])
    sizes = export_model(model, IMAGES[:2], tmp_path / "model.lowbit")
    quantized = [m for m in model.modules() if isinstance(m, QuantLayer)]
    bits = sum(2 * m.used_weight().numel() for m in quantized)
    floats = model.conv1.weight.numel() + model.fc.weight.numel() + model.fc.bias.numel()
    numbers = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    least = bits / 8 + 4 * floats + 8 * numbers  # a scale and a shift for each channel
    assert least <= sizes["information"] + 4 * 64  # the first norm has no scale of its own
    assert sizes["information"] <= 1.01 * least and sizes["file"] <= 1.01 * sizes["information"]


def test_show_prints_what_the_network_is(tmp_path):
    export_model(
        trained(resnet18), IMAGES, tmp_path / "model.lowbit", classes="abcd", std=(0.5,) * 3
    )
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "show", tmp_path / "model.lowbit"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "network: _Narrow\n" in done.stdout
    assert "weights: DirectWeight of 2 bits in 20 layers\n" in done.stdout
    assert "layer4.0.downsample.0: " in done.stdout
    about = deploy.load(tmp_path / "model.lowbit").about
    assert (about.classes, about.mean, about.std) == (tuple("abcd"), (0.0,) * 3, (0.5,) * 3)


class Doubled(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 1)


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Shuffled(nn.Module):
    def forward(self, x):
        return x.view(len(IMAGES), 4, 2, SIDE, SIDE).flatten(1, 2)


class Random(nn.Module):
    def forward(self, x):
        return functional.dropout(x, 0.0)


class Divided(nn.Module):
    def forward(self, x):
        return functional.avg_pool2d(x, 2, 2, 0, False, True, 3)


class Written(nn.Module):
    def forward(self, x):
        y = functional.relu(x)
        torch.add(y, x, out=y)
        return y


def hooked():
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, inputs, output: 2 * output)
    return layer


REFUSED = {
    "module": (nn.GELU, "layer 1: a file cannot hold a GELU"),
    "function": (Doubled, r"module 1 \(Doubled\): a file cannot hold the operation cat"),
    "control": (Decides, r"module 1 \(Decides\): torch.fx cannot record what it does"),
    "shape": (Shuffled, r"module 1 \(Shuffled\): .* operation view with a result of the shape"),
    "divisor": (Divided, "average pools only where"),
    "out": (Written, r"module 1 \(Written\): a file cannot hold the operation add"),
    "dropout": (Random, r"module 1 \(Random\): a file cannot hold the operation dropout"),
    "hooks": (hooked, r"module 1 \(ReLU\) has hooks"),
    "groups": (lambda: nn.Conv2d(8, 8, 1, groups=2), "layer 1: .* no dilated or grouped conv"),
    "mean": (lambda: nn.AvgPool2d(3), "layer 1: .* average pools only where"),
    "ceiled": (lambda: nn.MaxPool2d(3, ceil_mode=True), "layer 1: .* no dilated or ceiled"),
    "statistics": (
        lambda: nn.BatchNorm2d(8, track_running_stats=False),
        "layer 1: .* without running statistics",
    ),
    "padding": (lambda: nn.Conv2d(8, 8, 1, padding=1), "a padding of 1 is not less than"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_hold_is_refused_with_its_place(case, tmp_path):
    module, words = REFUSED[case]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), module(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(4)
    ).eval()
    with torch.no_grad():
        model(IMAGES)
    with pytest.raises(InputError, match=words) as caught:
        export_model(model, IMAGES, tmp_path / "model.lowbit")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": IMAGES[0]}, r"images must be a tensor \(N, C, H, W\)"),
        ({"images": IMAGES[:1]}, "at least 2 images"),
        ({"classes": "abc"}, "classes has 3 names, and the network has 4 scores"),
        ({"mean": (0.5,)}, "mean has 1 numbers, and the images 3 channels"),
        ({"model": nn.Sequential(nn.Conv2d(3, 8, 1))}, "returns .* holds networks of scores"),
    ],
)  # fmt: skip
def test_a_bad_argument_gets_one_sentence(changes, words, tmp_path):
    model = changes.get("model") or plain()
    options = {k: v for k, v in changes.items() if k not in ("model", "images")}
    with pytest.raises(InputError, match=words):
        export_model(model, changes.get("images", IMAGES), tmp_path / "m.lowbit", **options)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_misses_something_is_refused(tmp_path):
    class Aliased(nn.Module):
        """torch.fx records `+=` as a sum of its own, which leaves `kept` as it was."""

        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x):
            kept = x = self.conv(x)
            x += x
            return self.fc((x + kept).mean((2, 3)))

    with pytest.raises(InputError, match="Aliased does more than torch.fx can record"):
        export_model(Aliased(), IMAGES, tmp_path / "model.lowbit")
