"""The refits of the C++ kernels against least squares in float64: equal to 1e-6.

test_kernels.py compares kernel and eager, whose sums are float32 both. Here the sums are float64,
over the codes that the kernel used, and the fits are well conditioned.
"""

import pytest
import torch

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels import fused
from lowbit_core.quantizers import basis
from lowbit_core.quantizers.basis import MOMENTUM, RIDGE, ordered
from lowbit_core.quantizers.basis_activation import (
    VARIANCE_FLOOR,
    WEIGHTINGS,
    quantize_and_sum,
    update_basis,
)
from lowbit_core.quantizers.blocks import as_blocks, from_blocks

CLOSE = 1e-6
WELL_CONDITIONED = 100  # condition number of the normal equations
SHAPES = ((8, 16, 8, 8), (64, 8, 16, 16), (256, 24))
each_bits = pytest.mark.parametrize("bits", (2, 3, 4, 8))
each_sign = pytest.mark.parametrize("signed", (False, True), ids=("unsigned", "signed"))


@pytest.fixture(autouse=True)
def _kernels():
    if not fused.compiler_found():
        pytest.skip("no C++ compiler: there are no kernels here")
    fused.set_compile(True)
    yield
    fused.set_compile(False)


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis_for(bits, top):
    """An ordered basis whose levels reach to about `top`, a little apart from uniform ones."""
    return ordered(top * 2.0 ** torch.arange(bits) / 2**bits * 1.02 ** torch.arange(bits))


def codes_of(used, v, signed):
    """The codes (N, K), float64, of values that a kernel quantized with the basis v (K,)."""
    codes = ((torch.arange(2 ** len(v))[:, None] >> torch.arange(len(v))) & 1).double()
    codes = 2 * codes - 1 if signed else codes
    levels = codes @ v.double()
    code = torch.searchsorted((levels[1:] + levels[:-1]) / 2, used.double().contiguous())
    torch.testing.assert_close(levels[code], used.double(), rtol=1e-5, atol=1e-6)
    return codes[code]


class Fit:
    """The normal equations of least squares, with the ridge that pulls to the basis v (K,)."""

    def __init__(self, v):
        self.v, self.count = v.double(), 0.0
        self.normal, self.right = torch.zeros(len(v), len(v)).double(), torch.zeros_like(self.v)

    def add(self, codes, x, weight=1.0):
        """Values x (N,) with these codes (N, K)."""
        self.normal += weight * codes.T @ codes
        self.right += weight * codes.T @ x.double()
        self.count += weight * len(x)
        return self

    def solved(self):
        ridge = RIDGE * self.count
        normal = self.normal + ridge * torch.eye(len(self.v)).double()
        assert torch.linalg.cond(normal) < WELL_CONDITIONED
        return ordered(torch.linalg.solve(normal, self.right + ridge * self.v))


def assert_close(found, expected, close=CLOSE):
    """To `close` of each number; the smallest of eight bits, to a tenth of that of the largest."""
    atol = close / 10 * expected.max().item()
    torch.testing.assert_close(found.double(), expected, rtol=close, atol=atol)


@each_bits
@pytest.mark.parametrize("size", (144, 576, 1152, 4608))
def test_the_basis_of_weights_is_that_of_float64(bits, size):
    w = 0.05 * draw(bits, 16, size)
    v = basis_for(bits, 0.15).repeat(16, 1)
    assert kernels.usable(kernels.refit_rows, w, v)
    used, fit = basis.refit_rows(w, v)
    for row, y, own, found in zip(w, used, v, fit, strict=True):
        assert_close(found, Fit(own).add(codes_of(y, own, True), row).solved())


def activations(bits, signed, shape, power):
    """Activations whose channels have the deviations `power` (C,)."""
    x = draw(bits, *shape) * power.view(-1, *[1] * (len(shape) - 2))
    return x if signed else x.relu()


def fit_of_channels(x, y, v, weighting, signed):
    """The fit, in float64, to activations x (N, C, ...) that were quantized to y."""
    rows, used = (t.movedim(1, 0).flatten(1) for t in (x, y))
    parts = [(codes_of(row, v, signed), x) for row, x in zip(used, rows, strict=True)]
    if weighting == "median":
        fits = torch.stack([Fit(v).add(*part).solved() for part in parts])
        return ordered(fits.median(0).values)
    weights = torch.ones(len(rows)).double()
    if weighting == "inverse_variance":
        variance = rows.double().var(1, correction=0)
        weights = 1 / (variance + VARIANCE_FLOOR * variance.mean())
    whole = Fit(v)
    for part, weight in zip(parts, weights / weights.mean(), strict=True):
        whole.add(*part, weight)
    return whole.solved()


@each_bits
@each_sign
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_basis_of_activations_is_that_of_float64(bits, signed, weighting, shape):
    power, v = torch.logspace(-0.3, 0.3, shape[1]), basis_for(bits, 2.0)
    if weighting == "median":  # every channel is fitted alone, and must use all levels
        power = torch.ones_like(power)
    x = activations(bits, signed, shape, power)
    blocks = as_blocks(x)
    assert kernels.usable(kernels.quantize_and_sum, blocks, v)
    y, _, _, sums = quantize_and_sum(blocks, v, signed)
    new, not_finite = update_basis(sums, v, shape[1], x.numel() // shape[1], weighting, signed)
    fit = fit_of_channels(x, from_blocks(y, x), v, weighting, signed)
    assert not not_finite
    assert_close(new, MOMENTUM * v.double() + (1 - MOMENTUM) * fit)
    # 0.9 v hides nine tenths of an error; the rounding of `new` counts tenfold in this difference.
    implied = (new.double() - MOMENTUM * v.double()) / (1 - MOMENTUM)
    assert_close(implied, fit, 3 * CLOSE)
