"""Levenberg-Marquardt with conjugate gradients, wholly on the device; the host only watches.

Same method, options and statuses as ``levenberg_marquardt``; the linear systems are solved
inexactly (relative residual ``linear_tolerance``) and the gain ratio accounts for that. One small
record is read back per step.
"""

from __future__ import annotations

import math
import time

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve, StepRecord
from autograd_gpu.runtime.node_tables import ArrayLayout, NodeTables
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.levenberg_marquardt import (
    LARGEST_DAMPING,
    LevenbergMarquardtOptions,
    Observer,
    Outcome,
)
from autograd_gpu.solvers.solution import IterationRecord, KernelSummary, Status


def array_layouts(analysis: Analysis) -> list[ArrayLayout]:
    """Where each parameter array lies, and which of its blocks are frozen."""
    return [
        ArrayLayout(
            base=analysis.base[a.name],
            blocks=a.blocks,
            width=a.width,
            frozen=analysis.columns_of(a)[:, 0] < 0,
        )
        for a in analysis.arrays
    ]


class DeviceLevenbergMarquardt:
    """One run of the method with everything but the stopping tests on the device.

    Args:
        analysis: the problem.
        device: where.
        start: all parameters, flat.
        options: of the method.
    """

    def __init__(
        self,
        analysis: Analysis,
        device: Device,
        start: FloatArray,
        options: LevenbergMarquardtOptions,
    ) -> None:
        self._analysis = analysis
        self._start = start
        self._options = options
        self._tables = NodeTables(array_layouts(analysis), analysis.groups, start, options.damping)
        self._solve = DeviceSolve(device, self._tables)
        self._history: list[IterationRecord] = []

    def run(self, observer: Observer) -> Outcome:
        """Iterate until a tolerance or a limit is met."""
        options = self._options
        began = time.perf_counter()
        self._solve.start(
            self._start,
            options.initial_damping,
            options.linear_tolerance,
            options.min_gain_ratio,
        )
        initial = math.nan
        ended: tuple[Status, str] = (
            Status.MAX_ITERATIONS,
            f"{options.max_iterations} iterations are done",
        )
        for iteration in range(1, options.max_iterations + 1):
            step = self._solve.step(options.max_linear_iterations)
            if iteration == 1:
                initial = step.cost_before
                self._remember(0, step, step.cost_before, 0.0, True)
                if not math.isfinite(initial):
                    ended = self._not_finite()
                    break
            self._remember(iteration, step, step.cost, time.perf_counter() - began, step.accepted)
            stop = observer(self._history[-1], self._start)
            judged = self._judge(step)
            if judged is None and stop:
                judged = (Status.STOPPED_BY_CALLBACK, "stopped by the callback")
            limit = options.max_seconds
            if judged is None and limit is not None and time.perf_counter() - began > limit:
                judged = (Status.MAX_SECONDS, f"{limit} s are over")
            if judged is not None:
                ended = judged
                break
        cost = self._history[-1].cost if self._history else initial
        return Outcome(self._final(), cost, initial, *ended, self._history)

    def _final(self) -> FloatArray:
        """The last accepted point; what was frozen comes from the start, bit for bit."""
        final = self._start.copy()
        free = self._analysis.free_positions
        final[free] = self._solve.parameters()[free]
        return final

    def _not_finite(self) -> tuple[Status, str]:
        return (
            Status.FAILED_NUMERICAL,
            "the cost at the start is not finite in float32; problem.evaluate() shows where",
        )

    def _judge(self, step: StepRecord) -> tuple[Status, str] | None:
        options = self._options
        if step.gradient_norm <= options.gradient_tolerance:
            return Status.CONVERGED_GRADIENT, f"largest gradient entry is {step.gradient_norm:.3g}"
        if step.accepted and -step.change <= options.function_tolerance * step.cost_before:
            share = -step.change / step.cost_before if step.cost_before > 0.0 else 0.0
            return Status.CONVERGED_FUNCTION, f"the cost changed by {share:.3g}, relatively"
        if not step.accepted and 0.0 <= step.predicted <= max(
            options.function_tolerance, 1e-7
        ) * abs(step.cost):
            return (
                Status.CONVERGED_FUNCTION,
                "the model promises less than float32 rounding of the cost",
            )
        tolerance = options.parameter_tolerance
        if step.step_norm <= tolerance * (step.parameter_norm + tolerance):
            return Status.CONVERGED_PARAMETER, f"the step is {step.step_norm:.3g} long"
        if not step.accepted and step.damping >= 0.1 * LARGEST_DAMPING:
            return (
                Status.FAILED_NUMERICAL,
                "no damping gave a step that lowers the cost; check the gradients with "
                "problem.check_gradients()",
            )
        return None

    def _remember(
        self, iteration: int, step: StepRecord, cost: float, seconds: float, accepted: bool
    ) -> None:
        first = iteration == 0
        self._history.append(
            IterationRecord(
                iteration=iteration,
                cost=cost,
                gradient_norm=step.gradient_norm,
                damping=step.damping,
                gain_ratio=math.nan if first else step.gain,
                step_norm=0.0 if first else step.step_norm,
                linear_iterations=0 if first else step.linear_iterations,
                accepted=accepted,
                seconds=seconds,
            )
        )

    def kernels(self) -> tuple[KernelSummary, ...]:
        """The generated kernels, for the report."""
        return tuple(
            KernelSummary(name=name, target="wgsl", ops=count)
            for name, count in self._solve.statement_counts().items()
        )

    def close(self) -> None:
        """Free the buffers."""
        self._solve.close()
