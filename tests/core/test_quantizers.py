"""What every weight and activation quantizer must satisfy, and golden values from the papers."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.dorefa import DoReFaActivation, DoReFaWeight, binary_weight, dorefa_weight
from baselines.ewgs import EWGSActivation, EWGSWeight
from baselines.lq_nets import LQWeight
from baselines.lsq import LSQActivation, LSQPlusActivation, LSQWeight
from baselines.n2uq import N2UQActivation, N2UQWeight
from baselines.pact import PACTActivation
from lowbit_core.quantizers import basis
from lowbit_core.quantizers.basis_activation import (
    WEIGHTINGS,
    BasisActivation,
    channel_weights,
    fit_basis,
    quantize,
    quantize_and_sum,
    refit_to_convergence,
)
from lowbit_core.quantizers.bits import BITS, check_bits, parse_bits
from lowbit_core.quantizers.blocks import as_blocks, from_blocks
from lowbit_core.quantizers.direct import (
    DirectWeight,
    IndirectWeight,
    SignWeight,
    code_position,
    interpolate_levels,
)
from lowbit_core.quantizers.uniform import clip_round
from lowbit_core.runtime.errors import InputError

LOW_BITS = (1, 2, 3, 4, 8)
WEIGHTS = {
    "direct": DirectWeight,
    "indirect": IndirectWeight,
    "sign": SignWeight,
    "lq_nets": LQWeight,
    "dorefa": DoReFaWeight,
    "lsq": LSQWeight,
    "ewgs": EWGSWeight,
    "n2uq": N2UQWeight,
}
ACTIVATIONS = {
    **{f"basis_{w}": partial(BasisActivation, weighting=w) for w in WEIGHTINGS},
    "dorefa": DoReFaActivation,
    "pact": PACTActivation,
    "lsq": LSQActivation,
    "lsq_plus": LSQPlusActivation,
    "ewgs": EWGSActivation,
    "n2uq": N2UQActivation,
}
SHAPES = ((4, 3, 3, 3), (6, 1, 3, 3), (5, 40), (1, 7), (3, 2, 1, 1))
seeds = st.integers(0, 2**31)
each_weight = pytest.mark.parametrize("kind", WEIGHTS)
each_activation = pytest.mark.parametrize("kind", ACTIVATIONS)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed, signed, shape=(8, 5, 4, 4)):
    """Activations whose channels differ in power by orders of magnitude."""
    x = normal(seed, *shape) * torch.logspace(-1, 0.7, shape[1]).view(
        1, -1, *[1] * (len(shape) - 2)
    )
    return x if signed else x.relu()


def nearest(x, levels):
    """Nearest level by brute force, float64. Ties go to the lower level."""
    x, levels = np.asarray(x, np.float64), np.asarray(levels, np.float64)
    return np.abs(x[..., None] - levels).argmin(-1)


def code_table(bits, signed):
    """All codes (2^bits, bits), float64: +-1 when signed, else 0/1. Least significant first."""
    codes = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    return 2.0 * codes - 1 if signed else codes.astype(float)


def quantize_and_fit(x, v, signed, weighting):
    """One step of the activations' fit, before the moving average."""
    y, _, _, sums = quantize_and_sum(as_blocks(x), v, signed)
    channels = x.shape[1]
    fit = fit_basis(sums, v, channels, x.numel() // channels, weighting, signed)
    return from_blocks(y, x), fit


def drawn_basis(seed, *shape):
    """A random ordered basis, no two of whose levels coincide, float64."""
    v = torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1
    return basis.ordered(v).double() * 1.05 ** torch.arange(shape[-1])


def rising(levels):
    """In rising order, but for the last digit where two coincide."""
    return (levels.diff(dim=-1) >= -1e-6 * levels.abs().amax()).all()


def latent_parameter(quantizer):
    return next(p for n, p in quantizer.named_parameters() if n in ("weight", "z", "u"))


def distance_to(values, levels):
    return (values[..., None] - levels.view(*[1] * values.dim(), -1)).abs().amin(-1).max().item()


# -- weights ---------------------------------------------------------------------------------


@each_weight
@each_bits
@given(seed=seeds, shape=st.sampled_from(SHAPES), scale=st.sampled_from((1e-3, 0.05, 1.0)))
@settings(max_examples=8)
def test_weights_are_levels(kind, bits, seed, shape, scale):
    weight = scale * normal(seed, *shape)
    quantizer = WEIGHTS[kind](weight, bits)
    levels = quantizer.levels().detach()  # before the forward pass, which may move them
    used = quantizer().detach()
    assert used.shape == weight.shape and used.isfinite().all()
    rows = used.flatten(1)
    levels = levels.expand(len(rows), -1)
    assert levels.shape == (len(rows), 2**bits)
    assert rising(levels)
    for row, own in zip(rows, levels, strict=True):
        assert distance_to(row, own) <= 1e-6 * own.abs().max()
        assert len(row.unique()) <= 2**bits


@each_weight
@each_bits
def test_weights_are_the_nearest_levels_of_the_pretrained_ones_and_monotone(kind, bits):
    weight = 0.1 * normal(3, 6, 4, 3, 3)
    quantizer = WEIGHTS[kind](weight, bits)
    rows = weight.flatten(1).double()
    if kind == "dorefa" and bits > 1:
        rows = rows.tanh() / rows.tanh().abs().max()
    levels = quantizer.levels().detach().double()
    used = quantizer().detach().flatten(1)
    levels = levels.expand(len(rows), -1)
    for row, y, own in zip(rows, used, levels, strict=True):
        assert torch.allclose((y - row).abs(), (row[:, None] - own).abs().amin(1), atol=1e-6)
        assert (y[row.argsort()].diff() >= 0).all()


@pytest.mark.parametrize("kind", ("direct", "indirect", "lq_nets", "lsq", "ewgs"))
@each_bits
def test_weights_at_a_level_stay_there(kind, bits):
    quantizer = WEIGHTS[kind](normal(1, 5, 3, 3, 3), bits).eval()
    used = quantizer().detach()
    with torch.no_grad():
        rows = used.flatten(1)
        rows = code_position(rows, quantizer.levels()) if kind == "direct" else rows
        latent_parameter(quantizer).copy_(rows)
    assert torch.equal(quantizer(), used)


def test_binary_dorefa_weights_at_a_level_stay_there():
    used = binary_weight(normal(1, 5, 20))
    torch.testing.assert_close(binary_weight(used), used)


@each_weight
@each_bits
@pytest.mark.parametrize("value", (0.0, 0.3, -2.0, 1e-30), ids=str)
def test_constant_weights_give_numbers(kind, bits, value):
    quantizer = WEIGHTS[kind](torch.full((4, 3, 3, 3), value), bits)
    used = quantizer()
    assert used.isfinite().all()
    used.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in quantizer.parameters())
    quantizer()
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_weight
@each_bits
def test_a_weight_that_is_not_a_number_stays_so(kind, bits):
    quantizer = WEIGHTS[kind](normal(1, 4, 3, 3, 3), bits)
    with torch.no_grad():
        latent_parameter(quantizer).view(-1)[0] = float("nan")
    used = quantizer()
    assert used.flatten()[0].isnan()
    used.sum().backward()  # a diverging run must reach its end, not crash


