"""Run a pure tensor function as one fused kernel, or as written (eager) when asked to.

The eager function is the readable reference; `torch.compile` makes one pass of it. Functions are
compiled with dynamic shapes, so one kernel serves all layers; small integers (levels) specialise.
"""

import functools
import shutil
import sys
from collections.abc import Callable

import torch

# Everything between the input and its last sum stays in registers: by default the compiler writes
# long expressions to memory, ten times slower than computing them in each sum that needs them.
IN_REGISTERS = {"realize_opcount_threshold": 10_000, "realize_reads_threshold": 10_000}

_compiling = False


def set_compile(enabled: bool) -> bool:
    """Switch compilation of all fused functions on or off; returns what is in force.

    Falls back to eager, and says so on stderr, where no C++ compiler is found.
    """
    global _compiling
    _compiling = enabled and compiler_found()
    if enabled and not _compiling:
        print("warning: no C++ compiler found: quantizers run uncompiled", file=sys.stderr)
    return _compiling


@functools.cache
def compiler_found() -> bool:
    """True where `torch.compile` can make kernels: a C++ compiler, or a GPU (Triton)."""
    return torch.cuda.is_available() or any(map(shutil.which, ("g++", "clang++", "c++")))


def _detached(value: object) -> object:
    """Gradients are written by hand; a tensor that asks for them would compile a second kernel."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def fused(function: Callable | None = None, *, options: dict | None = None) -> Callable:
    """Decorator: compile `function` on its first call after `set_compile(True)`.

    `options` are the compiler's. Inside a model that is compiled as a whole the function is traced
    with the rest.
    """
    if function is None:
        return functools.partial(fused, options=options)

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
    def call(*arguments, **named):
        if _compiling and not torch.compiler.is_compiling():
            named = {key: _detached(value) for key, value in named.items()}
            return compiled()(*map(_detached, arguments), **named)
        return function(*arguments, **named)

    call.eager = function
    return call
