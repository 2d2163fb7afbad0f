"""Any network of Conv2d and Linear layers can be quantized, trained, saved and loaded."""

import copy
import io
import re

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional

import lowbit_core.runtime.torchvision_ops  # noqa: F401  before torchvision

# isort: split
from pathlib import Path
from types import ModuleType

from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import VGG, cfgs, make_layers

import baselines
from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.conversion.observe import observe
from lowbit_core.quantizers.interface import Method
from lowbit_core.runtime.errors import InputError
from lowbit_core.training.schedule import QUANTIZER_GROUPS, parameter_groups

ROOT = Path(__file__).parents[2]
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(4)
METHODS = [m.name for m in baselines.METHODS.values() if m.weight is not None]


def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


class _Narrow(ResNet):
    """torchvision's, with an eighth of the planes in its blocks."""

    def _make_layer(self, block, planes, *arguments, **options):
        return super()._make_layer(block, planes // 8, *arguments, **options)

    def __init__(self, block, blocks, num_classes=4):
        super().__init__(block, blocks)
        self.fc = nn.Linear(self.inplanes, num_classes)


def resnet18(num_classes=4):
    return _Narrow(BasicBlock, [2, 2, 2, 2], num_classes)


def resnet50():
    return _Narrow(Bottleneck, [3, 4, 6, 3])


def mobilenet_v2():
    return models.mobilenet_v2(num_classes=4, width_mult=0.25)


def vgg16():
    """VGG-16 with an eighth of the planes."""
    narrow = [width if width == "M" else width // 8 for width in cfgs["D"]]
    net = VGG(make_layers(narrow), num_classes=4, init_weights=False)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(True), nn.Dropout(),
        nn.Linear(32, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 4),
    )  # fmt: skip
    return net


def vision_transformer():
    return models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=4)


NETWORKS = (plain, resnet18, resnet50, mobilenet_v2, vgg16)
each_network = pytest.mark.parametrize("network", NETWORKS, ids=lambda n: n.__name__)


def step(model, lr=0.1):
    """One training step; returns its loss."""
    optimizer = torch.optim.SGD(parameter_groups(model, lr=lr), momentum=0.9)
    loss = functional.cross_entropy(model.train()(IMAGES), LABELS)
    loss.backward()
    optimizer.step()
    return loss.item()


def quantized_layers(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}


@each_network
def test_a_foreign_network_is_quantized_trained_saved_and_loaded(network):
    model = network()
    report = baselines.quantize(model, "direct", "W2A2", IMAGES)
    layers = quantized_layers(model)
    assert [r["layer"] for r in report if r["status"] == "quantized"] == list(layers)
    assert {r["layer"] for r in report if r["status"] == "kept"} == {
        report[0]["layer"],
        report[-1]["layer"],
    }
    before = {
        n: (q.weight_quantizer.z.clone(), q.weight_quantizer.v.clone()) for n, q in layers.items()
    }
    assert 0 < step(model) < 100
    for name, (z, v) in before.items():
        quantizer = layers[name].weight_quantizer
        assert not torch.equal(quantizer.z, z) and not torch.equal(quantizer.v, v), name
        assert len(layers[name].used_weight()[0].unique()) <= 4
    model.eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = network()
    baselines.quantize(loaded, "direct", "W2A2", IMAGES)
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(loaded.eval()(IMAGES), model(IMAGES))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_a_foreign_network(method):
    bits = (baselines.method(method).w_bits or (2,))[0]
    model = plain()
    baselines.quantize(model, method, f"W{bits}A2", IMAGES)
    layers = quantized_layers(model)
    before = copy.deepcopy({n: q.weight_quantizer for n, q in layers.items()})
    losses = [step(model) for _ in range(2)]
    assert all(0 < loss < 100 for loss in losses)
    for name, quantizer in before.items():
        assert not torch.equal(quantizer.latent(), layers[name].weight_quantizer.latent()), name


def test_a_timm_model_is_quantized_and_trains():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("resnet10t", num_classes=4)
    report = baselines.quantize(model, "direct", "W2A2", IMAGES)
    assert sum(r["status"] == "quantized" for r in report) == len(report) - 2
    assert 0 < step(model) < 100


