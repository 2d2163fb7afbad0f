"""The ReLU before a quantized layer, which the layer's quantizer does in its own pass."""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from lowbit_core.conversion.layers import QuantLayer


def after_relu(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(relu(x)), in one pass over x where the layer's quantizer does the ReLU. May change x."""
    if isinstance(layer, QuantLayer) and layer.does_relu:
        return layer(x)
    return layer(functional.relu(x, inplace=True))


def with_relu(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """(relu(x), layer(relu(x))), for a layer beside which others read the same ReLU. May change x."""
    if isinstance(layer, QuantLayer) and layer.does_relu:
        return layer(x, fork=True)
    x = functional.relu(x, inplace=True)
    return x, layer(x)


# A max pool and a reshape give the same before a ReLU as after it.
_LETS_RELU_THROUGH = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity)


def hand_over_relus(model: nn.Module) -> None:
    """Take out, in place, each ReLU of a chain that the quantizer of the next layer does itself.

    A chain is an nn.Sequential, with those in it: what stands in it is read by the next alone.
    """
    inner = {id(child) for m in model.modules() if isinstance(m, nn.Sequential) for child in m}
    for chain in model.modules():
        if not isinstance(chain, nn.Sequential) or id(chain) in inner:
            continue
        waiting = None  # the last ReLU: where it stands
        for parent, name, module in _links(chain):
            if isinstance(module, nn.ReLU | nn.ReLU6):
                waiting = (parent, name, 6.0 if isinstance(module, nn.ReLU6) else math.inf)
            elif isinstance(module, QuantLayer) and module.does_relu and waiting:
                parent, name, module.activation_quantizer.ceiling = waiting
                parent[int(name)] = nn.Identity()
                waiting = None
            elif not isinstance(module, _LETS_RELU_THROUGH):
                waiting = None


def _links(chain: nn.Sequential) -> Iterator[tuple[nn.Sequential, str, nn.Module]]:
    for name, module in list(chain.named_children()):
        if isinstance(module, nn.Sequential):
            yield from _links(module)
        else:
            yield chain, name, module
