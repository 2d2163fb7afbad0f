"""LSQ, LSQ+, EWGS and N2UQ: gradients by definition in float64, ties, and values of other code.

The properties that they share with every quantizer are in test_quantizers.py.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import baselines
from baselines.ewgs import DELTA, EWGSActivation, EWGSWeight
from baselines.lsq import (
    SMALLEST_STEP,
    LSQActivation,
    LSQPlusActivation,
    LSQWeight,
    half_numbers,
    whole_numbers,
)
from baselines.n2uq import N2UQActivation, N2UQWeight
from lowbit_core.conversion.layers import calibrate
from lowbit_core.conversion.policy import QuantPolicy
from lowbit_core.conversion.swap import convert
from lowbit_core.quantizers.range_search import best_range_of_grid

NAMES = ("lsq", "lsq_plus", "lsq_midrise", "ewgs", "n2uq")
each_bits = pytest.mark.parametrize("bits", (1, 2, 3, 4, 8))
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))
each_grid = pytest.mark.parametrize("numbers", (whole_numbers, half_numbers))
seeds = st.integers(0, 2**31)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value))


def by_definition(x, numbers, s, signed):
    """(q, whether x is inside the range) of each x for the grid s q; ties take the lower q."""
    u = x / s
    q = numbers[(u[..., None] - numbers).abs().argmin(-1)]
    return q, (u <= numbers[-1]) & ((u > numbers[0]) if signed else torch.ones_like(u, dtype=bool))


def step_gradient(g, x, q, inside, s, is_sign):
    """LSQ's dL/ds without its scale: q - x / s inside the range, else q; q for signs."""
    return (g * (q if is_sign else torch.where(inside, q - x / s, q))).sum()


# -- gradients by definition -----------------------------------------------------------------


@each_bits
@each_grid
@given(seed=seeds, s=st.floats(0.05, 2), negative=st.booleans())
@settings(max_examples=8)
def test_gradients_of_a_weight(bits, numbers, seed, s, negative):
    weight, g = draw(seed, 4, 30), draw(seed + 1, 4, 30)
    quantizer = LSQWeight(weight, bits, numbers).double()
    s = torch.tensor(s, dtype=torch.float64)
    fill(quantizer.step, -s if negative else s)
    used = quantizer()
    used.backward(g)
    grid = numbers(bits, True).double()
    q, inside = by_definition(weight, grid, s, signed=True)
    assert torch.equal(used, s * q)
    assert torch.equal(quantizer.weight.grad, g * inside)
    expected = step_gradient(g, weight, q, inside, s, bits == 1 and numbers is whole_numbers)
    expected = expected / (weight.numel() * grid[-1]) ** 0.5 * (-1 if negative else 1)
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-6, atol=1e-6)


@each_bits
@each_sign
@each_grid
@given(seed=seeds, s=st.floats(0.05, 2))
@settings(max_examples=6)
def test_gradients_of_an_activation(bits, signed, numbers, seed, s):
    x, g = 2 * draw(seed, 4, 3, 5, 5), draw(seed + 1, 4, 3, 5, 5)
    quantizer = LSQActivation(bits, signed, numbers).double()
    quantizer.calibrate(x)
    fill(quantizer.step, s)
    x.requires_grad_()
    y = quantizer(x)
    y.backward(g)
    grid, values = numbers(bits, signed).double(), x.detach() if signed else x.detach().relu()
    s = quantizer.step.detach()
    q, inside = by_definition(values, grid, s, signed)
    torch.testing.assert_close(y, s * q)
    assert torch.equal(x.grad, g * (inside & ((x > 0) | signed)))
    is_sign = signed and bits == 1 and numbers is whole_numbers
    expected = step_gradient(g, values, q, inside, s, is_sign)
    expected = expected / (3 * 5 * 5 * grid[-1]) ** 0.5  # N is one image's values
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-6, atol=1e-6)


