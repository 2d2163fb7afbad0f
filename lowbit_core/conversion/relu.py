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


def hand_over_relus(model: nn.Module) -> None:
    """Remove, in place, each ReLU that the quantizer of the next layer in the chain does itself.

    A chain is an outermost nn.Sequential, with any nested ones: each of its modules is read by the
    next one only, so nothing else misses the ReLU.
    """
    nested = {id(child) for m in model.modules() if isinstance(m, nn.Sequential) for child in m}
    for chain in model.modules():
        if not isinstance(chain, nn.Sequential) or id(chain) in nested:
            continue
        waiting = None  # (parent, name, ceiling) of the last ReLU, while it may still be removed
        for parent, name, module in _modules(chain):
            if isinstance(module, nn.ReLU | nn.ReLU6):
                waiting = (parent, name, 6.0 if isinstance(module, nn.ReLU6) else math.inf)
            elif isinstance(module, QuantLayer) and module.does_relu and waiting:
                parent, name, module.activation_quantizer.ceiling = waiting  # type: ignore[union-attr]
                parent[int(name)] = nn.Identity()
                waiting = None
            elif not isinstance(module, _COMMUTES_WITH_RELU):
                waiting = None


def _modules(chain: nn.Sequential) -> Iterator[tuple[nn.Sequential, str, nn.Module]]:
    """(parent, name, module) of the chain in forward order."""
    for name, module in list(chain.named_children()):
        if isinstance(module, nn.Sequential):
            yield from _modules(module)
        else:
            yield chain, name, module
