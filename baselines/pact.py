"""PACT (Choi et al. 2018, arXiv:1805.06085): a learned clipping level; DoReFa's weights."""

import torch
from torch import Tensor, nn

from baselines.dorefa import DoReFaWeight
from lowbit_core.quantizers.interface import Method
from lowbit_core.quantizers.ste_mask import rectified
from lowbit_core.quantizers.uniform import UniformActivation, clip_round

_CANDIDATES = 40  # clip levels tried on the first batch


class PACTActivation(UniformActivation):
    """Clip to [0, alpha] ([-alpha, alpha] when signed: our extension), round to 2^bits levels.

    alpha is learned: gradient 1 above the clip, 0 inside (eq. 3); it is pulled down by L2, a
    setting of the recipe's `clip` group. It starts at the clip that minimises the squared
    quantization error of the first batch (the paper starts from scratch, at 10).
    """

    GROUPS = {"alpha": "clip"}

    def __init__(self, bits: int, signed: bool) -> None:
        super().__init__(bits, signed)
        self.alpha = nn.Parameter(torch.tensor(10.0))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def _bottom(self) -> Tensor:
        return -self.alpha if self.signed else self.zero

    def _step(self) -> Tensor:
        return self.alpha.detach() * ((2 if self.signed else 1) / (2**self.bits - 1))

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        x = rectified(x.float(), self.signed, self.ceiling)
        tops = x.abs().max().clamp_min(1e-3) * torch.linspace(
            1 / _CANDIDATES, 1, _CANDIDATES, device=x.device
        )
        share = (2 if self.signed else 1) / (2**self.bits - 1)
        errors = [(self._rounded(x, top, top * share) - x).square().mean() for top in tops]
        self.alpha.copy_(tops[torch.stack(errors).argmin()])

    def _rounded(self, x: Tensor, top: Tensor, step: Tensor) -> Tensor:
        bottom = -top if self.signed else self.zero
        return clip_round(x, top, bottom, step, self.signed, self.ceiling)

    def levels(self) -> Tensor:
        unit = torch.linspace(0, 1, 2**self.bits, device=self.alpha.device)
        return self._bottom() + unit * (self.alpha - self._bottom())

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.alpha, self._bottom(), self._step()


METHODS = (Method("pact", DoReFaWeight, PACTActivation),)
