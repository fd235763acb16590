"""Levenberg-Marquardt: solves (JᵀJ + λD) δ = -Jᵀr and keeps δ if the cost falls.

Source: Madsen, Nielsen, Tingleff 2004, "Methods for non-linear least squares problems", §3.2
(damping update by gain ratio); termination as in Ceres Solver. The actual reduction is summed in
difference form, ½Σ(r_old - r_new)(r_old + r_new), which keeps its digits where the difference of
two costs has lost them. The reduction that the model predicts, -gᵀδ - ½δᵀJᵀJδ, is
½(ρᵀδ - gᵀδ + λδᵀDδ) with the residual ρ = -g - (JᵀJ + λD)δ of the linear solve: so it holds for
steps of conjugate gradients too, and ρ = 0 for a direct solver.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray, Session
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.block_structure import block_structure
from autograd_gpu.solvers.conjugate_gradients import ConjugateGradients
from autograd_gpu.solvers.linear_solvers import LinearSolver
from autograd_gpu.solvers.solution import IterationRecord, Status

LARGEST_DAMPING = 1e32
DIAGONAL_RANGE = (1e-6, 1e32)


def _diagonal(diagonal: FloatArray) -> FloatArray:
    return np.clip(diagonal, *DIAGONAL_RANGE)


def _one_plus_norm(diagonal: FloatArray) -> FloatArray:
    return np.square(1.0 + np.sqrt(diagonal))


def _identity(diagonal: FloatArray) -> FloatArray:
    return np.ones_like(diagonal)


DAMPING_FORMS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "diagonal": _diagonal,
    "one-plus-norm": _one_plus_norm,
    "identity": _identity,
}
"""D as a function of diag(JᵀJ): Marquardt's scaling, (1 + column norm)², Levenberg's identity."""


def _at_least_0(value: float) -> bool:
    return value >= 0.0


_LIMITS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "max_iterations": (Integral, _at_least_0, "an integer of at least 0"),
    "max_seconds": (Real, _at_least_0, "a number of at least 0, or None"),
    "function_tolerance": (Real, _at_least_0, "a number of at least 0"),
    "gradient_tolerance": (Real, _at_least_0, "a number of at least 0"),
    "parameter_tolerance": (Real, _at_least_0, "a number of at least 0"),
    "initial_damping": (Real, lambda v: 0.0 < v <= LARGEST_DAMPING, "more than 0, up to 1e32"),
    "min_gain_ratio": (Real, lambda v: 0.0 <= v < 1.0, "a number from 0 to below 1"),
    "linear_tolerance": (Real, lambda v: 0.0 <= v < 1.0, "a number from 0 to below 1"),
    "max_linear_iterations": (Integral, lambda v: v >= 1, "a whole number of at least 1"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevenbergMarquardtOptions:
    """Options of ``method="levenberg-marquardt"``.

    Attributes:
        max_iterations: steps tried, rejected ones included.
        max_seconds: wall-clock limit, looked at between iterations; None for none.
        function_tolerance: stop when an accepted step changes the cost by less, relatively.
        gradient_tolerance: stop when the largest entry of |Jᵀr| is below.
        parameter_tolerance: stop when ‖δ‖ < tolerance · (‖x‖ + tolerance).
        initial_damping: λ at the start.
        damping: ``diagonal``, ``one-plus-norm`` or ``identity``.
        min_gain_ratio: a step is kept when actual / predicted reduction exceeds this.
        linear_tolerance: relative residual at which conjugate gradients stop.
        max_linear_iterations: of conjugate gradients, per step.

    Raises:
        InputError: a value outside its range; names the option.
    """

    max_iterations: int = 100
    max_seconds: float | None = None
    function_tolerance: float = 1e-8
    gradient_tolerance: float = 1e-10
    parameter_tolerance: float = 1e-8
    initial_damping: float = 1e-4
    damping: str = "one-plus-norm"
    min_gain_ratio: float = 1e-3
    linear_tolerance: float = 1e-2
    max_linear_iterations: int = 400

    def __post_init__(self) -> None:
        if self.damping not in DAMPING_FORMS:
            raise InputError(
                f"damping={self.damping!r} is unknown; expected one of {', '.join(DAMPING_FORMS)}"
            )
        for name, (kind, fits, expected) in _LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "max_seconds":
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
                raise InputError(f"option {name}={value!r}: expected {expected}")


def _worst(values: FloatArray) -> int:
    """Position of the first NaN or infinity, or else of the largest magnitude."""
    bad = ~np.isfinite(values)
    return int(np.argmax(bad if bad.any() else np.abs(values)))


class Observer(Protocol):
    """Sees every iteration; returns True to stop."""

    def __call__(self, record: IterationRecord, parameters: FloatArray) -> bool:
        """Called after the iteration was decided."""
        ...


@dataclass(slots=True)
class Outcome:
    """Where the iteration ended."""

    parameters: FloatArray
    cost: float
    initial_cost: float
    status: Status
    message: str
    history: list[IterationRecord] = field(default_factory=list[IterationRecord])


class _Stopwatch:
    """Adds up seconds by phase."""

    def __init__(self, timings: dict[str, float]) -> None:
        self._timings = timings
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap."""
        now = time.perf_counter()
        self._timings[phase] = self._timings.get(phase, 0.0) + now - self._last
        self._last = now