def test_a_transformer_s_tokens_are_rows_of_channels():
    model = vision_transformer()
    report = baselines.quantize(model, "direct", "W4A4", IMAGES)
    rows = {r["layer"].split(".")[-1]: r for r in report}
    # nn.MultiheadAttention reads the weight of its out_proj without calling it.
    assert (rows["out_proj"]["status"], rows["out_proj"]["reason"]) == ("kept", "not called")
    assert rows["0"]["status"] == "quantized" and rows["0"]["macs"] == 17 * 16 * 32
    assert 0 < step(model) < 100
    assert model.eval()(IMAGES).isfinite().all()


def test_a_linear_layer_treats_any_leading_dimensions_as_rows():
    layer, x = nn.Linear(6, 5), torch.randn(3, 4, 7, 6)
    activation = baselines.method("direct").activation(2, True)
    activation.calibrate(x.reshape(-1, 6))
    one = QuantLayer(layer, None, activation).train()
    other = copy.deepcopy(one)
    expected = other(x.reshape(-1, 6)).view(3, 4, 7, 5)
    assert torch.equal(one(x), expected)
    assert torch.equal(one.activation_quantizer.v, other.activation_quantizer.v)


# -- which inputs can be negative, and who does the ReLU -----------------------------------------


@each_network
def test_an_input_is_signed_exactly_where_it_is_negative_on_the_batch(network):
    model = network()
    lowest = {name: seen.lowest for name, seen in observe(model, IMAGES).layers.items()}
    report = baselines.quantize(model, "direct", "W32A2", IMAGES)
    assert {r["layer"]: r["signed"] for r in report} == {n: x < 0 for n, x in lowest.items()}
    for name, layer in quantized_layers(model).items():
        assert layer.activation_quantizer.signed == (lowest[name] < 0)


def test_observing_leaves_the_model_as_it_was():
    model = resnet18()
    model.layer1.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    observe(model, IMAGES)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())


class _Signs(nn.Module):
    """Reads the second of two layers through a ReLU that both of its uses share, in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.conv3, self.fc = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.conv2(self.relu(self.conv1(x)))
        y = self.conv3(x)  # reads negative values
        return self.fc(self.relu(y).mean((2, 3)))


@pytest.mark.parametrize("method", ("direct", "lq_nets"))
def test_eight_bits_keep_the_function_where_one_relu_is_used_twice_in_place(method):
    model = _Signs().eval()
    expected = model(IMAGES)
    report = baselines.quantize(model, method, "W8A8", IMAGES)
    assert [r["signed"] for r in report] == [True, False, True, False]
    assert (model(IMAGES) - expected).norm() < 0.05 * expected.norm()
    assert 0 < step(model) < 100


def test_a_relu_is_handed_over_only_where_nothing_else_reads_it():
    class Tapped(nn.Module):
        """Calls the modules of one chain one by one, and those of another as one."""

        def __init__(self):
            super().__init__()
            self.tapped, self.whole = plain()[:6], nn.Sequential(*plain()[3:6], *plain()[3:6])
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            for module in self.tapped:
                x = module(x)
                kept = x
            return self.fc((self.whole(x) + kept).mean((2, 3)))

    model = Tapped()
    baselines.quantize(model, "direct", "W2A2", IMAGES)
    assert isinstance(model.tapped[2], nn.ReLU) and isinstance(model.tapped[5], nn.ReLU6)
    assert isinstance(model.whole[2], nn.Identity) and isinstance(model.whole[5], nn.ReLU6)
    assert model.whole[3].activation_quantizer.ceiling == 6
    hooked = plain()
    hooked[5].register_forward_hook(lambda *_: None)
    baselines.quantize(hooked, "direct", "W2A2", IMAGES)
    assert isinstance(hooked[2], nn.Identity) and isinstance(hooked[5], nn.ReLU6)


def test_chains_may_name_their_modules():
    """torchvision's DenseNet does."""
    block = nn.Sequential()
    for name, module in zip("abcdefgh", plain(), strict=False):
        block.add_module(name, module)
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(8 * 64, 4))
    baselines.quantize(model, "direct", "W2A2", IMAGES)
    assert isinstance(block.c, nn.Identity) and isinstance(block.f, nn.Identity)


