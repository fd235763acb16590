"""Adam, AdamW and gradient descent with momentum.

Steps of a given rate may raise the cost on their way, and go on from there; the best point is kept
aside, is what a solve returns, and a step is accepted only if it becomes the best. A point that is
not finite sends the method back to the best one with half the rate.

Sources: Kingma, Ba 2015, "Adam", algorithm 1; Loshchilov, Hutter 2019, "Decoupled weight decay
regularization", algorithm 2; Polyak 1964 (heavy ball).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.gradient_engine import Attempt, GradientEngine, GradientRun
from autograd_gpu.solvers.line_search import WolfeConditions, backtracking
from autograd_gpu.solvers.options import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Check,
    SolverOptions,
)

# A search that went down to this share of its first length only meets rounding further on.
_SHORTEST = 1e-12
# Halvings of the rate after which a method gives up.
_MOST_HALVINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamOptions(SolverOptions):
    """Options of ``method="adam"``; those of every method are in SolverOptions.

    Attributes:
        learning_rate: of each step.
        beta1, beta2: how much of the mean gradient and mean square is kept from step to step.
        epsilon: added to the root of the mean square.
        patience: steps in which the lowest cost must fall by ``function_tolerance``, relatively.

    Raises:
        InputError: a value outside its range; names the option.
    """

    max_iterations: int = 1000
    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    patience: int = 100

    method: ClassVar[str] = "adam"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            **SolverOptions.checks,
            "learning_rate": POSITIVE,
            "beta1": SHARE,
            "beta2": SHARE,
            "epsilon": POSITIVE,
            "patience": COUNT,
        }
    )

    def window(self) -> int:
        """Steps over which the change of the cost is judged."""
        return self.patience


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWOptions(AdamOptions):
    """Options of ``method="adamw"``: Adam's, and decoupled weight decay.

    Attributes:
        weight_decay: share of the parameters that a step takes away, times the learning rate. The
            cost reported, and the best point, are those of the problem alone.

    Raises:
        InputError: a value outside its range; names the option.
    """

    weight_decay: float = 1e-2

    method: ClassVar[str] = "adamw"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {**AdamOptions.checks, "weight_decay": NOT_NEGATIVE}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientDescentOptions(SolverOptions):
    """Options of ``method="gradient-descent"``; those of every method are in SolverOptions.

    Attributes:
        learning_rate: of each step; None for a length by backtracking, which never raises the cost.
        momentum: share of the last step that is added to the next one.
        patience: steps in which the lowest cost must fall by ``function_tolerance``, relatively.

    Raises:
        InputError: a value outside its range; names the option.
    """

    max_iterations: int = 1000
    learning_rate: float | None = None
    momentum: float = 0.9
    patience: int = 50

    method: ClassVar[str] = "gradient-descent"
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            **SolverOptions.checks,
            "learning_rate": (Real, POSITIVE[1], "a finite number above 0, or None"),
            "momentum": SHARE,
            "patience": COUNT,
        }
    )
    optional: ClassVar[tuple[str, ...]] = (*SolverOptions.optional, "learning_rate")

    def window(self) -> int:
        """Steps over which the change of the cost is judged."""
        return self.patience


class RatedEngine(GradientEngine):
    """A method whose step length is a given rate.

    Args:
        run: what it is made of.
        rate: of the first step.
    """

    def __init__(self, run: GradientRun, rate: float) -> None:
        super().__init__(run)
        self._rate = rate
        self._halvings = 0
        self.reset()

    @property
    def damping(self) -> float:
        """Inverse of the rate."""
        return 1.0 / self._rate

    @abstractmethod
    def reset(self) -> None:
        """Forget all gradients."""

    @abstractmethod
    def direction(self, gradient: FloatArray, position: FloatArray) -> FloatArray:
        """The next step for rate 1.

        Args:
            gradient: at the point reached.
            position: that point, one number an unknown; 0 on manifolds.
        """

    def start(self) -> StepRecord:
        """Cost and gradient at the start."""
        record = super().start()
        self._point = self.best
        return record

    @np.errstate(all="ignore")
    def step(self) -> StepRecord:
        """Go on from the point reached."""
        damping = self.damping
        position = self.run.retraction.position(self._point.parameters)
        step = self._rate * self.direction(self._point.gradient, position)
        tried = self.attempt(self._point, step)
        norm = float(np.linalg.norm(step))
        lowers = not tried.point.trouble and tried.change < 0.0
        if tried.point.trouble:
            self._point = self.best
            self._rate *= 0.5
            self._halvings += 1
            self.reset()
        else:
            self._point = tried.point
        exhausted = self._halvings >= _MOST_HALVINGS
        return self.report(tried, norm, damping, accepted=lowers, exhausted=exhausted)


class Adam(RatedEngine):
    """One run of Adam or AdamW; an engine. The damping of its records is 1 / learning rate."""

    def __init__(self, run: GradientRun, options: AdamOptions) -> None:
        self._options = options
        self._decay = options.weight_decay if isinstance(options, AdamWOptions) else 0.0
        super().__init__(run, options.learning_rate)

    def reset(self) -> None:
        """Forget both means."""
        self._steps = 0
        self._mean: FloatArray = np.zeros(self.unknowns)
        self._square: FloatArray = np.zeros(self.unknowns)

    def direction(self, gradient: FloatArray, position: FloatArray) -> FloatArray:
        """Mean gradient over root mean square, both without their bias towards 0."""
        o = self._options
        self._steps += 1
        self._mean = o.beta1 * self._mean + (1.0 - o.beta1) * gradient
        self._square = o.beta2 * self._square + (1.0 - o.beta2) * np.square(gradient)
        mean = self._mean / (1.0 - o.beta1**self._steps)
        square = self._square / (1.0 - o.beta2**self._steps)
        return -mean / (np.sqrt(square) + o.epsilon) - self._decay * position


class HeavyBall(RatedEngine):
    """Gradient descent with momentum at a fixed rate; an engine. Its damping is 1 / rate."""

    def __init__(self, run: GradientRun, rate: float, momentum: float) -> None:
        self._momentum = momentum
        super().__init__(run, rate)

    def reset(self) -> None:
        """Forget the velocity."""
        self._velocity: FloatArray = np.zeros(self.unknowns)

    def direction(self, gradient: FloatArray, position: FloatArray) -> FloatArray:
        """Part of the last direction, less the gradient."""
        self._velocity = self._momentum * self._velocity - gradient
        return self._velocity


class SearchedDescent(GradientEngine):
    """Gradient descent with momentum and backtracking; an engine. Its damping is 1 / length."""

    def __init__(self, run: GradientRun, momentum: float) -> None:
        super().__init__(run)
        self._momentum = momentum
        self._last: FloatArray | None = None
        self._length = 0.0

    @property
    def damping(self) -> float:
        """Inverse of the last length; 0 before the first."""
        return 1.0 / self._length if self._length > 0.0 else 0.0

    def step(self) -> StepRecord:
        """Shorten the step until the cost falls; without success drop the momentum and say so."""
        begin = self.best
        direction, slope = -begin.gradient, -float(begin.gradient @ begin.gradient)
        if self._last is not None:
            pushed = direction + self._momentum * self._last
            if float(begin.gradient @ pushed) < 0.0:
                direction, slope = pushed, float(begin.gradient @ pushed)
            else:
                self._last = None
        norm = float(np.linalg.norm(direction))
        first = 2.0 * self._length if self._length > 0.0 else min(1.0, 1.0 / norm)
        tried: dict[float, Attempt] = {}

        def change(length: float) -> float:
            tried[length] = self.attempt(begin, length * direction)
            return tried[length].change

        length = backtracking(change, slope, first, WolfeConditions(shortest=_SHORTEST))
        if length is None:
            steepest = self._last is None
            self._last, self._length = None, 0.0
            return self.not_found(tried, direction, slope, steepest=steepest)
        self._last, self._length = direction, length
        return self.found(tried[length], length, direction, slope)


def gradient_descent(run: GradientRun, options: GradientDescentOptions) -> GradientEngine:
    """The engine for a fixed rate, or for searched lengths."""
    if options.learning_rate is None:
        return SearchedDescent(run, options.momentum)
    return HeavyBall(run, options.learning_rate, options.momentum)
