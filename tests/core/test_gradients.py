"""Gradients of every quantizer against closed forms, autograd and finite differences in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from offered import offered
from torch import nn

import baselines
from baselines.dorefa import DoReFaActivation, DoReFaWeight
from baselines.lq_nets import LQWeight
from baselines.lsq import LSQPlusActivation
from baselines.n2uq import N2UQActivation
from baselines.pact import PACTActivation
from lowbit_core.conversion.layers import QuantLayer, calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.quantizers.basis import ordered
from lowbit_core.quantizers.basis_activation import WEIGHTINGS, BasisActivation
from lowbit_core.quantizers.direct import MIN_STEP, DirectWeight, IndirectWeight, SignWeight
from lowbit_core.training.schedule import learning_rate, parameter_groups

LOW_BITS = (1, 2, 3, 4, 8)
seeds = st.integers(0, 2**31)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))
GROUPS = {
    "codes": {"lr_scale": 1.0, "weight_decay": 0.0},
    "levels": {"lr_scale": 0.1, "weight_decay": 0.0},
    "clip": {"lr_scale": 1.0, "weight_decay": 1e-4},
}


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def finite_difference(function, x, step=1e-6):
    """Central differences of a scalar function at x, float64."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        shift = torch.zeros(x.numel(), dtype=x.dtype)
        shift[i] = step
        shift = shift.view(x.shape)
        gradient.view(-1)[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


# -- PACT and DoReFa -------------------------------------------------------------------------


@each_bits
@each_sign
@given(seed=seeds, alpha=st.floats(0.1, 4))
@settings(max_examples=10)
def test_pact_gradients(bits, signed, seed, alpha):
    x, g = 2 * draw(seed, 4, 30), draw(seed + 1, 4, 30)
    x[0, :3] = torch.tensor([alpha, 0.0, -alpha], dtype=torch.float64)  # on the borders
    x.requires_grad_()
    quantizer = PACTActivation(bits, signed).double()
    with torch.no_grad():
        quantizer.alpha.fill_(alpha)
    quantizer(x).backward(g)
    inside = (x < alpha) & ((x >= -alpha) if signed else (x > 0))  # unsigned: and the ReLU's
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))
    expected = g[x >= alpha].sum() - (g[x <= -alpha].sum() if signed else 0)
    torch.testing.assert_close(quantizer.alpha.grad, expected)

    def surrogate(a):  # clipping without rounding
        return (x.detach().clamp(-a.item() if signed else 0, a.item()) * g).sum()

    away = (x.detach().abs() - alpha).abs() > 1e-4
    g = torch.where(away, g, 0.0)
    quantizer.alpha.grad = None
    quantizer(x).backward(g)
    numeric = finite_difference(surrogate, torch.tensor(alpha, dtype=torch.float64))
    torch.testing.assert_close(quantizer.alpha.grad, numeric, rtol=1e-6, atol=1e-6)


@each_bits
@each_sign
def test_dorefa_activation_gradient_stops_outside_the_clip(bits, signed):
    x, g = draw(1, 3, 100).requires_grad_(), draw(2, 3, 100)
    DoReFaActivation(bits, signed).double()(x).backward(g)
    inside = (x < 1) & ((x >= -1) if signed else (x > 0))
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@given(seed=seeds, scale=st.sampled_from((0.02, 0.5, 2.0)))
@settings(max_examples=8)
def test_dorefa_weight_gradient_goes_through_tanh_and_maximum(bits, seed, scale):
    weight, g = scale * draw(seed, 3, 4), draw(seed + 1, 3, 4)
    quantizer = DoReFaWeight(weight, bits)
    quantizer().backward(g)

    def surrogate(w):  # 2 u - 1 with u = tanh(w) / (2 max|tanh(w)|) + 1/2, not rounded
        return (g * w.tanh() / w.tanh().abs().max()).sum()

    numeric = finite_difference(surrogate, weight, step=1e-6 * scale)
    torch.testing.assert_close(quantizer.weight.grad, numeric, rtol=1e-5, atol=1e-5 / scale)


def test_binary_dorefa_gradient_is_the_identity():
    g = draw(2, 3, 4)
    quantizer = DoReFaWeight(draw(1, 3, 4), 1)
    quantizer().backward(g)
    assert torch.equal(quantizer.weight.grad, g)


# -- LQ-Nets ---------------------------------------------------------------------------------


@each_bits
def test_lq_weight_gradient_is_the_identity(bits):
    weight, g = draw(1, 3, 20).float(), draw(2, 3, 20).float()
    weight[0, 0] = 100.0
    quantizer = LQWeight(weight, bits)
    quantizer().backward(g)
    assert torch.equal(quantizer.weight.grad, g)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@each_bits
