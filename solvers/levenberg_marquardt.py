"""Levenberg-Marquardt: solves (JᵀJ + λD) δ = -Jᵀr and keeps δ if the cost falls.

Under bounds the step is projected; see ``bounds.py``.

Source: Madsen, Nielsen, Tingleff 2004, "Methods for non-linear least squares problems", §3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.bounds import HELD
from autograd_gpu.solvers.damped_system import DAMPING_FORMS, LinearStep
from autograd_gpu.solvers.host_engine import HostRun, NormalEquationsEngine
from autograd_gpu.solvers.options import COUNT, SHARE, Check, SolverOptions
from autograd_gpu.solvers.step_control import DAMPING_CONTROLS, LARGEST_DAMPING


@dataclass(frozen=True, slots=True, kw_only=True)
class LevenbergMarquardtOptions(SolverOptions):
    """Options of ``method="levenberg-marquardt"``; those of every method are in SolverOptions.

    Attributes:
        initial_damping: λ at the start.
        damping: ``diagonal``, ``one-plus-norm`` or ``identity``.
        step_control: ``nielsen``, or ``ceres``: the same rule for the radius 1/λ, with its bounds.
        min_gain_ratio: a step is kept when actual / predicted reduction exceeds this.
        linear_tolerance: relative residual at which conjugate gradients stop.
        max_linear_iterations: of conjugate gradients, per step.

    Raises:
        InputError: a value outside its range; names the option.
    """

    initial_damping: float = 1e-4
    damping: str = "one-plus-norm"
    step_control: str = "nielsen"
    min_gain_ratio: float = 1e-3
    linear_tolerance: float = 1e-2
    max_linear_iterations: int = 400

    method: ClassVar[str] = "levenberg-marquardt"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            **SolverOptions.checks,
            "initial_damping": (
                Real, lambda v: 0.0 < v <= LARGEST_DAMPING, "more than 0, up to 1e32",
            ),
            "min_gain_ratio": SHARE,
            "linear_tolerance": SHARE,
            "max_linear_iterations": COUNT,
        }
    )  # fmt: skip
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"damping": tuple(DAMPING_FORMS), "step_control": tuple(DAMPING_CONTROLS)}
    )


class LevenbergMarquardt(NormalEquationsEngine):
    """One run of the method on the host; an engine."""

    def __init__(self, run: HostRun, options: LevenbergMarquardtOptions) -> None:
        super().__init__(run, options.linear_tolerance, options.max_linear_iterations)
        self._scale = DAMPING_FORMS[options.damping]
        self._min_gain = options.min_gain_ratio
        self._control = DAMPING_CONTROLS[options.step_control](options.initial_damping)

    @property
    def damping(self) -> float:
        """λ of the next step."""
        return self._control.damping

    def step(self) -> StepRecord:
        """Solve, try, keep or not."""
        point, control, damping = self.point, self._control, self._control.damping
        linear = self._direction(damping * self._scale(point.normal.diagonal))
        if linear is None or not linear.usable:
            control.rejected()
            return self.refuse(linear, damping, control.exhausted)
        trial = point.trial(linear.step)
        gain = trial.reduction / linear.predicted
        if trial.trouble or not gain > self._min_gain:
            control.rejected()
            return self.refuse(linear, damping, control.exhausted, trial)
        control.accepted(gain)
        return self.keep(linear, damping, trial)

    def _direction(self, damping: FloatArray) -> LinearStep | None:
        """δ; under bounds over the unknowns that are not held, and as far as the box goes."""
        point, box = self.point, self.point.analysis.box
        if box is None:
            return self.system.solve(damping)
        held = box.held(point.x, point.normal.gradient)
        damping[held] = HELD * (1.0 + point.normal.diagonal[held])
        linear = self.system.solve(damping)
        if linear is None or not linear.usable:
            return linear
        inside = box.shortened(point.x, linear.step)
        slope = float(point.normal.gradient @ inside)
        # The step itself stays as it is: the trial projects it, exactly onto the bounds.
        return replace(
            linear,
            norm=float(np.linalg.norm(inside)),
            predicted=-slope - 0.5 * point.curvature(inside),
        )
