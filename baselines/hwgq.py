"""HWGQ (Cai et al. 2017, arXiv:1702.00953): activation levels fixed for a half-Gaussian, with the
binary weights of XNOR-Net (Rastegari et al. 2016, arXiv:1603.05279) or LQ-Nets' weights.
"""

import torch
from torch import Tensor, nn

from baselines.lq_nets import LQWeight
from lowbit_core.quantizers.interface import Method, WeightQuantizer
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation
from lowbit_core.quantizers.ste_mask import rectified

# The distance of neighbouring levels, by bits, of least squared error on a normal distribution of
# variance 1, from the authors (github.com/zhaoweicai/EdMIPS, models/quant_module.py). Eight bits
# are ours, by the same rule.
HALF_STEPS = {1: 0.799, 2: 0.538, 3: 0.3217, 4: 0.185, 8: 0.01648}  # positive values to 1, 2, ..
FULL_STEPS = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.336, 8: 0.03076}  # all values to +-1/2, +-3/2, ..
SMALLEST = 1e-6  # standard deviation of a layer's input


class BinaryWeight(WeightQuantizer):
    """sign(w) times the mean |w| of each output channel, identity gradient; sign(0) is +1 (BWN)."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())

    def _scale(self) -> Tensor:
        return self.weight.detach().abs().mean(1, keepdim=True)

    def forward(self) -> Tensor:
        w, scale = self.weight, self._scale()
        return (torch.where(w >= 0, scale, -scale) + (w - w.detach())).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        scale = self._scale()
        return torch.cat([-scale, scale], 1)


def hwgq_weight(weight: Tensor, bits: int) -> WeightQuantizer:
    """Binary weights as in HWGQ; with more bits LQ-Nets' weights (CMT-KD trains such pairs)."""
    return BinaryWeight(weight, bits) if bits == 1 else LQWeight(weight, bits)


class HWGQActivation(PiecewiseActivation):
    """Uniform levels for a Gaussian of which the ReLU keeps the positive half; none is learned.

    Only x <= 0 becomes 0: every x > 0 takes the nearest of the positive levels. The gradient is 1
    up to the highest level and 0 above it. `deviation` is that of the Gaussian which has the power
    of the first batch; the source has deviation 1, from a batch norm without scale and shift.
    Signed inputs (ours): levels at +-1/2, +-3/2, .. steps, gradient 1 between the outermost.
    """

    INIT = "power of the first batch"

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        count = 2**bits
        if signed:
            units = FULL_STEPS[bits] * (torch.arange(count) - (count - 1) / 2)
        else:
            units = HALF_STEPS[bits] * torch.arange(count)
        middles = (units[1:] + units[:-1]) / 2
        if not signed:
            middles[0] = 0.0
        below = units[:1] if signed else units[:0]  # the gradient ends at the outermost levels
        self.register_buffer("edges", torch.cat([below, middles, units[-1:]]), persistent=False)
        self.register_buffer("outputs", torch.cat([below, units, units[-1:]]), persistent=False)
        slope = torch.ones(len(self.outputs))
        slope[-1:], slope[: len(below)] = 0, 0
        self.register_buffer("slope", slope, persistent=False)
        self.register_buffer("units", units, persistent=False)
        self.register_buffer("deviation", torch.tensor(1.0))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        power = rectified(x.float(), self.signed, self.ceiling).square().mean()
        whole = power if self.signed else 2 * power
        self.deviation.copy_(whole.sqrt().clamp_min(SMALLEST))

    def levels(self) -> Tensor:
        return self.deviation * self.units

    def pieces(self) -> Pieces:
        levels = self.deviation * self.outputs
        return Pieces(self.deviation * self.edges, levels, levels, None, self.slope)


METHODS = (Method("hwgq", hwgq_weight, HWGQActivation),)