@each_bits
@given(seed=seeds, s=st.floats(0.05, 2), b=st.floats(-2, 1))
@settings(max_examples=8)
def test_gradients_with_an_offset(bits, seed, s, b):
    x, g = 2 * draw(seed, 4, 30), draw(seed + 1, 4, 30)
    quantizer = LSQPlusActivation(bits, signed=True).double()
    fill(quantizer.step, s)
    fill(quantizer.offset, b)
    s, b = quantizer.step.detach(), quantizer.offset.detach()
    x.requires_grad_()
    y = quantizer(x)
    y.backward(g)
    moved = x.detach() - b
    q, inside = by_definition(moved, torch.arange(2.0**bits, dtype=torch.float64), s, signed=True)
    torch.testing.assert_close(y, s * q + b)
    assert torch.equal(x.grad, g * inside)
    expected = step_gradient(g, moved, q, inside, s, is_sign=False)
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(quantizer.offset.grad, g[~inside].sum())


@each_bits
@each_sign
@given(seed=seeds)
@settings(max_examples=6)
def test_ewgs_scales_the_gradient_by_the_rounding_error(bits, signed, seed):
    x, g = 2 * draw(seed, 4, 30), draw(seed + 1, 4, 30)
    quantizer = EWGSActivation(bits, signed).double()
    fill(quantizer.step, 0.3)
    x.requires_grad_()
    quantizer(x).backward(g)
    values, grid = x.detach() if signed else x.detach().relu(), half_numbers(bits, signed).double()
    q, inside = by_definition(values, grid, quantizer.step.detach(), signed)
    rounding = values / quantizer.step.detach() - q
    expected = g * (1 + DELTA * g.sign() * rounding) * (inside & ((x > 0) | signed))
    torch.testing.assert_close(x.grad, expected)
    if signed:
        weight = EWGSWeight(values, bits).double()
        fill(weight.step, quantizer.step)
        weight().backward(g)
        torch.testing.assert_close(weight.weight.grad, expected)


def drawn_thresholds(seed, bits, signed):
    quantizer = N2UQActivation(bits, signed).double()
    fill(quantizer.lengths, (0.2 + draw(seed, quantizer.n).abs()) * 2 / quantizer.n)
    fill(quantizer.begin, quantizer.lowest + 0.1 * draw(seed + 1, 1)[0])
    fill(quantizer.s1, 1.3)
    fill(quantizer.s2, 0.7)
    return quantizer


def ramp(quantizer, x, begin, lengths, s1):
    """The lines through the segments, before s2: each rises by D from B_i to B_i + a_i."""
    begins = begin + torch.cat([0 * lengths[:1], lengths.cumsum(0)[:-1]])
    share = ((s1 * x[..., None] - begins) / lengths).clamp(0, 1)
    return quantizer.distance * share.sum(-1) + quantizer.lowest


@each_bits
@each_sign
@given(seed=seeds)
@settings(max_examples=5)
def test_n2uq_gradients_are_those_of_the_lines_through_its_segments(bits, signed, seed):
    quantizer = drawn_thresholds(seed, bits, signed)
    x, g = 2 * draw(seed + 2, 4, 20), draw(seed + 3, 4, 20)
    x.requires_grad_()
    y = quantizer(x)
    y.backward(g)
    mine = {n: p.grad for n, p in quantizer.named_parameters()} | {"x": x.grad}
    values = (x if signed else x.relu()).detach().requires_grad_()
    parts = [quantizer.begin, quantizer.lengths, quantizer.s1]
    parts = [values, *(p.detach().clone().requires_grad_() for p in parts)]
    (quantizer.s2.detach() * ramp(quantizer, *parts) * g).sum().backward()
    to_x = parts[0].grad * ((x > 0) | signed)
    torch.testing.assert_close(mine["x"], to_x)
    for name, part in zip(("begin", "lengths", "s1"), parts[1:], strict=True):
        torch.testing.assert_close(mine[name], part.grad, rtol=1e-6, atol=1e-6)
    level = y.detach() / quantizer.s2.detach()
    torch.testing.assert_close(mine["s2"], (g * level).sum(), rtol=1e-6, atol=1e-6)


