"""Solves (JᵀJ + diag(d)) δ = -Jᵀr by any linear solver, exact or not, and says how well."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.block_structure import block_structure
from autograd_gpu.solvers.conjugate_gradients import ConjugateGradients
from autograd_gpu.solvers.dense_qr import DenseQR
from autograd_gpu.solvers.linear_solvers import LinearSolver
from autograd_gpu.solvers.linearization import Linearization, Stopwatch
from autograd_gpu.solvers.schur import ImplicitSchurComplement, SchurComplement


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStep:
    """A solution δ.

    Attributes:
        step: δ, one number a column of J.
        norm: its length.
        predicted: reduction of the cost by the model, -gᵀδ - ½δᵀJᵀJδ.
        linear_iterations: that it took; 1 for a direct solver.
    """

    step: FloatArray
    norm: float
    predicted: float
    linear_iterations: int

    @property
    def usable(self) -> bool:
        """Whether the model promises a lower cost."""
        return math.isfinite(self.norm) and self.predicted > 0.0


DIAGONAL_RANGE = (1e-6, 1e32)


def _diagonal(diagonal: FloatArray) -> FloatArray:
    return np.clip(diagonal, *DIAGONAL_RANGE)


def _one_plus_norm(diagonal: FloatArray) -> FloatArray:
    return np.square(1.0 + np.sqrt(diagonal))


def _identity(diagonal: FloatArray) -> FloatArray:
    return np.ones_like(diagonal)


DAMPING_FORMS: MappingProxyType[str, Callable[[FloatArray], FloatArray]] = MappingProxyType(
    {"diagonal": _diagonal, "one-plus-norm": _one_plus_norm, "identity": _identity}
)
"""D as a function of diag(JᵀJ): Marquardt's scaling, (1 + column norm)², Levenberg's identity."""


class DampedSystem:
    """The normal equations of a point under changing damping.

    Args:
        point: the accepted point; its pattern is analysed here.
        solver: borrowed.
        watch: books the time.
    """

    def __init__(
        self, point: Linearization, solver: LinearSolver | DenseQR, watch: Stopwatch
    ) -> None:
        self._point = point
        self._normal = point.normal
        self._solver = solver
        self._watch = watch
        if isinstance(solver, ConjugateGradients):
            columns = [point.analysis.columns_of(a) for a in point.analysis.arrays]
            solver.describe_unknowns(block_structure(columns, point.by_array))
        if isinstance(solver, SchurComplement | ImplicitSchurComplement):
            solver.describe_blocks(self._normal.blocks)
        solver.analyze(self._normal.indptr, self._normal.indices, self._normal.n)
        watch.lap("symbolic")

    @np.errstate(all="ignore")
    def solve(self, damping: FloatArray) -> LinearStep | None:
        """The step under ``damping``, one number a column; None if the matrix is not definite.

        The predicted reduction is ½(ρᵀδ - gᵀδ + δᵀdiag(d)δ) with the residual
        ρ = -g - (JᵀJ + diag(d))δ of the linear solve: so it holds for steps of conjugate
        gradients too, and ρ = 0 for a direct solver.
        """
        solver, gradient = self._solver, self._normal.gradient
        if isinstance(solver, DenseQR):
            solver.linearize(*self._point.least_squares())
            factorized = solver.damp(damping)
        else:
            factorized = solver.factorize(self._normal.damped(damping))
        self._watch.lap("factorize")
        if not factorized:
            return None
        step = solver.step() if isinstance(solver, DenseQR) else solver.solve(-gradient)
        left: FloatArray | float = 0.0
        iterations = 1
        if isinstance(solver, ConjugateGradients):
            left, iterations = solver.residual, solver.iterations
        self._watch.lap("solve")
        return LinearStep(
            step=step,
            norm=float(np.linalg.norm(step)),
            predicted=0.5 * float(step @ (damping * step - gradient + left)),
            linear_iterations=iterations,
        )
