"""Methods beside independent implementations, where these are installed (the extra `bench`).

torchao's PARQ is its authors' own code. Brevitas has uniform quantizers with a learned scale, whose
gradient is LSQ's, binary and ternary ones. Neither is imported where it is missing.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from baselines.hwgq import BinaryWeight
from baselines.lsq import LSQActivation, LSQWeight
from baselines.pact import PACTActivation
from baselines.parq import END, PARQWeight, inverse_slope, relaxed
from baselines.ttq import TWN_THRESHOLD, TWNWeight

BITS = (2, 3, 4, 8)
STEPS = 150  # of torchao's schedule; ours ends at the share END of training
seeds = st.integers(0, 2**31)
each_bits = pytest.mark.parametrize("bits", BITS)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value))


# -- torchao: PARQ ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parq():
    optim = pytest.importorskip("torchao.prototype.parq.optim", exc_type=ImportError)
    quant = pytest.importorskip("torchao.prototype.parq.quant", exc_type=ImportError)
    return quant.LSBQuantizer(), optim.ProxPARQ(0, STEPS, steepness=10)


@pytest.mark.parametrize("bits", (1, *BITS))
@given(seed=seeds)
@settings(max_examples=8)
def test_levels_of_parq_are_those_of_torchao(parq, bits, seed):
    weight = draw(seed, 6, 50)
    _, levels = parq[0].quantize(weight, bits, dim=-1)
    torch.testing.assert_close(PARQWeight(weight, bits).levels(), levels, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bits", (1, *BITS))
@pytest.mark.parametrize("step", (0, 1, 40, 75, 120, STEPS))
def test_weights_of_parq_are_those_of_torchao(parq, bits, step):
    """In double precision: near its end rho divides by little, and amplifies every rounding."""
    quantizer, prox = parq
    weight = draw(step, 6, 50).double()
    _, levels = quantizer.quantize(weight, bits, dim=-1)
    expected = weight.clone()
    rho = prox.apply_(expected, None, levels, step, dim=-1)
    progress = torch.tensor(END * step / STEPS, dtype=torch.float64)
    assert inverse_slope(progress).item() == pytest.approx(rho, rel=1e-9, abs=1e-12)
    used = relaxed(weight, levels, torch.tensor(rho, dtype=torch.float64))
    torch.testing.assert_close(used, expected, rtol=1e-9, atol=1e-12)
    ours = PARQWeight(weight, bits)
    ours.progress = progress
    torch.testing.assert_close(ours().detach(), expected, rtol=1e-6, atol=1e-6)


# -- Brevitas: uniform quantizers ------------------------------------------------------------


@pytest.fixture(scope="module")
def brevitas():
    """uniform(bits, signed, scale, x), whose gradient also reaches the scale."""
    core = pytest.importorskip("brevitas.core.quant", exc_type=ImportError)

    def uniform(bits, signed, scale, x):
        quantizer = core.IntQuant(
            narrow_range=False, signed=signed, input_view_impl=torch.nn.Identity()
        )
        return quantizer(scale, torch.tensor(0.0), torch.tensor(float(bits)), x)

    return uniform


def limits(bits, signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def inputs(seed, bits, signed, scale):
    """Values of which some lie outside the range, none half-way between two levels.

    Brevitas clips after it rounds, so that the half step outside the range still has a gradient.
    Ours has none, as in the paper; these values are left out.
    """
    low, high = limits(bits, signed)
    u = draw(seed, 4000) * (0.6 * high + 0.5)
    outside = torch.maximum(u - high, low - u)
    kept = ((outside < 0) | (outside > 0.51)) & ((u - u.floor() - 0.5).abs() > 1e-3)
    return scale * u[kept if signed else kept & (u > 0)]


def assert_same_gradient(ours, theirs):
    """But for the rounding of Brevitas' product and quotient by the scale; zero where it is."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