@each_weight
def test_latents_are_in_weight_units(kind):
    weight = 0.1 * normal(2, 5, 60)
    latent = WEIGHTS[kind](weight, 4).latent().detach()
    assert latent.shape == weight.shape
    if kind == "dorefa":
        weight = weight.tanh() / weight.tanh().abs().max()
    if kind == "direct":  # the latent follows the weight up to one step outside the levels
        quantizer = WEIGHTS[kind](weight, 4)
        levels = quantizer.levels().detach()
        step = (levels[:, -1:] - levels[:, :1]) / 15
        weight = weight.clamp(levels[:, :1] - step, levels[:, -1:] + step)
    if kind != "sign":
        torch.testing.assert_close(latent, weight, rtol=1e-5, atol=1e-6)


# -- activations -----------------------------------------------------------------------------


@each_activation
@each_bits
@each_sign
@given(seed=seeds, shape=st.sampled_from(((8, 5, 4, 4), (6, 5), (1, 5, 3, 2))))
@settings(max_examples=5)
def test_activations_are_levels(kind, bits, signed, seed, shape):
    x = inputs(seed, signed, shape)
    quantizer = ACTIVATIONS[kind](bits, signed)
    quantizer.calibrate(x)
    levels = quantizer.levels().detach()
    assert levels.shape == (2**bits,) and rising(levels)
    train = quantizer.train()(x).detach()
    quantizer.eval()
    assert train.shape == x.shape
    assert distance_to(train, levels) <= 1e-6 * levels.abs().max()
    y, levels = quantizer(x).detach(), quantizer.levels().detach()
    assert distance_to(y, levels) <= 1e-6 * levels.abs().max()
    assert len(y.unique()) <= 2**bits
    torch.testing.assert_close(quantizer(y), y, rtol=0, atol=1e-6)
    order = x.flatten().argsort()
    assert (y.flatten()[order].diff() >= 0).all()
    torch.testing.assert_close(  # nearest: no level is closer
        (y - x.clamp(levels[0], levels[-1])).abs(),
        (x.clamp(levels[0], levels[-1])[..., None] - levels).abs().amin(-1),
        rtol=0,
        atol=1e-5,
    )


