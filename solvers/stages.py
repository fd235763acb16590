"""Solves made of a row of solves, each from where the last one ended.

A stage is one run of the driver's loop. Over all of them there is one history, one clock, one count
of iterations, and one callback that can end them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.driver import Observer, Outcome
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import IterationRecord, KernelSummary, Status


@dataclass(frozen=True, slots=True)
class StageRun:
    """What one stage produced, wherever it ran.

    Attributes:
        outcome: where it ended.
        device: device or processor.
        linear_solver: what solved the linear systems, and why.
        kernels: generated kernels.
    """

    outcome: Outcome
    device: str
    linear_solver: tuple[str, str]
    kernels: tuple[KernelSummary, ...]

    @property
    def stopped(self) -> bool:
        """Whether no stage may follow: not for a tolerance, nor for the stage's own limit."""
        status = self.outcome.status
        return not status.converged and status is not Status.MAX_ITERATIONS


RunStage = Callable[[Analysis, FloatArray, SolverOptions, Observer], StageRun]


class Stages:
    """Runs stages under common limits.

    Args:
        run: runs one stage: a problem, all parameters, options, and who watches.
        options: of the whole; limits are those of all stages together.
        observer: sees every iteration of every stage, numbered through.
    """

    def __init__(self, run: RunStage, options: SolverOptions, observer: Observer) -> None:
        self._run = run
        self._options = options
        self._observer = observer
        self._began = time.perf_counter()
        self._count = 0
        self.history: list[IterationRecord] = []

    @property
    def iterations(self) -> int:
        """Steps tried so far."""
        return self.history[-1].iteration if self.history else 0

    @property
    def spent(self) -> bool:
        """Whether all iterations are."""
        return self.iterations >= self._options.max_iterations

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def run(
        self,
        analysis: Analysis,
        start: FloatArray,
        options: SolverOptions,
        iterations: int | None = None,
    ) -> StageRun:
        """Run the next stage.

        Args:
            analysis: what to solve.
            start: all parameters, flat.
            options: whose limits are lowered to what is left.
            iterations: at most so many steps in this stage, if not None.
        """
        left = self._options.max_iterations - self.iterations
        seconds = self._options.max_seconds
        limited = replace(
            options,
            max_iterations=left if iterations is None else min(left, iterations),
            max_seconds=None if seconds is None else max(seconds - self._seconds(), 0.0),
        )
        stage, first, began = self._count, self.iterations, self._seconds()
        self._count += 1

        def observe(record: IterationRecord) -> bool:
            if record.iteration == 0 and stage > 0:
                return False  # the last point of the stage before
            numbered = replace(
                record,
                iteration=first + record.iteration,
                seconds=began + record.seconds,
                stage=stage,
            )
            self.history.append(numbered)
            return self._observer(numbered)

        ended = self._run(analysis, start, limited, observe)
        if not self.history:  # a start that is not finite is shown to nobody
            self.history.append(ended.outcome.history[0])
        return ended
