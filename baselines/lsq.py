"""LSQ (Esser et al. 2020, arXiv:1902.08153): levels s q for whole q, with the step size s learned.

`lsq_plus` adds a learned offset where activations can be negative (Bhalgat et al. 2020,
arXiv:2004.09576). `lsq_midrise` has the grid without zero, +-s/2, +-3s/2, ..., which DoReFa, EWGS,
N2UQ and `direct` have, too: it separates the grid from how its step size is found.

Published recipe (the paper's ImageNet runs): 90 epochs from a full-precision network, learning
rate 0.01 with a cosine, weight decay 1e-4 at 4 bits, half of it at 3 and a quarter at 2; s has the
learning rate of the weights; first and last layer 8 bits.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.interface import Method, ShadowWeight
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation, quantize_pieces, with_ends
from lowbit_core.quantizers.range_search import best_range_of_grid
from lowbit_core.quantizers.ste_mask import rectified

SMALLEST_STEP = 1e-5


def whole_numbers(bits: int, signed: bool) -> Tensor:
    """The q of LSQ: 0 to 2^K - 1, or -2^(K-1) to 2^(K-1) - 1; at one bit -1 and 1 (ours)."""
    if signed and bits == 1:
        return torch.tensor([-1.0, 1.0])
    return torch.arange(2.0**bits) - (2 ** (bits - 1) if signed else 0)


def half_numbers(bits: int, signed: bool) -> Tensor:
    """The numbers of the mid-rise grid: 0 to 2^K - 1, or -(2^K - 1)/2 to (2^K - 1)/2 by 1."""
    return torch.arange(2.0**bits) - ((2**bits - 1) / 2 if signed else 0)


def positive(s: Tensor) -> Tensor:
    """|s|, at least SMALLEST_STEP; the gradient is that of |s|, so that no s is stuck there."""
    size = s.abs()
    return size + (SMALLEST_STEP - size.detach()).clamp_min(0)


def first_step(x: Tensor, numbers: Tensor) -> Tensor:
    """The step size that LSQ starts from, 2 mean|x| / sqrt(Qp); for two signs, levels +-mean|x|."""
    top, mean = numbers[-1], x.abs().mean()
    is_sign = len(numbers) == 2 and numbers[0] < 0
    return (mean / top if is_sign else 2 * mean / top.sqrt()).clamp_min(SMALLEST_STEP)


class StepGrid(nn.Module):
    """y = s q + b, with q the nearest of `numbers` to u = (x - b) / s (equations 1 and 2).

    numbers (L,), rising. clips_below: whether x can lie below the lowest level. A value half-way
    between two levels takes the lower.
    """

    def __init__(self, numbers: Tensor, clips_below: bool) -> None:
        super().__init__()
        edges, q, inside = with_ends(numbers, clips_below)
        self.is_sign = len(numbers) == 2 and bool(numbers[1] - numbers[0] > 1)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("q", q, persistent=False)
        self.register_buffer("inside", inside, persistent=False)

    def levels(self, s: Tensor, b: Tensor | float = 0.0) -> Tensor:
        return s * self.numbers + b

    def pieces(self, s: Tensor, gradient_scale: Tensor, b: Tensor | None = None) -> Pieces:
        """The pieces; gradients of s and b are multiplied by `gradient_scale` (section 2.2).

        dy/dx = 1 inside the range, else 0. dy/ds = q - u inside, else q (equation 3); always q at
        one bit of LSQ, where q is the sign. dy/db = 0 inside, else 1 (LSQ+).
        """
        step, scaled = s.detach(), gradient_scale * s
        edges, levels, offset = step * self.edges, step * self.q, scaled * self.q
        gain = None if self.is_sign else scaled * (self.inside / -step)
        if b is not None:
            start = b.detach()
            edges, levels = edges + start, levels + start
            offset = offset + gradient_scale * b * (1 - self.inside)
            if gain is not None:
                offset = offset - gain * start
        return Pieces(edges, levels, offset, gain, slope=self.inside)


class LSQWeight(ShadowWeight):
    """A full-precision shadow weight, quantized with one learned step size for the layer."""

    GROUPS = {"weight": "weights", "step": "levels"}
    GRANULARITY = "per_layer"
    INIT = "mean magnitude"

    def __init__(
        self, weight: Tensor, bits: int, numbers: Callable[[int, bool], Tensor] = whole_numbers
    ) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.grid = StepGrid(numbers(bits, True).to(weight.device), clips_below=True)
        self.step = nn.Parameter(first_step(self.weight.detach(), self.grid.numbers))
        scale = (weight.numel() * self.grid.numbers[-1]).rsqrt()
        self.register_buffer("gradient_scale", scale, persistent=False)

    def used_step(self) -> Tensor:
        return positive(self.step)

    def pieces(self) -> Pieces:
        return self.grid.pieces(self.used_step(), self.gradient_scale)

    def forward(self) -> Tensor:
        return quantize_pieces(self.weight, self.pieces(), signed=True)[0].view(self.shape)

    def levels(self) -> Tensor:
        return self.grid.levels(self.used_step())[None]

    def level_numbers(self) -> int:
        return 1


class LSQActivation(PiecewiseActivation):
    """One learned step size for the layer: q from 0 to 2^K - 1, or those of weights when signed."""

    GROUPS = {"step": "levels"}
    INIT = "mean magnitude of the first batch"

    def __init__(
        self, bits: int, signed: bool, numbers: Callable[[int, bool], Tensor] = whole_numbers
    ) -> None:
        super().__init__(bits, signed)
        self.step = nn.Parameter(torch.tensor(1.0))
        self.grid = StepGrid(numbers(bits, signed), clips_below=signed)
        self.register_buffer("gradient_scale", torch.tensor(1.0))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """The step size at the start, and 1 / sqrt(N Qp), the scale of its gradient.

        N: the values of one image.
        """
        x = rectified(x.to(self.step.dtype), self.signed, self.ceiling)
        self.gradient_scale.copy_((x[0].numel() * self.grid.numbers[-1]).rsqrt())
        self.step.copy_(first_step(x, self.grid.numbers))

    def used_step(self) -> Tensor:
        return positive(self.step)

    def levels(self) -> Tensor:
        return self.grid.levels(self.used_step())

    def pieces(self) -> Pieces:
        return self.grid.pieces(self.used_step(), self.gradient_scale)


class LSQPlusActivation(LSQActivation):
    """Signed, y = s q + b with q from 0 to 2^K - 1 and s, b learned; unsigned, as LSQ.

    s and b start at the range of least squared error on the first batch.
    """

    GROUPS = {"step": "levels", "offset": "levels"}
    INIT = "least squares on the first batch"

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        if signed:
            self.grid = StepGrid(whole_numbers(bits, signed=False), clips_below=True)
            self.offset = nn.Parameter(torch.tensor(0.0))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        super().calibrate(x)
        if self.signed:
            x = x.to(self.step.dtype)
            bottom, top = best_range_of_grid(x, x.min(), x.max(), 2**self.bits)
            self.step.copy_((top - bottom) / self.grid.numbers[-1])
            self.offset.copy_(bottom)

    def levels(self) -> Tensor:
        return self.grid.levels(self.used_step(), self.offset if self.signed else 0.0)

    def pieces(self) -> Pieces:
        b = self.offset if self.signed else None
        return self.grid.pieces(self.used_step(), self.gradient_scale, b)


_weight_midrise = partial(LSQWeight, numbers=half_numbers)
_activation_midrise = partial(LSQActivation, numbers=half_numbers)

METHODS = (
    Method("lsq", LSQWeight, LSQActivation),
    Method("lsq_plus", LSQWeight, LSQPlusActivation, ablation=True),
    Method("lsq_midrise", _weight_midrise, _activation_midrise, ablation=True),
)
