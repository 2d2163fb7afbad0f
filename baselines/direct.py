"""The paper's method (direct weights, channel-aware activations) and its ablations."""

from functools import partial

from lowbit_core.quantizers.basis_activation import BasisActivation
from lowbit_core.quantizers.direct import DirectWeight, IndirectWeight, SignWeight
from lowbit_core.quantizers.interface import Method

_plain = partial(BasisActivation, weighting="equal")
_aware = partial(BasisActivation, weighting="inverse_variance")
_median = partial(BasisActivation, weighting="median")

METHODS = (
    Method(
        "direct",
        "Direct + channel-aware",
        "#D55E00",
        "*",
        DirectWeight,
        _aware,
        measures_channels=True,
    ),
    Method("direct_plain", "Direct + plain activations", "#CC79A7", "P", DirectWeight, _plain),
    Method("direct_median", "Direct + median basis", "#B8A000", "X", DirectWeight, _median, True),
    Method("direct_sign", "Direct, sign codes", "#7A5195", "h", SignWeight, _aware, True),
    Method("indirect", "Indirect + channel-aware", "#666666", "d", IndirectWeight, _aware, True),
)
