"""Basis-coded levels: a level is a sum of K basis numbers, each with a sign or a switch (LQ-Nets).

With codes over {-1, +1} (`signed`) the levels are all sums of +-v_k; over {0, 1} they are the sums
of all subsets of the v_k. A basis is ordered: v_0 >= 0, and every number is at least the sum of
those before it. Then binary codes rise with their levels, and the nearest level is found bit by
bit, most significant first, in K comparisons: no sorting, no search, no table, nothing that grows
with 2^K. Bases are (..., K), one row per output channel or one for a layer, least significant
number first. Symbols: docs/glossary.md.
"""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused
from lowbit_core.quantizers.range_search import best_range

RIDGE = 1e-4  # pull of a fit towards the present basis, as a share of the number of values
MOMENTUM = 0.9  # weight of the present basis in its moving average with the fits
# Up to this bit-width every pair of bits is counted by its own sum. With more bits that would take
# torch.compile too long: its work grows as 3^K.
FEW_BITS = 4
PACKED = 3  # counts below 256 that one float32 holds exactly


def ordered(v: Tensor) -> Tensor:
    """An ordered basis made from v (..., K).

    The |v_k| are sorted, and each that is less than the sum of those before it is raised to it. As
    none is lowered, it is not the nearest one.
    """
    columns = v.abs().sort(dim=-1).values.unbind(-1)
    kept, below = [columns[0]], columns[0]
    for column in columns[1:]:
        kept.append(torch.maximum(column, below))
        below = below + kept[-1]
    return torch.stack(kept, -1)


def all_levels(v: Tensor, signed: bool) -> Tensor:
    """All 2^K levels (..., 2^K) by binary code: in rising order if v (..., K) is ordered."""
    levels = torch.zeros_like(v[..., :1])
    for step in reversed(v.split(1, dim=-1)):  # the order of `nearest_level`: equal to the last bit
        levels = torch.stack([levels - step if signed else levels, levels + step], -1).flatten(-2)
    return levels


def nearest_level(x: Tensor, columns: list[Tensor], signed: bool) -> tuple[Tensor, list[Tensor]]:
    """The level nearest to x and the bits of its code (bool), least significant first.

    columns: the K numbers of an ordered basis, each of a shape that broadcasts with x. A value
    half-way between two levels takes the lower one. NaN and infinity in x give NaN.
    """
    rest = x if signed else 2 * x - sum(columns)
    y = 0.0 * x
    bits = []
    for step in reversed(columns):
        bit = rest > 0
        if len(columns) <= FEW_BITS:
            rest = torch.where(bit, rest - step, rest + step)
            y = torch.where(bit, y + step, y - step if signed else y)
        else:  # the same numbers, in a form that compiles faster with many bits
            rest = rest - torch.where(bit, step, -step)
            y = y + torch.where(bit, step, -step if signed else 0.0)
        bits.append(bit)
    return y, bits[::-1]


def code_sums(
    x: Tensor, bits: list[Tensor], over: list[int] | int, packed: bool = False
) -> list[Tensor]:
    """The sums of a least-squares fit over dimensions `over`: K + K (K + 1) / 2 tensors.

    bits: b_0 to b_(K-1) of x, bool. First the sums of x b_k for every k, then the counts of b_k b_m
    for k <= m, row by row. `packed` counts several pairs in one sum; `over` must then hold at most
    255 values.
    """
    products = [torch.where(bit, x, 0.0).sum(over) for bit in bits]
    pairs = (_packed_pair_counts if packed else _pair_counts)(x.dtype, bits, over)
    order = [(k, m) for k in range(len(bits)) for m in range(k, len(bits))]
    return products + [pairs[pair] for pair in order]


def _pair_counts(dtype, bits, over) -> dict[tuple[int, int], Tensor]:
    return {
        (k, m): (bits[k] & bits[m] if m > k else bits[k]).sum(over, dtype=dtype)
        for k in range(len(bits))
        for m in range(k, len(bits))
    }