@each_bits
@each_sign
@given(seed=seeds)
@settings(max_examples=5)
def test_n2uq_rounds_its_lines(bits, signed, seed):
    """The forward pass is the nearest level to the lines; it is monotone with its levels."""
    quantizer = drawn_thresholds(seed, bits, signed)
    x = 3 * draw(seed + 2, 2, 40)
    with torch.no_grad():
        y = quantizer(x)
        values = x if signed else x.relu()
        line = quantizer.s2 * ramp(
            quantizer, values, quantizer.begin, quantizer.lengths, quantizer.s1
        )
    levels = quantizer.levels().detach()
    assert (levels.diff() > 0).all() and torch.isin(y, levels).all()
    nearest = (line[..., None] - levels).abs().amin(-1)
    torch.testing.assert_close((line - y).abs(), nearest, rtol=0, atol=1e-9)
    assert (y.flatten()[values.flatten().argsort()].diff() >= 0).all()


def test_a_segment_keeps_a_length_and_a_step_a_size():
    quantizer = N2UQActivation(2, signed=False)
    fill(quantizer.lengths, [-1.0, 0.5, 0.0])
    edges = quantizer.pieces().edges.detach()
    assert (edges.diff() > 0).all() and edges[-1] == pytest.approx(0.502)
    for start in (1e-9, 0.0, -1e-9):
        weight = LSQWeight(draw(0, 3, 20).float(), 3)
        fill(weight.step, start)
        torch.testing.assert_close(weight.levels().diff(), torch.full((1, 7), SMALLEST_STEP))
        weight().backward(torch.randn(3, 20))
        assert (weight.step.grad == 0) == (start == 0)  # it can leave that size


# -- ties, zeros, starts ---------------------------------------------------------------------


@each_bits
@each_sign
@pytest.mark.parametrize("name", NAMES)
def test_ties_take_the_lower_level_and_levels_stay(name, bits, signed):
    quantizer = baselines.method(name).activation(bits, signed).double().eval()
    for parameter in quantizer.parameters():  # steps whose middles are exact numbers
        fill(parameter, torch.full_like(parameter, 0.25))
    if name == "n2uq":
        fill(quantizer.begin, quantizer.lowest)
        fill(quantizer.lengths, torch.full((quantizer.n,), 2.0**-4))
        a = quantizer.lengths.detach()
        middles = (quantizer.begin.detach() + (a.cumsum(0) - a / 2)) / 0.25
        levels = quantizer.levels().detach()
    else:
        levels = quantizer.levels().detach()
        middles = (levels[1:] + levels[:-1]) / 2
        assert torch.equal(quantizer(levels), levels)
    assert torch.equal(quantizer(middles), levels[:-1])
    assert torch.equal(quantizer(middles + 1e-9), levels[1:])


@each_bits
@each_grid
def test_a_weight_half_way_takes_the_lower_level(bits, numbers):
    quantizer = LSQWeight(torch.randn(2, 2**bits - 1), bits, numbers).eval()
    fill(quantizer.step, 0.25)
    levels = quantizer.levels().detach()[0]
    fill(quantizer.weight, ((levels[1:] + levels[:-1]) / 2).expand(2, -1))
    assert torch.equal(quantizer(), levels[:-1].expand(2, -1))


