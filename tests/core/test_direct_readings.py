"""Direct weights: where they are a straight-through estimator, and two readings that are none."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.direct_readings import FlipWeight, LayerDirectWeight, moved
from lowbit_core.quantizers.basis import ordered
from lowbit_core.quantizers.direct import (
    MIN_STEP,
    DirectWeight,
    IndirectWeight,
    code_position,
    interpolate_levels,
)

LOW_BITS = (1, 2, 3, 4, 8)
KINDS = {"flip": FlipWeight, "layer": LayerDirectWeight}
SHAPES = ((4, 3, 3, 3), (6, 1, 3, 3), (5, 40), (1, 7), (3, 2, 1, 1))
seeds = st.integers(0, 2**31)
each_kind = pytest.mark.parametrize("kind", KINDS)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def explicit_weight(q, v):
    """Codes times an ordered basis, differentiable in v, float64."""
    bits = v.shape[1]
    codes = 2.0 * ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1) - 1
    return (codes.double()[q.long()] * v[:, None, :]).sum(2)


# -- the argument of docs/method.md ----------------------------------------------------------


@pytest.mark.parametrize("bits", (1, 2, 3))
@pytest.mark.parametrize("momentum", (0.0, 0.9))
def test_direct_weights_with_frozen_levels_are_a_straight_through_estimator(bits, momentum):
    """Uniform levels, which one bit always has; no decay; w' stays where no gradient is cut."""
    start, target = 0.03 * normal(0, 6, 30).double(), 0.2 * normal(1, 20, 6).double()
    images = normal(2, 20, 30).double()
    v = (0.08 * 2.0 ** torch.arange(bits).double()).repeat(6, 1)
    direct, indirect = (kind(start, bits).double() for kind in (DirectWeight, IndirectWeight))
    with torch.no_grad():
        direct.v.copy_(v)
        indirect.v.copy_(v)
        direct.z.copy_(code_position(start, direct.levels()))
    trained = {"lr": 0.001, "momentum": momentum, "nesterov": momentum > 0}
    optimizers = [torch.optim.SGD([p], **trained) for p in (direct.z, indirect.weight)]
    flips, before = 0, None
    for step in range(300):
        used = []
        for quantizer, optimizer in zip((direct, indirect), optimizers, strict=True):
            optimizer.zero_grad()
            used.append(quantizer())
            scale = 1 + 0.5 * torch.tensor(float(step)).sin()  # no two steps have the same loss
            (torch.tanh(images @ used[-1].T) - scale * target).square().mean(0).sum().backward()
            optimizer.step()
        assert -1 < direct.z.min() and direct.z.max() < 2**bits, "the gradient is cut"
        assert torch.equal(*used), f"step {step}"
        flips += 0 if before is None else (used[0] != before).sum()
        before = used[0].detach()
    assert flips > 300
    torch.testing.assert_close(direct.latent(), indirect.weight, rtol=0, atol=1e-9)


def test_a_flipped_code_does_not_turn_back_for_a_little_gradient():
    """What the argument does not cover: a straight-through latent crosses back at once."""
    weight = torch.tensor([[-0.01, 0.3, -0.3]])
    used = {}
    for kind in (DirectWeight, FlipWeight):
        quantizer = kind(weight, 1)
        distance = 2 * quantizer.v.detach()
        optimizer = torch.optim.SGD([p for n, p in quantizer.named_parameters() if n != "v"], lr=1)
        rows = []
        for share in (-1.1, 1.2, 0.0):  # gradients as shares of the distance of the two levels
            optimizer.zero_grad()
            y = quantizer()
            rows.append(y[0, 0].item())
            y.backward(share * distance * torch.tensor([[1.0, 0.0, 0.0]]))
            optimizer.step()
        used[kind] = [y > 0 for y in rows]
    assert used[DirectWeight] == [False, True, False]
    assert used[FlipWeight] == [False, True, True]


# -- codes that flip -------------------------------------------------------------------------


@each_bits
@given(seed=seeds)
def test_codes_move_one_level_where_they_are_pushed_by_a_whole_one(bits, seed):
    top = 2**bits - 1
    q = torch.randint(0, top + 1, (4, 30), generator=torch.Generator().manual_seed(seed)).float()
    m = 2 * normal(seed, 4, 30)
    m[0, :4] = torch.tensor([1.0, -1.0, 0.999, -0.999])
    new, rest = moved(q, m, bits)
    assert torch.equal(new, new.round().clamp(0, top))
    pushed = m.abs() >= 1
    assert torch.equal(new[~pushed], q[~pushed]) and torch.equal(rest[~pushed], m[~pushed])
    assert torch.equal(new[pushed], (q + m.sign()).clamp(0, top)[pushed])
    inside = (new > 0) & (new < top) & pushed
    assert (rest[inside] == 0).all() and torch.equal(rest[~inside], m[~inside])
    again = moved(new, rest, bits)
    assert torch.equal(again[0], new) and torch.equal(again[1], rest)  # no push counts twice


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), -float("inf")), ids=str)
def test_a_push_that_is_not_a_number_makes_its_code_none(bad):
    q, m = torch.ones(1, 3), torch.tensor([[0.0, bad, 1.0]])
    assert moved(q, m, 2)[0].isnan().tolist() == [[False, True, False]]


