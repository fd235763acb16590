"""Powell's dogleg: from the steepest descent towards the Gauss-Newton step, inside a trust region.

Both steps are found once per point; after a rejected step only the region is smaller. Lengths are
those of D½δ, with the D of Levenberg-Marquardt.

Sources: Powell 1970, "A hybrid method for nonlinear equations"; Madsen, Nielsen, Tingleff 2004,
"Methods for non-linear least squares problems", §3.3; where JᵀJ is singular the Gauss-Newton step
is damped as in Ceres Solver, ``DoglegStrategy``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.damped_system import DAMPING_FORMS, LinearStep
from autograd_gpu.solvers.host_engine import HostRun, NormalEquationsEngine
from autograd_gpu.solvers.options import COUNT, POSITIVE, SHARE, Check, SolverOptions
from autograd_gpu.solvers.step_control import Regularization, TrustRegion

# Dampings tried for one Gauss-Newton step before steepest descent goes alone.
_MOST_DAMPING = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoglegOptions(SolverOptions):
    """Options of ``method="dogleg"``; those of every method are in SolverOptions.

    Attributes:
        initial_radius: of the trust region, in scaled unknowns.
        scaling: D; as for Levenberg-Marquardt.
        min_gain_ratio: a step is kept when actual / predicted reduction exceeds this.
        linear_tolerance: relative residual at which conjugate gradients stop.
        max_linear_iterations: of conjugate gradients, per step.

    Raises:
        InputError: a value outside its range; names the option.
    """

    initial_radius: float = 1e4
    scaling: str = "one-plus-norm"
    min_gain_ratio: float = 1e-3
    linear_tolerance: float = 1e-2
    max_linear_iterations: int = 400

    method: ClassVar[str] = "dogleg"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            **SolverOptions.checks,
            "initial_radius": POSITIVE,
            "min_gain_ratio": SHARE,
            "linear_tolerance": SHARE,
            "max_linear_iterations": COUNT,
        }
    )
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {"scaling": tuple(DAMPING_FORMS)}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Legs:
    """The two steps at a point, in scaled unknowns y = D½δ.

    Attributes:
        root: D½.
        descent: minimum of the model along the steepest descent, which the first leg ends at.
        newton: the Gauss-Newton step; None where there is none.
        linear_iterations: that it took.
        damping: that it took.
    """

    root: FloatArray
    descent: FloatArray
    newton: FloatArray | None
    linear_iterations: int
    damping: float


class Dogleg(NormalEquationsEngine):
    """One run of the method on the host; an engine. The damping of its records is 1 / radius."""

    def __init__(self, run: HostRun, options: DoglegOptions) -> None:
        super().__init__(run, options.linear_tolerance, options.max_linear_iterations)
        self._scale = DAMPING_FORMS[options.scaling]
        self._min_gain = options.min_gain_ratio
        self._region = TrustRegion(options.initial_radius)
        self._regularization = Regularization()
        self._legs: _Legs | None = None

    @property
    def damping(self) -> float:
        """1 / radius of the next step."""
        return 1.0 / self._region.radius

    def relinearize(self) -> str:
        """Evaluate the point again; its legs are those of another Jacobian."""
        self._legs = None
        return super().relinearize()

    @np.errstate(all="ignore")
    def step(self) -> StepRecord:
        """Cut the legs at the region, try, keep or not."""
        point, region, damping = self.point, self._region, self.damping
        fresh = self._legs is None
        legs = self._legs = self._legs or self._find_legs()
        scaled = _cut(legs, region.radius)
        length = float(np.linalg.norm(scaled))
        delta = scaled / legs.root
        slope = float(point.normal.gradient @ delta)
        linear = LinearStep(
            step=delta,
            norm=float(np.linalg.norm(delta)),
            predicted=-slope - 0.5 * point.curvature(delta),
            linear_iterations=legs.linear_iterations if fresh else 0,
        )
        if not linear.usable:
            region.rejected(length if math.isfinite(length) else math.inf)
            return self.refuse(linear, damping, region.exhausted)
        trial = point.trial(delta)
        gain = trial.reduction / linear.predicted
        if trial.trouble or not gain > self._min_gain:
            region.rejected(length)
            return self.refuse(linear, damping, region.exhausted, trial)
        region.accepted(gain, length)
        self._legs = None
        return self.keep(linear, damping, trial)

    def _find_legs(self) -> _Legs:
        point, control = self.point, self._regularization
        scale = self._scale(point.normal.diagonal)
        root = np.sqrt(scale)
        steepest = point.normal.gradient / root
        squared = float(steepest @ steepest)
        curvature = point.curvature(steepest / root)
        descent = -(squared / curvature) * steepest if curvature > 0.0 else -steepest
        iterations = 0
        while control.damping <= _MOST_DAMPING:
            linear = self.system.solve(control.damping * scale)
            if linear is not None and linear.usable:
                iterations += linear.linear_iterations
                legs = _Legs(
                    root=root,
                    descent=descent,
                    newton=root * linear.step,
                    linear_iterations=iterations,
                    damping=control.damping,
                )
                control.accepted(1.0)
                return legs
            control.rejected()
        control.damping = _MOST_DAMPING
        return _Legs(
            root=root, descent=descent, newton=None, linear_iterations=iterations, damping=math.inf
        )


def _cut(legs: _Legs, radius: float) -> FloatArray:
    """Where the path from 0 over the descent to the Gauss-Newton step leaves the region."""
    if legs.newton is not None and float(np.linalg.norm(legs.newton)) <= radius:
        return legs.newton
    first = float(np.linalg.norm(legs.descent))
    if first >= radius:
        return (radius / first) * legs.descent
    if legs.newton is None:
        return legs.descent
    # |a + β(b - a)| = radius, in the form that does not cancel (Madsen et al., eq. 3.22).
    across = legs.newton - legs.descent
    c = float(legs.descent @ across)
    square = float(across @ across)
    room = radius * radius - first * first
    root = math.sqrt(c * c + square * room)
    beta = (root - c) / square if c <= 0.0 else room / (c + root)
    return legs.descent + min(beta, 1.0) * across