@each_bits
@pytest.mark.parametrize("name", NAMES)
def test_zero_and_dead_channels(name, bits):
    """A channel of zeros gives one finite level, near zero; whole grids hold zero itself."""
    weight = 0.1 * torch.randn(4, 5, 3, 3)
    weight[1] = 0
    quantizer = baselines.method(name).weight(weight, bits)
    used, levels = quantizer(), quantizer.levels()
    assert used[1].unique().numel() == 1
    step = levels.expand(4, -1).diff()[1].max()
    assert used[1].abs().max() <= step / 2 * (1 + 1e-6)
    assert bool((levels[0] == 0).any()) == (name in ("lsq", "lsq_plus") and bits > 1)
    assert quantizer.level_numbers() == (4 if name == "n2uq" else 1)
    activation = baselines.method(name).activation(bits, False)
    x = torch.randn(4, 5, 3, 3)
    x[:, 2] = 0
    activation.calibrate(x)
    assert (activation(x)[:, 2] == 0).all()  # padding stays zero, too


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
def test_steps_start_from_the_mean_magnitude(bits):
    weight, x = draw(1, 6, 50), draw(2, 3, 4, 5, 5)
    high = 2 ** (bits - 1) - 1
    expected = 2 * weight.abs().mean() / high**0.5
    torch.testing.assert_close(LSQWeight(weight, bits).step.detach(), expected)
    for signed, values, top in ((True, x, high), (False, x.relu(), 2**bits - 1)):
        quantizer = LSQActivation(bits, signed).double()
        quantizer.calibrate(x)
        torch.testing.assert_close(
            quantizer.step.detach(), 2 * values.abs().mean() / top**0.5, rtol=1e-6, atol=0
        )
        assert quantizer.gradient_scale == pytest.approx((100 * top) ** -0.5)


@each_grid
def test_one_bit_starts_at_the_mean_magnitude_of_each_sign(numbers):
    weight = draw(1, 6, 50).float()
    mean = weight.abs().mean()
    levels = LSQWeight(weight, 1, numbers).levels().detach()[0]
    torch.testing.assert_close(levels, torch.stack([-mean, mean]))


@each_bits
def test_the_range_of_a_grid_has_least_error_among_its_shares(bits):
    x, levels = draw(3, 500) + 0.5, 2**bits
    bottom, top = best_range_of_grid(x, x.min(), x.max(), levels)
    share = top / x.max()
    torch.testing.assert_close(bottom, share * x.min())

    def error(share):
        grid = torch.linspace(0, 1, levels, dtype=x.dtype) * (x.max() - x.min()) + x.min()
        return (x[:, None] - share * grid).abs().amin(1).square().mean()

    assert error(share) <= min(error(k / 40) for k in range(1, 41)) + 1e-12
    assert 0.02 < share <= 1


# -- values of other implementations ---------------------------------------------------------

W = [-1.3, -0.55, -0.31, -0.2, -0.06, 0.04, 0.17, 0.33, 0.38, 0.9]
G = [0.3, -1.0, 0.5, -0.7, 0.2, 1.1, -0.6, 0.9, 0.4, -0.8]
# Made by facebookresearch/ParetoQ 655e338, models/utils_quant.py, LsqBinaryTernaryExtension with
# one step: (bits, step, weights used, where the gradient passes, gradient of the step).
PARETOQ = (
    (1, 0.35, [-0.35] * 5 + [0.35] * 5, [0, 0, 1, 1, 1, 1, 1, 1, 0, 0], 0.537587),
    (
        2,
        0.3,
        [-0.6, -0.6, -0.3, -0.3, 0.0, 0.0, 0.3, 0.3, 0.3, 0.3],
        [0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        -0.015811,
    ),
    (
        3,
        0.2,
        [-0.8, -0.6, -0.4, -0.2, 0.0, 0.0, 0.2, 0.4, 0.4, 0.6],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 0],
        -0.633532,
    ),
)


@pytest.mark.parametrize(("bits", "step", "used", "passes", "of_step"), PARETOQ)
def test_lsq_weights_are_those_of_paretoq(bits, step, used, passes, of_step):
    quantizer, g = LSQWeight(torch.tensor([W]), bits), torch.tensor([G])
    fill(quantizer.step, step)
    y = quantizer()
    y.backward(g)
    torch.testing.assert_close(y, torch.tensor([used]))
    assert torch.equal(quantizer.weight.grad, g * torch.tensor([passes]))
    assert quantizer.step.grad.item() == pytest.approx(of_step, abs=2e-6)


