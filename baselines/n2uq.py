"""The quantizer of N2UQ (Liu et al. 2022, arXiv:2111.14826): learned thresholds, uniform levels.

The mirror image of learned levels. What else the paper's networks have (bias and PReLU around each
layer, distillation from a ResNet-101 without labels) is not part of a quantizer and is left out.

Published recipe (paper and official code): 128 epochs, Adam at 2.5e-3 that falls linearly to zero,
no weight decay, the thresholds and scales at a tenth of the learning rate, first and last layer
full precision.
"""

import torch
from torch import Tensor, nn

from baselines.lsq import positive
from lowbit_core.quantizers.basis import all_levels, quantize_rows
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation
from lowbit_core.quantizers.range_search import best_range_of_grid
from lowbit_core.quantizers.ste_mask import rectified

SMALLEST_SEGMENT = 1e-3  # as in the official code
SMALLEST_RANGE = 1e-3


class _Quantize(torch.autograd.Function):
    """Each row of w to the nearest level of its basis; identity gradient to w."""

    @staticmethod
    def forward(ctx, w, v):
        return quantize_rows(w, v)

    @staticmethod
    def backward(ctx, g):
        return g, None


class N2UQWeight(WeightQuantizer):
    """Levels s (2 k / n - 1) with n = 2^K - 1 and s = n / 2^(K-1) mean|w| of the output channel."""

    INIT = "mean magnitude"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        powers = 2.0 ** torch.arange(bits, device=weight.device) / 2 ** (bits - 1)
        self.register_buffer("powers", powers, persistent=False)

    def basis(self) -> Tensor:
        """The levels as signed sums of s 2^k / n, (O, K): for basis.py's kernel."""
        return self.weight.detach().abs().mean(1, keepdim=True) * self.powers

    def forward(self) -> Tensor:
        return _Quantize.apply(self.weight, self.basis()).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        return all_levels(self.basis(), signed=True)

    def level_numbers(self) -> int:
        return len(self.weight)


class N2UQActivation(PiecewiseActivation):
    """y = s2 (D #{i: s1 x > (B_i + B_(i+1)) / 2} + lowest) for n = 2^K - 1 learned segments.

    Segment i reaches from B_i to B_(i+1) = B_i + a_i; D = 2 / n is the distance of levels before
    s2; lowest is 0, or -1 when signed (ours). Learned: B_0 (`begin`), a (`lengths`, n), s1, s2.
    They start as a uniform grid on the range of least squared error on the first batch.

    The gradient is that of the line of slope D / a_i through each segment, and zero outside; that
    of s2 is the level (the generalized straight-through estimator). The source learns by Adam,
    which is blind to the size of a gradient; for SGD it is multiplied by LSQ's 1 / sqrt(N n).
    """

    GROUPS = {"begin": "levels", "lengths": "levels", "s1": "levels", "s2": "levels"}
    INIT = "least squares on the first batch"

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.n = 2**bits - 1
        self.distance = 2 / self.n
        self.lowest = -1.0 if signed else 0.0
        self.begin = nn.Parameter(torch.tensor(self.lowest))
        self.lengths = nn.Parameter(torch.full((self.n,), self.distance))
        self.s1, self.s2 = (nn.Parameter(torch.tensor(1.0)) for _ in range(2))
        self.register_buffer("gradient_scale", torch.tensor(1.0))
        # Two pieces a segment, below and above its threshold, between the two outer pieces.
        pieces = torch.arange(2 * self.n + 2)
        inside = (pieces > 0) & (pieces <= 2 * self.n)
        for name, table in (
            ("units", self.distance * (pieces // 2) + self.lowest),
            ("segment", ((pieces - 1) // 2).clamp(0, self.n - 1)),
            ("inside", inside.float()),
        ):
            self.register_buffer(name, table, persistent=False)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        x = rectified(x.to(self.s1.dtype), self.signed, self.ceiling)
        top = x.abs().max().clamp_min(SMALLEST_RANGE)
        _, top = best_range_of_grid(x, self.lowest * top, top, self.n + 1)
        self.s1.copy_((2 + self.lowest) / top)
        self.s2.copy_(top / (2 + self.lowest))
        self.gradient_scale.fill_((x[0].numel() * self.n) ** -0.5)

    def levels(self) -> Tensor:
        return positive(self.s2) * self.units[::2]

    def pieces(self) -> Pieces:
        a = self.lengths.clamp_min(SMALLEST_SEGMENT)
        # B_0, the threshold of the first segment, B_1, and so on to B_n.
        halves = a.index_select(0, self.segment[:-1]) * self.inside[:-1] / 2
        points = self.begin + halves.cumsum(0)
        s1, s2 = positive(self.s1), positive(self.s2)
        levels, slope = s2 * self.units, s2.detach() * self.distance / a
        # In segment i, y counts as s2 (level below it) + slope_i (s1 x - B_i).
        lines = torch.stack([slope * s1, slope * points[:-1:2]])
        gain, start = (lines.index_select(1, self.segment) * self.inside).unbind()
        scale, edges = self.gradient_scale, points.detach() / s1.detach()
        return Pieces(edges, levels, scale * (levels - start), scale * gain, slope=gain)


METHODS = (Method("n2uq", N2UQWeight, N2UQActivation),)
