"""PACT (Choi et al. 2018, arXiv:1805.06085): a learned clipping level; DoReFa's weights."""

import torch
from torch import Tensor, nn

from baselines.dorefa import DoReFaWeight
from lowbit_core.quantizers.interface import Method
from lowbit_core.quantizers.range_search import best_clip
from lowbit_core.quantizers.ste_mask import rectified
from lowbit_core.quantizers.uniform import UniformActivation, clip_round


class PACTActivation(UniformActivation):
    """Clip to [0, alpha] ([-alpha, alpha] when signed: our extension), round to 2^bits levels.

    alpha is learned: its gradient is 1 above the clip and 0 inside (eq. 3). L2 decay, a setting of
    the recipe's `clip` group, pulls it down. It starts at the clip of least squared quantization
    error on the first batch, where the paper, which trains from scratch, starts at 10.
    """

    GROUPS = {"alpha": "clip"}

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(10.0))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def _bottom(self) -> Tensor:
        return -self.alpha if self.signed else self.zero

    def _share(self) -> float:
        """The distance of neighbouring levels as a share of alpha."""
        return (2 if self.signed else 1) / (2**self.bits - 1)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        x = rectified(x.float(), self.signed, self.ceiling)

        def quantized(top: Tensor) -> Tensor:
            bottom = -top if self.signed else self.zero
            return clip_round(x, top, bottom, top * self._share(), self.signed, self.ceiling)

        self.alpha.copy_(best_clip(x, quantized))

    def levels(self) -> Tensor:
        unit = torch.linspace(0, 1, 2**self.bits, device=self.alpha.device)
        return self._bottom() + unit * (self.alpha - self._bottom())

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.alpha, self._bottom(), self.alpha.detach() * self._share()


METHODS = (Method("pact", DoReFaWeight, PACTActivation),)
