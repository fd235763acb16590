"""Kernels over batches of small dense matrices, one after another; see `assembly_kernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.integer[Any]]


def _semidefinite(
    matrices: Float, floor: float, rounding: float, verdicts: NDArray[np.bool_]
) -> None:
    """Say of each matrix ``(count, n, n)`` whether H - floor is semi-definite, by LDLᵀ."""
    n = matrices.shape[1]
    work = np.empty((n, n))
    for e in range(matrices.shape[0]):
        scale = 0.0
        for i in range(n):
            for j in range(i + 1):
                work[i, j] = matrices[e, i, j]
            work[i, i] -= floor
            scale = max(scale, abs(work[i, i]))
        small = rounding * scale
        good = True
        for k in range(n):
            pivot = work[k, k]
            if pivot > small:
                for i in range(k + 1, n):
                    factor = work[i, k] / pivot
                    for j in range(k + 1, i + 1):
                        work[i, j] -= factor * work[j, k]
                continue
            # Below a zero pivot a semi-definite matrix has zeros; NaN fails here.
            good = good and abs(pivot) <= small
            for i in range(k + 1, n):
                good = good and abs(work[i, k]) <= small
            if not good:
                break
        verdicts[e] = good


def _add_normal(
    first: int, last: int, elements: int, rows: int, columns: Index, entry_rows: Index,
    entry_columns: Index, residuals: Float, values: Float, chosen: NDArray[np.bool_],
    matrices: Float, gradients: Float,
) -> None:  # fmt: skip
    """Add one group's part to JᵀJ (lower triangle) and Jᵀr of chosen copies first … last - 1."""
    entries = entry_rows.size
    width = columns.size // elements
    for c in range(first, last):
        if not chosen[c]:
            continue
        for e in range(elements):
            element = c * elements + e
            own = values[element * entries : (element + 1) * entries]
            for p in range(entries):
                a = columns[e * width + entry_columns[p]]
                if a < 0:
                    continue
                gradients[c, a] += own[p] * residuals[element * rows + entry_rows[p]]
                matrices[c, a, a] += own[p] * own[p]
                for q in range(p + 1, entries):
                    if entry_rows[q] != entry_rows[p]:
                        break
                    b = columns[e * width + entry_columns[q]]
                    if b == a:
                        matrices[c, a, a] += 2.0 * own[p] * own[q]
                    elif b >= 0:
                        matrices[c, max(a, b), min(a, b)] += own[p] * own[q]


def _factor_damped(
    first: int, last: int, matrices: Float, damping: Float, chosen: NDArray[np.bool_],
    factors: Float, definite: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Cholesky factors L of A + diag(damping) of chosen copies; of which others are not definite.

    Matrices and factors are lower triangles; what stands above is neither read nor written.
    """
    n = damping.shape[1]
    for c in range(first, last):
        definite[c] = chosen[c]
        factor = factors[c]
        for i in range(n):
            if not definite[c]:
                break
            for j in range(i):
                total = matrices[c, i, j]
                for k in range(j):
                    total -= factor[i, k] * factor[j, k]
                factor[i, j] = total / factor[j, j]
            pivot = matrices[c, i, i] + damping[c, i]
            for k in range(i):
                pivot -= factor[i, k] * factor[i, k]
            definite[c] = pivot > 0.0  # False for NaN
            factor[i, i] = np.sqrt(max(pivot, 0.0))


def _damped_steps(
    first: int, last: int, factors: Float, definite: NDArray[np.bool_], gradients: Float,
    damping: Float, steps: Float, predicted: Float,
) -> None:  # fmt: skip
    """Steps LLᵀδ = -g of copies with a factor, and ½δᵀ(damping·δ - g); else 0 and NaN."""
    n = gradients.shape[1]
    for c in range(first, last):
        steps[c, :] = 0.0
        predicted[c] = np.nan
        if not definite[c]:
            continue
        factor, step = factors[c], steps[c]
        for i in range(n):
            total = -gradients[c, i]
            for k in range(i):
                total -= factor[i, k] * step[k]
            step[i] = total / factor[i, i]
        promise = 0.0
        for i in range(n - 1, -1, -1):
            total = step[i]
            for k in range(i + 1, n):
                total -= factor[k, i] * step[k]
            step[i] = total / factor[i, i]
            promise += step[i] * (damping[c, i] * step[i] - gradients[c, i])
        predicted[c] = 0.5 * promise


SMALL_MATRIX_KERNELS: dict[str, tuple[Callable[..., None], str]] = {
    "semidefinite": (_semidefinite, "T f f V+"),
    "add_normal": (_add_normal, "n n n n I I I F F V T+ M+"),
    "factor_damped": (_factor_damped, "n n T M V T+ V+"),
    "damped_steps": (_damped_steps, "n n T V M M M+ F+"),
}
