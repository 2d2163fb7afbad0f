"""Basis-coded levels: a level is a sum of K basis numbers with binary coefficients (LQ-Nets).

Levels are sort(C v): C holds all 2^K codes, over {-1, +1} for signed values and {0, 1} for
non-negative ones; v is the basis. Nearest levels are found by thresholds at the midpoints.
All functions are batched: `v` is (R, K), one row per output channel or a single row per layer.
"""

import torch
from torch import Tensor

from lowbit_core.fused import fused

# Up to this many levels a chain of comparisons in one fused pass is faster than a search.
CHAIN_LEVELS = 16
RIDGE = 1e-4  # of the element count, towards the present basis (method_notes: LQ-Nets)
MOMENTUM = 0.9  # of the moving average with which a new fit enters the basis


def code_matrix(bits: int, signed: bool) -> Tensor:
    """All codes, (2^bits, bits) float32: +-1 when signed, else 0/1. Least significant first."""
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)[None, :]) & 1
    codes = codes.to(torch.float32)
    return 2 * codes - 1 if signed else codes


def sorted_levels(v: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Levels in rising order (R, L) and the codes in that order (R, L, K), for v (R, K)."""
    # Not a matrix product: autocast would take that in bf16, in which levels coincide.
    levels, order = (v[:, None, :] * codes).sum(2).sort(dim=1)
    return levels, codes[order]


def midpoints(levels: Tensor) -> Tensor:
    """Decision thresholds (R, L - 1): a value on a threshold takes the lower level."""
    return (levels[:, 1:] + levels[:, :-1]) / 2


def nearest_code(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level, int64, for x (R, N) and levels (R, L)."""
    return torch.searchsorted(midpoints(levels), x.contiguous(), right=False)


def level_sums(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x (R, N) to levels (R, L); also per-level counts and sums of x, (R, L) each.

    No N x K matrix is built: counts above each threshold are differenced.
    """
    if levels.shape[1] > CHAIN_LEVELS:
        code = nearest_code(x, levels)
        zeros = torch.zeros_like(levels)
        counts = zeros.scatter_add(1, code, torch.ones_like(x))
        return levels.gather(1, code) + 0.0 * x, counts, zeros.scatter_add(1, code, x)
    thresholds = midpoints(levels)
    y = levels[:, :1].expand_as(x)
    counts = [torch.full_like(x[:, :1], x.shape[1]).sum(1)]
    sums = [x.sum(1)]
    for j in range(levels.shape[1] - 1):
        above = x > thresholds[:, j : j + 1]
        y = torch.where(above, levels[:, j + 1 : j + 2], y)
        counts.append(above.sum(1, dtype=x.dtype))
        sums.append(torch.where(above, x, 0.0).sum(1))
    return y + 0.0 * x, _difference(counts), _difference(sums)  # NaN goes through


def _difference(cumulative: list[Tensor]) -> Tensor:
    """Per-level values from those above each threshold."""
    upper = torch.stack(cumulative, 1)
    return upper - torch.nn.functional.pad(upper[:, 1:], (0, 1))


def solve_basis(counts: Tensor, sums: Tensor, codes: Tensor, v: Tensor) -> Tensor:
    """Least-squares basis from sufficient statistics: (B'B + r I) v' = B'x + r v.

    counts, sums (R, L), codes (R, L, K) in level order, v (R, K). The ridge r, RIDGE times the
    row's total count, holds the basis where B'B is singular (an empty level).
    """
    counts, sums, codes, old = (t.double() for t in (counts, sums, codes, v))
    ridge = (RIDGE * counts.sum(1)).clamp_min(1e-12)
    normal = torch.einsum("rl,rlk,rlm->rkm", counts, codes, codes)
    normal = normal + ridge[:, None, None] * torch.eye(v.shape[1], dtype=old.dtype, device=v.device)
    right = torch.einsum("rl,rlk->rk", sums, codes) + ridge[:, None] * old
    return torch.linalg.solve(normal, right).to(v.dtype)


@fused
def refit_rows(x: Tensor, v: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """One LQ-Nets step: x (R, N) quantized with the present basis v (R, K), and the refitted basis."""
    levels, ordered = sorted_levels(v, codes)
    y, counts, sums = level_sums(x, levels)
    return y, solve_basis(counts, sums, ordered, v)


def fit_rows(x: Tensor, bits: int, signed: bool = True, iterations: int = 50) -> Tensor:
    """Basis (R, bits) fitted to the rows of x (R, N) by alternating least squares (LQ-Nets QEM)."""
    codes = code_matrix(bits, signed).to(x.device)
    powers = 2.0 ** torch.arange(bits, device=x.device)
    # Start: each row's uniform levels of least squared error; from far off the fit stops short.
    powers = powers / (2**bits - 1)
    best = torch.full_like(x[:, :1], torch.inf)
    v = torch.zeros_like(x[:, :1]) * powers
    for share in torch.linspace(0.05, 1, 20).tolist():
        start = x.abs().amax(1, keepdim=True).clamp_min(1e-8) * share * powers
        error = (level_sums(x, sorted_levels(start, codes)[0])[0] - x).square().sum(1, keepdim=True)
        v, best = torch.where(error < best, start, v), torch.minimum(error, best)
    for _ in range(iterations):
        new = refit_rows.eager(x, v, codes)[1]
        if torch.allclose(new, v, rtol=1e-5, atol=1e-8):
            break
        v = new
    return v
