"""The loop that every method shares: start, step, observe, judge.

An *engine* is one run of one method somewhere: on the host, on a device, through JAX. It takes
steps, keeps the last accepted point and reports; it never decides that a solve is over. The loop
keeps the history and the clock, and `termination` judges.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Protocol

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import IterationRecord, KernelSummary, Status
from autograd_gpu.solvers.termination import Termination, Verdict, interrupted


class Engine(Protocol):
    """One run of a method over an analysed problem; owns what it needs until `close`."""

    @property
    def description(self) -> str:
        """Device or processor, for reports."""
        ...

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        ...

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost that it computes; see ``termination.ROUNDING``."""
        ...

    def start(self) -> StepRecord:
        """Evaluate the start; called once, first. `lost` if that is not finite."""
        ...

    def step(self) -> StepRecord:
        """Try one step, and keep it or not."""
        ...

    def parameters(self) -> FloatArray:
        """The last accepted point: all parameters, flat; frozen ones bit for bit as given."""
        ...

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems, and why; for the report."""
        ...

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far, for the report."""
        ...

    def close(self) -> None:
        """Free what the engine owns."""
        ...


class Observer(Protocol):
    """Sees the start and every iteration; returns True to stop."""

    def __call__(self, record: IterationRecord) -> bool:
        """Called after the iteration was decided."""
        ...


@dataclass(slots=True)
class Outcome:
    """Where the iteration ended."""

    parameters: FloatArray
    status: Status
    message: str
    history: list[IterationRecord] = field(default_factory=list[IterationRecord])

    @property
    def cost(self) -> float:
        """Of the last accepted point."""
        return self.history[-1].cost

    @property
    def initial_cost(self) -> float:
        """Of the start."""
        return self.history[0].cost


def iterate(engine: Engine, options: SolverOptions, observer: Observer) -> Outcome:
    """Run an engine until a tolerance or a limit is met, or a person interrupts it.

    Raises:
        KeyboardInterrupt: before the start was evaluated.
    """
    began = time.perf_counter()
    history: list[IterationRecord] = []

    def remember(record: StepRecord) -> IterationRecord:
        seconds = time.perf_counter() - began
        history.append(_iteration_record(len(history), record, seconds))
        return history[-1]

    def ended(verdict: Verdict) -> Outcome:
        return Outcome(engine.parameters(), *verdict, history)

    termination = Termination(options, engine.rounding, engine.unknowns)
    try:
        record = engine.start()
        seen = remember(record)
        verdict = termination.unusable(record)
        if verdict is None:
            verdict = termination.at_start(record, observer(seen))
        while verdict is None:
            record = engine.step()
            seen = remember(record)
            stopped = observer(seen)
            seconds = time.perf_counter() - began
            verdict = termination.after(record, seen.iteration, seconds, stopped)
    except KeyboardInterrupt:
        if not history:
            raise  # there is nothing to return yet
        verdict = interrupted(history[-1].iteration)
    return ended(verdict)


def _iteration_record(iteration: int, record: StepRecord, seconds: float) -> IterationRecord:
    return IterationRecord(
        iteration=iteration,
        cost=record.cost,
        gradient_norm=record.gradient_norm,
        damping=record.damping,
        gain_ratio=math.nan if iteration == 0 else record.gain,
        step_norm=0.0 if math.isnan(record.step_norm) else record.step_norm,
        linear_iterations=record.linear_iterations,
        accepted=record.accepted,
        seconds=seconds,
    )