def test_the_mid_rise_grid_is_that_of_paretoq():
    """Its StretchedElasticQuant at 2 bits and alpha 0.8, whose step is alpha / 2."""
    quantizer = LSQWeight(torch.tensor([W]), 2, half_numbers)
    fill(quantizer.step, 0.4)
    expected = [-0.6, -0.6, -0.2, -0.2, -0.2, 0.2, 0.2, 0.2, 0.2, 0.6]
    torch.testing.assert_close(quantizer(), torch.tensor([expected]))


@pytest.mark.parametrize("bits", (2, 3, 4, 8))
@each_sign
def test_lsq_is_torch_s_learnable_fake_quantize(bits, signed):
    """But for the half step outside the range, which torch counts as inside."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    u = 1.4 * (high + 0.2) * draw(1, 2000)
    outside = torch.maximum(u - high, low - u)
    u = u[((outside < 0) | (outside > 0.51)) & ((u > 0) | signed)]
    g, s = draw(2, len(u)).float(), torch.tensor([0.2], requires_grad=True)
    ours, theirs = ((0.2 * u).float().requires_grad_() for _ in range(2))
    quantizer = LSQActivation(bits, signed)
    fill(quantizer.step, 0.2)
    y = quantizer(ours[None])[0]
    y.backward(g)
    zero_point = torch.zeros(1, requires_grad=True)
    expected = torch._fake_quantize_learnable_per_tensor_affine(theirs, s, zero_point, low, high, 1)
    expected.backward(g)
    torch.testing.assert_close(y, expected)
    assert torch.equal(ours.grad, theirs.grad)
    torch.testing.assert_close(quantizer.step.grad, s.grad[0], rtol=1e-4, atol=1e-2)


# Made by cvlab-yonsei/EWGS 56c654c, ImageNet/custom_modules.py: EWGS_discretizer between its
# clipping and a rescaling to the range, its factor being DELTA (levels - 1). (bits, top of the
# range, outputs, gradient of the inputs from G).
EWGS_X = [0.01, 0.1, 0.3, 0.45, 0.7, 0.9, 1.2, 1.45, 1.6, 3.0]
EWGS_W = [-0.9, -0.55, -0.3, -0.15, -0.02, 0.05, 0.25, 0.35, 0.5, 0.7]
EWGS_ACTIVATIONS = (
    (
        2,
        1.5,
        [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 1.5],
        [0.3012, -0.96, 0.46, -0.714, 0.216, 1.056, -0.552, 0.882, 0.0, 0.0],
    ),
    (
        1,
        0.8,
        [0.0] * 3 + [0.8] * 7,
        [0.30075, -0.975, 0.5375, -0.76125, 0.195, 0.0, 0.0, 0.0, 0.0, 0.0],
    ),
)
EWGS_WEIGHTS = (
    (
        2,
        0.6,
        [-0.6, -0.6, -0.2, -0.2, -0.2, 0.2, 0.2, 0.2, 0.6, 0.6],
        [0.0, -0.975, 0.475, -0.6825, 0.218, 1.0175, -0.585, 0.9675, 0.38, 0.0],
    ),
    (
        1,
        0.4,
        [-0.4] * 5 + [0.4] * 5,
        [0.0, 0.0, 0.5125, -0.65625, 0.219, 1.00375, -0.6225, 0.88875, 0.0, 0.0],
    ),
)


@pytest.mark.parametrize(("bits", "top", "used", "gradient"), EWGS_ACTIVATIONS)
def test_ewgs_activations_are_those_of_its_code(bits, top, used, gradient):
    quantizer, x = EWGSActivation(bits, False).double(), torch.tensor([EWGS_X]).double()
    fill(quantizer.step, torch.tensor(top).double() / (2**bits - 1))
    x.requires_grad_()
    y = quantizer(x)
    y.backward(torch.tensor([G]).double())
    torch.testing.assert_close(y, torch.tensor([used]).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x.grad, torch.tensor([gradient]).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("bits", "top", "used", "gradient"), EWGS_WEIGHTS)
def test_ewgs_weights_are_those_of_its_code(bits, top, used, gradient):
    quantizer = EWGSWeight(torch.tensor([EWGS_W]).double(), bits).double()
    fill(quantizer.step, torch.tensor(2 * top).double() / (2**bits - 1))
    y = quantizer()
    y.backward(torch.tensor([G]).double())
    torch.testing.assert_close(y, torch.tensor([used]).double(), rtol=1e-6, atol=1e-6)
    expected = torch.tensor([gradient]).double()
    torch.testing.assert_close(quantizer.weight.grad, expected, rtol=1e-6, atol=1e-6)


def test_n2uq_activations_are_those_of_its_code():
    """Made by liuzechun/Nonuniform-to-Uniform-Quantization 0140532, resnet/resnet.py, class LTQ.

    Two bits, start 0.1, a = (0.5, 0.0005, 0.9), scales 1.3 and 0.7; the second segment is shorter
    than the least length, so that its parameter has no gradient.
    """
    quantizer = N2UQActivation(2, signed=False).double()
    fill(quantizer.begin, 0.1)
    fill(quantizer.lengths, [0.5, 0.0005, 0.9])
    fill(quantizer.s1, 1.3)
    fill(quantizer.s2, 0.7)
    x = torch.tensor([0.0, 0.05, 0.1, 0.25, 0.4, 0.4619, 0.47, 0.6, 0.9, 1.1, 1.2, 2.0]).double()
    g = torch.tensor([0.3, -1, 0.5, 0.7, -0.2, 1.1, -0.6, 0.9, 0.4, -0.8, 1.5, -0.35]).double()
    x = x[None].requires_grad_()
    y = quantizer(x)
    y.backward(g[None])
    units = torch.tensor([[0.0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 3]]).double()
    torch.testing.assert_close(y, units * 0.7 * 2 / 3, rtol=1e-6, atol=1e-6)
    expected = [0.0, 0.0, 0.6066666667, 0.8493333333, -0.2426666667, 667.3333333333]
    expected += [-0.4044444444, 0.6066666667, 0.2696296296, -0.5392592593, 0.0, 0.0]
    torch.testing.assert_close(x.grad, torch.tensor([expected]).double(), rtol=1e-5, atol=1e-8)
    assert quantizer.begin.grad.item() == pytest.approx(-514.2148148148, rel=1e-5)
    lengths = quantizer.lengths.grad.tolist()
    assert lengths == pytest.approx([-513.4466814815, 0.0, 0.1616049383], rel=1e-4)
    assert quantizer.s1.grad.item() == pytest.approx(237.1081481481, rel=1e-5)
    assert quantizer.s2.grad.item() == pytest.approx(2.5, rel=1e-5)


@pytest.mark.parametrize(
    ("bits", "expected"),
    (
        (1, [[0.175, -0.175], [-0.625, 0.625]]),
        (2, [[0.2625, -0.0875], [-0.9375, 0.3125]]),
        (3, [[0.30625, -0.04375], [-0.78125, 0.46875]]),
    ),
)
def test_n2uq_weights_are_those_of_its_code(bits, expected):
    """Made by the same file, class HardQuantizeConv; the gradient is the identity (ours)."""
    quantizer, g = N2UQWeight(torch.tensor([[0.3, -0.05], [-0.8, 0.45]]), bits), torch.randn(2, 2)
    used = quantizer()
    used.backward(g)
    torch.testing.assert_close(used, torch.tensor(expected))
    assert torch.equal(quantizer.weight.grad, g)


# -- training --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", (1, 2))
@pytest.mark.parametrize("name", NAMES)
def test_a_network_learns(name, bits):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16),  # its output is signed
        nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    net.signed_inputs = frozenset({"0", "2"})
    labels = torch.arange(64) % 4
    images = torch.randn(64, 1, 8, 8) + torch.randn(4, 1, 8, 8)[labels]
    convert(net, QuantPolicy(baselines.method(name), bits, bits), images[:1])
    calibrate(net, images)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
