"""Quantizers with few levels, as pieces of the real line: one pass forward and one backward.

A method describes its quantizer by a table of pieces (`Pieces`): where each begins, its level, and
how the gradient passes through it. The backward pass needs two sums over each piece, of the
gradient and of the gradient times the input (AdaBin: and times its square). They give the gradient
of any parameter in closed form, so no method needs a pass of its own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import IN_REGISTERS, fused
from lowbit_core.quantizers.blocks import channels_last, channels_second
from lowbit_core.quantizers.interface import ActivationQuantizer
from lowbit_core.quantizers.ste_mask import rectified

MAX_PIECES = RELU_PASSES = 128  # pieces that a code of one byte can name; its highest bit
FEW_PIECES = 32  # each is summed by a pass of its own, which compiles into one kernel


class Pieces(NamedTuple):
    """The S pieces of a quantizer Q. Piece s holds every x with exactly s edges below it."""

    edges: Tensor
    """(S - 1,), rising. An x that equals an edge belongs to the piece below it."""
    levels: Tensor
    """(S,): Q(x) in each piece. Neighbours may share a level. No gradient is taken through it."""
    offset: Tensor
    """(S,): to the gradients of parameters, Q(x) counts as offset[s] + gain[s] x."""
    gain: Tensor | None
    """(S,); None where no parameter's gradient depends on x."""
    slope: Tensor
    """dQ/dx: slope[s] for (S,); slope[s, 0] + slope[s, 1] x for (S, 2)."""
    bend: Tensor | None = None
    """(S, 2): the gradient of x gains |g| (bend[s, 0] + bend[s, 1] x), g that of Q(x) (EWGS)."""
    curve: Tensor | None = None
    """(S,): to the gradients of parameters, Q(x) gains curve[s] x^2 (AdaBin)."""


