"""Solvers of the damped normal equations, and the choice among them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.block_assembly import BlockPattern
from autograd_gpu.solvers.block_elimination import chosen_blocks, has_hubs
from autograd_gpu.solvers.conjugate_gradients import ConjugateGradients
from autograd_gpu.solvers.dense_cholesky import DenseCholesky
from autograd_gpu.solvers.dense_qr import DenseQR
from autograd_gpu.solvers.direct_solver import DirectSolver
from autograd_gpu.solvers.elimination import eliminate
from autograd_gpu.solvers.schur import DENSE_KEPT, ImplicitSchurComplement, SchurComplement
from autograd_gpu.solvers.sparse_cholesky import (
    CholmodCholesky,
    PardisoCholesky,
    SuperLUCholesky,
    fastest_sparse_cholesky,
)

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

LINEAR_SOLVERS = (
    "auto", "sparse-cholesky", "dense-cholesky", "dense-qr", "pcg", "schur", "schur-implicit",
)  # fmt: skip

# Measured on 2 cores against PARDISO, numeric factorisation plus one solve: dense is faster up to
# 110 unknowns on meshes, and up to 300 while loading MKL (50 ms) counts among 20 iterations; with a
# fill of 0.2 the two are equal at 1000 and 2000 unknowns.
_DENSE_UNKNOWNS = 256
_DENSE_MAX_UNKNOWNS = 5000
_NEARLY_FULL = 0.3

# Conjugate gradients against a factorisation. Measured on 2 cores, on meshes of 2000 to 246 000
# unknowns and on grids of cubes: a factorisation takes 4·w³ operations within a factor of 2, w the
# mean width of the envelope in Cuthill-McKee order; operations a second are those of the library.
_OPERATIONS_PER_SECOND = {"PARDISO": 5e9, "CHOLMOD": 2e9, "SuperLU": 5e8}
# An iteration takes this many seconds an entry of the upper triangle, and a step about 100 of them
# (W2 with coarse spaces: 20 to 60; W4: 50 to 400; W1r: 5 to 20).
_SECONDS_PER_ENTRY = 1.6e-9
_TYPICAL_ITERATIONS = 100
# An iterative solver has to be this many times faster: it can meet harder systems than the typical,
# and an inexact step lowers the cost less (20 steps: W2_s5, ratio 3.2, 4.1 s against 5.8 s but cost
# 0.300 against 0.262; W4_s5, ratio 3.4, 3.3 s against 2.4 s; W2_s6, ratio 6.3, is 3 times faster).
_ADVANTAGE = 5.0
_ITERATIVE_UNKNOWNS = 2000
# A row this many times longer than the mean is a hub, as a camera is: the envelope says nothing
# then, and a factorisation that eliminates the hubs last is cheap (W3: 20 times cheaper).
_HUB = 10
# What is left after the elimination of all but the hubs: a dense square of k unknowns, k³/3
# operations a step (540 unknowns of W3 in one thread: 2.2 ms).
_KEPT_SHARE = 0.1
_DENSE_OPERATIONS_PER_SECOND = 2e10
# PARDISO does the same elimination as quickly, but needs time for finding it (W3 on 2 cores: 0.28 s
# for 2.8 million entries, as much as five of its steps). So the square may cost as much over many
# steps. Their number is set so that PARDISO stays where its steps were the quicker ones: 150
# cameras, any two with points in common, 40 000 points (3.7 s of factorisations against 2.0).
_PARDISO_SECONDS_PER_ENTRY = 1e-7
_TYPICAL_STEPS = 20


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


def check_linear_solver(requested: str) -> None:
    """Refuse a name before any work is done.

    Raises:
        InputError: an unknown name.
    """
    if requested not in LINEAR_SOLVERS:
        raise InputError(
            f"linear_solver={requested!r} is unknown; expected one of {', '.join(LINEAR_SOLVERS)}"
        )


_BY_NAME: dict[str, tuple[Callable[[], LinearSolver | DenseQR], str]] = {
    "dense-qr": (DenseQR, "QR of the dense Jacobian (LAPACK)"),
    "dense-cholesky": (DenseCholesky, "Dense Cholesky (LAPACK)"),
    "schur": (SchurComplement, "Schur complement"),
    "schur-implicit": (ImplicitSchurComplement, "Implicit Schur complement"),
    "pcg": (ConjugateGradients, "Conjugate gradients"),
}


def choose_linear_solver(
    requested: str,
    n: int,
    nnz: int,
    pattern: tuple[IndexArray, IndexArray] | None = None,
    blocks: BlockPattern | None = None,
) -> tuple[LinearSolver | DenseQR, str]:
    """Make the solver for a system of n unknowns.

    Args:
        requested: one of `LINEAR_SOLVERS`.
        n: number of unknowns.
        nnz: entries in the upper triangle of JᵀJ, the diagonal included.
        pattern: row starts and columns of that triangle; without it, ``auto`` never chooses an
            iterative solver, because it cannot tell a chain from a mesh.
        blocks: the same pattern by blocks of unknowns, where they are known.

    Returns:
        the solver, and a sentence for the report: why this one, and what would be faster.

    Raises:
        InputError: an unknown name.
    """
    check_linear_solver(requested)
    fill = nnz / (0.5 * n * (n + 1)) if n else 1.0
    if requested in _BY_NAME:
        make, what = _BY_NAME[requested]
        return make(), f"{what}, as requested."
    if requested == "auto":
        if n <= _DENSE_UNKNOWNS:
            return DenseCholesky(), f"Dense Cholesky (LAPACK): only {n} unknowns."
        if n <= _DENSE_MAX_UNKNOWNS and fill >= _NEARLY_FULL:
            return DenseCholesky(), f"Dense Cholesky (LAPACK): JᵀJ is {fill:.0%} full."
    solver = fastest_sparse_cholesky()
    if requested == "auto" and pattern is not None and n >= _ITERATIVE_UNKNOWNS:
        better = _better(solver, pattern, blocks)
        if better is not None:
            solver.close()
            return better
    why = "as requested" if requested == "sparse-cholesky" else f"JᵀJ is {fill:.2g} full"
    return solver, f"{_describe(solver)}, {why}.{_faster(solver)}"


def _better(
    solver: DirectSolver, pattern: tuple[IndexArray, IndexArray], blocks: BlockPattern | None
) -> tuple[LinearSolver, str] | None:
    """What beats a factorisation of the whole matrix, and why; None if nothing is sure to."""
    hubs = _has_hubs(*pattern) if blocks is None else has_hubs(blocks, _HUB)
    if not hubs:
        why = _why_iterative(solver, *pattern)
        return None if why is None else (ConjugateGradients(), why)
    why = _why_schur(solver, pattern, blocks)
    return None if why is None else (SchurComplement(), why)


def choose_direct_solver(n: int, nnz: int) -> DirectSolver:
    """The direct solver for a system of n unknowns whose upper triangle has nnz entries."""
    fill = nnz / (0.5 * n * (n + 1)) if n else 1.0
    dense = n <= _DENSE_UNKNOWNS or (n <= _DENSE_MAX_UNKNOWNS and fill >= _NEARLY_FULL)
    return DenseCholesky() if dense else fastest_sparse_cholesky()


def _has_hubs(indptr: IndexArray, indices: IndexArray) -> bool:
    """Whether some unknowns, as those of cameras are, belong to far more rows than others."""
    degrees = np.bincount(indices, minlength=len(indptr) - 1) + np.diff(indptr)
    return bool(degrees.max() > _HUB * degrees.mean())


def _why_schur(
    solver: DirectSolver, pattern: tuple[IndexArray, IndexArray], blocks: BlockPattern | None
) -> str | None:
    """Why a Schur complement beats this factorisation; None if it is not sure to."""
    n = len(pattern[0]) - 1
    if blocks is None:
        kept = len(eliminate(*pattern).kept)
    else:
        kept = int(np.diff(blocks.starts)[~chosen_blocks(blocks)].sum())
    if kept > min(DENSE_KEPT, _KEPT_SHARE * n):
        return None
    why = f"Schur complement: {n - kept} of {n} unknowns can be eliminated block by block"
    if not isinstance(solver, PardisoCholesky):
        return f"{why}."
    square = _TYPICAL_STEPS * kept**3 / 3.0 / _DENSE_OPERATIONS_PER_SECOND
    symbolic = _PARDISO_SECONDS_PER_ENTRY * len(pattern[1])
    if blocks is None or square > symbolic:
        return None
    return (
        f"{why}; {_TYPICAL_STEPS} factorisations of what is left take {square:.2g} s, PARDISO's "
        f"symbolic phase {symbolic:.2g} s."
    )


def _why_iterative(solver: DirectSolver, indptr: IndexArray, indices: IndexArray) -> str | None:
    """Why conjugate gradients beat this factorisation; None if they are not sure to."""
    width = _mean_envelope_width(indptr, indices)
    library = solver.name.partition("(")[2].rstrip(")")
    direct = 4.0 * width**3 / _OPERATIONS_PER_SECOND[library]
    iterative = _TYPICAL_ITERATIONS * _SECONDS_PER_ENTRY * len(indices)
    if direct < _ADVANTAGE * iterative:
        return None
    return (
        f"Conjugate gradients: a factorisation by {library} takes about {direct:.2g} s a step, "
        f"{_TYPICAL_ITERATIONS} iterations {iterative:.2g} s."
    )


def _mean_envelope_width(indptr: IndexArray, indices: IndexArray) -> float:
    """Mean distance of the first entry of a row to the diagonal, in Cuthill-McKee order."""
    sparse: Any = importlib.import_module("scipy.sparse")
    graph_order: Any = importlib.import_module("scipy.sparse.csgraph").reverse_cuthill_mckee
    n = len(indptr) - 1
    upper = sparse.csr_matrix((np.ones(len(indices), np.int8), indices, indptr), shape=(n, n))
    full = sparse.csr_matrix(upper + upper.T)
    position = np.empty(n, np.int64)
    position[graph_order(full, symmetric_mode=True)] = np.arange(n)
    first = np.minimum.reduceat(position[full.indices], full.indptr[:-1])
    return float(np.mean(np.maximum(position - first, 0)))


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