@given(seed=seeds)
@settings(max_examples=5)
def test_at_one_bit_it_is_bop(seed):
    """Helwegen et al., algorithm 1, on the same gradients: weight decay is its threshold."""
    threshold, rate = 0.3, 0.05
    quantizer = FlipWeight(normal(seed, 4, 25), 1).double()
    decay = {"weight_decay": threshold, "lr": rate / threshold}
    optimizer = torch.optim.SGD([quantizer.m], **decay)
    signs, average, flips = quantizer().detach().sign(), torch.zeros(4, 25).double(), 0
    drift = normal(seed + 1, 4, 25).double()
    for step in range(200):
        g = drift * torch.tensor(step / 30.0).cos() + normal(seed + 2 + step, 4, 25).double()
        optimizer.zero_grad()
        quantizer().backward(g * 2 * quantizer.v.detach())  # so that g / d_o is g
        optimizer.step()
        average = (1 - rate) * average + rate * g
        flip = (average.abs() >= threshold) & (average.sign() == signs)
        signs, flips = torch.where(flip, -signs, signs), flips + flip.sum()
        assert torch.equal(quantizer().detach().sign(), signs)
    assert flips > 50


@each_bits
def test_with_decay_the_push_is_an_average_of_gradients(bits):
    quantizer = FlipWeight(0.1 * normal(0, 3, 20), bits).double().eval()
    c, lr = 0.5, 0.2
    optimizer = torch.optim.SGD([quantizer.m], lr=lr, weight_decay=c)
    levels = quantizer.levels().detach()
    d = (levels[:, -1:] - levels[:, :1]) / (2**bits - 1)
    average = torch.zeros(3, 20).double()
    for step in range(30):
        g = normal(step, 3, 20).double()
        optimizer.zero_grad()
        quantizer().backward(g)
        optimizer.step()
        average = (1 - lr * c) * average + lr * c * g / d.clamp_min(MIN_STEP)
    torch.testing.assert_close(quantizer.m, -average / c)


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_flip_gradients(bits, seed):
    quantizer = FlipWeight(normal(seed, 4, 30), bits).double()
    with torch.no_grad():
        quantizer.v.copy_(normal(seed + 5, 4, bits))  # not in order
    g = normal(seed + 1, 4, 30).double()
    v = ordered(quantizer.v.detach()).requires_grad_()
    used = quantizer()
    used.backward(g)
    expected = explicit_weight(quantizer.q, v)
    expected.backward(g)
    torch.testing.assert_close(used, expected)
    torch.testing.assert_close(quantizer.v.grad, v.grad)
    levels = quantizer.levels().detach()
    d = (levels[:, -1:] - levels[:, :1]) / (2**bits - 1)
    torch.testing.assert_close(quantizer.m.grad, g / d.clamp_min(MIN_STEP))
    assert torch.equal(quantizer.latent(), used)


def test_codes_move_in_training_alone_and_continue_from_the_saved_state():
    def steps(quantizer, count, first):
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
        for step in range(first, first + count):
            optimizer.zero_grad()
            quantizer.train()().backward(0.5 * normal(step, 3, 20))
            optimizer.step()
        return quantizer

    quantizer = steps(FlipWeight(0.1 * normal(0, 3, 20), 2), 5, 0)
    state = copy.deepcopy(quantizer.state_dict())
    assert (state["m"].abs() >= 1).any()  # a move is due
    quantizer.eval()()
    assert all(torch.equal(t, state[n]) for n, t in quantizer.state_dict().items())
    resumed = FlipWeight(torch.zeros(3, 20), 2)
    resumed.load_state_dict(state)
    expected = steps(quantizer, 7, 5).state_dict()
    assert not torch.equal(expected["q"], state["q"])
    for name, tensor in steps(resumed, 7, 5).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_average_of_codes_is_rounded_to_one():
    quantizer = FlipWeight(0.1 * normal(0, 3, 20), 2).eval()
    used = quantizer()
    quantizer.q += 0.3 * normal(1, 3, 20).sign()
    assert torch.equal(quantizer(), used)


