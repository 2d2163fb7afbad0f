"""Conversion by a policy: which layer is quantized by what, the report, size, operations."""

import copy
import json

import pytest
import torch
from offered import QUANTIZED, a_width
from torch import nn

import baselines
from lowbit_core import models
from lowbit_core.conversion.footprint import size_and_bitops
from lowbit_core.conversion.layers import EverySthPixel, QuantLayer, calibrate
from lowbit_core.conversion.policy import QuantPolicy, layer_bits, quantizable
from lowbit_core.conversion.swap import convert
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.runtime.errors import InputError
from lowbit_core.training import diagnostics

IMAGE = torch.zeros(1, 1, 28, 28)
REPORT = {
    "layer",
    "kind",
    "status",
    "reason",
    "w_bits",
    "a_bits",
    "weight_quantizer",
    "activation_quantizer",
    "weight_granularity",
    "activation_granularity",
    "weight_init",
    "activation_init",
    "signed",
    "weights",
    "macs",
    "level_numbers",
    "zero_level",
}
METHODS = list(baselines.METHODS.values())


def resnet():
    torch.manual_seed(0)
    return models.build("resnet20", 10, 1, width=8, stem="small_stride2")


def policy(method="direct", w=2, a=3, **options):
    return QuantPolicy(baselines.method(method), w, a, **options)


def rows(model, *arguments, **options):
    return {row["layer"]: row for row in convert(model, policy(*arguments, **options), IMAGE)}


def test_first_and_last_layer_stay_float_by_default():
    model = resnet()
    names = list(quantizable(model))
    report = rows(model)
    assert list(report) == names
    for name, row in report.items():
        layer = model.get_submodule(name)
        if name in ("stem.0", "fc"):
            assert row["status"] == "kept" and (row["w_bits"], row["a_bits"]) == (32, 32)
            assert type(layer) in (nn.Conv2d, nn.Linear)
        else:
            assert row["status"] == "quantized" and (row["w_bits"], row["a_bits"]) == (2, 3)
            assert isinstance(layer, QuantLayer)


def test_first_and_last_layer_at_eight_bits():
    model = resnet()
    report = rows(model, first_last="8bit")
    for name, reason in (("stem.0", "first layer"), ("fc", "last layer")):
        assert (report[name]["w_bits"], report[name]["a_bits"]) == (8, 8)
        assert report[name]["reason"] == reason
        assert model.get_submodule(name).weight_quantizer.levels().shape[1] == 256
    assert model.stem[0].activation_quantizer.signed
    assert not model.fc.activation_quantizer.signed


def test_shortcuts_follow_their_policy():
    shortcuts = ("blocks.3.downsample.0", "blocks.6.downsample.0")
    for choice, bits in (("quantized", 2), ("fp", 32)):
        report = rows(resnet(), shortcut=choice)
        for name in shortcuts:
            assert report[name]["w_bits"] == bits
        assert report["blocks.3.conv1"]["w_bits"] == 2


def test_exceptions_come_last_and_may_be_patterns():
    own = {"w_bits": 8, "a_bits": 32}
    report = rows(resnet(), exceptions={"blocks.[01].*": own, "fc": {"w_bits": 4, "a_bits": 4}})
    for name, row in report.items():
        if name.startswith(("blocks.0.", "blocks.1.")):
            assert (row["w_bits"], row["a_bits"]) == (8, 32)
            assert row["reason"] == "exception blocks.[01].*"
            assert row["activation_quantizer"] is None and row["weight_quantizer"] == "DirectWeight"
    assert report["fc"]["w_bits"] == 4 and report["blocks.2.conv1"]["w_bits"] == 2


def test_an_exception_without_a_layer_is_refused():
    with pytest.raises(InputError, match=r"'block\.0' matches no layer.*stem\.0.*fc"):
        rows(resnet(), exceptions={"block.0": {"w_bits": 2, "a_bits": 2}})


