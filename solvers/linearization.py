"""The accepted point on the host, and what is known there: residuals, cost, normal equations."""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd_gpu.runtime.batch import FloatArray, Session
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.retraction import Retraction


class Stopwatch:
    """Adds up seconds by phase."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings = timings
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self._timings[phase] = self._timings.get(phase, 0.0) + now - self._last
        self._last = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A point that was tried.

    Attributes:
        parameters: all of them, flat.
        residuals: there, as ``Session.residuals`` gives them (and keeps them, without losses).
        reduction: how much lower its cost is, ½Σ(r_old - r_new)(r_old + r_new): that keeps its
            digits where the difference of two costs has lost them. May be NaN or infinite.
        trouble: the first residual that is not finite, if the reduction is not.
    """

    parameters: FloatArray
    residuals: FloatArray
    reduction: float
    trouble: str


def _worst(values: FloatArray) -> int:
    """Position of the first NaN or infinity, or else of the largest magnitude."""
    bad = ~np.isfinite(values)
    return int(np.argmax(bad if bad.any() else np.abs(values)))


class Linearization:
    """The last accepted point of a method, with JᵀJ and Jᵀr there.

    A trial is made on a copy; `move` makes it the point.

    Args:
        analysis: the problem.
        session: where residuals and Jacobians come from.
        retraction: moves the point by a step.
        start: all parameters, flat; not changed.
        watch: books the time.

    Attributes:
        x: all parameters, flat.
        residuals: whose half square is the cost; Gauss-Newton has others under a robust loss.
        cost: ½‖residuals‖²; infinite or NaN only at a start that is not finite.
        gradient_norm: largest entry of |Jᵀr|, under bounds of |x - P(x - Jᵀr)|; NaN before
            `linearize`.
    """

    def __init__(
        self,
        analysis: Analysis,
        session: Session,
        retraction: Retraction,
        start: FloatArray,
        watch: Stopwatch,
    ) -> None:
        self.analysis = analysis
        self.normal = analysis.normal_equations
        self._session = session
        self._retraction = retraction
        self._watch = watch
        self.x = start.copy()
        self.residuals: FloatArray = np.zeros(0)
        self._system: tuple[FloatArray, FloatArray] = (np.zeros(0), np.zeros(0))
        self._jacobian: Any = None
        self.cost: float = math.nan
        self.gradient_norm: float = math.nan

    def norm(self) -> float:
        """Length of the vector of all parameters."""
        return float(np.linalg.norm(self.x))

    def by_array(self) -> list[FloatArray]:
        """The point in the shape of its columns, ``(blocks, tangent)`` for each array.

        Zeros on a manifold, whose tangent coordinates are those of no place.
        """
        return [
            np.zeros((a.blocks, a.tangent))
            if a.chart is not None
            else self.x[base : base + a.blocks * a.width].reshape(a.blocks, a.width)
            for a in self.analysis.arrays
            for base in (self.analysis.base[a.name],)
        ]

    # Overflow and NaN are looked for below, and named: NumPy's warnings would say less.
    @np.errstate(all="ignore")
    def linearize(self, known: FloatArray | None = None) -> str:
        """Residuals, Jacobian and normal equations at x; says what is not finite, or nothing.

        Args:
            known: ``Session.residuals`` at x, if they were found already.
        """
        analysis = self.analysis
        residuals, values = self._session.residual_jacobian(self.x)
        corrected = residuals.copy()
        self.residuals = corrected
        if analysis.has_losses:
            # The pair that steps come from is corrected, and half its square is not the cost.
            self.residuals = self._session.residuals(self.x).copy() if known is None else known
        self._watch.lap("evaluate")
        self.cost = 0.5 * float(self.residuals @ self.residuals)
        if not math.isfinite(self.cost):
            row = _worst(self.residuals)
            value = float(self.residuals[row])
            overflow = ", and the cost is not finite" if math.isfinite(value) else ""
            return f"{analysis.locate_row(row)} is {value}{overflow}"
        self._system = (values, corrected)
        self._jacobian = None
        trouble = self._assemble(values, corrected)
        if trouble:
            return trouble
        gradient = self.normal.gradient
        if analysis.box is not None:
            gradient = analysis.box.projected_gradient(self.x, gradient)
        self.gradient_norm = float(np.max(np.abs(gradient), initial=0.0))
        self._watch.lap("assemble")
        if not math.isfinite(self.gradient_norm) or not np.isfinite(self.normal.diagonal).all():
            free = analysis.free_values(values)
            entry = _worst(free)
            row = int(np.searchsorted(analysis.indptr, entry, side="right")) - 1
            where = f"the Jacobian of {analysis.locate_row(row)}"
            if not math.isfinite(free[entry]):
                return f"{where} is not finite"
            return f"{where} is {free[entry]:.3g}, and its square is not finite"
        return ""

    def _assemble(self, values: FloatArray, corrected: FloatArray) -> str:
        """Normal equations from the values of J and r; what is not finite, if it is not them."""
        self.normal.assemble(values, corrected)
        return ""

    def least_squares(self) -> tuple[Any, FloatArray]:
        """J (SciPy CSR) and r of the linear least-squares problem min ‖Jδ + r‖² at the point.

        J is the same object until the point moves; frozen columns are left out.
        """
        values, residuals = self._system
        if self._jacobian is None:
            sparse: Any = importlib.import_module("scipy.sparse")
            analysis = self.analysis
            shape = (analysis.row_count, analysis.column_count)
            pattern = (analysis.free_values(values), analysis.indices, analysis.indptr)
            self._jacobian = sparse.csr_matrix(pattern, shape=shape)
        return self._jacobian, residuals

    @np.errstate(all="ignore")
    def trial(self, step: FloatArray) -> Trial:
        """The point at x ⊞ ``step``, one number a column of J; projected onto bounds."""
        parameters = self._retraction(self.x, step)
        if self.analysis.box is not None:
            self.analysis.box.project(parameters, self.x, step)
        residuals = self._session.residuals(parameters)
        self._watch.lap("evaluate")
        reduction = 0.5 * float((self.residuals - residuals) @ (self.residuals + residuals))
        trouble = ""
        if not math.isfinite(reduction):
            row = _worst(residuals)
            trouble = f"{self.analysis.locate_row(row)} is {residuals[row]}"
        return Trial(
            parameters=parameters,
            residuals=residuals.copy() if self.analysis.has_losses else residuals,
            reduction=reduction,
            trouble=trouble,
        )

    @np.errstate(all="ignore")
    def slope(self, trial: Trial, direction: FloatArray) -> float:
        """Derivative of the cost at a trial along ``direction``: rᵀJ·direction."""
        residuals, values = self._session.residual_jacobian(trial.parameters)
        self._watch.lap("evaluate")
        return float(residuals @ self.analysis.product(values, direction))

    def curvature(self, direction: FloatArray) -> float:
        """Squared length of J·direction at the point, from the assembled JᵀJ."""
        upper: Any = self.normal.matrix()
        both = 2.0 * float(direction @ (upper @ direction))
        return both - float(self.normal.diagonal @ np.square(direction))

    def move(self, trial: Trial) -> str:
        """Make a trial the point; if its Jacobian is unusable, say why and stay.

        After that the normal equations are those of the point refused.
        """
        before = (self.x, self.residuals, self.cost, self.gradient_norm)
        self.x = trial.parameters
        trouble = "interrupted"
        try:
            trouble = self.linearize(trial.residuals)
        finally:
            if trouble:
                # The cost fell but the Jacobian there is unusable: the point is not a state.
                self.x, self.residuals, self.cost, self.gradient_norm = before
        return trouble
