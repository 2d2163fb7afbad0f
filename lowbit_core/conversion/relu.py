"""ReLUs that the quantizer of the next layer does in its own pass over memory."""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.conversion.layers import QuantLayer


def after_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(relu(x)); the layer's quantizer does the ReLU where it can. May overwrite x."""
    if isinstance(layer, QuantLayer) and layer.does_relu:
        return layer(x)
    return layer(functional.relu(x, inplace=True))


def with_relu(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(relu(x), layer(relu(x))), where relu(x) is also used elsewhere. May overwrite x."""
    if isinstance(layer, QuantLayer) and layer.does_relu:
        return layer(x, also_relu=True)
    x = functional.relu(x, inplace=True)
    return x, layer(x)


# Modules that give the same result before a ReLU as after it.
_COMMUTES_WITH_RELU = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity)


def hand_over_relus(called_once: set[nn.Module]) -> None:
    """Remove, in place, each ReLU that the quantizer of the next layer in the chain does itself.

    A chain is an outermost nn.Sequential, with any nested ones: each of its modules is read by the
    next one only, so nothing else misses the ReLU. That holds where a pass of the network calls the
    nn.Sequential and the ReLU, each once, and no hook reads what they return.

    called_once: the modules of the full-precision network that one pass calls once.
    """
    plain = {m for m in called_once if not (m._forward_hooks or m._forward_pre_hooks)}
    chains = {m for m in plain if type(m).forward is nn.Sequential.forward}
    nested = {child for chain in chains for child in chain.children()}
    for chain in chains - nested:
        waiting = None  # (parent, name, ceiling) of the last ReLU, while it may still be removed
        for parent, name, module in _modules(chain, chains):
            if isinstance(module, nn.ReLU | nn.ReLU6) and module in plain:
                waiting = (parent, name, 6.0 if isinstance(module, nn.ReLU6) else math.inf)
            elif isinstance(module, QuantLayer) and module.does_relu and waiting:
                parent, name, module.activation_quantizer.ceiling = waiting  # type: ignore[union-attr]
                setattr(parent, name, nn.Identity())
                waiting = None
            elif not isinstance(module, _COMMUTES_WITH_RELU) or module not in plain:
                waiting = None


def _modules(
    chain: nn.Module, chains: set[nn.Module]
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, module) of the chain in forward order."""
    for name, module in list(chain._modules.items()):
        if module in chains:
            yield from _modules(module, chains)
        elif module is not None:
            yield chain, name, module
