"""Kernels of our own for the processor (kernels.cpp): built once, cached, called without a compiler.

torch.compile makes a quantizer one pass too, but costs a process seconds of imports and tracing, each
call ten times the dispatch, and cannot hand a value's ReLU, levels, gate and sums over in one pass
(docs/performance.md). Every function here takes and gives what the function of the same name does
that it stands in for; float32 tensors on the processor alone.
"""

import math

import torch
from torch import Tensor

from lowbit_core.kernels.build import library

WEIGHTINGS = {"equal": 0, "inverse_variance": 1, "median": 2}


def _at(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def usable(*arguments: object) -> bool:
    """Whether the kernels take these arguments: float32 on the processor, and a library."""
    tensors = [x for x in arguments if isinstance(x, Tensor) and x.dtype is not torch.uint8]
    return (
        all(x.dtype is torch.float32 and x.device.type == "cpu" for x in tensors)
        and library() is not None
    )


# -- activations -----------------------------------------------------------------------------


def quantize_and_sum(x, v, signed, ceiling=math.inf, fork=False):
    y, gate = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if fork else None
    bits = len(v)
    sums = torch.empty(2 + bits + bits * (bits + 1) // 2, x.shape[0], x.shape[2])
    library().quantize_and_sum(
        _at(x), *x.shape, _at(v), bits, signed, ceiling, _at(y), _at(relu), _at(gate), _at(sums)
    )
    return y, relu, gate, sums


def quantize(x, v, signed, ceiling=math.inf):
    x = _dense(x)
    y = torch.empty_like(x)
    library().quantize(_at(x), x.numel(), _at(v), len(v), signed, ceiling, _at(y))
    return y


def _dense(x: Tensor) -> Tensor:
    """x, or a copy of it without gaps; its own order of memory is kept."""
    in_place = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if in_place else x.contiguous()


def update_basis(sums, v, channels, size, weighting, signed):
    new, bad = torch.empty_like(v), torch.empty((), dtype=torch.bool)
    library().update_basis(
        _at(sums), *sums.shape[1:], channels, size, _at(v), len(v), signed, WEIGHTINGS[weighting],
        _at(new), _at(bad),
    )  # fmt: skip
    return new, bad


def clip_round(x, top, bottom, step, signed, ceiling):
    x = _dense(x)
    y = torch.empty_like(x)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), None, None, None,
    )  # fmt: skip
    return y


def clip_round_gated(x, top, bottom, step, signed, ceiling, fork):
    y, gate = torch.empty_like(x), torch.empty(x.shape, dtype=torch.uint8)
    relu = torch.empty_like(x) if fork else None
    bad = torch.empty((), dtype=torch.bool)
    library().clip_round(
        _at(x), x.numel(), _at(top), _at(bottom), _at(step), signed, ceiling,
        _at(y), _at(relu), _at(gate), _at(bad),
    )  # fmt: skip
    return y, relu, gate, bad


def through_gate(g, g_relu, gate):
    to = torch.empty_like(g)
    library().through_gate(_at(g), _at(g_relu), _at(gate), g.numel(), _at(to), None)
    return to


def through_gate_summed(g, g_relu, gate):
    to, sums = torch.empty_like(g), torch.empty(2)
    library().through_gate(_at(g), _at(g_relu), _at(gate), g.numel(), _at(to), _at(sums))
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
