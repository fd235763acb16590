"""What engines of first-order methods share: the best point so far, and their records."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.cost_gradient import CostGradient, GradientPoint
from autograd_gpu.solvers.retraction import Retraction
from autograd_gpu.solvers.solution import KernelSummary
from autograd_gpu.solvers.termination import ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientRun:
    """What a first-order solve is made of.

    Attributes:
        analysis: the problem; borrowed.
        source: of costs and gradients; owned by the engine, which closes it.
        retraction: moves parameters by a step; borrowed.
        precision: of the source.
        start: all parameters, flat; not changed.
    """

    analysis: Analysis
    source: CostGradient
    retraction: Retraction
    precision: str
    start: FloatArray


@dataclass(frozen=True, slots=True)
class Attempt:
    """A point that was tried.

    Attributes:
        point: it.
        change: of the cost, against the best point.
    """

    point: GradientPoint
    change: float


class GradientEngine(ABC):
    """An engine whose steps come from gradients alone.

    ``best`` is the point with the lowest cost so far, and the one that a solve returns. A step is
    accepted if it becomes the best.
    """

    def __init__(self, run: GradientRun) -> None:
        self.run = run
        self.best = GradientPoint(
            parameters=run.start.copy(), terms=np.zeros(0), cost=math.nan, gradient=np.zeros(0),
            trouble="",
        )  # fmt: skip

    @property
    def description(self) -> str:
        """Processor or device that evaluates."""
        return self.run.source.description

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        return self.run.analysis.column_count

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost."""
        return ROUNDING[self.run.precision]

    @property
    @abstractmethod
    def damping(self) -> float:
        """Inverse of the next step length or learning rate, as the history states it."""

    @abstractmethod
    def step(self) -> StepRecord:
        """Try one step, and keep it or not."""

    def start(self) -> StepRecord:
        """Cost and gradient at the start."""
        self.best = best = self.run.source.at(self.best.parameters)
        return StepRecord(
            cost=best.cost,
            cost_before=best.cost,
            gradient_norm=math.nan if best.trouble else best.gradient_norm,
            damping=self.damping,
            trouble=best.trouble,
            lost=bool(best.trouble),
        )

    def attempt(self, begin: GradientPoint, step: FloatArray) -> Attempt:
        """The point at ``begin`` ⊞ ``step``, one number an unknown."""
        point = self.run.source.at(self.run.retraction(begin.parameters, step))
        change = math.nan if point.trouble else self.run.source.change(self.best, point)
        return Attempt(point, change)

    def report(
        self,
        tried: Attempt,
        norm: float,
        damping: float,
        *,
        accepted: bool,
        predicted: float = math.inf,
        gain: float = 0.0,
        exhausted: bool = False,
    ) -> StepRecord:
        """Make an accepted attempt the best point, and state the step.

        Args:
            tried: the point.
            norm: length of the step.
            damping: it was made with.
            accepted: whether it becomes the best point.
            predicted: reduction that the slope promised; infinite where none is stated.
            gain: actual over predicted reduction.
            exhausted: nothing shorter is tried.
        """
        before = self.best
        if accepted:
            self.best = tried.point
        return StepRecord(
            cost=self.best.cost,
            cost_before=before.cost,
            gradient_norm=self.best.gradient_norm,
            damping=damping,
            change=tried.change,
            gain=math.nan if tried.point.trouble else gain,
            predicted=predicted,
            accepted=accepted,
            step_norm=norm,
            parameter_norm=float(np.linalg.norm(before.parameters)),
            exhausted=exhausted,
            trouble=tried.point.trouble,
        )

    def found(
        self, tried: Attempt, length: float, direction: FloatArray, slope: float
    ) -> StepRecord:
        """Keep what a line search found.

        Args:
            tried: the point at ``length`` along the direction.
            length: multiplies the direction.
            direction: searched along.
            slope: of the cost along it at length 0.
        """
        return self.report(
            tried,
            length * float(np.linalg.norm(direction)),
            1.0 / length,
            accepted=True,
            predicted=-length * slope,
            gain=tried.change / (length * slope),
        )

    def not_found(
        self, tried: dict[float, Attempt], direction: FloatArray, slope: float, *, steepest: bool
    ) -> StepRecord:
        """What a line search without success tried last.

        An end only along the steepest descent: any other direction is given up and the next step
        is searched afresh, so nothing is stated of how little this one promised.

        Args:
            tried: length -> attempt, in the order of the search.
            direction: searched along.
            slope: of the cost along it at length 0.
            steepest: whether the direction was the steepest descent.
        """
        length, norm = next(reversed(tried)), float(np.linalg.norm(direction))
        return self.report(
            tried[length],
            length * norm if steepest else norm,
            1.0 / length,
            accepted=False,
            predicted=-length * slope if steepest else math.inf,
            gain=tried[length].change / (length * slope),
            exhausted=steepest,
        )

    def parameters(self) -> FloatArray:
        """The best point."""
        return self.best.parameters

    def linear_solver(self) -> tuple[str, str]:
        """There is none."""
        return "none", "The method takes gradients only."

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels."""
        return self.run.source.kernels()

    def close(self) -> None:
        """Free the source."""
        self.run.source.close()
