"""Ternary weights: TTQ (Zhu et al. 2017, arXiv:1612.01064) and TWN (Li et al. 2016,
arXiv:1605.04711), with the activations of LQ-Nets. They use three of the four levels of two bits.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import Method, WeightQuantizer

TTQ_THRESHOLD = 0.05  # as a share of the layer's max|w|
TWN_THRESHOLD = 0.7  # as a share of the layer's mean|w|


def ternary(w: Tensor, threshold: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """`positive` where w is above the threshold, -`negative` where it is below minus it, else 0."""
    return positive * (w > threshold) - negative * (w < -threshold) + 0.0 * w


def mean_above(w: Tensor, threshold: Tensor) -> Tensor:
    """The mean of the |w| that are above the threshold, one number; 0 if none is."""
    kept = w.abs() > threshold
    return (w.abs() * kept).sum() / kept.count_nonzero().clamp_min(1)


class _LearnedTernary(torch.autograd.Function):
    """scale x `ternary`. The gradients are those of TTQ, with `scale` as the unit of w.

    dL/dw is g times `positive`, 1 or `negative`, by the zone of w. dL/dpositive is scale times the
    sum of g over its zone, and dL/dnegative minus scale times the sum over its own.
    """

    @staticmethod
    def forward(ctx, w, threshold, scale, positive, negative):
        ctx.save_for_backward(w, threshold, scale, positive, negative)
        return ternary(w, threshold, scale * positive, scale * negative)

    @staticmethod
    def backward(ctx, g):
        w, threshold, scale, positive, negative = ctx.saved_tensors
        above, below = g * (w > threshold), g * (w < -threshold)
        to = positive * above + negative * below + (g - above - below)
        return to, None, None, scale * above.sum(), -scale * below.sum()


class TTQWeight(WeightQuantizer):
    """A shadow weight, and two learned scales for the layer: of positive and of negative weights.

    Both scales start at 1, as in the source. Their unit is the mean of the pretrained |w| above the
    threshold (`scale`), so that weights keep their size.
    """

    GROUPS = {"weight": "weights", "positive": "levels", "negative": "levels"}
    GRANULARITY = "per_layer"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.positive = nn.Parameter(torch.tensor(1.0))
        self.negative = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("scale", mean_above(self.weight.detach(), self._threshold()))

    def _threshold(self) -> Tensor:
        return TTQ_THRESHOLD * self.weight.detach().abs().max()

    def forward(self) -> Tensor:
        scales = self.scale, self.positive.abs(), self.negative.abs()
        return _LearnedTernary.apply(self.weight, self._threshold(), *scales).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        top, bottom = self.scale * self.positive.abs(), -(self.scale * self.negative.abs())
        return torch.stack([bottom, torch.zeros_like(top), top])[None]

    def level_numbers(self) -> int:
        return 2


class TWNWeight(WeightQuantizer):
    """A shadow weight and the straight-through estimator; the layer's scale is not learned."""

    GRANULARITY = "per_layer"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())

    def _threshold_and_scale(self) -> tuple[Tensor, Tensor]:
        w = self.weight.detach()
        threshold = TWN_THRESHOLD * w.abs().mean()
        return threshold, mean_above(w, threshold)

    def forward(self) -> Tensor:
        w, (threshold, scale) = self.weight, self._threshold_and_scale()
        used = ternary(w.detach(), threshold, scale, scale)
        return (used + (w - w.detach())).view(self.shape)  # exactly the levels

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        _, scale = self._threshold_and_scale()
        return torch.stack([-scale, torch.zeros_like(scale), scale])[None]

    def level_numbers(self) -> int:
        return 1


_plain = partial(BasisActivation, weighting="equal")

METHODS = (
    Method("ttq", TTQWeight, _plain, w_bits=(2,)),
    Method("twn", TWNWeight, _plain, w_bits=(2,)),
)
