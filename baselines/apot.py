"""APoT (Li, Dong, Wang 2020, arXiv:1909.13144): levels are sums of powers of two, up to a clip."""

from itertools import product

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation, quantize_pieces, with_ends
from lowbit_core.quantizers.range_search import best_clip
from lowbit_core.quantizers.ste_mask import rectified

# By bits: a level is a sum of at most one number of each row, divided by the largest sum. As in the
# authors' code; one bit is ours.
ADDENDS = {
    1: ((1.0,),),
    2: ((1 / 2, 1 / 4, 1 / 8),),
    3: ((1 / 2, 1 / 4, 1 / 16), (1 / 8,)),
    4: ((1 / 2, 1 / 8, 1 / 32), (1 / 4, 1 / 16, 1 / 64)),
}
SMALLEST = 1e-5  # of alpha and of the standard deviation: both divide


def unit_levels(bits: int, signed: bool) -> Tensor:
    """The levels for alpha = 1, rising: 2^bits from 0 to 1, or 2^bits - 1 from -1 to 1 if `signed`.

    A signed level has a sign and `bits - 1` bits of magnitude; with one bit it is -1 or +1 (ours).
    Eight bits are a uniform grid (ours): the authors define none.
    """
    if signed and bits == 1:
        return torch.tensor([-1.0, 1.0])
    if signed:
        magnitudes = unit_levels(bits - 1, signed=False)
        return torch.cat([-magnitudes[1:].flip(0), magnitudes])
    if bits not in ADDENDS:
        return torch.linspace(0, 1, 2**bits)
    sums = sorted(sum(terms) for terms in product(*((0.0, *row) for row in ADDENDS[bits])))
    return torch.tensor(sums) / sums[-1]


class ClippedUnits(nn.Module):
    """Q(u) = alpha P(clip(u / alpha)), where P is the nearest of `units`, whose last is 1.

    dQ/dalpha is P - u / alpha inside the clip and the sign of u outside. dQ/du is 1 inside, and
    outside too unless `clips_gradient`.
    """

    def __init__(self, units: Tensor, signed: bool, clips_gradient: bool = True) -> None:
        super().__init__()
        middles, p, inside = with_ends(units, signed)
        slope = inside if clips_gradient else torch.ones_like(inside)
        for name, table in (("p", p), ("middles", middles), ("inside", inside), ("slope", slope)):
            self.register_buffer(name, table, persistent=False)

    def pieces(self, alpha: Tensor) -> Pieces:
        clip = alpha.detach()
        edges, levels = clip * self.middles, clip * self.p
        gain = alpha * (self.inside / -clip)
        return Pieces(edges, levels, offset=alpha * self.p, gain=gain, slope=self.slope)

    def pieces_of_normalised(self, alpha: Tensor, deviation: Tensor) -> Pieces:
        """The pieces of y = d Q(x / d): dy/dalpha is d dQ/dalpha; dy/dd is Q - dQ/du x / d."""
        d, pieces = deviation.detach(), self.pieces(alpha)
        return pieces._replace(
            edges=d * pieces.edges,
            levels=d * pieces.levels,
            offset=deviation * pieces.offset,
            gain=pieces.gain - deviation * (self.slope / d),
        )


class APoTWeight(WeightQuantizer):
    """A shadow weight, normalised over its layer, then clipped at alpha and quantized.

    Up to two bits the gradient passes outside the clip too (the authors' calibrated gradient).
    """

    GROUPS = {"weight": "weights", "alpha": "levels"}
    GRANULARITY = "per_layer"
    INIT = "least squared error on the pretrained weight"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        units = unit_levels(bits, signed=True).to(weight.device, weight.dtype)
        self.register_buffer("units", units, persistent=False)
        self.grid = ClippedUnits(units, signed=True, clips_gradient=bits > 2)
        w = self.latent().detach() / self._deviation().detach()

        def quantized(alpha: Tensor) -> Tensor:
            return quantize_pieces(w, self.grid.pieces(alpha), signed=True)[0]

        self.alpha = nn.Parameter(best_clip(w, quantized))

    def _clip(self) -> Tensor:
        return self.alpha.abs().clamp_min(SMALLEST)

    def _deviation(self) -> Tensor:
        correction = min(1, self.weight.numel() - 1)  # none for a layer of one weight
        return self.weight.std(correction=correction).clamp_min(SMALLEST)

    def forward(self) -> Tensor:
        pieces = self.grid.pieces_of_normalised(self._clip(), self._deviation())
        return quantize_pieces(self.latent(), pieces, signed=True)[0].view(self.shape)

    def latent(self) -> Tensor:
        return self.weight - self.weight.mean()

    def levels(self) -> Tensor:
        return (self._deviation() * (self._clip() * self.units))[None]

    def level_numbers(self) -> int:
        return 1


class APoTActivation(PiecewiseActivation):
    """Clips to [0, alpha] ([-alpha, alpha] when signed: our extension), then as the weights.

    But the gradient of x is zero outside the clip at every bit-width. alpha starts at the clip of
    least squared error on the first batch.
    """

    GROUPS = {"alpha": "clip"}

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(8.0))
        self.register_buffer("units", unit_levels(bits, signed), persistent=False)
        self.grid = ClippedUnits(self.units, signed)

    def _clip(self) -> Tensor:
        return self.alpha.abs().clamp_min(SMALLEST)

    def pieces(self) -> Pieces:
        return self.grid.pieces(self._clip())

    def levels(self) -> Tensor:
        return self._clip() * self.units

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        x = rectified(x.float(), self.signed, self.ceiling)

        def quantized(alpha: Tensor) -> Tensor:
            return quantize_pieces(x, self.grid.pieces(alpha), self.signed)[0]

        self.alpha.copy_(best_clip(x, quantized))


METHODS = (Method("apot", APoTWeight, APoTActivation),)
