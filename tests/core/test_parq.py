"""PARQ: golden values of its authors' code, its gradient, and what must hold for any weight."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import baselines
from baselines.lq_nets import LQWeight
from baselines.parq import END, PERIOD, PARQWeight, greedy_basis, inverse_slope, nearest, relaxed
from lowbit_core.quantizers.basis import all_levels
from lowbit_core.runtime.progress import Progress
from lowbit_core.training import loop, state
from lowbit_core.training.build import Place, build_run
from tests.tiny_run import config

LOW_BITS = (1, 2, 3, 4, 8)
SHAPES = ((4, 3, 3, 3), (6, 1, 3, 3), (5, 40), (1, 7), (3, 2, 1, 1))
seeds = st.integers(0, 2**31)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)

# The values below were computed with torchao 0.18.0 (torchao.prototype.parq): LSBQuantizer() for
# the levels, ProxPARQ(0, 150, steepness=10) at the given steps for rho and the weights.
W = torch.tensor(
    [[0.9, -0.35, 0.1, -1.6, 0.02, 0.5, -0.75, 0.3], [0.05, 0.2, -0.1, -0.4, 1.5, -0.6, 0.0, -0.02]]
)
LEVELS = {
    1: [[-0.565, 0.565], [-0.35875, 0.35875]],
    2: [
        [-0.9537501, -0.1762500, 0.1762500, 0.9537501],
        [-0.7146875, -0.0028125, 0.0028125, 0.7146875],
    ],
    3: [
        [-1.1734376, -0.7340626, -0.3959376, -0.0434375]
        + [0.0434375, 0.3959376, 0.7340626, 1.1734376],
        [-0.9117187, -0.5176562, -0.1998437, -0.1942187]
        + [0.1942187, 0.1998437, 0.5176562, 0.9117187],
    ],
}
RHO = {0: 1.0, 20: 0.98152107, 60: 0.73419342, 75: 0.5, 80: 0.41630954, 149: 4.6431490e-4, 150: 0}
USED = {  # (bits, step) -> weights
    (1, 0): [
        [0.565, -0.35, 0.1, -0.565, 0.02, 0.5, -0.565, 0.3],
        [0.05, 0.2, -0.1, -0.35875, 0.35875, -0.35875, 0.0, -0.02],
    ],
    (1, 75): [
        [0.565, -0.565, 0.2, -0.565, 0.04, 0.565, -0.565, 0.565],
        [0.1, 0.35875, -0.2, -0.35875, 0.35875, -0.35875, 0.0, -0.04],
    ],
    (2, 60): [
        [0.95375, -0.272162, 0.136204, -0.95375, 0.027241, 0.476467, -0.816977, 0.20406],
        [0.002813, 0.142526, -0.006322, -0.414934, 0.714687, -0.687342, 0.0, -0.002813],
    ],
    (2, 150): [
        [0.95375, -0.17625, 0.17625, -0.95375, 0.17625, 0.17625, -0.95375, 0.17625],
        [0.002813, 0.002813, -0.002813, -0.714687, 0.714687, -0.714687, -0.002813, -0.002813],
    ],
    (3, 80): [
        [0.824639, -0.395938, 0.043437, -1.173438, 0.043437, 0.408866, -0.734063, 0.395938],
        [0.120103, 0.199844, -0.194219, -0.457835, 0.911719, -0.517656, 0.0, -0.048041],
    ],
    (3, 149): [
        [0.734063, -0.395938, 0.043437, -1.173438, 0.043437, 0.395938, -0.734063, 0.395938],
        [0.194219, 0.199844, -0.194219, -0.517656, 0.911719, -0.517656, 0.0, -0.194219],
    ],
}


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantizer_at(progress, weight, bits, training=True):
    quantizer = PARQWeight(weight, bits).train(training)
    quantizer.progress.fill_(progress)
    return quantizer


# -- golden values ---------------------------------------------------------------------------


@pytest.mark.parametrize("bits", LEVELS)
def test_levels_are_those_of_the_authors_code(bits):
    expected = torch.tensor(LEVELS[bits])
    torch.testing.assert_close(PARQWeight(W, bits).levels(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "rho"), RHO.items())
def test_the_schedule_is_that_of_the_authors_code(step, rho):
    found = inverse_slope(torch.tensor(END * step / 150))
    assert found.item() == pytest.approx(rho, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("bits", "step"), USED)
def test_weights_are_those_of_the_authors_code(bits, step):
    rho = torch.tensor(RHO[step])
    used = relaxed(W, torch.tensor(LEVELS[bits]), rho)
    torch.testing.assert_close(used, torch.tensor(USED[bits, step]), rtol=0, atol=2e-6)
    whole = quantizer_at(END * step / 150, W, bits)()
    torch.testing.assert_close(whole, used, rtol=1e-3, atol=2e-6)


def test_rho_falls_from_one_to_zero_and_stays_there():
    rho = inverse_slope(torch.linspace(0, 1, 101))
    assert rho[0] == 1 and (rho[75:] == 0).all() and (rho[:75] > 0).all()
    assert (rho.diff() <= 0).all()


# -- without relaxation it is BinaryConnect with the levels of LQ-Nets -----------------------


@each_bits
def test_without_relaxation_it_is_a_shadow_weight_with_fitted_levels(bits):
    """rho = 0 throughout: an independent loop of the straight-through estimator, step for step."""
    weight = normal(3, 5, 24).double()
    quantizer = quantizer_at(1.0, weight, bits)
    target, w = normal(4, 5, 24).double(), weight.clone()
    for step in range(3 * PERIOD + 1):
        used = quantizer()
        if step % PERIOD == 0:
            rest, basis = w.numpy().copy(), []
            for _ in range(bits):
                basis.append(np.abs(rest).mean(1, keepdims=True))
                rest = rest - np.where(rest >= 0, 1, -1) * basis[-1]
            codes = 2 * ((np.arange(2**bits)[:, None] >> np.arange(bits)) & 1) - 1
            levels = np.sort(np.concatenate(basis, 1) @ codes.T, 1)
        order = np.abs(w.numpy()[..., None] - levels[:, None]).argmin(2)
        expected = torch.from_numpy(np.take_along_axis(levels, order, 1))
        torch.testing.assert_close(used, expected, rtol=1e-9, atol=1e-12)
        (used - target).square().sum().backward()
        w = w - 0.05 * 2 * (expected - target)
        with torch.no_grad():
            quantizer.weight.sub_(0.05 * quantizer.weight.grad)
        quantizer.weight.grad = None


def test_at_one_bit_the_levels_are_those_of_lq_nets():
    weight = normal(1, 6, 80)
    torch.testing.assert_close(
        PARQWeight(weight, 1).levels(), LQWeight(weight, 1).levels(), rtol=1e-3, atol=0
    )


# -- gradient --------------------------------------------------------------------------------


@each_bits
@given(seed=seeds, progress=st.floats(0, 1))
@settings(max_examples=6)
def test_the_gradient_is_the_identity_and_is_never_clipped(bits, seed, progress):
    weight, g = normal(seed, 4, 15).double(), normal(seed + 1, 4, 15).double()
    weight[0, 0] = 100.0
    quantizer = quantizer_at(progress, weight, bits)
    quantizer().backward(g)
    assert torch.equal(quantizer.weight.grad, g)


# -- properties ------------------------------------------------------------------------------


@each_bits
@given(seed=seeds, shape=st.sampled_from(SHAPES), scale=st.sampled_from((1e-3, 0.05, 1.0)))
@settings(max_examples=8)
def test_evaluation_uses_the_nearest_levels_and_keeps_them(bits, seed, shape, scale):
    weight = scale * normal(seed, *shape)
    quantizer = PARQWeight(weight, bits).eval()
    used, levels = quantizer().detach(), quantizer.levels()
    rows = used.flatten(1)
    assert used.shape == weight.shape and levels.shape == (len(rows), 2**bits)
    assert (levels.diff(dim=1) >= 0).all() and quantizer.level_numbers() == len(rows) * bits
    for row, own, w in zip(rows, levels, weight.flatten(1), strict=True):
        assert torch.isin(row, own).all()
        error = (w[:, None] - own).abs().amin(1)
        torch.testing.assert_close((w - row).abs(), error, rtol=1e-5, atol=1e-6 * scale)
        assert (row[w.argsort()].diff() >= 0).all()
    with torch.no_grad():
        quantizer.weight.copy_(rows)
    assert torch.equal(quantizer(), used)  # idempotent


@each_bits
@given(seed=seeds, rho=st.floats(0, 1))
@settings(max_examples=8)
def test_relaxed_weights_lie_between_their_levels_and_rise(bits, seed, rho):
    w = normal(seed, 3, 60).double()
    levels = all_levels(greedy_basis(w, bits), signed=True).sort(1).values
    used = relaxed(w, levels, torch.tensor(rho, dtype=torch.float64))
    for row, own, x in zip(used, levels, w, strict=True):
        assert row.min() >= own[0] and row.max() <= own[-1]
        assert (row[x.argsort()].diff() >= -1e-12).all()
        at_level = relaxed(own[None], own[None], torch.tensor(rho, dtype=torch.float64))[0]
        torch.testing.assert_close(at_level, own)
    inside = (w >= levels[:, :1]) & (w <= levels[:, -1:])
    unchanged = relaxed(w, levels, torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(unchanged[inside], w[inside])


def test_half_way_takes_the_lower_level_and_zero_counts_as_positive():
    levels = torch.tensor([[-3.0, -1.0, 1.0, 3.0]])
    x = torch.tensor([[-2.0, 0.0, 2.0, 2.001]])
    assert nearest(x, levels).tolist() == [[-3, -1, 1, 3]]
    # r = 0, 2 first: v_1 = 1 leaves -1, 1, so that v_2 = 1; with sign(0) = 0 it would be 1/2.
    assert greedy_basis(torch.tensor([[0.0, 2.0]]), 2).tolist() == [[1, 1]]


@each_bits
@pytest.mark.parametrize("progress", (0.0, 0.4, 1.0))
@pytest.mark.parametrize("value", (0.0, 0.3, -2.0, 1e-30), ids=str)
def test_constant_weights_and_dead_channels_give_numbers(bits, progress, value):
    weight = normal(1, 4, 3, 3, 3)
    weight[1:3] = value
    quantizer = quantizer_at(progress, weight, bits)
    for _ in range(2):
        used = quantizer()
        used.square().sum().backward()
        assert used.isfinite().all() and quantizer.weight.grad.isfinite().all()
    torch.testing.assert_close(quantizer.eval()()[1:3], weight[1:3])
    assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_bits
@pytest.mark.parametrize("training", (False, True), ids=("eval", "train"))
def test_a_weight_that_is_not_a_number_stays_so(bits, training):
    quantizer = quantizer_at(0.3, normal(1, 4, 3, 3, 3), bits, training)
    with torch.no_grad():
        quantizer.weight.view(-1)[0] = float("nan")
    used = quantizer()
    assert used.flatten()[0].isnan() and used[1:].isfinite().all()
    used.sum().backward()


@each_bits
def test_each_channel_is_quantized_alone(bits):
    weight = normal(2, 5, 30)
    whole = quantizer_at(0.3, weight, bits)()
    for row, w in zip(whole, weight, strict=True):
        torch.testing.assert_close(row, quantizer_at(0.3, w[None], bits)()[0])


# -- state -----------------------------------------------------------------------------------


def test_levels_are_fitted_every_ten_steps_of_training_alone():
    quantizer = PARQWeight(normal(0, 3, 20), 2)
    bases = []
    for _ in range(2 * PERIOD + 1):
        quantizer.train()()
        bases.append(quantizer.v.clone())
        quantizer.eval()()
        assert torch.equal(quantizer.v, bases[-1])
        with torch.no_grad():
            quantizer.weight.mul_(1.1)
    changed = [i for i in range(1, len(bases)) if not torch.equal(bases[i], bases[i - 1])]
    assert changed == [PERIOD, 2 * PERIOD]


def test_training_continues_from_the_saved_state():
    quantizer = PARQWeight(normal(0, 3, 20), 2)

    def steps(quantizer, count):
        for _ in range(count):
            quantizer()
            with torch.no_grad():
                quantizer.weight.mul_(1.1)
        return quantizer

    saved = copy.deepcopy(steps(quantizer, PERIOD // 2).state_dict())
    expected = steps(quantizer, PERIOD).state_dict()
    resumed = PARQWeight(torch.zeros(3, 20), 2)
    resumed.load_state_dict(saved)
    for name, tensor in steps(resumed, PERIOD).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_training_tells_it_the_share_of_steps_that_are_done(digits_root, tmp_path):
    place = Place(digits_root, tmp_path, torch.device("cpu"))
    run = build_run(config("parq", epochs=2), baselines.method("parq"), place)
    _, sums = state.start(run, None)
    loop.train_epoch(run, 1, sums, Progress("run", 2, run.data.train.images))
    shares = [m.progress for m in run.model.modules() if isinstance(m, PARQWeight)]
    steps = len(run.data.train)
    assert shares
    for share in shares:
        assert share.item() == pytest.approx((steps - 1) / (2 * steps))
