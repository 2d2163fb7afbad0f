"""`direct_step` and `direct_task`: gradients by formulas of their own in float64, and the start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from baselines.direct_activations import PULL
from lowbit_core.quantizers.basis import MOMENTUM, RIDGE, ordered
from lowbit_core.quantizers.basis_activation import VARIANCE_FLOOR, BasisActivation
from lowbit_core.quantizers.direct import DirectWeight

LOW_BITS = (1, 2, 3, 4, 8)
SHAPE = (6, 5, 4, 4)
VALUES = 5 * 4 * 4  # of one image
seeds = st.integers(0, 2**31)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))
each_name = pytest.mark.parametrize("name", ("direct_step", "direct_task"))


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(seed):
    """Activations before a ReLU whose channels differ in power by orders of magnitude."""
    return draw(seed, *SHAPE) * torch.logspace(-1, 0.7, 5).double().view(1, -1, 1, 1)


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value, dtype=torch.float64))


def made(name, bits, signed, x):
    """The activation quantizer of a method, in float64, after a first batch x."""
    quantizer = baselines.method(name).activation(bits, signed).double()
    quantizer.calibrate(x)
    return quantizer


@each_name
def test_weights_are_those_of_direct_and_levels_of_activations_a_group_of_their_own(name):
    method = baselines.method(name)
    assert method.ablation and type(method.weight(torch.randn(3, 4), 2)) is DirectWeight
    groups = method.activation(2, False).GROUPS
    assert set(groups.values()) == {"clip"}
    assert set(groups) == {n for n, _ in method.activation(2, False).named_parameters()}


# -- a learned step --------------------------------------------------------------------------


def lsq(x, step, bits, signed, values):
    """The listing in the appendix of arXiv:1902.08153: gradients follow from autograd."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = 1 / (values * high) ** 0.5
    s = (step - step * scale).detach() + step * scale  # gradscale
    clipped = (x / s).clamp(low, high)
    return (clipped + (clipped.round() - clipped).detach()) * s  # roundpass


@each_bits
@each_sign
@given(seed=seeds, step=st.floats(0.05, 1))
@settings(max_examples=6)
def test_gradients_of_a_step_are_those_of_the_paper_s_listing(bits, signed, seed, step):
    x, g = inputs(seed), draw(seed + 1, *SHAPE)
    quantizer = made("direct_step", bits, signed, x)
    fill(quantizer.step, step)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = quantizer(mine)
    y.backward(g)
    s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    if signed and bits == 1:  # ours: levels -s and s; the mean of q^2 is 1
        inside = theirs.detach().abs() <= s.detach()
        scaled = (s - s / VALUES**0.5).detach() + s / VALUES**0.5
        through = theirs * inside
        sign = torch.where(theirs > 0, 1.0, -1.0).double()
        expected = sign * scaled + (through - through.detach())
    else:
        expected = lsq(theirs if signed else theirs.relu(), s, bits, signed, VALUES)
    expected.backward(g)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(quantizer.step.grad, s.grad)


@each_bits
@each_sign
def test_a_step_starts_from_the_mean_magnitude(bits, signed):
    x = inputs(1)
    quantizer = made("direct_step", bits, signed, x)
    values = x if signed else x.relu()
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    expected = 2 * values.abs().mean() / high**0.5 if high else values.abs().mean()
    torch.testing.assert_close(quantizer.step.detach(), expected)
    assert quantizer.gradient_scale.item() == pytest.approx((VALUES * max(high, 1)) ** -0.5)


# -- a basis that the task moves -------------------------------------------------------------


def code_table(bits, signed):
    """All codes (2^bits, bits), which rise with their levels; least significant number first."""
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    return (2 * codes - 1 if signed else codes).double()


def nearest(x, levels):
    """The number of the nearest level by brute force; the lower one of two."""
    return (x[..., None] - levels).abs().argmin(-1)


