"""Which level a value half-way between two levels takes: APoT, AdaBin, HWGQ, TTQ and TWN.

LSQ, EWGS and N2UQ are in test_lsq_family.py, PARQ is in test_parq.py, and the direct weights are in
test_direct_readings.py. Scales are powers of two, so that the half-way values are exact.
"""

import pytest
import torch

import baselines
from baselines.adabin import AdaBinWeight
from baselines.apot import APoTActivation, APoTWeight, unit_levels
from baselines.hwgq import BinaryWeight, HWGQActivation
from baselines.ttq import TTQ_THRESHOLD, TTQWeight, TWNWeight
from lowbit_core.kernels import fused

BITS = (1, 2, 3, 4, 8)
INFINITY = torch.tensor(torch.inf)
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))
# Whose activations are those of LQ-Nets: sums of a basis.
OF_A_BASIS = {"ttq": BITS, "twn": BITS, "adabin": BITS[1:]}


@pytest.fixture(params=(False, True), ids=("eager", "kernels"), autouse=True)
def _kernels(request):
    if request.param and not fused.compiler_found():
        pytest.skip("no C++ compiler: there are no kernels here")
    fused.set_compile(request.param)
    yield
    fused.set_compile(False)


def middles_of(levels):
    return (levels[1:] + levels[:-1]) / 2


def above(x):
    """The next larger float32 of each number."""
    return torch.nextafter(x, INFINITY)


def a_little_above(x):
    """By what no sum of a basis rounds away."""
    return x + 2.0**-16


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(value))


def assert_ties_are_lower(quantizer, middles, levels):
    """Half-way between two levels the lower one, and just above it the upper one."""
    for training in (True, False):
        quantizer.train(training)
        for x, expected in ((middles, levels[:-1]), (above(middles), levels[1:])):
            assert torch.equal(quantizer(x[:, None])[:, 0].detach(), expected)


# -- activations -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@each_sign
def test_an_activation_of_apot_takes_the_lower_level(bits, signed):
    quantizer = APoTActivation(bits, signed)
    fill(quantizer.alpha, 2.0)
    levels = quantizer.levels().detach()
    assert_ties_are_lower(quantizer, middles_of(levels), levels)


@pytest.mark.parametrize("bits", BITS)
def test_a_signed_activation_of_hwgq_takes_the_lower_level(bits):
    quantizer = HWGQActivation(bits, signed=True)
    levels = quantizer.levels()
    assert_ties_are_lower(quantizer, middles_of(levels), levels)


@pytest.mark.parametrize("bits", BITS)
def test_an_unsigned_activation_of_hwgq_is_zero_only_at_zero(bits):
    """The lowest threshold is 0, not d / 2; between two positive levels it is half-way."""
    quantizer = HWGQActivation(bits, signed=False)
    levels = quantizer.levels()
    middles = middles_of(levels)
    half_a_step = middles[:1].clone()
    middles[0] = 0.0
    assert_ties_are_lower(quantizer, middles, levels)
    assert torch.equal(quantizer(half_a_step[None]), levels[None, 1:2])


@pytest.mark.parametrize(
    ("name", "bits"), [(name, bits) for name, widths in OF_A_BASIS.items() for bits in widths]
)
@each_sign
def test_an_activation_of_a_basis_takes_the_lower_level(name, bits, signed):
    """The basis moves in each step of training, so each step begins with the same one."""
    quantizer = baselines.method(name).activation(bits, signed)
    basis = quantizer.v.clone()  # powers of two
    levels = quantizer.levels()
    middles = middles_of(levels)
    for training in (True, False):
        for x, expected in ((middles, levels[:-1]), (a_little_above(middles), levels[1:])):
            quantizer.v = basis.clone()
            assert torch.equal(quantizer.train(training)(x[:, None])[:, 0], expected)


