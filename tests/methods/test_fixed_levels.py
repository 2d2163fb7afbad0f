"""A weight that is at a level stays there: AdaBin, APoT, N2UQ, `direct_flip` and `direct_layer`.

The levels of the first three follow from the weights, so quantized weights have other levels. For
these the tests hold the levels, and state what becomes of them where they are not held.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.adabin import AdaBinWeight
from baselines.apot import APoTWeight
from baselines.direct_readings import FlipWeight, LayerDirectWeight
from baselines.n2uq import N2UQWeight
from lowbit_core.quantizers.direct import code_position
from lowbit_core.quantizers.interface import codes_of

LOW_BITS = (1, 2, 3, 4, 8)
seeds = st.integers(0, 2**31)
each_bits = pytest.mark.parametrize("bits", LOW_BITS)


def draw(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value))


# -- levels that follow from the weights -----------------------------------------------------


@given(seed=seeds, positive=st.integers(1, 19))
@settings(max_examples=10)
def test_adabin_keeps_the_side_of_each_weight(seed, positive):
    """With m = mean sign(u), the mean moves by m alpha and the deviation is alpha sqrt(1 - m^2)."""
    upper, lower = draw(seed, 1, positive).abs() + 1, -draw(seed + 1, 1, 20 - positive).abs() - 1
    quantizer = AdaBinWeight(torch.cat([upper, lower], 1), 1)
    low, high = quantizer.levels().detach()[0]
    beta, alpha = (high + low) / 2, (high - low) / 2
    used = quantizer().detach()
    side = torch.where(used > beta, 1.0, -1.0).double()
    fill(quantizer.weight, used)
    m = side.mean()
    torch.testing.assert_close(
        quantizer().detach(), beta + alpha * m + alpha * (1 - m**2).sqrt() * side
    )


@pytest.mark.parametrize("start", ([2.0, 1, -3, -4], [0.0, 0, 6, 10]))
def test_adabin_s_weights_stay_as_they_are_where_both_sides_have_as_many(start):
    quantizer = AdaBinWeight(torch.tensor([start]).double(), 1)
    used = quantizer().detach()
    fill(quantizer.weight, used)
    torch.testing.assert_close(quantizer().detach(), used)


@each_bits
@given(seed=seeds)
@settings(max_examples=8)
def test_apot_s_weights_stay_where_mean_and_clip_do(bits, seed):
    """Weights on both sides of zero alike have mean 0; the clip is held in units of weights."""
    half = draw(seed, 3, 20)
    quantizer = APoTWeight(torch.cat([half, -half], 1), bits).double()
    used, clip = quantizer().detach(), quantizer.levels()[0, -1].detach()
    fill(quantizer.weight, used)
    fill(quantizer.alpha, clip / used.std())
    torch.testing.assert_close(quantizer().detach(), used)


@each_bits
@given(seed=seeds)
@settings(max_examples=8)
def test_n2uq_s_weights_stay_where_their_scale_does(bits, seed):
    """The scale is mean |w| of the channel. No level is twice that, so as many weights hold it."""
    quantizer = N2UQWeight(draw(seed, 4, 30), bits).double()
    scale, used = quantizer.weight.abs().mean(1, keepdim=True).detach(), quantizer().detach()
    rest = 2 * scale - used.abs().mean(1, keepdim=True)
    assert (rest > 0).all()
    held = N2UQWeight(torch.cat([used, rest.expand(-1, 30)], 1), bits).double()
    torch.testing.assert_close(held.levels(), quantizer.levels())
    torch.testing.assert_close(held()[:, :30].detach(), used)


@given(seed=seeds)
@settings(max_examples=8)
def test_n2uq_s_one_bit_weights_stay_as_they_are(seed):
    quantizer = N2UQWeight(draw(seed, 4, 30), 1).double()
    used = quantizer().detach()
    fill(quantizer.weight, used)
    torch.testing.assert_close(quantizer().detach(), used)


# -- levels that are learned -----------------------------------------------------------------


def spread(quantizer, seed):
    """Give it levels of which no two coincide; more than two bits of a fit may have some."""
    rows, bits = quantizer.v.shape
    shares = torch.rand(rows, bits, generator=torch.Generator().manual_seed(seed)) + 1
    fill(quantizer.v, 0.05 * shares.sort(1).values * 2.0 ** torch.arange(bits))
    assert (quantizer.levels().diff(dim=1) > 0).all()


@each_bits
@given(seed=seeds)
@settings(max_examples=8)
def test_flip_s_code_is_that_of_the_level_which_the_weight_has(bits, seed):
    """A weight's own level gives its code back; without a push that holds in training, too."""
    quantizer = FlipWeight(0.2 * draw(seed, 4, 30).float(), bits)
    spread(quantizer, seed)
    quantizer.q = torch.randint(0, 2**bits, (4, 30)).float()
    for training in (False, True):
        used = quantizer.train(training)().detach()
        codes = codes_of(used, quantizer.levels().detach())
        assert torch.equal(codes.float(), quantizer.q) and torch.equal(codes, quantizer.codes())
        quantizer.q = codes.float()
        assert torch.equal(quantizer().detach(), used)


@given(seed=seeds)
@settings(max_examples=8)
def test_flip_s_one_bit_weights_give_the_same_weights(seed):
    """A fit to weights of one magnitude finds that magnitude."""
    used = FlipWeight(0.2 * draw(seed, 4, 30).float(), 1)().detach()
    torch.testing.assert_close(FlipWeight(used, 1)().detach(), used, rtol=1e-4, atol=0)


@each_bits
@given(seed=seeds)
@settings(max_examples=8)
def test_layer_s_weights_at_its_levels_stay_there(bits, seed):
    quantizer = LayerDirectWeight(0.2 * draw(seed, 4, 30).float(), bits)
    for spreads in (False, True):
        if spreads:
            spread(quantizer, seed)
        for training in (False, True):
            used = quantizer.train(training)().detach()
            fill(quantizer.z, code_position(used.view(1, -1), quantizer.levels().detach()))
            assert torch.equal(quantizer().detach(), used)


@given(seed=seeds)
@settings(max_examples=8)
def test_layer_s_one_bit_weights_give_the_same_weights(seed):
    used = LayerDirectWeight(0.2 * draw(seed, 4, 30).float(), 1)().detach()
    torch.testing.assert_close(LayerDirectWeight(used, 1)().detach(), used, rtol=1e-4, atol=0)