@each_activation
@each_bits
@each_sign
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_memory_format_does_not_change_activations(kind, bits, signed, training):
    x = inputs(4, signed)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        quantizer = ACTIVATIONS[kind](bits, signed).train(training)
        quantizer.calibrate(x.contiguous(memory_format=layout))
        y = quantizer(x.contiguous(memory_format=layout))
        results.append((y, quantizer.levels()))
    permuted = ACTIVATIONS[kind](bits, signed).train(training)
    permuted.calibrate(x)
    results.append(
        (permuted(x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)), permuted.levels())
    )
    for y, levels in results[1:]:
        # Sums in another order: the levels may differ in the last digits.
        torch.testing.assert_close(levels, results[0][1], rtol=1e-4, atol=1e-5)
        assert ((y - results[0][0]).abs() > 1e-3).float().mean() < 0.01


@each_activation
@each_bits
@each_sign
@pytest.mark.parametrize("value", (0.0, 0.7, 1e-30, 1e4), ids=str)
def test_constant_activations_give_numbers(kind, bits, signed, value):
    quantizer = ACTIVATIONS[kind](bits, signed)
    x = torch.full((4, 3, 5, 5), value, requires_grad=True)
    quantizer.calibrate(x.detach())
    for _ in range(3):
        y = quantizer(x)
        y.square().sum().backward()
        assert y.isfinite().all() and x.grad.isfinite().all()
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_activation
@each_bits
@each_sign
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_an_activation_that_is_not_a_number_stays_so(kind, bits, signed, training):
    quantizer = ACTIVATIONS[kind](bits, signed).train(training)
    x = inputs(6, signed)
    quantizer.calibrate(x)
    x[1, 2, 3, 0] = float("nan")
    y = quantizer(x)
    assert y.isnan().sum() == 1 and y[1, 2, 3, 0].isnan()
    assert quantizer.nonfinite == training  # counted, a batch each
    quantizer(x.nan_to_num())
    assert quantizer.nonfinite == training
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("bits", (2, 8))
def test_mixed_precision_computes_levels_and_statistics_in_float32(weighting, bits):
    """bf16 has 8 significant bits: neither 256 levels nor counts and variances fit in it."""
    x = inputs(7, False, (64, 5, 8, 8)).bfloat16()
    plain, mixed = (BasisActivation(bits, False, weighting) for _ in range(2))
    for quantizer in (plain, mixed):
        quantizer.calibrate(x.float())
    plain(x.float())
    layer = torch.nn.Conv2d(5, 2, 1)
    from lowbit_core.conversion.layers import QuantLayer

    weight = LQWeight(layer.weight, bits)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = QuantLayer(layer, weight, mixed)
        seen = []
        mixed.register_forward_hook(lambda _m, _x, y: seen.append(y))
        used = quantized.used_weight()
        quantized(x)
    torch.testing.assert_close(mixed.v, plain.v, rtol=1e-4, atol=1e-5)
    assert distance_to(seen[0].float(), plain.levels()) < 0.2 or bits == 8
    if bits == 8:
        weight.eval()
        torch.testing.assert_close(used.float(), weight().float(), rtol=1e-5, atol=1e-6)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(InputError, match="'variance'.*equal, inverse_variance, median"):
        BasisActivation(2, False, "variance")


