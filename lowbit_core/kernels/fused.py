"""Runs a pure tensor function in one pass over memory, or as it is written (eager).

The eager function is the readable reference. On a GPU, and inside a model that is compiled as a
whole, `torch.compile` makes one pass of it, with dynamic shapes, so that one kernel serves all
layers. On the processor a function may name a C++ kernel (bindings.py) that replaces it.
"""

import functools
import sys
from collections.abc import Callable

import torch

from lowbit_core.kernels import bindings, build

# torch.compile's options to keep all intermediate results in registers. By default it writes long
# expressions to memory, which is ten times slower than computing them anew for each sum.
IN_REGISTERS = {"realize_opcount_threshold": 10_000, "realize_reads_threshold": 10_000}

_compiling = False


def set_compile(enabled: bool) -> bool:
    """Switch the one-pass kernels of all fused functions on or off; returns whether they are on.

    Where there is no C++ compiler they stay off, with a warning on stderr.
    """
    global _compiling
    _compiling = enabled and compiler_found()
    if enabled and not _compiling:
        print("warning: no C++ compiler found: quantizers run uncompiled", file=sys.stderr)
    return _compiling


def compiler_found() -> bool:
    """True where kernels can be built: by a C++ compiler, or for a GPU (by Triton)."""
    return torch.cuda.is_available() or (
        build.compiler() is not None and build.library() is not None
    )


def _detached(value: object) -> object:
    """The value without autograd, for which torch.compile would build a second kernel in vain."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def fused(
    function: Callable | None = None, *, cpu: Callable | None = None, options: dict | None = None
) -> Callable:
    """Decorator: run `function` as one kernel after `set_compile(True)`.

    cpu: a kernel with the same arguments and results, called on the processor for tensors of the
    types that it takes (bindings.usable); others there run `function` as it is written. On a GPU,
    or without `cpu`, `function` is compiled on its first call, with torch.compile's `options`.
    `eager` of the result is `function` itself.
    """
    if function is None:
        return functools.partial(fused, cpu=cpu, options=options)

    @functools.cache
    def compiled() -> Callable:
        import torch._inductor.config  # slow: only where it is needed

        # Trust the processor's list of features: testing them takes 1.5 s in each process.
        torch._inductor.config.cpp.vec_isa_ok = True
        torch._dynamo.config.recompile_limit = 64  # one entry per bit-width and layout
        # Otherwise every layer's parameter shape would compile a kernel of its own.
        torch._dynamo.config.force_parameter_static_shapes = False
        return torch.compile(function, dynamic=True, fullgraph=True, options=options)

    @functools.wraps(function)
    def call(*arguments):
        if not _compiling or torch.compiler.is_compiling():
            return function(*arguments)
        if cpu is None or arguments[0].device.type != "cpu":
            return compiled()(*map(_detached, arguments))
        return (cpu if bindings.usable(cpu, *arguments) else function)(*arguments)

    call.eager = function  # type: ignore[attr-defined]
    return call
