"""Covariance of chosen parameter blocks: entries of (JᵀJ)⁻¹ at the problem's current parameters.

Only the columns that belong to chosen blocks are solved for. Directions that leave every residual
as it is (the gauge of a bundle adjustment) make JᵀJ singular; they are found as the near-zero
eigenvalues of JᵀJ with unit diagonal, by inverse iteration, and reported.

Sources: Bjorck 1996, "Numerical Methods for Least Squares Problems", §2.8; for the pseudo-inverse,
iterated Tikhonov regularisation on the range of JᵀJ.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError, SolveError
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.linear_solvers import choose_direct_solver
from autograd_gpu.solvers.selection import ParameterArray, Selection

if TYPE_CHECKING:
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.normal_equations import NormalEquations
    from autograd_gpu.solvers.problem import Problem

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

NULL_EIGENVALUE = 1e-12
"""An eigenvalue of JᵀJ with unit diagonal below this is a direction that no residual sees."""

# Above the rounding of a factorisation, below what is called an eigenvalue.
_SHIFT = 1e-13
_LARGEST_JOINT = 4096
_COLUMNS_AT_A_TIME = 64
_LARGEST_DENSE = 1500
_FIRST_EIGENVALUES = 12


@dataclass(frozen=True)
class Covariance:
    """Covariance of the blocks that were asked for, in that order.

    Attributes:
        blocks: for each argument the covariance of every chosen block by itself,
            ``(count, width, width)``; zero where frozen.
        null_space_dimension: independent directions that leave every residual as it is.
    """

    blocks: tuple[FloatArray, ...]
    null_space_dimension: int
    _joint: FloatArray | None

    @property
    def matrix(self) -> FloatArray:
        """Joint covariance of all chosen numbers, block by block, ``(numbers, numbers)``.

        Raises:
            InputError: more than 4096 numbers were chosen.
        """
        if self._joint is None:
            numbers = sum(b.shape[0] * b.shape[1] for b in self.blocks)
            raise InputError(
                f"covariance: the joint matrix of {numbers} numbers is too large to keep; ask for "
                f"fewer blocks at a time (up to {_LARGEST_JOINT} numbers), or use .blocks"
            )
        return self._joint

    @property
    def standard_deviations(self) -> tuple[FloatArray, ...]:
        """Square roots of the diagonals, ``(count, width)`` for each argument."""
        return tuple(np.sqrt(np.diagonal(b, axis1=1, axis2=2)) for b in self.blocks)


def covariance(
    problem: Problem, chosen: Sequence[Selection | ParameterArray], null_space: str, variance: float
) -> Covariance:
    """See ``Problem.covariance``."""
    analysis = problem.analysis()
    if analysis.energies:
        raise InputError(
            f"covariance: (JᵀJ)⁻¹ says nothing about the energy {analysis.energies[0].name!r}; "
            "problem.evaluate().energy_hessian and .jacobian make up the matrix to invert"
        )
    columns = [_columns(analysis, problem, c, k) for k, c in enumerate(chosen)]
    if not columns:
        raise InputError(
            "covariance: nothing was asked for; pass parameter blocks, as in "
            "problem.covariance(x[[0, 1]])"
        )
    if null_space not in ("error", "pseudo-inverse"):
        raise InputError(f"null_space={null_space!r} is unknown; expected error or pseudo-inverse")
    if not (variance > 0.0 and np.isfinite(variance)):
        raise InputError(f"variance={variance!r}: expected a positive number")
    session = analysis.session(choose_backend("auto", "float64", None, analysis.row_count))
    residuals, values = session.residual_jacobian(current_parameters(problem))
    normal = analysis.normal_equations
    normal.assemble(values, residuals)
    if not np.isfinite(normal.upper).all():
        raise SolveError(
            "covariance: the Jacobian is not finite here; problem.check_gradients() shows where"
        )
    inverse = _Inverse(normal)
    try:
        if inverse.null_dimension and null_space == "error":
            raise SolveError(_deficient(inverse.null_dimension))
        return _gather(inverse, columns, variance)
    finally:
        inverse.close()


def _deficient(dimension: int) -> str:
    plural = "s" if dimension > 1 else ""
    return (
        f"covariance: JᵀJ is singular: {dimension} independent direction{plural} of the parameters "
        "change no residual (null-space dimension "
        f"{dimension}). Freeze or anchor what fixes them (a gauge: one camera and one distance), "
        "or ask for null_space='pseudo-inverse'"
    )


def _columns(
    analysis: Analysis, problem: Problem, chosen: Selection | ParameterArray, k: int
) -> IndexArray:
    """Column of each number of the chosen blocks, (count, width), -1 where frozen."""
    if isinstance(chosen, ParameterArray):
        chosen = Selection(chosen, 0, 1, chosen.blocks, None)
    if not isinstance(chosen, Selection):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"covariance, argument {k}: got {type(chosen).__name__}, expected parameter blocks "
            "such as x or x[[0, 1]]"
        )
    if not problem.owns(chosen.array):
        raise InputError(
            f"covariance, argument {k}: parameters {chosen.array.name!r} are another problem's"
        )
    rows = chosen.indices
    if rows is None:
        count = 1 if chosen.count is None else chosen.count
        rows = chosen.offset + chosen.stride * np.arange(count)
    return analysis.columns_of(chosen.array)[rows]


class _Inverse:
    """Products with (JᵀJ)⁻¹, or with the pseudo-inverse where there is a null space."""

    def __init__(self, normal: NormalEquations) -> None:
        sparse: Any = importlib.import_module("scipy.sparse")
        self.n = n = normal.n
        diagonal = normal.diagonal
        # What no residual depends on at all stays out of the scaling and is null.
        self._scale = 1.0 / np.sqrt(np.where(diagonal > 0.0, diagonal, 1.0))
        rows = np.repeat(np.arange(n), np.diff(normal.indptr))
        scaled = normal.upper * self._scale[rows] * self._scale[normal.indices]
        shifted = scaled.copy()
        shifted[normal.indptr[:-1]] += _SHIFT
        upper = sparse.csr_matrix((scaled, normal.indices, normal.indptr), shape=(n, n))
        self._matrix = sparse.csr_matrix(upper + sparse.triu(upper, 1).T)
        self._solver = choose_direct_solver(n, len(normal.indices))
        self._solver.analyze(normal.indptr, normal.indices, n)
        while not self._solver.factorize(shifted):
            # Rounding made a null direction negative.
            shifted[normal.indptr[:-1]] += _SHIFT
        null = self._null_vectors()
        self.null_dimension = null.shape[1]
        # The null space of JᵀJ itself, of which the pseudo-inverse is asked.
        self._null = np.linalg.qr(null * self._scale[:, None])[0]

    def _null_vectors(self) -> FloatArray:
        """Eigenvectors of the scaled matrix below `NULL_EIGENVALUE`, shape (n, dimension)."""
        if self.n <= _LARGEST_DENSE:
            linalg: Any = importlib.import_module("scipy.linalg")
            values, vectors = linalg.eigh(self._matrix.toarray())
            return vectors[:, values < NULL_EIGENVALUE]
        wanted = _FIRST_EIGENVALUES
        while True:
            values, vectors = self._smallest(wanted)
            null = values < NULL_EIGENVALUE
            if not null.all() or wanted >= self.n // 4:
                return vectors[:, null]
            wanted *= 2

    def _smallest(self, wanted: int) -> tuple[FloatArray, FloatArray]:
        """Smallest eigenvalues by inverse iteration on a subspace, and their vectors."""
        basis = np.random.default_rng(0).standard_normal((self.n, wanted))
        basis = np.linalg.qr(basis)[0]
        values = np.full(wanted, np.inf)
        for _ in range(30):
            basis = np.linalg.qr(self._solver.solve(basis))[0]
            before = values
            values, turn = np.linalg.eigh(basis.T @ (self._matrix @ basis))
            basis = basis @ turn
            settled = np.abs(values - before) <= 0.1 * np.abs(values) + 0.01 * NULL_EIGENVALUE
            if settled[: wanted // 2 + 1].all():
                break
        return values, basis

    def columns(self, chosen: IndexArray) -> FloatArray:
        """Columns of the (pseudo-)inverse, shape (n, len(chosen))."""
        unit = np.zeros((self.n, len(chosen)))
        unit[chosen, np.arange(len(chosen))] = 1.0
        right = self._projected(unit)
        scaled = right * self._scale[:, None]
        x = self._solver.solve(scaled)
        for _ in range(3):
            # Takes back the shift, and the rounding of the factorisation.
            x += self._solver.solve(scaled - self._matrix @ x)
        return self._projected(x * self._scale[:, None])

    def _projected(self, x: FloatArray) -> FloatArray:
        return x - self._null @ (self._null.T @ x)

    def close(self) -> None:
        """Free the factorisation."""
        self._solver.close()


def _gather(inverse: _Inverse, columns: list[IndexArray], variance: float) -> Covariance:
    flat = np.concatenate([c.ravel() for c in columns])
    free = np.unique(flat[flat >= 0])
    blocks = [np.zeros((*c.shape, c.shape[1])) for c in columns]
    joint = np.zeros((len(flat), len(flat))) if len(flat) <= _LARGEST_JOINT else None
    for first in range(0, len(free), _COLUMNS_AT_A_TIME):
        some = free[first : first + _COLUMNS_AT_A_TIME]
        solved = variance * inverse.columns(some)
        if joint is not None:
            _place_joint(joint, flat, some, solved)
        for block, own in zip(blocks, columns, strict=True):
            _place_blocks(block, own, some, solved)
    if joint is not None:
        joint = 0.5 * (joint + joint.T)
    symmetric = tuple(0.5 * (b + b.transpose(0, 2, 1)) for b in blocks)
    return Covariance(symmetric, inverse.null_dimension, joint)


def _place_joint(joint: FloatArray, flat: IndexArray, some: IndexArray, solved: FloatArray) -> None:
    at = np.flatnonzero(np.isin(flat, some))
    rows = np.flatnonzero(flat >= 0)
    which = np.searchsorted(some, flat[at])
    joint[rows[:, None], at] = solved[flat[rows][:, None], which]


def _place_blocks(block: FloatArray, own: IndexArray, some: IndexArray, solved: FloatArray) -> None:
    element, column = np.nonzero(np.isin(own, some))
    which = np.searchsorted(some, own[element, column])
    rows = own[element]
    picked = solved[np.maximum(rows, 0), which[:, None]]
    block[element, :, column] = np.where(rows >= 0, picked, 0.0)
