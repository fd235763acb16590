"""Damped least squares by Householder QR of the Jacobian itself: JᵀJ is never formed.

Forming JᵀJ squares the condition number; QR does not, so twice as many digits of a step survive on
ill-conditioned problems. The Jacobian is factorised once a point, and each damping costs one more
factorisation of the small [R; √D].

Source: Moré 1978, "The Levenberg-Marquardt algorithm: implementation and theory", §3.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError, SolveError
from autograd_gpu.runtime.blas_threads import all_blas_threads

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

_LARGEST = 1 << 28  # numbers of a dense J: 2 GiB


class DenseQR:
    """Solves min ‖Jδ + r‖² + ‖√D·δ‖²; of the shape of a linear solver, but it is given J.

    Attributes:
        name: what the report calls it.
    """

    name = "dense-qr (LAPACK)"

    def __init__(self) -> None:
        self._of: object = None
        self._n = 0
        self._triangle: FloatArray = np.zeros((0, 0))
        self._rotated: FloatArray = np.zeros(0)
        self._damped: FloatArray = np.zeros((0, 0))
        self._right: FloatArray = np.zeros(0)

    def analyze(self, indptr: IndexArray, indices: IndexArray, n: int) -> None:
        """Take the number of unknowns; a dense factorisation has no pattern."""
        self._n, self._of = n, None

    def linearize(self, jacobian: Any, residuals: FloatArray) -> None:
        """Factorise J = QR and keep R and Qᵀr; the same Jacobian again costs nothing.

        Args:
            jacobian: J, a SciPy sparse matrix, (rows, n).
            residuals: r, shape (rows,).

        Raises:
            InputError: the dense Jacobian would be larger than 2 GiB.
        """
        if self._of is jacobian:
            return
        rows, columns = (int(size) for size in jacobian.shape)
        if rows * columns > _LARGEST:
            raise InputError(
                f"linear_solver='dense-qr': a dense Jacobian of {rows} × {columns} numbers takes "
                f"{rows * columns / 2**27:.3g} GiB; use 'auto', which works with JᵀJ"
            )
        square = np.zeros((max(rows, columns), columns), order="F")
        square[:rows] = jacobian.toarray()
        padded = np.zeros(square.shape[0])
        padded[:rows] = residuals
        self._triangle, self._rotated = _reduced(square, padded)
        self._of = jacobian

    def damp(self, damping: FloatArray) -> bool:
        """Factorise [R; √D]; False if it has not full rank to working precision."""
        if self._of is None:
            raise SolveError(f"{self.name}: call linearize(jacobian, residuals) before damp")
        n = self._n
        stacked = np.zeros((2 * n, n), order="F")
        stacked[:n] = self._triangle
        stacked[np.arange(n, 2 * n), np.arange(n)] = np.sqrt(damping)
        right = np.concatenate([self._rotated, np.zeros(n)])
        self._damped, self._right = _reduced(stacked, right)
        pivots = np.abs(np.diag(self._damped))
        return bool(np.isfinite(pivots).all() and (pivots > 0.0).all())

    def step(self) -> FloatArray:
        """δ of the damping given last, shape (n,)."""
        lapack: Any = importlib.import_module("scipy.linalg.lapack")
        return -lapack.dtrtrs(self._damped, self._right)[0]

    def close(self) -> None:
        """Free the factors. The solver can be used again from `analyze` on."""
        self._of = None
        self._triangle = self._damped = np.zeros((0, 0))


def _reduced(matrix: FloatArray, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """R of a matrix with at least as many rows as columns, and the top of Qᵀ·right."""
    lapack: Any = importlib.import_module("scipy.linalg.lapack")
    n = matrix.shape[1]
    work = int(lapack.dgeqrf_lwork(*matrix.shape)[0])
    with all_blas_threads():
        factored, reflectors, _, _ = lapack.dgeqrf(matrix, lwork=max(work, 1), overwrite_a=1)
        turned, _, _ = lapack.dormqr("L", "T", factored, reflectors, right[:, None], max(64, n))
    return np.triu(factored[:n]), np.ascontiguousarray(turned[:n, 0])
