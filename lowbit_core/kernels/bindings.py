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
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    getattr(library(), name)(*values)


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


def quantize_in_pieces(x, edges, levels, signed, ceiling):
    x = _dense(x)
    y = torch.empty_like(x)
    table = (edges.contiguous(), levels.contiguous(), len(levels))
    _call("quantize_in_pieces", *_typed(x), x.numel(), *table, signed, ceiling, y, *[None] * 3)
    return y


def quantize_in_pieces_with_codes(x, edges, levels, signed, ceiling, also_relu, keeps_codes=True):
    y, codes = torch.empty_like(x), None
    if keeps_codes:
        codes = torch.empty(x.shape, dtype=torch.uint8)
    relu, not_finite = torch.empty_like(x) if also_relu else None, torch.empty((), dtype=torch.bool)
    table = (edges.contiguous(), levels.contiguous(), len(levels))
    results = (y, relu, codes, not_finite)
    _call("quantize_in_pieces", *_typed(x), x.numel(), *table, signed, ceiling, *results)
    return results


def pieces_gradient(g, g_relu, codes, x, slope, bend, signed, ceiling, edges=None, squares=False):
    to, count = torch.empty_like(g), len(slope)
    sums, with_x = torch.empty(count), None if x is None else torch.empty(count)
    table = (edges, slope.contiguous(), slope.dim(), bend, count)
    results = (to, sums, with_x, torch.empty(count) if squares else None)
    _call(
        "pieces_gradient",
        *_typed(g),
        g_relu,
        codes,
        x,
        g.numel(),
        *table,
        signed,
        ceiling,
        *results,
    )
    return results


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


def relaxed_rows(w, levels, rho):
    w, levels, y = w.contiguous(), levels.contiguous(), torch.empty_like(w)
    _call("relaxed_rows", w, *w.shape, levels, levels.shape[1], rho, y)
    return y


def two_levels(w):
    w, y = w.contiguous(), torch.empty(w.shape)
    beta, alpha = torch.empty(len(w), 1), torch.empty(len(w), 1)
    _call("two_levels", w, *w.shape, y, beta, alpha)
    return y, beta, alpha


def two_levels_gradient(g, w, beta, alpha, t):
    w, to = w.contiguous(), torch.empty(w.shape)
    _call("two_levels_gradient", g, w, beta, alpha, t, *w.shape, to)
    return to


def threshold_and_mean_above(w, share):
    w, threshold, above = w.contiguous(), torch.empty(()), torch.empty(())
    _call("threshold_and_mean_above", w, w.numel(), share, threshold, above)
    return threshold, above


def dorefa_weight(w, steps):
    u, y = torch.tanh(w), torch.empty_like(w)
    _call("dorefa_weight", u, u.numel(), steps, y)
    return y


def dorefa_gradient(g, w):
    u, to = torch.tanh(w), torch.empty_like(w)
    _call("dorefa_gradient", g, u, u.numel(), to)
    return to


# The first arguments of these kernels, so many, may be bfloat16, all of them alike.
_ON_ACTIVATIONS: dict[Callable, int] = {
    **dict.fromkeys((quantize_and_sum, quantize, clip_round, clip_round_with_mask), 1),
    **dict.fromkeys((quantize_in_pieces, quantize_in_pieces_with_codes), 1),
    **dict.fromkeys((apply_ste_mask, apply_ste_mask_and_sum), 3),
    pieces_gradient: 4,
}


def usable(kernel: Callable, *arguments: object) -> bool:
    """True where `kernel` can be called: the library exists, and the tensors' types are its own."""
    activations, values = _ON_ACTIVATIONS.get(kernel, 0), None
    for index, x in enumerate(arguments):  # one cheap loop: called several times a layer and step
        if not isinstance(x, Tensor):
            continue
        if not x.is_cpu:
            return False
        dtype = x.dtype
        if dtype is torch.uint8:
            continue
        if index < activations:
            if dtype is not (values or dtype) or dtype not in (torch.float32, torch.bfloat16):
                return False
            values = dtype
        elif dtype is not torch.float32:
            return False
    return library() is not None
