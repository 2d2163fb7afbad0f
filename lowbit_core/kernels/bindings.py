"""The C++ kernels as Python functions of float32 tensors on the processor.

Each function has the arguments and results of the quantizers' function that names it in
`@fused(cpu=...)`. torch.compile could also make one pass of a quantizer, but it costs a process
seconds of imports and tracing and each call ten times the dispatch, and it cannot return a value's
level, its ReLU, its STE mask and the fit's sums from one pass (docs/performance.md).
"""

import math

import torch
from torch import Tensor

from lowbit_core.kernels.build import library

WEIGHTINGS = {"equal": 0, "inverse_variance": 1, "median": 2}


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def usable(*arguments: object) -> bool:
    """True where the kernels can be called: the library exists, and all tensors are float32 or
    uint8 on the processor."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.dtype is not torch.uint8]
    return (
        all(x.dtype is torch.float32 and x.device.type == "cpu" for x in tensors)
        and library() is not None
    )


# -- activations -----------------------------------------------------------------------------


def quantize_and_sum(x, v, signed, ceiling=math.inf, also_relu=False):
    y, mask = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if also_relu else None
    bits = len(v)
    sums = torch.empty(2 + bits + bits * (bits + 1) // 2, x.shape[0], x.shape[2])
    library().quantize_and_sum(
        _at(x), *x.shape, _at(v), bits, signed, ceiling, _at(y), _at(relu), _at(mask), _at(sums)
    )
    return y, relu, mask, sums


def quantize(x, v, signed, ceiling=math.inf):
    x = _dense(x)
    y = torch.empty_like(x)
    library().quantize(_at(x), x.numel(), _at(v), len(v), signed, ceiling, _at(y))
    return y


def _dense(x: Tensor) -> Tensor:
    """x itself if it is channels_last or contiguous, else a contiguous copy."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


def update_basis(sums, v, channels, size, weighting, signed):
    new, not_finite = torch.empty_like(v), torch.empty((), dtype=torch.bool)
    library().update_basis(
        _at(sums), *sums.shape[1:], channels, size, _at(v), len(v), signed, WEIGHTINGS[weighting],
        _at(new), _at(not_finite),
    )  # fmt: skip
    return new, not_finite


def clip_round(x, top, bottom, step, signed, ceiling):
    x = _dense(x)
    y = torch.empty_like(x)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), None, None, None,
    )  # fmt: skip
    return y


def clip_round_with_mask(x, top, bottom, step, signed, ceiling, also_relu):
    y, mask = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if also_relu else None
    not_finite = torch.empty((), dtype=torch.bool)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), _at(relu), _at(mask), _at(not_finite),
    )  # fmt: skip
    return y, relu, mask, not_finite


def apply_ste_mask(g, g_relu, mask):
    to = torch.empty_like(g)
    library().apply_ste_mask(_at(g), _at(g_relu), _at(mask), g.numel(), _at(to), None)
    return to


def apply_ste_mask_and_sum(g, g_relu, mask):
    to, sums = torch.empty_like(g), torch.empty(2)
    library().apply_ste_mask(_at(g), _at(g_relu), _at(mask), g.numel(), _at(to), _at(sums))
    return to, sums[0], sums[1]


# -- weights ---------------------------------------------------------------------------------


def quantize_rows(x, v):
    y = torch.empty_like(x)
    library().quantize_rows(_at(x), *x.shape, _at(v), v.shape[1], _at(y), None)
    return y


def refit_rows(x, v):
    y, fit = torch.empty_like(x), torch.empty_like(v)
    library().quantize_rows(_at(x), *x.shape, _at(v), v.shape[1], _at(y), _at(fit))
    return y, fit


def direct_weight(z, v):
    w, v = torch.empty_like(z), v.clone()
    library().direct_weight(_at(z), *z.shape, _at(v), v.shape[1], _at(w))
    return w, v


def direct_gradient(g, z, v):
    codes, basis = torch.empty_like(z), torch.empty_like(v)
    library().basis_gradient(_at(g), _at(z), _at(v), *z.shape, v.shape[1], _at(codes), _at(basis))
    return codes, basis


def indirect_weight(w, v):
    v = v.clone()
    library().order_rows(_at(v), *v.shape)
    return quantize_rows(w, v), v


def indirect_gradient(g, w, v):
    basis = torch.empty_like(v)
    library().basis_gradient(_at(g), _at(w), _at(v), *w.shape, v.shape[1], None, _at(basis))
    return basis


def dorefa_weight(w, steps):
    u, y = torch.tanh(w), torch.empty_like(w)
    library().dorefa_weight(_at(u), u.numel(), _at(steps), _at(y))
    return y


def dorefa_gradient(g, w):
    u, to = torch.tanh(w), torch.empty_like(w)
    library().dorefa_gradient(_at(g), _at(u), u.numel(), _at(to))
    return to