# -- policies --------------------------------------------------------------------------------------


def test_policies_name_layers_by_pattern_or_predicate():
    model = resnet18()
    report = baselines.quantize(
        model,
        baselines.method("pact"),
        "W2A4",
        IMAGES,
        first_last="8bit",
        shortcut="fp",
        exceptions={"layer4.1.*": "W4A8", "layer1.0.conv1": "FP"},
        first_layers=["conv1", "layer1.0.conv2"],
        last_layers=lambda name, layer: isinstance(layer, nn.Linear),
        shortcut_layers="layer[23].*.downsample.*",
    )
    bits = {r["layer"]: (r["w_bits"], r["a_bits"]) for r in report}
    for name, expected in {
        "conv1": (8, 8), "layer1.0.conv2": (8, 8), "fc": (8, 8), "layer1.0.conv1": (32, 32),
        "layer2.0.downsample.0": (32, 32), "layer3.0.downsample.0": (32, 32),
        "layer4.0.downsample.0": (2, 4), "layer4.1.conv2": (4, 8), "layer3.0.conv1": (2, 4),
    }.items():  # fmt: skip
        assert bits[name] == expected, name


def test_first_and_last_are_those_that_the_batch_passes_first_and_last():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inner, self.stem = nn.Linear(8, 4), nn.Conv2d(8, 8, 3), nn.Conv2d(3, 8, 3)
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.inner(self.stem(x)).mean((2, 3)))

    reasons = {
        r["layer"]: r["reason"] for r in baselines.quantize(Backwards(), "direct", "W2A2", IMAGES)
    }
    assert reasons == {
        "fc": "last layer", "inner": "policy", "stem": "first layer", "unused": "not called"
    }  # fmt: skip


def test_a_frozen_layer_stays_frozen_and_other_modules_are_left_alone():
    model = plain()
    model.insert(4, nn.ConvTranspose2d(8, 8, 1))
    model[3].requires_grad_(False)
    baselines.quantize(model, "direct", "W2A2", IMAGES)
    assert type(model[4]) is nn.ConvTranspose2d
    before = model[3].weight_quantizer.z.clone()
    step(model)
    assert torch.equal(model[3].weight_quantizer.z, before)


def test_unsigned_is_refused_where_the_batch_is_negative_and_signed_may_be_given():
    report = baselines.quantize(plain(), "direct", "W2A2", IMAGES, signed=("3", "8", "0"))
    assert {r["layer"] for r in report if r["signed"]} == {"0", "3", "8"}
    with pytest.raises(InputError, match="layer '8' reads -[0-9.e+]+ .* not named as signed"):
        baselines.quantize(plain(), "direct", "W2A2", IMAGES, signed=())


# -- what is refused -------------------------------------------------------------------------------


class _Own(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


def _with(layer, *more):
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), layer(), *more, nn.Flatten(), nn.LazyLinear(4)
    )


def _twice():
    conv = nn.Conv2d(8, 8, 3)
    return _with(lambda: conv, conv)()


def _called_twice():
    conv = nn.Conv2d(8, 8, 3)
    return _with(lambda: nn.Sequential(conv), _Calls(conv))()


class _Calls(nn.Module):
    """Calls a layer that it does not own."""

    def __init__(self, layer):
        super().__init__()
        self.others = [layer]

    def forward(self, x):
        return self.others[0](x)


def _tied():
    model = _with(lambda: nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))()
    model[3].weight = model[2].weight
    return model


def _hooked():
    model = plain()
    model[3].register_forward_pre_hook(lambda *_: None)
    return model


def _diverged():
    model = plain()
    model[0].weight.data.fill_(float("nan"))
    return model


def _quantized():
    model = plain()
    baselines.quantize(model, "pact", "W2A2", IMAGES)
    return model


def _encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return _with(lambda: nn.Conv2d(8, 8, 3), nn.Flatten(2), nn.Linear(784, 8), layer)()