# -- one basis for a layer -------------------------------------------------------------------


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_a_layer_s_levels_are_those_of_one_row(bits, seed):
    weight, g = 0.1 * normal(seed, 5, 4, 3, 3), normal(seed + 1, 5, 4, 3, 3)
    layer, row = LayerDirectWeight(weight, bits), DirectWeight(weight.view(1, -1), bits)
    assert torch.equal(layer().flatten(), row().flatten())
    layer().backward(g)
    row().backward(g.view(1, -1))
    assert torch.equal(layer.v.grad, row.v.grad) and torch.equal(layer.z.grad, row.z.grad)
    assert layer.levels().shape == (1, 2**bits) and layer.level_numbers() == bits
    assert len(layer().unique()) <= 2**bits
    assert torch.equal(layer.latent(), row.latent().view(5, -1))


@each_bits
@given(seed=seeds)
@settings(max_examples=6)
def test_layer_gradients(bits, seed):
    """The basis gets the sum over all channels; a code g / d with the layer's one distance d."""
    quantizer = LayerDirectWeight(normal(seed, 4, 30), bits).double()
    with torch.no_grad():
        quantizer.z.copy_((2**bits + 4) * torch.rand(1, 120).double() - 2.5)
    g = normal(seed + 1, 4, 30).double()
    quantizer().backward(g)
    v = quantizer.v.detach().clone().requires_grad_()
    q = quantizer.z.detach().clamp(0, 2**bits - 1).round().view(4, 30)
    sum(explicit_weight(row, v)[0] @ own for row, own in zip(q[:, None], g, strict=True)).backward()
    torch.testing.assert_close(quantizer.v.grad, v.grad)
    d = 2 * v.detach().sum() / (2**bits - 1)
    z = quantizer.z.detach()
    expected = torch.where((z < -1) | (z > 2**bits), 0.0, g.view(1, -1) / d.clamp_min(MIN_STEP))
    torch.testing.assert_close(quantizer.z.grad, expected)


# -- both: what must hold for any weight -----------------------------------------------------


@each_kind
@each_bits
@given(seed=seeds, shape=st.sampled_from(SHAPES), scale=st.sampled_from((1e-3, 0.05, 1.0)))
@settings(max_examples=8)
def test_weights_are_the_nearest_levels_of_the_pretrained_ones(kind, bits, seed, shape, scale):
    weight = scale * normal(seed, *shape)
    quantizer = KINDS[kind](weight, bits)
    levels = quantizer.levels().detach()
    used = quantizer().detach()
    assert used.shape == weight.shape and (levels.diff(dim=1) >= -1e-6 * levels.abs().max()).all()
    assert quantizer.latent().shape == weight.flatten(1).shape
    assert torch.equal(quantizer(), used) and torch.equal(quantizer.eval()(), used)
    levels = levels.expand(shape[0], -1)
    for w, row, own in zip(weight.flatten(1), used.flatten(1), levels, strict=True):
        assert (row[:, None] - own).abs().amin(1).max() <= 1e-6 * own.abs().max()
        assert len(row.unique()) <= 2**bits
        error = (w[:, None] - own).abs().amin(1)
        torch.testing.assert_close((w - row).abs(), error, rtol=1e-5, atol=2e-6 * scale)
        assert (row[w.argsort()].diff() >= 0).all()


def test_half_way_takes_the_lower_level():
    quantizer = LayerDirectWeight(torch.tensor([[-3.0, -1.0], [1.0, 3.0]]), 2)
    middles = interpolate_levels(torch.tensor([[0.5, 1.5, 2.5, 0.5]]), quantizer.levels().detach())
    with torch.no_grad():
        quantizer.z.copy_(code_position(middles, quantizer.levels()).round(decimals=5))
    expected = quantizer.levels()[0, [0, 1, 2, 0]]
    torch.testing.assert_close(quantizer().flatten(), expected)


@each_kind
@each_bits
@pytest.mark.parametrize("value", (0.0, 0.3, -2.0, 1e-30), ids=str)
def test_constant_weights_and_dead_channels_give_numbers(kind, bits, value):
    weight = normal(1, 4, 3, 3, 3)
    weight[1:3] = value
    for start in (weight, torch.full((4, 3, 3, 3), value)):
        quantizer = KINDS[kind](start, bits)
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            used = quantizer()
            used.square().sum().backward()
            optimizer.step()
            assert used.isfinite().all()
        assert all(t.isfinite().all() for t in quantizer.state_dict().values())


@each_kind
@each_bits
def test_a_weight_that_is_not_a_number_stays_so(kind, bits):
    quantizer = KINDS[kind](normal(1, 4, 3, 3, 3), bits)
    latent = quantizer.m if kind == "flip" else quantizer.z
    with torch.no_grad():
        latent.view(-1)[0] = float("nan")
    used = quantizer()
    assert used.flatten()[0].isnan() and used[1:].isfinite().all()
    used.sum().backward()
