"""Ternary weights: TTQ (Zhu et al. 2017, arXiv:1612.01064) and TWN (Li et al. 2016,
arXiv:1605.04711), with the activations of LQ-Nets. They use three of the four levels of two bits.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, quantize_pieces

TTQ_THRESHOLD = 0.05  # as a share of the layer's max|w|
TWN_THRESHOLD = 0.7  # as a share of the layer's mean|w|


def ternary(
    threshold: Tensor, positive: Tensor, negative: Tensor, offset: Tensor, slope: Tensor
) -> Pieces:
    """`positive` where w is above the threshold, -`negative` where it is below minus it, else 0.

    offset, slope (3,), from the lowest level up: as in Pieces.
    """
    lowest = torch.full_like(threshold, -torch.inf)
    below = torch.nextafter(-threshold, lowest)  # so that -threshold itself becomes 0
    levels = torch.stack([-negative, torch.zeros_like(positive), positive])
    return Pieces(torch.stack([below, threshold]), levels, offset, None, slope)


def mean_above(magnitude: Tensor, threshold: Tensor) -> Tensor:
    """The mean of the magnitudes |w| that are above the threshold; 0 if none is."""
    kept = magnitude.where(magnitude > threshold, 0.0)
    return kept.sum() / kept.count_nonzero().clamp_min(1)


@fused(cpu=kernels.threshold_and_mean_above)
def threshold_and_mean_above(w: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """(`share` of the mean |w|, the mean of the magnitudes above it) for w of any shape."""
    magnitude = w.abs()
    threshold = share * magnitude.mean()
    return threshold, mean_above(magnitude, threshold)


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
        magnitude = self.weight.detach().abs()
        self.register_buffer("scale", mean_above(magnitude, TTQ_THRESHOLD * magnitude.max()))

    def pieces(self) -> Pieces:
        """dL/dw is g times `positive`, 1 or `negative`, by the zone of w: `scale` is w's unit.

        dL/dpositive is scale times the sum of g over its zone; dL/dnegative minus that of its own.
        """
        positive, negative = self.positive.abs(), self.negative.abs()
        lowest, highest = self.weight.detach().aminmax()
        threshold = TTQ_THRESHOLD * torch.maximum(-lowest, highest)  # max|w|
        top, bottom, one = self.scale * positive, self.scale * negative, torch.ones_like(positive)
        offset = torch.stack([-bottom, 0 * one, top])
        return ternary(threshold, top, bottom, offset, torch.stack([negative, one, positive]))

    def forward(self) -> Tensor:
        return quantize_pieces(self.weight, self.pieces(), signed=True)[0].view(self.shape)

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

    def forward(self) -> Tensor:
        threshold, scale = threshold_and_mean_above(self.weight.detach(), TWN_THRESHOLD)
        ones = torch.ones(3, dtype=scale.dtype, device=scale.device)
        pieces = ternary(threshold, scale, scale, offset=0 * ones, slope=ones)
        return quantize_pieces(self.weight, pieces, signed=True)[0].view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        _, scale = threshold_and_mean_above(self.weight.detach(), TWN_THRESHOLD)
        return torch.stack([-scale, torch.zeros_like(scale), scale])[None]

    def level_numbers(self) -> int:
        return 1


_plain = partial(BasisActivation, weighting="equal")

METHODS = (
    Method("ttq", TTQWeight, _plain, w_bits=(2,)),
    Method("twn", TWNWeight, _plain, w_bits=(2,)),
)