REFUSED = {
    "no layer": (lambda: nn.Sequential(nn.ReLU()), "Sequential has no Conv2d or Linear layer"),
    "a layer": (lambda: nn.Conv2d(3, 4, 3), "is itself a Conv2d: put it into an nn.Sequential"),
    "quantized": (_quantized, "Sequential is quantized already"),
    "two layers": (lambda: nn.Sequential(*plain()[:4]), r"every layer .* 0 \(first layer\), 3 \("),
    "two names": (_twice, "layer '2' shares its weight .* or stands in the model twice"),
    "two calls": (_called_twice, "layer '2.0' is called 2 times in one pass"),
    "tied": (_tied, "layer '2' shares its weight with another module"),
    "padding": (
        _with(lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        "layer '2' has padding_mode 'reflect', and a quantized layer only pads zeros",
    ),
    "own forward": (_with(lambda: _Own(8, 8, 3)), "layer '2' is a _Own, whose own forward"),
    "hooks": (_hooked, "layer '3' has hooks"),
    "half": (lambda: plain().bfloat16(), "layer '3' has weights of torch.bfloat16"),
    "nan": (_diverged, "layer '3' reads NaN or infinity on the example batch"),
    "encoder": (_encoder, "layer '5.linear1' belongs to an nn.TransformerEncoderLayer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_quantized_gets_one_sentence(case):
    build, words = REFUSED[case]
    model = build()
    images = IMAGES.to(next((p.dtype for p in model.parameters()), torch.float32))
    layers = [type(m) for m in model.modules() if not isinstance(m, nn.Linear)]
    with pytest.raises(InputError, match=words) as caught:
        baselines.quantize(model, "direct", "W2A2", images)
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules() if not isinstance(m, nn.Linear)] == layers


@pytest.mark.parametrize("case", ("tied", "two calls", "padding", "own forward", "hooks"))
def test_what_is_refused_may_be_kept(case):
    model = REFUSED[case][0]()
    more = nn.Sequential(model, nn.Linear(4, 4), nn.Linear(4, 4))
    report = baselines.quantize(more, "direct", "W2A2", IMAGES, exceptions={"0.[23]*": "FP"})
    assert any(r["status"] == "quantized" for r in report)
    assert more(IMAGES).isfinite().all()


def test_images_may_be_of_bytes_where_the_network_scales_them():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = plain()

        def forward(self, images):
            return self.body(images.float() / 255)

    images = (IMAGES.sigmoid() * 255).byte()
    of_bytes, of_floats = Scaled(), plain()
    of_floats.load_state_dict(of_bytes.body.state_dict())
    baselines.quantize(of_bytes, "direct", "W2A2", images)
    baselines.quantize(of_floats, "direct", "W2A2", images.float() / 255)
    assert torch.equal(of_bytes.eval()(images), of_floats.eval()(images.float() / 255))


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"method": "directly"}, "unknown method 'directly'.*direct"),
        ({"bits": "2W2A"}, "bits: '2W2A' is not a bit setting: write W2A2"),
        ({"bits": "W5A2"}, "bits: 5 bits are not offered: choose one of 1, 2, 3, 4, 8, 32"),
        ({"images": IMAGES[:1]}, "at least 2 images"),
        ({"images": IMAGES.numpy()}, "images must be a tensor, not ndarray"),
        ({"images": [1, 2]}, "images must be a tensor, not list"),
        ({"images": IMAGES.byte()}, "images are torch.uint8, which the model does not take"),
        ({"first_last": "4bit"}, "first_last is '4bit'.*fp, 8bit"),
        ({"exceptions": {"layer9": "W4A4"}}, "exception 'layer9' matches no layer; the layers are"),
        ({"exceptions": {"3": "4"}}, "exceptions: '4' is not a bit setting"),
        ({"first_layers": ["conv0"]}, "first_layers 'conv0' matches no layer"),
        ({"last_layers": "fc"}, "last_layers 'fc' matches no layer"),
        ({"shortcut_layers": "down"}, "shortcut_layers 'down' matches no layer"),
        ({"signed": ["x"]}, "signed 'x' matches no layer"),
    ),
    ids=lambda value: "" if isinstance(value, str) else "".join(value),
)
def test_a_bad_argument_gets_one_sentence(changes, words):
    arguments = {"method": "direct", "bits": "W2A2", "images": IMAGES} | changes
    with pytest.raises(InputError, match=words) as caught:
        baselines.quantize(plain(), **arguments)
    assert "\n" not in str(caught.value)


