"""Methods whose levels lie on a fixed grid or have a closed form: APoT, AdaBin, TTQ, TWN, HWGQ.

Golden values come from runs of the authors' code, named with its commit beside them.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import baselines
from baselines.adabin import AdaBinActivation, AdaBinWeight
from baselines.apot import APoTActivation, APoTWeight, unit_levels
from baselines.hwgq import FULL_STEPS, HALF_STEPS, BinaryWeight, HWGQActivation
from baselines.lq_nets import LQWeight
from baselines.ttq import TTQWeight, TWNWeight
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.runtime.errors import InputError

LOW_BITS = (1, 2, 3, 4, 8)
WEIGHTS = [
    *((APoTWeight, bits) for bits in LOW_BITS),
    (AdaBinWeight, 1),
    (BinaryWeight, 1),
    (TTQWeight, 2),
    (TWNWeight, 2),
]
ACTIVATIONS = [
    *((kind, bits) for kind in (APoTActivation, HWGQActivation) for bits in LOW_BITS),
    (AdaBinActivation, 1),
]
LEVELS = {APoTWeight: {1: 2, 2: 3, 3: 7, 4: 15, 8: 255}, TTQWeight: {2: 3}, TWNWeight: {2: 3}}
SHAPES = ((4, 3, 3, 3), (6, 1, 3, 3), (5, 40), (1, 7), (3, 2, 1, 1))
seeds = st.integers(0, 2**31)


def names(cases):
    return [f"{kind.__name__}-{bits}" for kind, bits in cases]


each_weight = pytest.mark.parametrize(("kind", "bits"), WEIGHTS, ids=names(WEIGHTS))
each_activation = pytest.mark.parametrize(("kind", "bits"), ACTIVATIONS, ids=names(ACTIVATIONS))
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def activation(kind, bits, signed, x):
    quantizer = kind(bits, signed).to(x.dtype)
    quantizer.calibrate(x)
    return quantizer


def batch(seed, signed):
    x = draw(seed, 6, 5, 4, 4) * torch.logspace(-1, 0.7, 5).double().view(1, -1, 1, 1)
    return x if signed else x.relu()


def differ(x, levels):
    """The greatest distance of a value from its nearest level, as a share of the largest level."""
    distance = (x.flatten()[:, None] - levels.flatten()).abs().amin(1)
    return (distance.max() / levels.abs().max().clamp_min(1e-30)).item()


def nearest(x, units):
    """The nearest of `units` to each x by brute force; the lower one of two."""
    return units[(x[..., None] - units).abs().argmin(-1)]


# -- invariants of weights -------------------------------------------------------------------


@each_weight
@given(seed=seeds, shape=st.sampled_from(SHAPES), scale=st.sampled_from((1e-3, 0.05, 1.0)))
@settings(max_examples=8)
def test_weights_are_levels_and_monotone(kind, bits, seed, shape, scale):
    weight = scale * draw(seed, *shape)
    quantizer = kind(weight, bits).double()
    levels, used = quantizer.levels().detach(), quantizer().detach()
    assert used.shape == weight.shape and used.isfinite().all()
    assert levels.shape[1] == LEVELS.get(kind, {1: 2})[bits] <= 2**bits
    assert (levels.diff(dim=1) >= 0).all()
    levels = levels.expand(shape[0], -1)
    for row, own, was in zip(used.flatten(1), levels, weight.flatten(1), strict=True):
        assert differ(row, own) <= 1e-6
        assert (row[was.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("kind", (BinaryWeight, TWNWeight, TTQWeight))
@given(seed=seeds)
@settings(max_examples=8)
def test_weights_at_a_level_stay_there(kind, seed):
    """The levels follow from the weights, yet quantized weights give the same levels."""
    quantizer = kind(draw(seed, 5, 20), 1 if kind is BinaryWeight else 2)
    used = quantizer().detach()
    with torch.no_grad():
        quantizer.weight.copy_(used)
    torch.testing.assert_close(quantizer().detach(), used, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", LOW_BITS)
@pytest.mark.parametrize("signed", (False, True))
def test_apot_projects_levels_on_themselves(bits, signed):
    quantizer = APoTActivation(bits, signed).double()
    y = quantizer.levels().detach()
    for _ in range(2):
        torch.testing.assert_close(quantizer(y[None]).detach()[0], y, rtol=0, atol=0)


@each_weight
@pytest.mark.parametrize("value", (0.0, 0.3, -2.0, 1e-30), ids=str)
def test_constant_weights_give_numbers(kind, bits, value):
    quantizer = kind(torch.full((4, 3, 3, 3), value), bits)
    for _ in range(2):
        used = quantizer()
        assert used.isfinite().all()
        used.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_weight
def test_one_dead_channel_does_not_harm_the_others(kind, bits):
    weight = draw(1, 5, 20).float()
    weight[2] = 0
    quantizer = kind(weight, bits)
    used = quantizer()
    used.sum().backward()
    assert used.isfinite().all() and quantizer.weight.grad.isfinite().all()
    assert used[0].unique().numel() > 1


@each_weight
def test_a_layer_of_one_weight_gives_numbers(kind, bits):
    quantizer = kind(torch.full((1, 1), 0.5), bits)
    quantizer().sum().backward()
    assert quantizer().isfinite().all() and quantizer.weight.grad.isfinite().all()


@each_weight
def test_a_weight_that_is_not_a_number_stays_so(kind, bits):
    quantizer = kind(draw(1, 4, 3, 3, 3).float(), bits)
    with torch.no_grad():
        quantizer.weight.view(-1)[0] = float("nan")
    used = quantizer()
    assert used.flatten()[0].isnan()
    used.sum().backward()  # a diverging run must reach its end, not crash


@each_weight
def test_mixed_precision_does_not_coarsen_the_levels(kind, bits):
    quantizer = kind(draw(1, 6, 30).float(), bits)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer()
    torch.testing.assert_close(mixed.float(), quantizer(), rtol=1e-5, atol=1e-6)


# -- invariants of activations ---------------------------------------------------------------


@each_activation
@each_sign
@given(seed=seeds)
@settings(max_examples=6)
def test_activations_are_levels_monotone_and_stay(kind, bits, signed, seed):
    x = batch(seed, signed)
    quantizer = activation(kind, bits, signed, x)
    levels = quantizer.levels().detach()
    fewer = signed and kind is APoTActivation and bits > 1
    assert levels.shape == (2**bits - fewer,) and (levels.diff() > 0).all()
    for mode in (True, False):
        y = quantizer.train(mode)(x).detach()
        assert y.shape == x.shape and differ(y, levels) <= 1e-6
        assert (y.flatten()[x.flatten().argsort()].diff() >= 0).all()
        torch.testing.assert_close(quantizer(y).detach(), y, rtol=1e-6, atol=0)
    if not signed:
        assert levels[0] == 0 and (y[x == 0] == 0).all()


@each_activation
@each_sign
@pytest.mark.parametrize("value", (0.0, 0.7, 1e-30, 1e4), ids=str)
def test_constant_activations_give_numbers(kind, bits, signed, value):
    x = torch.full((4, 3, 5, 5), value, requires_grad=True)
    quantizer = activation(kind, bits, signed, x.detach())
    for _ in range(2):
        y = quantizer(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_activation
@each_sign
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_an_activation_that_is_not_a_number_stays_so(kind, bits, signed, training):
    x = batch(6, signed).float()
    quantizer = activation(kind, bits, signed, x).train(training)
    x[1, 2, 3, 0] = float("nan")
    y = quantizer(x)
    assert y.isnan().sum() == 1 and y[1, 2, 3, 0].isnan()
    assert quantizer.nonfinite == training
    quantizer(x.nan_to_num())
    assert quantizer.nonfinite == training


@each_activation
def test_the_relu_is_part_of_an_unsigned_quantizer_or_left_to_the_network(kind, bits):
    x = batch(3, True)
    quantizer = activation(kind, bits, False, x.relu())
    g = draw(4, *x.shape)
    results = []
    for rectify in (True, False):
        leaf = x.clone().requires_grad_()
        y = quantizer(leaf.relu() if rectify else leaf)
        y.backward(g)
        results.append((y.detach(), leaf.grad))
    (y, gradient), (own, own_gradient) = results
    torch.testing.assert_close(y, own)
    if quantizer.DOES_RELU:
        torch.testing.assert_close(gradient, own_gradient)


# -- gradients against their definitions, float64 --------------------------------------------


@pytest.mark.parametrize("bits", LOW_BITS)
@each_sign
@given(seed=seeds, alpha=st.floats(0.2, 3))
@settings(max_examples=8)
def test_apot_activation_gradients(bits, signed, seed, alpha):
    x, g = 1.5 * draw(seed, 4, 30), draw(seed + 1, 4, 30)
    x[0, :3] = torch.tensor([0.0, 10.0, -10.0])
    x.requires_grad_()
    quantizer = APoTActivation(bits, signed).double()
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
    y = quantizer(x)
    y.backward(g)
    u = (x.detach() if signed else x.detach().relu()) / alpha
    p = nearest(u.clamp(-1, 1), unit_levels(bits, signed).double())
    torch.testing.assert_close(y.detach(), alpha * p)
    inside = u.abs() <= 1
    torch.testing.assert_close(x.grad, torch.where(inside & ((x > 0) | signed), g, 0.0))
    of_alpha = torch.where(inside, p - u, u.sign())
    torch.testing.assert_close(quantizer.alpha.grad, (g * of_alpha).sum())


@pytest.mark.parametrize("bits", LOW_BITS)
@given(seed=seeds, alpha=st.floats(0.5, 3), scale=st.sampled_from((0.02, 1.0)))
@settings(max_examples=8)
def test_apot_weight_gradients(bits, seed, alpha, scale):
    """Straight through the projection, and exact through the mean and the deviation."""
    quantizer = APoTWeight(scale * draw(seed, 3, 20), bits).double()
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
    g = draw(seed + 1, 3, 20)
    quantizer().backward(g)
    w = quantizer.weight.detach().clone().requires_grad_()
    centred = w - w.sum() / w.numel()
    deviation = (centred.square().sum() / (w.numel() - 1)).sqrt()
    u = (centred / deviation / alpha).detach()
    p = nearest(u.clamp(-1, 1), unit_levels(bits, True).double())
    passes = (u.abs() <= 1) | (bits <= 2)
    normal = centred / deviation
    surrogate = alpha * p + torch.where(passes, normal - normal.detach(), 0.0)
    (deviation * surrogate).backward(g)
    torch.testing.assert_close(quantizer.weight.grad, w.grad, rtol=1e-6, atol=1e-9)
    of_alpha = deviation.detach() * torch.where(u.abs() <= 1, p - u, u.sign())
    torch.testing.assert_close(quantizer.alpha.grad, (g * of_alpha).sum(), rtol=1e-6, atol=1e-9)


@each_sign
@given(seed=seeds, alpha=st.floats(0.3, 2), beta=st.floats(-1, 1))
@settings(max_examples=10)
def test_adabin_activation_gradients(signed, seed, alpha, beta):
    x, g = draw(seed, 4, 30).requires_grad_(), draw(seed + 1, 4, 30)
    quantizer = AdaBinActivation(1, signed).double()
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
        quantizer.beta.fill_(beta)
    y = quantizer(x)
    y.backward(g)
    u = ((x if signed else x.relu()).detach() - beta) / alpha
    slope = (2 - 2 * u.abs()).clamp_min(0)
    passes = 1.0 if signed else (x.detach() > 0).double()
    sign, middle = torch.where(u > 0, 1.0, -1.0).double(), beta if signed else 1.0
    torch.testing.assert_close(y.detach(), alpha * (sign + middle))
    torch.testing.assert_close(x.grad, g * slope * passes)
    of_alpha = sign + middle - u * slope
    torch.testing.assert_close(quantizer.alpha.grad, (g * of_alpha).sum())
    of_beta = -slope + (alpha if signed else 0)
    torch.testing.assert_close(quantizer.beta.grad, (g * of_beta).sum())


@given(seed=seeds, progress=st.floats(0, 1))
@settings(max_examples=10)
def test_adabin_weight_gradients(seed, progress):
    """With k tanh(t u) in the place of the sign they are those of autograd."""
    quantizer = AdaBinWeight(draw(seed, 3, 20), 1).double()
    quantizer.progress.fill_(progress)
    g = draw(seed + 1, 3, 20)
    quantizer().backward(g)
    t = 10 ** (4 * progress - 3)
    k = max(1 / t, 1)
    w = quantizer.weight.detach().clone().requires_grad_()
    beta = w.mean(1, keepdim=True)
    alpha = (w - beta).square().mean(1, keepdim=True).sqrt()
    u = (w - beta) / alpha
    smooth = k * torch.tanh(t * u)
    sign = torch.where(u >= 0, 1.0, -1.0) + smooth - smooth.detach()
    expected = beta + alpha * sign
    expected.backward(g)
    torch.testing.assert_close(quantizer(), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(quantizer.weight.grad, w.grad, rtol=1e-5, atol=1e-7)


def test_the_surrogate_of_adabin_grows_sharp():
    """First the identity, at the end a narrow bell: k t (1 - tanh(t u)^2) at u = 0 is max(1, t)."""
    quantizer = AdaBinWeight(torch.tensor([[1.0, -1.0, 0.5, -0.5]]), 1)
    shares = []
    for progress in (0.0, 0.5, 1.0):
        quantizer.progress.fill_(progress)
        quantizer.weight.grad = None
        quantizer().backward(torch.tensor([[0.0, 0.0, 1.0, -1.0]]))
        shares.append(quantizer.weight.grad[0, 2].item())
    assert shares[0] > shares[1] > shares[2]
    assert "progress" not in quantizer.state_dict()


@given(seed=seeds, positive=st.floats(0.2, 2), negative=st.floats(0.2, 2))
@settings(max_examples=10)
def test_ttq_gradients(seed, positive, negative):
    quantizer = TTQWeight(draw(seed, 3, 20), 2).double()
    w, g = quantizer.weight.detach(), draw(seed + 1, 3, 20)
    with torch.no_grad():
        quantizer.positive.fill_(positive)
        quantizer.negative.fill_(negative)
        quantizer.weight[0, :5] = 0.0
    used = quantizer()
    used.backward(g)
    threshold, scale = 0.05 * w.abs().max(), quantizer.scale
    above, below = w > threshold, w < -threshold
    expected = scale * (positive * above.double() - negative * below.double())
    torch.testing.assert_close(used.detach(), expected)
    factor = torch.where(above, positive, torch.where(below, negative, 1.0))
    torch.testing.assert_close(quantizer.weight.grad, g * factor)
    torch.testing.assert_close(quantizer.positive.grad, scale * g[above].sum())
    torch.testing.assert_close(quantizer.negative.grad, -scale * g[below].sum())


@pytest.mark.parametrize("kind", (TWNWeight, BinaryWeight))
def test_twn_and_binary_gradients_are_the_identity(kind):
    g = draw(2, 3, 20)
    quantizer = kind(draw(1, 3, 20), 2)
    quantizer().backward(g)
    assert torch.equal(quantizer.weight.grad, g)


@pytest.mark.parametrize("bits", LOW_BITS)
@each_sign
def test_hwgq_gradient_is_that_of_clipping_at_the_highest_level(bits, signed):
    x, g = 2 * draw(1, 4, 100), draw(2, 4, 100)
    quantizer = activation(HWGQActivation, bits, signed, x)
    x.requires_grad_()
    quantizer(x).backward(g)
    top = quantizer.levels()[-1]
    inside = (x <= top) & ((x > -top) if signed else (x > 0))
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))


# -- golden values ---------------------------------------------------------------------------

WEIGHT = torch.tensor(
    [[0.31, -0.12, 0.05, -0.48], [0.22, 0.02, -0.27, 0.11], [-0.05, 0.6, -0.33, 0.17]]
)
GRADIENT = torch.tensor([[0.5, -1.0, 0.25, 0.75], [-0.5, 1.5, -0.25, 1.0], [0.3, -0.7, 0.9, -0.4]])
X = torch.tensor([0.0, 0.04, 0.13, 0.31, 0.55, 0.7, 0.92, 1.1, 1.26, 2.0])
G = torch.tensor([0.5, -1.0, 0.25, 0.75, -0.5, 1.5, -0.25, 1.0, 0.3, -0.7])

# By bits: the quantized WEIGHT with alpha = 1.2, and the gradient of alpha, of
# github.com/yhhhli/APoT_Quantization at 13204f1, ImageNet/models/quant_layer.py. Its weights have
# deviation 1; ours are multiplied by the layer's deviation.
APOT_WEIGHTS = {
    2: ([1.2, 0, 0, -1.2, 1.2, 0, -1.2, 0, 0, 1.2, -1.2, 0], -1.9904959),
    3: ([1.2, -0.6, 0, -1.2, 0.6, 0, -1.2, 0.3, -0.3, 1.2, -1.2, 0.6], -1.2654961),
    4: ([0.96, -0.48, 0.12, -1.2, 0.72, 0, -0.96, 0.36, -0.24, 1.2, -1.2, 0.48], -1.4354962),
}
APOT_WEIGHT_GRADIENTS = {  # 3 and 4 bits have the same
    2: [1.846695, -4.414902, 0.269479, 0.448884, -1.770476, 4.387189,
        -2.31828, 2.961107, 0.154252, -1.366233, 1.378212, -1.575927],
    3: [1.075942, -4.025377, 0.20029, -0.711822, -2.298379, 4.39895,
        -1.524006, 2.730019, 0.354895, -0.565981, 2.334385, -1.968915],
}  # fmt: skip
# The same for X and G, from CIFAR10/models/quant_layer.py.
APOT_ACTIVATIONS = {
    2: ([0, 0, 0, 0.3, 0.6, 0.6, 1.2, 1.2, 1.2, 1.2], -0.5208333),
    3: ([0, 0, 0.12, 0.36, 0.48, 0.72, 0.96, 1.2, 1.2, 1.2], -0.2083333),
    4: ([0, 0.05, 0.15, 0.3, 0.6, 0.6, 0.9, 1.2, 1.2, 1.2], -0.4687499),
}
# By the surrogate's t: the gradient of WEIGHT, of github.com/huawei-noah/Efficient-Computing at
# 225ddd2, BinaryNetworks/AdaBin/cifar10/utils/binarylib.py.
ADABIN_WEIGHTS = [0.226793, -0.346793, 0.226793, -0.346793, 0.201797, 0.201797,
                  -0.161797, 0.201797, -0.242454, 0.437454, -0.242454, 0.437454]  # fmt: skip
ADABIN_WEIGHT_GRADIENTS = {
    0.001: [0.870328, -1.060053, 0.360098, 0.329626, 0.02427, 1.5,
            -1.010191, 1.235921, 0.291112, -0.669721, 0.87424, -0.395632],
    10.0: [0.553703, -0.365318, 0.360154, -0.048539, -2.694451, 11.686998,
           -4.209899, -3.032648, 0.325508, -0.753243, 0.787276, -0.259542],
}  # fmt: skip


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_apot_weights_are_those_of_the_authors(bits):
    quantizer = APoTWeight(WEIGHT, bits)
    with torch.no_grad():
        quantizer.alpha.fill_(1.2)
    normal = quantizer() / quantizer.weight.std()
    normal.backward(GRADIENT)
    expected, of_alpha = APOT_WEIGHTS[bits]
    torch.testing.assert_close(normal.detach().flatten(), torch.tensor(expected))
    gradient = torch.tensor(APOT_WEIGHT_GRADIENTS[min(bits, 3)]).view(3, 4)
    torch.testing.assert_close(quantizer.weight.grad, gradient, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(quantizer.alpha.grad, torch.tensor(of_alpha), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", (2, 3, 4))
def test_apot_activations_are_those_of_the_authors(bits):
    quantizer, x = APoTActivation(bits, False), X.clone().requires_grad_()
    with torch.no_grad():
        quantizer.alpha.fill_(1.2)
    y = quantizer(x[None])
    y.backward(G[None])
    expected, of_alpha = APOT_ACTIVATIONS[bits]
    torch.testing.assert_close(y.detach()[0], torch.tensor(expected).float())
    inside = torch.where((x <= 1.2) & (x > 0), G, 0.0)  # ours has the ReLU's gradient at 0
    torch.testing.assert_close(x.grad, inside)
    torch.testing.assert_close(quantizer.alpha.grad, torch.tensor(of_alpha), rtol=1e-5, atol=1e-6)


def test_apot_levels_are_those_of_the_authors():
    """`build_power_value` of the same commit, as multiples of the least common denominator."""
    assert (4 * unit_levels(2, False)).tolist() == [0, 1, 2, 4]
    torch.testing.assert_close(
        10 * unit_levels(3, False), torch.tensor([0.0, 1, 2, 3, 4, 6, 8, 10])
    )
    four = [0.0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48]
    torch.testing.assert_close(48 * unit_levels(4, False), torch.tensor(four))


@pytest.mark.parametrize("t", (0.001, 10.0))
def test_adabin_weights_are_those_of_the_authors(t):
    quantizer = AdaBinWeight(WEIGHT, 1)
    quantizer.progress.fill_((math.log10(t) + 3) / 4)
    used = quantizer()
    used.backward(GRADIENT)
    torch.testing.assert_close(
        used.detach().flatten(), torch.tensor(ADABIN_WEIGHTS), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        quantizer.weight.grad.flatten(),
        torch.tensor(ADABIN_WEIGHT_GRADIENTS[t]),
        rtol=1e-4,
        atol=2e-6,
    )


def test_adabin_activations_are_those_of_the_authors():
    quantizer = AdaBinActivation(1, True)
    with torch.no_grad():
        quantizer.alpha.fill_(0.8)
        quantizer.beta.fill_(0.3)
    x = torch.tensor([-2.0, -0.6, -0.45, -0.1, 0.2, 0.35, 0.5, 0.9, 1.05, 1.3]).requires_grad_()
    y = quantizer(x[None])
    y.backward(G[None])
    torch.testing.assert_close(y.detach()[0], torch.tensor([-0.56] * 5 + [1.04] * 5))
    expected = torch.tensor([0, 0, 0.03125, 0.75, -0.875, 2.8125, -0.375, 0.5, 0.0375, 0])
    torch.testing.assert_close(x.grad, expected)
    torch.testing.assert_close(quantizer.alpha.grad, torch.tensor(2.2077343))
    torch.testing.assert_close(quantizer.beta.grad, torch.tensor(-1.4012499))


def test_hwgq_levels_are_those_of_the_authors():
    """github.com/zhaoweicai/hwgq at ebc706b: centers of res18-hwgq-3ne-clip-poly-320k, and the
    thresholds that src/caffe/layers/quant_layer.cpp puts between them.
    """
    quantizer = HWGQActivation(2, False)
    torch.testing.assert_close(quantizer.levels(), torch.tensor([0, 0.538, 1.076, 1.614]))
    x = torch.tensor([[-1.0, 0.0, 1e-6, 0.806, 0.808, 1.344, 1.346, 1.6, 9.0]])
    expected = torch.tensor([[0.0, 0, 1, 1, 2, 2, 3, 3, 3]]) * 0.538
    for mode in (True, False):
        torch.testing.assert_close(quantizer.train(mode)(x), expected)


@pytest.mark.parametrize("bits", LOW_BITS)
def test_hwgq_steps_have_the_least_error_on_a_gaussian(bits):
    x = (np.arange(200_000) + 0.5) / 200_000 * 8
    density = np.exp(-x * x / 2) / np.exp(-x * x / 2).sum()

    def half(step):
        return step * np.clip(np.round(x / step), 1, 2**bits - 1)

    def full(step):
        return step * (np.clip(np.floor(x / step), 0, 2 ** (bits - 1) - 1) + 0.5)

    for quantized, step in ((half, HALF_STEPS[bits]), (full, FULL_STEPS[bits])):
        shares = np.linspace(0.9, 1.1, 41)
        errors = [(((quantized(step * s) - x) ** 2) * density).sum() for s in shares]
        assert shares[np.argmin(errors)] == pytest.approx(1, abs=0.006)


def test_ternary_golden():
    weight = torch.tensor([[0.5, -0.3, 0.01], [-0.02, 1.0, -0.6]])
    # TWN: mean|w| = 0.405, threshold 0.2835, kept 0.5, 0.3, 1.0, 0.6 of mean 0.6.
    twn = torch.tensor([[0.6, -0.6, 0.0], [0.0, 0.6, -0.6]])
    torch.testing.assert_close(TWNWeight(weight, 2)().detach(), twn)
    # TTQ: threshold 0.05, the same weights are kept.
    quantizer = TTQWeight(weight, 2)
    torch.testing.assert_close(quantizer().detach(), twn)
    with torch.no_grad():
        quantizer.positive.fill_(2.0)
        quantizer.negative.fill_(
            -0.5
        )  # a scale counts by its size, so that levels keep their order
    torch.testing.assert_close(quantizer.levels()[0].detach(), torch.tensor([-0.3, 0.0, 1.2]))
    torch.testing.assert_close(
        quantizer().detach(), torch.tensor([[1.2, -0.3, 0.0], [0.0, 1.2, -0.3]])
    )


def test_binary_golden():
    weight = torch.tensor([[1.0, -3.0, 0.0, 0.0], [0.2, 0.2, -0.2, 0.2]])
    expected = torch.tensor([[1.0, -1.0, 1.0, 1.0], [0.2, 0.2, -0.2, 0.2]])  # sign(0) is +1
    torch.testing.assert_close(BinaryWeight(weight, 1)().detach(), expected)


# -- starts, widths and cost -----------------------------------------------------------------


@each_sign
@pytest.mark.parametrize("bits", LOW_BITS)
def test_hwgq_takes_its_unit_from_the_power_of_the_first_batch(bits, signed):
    x = 3 * draw(1, 50, 4, 10, 10)
    quantizer = activation(HWGQActivation, bits, signed, x if signed else x.relu())
    assert quantizer.deviation.item() == pytest.approx(3, rel=0.02)


def test_adabin_starts_as_a_uniform_bit():
    """Unsigned: levels 0 and h with the threshold half-way, as every one-bit grid from 0."""
    x = draw(1, 8, 4, 6, 6).relu()
    quantizer, apot = AdaBinActivation(1, False).double(), APoTActivation(1, False).double()
    quantizer.calibrate(x)
    apot.calibrate(x)
    torch.testing.assert_close(quantizer.levels(), apot.levels(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quantizer(x), apot(x), rtol=1e-6, atol=1e-6)


def test_apot_starts_at_the_least_error():
    weight = draw(1, 8, 50).float()
    for bits in LOW_BITS:
        quantizer = APoTWeight(weight, bits)
        start, errors = quantizer.alpha.item(), []
        for share in (0.85, 1.0, 1.15):
            with torch.no_grad():
                quantizer.alpha.fill_(share * start)
                errors.append((quantizer() - quantizer.latent()).square().sum().item())
        assert errors[1] == min(errors)


@pytest.mark.parametrize(
    ("name", "wrong", "own"), (("adabin", 2, "1"), ("ttq", 1, "2"), ("twn", 3, "2"))
)
def test_other_widths_are_refused_in_one_sentence(name, wrong, own):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    net.append(nn.Linear(64, 2))
    net.signed_inputs = frozenset({"0"})
    policy = QuantPolicy(baselines.method(name), wrong, 2)
    with pytest.raises(InputError, match=f"'{name}' has no weights of {wrong} bits.*offers {own}"):
        convert(net, policy, torch.zeros(1, 1, 8, 8))


def test_what_a_method_uses_where_its_source_defines_nothing():
    assert type(baselines.method("adabin").activation(1, False)) is AdaBinActivation
    assert type(baselines.method("adabin").activation(2, False)) is BasisActivation
    assert type(baselines.method("hwgq").weight(WEIGHT, 1)) is BinaryWeight
    assert type(baselines.method("hwgq").weight(WEIGHT, 2)) is LQWeight


@pytest.mark.parametrize(
    ("name", "bits", "numbers", "zero"),
    (
        ("apot", 1, 1, False),
        ("apot", 2, 1, True),
        ("apot", 4, 1, True),
        ("adabin", 1, 2 * 3, False),
        ("ttq", 2, 2, True),
        ("twn", 2, 1, True),
        ("hwgq", 1, 3, False),
        ("hwgq", 2, 2 * 3, False),
    ),
)
def test_numbers_that_decode_the_weights_and_whether_zero_is_a_level(name, bits, numbers, zero):
    quantizer = baselines.method(name).weight(WEIGHT, bits)
    assert quantizer.level_numbers() == numbers
    assert bool((quantizer.levels() == 0).any()) == zero
