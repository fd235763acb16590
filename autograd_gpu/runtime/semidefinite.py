"""Batches of small symmetric matrices, made positive semi-definite.

Source: Teran et al. 2005, "Robust quasistatic finite elements and flesh simulation", §7 (clamped
eigenvalues); Chen et al. 2024, "Stabler neo-Hookean simulation: absolute eigenvalue filtering for
projected Newton" (their absolute values).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from .assembly_kernels import kernel
from .threads import available_threads, run_in_threads

FloatArray = NDArray[np.float64]

PROJECTIONS = ("clamp", "absolute", "none")

# Pivots of a semi-definite matrix come out this far from zero by rounding, relative to its
# largest diagonal entry.
_ROUNDING = 1e-13


def prepare() -> None:
    """Compile what `project` needs; otherwise its first call does so."""
    kernel("semidefinite", "int32")


def project(matrices: FloatArray, how: str = "clamp", floor: float = 0.0) -> int:
    """Replace matrices that have eigenvalues below ``floor`` by the nearest that have none.

    Args:
        matrices: symmetric, ``(count, n, n)``, finite; overwritten.
        how: ``clamp`` raises eigenvalues to the floor (nearest in Frobenius norm), ``absolute``
            takes their absolute values, at least the floor; ``none`` leaves all as they are.
        floor: least eigenvalue afterwards, up to rounding.

    Returns:
        how many matrices were replaced.
    """
    if how == "none" or not matrices.size:
        return 0
    good = np.empty(len(matrices), np.bool_)
    pieces = min(available_threads(), 1 + len(matrices) // 1024)
    bounds = [len(matrices) * k // pieces for k in range(pieces + 1)]
    run, counts = kernel("semidefinite", "int32"), [0] * pieces

    def task(k: int) -> None:
        part = slice(bounds[k], bounds[k + 1])
        run(matrices[part], floor, _ROUNDING, good[part])
        rest = bounds[k] + np.flatnonzero(~good[part])
        counts[k] = len(rest)
        if not len(rest):
            return
        values, vectors = np.linalg.eigh(matrices[rest])
        values = np.maximum(np.abs(values) if how == "absolute" else values, floor)
        matrices[rest] = (vectors * values[:, None, :]) @ vectors.transpose(0, 2, 1)

    run_in_threads([functools.partial(task, k) for k in range(pieces)])
    return sum(counts)
