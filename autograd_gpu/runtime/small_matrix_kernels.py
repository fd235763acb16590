"""Kernels over batches of small dense matrices, one after another; see `assembly_kernels`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


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


SMALL_MATRIX_KERNELS: dict[str, tuple[Callable[..., None], str]] = {
    "semidefinite": (_semidefinite, "T f f V+"),
}