# -- golden values ---------------------------------------------------------------------------


def test_dorefa_golden():
    weight = torch.tensor([[np.arctanh(0.5), -np.arctanh(0.25), 0.0, np.arctanh(0.1)]]).float()
    # tanh / max|tanh| = 1, -0.5, 0, 0.2 on the grid -1, -1/3, 1/3, 1
    expected = torch.tensor([[1.0, -1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(dorefa_weight(weight, torch.tensor(3.0)), expected)
    binary = binary_weight(torch.tensor([[1.0, -3.0, 0.0, 0.0]]))
    assert binary.tolist() == [[1.0, -1.0, 1.0, 1.0]]
    quantizer = DoReFaActivation(2, False)
    y = quantizer(torch.tensor([[-1.0, 0.1, 0.2, 0.6, 2.0]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0, 1 / 3, 2 / 3, 1.0]]))


def test_pact_golden():
    quantizer = PACTActivation(2, False)
    with torch.no_grad():
        quantizer.alpha.fill_(6.0)
    y = quantizer(torch.tensor([[-1.0, 0.9, 1.1, 3.5, 5.5, 9.0]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0, 2.0, 4.0, 6.0, 6.0]]))


@given(seed=seeds, bits=st.sampled_from(LOW_BITS), alpha=st.floats(0.01, 50))
def test_pact_is_the_formula_of_the_paper(seed, bits, alpha):
    x = (normal(seed, 200) * alpha).double().numpy()
    clipped = 0.5 * (np.abs(x) - np.abs(x - alpha) + alpha)
    n = 2**bits - 1
    at_half = np.abs(clipped * n / alpha % 1 - 0.5) < 1e-4  # float32 may round the other way
    expected = np.round(clipped * n / alpha) * alpha / n
    y = clip_round(
        torch.tensor(x).float(),
        torch.tensor(alpha),
        torch.tensor(0.0),
        torch.tensor(alpha / n),
        False,
        math.inf,
    )
    np.testing.assert_allclose(
        y.numpy()[~at_half], expected[~at_half], rtol=1e-5, atol=1e-6 * alpha
    )


@pytest.mark.parametrize("bits", (2, 4))
@each_sign
def test_pact_starts_at_a_clip_that_suits_the_first_batch(bits, signed):
    x = inputs(3, signed)
    quantizer = PACTActivation(bits, signed)
    quantizer.calibrate(x)

    def error(top):
        step = (top - (-top if signed else 0)) / (2**bits - 1)
        bottom = -top if signed else 0.0
        y = torch.round((x.clamp(bottom, top) - bottom) / step) * step + bottom
        return (y - x).square().mean().item()

    best = min(error(top) for top in np.linspace(0.01, x.abs().max().item(), 400))
    assert error(quantizer.alpha.item()) <= 1.05 * best


def test_basis_levels_golden():
    levels = basis.all_levels(basis.ordered(torch.tensor([[1.0, 2.0], [2.0, -0.5]])), signed=True)
    assert levels.tolist() == [[-3, -1, 1, 3], [-2.5, -1.5, 1.5, 2.5]]
    assert basis.all_levels(torch.tensor([1.0, 2.0]), signed=False).tolist() == [0, 1, 2, 3]


@given(seed=seeds, bits=st.integers(1, 8))
def test_ordered_bases_are_in_order_and_stay_as_they_are(seed, bits):
    v = basis.ordered(normal(seed, 5, bits))
    below = v.cumsum(1) - v
    assert (v >= 0).all() and (v >= below * (1 - 1e-6)).all()
    torch.testing.assert_close(basis.ordered(v), v, rtol=1e-6, atol=0)
    for signed in (True, False):
        levels = basis.all_levels(v, signed)
        assert levels.shape == (5, 2**bits)
        assert rising(levels)


def test_ordering_projects_each_number_up_to_the_sum_below():
    assert basis.ordered(torch.tensor([4.0, 1.0, 2.0])).tolist() == [1, 2, 4]
    assert basis.ordered(torch.tensor([2.0, 2.5, 3.0])).tolist() == [2, 2.5, 4.5]
    assert basis.ordered(torch.tensor([-1.0, 0.5])).tolist() == [0.5, 1]
    assert basis.ordered(torch.tensor([1.0, float("nan")])).isnan().any()


@each_bits
@each_sign
@given(seed=seeds)
@settings(max_examples=6)
def test_nearest_level_finds_the_nearest_level_and_its_bits(bits, signed, seed):
    v = basis.ordered(torch.rand(bits, generator=torch.Generator().manual_seed(seed)) + 0.1)
    x = 3 * normal(seed, 400) * (1 if signed else v.sum())
    y, code_bits = basis.nearest_level(x, list(v.unbind()), signed)
    levels = basis.all_levels(v, signed)
    code = sum(b.long() << k for k, b in enumerate(code_bits))
    assert torch.equal(y, levels[code])  # to the last bit
    error = (x[:, None] - levels).abs().amin(1)
    torch.testing.assert_close((y - x).abs(), error, rtol=1e-5, atol=1e-5)


def test_half_way_takes_the_lower_level():
    v = [torch.tensor(1.0), torch.tensor(2.0)]
    y, _ = basis.nearest_level(torch.tensor([0.5, 1.5, 2.5, 0.51]), v, signed=False)
    assert y.tolist() == [0, 1, 2, 1]
    y, _ = basis.nearest_level(torch.tensor([-2.0, 0.0, 2.0]), v, signed=True)
    assert y.tolist() == [-3, -1, 1]


@given(seed=seeds, bits=st.integers(5, 8), rows=st.sampled_from((1, 77, 255)))
def test_packed_counts_are_the_plain_ones(seed, bits, rows):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(3, rows, generator=generator) > 0.1 for _ in range(bits)]
    x = normal(seed, 3, rows)
    plain, packed = (basis.code_sums(x, drawn, 1, packed=p) for p in (False, True))
    assert len(plain) == len(packed) == bits + bits * (bits + 1) // 2
    for a, b in zip(plain, packed, strict=True):
        assert torch.equal(a, b)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
    | st.tuples(st.integers(1, 300), st.integers(1, 40))
)
@settings(max_examples=60)
def test_blocks_are_the_tensor_column_by_channel(shape):
    x = torch.arange(1.0, 1 + np.prod(shape)).view(shape)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    blocks = as_blocks(x)
    assert blocks.data_ptr() == x.data_ptr() and blocks.shape[1] <= 255
    assert torch.equal(from_blocks(blocks, x), x)
    by_channel = blocks.sum((0, 1)).view(-1, shape[1]).sum(0)
    torch.testing.assert_close(by_channel, x.transpose(0, 1).flatten(1).sum(1))