def test_the_full_precision_method_ignores_policies():
    """A full-precision run has the policy of its experiment, but it quantizes nothing."""
    for options in ({"first_last": "8bit"}, {"exceptions": {"fc": {"w_bits": 8, "a_bits": 8}}}):
        model = resnet()
        report = rows(model, "fp", 32, 32, **options)
        assert all(row["status"] == "kept" for row in report.values())
        assert not any(isinstance(m, QuantLayer) for m in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    (
        ({"w": 5}, ("w_bits", "5", "1, 2, 3, 4, 8, 32")),
        ({"a": 2.0}, ("a_bits", "2.0")),
        ({"w": True}, ("w_bits", "True")),
        ({"w": "2"}, ("w_bits", "'2'")),
        ({"first_last": "int8"}, ("first_last", "'int8'", "fp, 8bit")),
        ({"shortcut": "8bit"}, ("shortcut", "'8bit'", "quantized, fp")),
        ({"w": 32, "a": 32}, ("'direct'", "W32A32")),
        ({"method": "fp"}, ("'fp'", "W2A3")),
        ({"exceptions": {"fc": {"w_bits": 2}}}, ("'fc'", "w_bits and a_bits")),
        ({"exceptions": {"fc": {"w_bits": 2, "a_bits": 6}}}, ("'fc'", "a_bits", "6")),
    ),
)
def test_a_bad_policy_is_refused_in_one_sentence(options, words):
    with pytest.raises(InputError) as caught:
        policy(**options)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("arch", models.ARCHS)
def test_the_report_is_complete(method, arch):
    options = {"mobilenetv2": {"width": 0.25, "repeats": 1, "last_channels": 32}}.get(
        arch, {"width": 8}
    )
    model = models.build(arch, 10, 1, stem="small_stride2", **options)
    bits = (32, 32) if method.weight is None else (a_width(method), 2)
    layers = {n: m.weight.numel() for n, m in quantizable(model).items()}
    report = convert(model, QuantPolicy(method, *bits), IMAGE)
    assert {row["layer"]: row["weights"] for row in report} == layers
    json.dumps(report)  # plain values only
    for row in report:
        assert set(row) == REPORT
        assert row["macs"] > 0 and row["reason"]
        assert row["signed"] == (row["layer"] in model.signed_inputs)
        if row["status"] == "quantized":
            layer = model.get_submodule(row["layer"])
            assert row["weight_quantizer"] == type(layer.weight_quantizer).__name__
            assert row["activation_quantizer"] == type(layer.activation_quantizer).__name__
            assert row["weight_granularity"] in ("per_channel", "per_layer")
            assert row["activation_granularity"] == "per_layer"
            assert row["weight_init"] and row["activation_init"]
            rows_of_levels = (
                len(layer.used_weight()) if row["weight_granularity"] == "per_channel" else 1
            )
            levels = layer.weight_quantizer.levels()
            assert levels.shape[0] == rows_of_levels and 1 < levels.shape[1] <= 2 ** bits[0]
            assert row["zero_level"] == (0 in levels)
        else:
            assert row["weight_quantizer"] is None and row["level_numbers"] == 0


def test_nothing_float_is_left_behind():
    """No float copy of a quantized weight trains beside its quantizer."""
    model = resnet()
    rows(model)
    names = [n for n, _ in model.named_parameters()]
    assert "blocks.0.conv1.weight" not in names
    assert "blocks.0.conv1.weight_quantizer.z" in names and "stem.0.weight" in names


@pytest.mark.parametrize("bits", ((2, 32), (32, 2)))
@pytest.mark.parametrize("method", QUANTIZED, ids=lambda m: m.name)
def test_weights_alone_and_activations_alone(method, bits):
    model, bits = resnet(), (a_width(method, bits[0]), bits[1])
    convert(model, QuantPolicy(method, *bits), IMAGE)
    layer = model.blocks[0].conv1
    assert (layer.weight_quantizer is None) == (bits[0] == 32)
    assert (layer.activation_quantizer is None) == (bits[1] == 32)
    images = torch.randn(4, 1, 28, 28)
    calibrate(model, images)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def tiny():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=True),  # 36 weights + 4, 8 x 8 out
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False),  # 108, 4 x 4 out
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 5),  # 480 + 5
        nn.ReLU(),
        nn.Linear(5, 3),  # 15 + 3
    )
    net.signed_inputs = frozenset({"0"})
    return net


