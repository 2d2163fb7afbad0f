"""`direct` with activations whose levels learn by the gradient of the task, not by a refit alone.

They ask where accuracy is lost: two-bit activations cost more of it than two-bit weights do. The
gradient of a level is divided by sqrt(N (2^K - 1)), as LSQ divides that of its step size
(arXiv:1902.08153, section 2.2). Levels of weights have a rate of their own, so these are in the
group `clip`.
"""

import torch
from torch import Tensor, nn

from baselines.lsq import LSQActivation
from lowbit_core.parallel.processes import batch_sums
from lowbit_core.quantizers.basis import all_levels, ordered
from lowbit_core.quantizers.basis_activation import BasisActivation, quantize_and_sum, update_basis
from lowbit_core.quantizers.blocks import as_blocks
from lowbit_core.quantizers.direct import DirectWeight
from lowbit_core.quantizers.interface import Method
from lowbit_core.quantizers.piecewise import Pieces, PiecewiseActivation, with_ends

WEIGHTING = "inverse_variance"
PULL = 0.1  # of the way that `direct` goes towards the fit: one hundredth of the whole


class StepActivation(LSQActivation):
    """LSQ's learned step size."""

    GROUPS = {"step": "clip"}


class TaskBasisActivation(PiecewiseActivation):
    """A basis v (K,) that the task's gradient moves and the channel-aware error draws to its fit.

    The straight-through estimator of `BasisActivation`; dy/dv is the derivative of the level in
    use. Before each training step v goes PULL x 0.1 of the way to the channel-aware fit.
    """

    GROUPS = {"v": "clip"}

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.v = nn.Parameter(2.0 ** torch.arange(bits) / 2 ** (bits - 1))
        self.register_buffer("gradient_scale", torch.tensor(1.0))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Start at the basis of `direct`; N is the number of values of one image."""
        start = BasisActivation(self.bits, self.signed, WEIGHTING).to(x.device)
        start.ceiling = self.ceiling
        start.calibrate(x)
        self.v.copy_(start.v)
        self.gradient_scale.copy_(torch.tensor(float(x[0].numel() * (2**self.bits - 1))).rsqrt())

    def levels(self) -> Tensor:
        return all_levels(ordered(self.v), self.signed)

    def pieces(self) -> Pieces:
        """One piece a level; beyond the range no gradient passes."""
        v = ordered(self.v).detach() + (self.v - self.v.detach())  # dy/dv is the code, in ties too
        edges, held, inside = with_ends(all_levels(v, self.signed), self.signed)
        return Pieces(edges, held, self.gradient_scale * held, None, slope=inside)

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if self.training:
            self._draw_to_fit(x)
        return super().forward(x, also_relu)

    @torch.no_grad()
    def _draw_to_fit(self, x: Tensor) -> None:
        v, channels = ordered(self.v), x.shape[1]
        sums = quantize_and_sum(as_blocks(x), v, self.signed, self.ceiling)[3]
        sums, size = batch_sums(sums, x.numel() // channels)
        near, _ = update_basis(sums, v, channels, size, WEIGHTING, self.signed)
        self.v.copy_(v + PULL * (near - v))


METHODS = (
    Method("direct_step", DirectWeight, StepActivation, ablation=True),
    Method("direct_task", DirectWeight, TaskBasisActivation, ablation=True),
)