class LevenbergMarquardt:
    """One run of the method over an analysed problem.

    The state is the last accepted point: parameters, residuals, cost, normal equations. A step
    is tried on a copy and replaces the state only when it is accepted.
    """

    def __init__(
        self,
        analysis: Analysis,
        session: Session,
        linear_solver: LinearSolver,
        options: LevenbergMarquardtOptions,
        timings: dict[str, float],
    ) -> None:
        self._analysis = analysis
        self._session = session
        self._linear_solver = linear_solver
        self._options = options
        self._normal = analysis.normal_equations
        self._watch = _Stopwatch(timings)
        self._began = time.perf_counter()
        self._damping = options.initial_damping
        self._growth = 2.0
        self._history: list[IterationRecord] = []

    def run(self, start: FloatArray, observer: Observer) -> Outcome:
        """Iterate from ``start`` (all parameters, flat; not changed)."""
        self._x = start.copy()
        problem = self._linearize()
        self._initial_cost = self._cost
        if problem is not None:
            return self._outcome(Status.FAILED_NUMERICAL, f"at the start, {problem}")
        if self._analysis.column_count == 0:
            self._record(0, math.nan, 0.0, 0, True)
            return self._outcome(Status.CONVERGED_GRADIENT, "every parameter is frozen")
        self._prepare_linear_solver()
        self._watch.lap("symbolic")
        record = self._record(0, math.nan, 0.0, 0, True)
        if observer(record, self._x):
            return self._outcome(Status.STOPPED_BY_CALLBACK, "stopped by the callback")
        if self._gradient_norm <= self._options.gradient_tolerance:
            return self._outcome(*self._gradient_message())
        for iteration in range(1, self._options.max_iterations + 1):
            ended = self._step(iteration)
            if observer(self._history[-1], self._x) and ended is None:
                ended = (Status.STOPPED_BY_CALLBACK, "stopped by the callback")
            limit = self._options.max_seconds
            if ended is None and limit is not None and time.perf_counter() - self._began > limit:
                ended = (Status.MAX_SECONDS, f"{limit} s are over")
            if ended is not None:
                return self._outcome(*ended)
        return self._outcome(
            Status.MAX_ITERATIONS, f"{self._options.max_iterations} iterations are done"
        )

    def _prepare_linear_solver(self) -> None:
        solver = self._linear_solver
        if isinstance(solver, ConjugateGradients):
            solver.tolerance = self._options.linear_tolerance
            solver.max_iterations = self._options.max_linear_iterations
            columns = [self._analysis.columns_of(a) for a in self._analysis.arrays]
            solver.describe_unknowns(block_structure(columns, self._parameters_by_array))
        solver.analyze(self._normal.indptr, self._normal.indices, self._normal.n)

    def _parameters_by_array(self) -> list[FloatArray]:
        """The state, (blocks, width) for each array."""
        return [
            self._x[base : base + a.blocks * a.width].reshape(a.blocks, a.width)
            for a in self._analysis.arrays
            for base in (self._analysis.base[a.name],)
        ]

    def _linear_step(self) -> tuple[FloatArray, FloatArray | float]:
        """The step, and what it leaves of the linear system's residual."""
        solver = self._linear_solver
        step = solver.solve(-self._normal.gradient)
        if isinstance(solver, ConjugateGradients):
            self._linear_iterations = solver.iterations
            return step, solver.residual
        return step, 0.0

    # Overflow and NaN are looked for below, and named: NumPy's warnings would say less.
    @np.errstate(all="ignore")
    def _linearize(self) -> str | None:
        """Residuals, Jacobian and normal equations at x; says what is not finite."""
        residuals, values = self._session.residual_jacobian(self._x)
        self._watch.lap("evaluate")
        self._residuals = residuals.copy()
        self._cost: float = 0.5 * float(self._residuals @ self._residuals)
        if not math.isfinite(self._cost):
            row = _worst(self._residuals)
            value = float(self._residuals[row])
            overflow = ", and the cost is not finite" if math.isfinite(value) else ""
            return f"{self._analysis.locate_row(row)} is {value}{overflow}"
        free = self._analysis.free_values(values)
        self._normal.assemble(free, self._residuals)
        gradient = self._normal.gradient
        self._gradient_norm: float = float(np.max(np.abs(gradient), initial=0.0))
        self._watch.lap("assemble")
        if not math.isfinite(self._gradient_norm) or not np.isfinite(self._normal.diagonal).all():
            entry = _worst(free)
            row = int(np.searchsorted(self._analysis.indptr, entry, side="right")) - 1
            where = f"the Jacobian of {self._analysis.locate_row(row)}"
            if not math.isfinite(free[entry]):
                return f"{where} is not finite"
            return f"{where} is {free[entry]:.3g}, and its square is not finite"
        return None

    @np.errstate(all="ignore")
    def _step(self, iteration: int) -> tuple[Status, str] | None:
        """Try one step; a status if the iteration ends."""
        scale = self._damping * DAMPING_FORMS[self._options.damping](self._normal.diagonal)
        self._linear_iterations = 1
        factorized = self._linear_solver.factorize(self._normal.damped(scale))
        self._watch.lap("factorize")
        if not factorized:
            return self._rejected(iteration, math.nan, 0.0, math.inf)
        step, left = self._linear_step()
        self._watch.lap("solve")
        norm = float(np.linalg.norm(step))
        predicted = 0.5 * float(step @ (scale * step - self._normal.gradient + left))
        if not (math.isfinite(norm) and predicted > 0.0):
            return self._rejected(iteration, math.nan, norm, math.inf)
        trial = self._x.copy()
        trial[self._analysis.free_positions] += step
        residuals = self._session.residuals(trial)
        self._watch.lap("evaluate")
        difference = self._residuals - residuals
        reduction = 0.5 * float(difference @ (self._residuals + residuals))
        gain = reduction / predicted
        tolerance = self._options.parameter_tolerance
        tiny = norm <= tolerance * (float(np.linalg.norm(self._x)) + tolerance)
        if not math.isfinite(reduction):
            # No promise of the model, and no shortness of the step, makes this a minimum.
            row = _worst(residuals)
            where = f"{self._analysis.locate_row(row)} is {residuals[row]}"
            ended = self._rejected(iteration, math.nan, norm, math.inf, where)
            if tiny:
                return Status.FAILED_NUMERICAL, f"after a step of length {norm:.3g}, {where}"
            return ended
        if not gain > self._options.min_gain_ratio:
            ended = self._rejected(iteration, gain, norm, predicted)
            if ended is None and tiny:
                return Status.CONVERGED_PARAMETER, f"the step is {norm:.3g} long"
            return ended
        return self._accepted(iteration, trial, gain, norm, reduction, tiny)

    def _accepted(
        self,
        iteration: int,
        trial: FloatArray,
        gain: float,
        norm: float,
        reduction: float,
        tiny: bool,
    ) -> tuple[Status, str] | None:
        before = (self._x, self._residuals, self._cost, self._gradient_norm)
        self._x = trial
        problem = self._linearize()
        if problem is not None:
            # The cost fell but the Jacobian there is unusable: the point is not a state.
            self._x, self._residuals, self._cost, self._gradient_norm = before
            self._record(iteration, gain, norm, self._linear_iterations, False)
            return Status.FAILED_NUMERICAL, f"after a step of length {norm:.3g}, {problem}"
        self._record(iteration, gain, norm, self._linear_iterations, True)
        self._damping *= max(1.0 / 3.0, 1.0 - (2.0 * min(gain, 1e3) - 1.0) ** 3)
        self._damping = max(self._damping, 1e-32)
        self._growth = 2.0
        if self._gradient_norm <= self._options.gradient_tolerance:
            return self._gradient_message()
        if reduction <= self._options.function_tolerance * before[2]:
            share = reduction / before[2] if before[2] > 0.0 else 0.0
            return Status.CONVERGED_FUNCTION, f"the cost changed by {share:.3g}, relatively"
        if tiny:
            return Status.CONVERGED_PARAMETER, f"the step is {norm:.3g} long"
        return None

    def _rejected(
        self,
        iteration: int,
        gain: float,
        norm: float,
        predicted: float,
        reason: str = "check the gradients with problem.check_gradients()",
    ) -> tuple[Status, str] | None:
        self._record(iteration, gain, norm, self._linear_iterations, False)
        self._damping *= self._growth
        self._growth *= 2.0
        if predicted <= self._options.function_tolerance * self._cost:
            return (
                Status.CONVERGED_FUNCTION,
                f"the model promises a change of {predicted / max(self._cost, 1e-300):.3g}, "
                "relatively, and rounding takes it",
            )
        if self._damping > LARGEST_DAMPING:
            return (
                Status.FAILED_NUMERICAL,
                f"no damping gave a step that lowers the cost; {reason}",
            )
        return None

    def _gradient_message(self) -> tuple[Status, str]:
        return Status.CONVERGED_GRADIENT, f"largest gradient entry is {self._gradient_norm:.3g}"

    def _record(
        self, iteration: int, gain: float, norm: float, linear_iterations: int, accepted: bool
    ) -> IterationRecord:
        record = IterationRecord(
            iteration=iteration,
            cost=self._cost,
            gradient_norm=self._gradient_norm,
            damping=self._damping,
            gain_ratio=gain,
            step_norm=norm,
            linear_iterations=linear_iterations,
            accepted=accepted,
            seconds=time.perf_counter() - self._began,
        )
        self._history.append(record)
        return record

    def _outcome(self, status: Status, message: str) -> Outcome:
        if not self._history:
            self._gradient_norm = math.nan
            self._record(0, math.nan, 0.0, 0, True)
        return Outcome(self._x, self._cost, self._initial_cost, status, message, self._history)