def _packed_pair_counts(dtype, bits, over) -> dict[tuple[int, int], Tensor]:
    """As `_pair_counts`, but one float32 sum holds up to three counts below 256, exactly."""
    packs: list[tuple[Tensor, list[int]]] = []
    pairs = {}
    for i, k in enumerate(reversed(range(len(bits)))):
        if i % PACKED == 0:
            packs.append((torch.zeros((), dtype=dtype, device=bits[k].device), []))
        word, members = packs[-1]
        packs[-1] = (word + torch.where(bits[k], 256.0 ** len(members), 0.0), [*members, k])
        for word, members in packs:
            total = torch.where(bits[k], word, 0.0).sum(over)
            for digit, m in enumerate(members):
                above = 256 * torch.floor(total / 256.0 ** (digit + 1))
                pairs[k, m] = torch.floor(total / 256.0**digit) - above
    return pairs


def solve_basis(
    total: Tensor, count: Tensor, sums: list[Tensor], v: Tensor, signed: bool
) -> Tensor:
    """The basis v' (R, K) of least squares: (B'B + r I) v' = B'x + r v, with r = RIDGE x count.

    total, count: the sum of x and the number of values, (R,). sums: the results of `code_sums`,
    each (R,). v (R, K): the present basis; the ridge r keeps it where B'B is singular. float64.
    Elimination is written out, since B'B + r I is positive definite: no library call, no wait for
    the device. The result is not yet ordered.
    """
    bits = v.shape[-1]
    total, count = total.double(), count.double()
    ridge = (RIDGE * count).clamp_min(1e-12)
    right = [s.double() for s in sums[:bits]]
    upper = [(k, m) for k in range(bits) for m in range(k, bits)]
    normal = dict(zip(upper, (s.double() for s in sums[bits:]), strict=True))
    if signed:  # codes 2 b - 1
        ones = [normal[k, k] for k in range(bits)]
        for k, m in upper:
            normal[k, m] = 4 * normal[k, m] - 2 * ones[k] - 2 * ones[m] + count
        right = [2 * s - total for s in right]
    right = [s + ridge * v[..., k].double() for k, s in enumerate(right)]
    for k in range(bits):
        normal[k, k] = normal[k, k] + ridge
    for k in range(bits):
        for i in range(k + 1, bits):
            factor = normal[k, i] / normal[k, k]
            for j in range(i, bits):
                normal[i, j] = normal[i, j] - factor * normal[k, j]
            right[i] = right[i] - factor * right[k]
    fit: dict[int, Tensor] = {}
    for k in reversed(range(bits)):
        known = sum(normal[k, m] * fit[m] for m in range(k + 1, bits))
        fit[k] = (right[k] - known) / normal[k, k]
    return torch.stack([fit[k] for k in range(bits)], -1).to(v.dtype)


@fused(cpu=kernels.quantize_rows)
def quantize_rows(x: Tensor, v: Tensor) -> Tensor:
    """The levels nearest to x (R, N), each row with its own ordered basis of v (R, K), signed."""
    return nearest_level(x, list(v.split(1, dim=1)), signed=True)[0]


@fused(cpu=kernels.refit_rows)
def refit_rows(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One LQ-Nets step: x (R, N) quantized with the present bases v (R, K), and the next bases."""
    y, bits = nearest_level(x, list(v.split(1, dim=1)), signed=True)
    sums = code_sums(x, bits, 1)
    count = torch.full_like(x[:, 0], x.shape[1])
    return y, ordered(solve_basis(x.sum(1), count, sums, v, signed=True))


def fit_rows(x: Tensor, bits: int, iterations: int = 50) -> Tensor:
    """Bases (R, bits) fitted to the rows of x (R, N) by alternating least squares (LQ-Nets QEM).

    A fit that starts far from its end stops short of it: each starts at the best uniform grid.
    """
    powers = 2.0 ** torch.arange(bits, device=x.device, dtype=x.dtype) / (2**bits - 1)
    # On a GPU a start is too short a work to compile kernels for.
    on_cpu = x.device.type == "cpu"
    quantize = quantize_rows if on_cpu else quantize_rows.eager
    refit = refit_rows if on_cpu else refit_rows.eager

    def error(top: Tensor) -> Tensor:
        return (quantize(x, top * powers) - x).square().sum(1, keepdim=True)

    shares = torch.linspace(0.05, 1, 20).to(x.device)
    v = best_range(x.abs().amax(1, keepdim=True).clamp_min(1e-8), shares, error) * powers
    for _ in range(iterations):
        new = refit(x, v)[1]
        if torch.allclose(new, v, rtol=1e-5, atol=1e-8):
            break
        v = new
    return v