# -- least squares ---------------------------------------------------------------------------


def ridge_fit(b, x, v, ridge):
    """argmin ||x - B v'||^2 + ridge ||v' - v||^2, by an augmented least-squares problem."""
    k = len(v)
    a = np.concatenate([b, np.sqrt(ridge) * np.eye(k)])
    return np.linalg.lstsq(a, np.concatenate([x, np.sqrt(ridge) * v]), rcond=None)[0]


def codes_for(x, v, codes):
    """Explicit (N, K) code matrix of x quantized with basis v."""
    levels = codes @ v
    order = np.argsort(levels, kind="stable")
    return codes[order][nearest(x, levels[order])]


@pytest.mark.parametrize("signed", (False, True))
@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_refit_is_the_explicit_least_squares_solution(signed, bits, seed):
    x = inputs(seed, signed, (3, 300)).double()
    v = drawn_basis(seed, 3, bits)
    y, code_bits = basis.nearest_level(x, list(v.split(1, dim=1)), signed)
    sums = basis.code_sums(x, code_bits, 1)
    count = torch.full((3,), 300.0)
    fit = basis.solve_basis(x.sum(1), count, sums, v, signed)
    for row in range(3):
        b = codes_for(x[row].numpy(), v[row].numpy(), code_table(bits, signed))
        np.testing.assert_allclose(y[row], b @ v[row].numpy(), rtol=1e-9, atol=1e-12)
        expected = ridge_fit(b, x[row].numpy(), v[row].numpy(), 1e-4 * 300)
        np.testing.assert_allclose(fit[row], expected, rtol=1e-7, atol=1e-9)
    if signed:
        own_y, own_fit = basis.refit_rows.eager(x, v)
        assert torch.equal(own_y, y) and torch.equal(own_fit, basis.ordered(fit))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", ((6, 5, 3, 4), (40, 7)))