@pytest.mark.parametrize(
    ("method", "level_numbers"), (("direct", 6 * 3 + 5 * 3), ("dorefa", 3 + 3))
)
def test_size_and_operations_against_a_hand_computation(method, level_numbers):
    net = tiny()
    report = convert(net, policy(method, 3, 2), torch.zeros(1, 1, 8, 8))
    macs = {"0": 4 * 64 * 9, "3": 6 * 16 * 2 * 9, "7": 96 * 5, "9": 15}
    assert {row["layer"]: row["macs"] for row in report} == macs
    size, fp_size, bitops = size_and_bitops(net, report)
    assert bitops == (macs["0"] + macs["9"]) * 32 * 32 + (macs["3"] + macs["7"]) * 3 * 2
    rest = 4 * (4 + 5 + 3 + 4 * 4 + 4 * 6)  # biases, batch norms
    assert fp_size == 4 * (36 + 108 + 480 + 15) + rest
    coded = 36 * 4 + 15 * 4 + 41 + 180  # 108 and 480 weights of 3 bits, whole bytes: 40.5 -> 41
    assert size == coded + 4 * level_numbers + rest


def test_full_precision_costs_what_it_should():
    net = tiny()
    report = convert(net, policy("fp", 32, 32), torch.zeros(1, 1, 8, 8))
    size, fp_size, bitops = size_and_bitops(net, report)
    assert size == fp_size and bitops == 1024 * sum(row["macs"] for row in report)


@pytest.mark.parametrize(
    "method", [m for m in QUANTIZED if m.name != "dorefa" and m.offers(8)], ids=lambda m: m.name
)
def test_eight_bits_stay_close_to_full_precision(method):
    """Conversion keeps the network's function. (DoReFa clips activations at 1, at any bits.)"""
    model = resnet().train()
    images = torch.rand(16, 1, 28, 28)
    expected = model(images).detach()
    convert(model, QuantPolicy(method, 8, 8), IMAGE)
    calibrate(model, images)
    assert (model(images) - expected).norm() / expected.norm() < 0.25


def test_calibration_needs_one_batch_and_leaves_the_mode_as_it_was():
    model = resnet()
    rows(model)
    model.eval()
    calibrate(model, torch.rand(8, 1, 28, 28))
    assert not model.training
    quantizers = [m for m in model.modules() if isinstance(m, BasisActivation)]
    distinct = {tuple(q.v.tolist()) for q in quantizers}
    assert len(distinct) == len(quantizers)
    assert not any(q.calibrating for q in quantizers)


def test_conversion_works_on_the_meta_device():
    with torch.device("meta"):
        model = models.build("resnet18", 1000, 3)
    bits = layer_bits(model, policy())
    assert bits["fc"] == (32, 32, "last layer")
    assert bits["stem.0"] == (32, 32, "first layer")


# -- what is measured on a converted network -------------------------------------------------


@pytest.mark.parametrize("method", ("direct", "indirect", "lq_nets", "dorefa"))
def test_weight_state_measures_mismatch_and_flips(method):
    model = resnet()
    rows(model, method)
    first, codes = diagnostics.weight_state(model, {})
    assert all(row["flip_rate"] is None for row in first)
    layer = model.blocks[0].conv1
    used, latent = layer.used_weight().detach().flatten(1), layer.weight_quantizer.latent().detach()
    row = next(r for r in first if r["layer"] == "blocks.0.conv1")
    assert row["mismatch"] == pytest.approx(
        ((latent - used).square().sum() / used.square().sum()).item(), rel=1e-3
    )
    assert 0 < row["used_levels"] <= 1 and row["level_min"] < row["level_max"]
    with torch.no_grad():
        parameter = next(
            p for n, p in layer.weight_quantizer.named_parameters() if n in ("z", "weight")
        )
        parameter[0] = -parameter[0] if method != "direct" else 3 - parameter[0]
    second, _ = diagnostics.weight_state(model, codes)
    flips = {r["layer"]: r["flip_rate"] for r in second}
    assert flips.pop("blocks.0.conv1") == pytest.approx(1 / 8, abs=0.01)
    assert set(flips.values()) == {0.0}
    assert not any(layer.training != model.training for layer in model.modules())