def with_ends(levels: Tensor, clips_below: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(edges, levels, inside) of a quantizer to the nearest of `levels` (L,), which rise.

    One piece more lies above the highest level and, with `clips_below`, one below the lowest.
    They share the level beside them; `inside` is 0 there and 1 elsewhere. A value half-way between
    two levels takes the lower.
    """
    below, top = (levels[:1] if clips_below else levels[:0]), levels[-1:]
    held = torch.cat([below, levels, top])
    inside = torch.cat([0 * below, torch.ones_like(levels), 0 * top])
    return (held[1:] + held[:-1]) / 2, held, inside  # the outer edges are the outer levels


@fused(cpu=kernels.quantize_in_pieces)
def quantize_in_pieces(
    x: Tensor, edges: Tensor, levels: Tensor, signed: bool, ceiling: float
) -> Tensor:
    """Q(x), or Q(relu(x)) when unsigned, for x of any shape. A NaN stays NaN."""
    values = rectified(x.to(levels.dtype), signed, ceiling)
    return torch.where(values.isnan(), values, levels[_piece_of(values, edges)]).to(x.dtype)


@fused(cpu=kernels.quantize_in_pieces_with_codes)
def quantize_in_pieces_with_codes(
    x: Tensor,
    edges: Tensor,
    levels: Tensor,
    signed: bool,
    ceiling: float,
    also_relu: bool,
    keeps_codes: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """(Q(x), relu(x) or None, the codes if `keeps_codes`, whether x holds a NaN or infinity).

    A code is the number of the piece, one of MAX_PIECES at most; its highest bit (RELU_PASSES)
    says that the ReLU, where the quantizer does one, passes its gradient.
    """
    full = x.to(levels.dtype)
    values = rectified(full, signed, ceiling)
    piece = _piece_of(values, edges)
    y = torch.where(values.isnan(), values, levels[piece]).to(x.dtype)
    codes = None
    if keeps_codes:
        codes = (piece + _passes_relu(full, signed, ceiling) * RELU_PASSES).to(torch.uint8)
    return y, values.to(x.dtype) if also_relu else None, codes, ~torch.isfinite(values.sum())


@fused(cpu=kernels.pieces_gradient, options=IN_REGISTERS)
def pieces_gradient(
    g: Tensor,
    g_relu: Tensor | None,
    codes: Tensor | None,
    x: Tensor | None,
    slope: Tensor,
    bend: Tensor | None,
    signed: bool,
    ceiling: float,
    edges: Tensor | None = None,
    squares: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(The gradient of x; over each piece the sums of g, of g x, and of g x^2 if `squares`).

    g, g_relu: the gradients of Q(x) and of relu(x), the latter None where it was not returned. x:
    as it was given to the quantizer, None where no gradient depends on it; then there is only the
    sum of g. codes: None to find the pieces from x and `edges` again; not with `squares`. The sums
    are (S,), float32.
    """
    wide = g.to(slope.dtype)
    full = None if x is None else x.to(slope.dtype)
    values = None if full is None else rectified(full, signed, ceiling)
    if codes is not None:
        passes = codes >= RELU_PASSES
        piece = torch.where(passes, codes - RELU_PASSES, codes).long()
    else:
        assert full is not None and values is not None and edges is not None
        passes, piece = _passes_relu(full, signed, ceiling), _piece_of(values, edges)
    to = wide * _at(slope, piece, values)
    if bend is not None:
        to = to + wide.abs() * _at(bend, piece, values)
    to = torch.where(passes, to, 0.0)
    if g_relu is not None:
        to = to + torch.where(passes, g_relu.to(to.dtype), 0.0)
    sums = _sums_over_pieces(wide, piece, len(slope))
    if values is None:
        return to.to(g.dtype), sums, None, None
    with_x = _sums_over_pieces(wide * values, piece, len(slope))
    with_square = _sums_over_pieces(wide * values * values, piece, len(slope)) if squares else None
    return to.to(g.dtype), sums, with_x, with_square


def _passes_relu(x: Tensor, signed: bool, ceiling: float) -> Tensor:
    """Where the gradient of the ReLU passes, bool; everywhere if there is none (`signed`)."""
    return torch.ones_like(x, dtype=torch.bool) if signed else (x > 0) & (x < ceiling)


def _piece_of(x: Tensor, edges: Tensor) -> Tensor:
    """The number of edges below x; 0 for a NaN."""
    return torch.where(x.isnan(), 0, torch.bucketize(x, edges))


def _at(table: Tensor, piece: Tensor, x: Tensor | None) -> Tensor:
    """table[s] for (S,), table[s, 0] + table[s, 1] x for (S, 2), at each value's piece s."""
    row = table[piece]
    return row if x is None or table.dim() == 1 else row[..., 0] + row[..., 1] * x


def _sums_over_pieces(x: Tensor, piece: Tensor, count: int) -> Tensor:
    """The sum of x over each of `count` pieces."""
    if count <= FEW_PIECES:
        return torch.stack([torch.where(piece == s, x, 0.0).sum() for s in range(count)])
    sums = torch.zeros(count, dtype=torch.float64, device=x.device)
    return sums.index_add(0, piece.flatten(), x.flatten().double()).to(x.dtype)


class _Quantize(torch.autograd.Function):
    """(Q(x), whether x is not finite), and relu(x) after them if `also_relu`.

    For the backward pass it keeps x where a gradient depends on it or where there are too many
    pieces for codes, else the codes.
    """

    @staticmethod
    def forward(ctx, x, edges, levels, offset, gain, curve, slope, bend, *options):
        signed, ceiling, also_relu = options
        x = channels_last(x)
        depends = gain is not None or slope.dim() == 2 or bend is not None
        reads_x = depends or len(levels) > MAX_PIECES
        y, relu, codes, not_finite = quantize_in_pieces_with_codes(
            x, edges, levels, signed, ceiling, also_relu, not reads_x
        )
        ctx.save_for_backward(codes, x if reads_x else None, slope, bend, edges)
        ctx.relu = signed, ceiling
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(not_finite)
        y = channels_second(y)
        return (y, not_finite, channels_second(relu)) if also_relu else (y, not_finite)

    @staticmethod
    def backward(ctx, g, _not_finite, g_relu=None):
        codes, x, slope, bend, edges = ctx.saved_tensors
        relu = None if g_relu is None else channels_last(g_relu)
        ends = (None if x is None else edges, ctx.needs_input_grad[5])
        to, sums, with_x, with_square = pieces_gradient(
            channels_last(g), relu, codes, x, slope, bend, *ctx.relu, *ends
        )
        gain = with_x if ctx.needs_input_grad[4] else None
        return channels_second(to), None, None, sums, gain, with_square, *[None] * 5


def quantize_pieces(
    x: Tensor, pieces: Pieces, signed: bool, ceiling: float = math.inf, also_relu: bool = False
) -> tuple[Tensor, ...]:
    """(Q(x), whether x holds a NaN or infinity[, relu(x) if `also_relu`]) for x (N, C, ...).

    Unsigned, Q(x) is Q(relu(x)), whose values are at most `ceiling`, with the gradient of both.
    Gradients reach x and, through `offset`, `gain` and `curve`, whatever these were computed from.
    """
    table = (pieces.edges.detach(), pieces.levels.detach())
    forms = (pieces.offset, pieces.gain, pieces.curve)
    slopes = (pieces.slope.detach(), None if pieces.bend is None else pieces.bend.detach())
    return _Quantize.apply(x, *table, *forms, *slopes, signed, ceiling, also_relu)


class PiecewiseActivation(ActivationQuantizer):
    """An activation quantizer that is given by its pieces."""

    DOES_RELU = True

    def pieces(self) -> Pieces:
        """The present pieces; offset and gain are differentiable in the parameters."""
        raise TypeError(f"{type(self).__name__} does not define pieces()")

    def forward(self, x: Tensor, also_relu: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if not self.training:
            pieces = self.pieces()
            table = pieces.edges.detach(), pieces.levels.detach()
            y = quantize_in_pieces(x, *table, self.signed, self.ceiling)
            return (rectified(x, self.signed, self.ceiling), y) if also_relu else y
        y, not_finite, *relu = quantize_pieces(
            x, self.pieces(), self.signed, self.ceiling, also_relu
        )
        self.nonfinite += not_finite
        return (relu[0], y) if also_relu else y