@each_bits
@each_sign
def test_activation_fit_is_the_explicit_weighted_solution(weighting, shape, bits, signed):
    x = inputs(bits, signed, shape).double()
    v = drawn_basis(bits, bits)
    codes = code_table(bits, signed)
    fit = quantize_and_fit(x, v, signed, weighting)[1]
    channels = x.transpose(0, 1).flatten(1).numpy()
    b = [codes_for(c, v.numpy(), codes) for c in channels]
    variance = np.array([c.var() for c in channels])
    if weighting == "median":
        fits = [
            ridge_fit(bc, c, v.numpy(), 1e-4 * c.size) for bc, c in zip(b, channels, strict=True)
        ]
        own = [basis.ordered(torch.from_numpy(fit)).numpy() for fit in fits]
        expected = np.median(own, axis=0)
    else:
        weights = 1 / (variance + 1e-3 * variance.mean())
        weights = weights / weights.mean() if weighting == "inverse_variance" else np.ones(len(b))
        root = np.sqrt(weights)
        expected = ridge_fit(
            np.concatenate([r * bc for r, bc in zip(root, b, strict=True)]),
            np.concatenate([r * c for r, c in zip(root, channels, strict=True)]),
            v.numpy(),
            1e-4 * channels.size,
        )
    expected = basis.ordered(torch.from_numpy(np.asarray(expected)))
    np.testing.assert_allclose(fit, expected, rtol=1e-6, atol=1e-8)


