"""Gauss-Newton with a line search: solves JᵀJ δ = -Jᵀr and goes as far along δ as pays.

Where JᵀJ is singular, or nothing pays along δ, the next step is damped; damping goes away again.

Source: Nocedal, Wright 2006, "Numerical optimization", §10.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.damped_system import DAMPING_FORMS, LinearStep
from autograd_gpu.solvers.host_engine import HostRun, NormalEquationsEngine
from autograd_gpu.solvers.line_search import WolfeConditions, backtracking, strong_wolfe
from autograd_gpu.solvers.linearization import Linearization, Trial
from autograd_gpu.solvers.options import (
    COUNT,
    LINE_SEARCH_CHECKS,
    SHARE,
    Check,
    SolverOptions,
    check_wolfe,
)
from autograd_gpu.solvers.step_control import Regularization

# Where only less than this share of a step lowers the cost, its direction is not worth following:
# close to a singular JᵀJ steps become ever longer and useful parts of them ever shorter (the method
# would stall at points with a gradient; Powell 1970 has an example). The next step is damped.
SHORTEST = 0.05

LINE_SEARCHES = ("backtracking", "strong-wolfe")


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussNewtonOptions(SolverOptions):
    """Options of ``method="gauss-newton"``; those of every method are in SolverOptions.

    Attributes:
        line_search: ``backtracking`` evaluates residuals only; ``strong-wolfe`` looks at slopes
            too, and may go further than the whole step.
        sufficient_decrease: c₁ of φ(α) ≤ φ(0) + c₁αφ′(0).
        curvature: c₂ of |φ′(α)| ≤ c₂|φ′(0)|, for ``strong-wolfe``.
        max_line_search_steps: points tried along one direction.
        scaling: D of JᵀJ + λD where damping is needed; as for Levenberg-Marquardt.
        linear_tolerance: relative residual at which conjugate gradients stop.
        max_linear_iterations: of conjugate gradients, per step.

    Raises:
        InputError: a value outside its range; names the option.
    """

    line_search: str = "backtracking"
    sufficient_decrease: float = 1e-4
    curvature: float = 0.9
    max_line_search_steps: int = 30
    scaling: str = "one-plus-norm"
    linear_tolerance: float = 1e-2
    max_linear_iterations: int = 400

    method: ClassVar[str] = "gauss-newton"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            **SolverOptions.checks,
            **LINE_SEARCH_CHECKS,
            "linear_tolerance": SHARE,
            "max_linear_iterations": COUNT,
        }
    )
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"line_search": LINE_SEARCHES, "scaling": tuple(DAMPING_FORMS)}
    )

    def further_checks(self) -> None:
        """c₁ < c₂."""
        check_wolfe(self.sufficient_decrease, self.curvature)


class GaussNewton(NormalEquationsEngine):
    """One run of the method on the host; an engine. The damping of its records is λ, mostly 0."""

    def __init__(
        self,
        run: HostRun,
        options: GaussNewtonOptions,
        point: Linearization | None = None,
        shortest: float = SHORTEST,
    ) -> None:
        super().__init__(run, options.linear_tolerance, options.max_linear_iterations, point)
        self._scale = DAMPING_FORMS[options.scaling]
        self._control = Regularization()
        self._strong = options.line_search == "strong-wolfe"
        self._conditions = WolfeConditions(
            decrease=options.sufficient_decrease,
            curvature=options.curvature,
            max_evaluations=options.max_line_search_steps,
            shortest=shortest,
        )

    @property
    def damping(self) -> float:
        """λ of the next step."""
        return self._control.damping

    def step(self) -> StepRecord:
        """Solve, search along the solution, keep what was found."""
        point, control, damping = self.point, self._control, self._control.damping
        linear = self.system.solve(damping * self._scale(point.normal.diagonal))
        if linear is None or not linear.usable:
            control.rejected()
            return self.refuse(linear, damping, control.exhausted)
        slope = float(point.normal.gradient @ linear.step)
        first = self.longest(linear)
        length, trial = self._search(linear, slope, first)
        if length is None or length < self._conditions.shortest * first:
            control.rejected()
            return self.refuse(linear, damping, control.exhausted, trial)
        control.accepted(1.0)
        # The model along the line is αφ′(0) + α²(-φ′(0) - predicted).
        promised = -length * slope + length * length * (slope + linear.predicted)
        part = LinearStep(
            step=length * linear.step,
            norm=length * linear.norm,
            predicted=promised if promised > 0.0 else -length * slope,
            linear_iterations=linear.linear_iterations,
        )
        return self.keep(part, damping, trial)

    def longest(self, linear: LinearStep) -> float:
        """Length along a step that is tried first: all of it."""
        return 1.0

    def _search(self, linear: LinearStep, slope: float, first: float) -> tuple[float | None, Trial]:
        """Length along the step and the point there; None and the last point if there is none."""
        tried: dict[float, Trial] = {}

        def change(length: float) -> float:
            tried[length] = self.point.trial(length * linear.step)
            return -tried[length].reduction

        def both(length: float) -> tuple[float, float]:
            found = change(length)
            usable = math.isfinite(found)
            return found, self.point.slope(tried[length], linear.step) if usable else math.inf

        if not slope < 0.0:
            return None, self.point.trial(first * linear.step)
        if self._strong:
            length = strong_wolfe(both, slope, first, self._conditions)
        else:
            length = backtracking(change, slope, first, self._conditions)
        return length, tried[next(reversed(tried)) if length is None else length]
