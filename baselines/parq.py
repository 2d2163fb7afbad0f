"""PARQ (Jin et al. 2025, arXiv:2503.15748): the used weight moves gradually onto its nearest level.

Weights alone, as in the source; activations as in LQ-Nets. Followed is the authors' code
(torchao.prototype.parq), since it fixes what the paper leaves open.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.basis import all_levels
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.interface import Method, WeightQuantizer, update_buffer

STEEPNESS = 10.0  # of the sigmoid of rho; the default of the source
END = 0.75  # share of training after which weights are levels: epoch 150 of 200 in the source
PERIOD = 10  # steps from one fit of the levels to the next


def greedy_basis(w: Tensor, bits: int) -> Tensor:
    """The basis (O, K) of the rows of w (O, N), by greedy least-squares binarization (LSBQ).

    v_1 = mean|r| and r <- r - v_1 sign(r) with r = w at first, and so on for v_2 to v_K;
    sign(0) = +1. The basis need not be ordered.
    """
    rest, found = w, []
    for _ in range(bits):
        step = rest.abs().mean(1, keepdim=True)
        rest = rest - torch.where(rest >= 0, step, -step)
        found.append(step)
    return torch.cat(found, 1)


def inverse_slope(progress: Tensor) -> Tensor:
    """rho: falls from 1 to 0, by a sigmoid scaled to these ends, while progress rises to END."""
    share = (progress / END).clamp(max=1.0)
    ends = torch.tensor([0.0, 1.0], device=progress.device, dtype=progress.dtype)
    first, last = torch.sigmoid(STEEPNESS * (0.5 - ends)).unbind()
    return (torch.sigmoid(STEEPNESS * (0.5 - share)) - last) / (first - last)


def nearest(w: Tensor, levels: Tensor) -> Tensor:
    """The levels (O, L) nearest to w (O, N), row by row; half-way takes the lower one."""
    middles = (levels[:, 1:] + levels[:, :-1]) / 2
    return levels.gather(1, torch.searchsorted(middles, w))


@fused(cpu=kernels.relaxed_rows)
def relaxed(w: Tensor, levels: Tensor, rho: Tensor) -> Tensor:
    """The weight that PARQ computes with: w (O, N), drawn to the rising levels (O, L).

    With q- and q+ the levels around w and c their middle: clip(c + (w - c) / rho, q-, q+). An outer
    level where w lies beyond it; the nearest level where rho is 0.
    """
    above = torch.searchsorted(levels, w)
    low = levels.gather(1, (above - 1).clamp_min(0))
    high = levels.gather(1, above.clamp_max(levels.shape[1] - 1))
    middle = (low + high) / 2
    steep = middle + (w - middle) / rho.clamp_min(torch.finfo(w.dtype).tiny)
    return torch.where(rho > 0, steep.clamp(low, high), nearest(w, levels))


def _may_be(flag: Tensor) -> bool:
    """Whether `flag` can be true; it is read only where that is no wait for the device."""
    return torch.compiler.is_compiling() or not flag.is_cpu or bool(flag.numpy())


class PARQWeight(WeightQuantizer):
    """A shadow weight w and levels fitted to it, one set a channel; the gradient to w is identity.

    In training the layer computes with `relaxed(w)`, in evaluation with the nearest level.
    """

    INIT = "greedy least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        self.weight = nn.Parameter(weight.detach().flatten(1).clone())
        self.register_buffer("v", greedy_basis(self.weight.detach(), bits))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("progress", torch.zeros(()), persistent=False)

    def forward(self) -> Tensor:
        w = self.weight.detach()
        if self.training:
            due = self.steps % PERIOD == 0
            if _may_be(due):
                update_buffer(self, "v", torch.where(due, greedy_basis(w, self.bits), self.v))
            update_buffer(self, "steps", self.steps + 1)
            used = relaxed(w, self.levels(), inverse_slope(self.progress))
        else:
            used = nearest(w, self.levels())
        return (used + (self.weight - w)).view(self.shape)

    def latent(self) -> Tensor:
        return self.weight

    def levels(self) -> Tensor:
        return all_levels(self.v, signed=True).sort(1).values


METHODS = (Method("parq", PARQWeight, partial(BasisActivation, weighting="equal")),)