@each_bits
@each_sign
@pytest.mark.parametrize("scale", (0.02, 0.3))
def test_lsq_at_equal_scale_is_the_learned_scale_of_brevitas(brevitas, bits, signed, scale):
    """Forward, and the gradients of the input and of the scale, without LSQ's factor for it."""
    x = inputs(bits, bits, signed, scale)
    g, s = draw(2, len(x)), torch.tensor(scale, requires_grad=True)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    expected = brevitas(bits, signed, s, theirs)
    expected.backward(g)
    quantizer = LSQActivation(bits, signed)  # not calibrated: its factor is 1
    fill(quantizer.step, scale)
    y = quantizer(ours[None])[0]
    y.backward(g)
    torch.testing.assert_close(y, expected)
    assert_same_gradient(ours.grad, theirs.grad)
    floor = 1e-5 * (g.abs() * (x / scale).abs()).sum().item()  # the terms cancel
    torch.testing.assert_close(quantizer.step.grad, s.grad, rtol=1e-4, atol=floor)


@each_bits
def test_weights_of_lsq_are_those_of_brevitas(brevitas, bits):
    x = inputs(7, bits, True, 0.05).view(1, -1)
    g, s = draw(2, *x.shape), torch.tensor(0.05, requires_grad=True)
    theirs = x.clone().requires_grad_()
    expected = brevitas(bits, True, s, theirs)
    expected.backward(g)
    quantizer = LSQWeight(x, bits)
    fill(quantizer.step, 0.05)
    used = quantizer()
    used.backward(g)
    torch.testing.assert_close(used, expected)
    assert_same_gradient(quantizer.weight.grad, theirs.grad)
    of_scale = s.grad * quantizer.gradient_scale
    torch.testing.assert_close(quantizer.step.grad, of_scale, rtol=1e-4, atol=1e-5)


@each_bits
@pytest.mark.parametrize("alpha", (0.7, 6.0))
def test_pact_at_equal_scale_is_the_unsigned_quantizer_of_brevitas(brevitas, bits, alpha):
    """The gradient of alpha only from values above it: inside, PACT has none and Brevitas some."""
    high = 2**bits - 1
    x = inputs(bits + 9, bits, False, alpha / high)
    g, top = draw(2, len(x)), torch.tensor(alpha, requires_grad=True)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    expected = brevitas(bits, False, top / high, theirs)
    quantizer = PACTActivation(bits, False)
    fill(quantizer.alpha, alpha)
    y = quantizer(ours[None])[0]
    torch.testing.assert_close(y, expected)
    y.backward(g)
    above = x >= alpha
    assert above.any()
    (of_alpha,) = torch.autograd.grad(expected, top, g * above, retain_graph=True)
    torch.testing.assert_close(quantizer.alpha.grad, of_alpha, rtol=1e-4, atol=1e-4)
    expected.backward(g)
    assert_same_gradient(ours.grad, theirs.grad)


# -- Brevitas: binary and ternary weights ----------------------------------------------------


@pytest.fixture(scope="module")
def few_levels():
    """(binary(scale, x), ternary(scale, threshold as a share of it, x)) of Brevitas."""
    quant = pytest.importorskip("brevitas.core.quant", exc_type=ImportError)
    scaling = pytest.importorskip("brevitas.core.scaling", exc_type=ImportError)

    def binary(scale, x):
        return quant.BinaryQuant(scaling.ConstScaling(scale))(x)[0]

    def ternary(scale, threshold, x):
        return quant.TernaryQuant(scaling.ConstScaling(scale), threshold)(x)[0]

    return binary, ternary


@given(seed=seeds)
@settings(max_examples=8)
def test_twn_at_equal_scale_is_the_ternary_quantizer_of_brevitas(few_levels, seed):
    weight = draw(seed, 4, 30)
    quantizer = TWNWeight(weight, 2)
    scale = quantizer.levels()[0, 2].item()
    share = TWN_THRESHOLD * weight.abs().mean().item() / scale
    torch.testing.assert_close(quantizer().detach(), few_levels[1](scale, share, weight))


@pytest.mark.parametrize("name", ("hwgq", "dorefa", "lq_nets"))
def test_one_bit_weights_at_equal_scale_are_the_binary_quantizer_of_brevitas(few_levels, name):
    """By channel, with sign(0) = +1, which the fit of LQ-Nets does not need to have."""
    weight = draw(3, 4, 30)
    if name != "lq_nets":
        weight[:, 0] = 0.0
    quantizer = baselines.method(name).weight(weight, 1)
    assert (type(quantizer) is BinaryWeight) == (name == "hwgq")
    levels, used = quantizer.levels().detach().expand(4, -1), quantizer().detach()
    for row, w, own in zip(used, weight, levels, strict=True):
        torch.testing.assert_close(row, few_levels[0](own[1].item(), w))
