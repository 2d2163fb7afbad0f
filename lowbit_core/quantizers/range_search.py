"""The range that a quantizer starts from."""

from collections.abc import Callable

import torch
from torch import Tensor


def best_range(largest: Tensor, shares: Tensor, error: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the ranges `share * largest`, the one of least quantization error, for each element.

    largest (...): the largest magnitude of the values to quantize. shares (n,): candidates, in
    rising order. error: the squared error (...) of quantization to a uniform grid up to a range
    (...). The smallest range wins a tie.
    """
    ranges = largest * shares.view(-1, *[1] * largest.dim())
    errors = torch.stack([error(candidate) for candidate in ranges])
    return ranges.gather(0, errors.argmin(0)[None])[0]