# -- the state and the groups of parameters ------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    ({"bits": "W3A2"}, {"bits": "W2A3"}, {"signed": ["0", "3", "8"]}, {"method": "direct_sign"}),
    ids=str,
)
def test_a_state_is_not_loaded_into_layers_that_are_quantized_otherwise(changes):
    one, other = plain(), plain()
    baselines.quantize(one, "direct", "W2A2", IMAGES)
    baselines.quantize(other, **{"method": "direct", "bits": "W2A2", "images": IMAGES} | changes)
    with pytest.raises(RuntimeError, match="layer '3' is quantized by .* its saved state by"):
        other.load_state_dict(one.state_dict(), strict=False)


def test_groups_have_the_defaults_of_a_recipe_and_may_be_changed():
    schema = yaml.safe_load((ROOT / "workflow" / "suite" / "suite.schema.yaml").read_text())
    group = schema["$defs"]["group"]["properties"]
    blank = {key: value["default"] for key, value in group.items()}
    groups = schema["$defs"]["recipe"]["properties"]["quantizer_groups"]["properties"]
    assert QUANTIZER_GROUPS == {k: {**blank, **v["default"]} for k, v in groups.items()}
    model = plain()
    baselines.quantize(model, "direct", "W2A2", IMAGES)
    found = parameter_groups(model, 0.2, 1e-3, {"levels": {"weight_decay": 0.5}})
    settings = {g["name"]: (g["lr"], g["weight_decay"]) for g in found}
    assert settings == {
        "codes": (0.2, 0.0), "levels": (0.2 * 0.1, 0.5), "plain": (0.2, 0.0),
        "weights": (0.2, 1e-3),
    }  # fmt: skip
    every = [p for g in found for p in g["params"]]
    assert len(every) == len(set(every)) and set(every) == set(model.parameters())
    with pytest.raises(InputError, match="unknown quantizer group 'level': choose one of codes"):
        parameter_groups(model, 0.2, quantizer_groups={"level": {"lr_scale": 1}})


@pytest.mark.parametrize("optimizer", (torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop))
def test_any_optimizer_and_scheduler_takes_the_groups(optimizer):
    model = plain()
    baselines.quantize(model, "direct", "W2A2", IMAGES)
    chosen = optimizer(parameter_groups(model, lr=0.01))
    scheduler = torch.optim.lr_scheduler.StepLR(chosen, 1, 0.5)
    functional.cross_entropy(model(IMAGES), LABELS).backward()
    chosen.step()
    scheduler.step()
    assert {g["name"]: g["lr"] for g in chosen.param_groups} == pytest.approx(
        {"codes": 0.005, "levels": 0.0005, "plain": 0.005, "weights": 0.005}
    )


# -- the pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ("README.md", "docs/library.md"))
def test_the_code_of_the_pages_runs(page, monkeypatch, tmp_path):
    """With a narrower ResNet-18."""
    monkeypatch.setattr(models, "resnet18", lambda num_classes=1000: resnet18(num_classes))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert any(p.grad is not None for p in names["model"].parameters())
    assert (tmp_path / "model.lowbit").exists() and names["scores"].shape[0] == 8


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        (None, "METHODS is None: it must be a tuple of Method"),
        (3, "METHODS is 3: it must be a tuple of Method"),
        (("lsq",), r"METHODS is \('lsq',\): it must be a tuple of Method"),
        ((Method("lsq", None, None),), "METHODS names 'lsq', as baselines.lsq does"),
        (
            (Method("my method", None, None),),
            "METHODS names 'my method': a name has letters, digits and",
        ),
    ],
)
def test_a_file_without_methods_is_refused(methods, reason):
    module = ModuleType("baselines.mine")
    module.__file__ = "mine.py"
    if methods is not None:
        module.METHODS = methods
    with pytest.raises(InputError, match="^mine.py: " + reason):
        baselines._methods_of(module)
