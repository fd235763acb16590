"""L-BFGS: directions from the last few steps and gradients, lengths by strong Wolfe conditions.

Source: Nocedal, Wright 2006, "Numerical optimization", algorithms 7.4 and 7.5, eq. 7.20 (the
initial scaling).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.gradient_engine import Attempt, GradientEngine, GradientRun
from autograd_gpu.solvers.line_search import WolfeConditions, strong_wolfe
from autograd_gpu.solvers.options import (
    COUNT,
    LINE_SEARCH_CHECKS,
    Check,
    SolverOptions,
    check_wolfe,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LBFGSOptions(SolverOptions):
    """Options of ``method="l-bfgs"``; those of every method are in SolverOptions.

    Attributes:
        memory: steps that a direction is made from.
        sufficient_decrease: c₁ of φ(α) ≤ φ(0) + c₁αφ′(0).
        curvature: c₂ of |φ′(α)| ≤ c₂|φ′(0)|.
        max_line_search_steps: points tried along one direction.

    Raises:
        InputError: a value outside its range; names the option.
    """

    max_iterations: int = 1000
    memory: int = 10
    sufficient_decrease: float = 1e-4
    curvature: float = 0.9
    max_line_search_steps: int = 30

    method: ClassVar[str] = "l-bfgs"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {**SolverOptions.checks, **LINE_SEARCH_CHECKS, "memory": COUNT}
    )

    def further_checks(self) -> None:
        """c₁ < c₂."""
        check_wolfe(self.sufficient_decrease, self.curvature)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A step s, the change y of the gradient over it, and 1 / yᵀs."""

    s: FloatArray
    y: FloatArray
    rho: float


class LBFGS(GradientEngine):
    """One run of the method; an engine. The damping of its records is 1 / step length."""

    def __init__(self, run: GradientRun, options: LBFGSOptions) -> None:
        super().__init__(run)
        self._pairs: deque[_Pair] = deque(maxlen=options.memory)
        self._length = 1.0
        self._conditions = WolfeConditions(
            decrease=options.sufficient_decrease,
            curvature=options.curvature,
            max_evaluations=options.max_line_search_steps,
        )

    @property
    def damping(self) -> float:
        """Inverse of the last step length."""
        return 1.0 / self._length

    def step(self) -> StepRecord:
        """Search along the direction; without success forget the past and say so."""
        begin = self.best
        direction = self._direction(begin.gradient)
        slope = float(begin.gradient @ direction)
        if not (math.isfinite(slope) and slope < 0.0):
            self._pairs.clear()
            direction, slope = -begin.gradient, -float(begin.gradient @ begin.gradient)
        norm = float(np.linalg.norm(direction))
        first = 1.0 if self._pairs else min(1.0, 1.0 / norm)
        tried: dict[float, Attempt] = {}

        def evaluate(length: float) -> tuple[float, float]:
            tried[length] = self.attempt(begin, length * direction)
            return tried[length].change, float(tried[length].point.gradient @ direction)

        length = strong_wolfe(evaluate, slope, first, self._conditions)
        if length is None:
            steepest = not self._pairs
            self._pairs.clear()
            return self.not_found(tried, direction, slope, steepest=steepest)
        self._length = length
        self._remember(length * direction, tried[length].point.gradient - begin.gradient)
        return self.found(tried[length], length, direction, slope)

    def _remember(self, s: FloatArray, y: FloatArray) -> None:
        product = float(s @ y)
        # Positive by the curvature condition, but for rounding and searches that were cut short.
        if product > 1e-14 * float(np.linalg.norm(s)) * float(np.linalg.norm(y)):
            self._pairs.append(_Pair(s, y, 1.0 / product))

    def _direction(self, gradient: FloatArray) -> FloatArray:
        """-H·gradient by two loops (algorithm 7.4)."""
        q = gradient.copy()
        weights: list[float] = []
        for pair in reversed(self._pairs):
            weight = pair.rho * float(pair.s @ q)
            weights.append(weight)
            q -= weight * pair.y
        if self._pairs:
            last = self._pairs[-1]
            q *= 1.0 / (last.rho * float(last.y @ last.y))
        for pair, weight in zip(self._pairs, reversed(weights), strict=True):
            q += (weight - pair.rho * float(pair.y @ q)) * pair.s
        return -q
