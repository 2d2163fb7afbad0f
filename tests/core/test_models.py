"""The architectures: sizes known from the papers, every stem, and the names they promise."""

import pytest
import torch
from torch import nn

import baselines
import lowbit_core.runtime.torchvision_ops  # noqa: F401  (before torchvision)
from lowbit_core import models
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy, is_shortcut, quantizable
from lowbit_core.conversion.swap import convert
from lowbit_core.models.stem import STEMS
from lowbit_core.runtime.errors import InputError

SMALL = {
    "resnet20": {"width": 8},
    "resnet18": {"width": 8},
    "alexnet": {"width": 4},
    "mobilenetv2": {"width": 0.25, "repeats": 2, "last_channels": 32},
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def meta(arch, classes, channels, **options):
    with torch.device("meta"):
        return models.build(arch, classes, channels, **options)


@pytest.mark.parametrize("arch", models.ARCHS)
@pytest.mark.parametrize("stem", STEMS)
def test_every_stem_gives_scores(arch, stem):
    side = {"imagenet": 64, "small": 32, "small_stride2": 28}[stem]
    model = models.build(arch, 7, 2, stem=stem, **SMALL[arch]).eval()
    scores = model(torch.randn(3, 2, side, side))
    assert scores.shape == (3, 7) and scores.isfinite().all()
    names = set(quantizable(model))
    assert model.signed_inputs <= names


@pytest.mark.parametrize("arch", models.ARCHS)
def test_width_scales_the_planes(arch):
    narrow, wide = (0.25, 0.5) if arch == "mobilenetv2" else (8, 16)
    options = {k: v for k, v in SMALL[arch].items() if k != "width"}
    sizes = [
        parameters(meta(arch, 10, 1, width=w, stem="small", **options)) for w in (narrow, wide)
    ]
    assert sizes[1] > 1.5 * sizes[0]


def test_sizes_are_those_of_the_papers():
    assert parameters(meta("resnet20", 10, 3, width=16, stem="small")) == pytest.approx(
        0.27e6, rel=0.02
    )
    assert parameters(meta("resnet18", 1000, 3)) == 11_689_512
    assert parameters(meta("mobilenetv2", 1000, 3)) == 3_504_872


def test_networks_equal_torchvision_s():
    """Same layers in the same order: the shapes of all parameters agree."""
    from torchvision.models import mobilenet_v2, resnet18

    with torch.device("meta"):
        theirs = {"resnet18": resnet18(), "mobilenetv2": mobilenet_v2()}
    for arch, reference in theirs.items():
        own = [tuple(p.shape) for p in meta(arch, 1000, 3).parameters()]
        assert sorted(own) == sorted(tuple(p.shape) for p in reference.parameters())


def test_alexnet_has_the_shapes_of_the_original():
    model = meta("alexnet", 1000, 3)
    shapes = {n: tuple(m.weight.shape) for n, m in quantizable(model).items()}
    assert list(shapes.values()) == [
        (64, 3, 11, 11),
        (192, 64, 5, 5),
        (384, 192, 3, 3),
        (256, 384, 3, 3),
        (256, 256, 3, 3),
        (4096, 9216),
        (4096, 4096),
        (1000, 4096),
    ]
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape[2:])))
    model.eval()(torch.zeros(1, 3, 224, 224, device="meta"))
    assert seen[1:] == [(27, 27), (13, 13), (13, 13), (13, 13)]


def test_resnet20_has_twenty_layers_and_the_right_sides():
    model = meta("resnet20", 10, 3)
    shortcuts = [n for n, layer in quantizable(model).items() if is_shortcut(n, layer)]
    assert len(quantizable(model)) == 22 and len(shortcuts) == 2
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(
                lambda _m, _x, y, name=name: seen.__setitem__(name, tuple(y.shape[1:]))
            )
    model.eval()(torch.zeros(1, 3, 32, 32, device="meta"))
    assert seen["blocks.2.conv2"] == (16, 32, 32) and seen["blocks.8.conv2"] == (64, 8, 8)


def test_mobilenetv2_halves_the_side_as_the_stem_says():
    for stem, side, last in (("imagenet", 224, 7), ("small", 32, 4), ("small_stride2", 28, 2)):
        model = meta("mobilenetv2", 10, 3, stem=stem)
        assert model.features.eval()(torch.zeros(1, 3, side, side, device="meta")).shape[2] == last


@pytest.mark.parametrize("arch", models.ARCHS)
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_signed_inputs_are_exactly_those_that_can_be_negative(arch, training):
    torch.manual_seed(0)
    model = models.build(arch, 5, 1, stem="small", **SMALL[arch])
    images = torch.randn(8, 1, 32, 32)
    model.train()(images)  # running statistics that fit
    first = next(iter(quantizable(model)))
    lowest = {}
    for name, layer in quantizable(model).items():
        layer.register_forward_pre_hook(
            lambda _m, x, name=name: lowest.__setitem__(name, x[0].min().item())
        )
    model.train(training)(images)
    assert lowest.keys() == quantizable(model).keys()
    for name, low in lowest.items():
        assert (low < 0) == (name in model.signed_inputs or name == first), name


@pytest.mark.parametrize("arch", models.ARCHS)
@pytest.mark.parametrize("name", ("direct", "pact"))
def test_networks_that_leave_relus_to_quantizers_compute_the_same(arch, name, monkeypatch):
    """Against the same network with every ReLU where its paper has it."""
    images = torch.randn(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    method, results = baselines.method(name), []
    for does_relu in (True, False):
        activation = method.activation(2, False)
        monkeypatch.setattr(type(activation), "DOES_RELU", does_relu)
        torch.manual_seed(0)
        model = models.build(arch, 5, 1, stem="small", **SMALL[arch])
        convert(model, QuantPolicy(method, 2, 2, "8bit"), images[:1])
        calibrate(model, images)
        loss = torch.nn.functional.cross_entropy(model(images), torch.arange(8) % 5)
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        relus = sum(isinstance(m, nn.ReLU | nn.ReLU6) for m in model.modules())
        results.append((loss.detach(), gradients, relus, model.eval()(images).detach()))
    (loss, gradients, relus, scores), (expected, reference, all_relus, same) = results
    assert relus < all_relus or arch.startswith("resnet")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scores, same, rtol=1e-4, atol=1e-4)
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, reference[key], rtol=1e-3, atol=1e-5)


def test_bad_names_and_options_are_refused():
    with pytest.raises(InputError, match="'vgg'.*alexnet, mobilenetv2, resnet18, resnet20"):
        models.build("vgg", 10, 1)
    with pytest.raises(InputError, match="resnet20.*depth"):
        models.build("resnet20", 10, 1, depth=3)
    for arch in models.ARCHS:
        with pytest.raises(InputError, match="'big'.*imagenet, small, small_stride2"):
            models.build(arch, 10, 1, stem="big")


def test_the_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(
            models.build("mobilenetv2", 4, 1, stem="small", **SMALL["mobilenetv2"]).state_dict()
        )
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