@each_bits
@each_sign
@pytest.mark.parametrize("shape", ((8, 5, 4, 4), (6, 16, 3, 3), (300, 7)), ids=str)
def test_channel_statistics_are_those_of_a_loop(bits, signed, shape):
    x = inputs(2, signed, shape).double()
    v = drawn_basis(bits, bits)
    y, _, _, sums = quantize_and_sum(as_blocks(x), v, signed)
    y = from_blocks(y, x)
    sums = sums.sum(1).view(len(sums), -1, shape[1]).sum(1)
    codes, levels = code_table(bits, False), basis.all_levels(v, signed).numpy()
    for c in range(x.shape[1]):
        values = x[:, c].flatten().numpy()
        code = nearest(values, levels)
        b = codes[code]
        pairs = [(b[:, k] * b[:, m]).sum() for k in range(bits) for m in range(k, bits)]
        expected = [values.sum(), (values**2).sum(), *(b.T @ values), *pairs]
        np.testing.assert_allclose(sums[:, c], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(y[:, c].flatten(), levels[code])


@given(seed=seeds, dead=st.sets(st.integers(0, 7), max_size=7))
def test_channel_weights_have_mean_one_and_ignore_dead_channels(seed, dead):
    variance = normal(seed, 8).exp()
    variance[list(dead)] = 0.0
    weights = channel_weights(variance)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert (weights[list(dead)] == 0).all()
    alive = variance > 0
    order = variance[alive].argsort()
    assert (weights[alive][order].diff() <= 0).all()


def test_all_dead_channels_keep_the_basis():
    x, v = torch.zeros(4, 3, 2, 2), torch.tensor([1.0, 2.0])
    for weighting in WEIGHTINGS:
        fit = quantize_and_fit(x, v, False, weighting)[1]
        torch.testing.assert_close(fit, v)
    assert channel_weights(torch.zeros(3)).tolist() == [0, 0, 0]


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_alternating_fit_lowers_the_error(bits, seed):
    x = inputs(seed, True, (4, 200)).double()
    v = 0.3 * 2.0 ** torch.arange(bits, dtype=torch.float64).expand(4, -1)
    errors, projected = [], []
    for _ in range(8):
        y, v = basis.refit_rows.eager(x, v)
        errors.append((y - x).square().sum(1))
        projected.append((v <= 1.0000001 * (v.cumsum(1) - v)).any(1))
    for before, after, acted in zip(errors[:-1], errors[1:], projected[:-1], strict=True):
        # Where the projection does not act, least squares never raises the error.
        assert ((after <= before * (1 + 1e-9)) | acted).all()
    assert (errors[-1] <= 1.02 * errors[0]).all()


@pytest.mark.parametrize("bits", (1, 2, 3, 4))
def test_fitted_levels_beat_uniform_ones(bits):
    x = normal(5, 6, 500)
    v = basis.fit_rows(x, bits)
    levels = basis.all_levels(v, signed=True)

    def error(own):
        return sum((x[r] - own[r][nearest(x[r], own[r])]).square().sum().item() for r in range(6))

    top = x.abs().amax(1, keepdim=True)
    assert error(levels) <= error(top * torch.linspace(-1, 1, 2**bits))


@each_bits
@each_sign
def test_calibrated_basis_is_no_worse_than_the_best_uniform_grid(bits, signed):
    """Uniform levels are a basis too: a start that misses them handicaps the basis methods."""
    x = normal(8, 16, 4, 12, 12)
    x = x if signed else x.relu()
    quantizer = BasisActivation(bits, signed, "equal").eval()
    quantizer.calibrate(x)

    def error(levels):
        levels = levels.numpy()
        return ((levels[nearest(x.numpy(), levels)] - x.numpy()) ** 2).mean()

    top = x.abs().max().item()
    best = min(
        error(torch.linspace(-t if signed else 0, t, 2**bits))
        for t in np.linspace(top / 40, top, 40)
    )
    assert error(quantizer.levels()) <= 1.1 * best


def test_weighted_fit_serves_quiet_channels_better():
    x = inputs(1, False, (64, 5, 6, 6))
    start = torch.tensor([1.0, 2.0])
    errors = {}
    for weighting in ("equal", "inverse_variance"):
        v = refit_to_convergence(x, start, False, weighting)
        y = quantize(x, v, False)
        errors[weighting] = (y - x).square().sum((0, 2, 3)) / x.square().sum((0, 2, 3))
    assert (errors["inverse_variance"] < errors["equal"]).float().mean() > 0.5
    assert errors["inverse_variance"].median() < errors["equal"].median()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@each_sign
def test_activation_basis_moves_by_a_tenth_after_the_forward_pass(weighting, signed):
    quantizer = BasisActivation(2, signed, weighting)
    x = inputs(3, signed)
    before = quantizer.v.clone()
    y = quantizer.train()(x)
    assert torch.equal(y, quantize(x, before, signed))
    fit = quantize_and_fit(x, before, signed, weighting)[1]
    torch.testing.assert_close(quantizer.v, 0.9 * before + 0.1 * fit)
    assert not torch.equal(quantizer.v, before)
    after = quantizer.v.clone()
    quantizer.eval()(x)
    assert torch.equal(quantizer.v, after)


@each_bits
def test_lq_weight_basis_moves_by_a_tenth_after_the_forward_pass(bits):
    quantizer = LQWeight(normal(4, 5, 3, 3, 3), bits)
    with torch.no_grad():
        quantizer.weight.mul_(1.5)
    before, rows = quantizer.v.clone(), quantizer.weight.detach()
    used = quantizer.train()()
    y, fit = basis.refit_rows.eager(rows, before)
    assert torch.equal(used.flatten(1), y)
    torch.testing.assert_close(quantizer.v, 0.9 * before + 0.1 * fit)
    after = quantizer.v.clone()
    quantizer.eval()()
    assert torch.equal(quantizer.v, after)


# -- the code axis of direct weights ---------------------------------------------------------


@each_bits
@given(seed=seeds)
def test_code_position_and_interpolation_are_inverse(bits, seed):
    steps = torch.rand(3, 2**bits, generator=torch.Generator().manual_seed(seed)) + 0.05
    levels = (steps.cumsum(1) - 2.0**bits / 4).double()
    span = levels[:, -1:] - levels[:, :1]
    margin = span / (2**bits - 1)
    x = levels[:, :1] - margin + torch.rand(3, 50, dtype=torch.float64) * (span + 2 * margin)
    z = code_position(x, levels)
    assert (z >= -1).all() and (z <= 2**bits).all()
    torch.testing.assert_close(interpolate_levels(z, levels), x, rtol=1e-9, atol=1e-9)
    codes = torch.arange(2.0**bits, dtype=torch.float64).expand(3, -1)
    torch.testing.assert_close(code_position(levels, levels), codes, rtol=0, atol=1e-9)
    torch.testing.assert_close(interpolate_levels(codes, levels), levels)


def test_code_position_stops_one_outside_the_levels():
    levels = torch.tensor([[-3.0, -1.0, 1.0, 3.0]])
    z = code_position(torch.tensor([[-100.0, -4.0, -3.0, 0.0, 4.0, 100.0]]), levels)
    assert z.tolist() == [[-1, -0.5, 0, 1.5, 3.5, 4]]


# -- bits ------------------------------------------------------------------------------------


@given(value=st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()))
@settings(max_examples=60)
def test_only_offered_bits_pass(value):
    if type(value) is int and value in BITS:
        assert check_bits(value, "here") == value
    else:
        with pytest.raises(InputError, match=r"(?s)here.*1, 2, 3, 4, 8, 32"):
            check_bits(value, "here")


@given(label=st.text(max_size=8) | st.from_regex(r"W\d{1,2}A\d{1,2}", fullmatch=True))
@settings(max_examples=100)
def test_a_bit_setting_is_parsed_or_refused(label):
    try:
        w, a = parse_bits(label, "here")
    except InputError as error:
        assert "here" in str(error)
    else:
        assert label in (f"W{w}A{a}", "FP")
