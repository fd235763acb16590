"""Levenberg-Marquardt with conjugate gradients, wholly on the device: an engine like the host's.

Same method and options as ``levenberg_marquardt``; the linear systems are solved inexactly
(relative residual ``linear_tolerance``) and the gain ratio accounts for that. One small record is
read back per step.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import ArrayLayout, NodeTables
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.device_preconditioner import AdaptiveSteps
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.solution import KernelSummary
from autograd_gpu.solvers.step_control import LARGEST_DAMPING
from autograd_gpu.solvers.termination import ROUNDING


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

    Cost and gradient of a point are learned with the step from it. So the first step is taken by
    `start` already and handed out by the first `step`; the gradient of a record is that before
    its step.

    Args:
        analysis: the problem.
        device: where.
        start: all parameters, flat.
        options: of the method.
        watch: books the time.
        why: the reason for solving there, for the report.

    Raises:
        InputError: a step control that the device does not have.
    """

    rounding = ROUNDING["float32"]

    def __init__(
        self,
        analysis: Analysis,
        device: Device,
        start: FloatArray,
        options: LevenbergMarquardtOptions,
        watch: Stopwatch,
        why: str,
    ) -> None:
        if options.step_control != "nielsen":
            raise InputError(
                f"step_control={options.step_control!r}: a solve on the device has 'nielsen' only; "
                "use linear_solver='sparse-cholesky' to solve on the CPU"
            )
        self._analysis = analysis
        self._start = start
        self._options = options
        self._device = device
        self._watch = watch
        self._why = why
        layouts = array_layouts(analysis)
        tables = NodeTables(layouts, analysis.groups, start, options.damping)
        self._solve = DeviceSolve(device, tables)
        self._steps = AdaptiveSteps(self._solve, tables, layouts, start)
        watch.lap("compile")
        self._first: StepRecord | None = None
        self._moved = False

    @property
    def description(self) -> str:
        """The device's name."""
        return self._device.name

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        return self._analysis.column_count

    def start(self) -> StepRecord:
        """Upload the start, take the first step, and report what it says of the start."""
        options = self._options
        self._solve.start(
            self._start, options.initial_damping, options.linear_tolerance, options.min_gain_ratio
        )
        self._first = first = self._steps.step(options.max_linear_iterations)
        self._watch.lap("iterate")
        usable = math.isfinite(first.cost_before)
        return StepRecord(
            cost=first.cost_before,
            cost_before=first.cost_before,
            gradient_norm=first.gradient_norm if usable else math.nan,
            damping=first.damping,
            trouble="" if usable else self._not_finite(),
            lost=not usable,
        )

    def step(self) -> StepRecord:
        """Try one step, and keep it or not."""
        step, self._first = self._first, None
        if step is None:
            step = self._steps.step(self._options.max_linear_iterations)
            self._watch.lap("iterate")
        self._moved = True
        return replace(step, exhausted=not step.accepted and step.damping >= 0.1 * LARGEST_DAMPING)

    def parameters(self) -> FloatArray:
        """The last accepted point; what was frozen comes from the start, bit for bit."""
        final = self._start.copy()
        if self._moved:
            free = self._analysis.free_positions
            final[free] = self._solve.parameters()[free]
        return final

    @np.errstate(all="ignore")
    def _not_finite(self) -> str:
        """Name the first residual that is not finite, as the oracle finds it in float64."""
        oracle = self._analysis.session(choose_backend("numpy", "float64", None, 0))
        residuals = oracle.residuals(self._start)
        row = int(np.argmax(~np.isfinite(residuals)))
        if math.isfinite(residuals[row]):
            row = int(np.argmax(np.abs(residuals)))
            where = self._analysis.locate_row(row)
            return f"{where} is {residuals[row]:.3g}, and the cost is not finite in float32"
        return f"{self._analysis.locate_row(row)} is {residuals[row]}"

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems, and why."""
        used = self._steps.describe()
        return f"pcg (device, {self._steps.name})", f"{self._why}. {used}" if used else self._why

    def kernels(self) -> tuple[KernelSummary, ...]:
        """The generated kernels, for the report."""
        return tuple(
            KernelSummary(name=name, target="wgsl", ops=count)
            for name, count in self._solve.statement_counts().items()
        )

    def close(self) -> None:
        """Free the buffers."""
        self._solve.close()
