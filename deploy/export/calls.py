"""What a network calls in its forward pass, recorded by torch.fx.

torch.fx runs the forward function once with symbols in the place of tensors. The calls are then run
with images, which gives the shape of every result and shows whether they are all that happens.
"""

import torch
from torch import Tensor, fx, nn

from lowbit_core.conversion.layers import QuantLayer
from lowbit_core.runtime.errors import InputError

TOLERANCE = 1e-5  # of the scores by the recorded calls, relative to the largest score
_LAYERS = (nn.Conv2d.forward, nn.Linear.forward)


def record(model: nn.Module, images: Tensor) -> fx.Graph:
    """The calls of a network in evaluation mode.

    node.meta["shape"] is the shape of a tensor, and None for anything else. Raises InputError where
    the forward pass cannot be recorded.
    """
    calls = _Tracer().trace(model)
    shapes = _Shapes(fx.GraphModule(model, calls))
    with torch.no_grad():
        expected, found = model(images.clone()), shapes.run(images.clone())
    if not isinstance(expected, Tensor):
        name, kind = type(model).__name__, type(expected).__name__
        raise InputError(f"{name} returns a {kind}: a file holds networks that return one tensor")
    limit = TOLERANCE * float(expected.abs().max())
    if not torch.allclose(expected, found, rtol=0, atol=limit, equal_nan=True):
        raise InputError(
            f"the forward of {type(model).__name__} does more than torch.fx can record: "
            "the recorded calls give other scores"
        )
    return calls


def place(node: fx.Node, model: nn.Module) -> str:
    """Where a call stands, for messages: the layer, or the module in whose forward it is."""
    if node.op == "call_module":
        return f"layer {node.target}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return f"the forward of {type(model).__name__}"
    path, kind = stack[-1]
    return f"module {path} ({getattr(kind, '__name__', kind)})"


class _Tracer(fx.Tracer):
    def trace(self, root, concrete_args=None):
        try:
            return super().trace(root, concrete_args)
        except InputError:
            raise
        except Exception as error:  # the forward functions are anyone's code
            raise _unrecorded(f"the forward of {type(root).__name__}", error) from error

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layer = isinstance(module, QuantLayer) or type(module).forward in _LAYERS
        return layer or super().is_leaf_module(module, name)

    def call_module(self, m, forward, args, kwargs):
        where = f"module {self.path_of_module(m)} ({type(m).__name__})"
        if self.is_leaf_module(m, "") and (m._forward_hooks or m._forward_pre_hooks):
            raise InputError(f"{where} has hooks, which a file cannot hold: remove them")
        try:
            return super().call_module(m, forward, args, kwargs)
        except InputError:
            raise
        except Exception as error:
            raise _unrecorded(where, error) from error


def _unrecorded(where: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0]
    return InputError(f"{where}: torch.fx cannot record what it does ({reason})")


class _Shapes(fx.Interpreter):
    """Runs the calls and notes the shapes of their results."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        n.meta["pair"] = isinstance(result, tuple) and isinstance(result[0], Tensor)
        return result
