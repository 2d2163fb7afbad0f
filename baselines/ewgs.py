"""EWGS (Lee et al. 2021, arXiv:2104.00903): the size of a gradient depends on the rounding error.

Inside the range the gradient of x is g (1 + delta sign(g) (u - q)), where LSQ's is g. All else is
LSQ's, on the grid of the source: weights without zero, activations from zero.

Published recipe (paper and official code): ImageNet 100 epochs of SGD from a full-precision
network, learning rate 0.01 with a cosine, weight decay 1e-4; ranges by Adam at 1e-5 without decay.
First and last layer full precision.
"""

import torch
from torch import Tensor

from baselines.lsq import LSQActivation, LSQWeight, StepGrid, half_numbers
from lowbit_core.quantizers.interface import Method
from lowbit_core.quantizers.piecewise import Pieces

DELTA = 0.2  # for u - q in step sizes: the gradient changes by at most a tenth


def with_scaled_gradient(grid: StepGrid, s: Tensor, gradient_scale: Tensor) -> Pieces:
    """LSQ's pieces, whose gradient of x gains |g| delta (x / s - q) inside the range."""
    pieces, delta = grid.pieces(s, gradient_scale), DELTA * grid.inside
    bend = torch.stack([-delta * grid.q, delta / s.detach()], 1)
    return pieces._replace(bend=bend)


class EWGSWeight(LSQWeight):
    """LSQ's weight on the mid-rise grid, with the gradient of EWGS."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits, half_numbers)

    def pieces(self) -> Pieces:
        return with_scaled_gradient(self.grid, self.used_step(), self.gradient_scale)


class EWGSActivation(LSQActivation):
    """LSQ's activation, mid-rise when signed, with the gradient of EWGS."""

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed, half_numbers)

    def pieces(self) -> Pieces:
        return with_scaled_gradient(self.grid, self.used_step(), self.gradient_scale)


METHODS = (Method("ewgs", EWGSWeight, EWGSActivation),)