@each_sign
def test_basis_activation_gradient_is_clipped_to_the_levels_before_the_update(
    weighting, bits, signed
):
    quantizer = BasisActivation(bits, signed, weighting)
    levels = quantizer.levels().clone()
    x = 2 * draw(1, 4, 3, 5, 5).float()
    x = x if signed else x.relu()
    x[0, 0, 0, :2] = torch.stack([levels[0], levels[-1]])
    x.requires_grad_()
    g = draw(2, *x.shape).float()
    quantizer(x).backward(g)
    assert not torch.equal(levels, quantizer.levels())
    inside = (x >= levels[0]) & (x <= levels[-1]) & ((x > 0) | signed)
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))


# -- direct weights --------------------------------------------------------------------------


def explicit_weight(q, v, bits):
    """Codes times an ordered basis, differentiable in v, float64."""
    codes = 2.0 * ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1) - 1
    return (codes.double()[q.long()] * v[:, None, :]).sum(2)


@each_bits
@given(seed=seeds)
@settings(max_examples=8)
def test_direct_gradients(bits, seed):
    count = 2**bits
    quantizer = DirectWeight(draw(seed, 4, 30).float(), bits).double()
    with torch.no_grad():  # codes all over the axis and beyond, an order of levels unlike the start
        quantizer.z.copy_(
            torch.rand(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            * (count + 4)
            - 2.5
        )
        quantizer.z[0, :4] = torch.tensor([-1.0, count, -1.001, count + 0.001])
        quantizer.v.copy_(draw(seed + 5, 4, bits))
    g = draw(seed + 1, 4, 30)
    used = quantizer()
    used.backward(g)
    q = quantizer.z.detach().clamp(0, count - 1).round()
    v = quantizer.v.detach().clone().requires_grad_()
    expected = explicit_weight(q, v, bits)
    expected.backward(g)
    torch.testing.assert_close(used, expected)
    torch.testing.assert_close(quantizer.v.grad, v.grad)
    levels = quantizer.levels().detach()
    d = (levels[:, -1:] - levels[:, :1]) / (count - 1)
    outside = (quantizer.z < -1) | (quantizer.z > count)
    torch.testing.assert_close(
        quantizer.z.grad, torch.where(outside, 0.0, g / d.clamp_min(MIN_STEP))
    )
    assert quantizer.z.grad[0, :2].abs().min() > 0 and (quantizer.z.grad[0, 2:4] == 0).all()


@each_bits
def test_a_code_step_moves_the_equivalent_weight_by_the_learning_rate(bits):
    """Preconditioning: within uniform levels, the un-rounded w moves by -lr g."""
    v = 0.1 * 2.0 ** torch.arange(bits, dtype=torch.float64).expand(3, -1)
    quantizer = DirectWeight(draw(0, 3, 20).float(), bits).double()
    with torch.no_grad():
        quantizer.v.copy_(v)
        quantizer.z.copy_((2**bits - 1) * torch.rand(3, 20, dtype=torch.float64))
    before, g = quantizer.latent().detach(), 1e-3 * draw(1, 3, 20)
    quantizer().backward(g)
    with torch.no_grad():
        quantizer.z.sub_(0.5 * quantizer.z.grad)
    torch.testing.assert_close(quantizer.latent() - before, -0.5 * g)


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_indirect_gradients(bits, seed):
    quantizer = IndirectWeight(draw(seed, 4, 30).float(), bits).double()
    with torch.no_grad():
        # in order, and no two levels the same
        quantizer.v.copy_(ordered(draw(seed + 5, 4, bits)) * 1.05 ** torch.arange(bits))
    g = draw(seed + 1, 4, 30)
    used = quantizer()
    used.backward(g)
    levels = quantizer.levels().detach()
    q = (quantizer.weight.detach()[..., None] - levels[:, None]).abs().argmin(2)
    v = quantizer.v.detach().clone().requires_grad_()
    expected = explicit_weight(q, v, bits)
    expected.backward(g)
    torch.testing.assert_close(used, expected)
    torch.testing.assert_close(quantizer.v.grad, v.grad)
    assert torch.equal(quantizer.weight.grad, g)


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_sign_gradients(bits, seed):
    quantizer = SignWeight(draw(seed, 4, 20).float(), bits).double()
    with torch.no_grad():
        quantizer.u.copy_(1.5 * draw(seed + 2, 4, 20, bits))
        quantizer.u[0, 0] = 0.0
        quantizer.v.copy_(draw(seed + 5, 4, bits))
    g = draw(seed + 1, 4, 20)
    used = quantizer()
    used.backward(g)
    u, v = (t.detach().clone().requires_grad_() for t in (quantizer.u, quantizer.v))
    sign = torch.where(u >= 0, 1.0, -1.0).double()
    hard = u.clamp(-1, 1)
    sign = sign.detach() + hard - hard.detach()  # straight through a hard tanh
    expected = (sign * v[:, None]).sum(2)
    expected.backward(g)
    torch.testing.assert_close(used, expected)
    torch.testing.assert_close(quantizer.v.grad, v.grad)
    # dL/du = g v inside, preconditioned by 1 / (2 v^2)
    scale = v.detach()[:, None]
    safe = (scale.abs() > MIN_STEP).expand_as(u)
    torch.testing.assert_close(quantizer.u.grad[safe], (u.grad / (2 * scale**2))[safe])


# -- every parameter trains ------------------------------------------------------------------


def small_net():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )
    net.signed_inputs = frozenset({"0", "5"})
    return net


