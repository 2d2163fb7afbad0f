"""The paper's method (direct weights, channel-aware activations) and its ablations."""

from functools import partial

from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.direct import DirectWeight, IndirectWeight, SignWeight
from lowbit_core.quantizers.interface import Method

_plain = partial(BasisActivation, weighting="equal")
_aware = partial(BasisActivation, weighting="inverse_variance")
_median = partial(BasisActivation, weighting="median")

METHODS = (
    Method("direct", DirectWeight, _aware, measures_channels=True),
    Method("direct_plain", DirectWeight, _plain),
    Method("direct_median", DirectWeight, _median, ablation=True),
    Method("direct_sign", SignWeight, _aware, ablation=True),
    Method("indirect", IndirectWeight, _aware, ablation=True),
)
