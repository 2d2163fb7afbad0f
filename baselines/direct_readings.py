"""Two more readings of the paper's "direct" update, which are no straight-through estimator.

docs/method.md shows why `direct` is one at one bit, and which readings that does not cover.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lowbit_core.quantizers.basis import all_levels, fit_rows, nearest_level, ordered
from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.direct import DirectWeight, direct_gradient, direct_weight
from lowbit_core.quantizers.interface import Method, WeightQuantizer, update_buffer

_aware = partial(BasisActivation, weighting="inverse_variance")


def moved(q: Tensor, m: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The next codes and pushes: a code q (O, N) moves one level where its push m is 1 or more.

    A move clears the push, unless it ends at an outer code: so one bit is Bop, which clears none. A
    push that is not a number makes its code one, too.
    """
    step = (m >= 1).to(q.dtype) - (m <= -1).to(q.dtype)
    top = 2**bits - 1
    new = (q + step).clamp(0, top) + 0.0 * m
    inside = (new > 0) & (new < top)
    return new, torch.where((new != q) & inside, 0.0, m)


class _Flip(torch.autograd.Function):
    """(The weight, its ordered basis) of codes q; the gradient of q goes to the pushes m."""

    @staticmethod
    def forward(ctx, m, q, v):
        w, v = direct_weight(q, v)
        ctx.save_for_backward(q, v)
        ctx.mark_non_differentiable(v)
        return w, v

    @staticmethod
    def backward(ctx, g, _):
        dm, dv = direct_gradient(g.contiguous(), *ctx.saved_tensors)
        return dm, None, dv


class FlipWeight(WeightQuantizer):
    """Codes without a latent weight, after Bop (Helwegen et al. 2019, arXiv:1906.02107).

    The state of a weight is a whole number q, its code. Its gradient g / d_o, as in `DirectWeight`,
    moves a push m by SGD, and the next forward pass in training moves q by one level where |m| is 1
    or more. With weight decay c in the group `codes`, m is 1/c times a moving average of the
    negative gradient, so c is the threshold of the average, and lr x lr_scale x c its rate.
    Without decay nothing is forgotten. The levels are learned as in `DirectWeight`.
    """

    GROUPS = {"m": "codes", "v": "levels"}
    INIT = "alternating least squares"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight, bits)
        rows = weight.detach().flatten(1)
        basis = fit_rows(rows, bits)
        chosen = nearest_level(rows, list(basis.split(1, dim=1)), signed=True)[1]
        self.v = nn.Parameter(basis)
        self.m = nn.Parameter(torch.zeros_like(rows))
        codes = [bit * 2.0**k for k, bit in enumerate(chosen)]
        self.register_buffer("q", torch.stack(codes).sum(0))  # float, so that averages stay exact

    def forward(self) -> Tensor:
        if self.training:
            with torch.no_grad():
                q, m = moved(self.q, self.m, self.bits)
                self.m.copy_(m)
            update_buffer(self, "q", q)
        w, v = _Flip.apply(self.m, self.q, self.v)
        if self.training:
            with torch.no_grad():
                self.v.copy_(v)
        return w.view(self.shape)

    def latent(self) -> Tensor:
        """The used weight: there is no latent one."""
        return direct_weight(self.q, self.v)[0]

    def levels(self) -> Tensor:
        return all_levels(ordered(self.v), signed=True)


class LayerDirectWeight(DirectWeight):
    """`DirectWeight` with one basis for the whole layer: all its weights are one row."""

    GRANULARITY = "per_layer"

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(weight.reshape(1, -1), bits)
        self.shape = weight.shape

    def latent(self) -> Tensor:
        return super().latent().view(self.shape[0], -1)


METHODS = (
    Method("direct_flip", FlipWeight, _aware, ablation=True),
    Method("direct_layer", LayerDirectWeight, _aware, ablation=True),
)