@pytest.mark.parametrize(("signed", "levels"), ((False, (0.0, 1.0)), (True, (-0.375, 0.625))))
def test_an_activation_of_adabin_takes_the_lower_level_at_its_threshold(signed, levels):
    """The threshold is beta, which need not be half-way: alpha is 1/2 and beta 1/4."""
    quantizer = baselines.method("adabin").activation(1, signed)
    fill(quantizer.alpha, 0.5)
    fill(quantizer.beta, 0.25)
    assert torch.equal(quantizer.levels().detach(), torch.tensor(levels))
    assert_ties_are_lower(quantizer, torch.tensor([0.25]), torch.tensor(levels))


# -- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_a_weight_of_apot_takes_the_lower_level(bits, monkeypatch):
    """Mean and deviation of the layer are taken to be 0 and 1/2, so that the ties are exact."""
    count = len(unit_levels(bits, signed=True))
    quantizer = APoTWeight(torch.randn(2, count - 1), bits)
    monkeypatch.setattr(quantizer, "_deviation", lambda: torch.tensor(0.5))
    monkeypatch.setattr(quantizer, "latent", lambda: quantizer.weight)
    fill(quantizer.alpha, 2.0)
    levels = quantizer.levels()[0].detach()
    middles = middles_of(levels)
    fill(quantizer.weight, torch.stack([middles, above(middles)]))
    assert torch.equal(quantizer().detach(), torch.stack([levels[:-1], levels[1:]]))


def test_a_one_bit_weight_of_apot_at_the_mean_takes_the_lower_level():
    quantizer = APoTWeight(torch.tensor([[-2.0, 1.0, 4.0]]), 1)
    low, high = quantizer.levels()[0].tolist()
    assert quantizer().tolist() == [[low, low, high]]


@pytest.mark.parametrize(("kind", "weight"), ((AdaBinWeight, [-2, 1, 4]), (BinaryWeight, [-2, 0])))
def test_a_one_bit_weight_in_the_middle_takes_the_upper_level(kind, weight):
    """sign(0) is +1 for the weights of AdaBin and of HWGQ, as in their sources."""
    quantizer = kind(torch.tensor([weight]).float(), 1)
    low, high = quantizer.levels()[0].tolist()
    assert quantizer().tolist() == [[low, *[high] * (len(weight) - 1)]]


@pytest.mark.parametrize("bits", BITS[1:])
def test_a_weight_of_hwgq_takes_the_lower_level(bits):
    """Above one bit they are those of LQ-Nets."""
    powers = 2.0 ** torch.arange(bits) / 2 ** (bits - 1)
    quantizer = baselines.method("hwgq").weight(torch.randn(2, 2**bits - 1), bits)
    for training in (True, False):
        quantizer.train(training).v = powers.repeat(2, 1)
        levels = quantizer.levels()[0].clone()
        middles = middles_of(levels)
        fill(quantizer.weight, torch.stack([middles, a_little_above(middles)]))
        assert torch.equal(quantizer().detach(), torch.stack([levels[:-1], levels[1:]]))


def test_a_weight_at_the_threshold_of_ttq_is_zero():
    threshold = torch.tensor(TTQ_THRESHOLD)  # of a layer whose largest weight is 1
    rows = torch.stack([threshold, above(threshold), torch.tensor(1.0)])
    quantizer = TTQWeight(torch.stack([rows, -rows]), 2)
    fill(quantizer.positive, 2.0)
    scale = quantizer.scale.item()
    assert quantizer().tolist() == [[0, 2 * scale, 2 * scale], [0, -scale, -scale]]


def test_a_weight_at_the_threshold_of_twn_is_zero():
    """Mean |w| is 10, so the threshold is 7."""
    weight = torch.tensor([[7.0, -7.0], [13.0, -13.0]])
    assert TWNWeight(weight, 2)().tolist() == [[0, 0], [13, -13]]
    weight = torch.tensor([[7.5, -7.5], [12.5, -12.5]])
    assert TWNWeight(weight, 2)().tolist() == [[10, -10], [10, -10]]
