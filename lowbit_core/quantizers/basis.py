"""Basis-coded levels: a level is a sum of K basis numbers, each with a sign or a switch (LQ-Nets).

With codes over {-1, +1} (`signed`) the levels are all sums of +-v_k; over {0, 1} all sums of some of
the v_k. A basis is kept in order: v_0 >= 0 and every number at least the sum of those before it.
Then binary codes rise with their levels, and the nearest level is found bit by bit, most
significant first, in K comparisons: no sorting, no search, no table, nothing that grows with 2^K.
Bases are (..., K), one row per output channel or one for a layer, least significant number first.
"""

import torch
from torch import Tensor

from lowbit_core.kernels import bindings as kernels
from lowbit_core.kernels.fused import fused

RIDGE = 1e-4  # of the element count, towards the present basis (docs/method.md: LQ-Nets)
MOMENTUM = 0.9  # of the moving average with which a new fit enters the basis
# Up to here every pair of bits is counted by a sum of its own; the compiler's work grows as 3^K.
FEW_BITS = 4
PACKED = 3  # counts below 256 that one float32 holds exactly


def ordered(v: Tensor) -> Tensor:
    """The nearest basis in order: |v_k| sorted, each raised to the sum of those before it if less."""
    columns = v.abs().sort(dim=-1).values.unbind(-1)
    kept, below = [columns[0]], columns[0]
    for column in columns[1:]:
        kept.append(torch.maximum(column, below))
        below = below + kept[-1]
    return torch.stack(kept, -1)


def all_levels(v: Tensor, signed: bool) -> Tensor:
    """All 2^K levels (..., 2^K) by binary code: rising if v (..., K) is in order."""
    levels = torch.zeros_like(v[..., :1])
    for step in reversed(v.split(1, dim=-1)):  # summed as in `successive`: equal to the last bit
        levels = torch.stack([levels - step if signed else levels, levels + step], -1).flatten(-2)
    return levels


def successive(x: Tensor, columns: list[Tensor], signed: bool) -> tuple[Tensor, list[Tensor]]:
    """The nearest level of x and its code's bits, bool, least significant first.

    columns: the K numbers of an ordered basis, each to broadcast with x. A value half-way takes the
    lower level. NaN and infinity in x give NaN.
    """
    rest = x if signed else 2 * x - sum(columns)
    y = 0.0 * x
    bits = []
    for step in reversed(columns):
        bit = rest > 0
        if len(columns) <= FEW_BITS:
            rest = torch.where(bit, rest - step, rest + step)
            y = torch.where(bit, y + step, y - step if signed else y)
        else:  # the same numbers
            rest = rest - torch.where(bit, step, -step)
            y = y + torch.where(bit, step, -step if signed else 0.0)
        bits.append(bit)
    return y, bits[::-1]


def code_sums(
    x: Tensor, bits: list[Tensor], over: list[int] | int, packed: bool = False
) -> list[Tensor]:
    """Sums over dimensions `over` of what a least-squares fit needs: K + K (K + 1) / 2 tensors.

    First sum x b_k for every k, then the counts of b_k b_m for k <= m, row by row. `packed` counts
    several pairs in one sum; `over` must then hold at most 255 values.
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
    """Up to three counts below 256 share a float32, exactly: one sum instead of three."""
    packs: list[tuple[Tensor, list[int]]] = []
    pairs = {}
    for i, k in enumerate(reversed(range(len(bits)))):
        if i % PACKED == 0:
            packs.append((torch.zeros((), dtype=dtype, device=bits[k].device), []))
        word, members = packs[-1]
        packs[-1] = (word + torch.where(bits[k], 256.0 ** len(members), 0.0), [*members, k])
        for word, members in packs:
            total = torch.where(bits[k], word, 0.0).sum(over)
            for place, m in enumerate(members):
                above = 256 * torch.floor(total / 256.0 ** (place + 1))
                pairs[k, m] = torch.floor(total / 256.0**place) - above
    return pairs


def solve_basis(
    total: Tensor, count: Tensor, sums: list[Tensor], v: Tensor, signed: bool
) -> Tensor:
    """Least-squares basis: (B'B + r I) v' = B'x + r v, with the ridge r = RIDGE x count.

    total, count: sum of x and number of values, (R,); sums: as of `code_sums`, each (R,); v (R, K)
    the present basis. The ridge holds the basis where B'B is singular. float64, elimination written
    out (B'B + r I is positive definite): no library call, no wait for the device.
    """
    bits = v.shape[-1]
    total, count = total.double(), count.double()
    ridge = (RIDGE * count).clamp_min(1e-12)
    right = [s.double() for s in sums[:bits]]
    pairs = iter(s.double() for s in sums[bits:])
    normal = [[None] * bits for _ in range(bits)]
    for k in range(bits):
        for m in range(k, bits):
            normal[k][m] = next(pairs)
    if signed:  # codes 2 b - 1
        own = [normal[k][k] for k in range(bits)]
        for k in range(bits):
            for m in range(k, bits):
                normal[k][m] = 4 * normal[k][m] - 2 * own[k] - 2 * own[m] + count
        right = [2 * s - total for s in right]
    right = [s + ridge * v[..., k].double() for k, s in enumerate(right)]
    for k in range(bits):
        normal[k][k] = normal[k][k] + ridge
    for k in range(bits):
        for i in range(k + 1, bits):
            factor = normal[k][i] / normal[k][k]
            for j in range(i, bits):
                normal[i][j] = normal[i][j] - factor * normal[k][j]
            right[i] = right[i] - factor * right[k]
    fit: list[Tensor] = []
    for k in reversed(range(bits)):
        known = sum(normal[k][m] * fit[bits - 1 - m] for m in range(k + 1, bits))
        fit.append((right[k] - known) / normal[k][k])
    return torch.stack(fit[::-1], -1).to(v.dtype)


@fused(cpu=kernels.quantize_rows)
def quantize_rows(x: Tensor, v: Tensor) -> Tensor:
    """Rows of x (R, N) to the nearest levels of their ordered bases v (R, K), signed."""
    return successive(x, list(v.split(1, dim=1)), signed=True)[0]


@fused(cpu=kernels.refit_rows)
def refit_rows(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One LQ-Nets step: x (R, N) quantized with the present basis v (R, K), and the refitted basis."""
    y, bits = successive(x, list(v.split(1, dim=1)), signed=True)
    sums = code_sums(x, bits, 1)
    count = torch.full_like(x[:, 0], x.shape[1])
    return y, ordered(solve_basis(x.sum(1), count, sums, v, signed=True))


def fit_rows(x: Tensor, bits: int, iterations: int = 50) -> Tensor:
    """Basis (R, bits) fitted to the rows of x (R, N) by alternating least squares (LQ-Nets QEM)."""
    powers = 2.0 ** torch.arange(bits, device=x.device, dtype=x.dtype) / (2**bits - 1)
    # Start: each row's uniform levels of least squared error; from far off the fit stops short.
    best = torch.full_like(x[:, :1], torch.inf)
    v = torch.zeros_like(x[:, :1]) * powers
    for share in torch.linspace(0.05, 1, 20).tolist():
        start = x.abs().amax(1, keepdim=True).clamp_min(1e-8) * share * powers
        error = (quantize_rows.eager(x, start) - x).square().sum(1, keepdim=True)
        v, best = torch.where(error < best, start, v), torch.minimum(error, best)
    for _ in range(iterations):
        new = refit_rows.eager(x, v)[1]
        if torch.allclose(new, v, rtol=1e-5, atol=1e-8):
            break
        v = new
    return v
