"""The C++ kernels as Python functions of tensors on the processor.

Activations and their gradients may be float32 or bfloat16; everything else is float32.

Each function has the arguments and results of the quantizers' function that names it in
`@fused(cpu=...)`. torch.compile could also make one pass of a quantizer, but it costs a process
seconds of imports and tracing and each call ten times the dispatch, and it cannot return a value's
level, its ReLU, its STE mask and the fit's sums from one pass (docs/performance.md).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_core.kernels.build import library

WEIGHTINGS = {"equal": 0, "inverse_variance": 1, "median": 2}


def kernel_lanes() -> int | None:
    """The float32 values in a vector of the kernels for activations; None without kernels."""
    kernels = library()
    return None if kernels is None else kernels.lanes()


def _call(name: str, *arguments: object) -> None:
    """Call a kernel with the addresses of tensors; None is a null pointer."""
    getattr(library(), name)(*(x.data_ptr() if isinstance(x, Tensor) else x for x in arguments))


def _typed(x: Tensor) -> tuple[Tensor, bool]:
    """x, and whether its elements are bfloat16."""
    return x, x.dtype is torch.bfloat16


def _dense(x: Tensor) -> Tensor:
    """x itself if it is channels_last or contiguous, else a contiguous copy."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


# -- activations -----------------------------------------------------------------------------


def quantize_and_sum(x, v, signed, ceiling=math.inf, also_relu=False):
    y, mask = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu, bits = torch.empty_like(x) if also_relu else None, len(v)
    sums = torch.empty(2 + bits + bits * (bits + 1) // 2, x.shape[0], x.shape[2])
    _call("quantize_and_sum", *_typed(x), *x.shape, v, bits, signed, ceiling, y, relu, mask, sums)
    return y, relu, mask, sums


def quantize(x, v, signed, ceiling=math.inf):
    x = _dense(x)
    y = torch.empty_like(x)
    _call("quantize", *_typed(x), x.numel(), v, len(v), signed, ceiling, y)
    return y


def update_basis(sums, v, channels, size, weighting, signed):
    new, not_finite = torch.empty_like(v), torch.empty((), dtype=torch.bool)
    shape, kind = (*sums.shape[1:], channels, size), WEIGHTINGS[weighting]
    _call("update_basis", sums, *shape, v, len(v), signed, kind, new, not_finite)
    return new, not_finite


def clip_round(x, *grid):
    x = _dense(x)
    y = torch.empty_like(x)
    _call("clip_round", *_typed(x), x.numel(), *grid, y, None, None, None)
    return y


def clip_round_with_mask(x, top, bottom, step, signed, ceiling, also_relu):
    grid = (top, bottom, step, signed, ceiling)
    y, mask = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu, not_finite = torch.empty_like(x) if also_relu else None, torch.empty((), dtype=torch.bool)
    _call("clip_round", *_typed(x), x.numel(), *grid, y, relu, mask, not_finite)
    return y, relu, mask, not_finite


def apply_ste_mask(g, g_relu, mask):
    to = torch.empty_like(g)
    _call("apply_ste_mask", *_typed(g), g_relu, mask, g.numel(), to, None)
    return to


def apply_ste_mask_and_sum(g, g_relu, mask):
    to, sums = torch.empty_like(g), torch.empty(2)
    _call("apply_ste_mask", *_typed(g), g_relu, mask, g.numel(), to, sums)
    return to, sums[0], sums[1]


# -- weights ---------------------------------------------------------------------------------


def quantize_rows(x, v):
    y = torch.empty_like(x)
    _call("quantize_rows", x, *x.shape, v, v.shape[1], y, None)
    return y


def refit_rows(x, v):
    y, fit = torch.empty_like(x), torch.empty_like(v)
    _call("quantize_rows", x, *x.shape, v, v.shape[1], y, fit)
    return y, fit


def direct_weight(z, v):
    w, v = torch.empty_like(z), v.clone()
    _call("direct_weight", z, *z.shape, v, v.shape[1], w)
    return w, v


def direct_gradient(g, z, v):
    codes, basis = torch.empty_like(z), torch.empty_like(v)
    _call("basis_gradient", g, z, v, *z.shape, v.shape[1], codes, basis)
    return codes, basis


def indirect_weight(w, v):
    v = v.clone()
    _call("order_rows", v, *v.shape)
    return quantize_rows(w, v), v


def indirect_gradient(g, w, v):
    basis = torch.empty_like(v)
    _call("basis_gradient", g, w, v, *w.shape, v.shape[1], None, basis)
    return basis


def dorefa_weight(w, steps):
    u, y = torch.tanh(w), torch.empty_like(w)
    _call("dorefa_weight", u, u.numel(), steps, y)
    return y


def dorefa_gradient(g, w):
    u, to = torch.tanh(w), torch.empty_like(w)
    _call("dorefa_gradient", g, u, u.numel(), to)
    return to


_ON_ACTIVATIONS = (quantize_and_sum, quantize, clip_round, clip_round_with_mask)
_ON_GRADIENTS = (apply_ste_mask, apply_ste_mask_and_sum)


def usable(kernel: Callable, *arguments: object) -> bool:
    """True where `kernel` can be called: the library exists, and the tensors' types are its own."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.dtype is not torch.uint8]
    first, *others = (x.dtype for x in tensors)
    if first is torch.bfloat16:
        legal = torch.bfloat16 if kernel in _ON_GRADIENTS else torch.float32
        fits = kernel in (*_ON_ACTIVATIONS, *_ON_GRADIENTS) and all(t is legal for t in others)
    else:
        fits = all(t is torch.float32 for t in (first, *others))
    return fits and all(x.device.type == "cpu" for x in tensors) and library() is not None
