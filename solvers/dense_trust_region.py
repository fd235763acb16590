"""Least squares of few unknowns: Moré's trust region over the singular values of J.

A step minimises ½‖q + Rδ‖² in ‖Dδ‖ ≤ Δ, where RᵀR = JᵀJ and Rᵀq = Jᵀr. R comes from an orthogonal
factorisation of J where J is small, so its condition is never squared. When the cost has converged
to rounding, full Gauss-Newton steps go on as long as they lower the gradient: its zero is known
to many more digits than the minimum of the cost.

Sources: Moré 1978, "The Levenberg-Marquardt algorithm: implementation and theory" (scaling, radius,
tests of convergence, as in MINPACK's ``lmder``); Nocedal, Wright 2006, §4.3 (the step).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autograd_gpu.errors import SolveError
from autograd_gpu.runtime.batch import FloatArray

_EPSILON = float(np.finfo(np.float64).eps)
# In units of ‖Dx‖; MINPACK takes 100 and then leaves the slope of NIST's BoxBOD for a plateau.
_FIRST_RADIUS = 1.0
_ACCEPT = 1e-4
# Share of the gradient that a polishing step has to leave at most, and their number at most.
_POLISH = 0.9
_POLISHING_STEPS = 50
# Polishing may change the cost by this much, relatively: rounding, and no other minimum.
_POLISH_COST = 1e-9


@dataclass(frozen=True, slots=True)
class LinearModel:
    """½‖image + factor · δ‖², up to a constant, near a point.

    Attributes:
        factor: R with RᵀR = JᵀJ, shape (k, n), k ≤ n.
        image: q with Rᵀq = Jᵀr, shape (k,).
        gradient: Jᵀr, shape (n,).
        column_norms: of J, shape (n,).
    """

    factor: FloatArray
    image: FloatArray
    gradient: FloatArray
    column_norms: FloatArray


class DenseModel(Protocol):
    """A least-squares problem of a few unknowns."""

    def residuals(self, x: FloatArray) -> FloatArray:
        """Residuals whose half square is the cost; an array that the caller may keep."""
        ...

    def linearize(self, x: FloatArray) -> LinearModel:
        """The model of Gauss-Newton at x."""
        ...


def factored(jacobian: FloatArray, residuals: FloatArray) -> LinearModel:
    """The model of a dense J, (m, n), by an orthogonal factorisation."""
    q, factor = np.linalg.qr(jacobian)
    return LinearModel(
        factor=factor,
        image=q.T @ residuals,
        gradient=jacobian.T @ residuals,
        column_norms=np.linalg.norm(jacobian, axis=0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """Of Moré 1978: relative change of the cost, of x, and the scaled gradient; and the limit."""

    ftol: float
    xtol: float
    gtol: float
    max_evaluations: int


MESSAGES = {
    0: "the limit of function evaluations is reached",
    1: "the scaled gradient is below gtol",
    2: "the relative change of the cost is below ftol",
    3: "the relative size of the trust region is below xtol",
    4: "both ftol and xtol are satisfied",
}


@dataclass(slots=True)
class DenseMinimum:
    """Where it ended; ``status`` is one of ``MESSAGES``, the numbers of SciPy."""

    x: FloatArray
    cost: float
    status: int
    evaluations: int
    linearizations: int


@dataclass(frozen=True, slots=True)
class _Step:
    delta: FloatArray
    length: float
    predicted: float
    full: bool


class _Region:
    """Steps of one model in scaled variables Dδ."""

    def __init__(self, model: LinearModel, scale: FloatArray) -> None:
        self._scale = scale
        left, self._values, self._right = np.linalg.svd(model.factor / scale, full_matrices=False)
        self._image = left.T @ model.image
        largest = float(self._values[0]) if self._values.size else 0.0
        self._positive = self._values > _EPSILON * len(scale) * largest

    def step(self, radius: float) -> _Step:
        """The step within 1 % of the radius, or the shorter one of Gauss-Newton."""
        s, c = self._values[self._positive], self._image[self._positive]
        damping = 0.0
        weights = s * c
        length = float(np.linalg.norm(c / s))
        if length > radius:
            damping = _damping(s, weights, radius)
        scaled = -(weights / (s * s + damping))
        left = damping / (s * s + damping)
        delta = (scaled @ self._right[self._positive]) / self._scale
        return _Step(
            delta=delta,
            length=float(np.linalg.norm(scaled)),
            predicted=0.5 * float(np.sum(c * c * (1.0 - left) * (1.0 + left))),
            full=damping == 0.0,
        )


def _damping(s: FloatArray, weights: FloatArray, radius: float) -> float:
    """The λ at which ‖weights / (s² + λ)‖ is ``radius``, by Newton on its inverse, safeguarded."""
    low, high = 0.0, float(np.linalg.norm(weights)) / radius
    damping = 1e-3 * high
    for _ in range(60):
        y = weights / (s * s + damping)
        length = float(np.linalg.norm(y))
        if abs(length - radius) <= 1e-2 * radius:
            break
        low, high = (damping, high) if length > radius else (low, damping)
        slope = float(np.sum(y * y / (s * s + damping)))
        damping += (length - radius) / radius * length * length / slope
        if not low < damping < high:
            damping = max(1e-3 * high, math.sqrt(low * high))
    return damping


class DenseTrustRegion:
    """One run of the method.

    Args:
        model: the problem.
        start: x, shape (n,); not changed.
        scale: D, shape (n,), or None for Moré's: the largest column norms of J so far.
        tolerances: when to end.
        report: called with (evaluations, cost, reduction, step length, scaled gradient) after
            each evaluation; True stops.

    Raises:
        SolveError: residuals or Jacobian at the start are not finite.
    """

    def __init__(
        self,
        model: DenseModel,
        start: FloatArray,
        tolerances: Tolerances,
        scale: FloatArray | None = None,
        report: Callable[[int, float, float, float, float], None] | None = None,
    ) -> None:
        self._model = model
        self._tolerances = tolerances
        self._fixed_scale = scale
        self._report = report
        self._x = start.copy()
        self._residuals = model.residuals(self._x)
        self._cost: float = 0.5 * float(self._residuals @ self._residuals)
        self._evaluations, self._linearizations = 1, 1
        self._scale = np.zeros(len(start)) if scale is None else scale
        self._radius = 0.0
        self._linear: LinearModel = model.linearize(self._x)
        self._rescale()
        if not (math.isfinite(self._cost) and np.isfinite(self._linear.gradient).all()):
            raise SolveError(
                f"at the start {start.tolist()} the residuals or their derivatives are not finite; "
                "start elsewhere"
            )

    @property
    def scaled_gradient(self) -> float:
        """Largest cosine between r and a column of J: 0 at a minimum, whatever the units."""
        norms = self._linear.column_norms * math.sqrt(2.0 * self._cost)
        usable = norms > 0.0
        cosines = np.abs(self._linear.gradient[usable]) / norms[usable]
        return float(np.max(cosines, initial=0.0))

    @np.errstate(all="ignore")
    def run(self) -> DenseMinimum:
        """Iterate to convergence, then polish."""
        length = float(np.linalg.norm(self._scale * self._x))
        self._radius = _FIRST_RADIUS * (length if length > 0.0 else 1.0)
        status = 1 if self.scaled_gradient <= self._tolerances.gtol else None
        while status is None:
            status = self._iterate()
        if status:
            self._polish()
        return DenseMinimum(self._x, self._cost, status, self._evaluations, self._linearizations)

    def _linearize(self) -> None:
        self._linear = self._model.linearize(self._x)
        self._linearizations += 1
        self._rescale()

    def _rescale(self) -> None:
        if self._fixed_scale is None:
            norms = self._linear.column_norms
            # A column that vanishes scales nothing.
            self._scale = np.maximum(self._scale, np.where(norms > 0.0, norms, 0.0))
            self._scale = np.where(self._scale > 0.0, self._scale, 1.0)

    def _iterate(self) -> int | None:
        """Steps from one point until one is kept; a status if that is the end."""
        region = _Region(self._linear, self._scale)
        kept = False
        while not kept:
            step = region.step(self._radius)
            trial = self._x + step.delta
            residuals = self._model.residuals(trial)
            self._evaluations += 1
            difference = self._residuals - residuals
            reduction = 0.5 * float(difference @ (self._residuals + residuals))
            before = self._cost
            gain = reduction / step.predicted if step.predicted > 0.0 else 0.0
            if not math.isfinite(gain):
                gain = -1.0
            self._resize(step, reduction, gain)
            kept = gain >= _ACCEPT
            if kept:
                self._x, self._residuals = trial, residuals
                self._cost = 0.5 * float(residuals @ residuals)
                self._linearize()
            self._tell(reduction, step.length)
            status = self._judge(before, reduction, step.predicted, gain)
            if status is not None:
                return status
        return None

    def _resize(self, step: _Step, reduction: float, gain: float) -> None:
        if gain <= 0.25:
            slope = float(self._linear.gradient @ step.delta)
            shrink = 0.5 if reduction >= 0.0 else 0.1
            if reduction < 0.0 and math.isfinite(reduction):
                # The minimum of the parabola through both costs and the slope.
                shrink = min(max(slope / (2.0 * (reduction + slope)), 0.1), 0.5)
            self._radius = shrink * min(self._radius, 10.0 * step.length)
        elif gain >= 0.75 or step.full:
            self._radius = 2.0 * step.length

    def _judge(self, before: float, reduction: float, predicted: float, gain: float) -> int | None:
        limits = self._tolerances
        if self._cost == 0.0 or self.scaled_gradient <= limits.gtol:
            return 1
        small = limits.ftol * before
        flat = abs(reduction) <= small and predicted <= small and gain <= 2.0
        short = self._radius <= limits.xtol * float(np.linalg.norm(self._scale * self._x))
        if flat or short:
            return 4 if flat and short else 2 if flat else 3
        if predicted <= _EPSILON * before or self._radius <= 1e-300:
            return 2  # rounding takes what the model promises
        return 0 if self._evaluations >= limits.max_evaluations else None

    def _polish(self) -> None:
        """Full steps while they lower the gradient and leave the cost where it is."""
        for _ in range(_POLISHING_STEPS):
            kept = (self._x, self._residuals, self._cost, self._linear)
            gradient = self.scaled_gradient
            if gradient == 0.0:
                return
            self._x = self._x + _Region(self._linear, self._scale).step(math.inf).delta
            self._residuals = self._model.residuals(self._x)
            self._evaluations += 1
            self._cost = 0.5 * float(self._residuals @ self._residuals)
            self._linearize()
            better = self.scaled_gradient <= _POLISH * gradient
            if not (better and self._cost <= kept[2] * (1.0 + _POLISH_COST)):
                self._x, self._residuals, self._cost, self._linear = kept
                return

    def _tell(self, reduction: float, length: float) -> None:
        if self._report is not None:
            self._report(self._evaluations, self._cost, reduction, length, self.scaled_gradient)
