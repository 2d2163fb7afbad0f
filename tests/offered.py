"""The methods at the widths of weights that each offers, for tests that run for all of them."""

import pytest

import baselines
from lowbit_core.quantizers.bits import FLOAT_BITS
from lowbit_core.quantizers.interface import Method

QUANTIZED = [method for method in baselines.METHODS.values() if method.weight is not None]


def a_width(method: Method, wanted: int = 2) -> int:
    """`wanted` if the method offers it (or if it means unquantized weights), else its own width."""
    return wanted if wanted == FLOAT_BITS or method.offers(wanted) else method.w_bits[0]


def offered(*widths):
    """Parameters (method, w_bits): each method at those of `widths` that it offers.

    A method that offers none of them is there once, at its own width.
    """
    return [
        pytest.param(method, bits, id=f"{method.name}-{bits}")
        for method in QUANTIZED
        for bits in dict.fromkeys(a_width(method, width) for width in widths)
        if bits in widths or not any(map(method.offers, widths))
    ]
