"""Projected Newton with a line search, for energies beside residuals.

Solves (JᵀJ + ΣH⁺) δ = -(Jᵀr + Σ∂E), H⁺ the Hessian of an element's energy with its eigenvalues
projected, and goes as far along δ as pays. The matrix is positive semi-definite, so δ descends;
points at which an energy is not finite are too far. Where the matrix is singular the next step is
damped; damping goes away again.

Source: Teran et al. 2005, "Robust quasistatic finite elements and flesh simulation", §7; Smith,
Schaefer 2015, "Bijective parameterization with free boundaries", §3.3 (bounds on the step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.semidefinite import PROJECTIONS
from autograd_gpu.solvers.damped_system import LinearStep
from autograd_gpu.solvers.energy_linearization import EnergyLinearization
from autograd_gpu.solvers.energy_model import EnergyModel
from autograd_gpu.solvers.gauss_newton import SHORTEST, GaussNewton, GaussNewtonOptions
from autograd_gpu.solvers.host_engine import HostRun
from autograd_gpu.solvers.options import NOT_NEGATIVE, POSITIVE, Check
from autograd_gpu.solvers.solution import KernelSummary

StepBound = Callable[[Mapping[str, FloatArray], Mapping[str, FloatArray]], float]
"""Parameter arrays and directions by name -> the longest share of the direction that may be tried.
"""

# The direction is one of descent, however short the useful part of it: barriers make it so.
_SHORTEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class NewtonOptions(GaussNewtonOptions):
    """Options of ``method="newton"``; those of the line search are Gauss-Newton's.

    Attributes:
        projection: of Hessians with negative eigenvalues: ``clamp`` sets those to the floor,
            ``absolute`` takes absolute values, ``none`` leaves them.
        eigenvalue_floor: least eigenvalue of a projected Hessian.
        max_step: largest change of any number in one step; None for any.
        step_bound: called with {name: array} of the point and of the step, shaped as given;
            returns the share of the step that may be tried at most, such as 0.9 of the way to the
            first inverted triangle.

    Raises:
        InputError: a value outside its range; names the option.
    """

    linear_tolerance: float = 1e-4
    projection: str = "clamp"
    eigenvalue_floor: float = 0.0
    max_step: float | None = None
    step_bound: StepBound | None = None

    method: ClassVar[str] = "newton"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {**GaussNewtonOptions.checks, "eigenvalue_floor": NOT_NEGATIVE}
    )
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType(
        {**GaussNewtonOptions.choices, "projection": PROJECTIONS}
    )

    def further_checks(self) -> None:
        """c₁ < c₂; a bound on the step that is one."""
        GaussNewtonOptions.further_checks(self)
        longest = self.max_step
        if longest is not None and not (longest > 0.0 and math.isfinite(longest)):
            raise InputError(f"option max_step={longest!r}: expected {POSITIVE[2]}, or None")
        if self.step_bound is not None and not callable(self.step_bound):
            raise InputError(f"option step_bound={self.step_bound!r}: expected a function, or None")


class Newton(GaussNewton):
    """One run of the method on the host; an engine. The damping of its records is λ, mostly 0."""

    def __init__(self, run: HostRun, options: NewtonOptions) -> None:
        self._options = options
        self._model = EnergyModel(run.analysis, run.choice)
        point = EnergyLinearization(
            run.analysis,
            run.session,
            run.retraction,
            run.start,
            run.watch,
            self._model,
            options.projection,
            options.eigenvalue_floor,
        )
        shortest = _SHORTEST if run.analysis.energies else SHORTEST
        super().__init__(run, options, point, shortest)

    @property
    def description(self) -> str:
        """Processor or device that evaluates."""
        return self._model.description if self.point.analysis.energies else super().description

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far."""
        return (*super().kernels(), *self._model.kernels())

    def close(self) -> None:
        """Free the linear solver and the sessions of the energies."""
        super().close()
        self._model.close()

    def longest(self, linear: LinearStep) -> float:
        """Share of the step that is tried first."""
        length = 1.0
        if self._options.max_step is not None:
            largest = float(np.max(np.abs(linear.step), initial=0.0))
            length = min(length, self._options.max_step / largest) if largest > 0.0 else length
        if self._options.step_bound is not None:
            named = self._named(self.point.x), self._directions(linear.step)
            bound = float(self._options.step_bound(*named))
            if not bound > 0.0:
                raise InputError(
                    f"option step_bound: returned {bound}, expected a number above 0, the share of "
                    "the step that may be tried"
                )
            length = min(length, bound)
        return length

    def _directions(self, step: FloatArray) -> dict[str, FloatArray]:
        """A step by array, in the shape of its blocks; of tangent coordinates on a manifold."""
        analysis = self.point.analysis
        padded = np.append(step, 0.0)  # column -1 is that of what is frozen
        return {
            a.name: padded[analysis.columns_of(a)].reshape(
                a.blocks, *(a.shape if a.chart is None else (a.tangent,))
            )
            for a in analysis.arrays
        }

    def _named(self, flat: FloatArray) -> dict[str, FloatArray]:
        analysis = self.point.analysis
        named: dict[str, FloatArray] = {}
        for array in analysis.arrays:
            base = analysis.base[array.name]
            part = flat[base : base + array.blocks * array.width]
            named[array.name] = part.reshape(array.blocks, *array.shape).copy()
        return named