def test_channel_errors_are_the_normalised_errors_of_each_channel():
    model = resnet()
    rows(model, "lq_nets", 2, 2)
    images = torch.rand(16, 1, 28, 28)
    calibrate(model, images)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = diagnostics.channel_errors(model, images, torch.rand(16, 1, 28, 28))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    channels = {
        n: m.activation_quantizer for n, m in model.named_modules() if isinstance(m, QuantLayer)
    }
    assert {row["layer"] for row in found} == set(channels)
    assert [r["channel"] for r in found if r["layer"] == "blocks.8.conv2"] == list(range(32))
    for row in found:
        errors = [row[f"error_{w}"] for w in ("equal", "inverse_variance", "median")]
        assert all(e is None or 0 <= e <= 2 for e in errors)
        assert (errors[0] is None) == (row["variance"] == 0)


# -- the backward pass -------------------------------------------------------------------------


def test_the_weight_gradient_is_that_of_the_quantized_input():
    torch.manual_seed(1)
    layer = nn.Conv2d(8, 8, 3, padding=1)
    plain = baselines.method("lq_nets")
    quantized = QuantLayer(layer, None, plain.activation(2, False))
    x = torch.randn(4, 8, 12, 12).relu().contiguous(memory_format=torch.channels_last)
    calibrate(quantized, x)
    before = copy.deepcopy(quantized.activation_quantizer).eval()(x)
    g = torch.randn(4, 8, 12, 12)
    quantized(x).backward(g)
    expected = torch.nn.grad.conv2d_weight(before, layer.weight.shape, g, padding=1)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("also_relu", (False, True))
def test_a_strided_pointwise_layer_quantizes_what_it_reads_and_no_more(also_relu):
    torch.manual_seed(1)
    layer, x = nn.Conv2d(8, 16, 1, (2, 3)), torch.randn(4, 8, 9, 7)
    x[:, :, 1::2] = 100.0  # never read
    method = baselines.method("direct")
    quantized = QuantLayer(layer, None, method.activation(3, False))
    quantizer = quantized.activation_quantizer
    calibrate(quantized, x)
    assert quantizer.levels().max() < 10
    quantized.eval()
    expected = nn.functional.conv2d(quantizer(x), layer.weight, layer.bias, (2, 3))
    if also_relu:
        relu, y = quantized(x, also_relu=True)
        torch.testing.assert_close(relu, x.relu())
    else:
        y = quantized(x)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("strides", [(2, 2), (3, 1)])
@pytest.mark.parametrize("kept", [torch.channels_last, torch.contiguous_format])
def test_every_sth_pixel_is_the_index_and_keeps_the_order_of_storage(kept, strides):
    x = torch.randn(2, 3, 5, 6).contiguous(memory_format=kept).requires_grad_()
    y = EverySthPixel.apply(x, strides)
    index = x[:, :, :: strides[0], :: strides[1]]
    assert torch.equal(y, index) and y.is_contiguous(memory_format=kept)
    upstream = torch.randn_like(y)
    (grad,), (expected,) = (torch.autograd.grad(z, x, upstream) for z in (y, index))
    assert torch.equal(grad, expected) and grad.is_contiguous(memory_format=kept)
    image = x.detach()[0]  # without a batch
    assert torch.equal(EverySthPixel.apply(image, strides), index[0])
