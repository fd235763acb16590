"""Levenberg-Marquardt with conjugate gradients, wholly on the device: an engine like the host's.

Same method and options as ``levenberg_marquardt``; the linear systems are solved inexactly
(relative residual ``linear_tolerance``) and the gain ratio accounts for that. One small record is
read back per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from autograd_gpu.codegen.incidence import SolveStructure
from autograd_gpu.codegen.solve_kernels import Told, element_kernels
from autograd_gpu.codegen.solve_program import pipeline_of
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import BackendChoice, choose_backend
from autograd_gpu.runtime.collection import no_collection
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_orders import ArrayLayout
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.device_preconditioner import BLOCK_JACOBI, AdaptiveSteps, schedules_of
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.resident_solves import KeptSolve, ResidentSolve
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


class Steps(Protocol):
    """What takes the steps, each with a preconditioner of its choice."""

    @property
    def name(self) -> str:
        """Of the preconditioner."""
        ...

    def step(self, max_linear_iterations: int) -> StepRecord:
        """Try one step, and keep it or not."""
        ...

    def describe(self) -> str:
        """What was used and why, for the report; empty if there is nothing to say."""
        ...

    def warm_up(self) -> None:
        """Compile what later steps may need."""
        ...


class BlockJacobiSteps:
    """Steps that all have the same preconditioner, the inverses of the diagonal blocks.

    Args:
        solve: what steps.
        schedules: what is said of them in the report.
    """

    name = BLOCK_JACOBI

    def __init__(self, solve: ResidentSolve, schedules: str = "") -> None:
        self._solve = solve
        self._schedules = schedules

    def step(self, max_linear_iterations: int) -> StepRecord:
        """Try one step, and keep it or not."""
        return self._solve.step(max_linear_iterations)

    def describe(self) -> str:
        """The schedules; of the preconditioner there is no choice."""
        return self._schedules

    def warm_up(self) -> None:
        """Nothing: all steps are alike."""


def resident_steps(
    analysis: Analysis, choice: BackendChoice, start: FloatArray, damping: str
) -> tuple[ResidentSolve, Steps, Callable[[], None]]:
    """Tables and compiled steps of a problem where the choice of backend says, and what ends them.

    On WebGPU those of the last solve go on, if there was one.
    """
    if choice.backend == "jax":
        from autograd_gpu.runtime.jax_incidence import JaxTables
        from autograd_gpu.runtime.jax_solve import JaxSolve

        arrays, groups = array_layouts(analysis), analysis.groups
        through_jax = JaxSolve(JaxTables(arrays, groups, start, damping, choice.precision))
        return through_jax, BlockJacobiSteps(through_jax), through_jax.close
    key, residents = (choice.session_key, damping), analysis.residents
    kept = residents.take(key, analysis.groups) or _new_solve(analysis, choice, start, damping)
    steps: Steps
    if choice.precision == "float32":
        steps = AdaptiveSteps(kept.solve, kept.tables, kept.tables.arrays, start)
    else:  # the kernels of the coarse space are in float32
        steps = BlockJacobiSteps(kept.solve, schedules_of(kept.tables))
    return kept.solve, steps, lambda: residents.keep(key, kept)


def _new_solve(
    analysis: Analysis, choice: BackendChoice, start: FloatArray, damping: str
) -> KeptSolve:
    device, groups = choice.device, analysis.groups
    assert device is not None
    chooser = ScheduleChooser("solve", identity_of(device))

    def known(structure: SolveStructure) -> None:
        told = Told(lambda kernel: device.begin_pipelines([pipeline_of(kernel)]))
        kept = element_kernels(structure, told).values()
        device.begin_pipelines([pipeline_of(kernel) for kernel in kept])

    kind = start, damping, chooser, choice.precision, known
    with no_collection():
        tables = NodeTables(array_layouts(analysis), groups, *kind)
        return KeptSolve(device, DeviceSolve(device, tables), tables, groups)


class DeviceLevenbergMarquardt:
    """One run of the method with everything but the stopping tests on the device.

    Cost and gradient of a point are learned with the step from it. So the first step is taken by
    `start` already and handed out by the first `step`; the gradient of a record is that before
    its step.

    Args:
        analysis: the problem.
        choice: where, and in which precision.
        start: all parameters, flat.
        options: of the method.
        watch: books the time.
        why: the reason for solving there, for the report.

    Raises:
        InputError: a step control that the device does not have.
    """

    def __init__(
        self,
        analysis: Analysis,
        choice: BackendChoice,
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
        self._choice = choice
        self._watch = watch
        self._why = why
        opened = resident_steps(analysis, choice, start, options.damping)
        self._solve, self._steps, self._end = opened
        watch.lap("compile")
        self._first: StepRecord | None = None
        self._moved = False

    @property
    def description(self) -> str:
        """The device's name."""
        if self._choice.device is not None:
            return self._choice.device.name
        from autograd_gpu.runtime.jax_calls import device_name

        return device_name()

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost."""
        return ROUNDING[self._choice.precision]

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

    def warm_up(self) -> None:
        """Compile everything that a solve may need. JAX compiles when called: by a step."""
        self._steps.warm_up()
        if self._choice.backend == "jax":
            self.start()

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
            precision = self._choice.precision
            return f"{where} is {residuals[row]:.3g}, and the cost is not finite in {precision}"
        return f"{self._analysis.locate_row(row)} is {residuals[row]}"

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems, and why."""
        used = self._steps.describe()
        return f"pcg (device, {self._steps.name})", f"{self._why}. {used}" if used else self._why

    def kernels(self) -> tuple[KernelSummary, ...]:
        """The generated kernels, for the report."""
        return tuple(
            KernelSummary(name=name, target=self._choice.backend, ops=count)
            for name, count in self._solve.statement_counts().items()
        )

    def close(self) -> None:
        """Let tables and buffers wait for the problem's next solve, or free them."""
        self._end()