def spread_basis(seed, bits):
    """A random basis in order, whose numbers are not near to the sums of those before them."""
    shares = torch.rand(bits, generator=torch.Generator().manual_seed(seed)).sort().values
    return 0.4 * (1 + shares.double()) * 2.0 ** torch.arange(bits) / 2 ** (bits - 1)


def drawn_to_the_fit(x, v, signed):
    """v, a hundredth of the way to the fit that counts a channel by 1 / (variance + floor)."""
    codes = code_table(len(v), signed)
    rows = x.movedim(1, 0).flatten(1)
    variance = rows.var(1, correction=0)
    weights = 1 / (variance + VARIANCE_FLOOR * variance.mean())
    weights = weights / weights.mean()
    normal, right = torch.zeros(len(v), len(v)).double(), torch.zeros(len(v)).double()
    for row, weight in zip(rows, weights, strict=True):
        used = codes[nearest(row, codes @ v)]
        normal += weight * used.T @ used
        right += weight * used.T @ row
    ridge = RIDGE * (weights * rows.shape[1]).sum()
    fit = torch.linalg.solve(normal + ridge * torch.eye(len(v)).double(), right + ridge * v)
    return v + PULL * (1 - MOMENTUM) * (ordered(fit) - v)


@each_bits
@each_sign
@given(seed=seeds)
@settings(max_examples=6)
def test_gradients_of_a_basis_are_the_codes_of_the_levels_in_use(bits, signed, seed):
    """Before the step the basis goes a hundredth of the way to the fit; then it is in order."""
    x, g = inputs(seed), draw(seed + 1, *SHAPE)
    quantizer = made("direct_task", bits, signed, x)
    fill(quantizer.v, spread_basis(seed, bits))
    values, scale = x if signed else x.relu(), (VALUES * (2**bits - 1)) ** -0.5
    v = drawn_to_the_fit(values, quantizer.v.detach().clone(), signed)
    leaf = x.clone().requires_grad_()
    y = quantizer(leaf)
    y.backward(g)
    torch.testing.assert_close(quantizer.v.detach(), v)
    codes = code_table(bits, signed)
    levels = codes @ v
    code = nearest(values, levels)
    torch.testing.assert_close(y.detach(), levels[code])
    expected = scale * torch.einsum("nchw,nchwk->k", g, codes[code])
    torch.testing.assert_close(quantizer.v.grad, expected, rtol=1e-6, atol=1e-9)
    inside = (values > levels[0]) & (values <= levels[-1])
    assert torch.equal(leaf.grad, torch.where(inside, g, 0.0))


@each_bits
@each_sign
def test_a_basis_does_not_move_in_evaluation(bits, signed):
    x = inputs(3)
    quantizer = made("direct_task", bits, signed, x).eval()
    v = spread_basis(3, bits)
    fill(quantizer.v, v)
    levels = code_table(bits, signed) @ v
    values = x if signed else x.relu()
    torch.testing.assert_close(quantizer(x), levels[nearest(values, levels)])
    assert torch.equal(quantizer.v.detach(), v)


@each_bits
@each_sign
@pytest.mark.parametrize("ceiling", (torch.inf, 0.8))
def test_a_basis_starts_where_that_of_direct_starts(bits, signed, ceiling):
    """At the fit that counts each channel by 1 / variance, from the same start."""
    x = inputs(2).float()
    quantizer = baselines.method("direct_task").activation(bits, signed)
    direct = baselines.method("direct").activation(bits, signed)
    assert type(direct) is BasisActivation
    for each in (quantizer, direct):
        each.ceiling = ceiling
        each.calibrate(x)
    assert torch.equal(quantizer.v.detach(), direct.v)
    expected = (VALUES * (2**bits - 1)) ** -0.5
    assert quantizer.gradient_scale.item() == pytest.approx(expected, rel=1e-6)
    values = x if signed else x.clamp(0, ceiling)
    v = quantizer.v.detach().double()
    moved = drawn_to_the_fit(values.double(), v, signed) - v
    assert moved.abs().max() < 2e-3 * v.max()  # a whole way would be a hundred times that
