"""Solvers of the damped normal equations, and the choice among them."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError
from autograd_gpu.solvers.conjugate_gradients import ConjugateGradients
from autograd_gpu.solvers.direct_solver import DirectSolver
from autograd_gpu.solvers.sparse_cholesky import (
    CholmodCholesky,
    PardisoCholesky,
    SuperLUCholesky,
    fastest_sparse_cholesky,
)

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

LINEAR_SOLVERS = ("auto", "sparse-cholesky", "dense-cholesky", "dense-qr", "pcg", "schur")

# Measured on 2 cores against PARDISO, numeric factorisation plus one solve: dense is faster up to
# 110 unknowns on meshes, and up to 300 while loading MKL (50 ms) counts among 20 iterations; with a
# fill of 0.2 the two are equal at 1000 and 2000 unknowns.
_DENSE_UNKNOWNS = 256
_DENSE_MAX_UNKNOWNS = 5000
_NEARLY_FULL = 0.3


class LinearSolver(Protocol):
    """Solves A·x = b for symmetric positive definite A given by its upper triangle in CSR.

    `analyze` once per pattern, `factorize` once per matrix, `solve` once per right-hand side.
    """

    name: str

    def analyze(self, indptr: IndexArray, indices: IndexArray, n: int) -> None:
        """Take the pattern: row starts (n + 1,), columns sorted in each row, diagonal first."""
        ...

    def factorize(self, values: FloatArray) -> bool:
        """Take the values, shape (entries,); False if the matrix is not positive definite."""
        ...

    def solve(self, rhs: FloatArray) -> FloatArray:
        """Solution for a right-hand side of shape (n,), after a successful `factorize`."""
        ...

    def close(self) -> None:
        """Free what the solver holds."""
        ...


class DenseCholesky(DirectSolver):
    """LAPACK's Cholesky factorisation of the full square; for few unknowns or a full matrix."""

    name = "dense-cholesky (LAPACK)"

    def _analyze(self) -> None:
        rows = np.repeat(np.arange(self.n), np.diff(self.indptr))
        self._positions = rows + self.indices.astype(np.intp) * self.n
        self._square: FloatArray = np.zeros((self.n, self.n), order="F")

    def _factorize(self, values: FloatArray) -> bool:
        # The factor overwrites the square, so what was zero in the matrix must be cleared again.
        self._square.fill(0.0)
        self._square.ravel(order="K")[self._positions] = values
        lapack: Any = importlib.import_module("scipy.linalg.lapack")
        self._square, info = lapack.dpotrf(self._square, lower=0, clean=0, overwrite_a=1)
        return bool(info == 0)

    def _solve(self, rhs: FloatArray) -> FloatArray:
        lapack: Any = importlib.import_module("scipy.linalg.lapack")
        return lapack.dpotrs(self._square, rhs, lower=0)[0]

    def close(self) -> None:
        """Free the factor. The solver can be used again from `analyze` on."""
        super().close()
        self._square = np.zeros((0, 0))


def check_linear_solver(requested: str) -> None:
    """Refuse a name before any work is done.

    Raises:
        InputError: an unknown name.
        NotImplementedError: a solver of the list that is not there yet.
    """
    if requested not in LINEAR_SOLVERS:
        raise InputError(
            f"linear_solver={requested!r} is unknown; expected one of {', '.join(LINEAR_SOLVERS)}"
        )
    if requested in ("dense-qr", "schur"):
        raise NotImplementedError(
            f"linear_solver={requested!r} is not available on the host yet; "
            "use 'auto', 'sparse-cholesky', 'dense-cholesky' or 'pcg'"
        )


def choose_linear_solver(requested: str, n: int, nnz: int) -> tuple[LinearSolver, str]:
    """Make the solver for a system of n unknowns.

    Args:
        requested: one of `LINEAR_SOLVERS`.
        n: number of unknowns.
        nnz: entries in the upper triangle of JᵀJ, the diagonal included.

    Returns:
        the solver, and a sentence for the report: why this one, and what would be faster.

    Raises:
        InputError: an unknown name.
        NotImplementedError: a solver of the list that is not there yet.
    """
    check_linear_solver(requested)
    fill = nnz / (0.5 * n * (n + 1)) if n else 1.0
    if requested == "dense-cholesky":
        return DenseCholesky(), "Dense Cholesky (LAPACK), as requested."
    if requested == "pcg":
        return ConjugateGradients(), "Conjugate gradients, as requested."
    if requested == "auto":
        if n <= _DENSE_UNKNOWNS:
            return DenseCholesky(), f"Dense Cholesky (LAPACK): only {n} unknowns."
        if n <= _DENSE_MAX_UNKNOWNS and fill >= _NEARLY_FULL:
            return DenseCholesky(), f"Dense Cholesky (LAPACK): JᵀJ is {fill:.0%} full."
    solver = fastest_sparse_cholesky()
    why = "as requested" if requested == "sparse-cholesky" else f"JᵀJ is {fill:.2g} full"
    return solver, f"{_describe(solver)}, {why}.{_faster(solver)}"


def _describe(solver: DirectSolver) -> str:
    if isinstance(solver, PardisoCholesky):
        return "Sparse Cholesky by PARDISO (Intel MKL)"
    if isinstance(solver, CholmodCholesky):
        return "Sparse Cholesky by CHOLMOD (scikit-sparse)"
    return "Sparse Cholesky by SciPy's SuperLU"


def _faster(solver: DirectSolver) -> str:
    if isinstance(solver, SuperLUCholesky):
        return " `pip install autograd-gpu[fast]` brings PARDISO, about 8 times faster (x86-64)."
    if isinstance(solver, CholmodCholesky):
        return (
            " `pip install autograd-gpu[fast]` brings PARDISO, two to four times as fast (x86-64)."
        )
    return ""
