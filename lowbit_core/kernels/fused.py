"""Run a pure tensor function in one pass, or as written (eager) when asked to.

The eager function is the readable reference. On a GPU, and inside a model that is compiled as a
whole, `torch.compile` makes one pass of it; functions are compiled with dynamic shapes, so one kernel
serves all layers. On the processor a function may name a kernel of our own that stands in for it.
"""

import functools
import sys
from collections.abc import Callable

import torch

from lowbit_core.kernels import bindings, build

# Everything between the input and its last sum stays in registers: by default the compiler writes
# long expressions to memory, ten times slower than computing them in each sum that needs them.
IN_REGISTERS = {"realize_opcount_threshold": 10_000, "realize_reads_threshold": 10_000}

_compiling = False


def set_compile(enabled: bool) -> bool:
    """Switch one-pass kernels of all fused functions on or off; returns what is in force.

    Falls back to eager, and says so on stderr, where no C++ compiler is found.
    """
    global _compiling
    _compiling = enabled and compiler_found()
    if enabled and not _compiling:
        print("warning: no C++ compiler found: quantizers run uncompiled", file=sys.stderr)
    return _compiling


def compiler_found() -> bool:
    """True where kernels can be made: by a C++ compiler, or for a GPU (Triton)."""
    return torch.cuda.is_available() or (
        build.compiler() is not None and build.library() is not None
    )


def _detached(value: object) -> object:
    """Gradients are written by hand; a tensor that asks for them would compile a second kernel."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def fused(
    function: Callable | None = None, *, cpu: Callable | None = None, options: dict | None = None
) -> Callable:
    """Decorator: run `function` as one kernel after `set_compile(True)`.

    `cpu` takes its place for float32 tensors on the processor: same arguments, same results, and
    other tensors there run it as written. Without `cpu`, and on a GPU, it is compiled on its first
    call; `options` are the compiler's.
    """
    if function is None:
        return functools.partial(fused, cpu=cpu, options=options)

    @functools.cache
    def compiled() -> Callable:
        import torch._inductor.config  # slow: only where it is needed

        # What the processor says that it can do is taken on trust: trying it out takes 1.5 s a process.
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
        return (cpu if bindings.usable(*arguments) else function)(*arguments)

    call.eager = function
    return call