@pytest.mark.parametrize(("method", "bits"), offered(*LOW_BITS))
@pytest.mark.parametrize("first_last", ("fp", "8bit"))
def test_every_parameter_has_a_group_a_gradient_and_moves(method, bits, first_last):
    if first_last == "8bit" and not method.offers(8):
        pytest.skip(f"{method.name} has no weights of 8 bits")
    net = small_net()
    convert(net, QuantPolicy(method, bits, bits, first_last), torch.zeros(1, 1, 8, 8))
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    calibrate(net, images)
    for quantizer in net.modules():
        if isinstance(quantizer, PACTActivation):  # at 8 bits nothing lies above the first clip
            quantizer.alpha.data.mul_(0.5)
        if isinstance(quantizer, LSQPlusActivation):  # likewise outside the first range
            quantizer.step.data.mul_(0.5)
        # Batch norm undoes a shift of a range that holds all values: `begin` may have no gradient.
        if isinstance(quantizer, N2UQActivation):
            quantizer.lengths.data.mul_(0.5)
    groups = parameter_groups(net, 0.05, 1e-4, GROUPS)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(net.parameters())
    optimizer = torch.optim.SGD(groups)
    names = {p: n for n, p in net.named_parameters()}
    before = {p: p.detach().clone() for p in grouped}
    labels = torch.arange(32) % 4
    for _ in range(2):
        nn.functional.cross_entropy(net(3 * images), labels).backward()
    quantizer_parameters = [
        p
        for layer in net.modules()
        if isinstance(layer, QuantLayer)
        for q in (layer.weight_quantizer, layer.activation_quantizer)
        if q is not None
        for p in q.parameters()
    ]
    assert quantizer_parameters
    for parameter in quantizer_parameters:
        name = names[parameter]
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
    optimizer.step()
    rates = {p: group["lr"] * group["lr_scale"] for group in groups for p in group["params"]}
    resolution = torch.finfo(torch.float32).eps
    for parameter in quantizer_parameters:
        old, step = before[parameter], rates[parameter] * parameter.grad
        # Batch norm undoes a scale of what it normalises, which has hardly any gradient then.
        too_small = (step.abs() <= resolution * old.abs()).all()
        assert too_small or not torch.equal(parameter, old), names[parameter]


def test_groups_carry_the_recipe_s_settings():
    expected = {  # name of a parameter -> group
        "direct": {"weight_quantizer.z": "codes", "weight_quantizer.v": "levels"},
        "pact": {"weight_quantizer.weight": "weights", "activation_quantizer.alpha": "clip"},
        "lq_nets": {"weight_quantizer.weight": "weights"},
        "indirect": {"weight_quantizer.weight": "weights", "weight_quantizer.v": "levels"},
        "direct_sign": {"weight_quantizer.u": "codes", "weight_quantizer.v": "levels"},
    }
    for method, parts in expected.items():
        net = small_net()
        convert(net, QuantPolicy(baselines.method(method), 2, 2), torch.zeros(1, 1, 8, 8))
        found = {p: g for g in parameter_groups(net, 0.1, 0.5, GROUPS) for p in g["params"]}
        for parameter_name, parameter in net.named_parameters():
            group = found[parameter]
            layer, _, name = parameter_name.partition(".")
            if layer in ("3", "5", "9") and name in parts:
                assert group["name"] == parts[name]
            elif name == "weight" and layer in ("0", "11"):
                assert group["name"] == "weights" and group["weight_decay"] == 0.5
            else:
                assert group["name"] == "plain" and group["weight_decay"] == 0.0
            if group["name"] in GROUPS:
                assert {k: group[k] for k in ("lr_scale", "weight_decay")} == GROUPS[group["name"]]


@given(total=st.integers(1, 500), warmup=st.integers(0, 600), peak=st.floats(1e-4, 10))
def test_learning_rate_warms_up_then_falls_to_zero(total, warmup, peak):
    rates = [learning_rate(step, total, warmup, peak) for step in range(total)]
    assert all(0 < r <= peak * (1 + 1e-12) for r in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == pytest.approx(peak)
        assert learning_rate(total, total, warmup, peak) == pytest.approx(0, abs=1e-12)
