"""The schedules of a problem, ready to be timed: what ``ag.tune`` and the benchmarks measure.

A trial is opened once and gives one time whenever it is asked, so that several can be timed in
turns.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from autograd_gpu.errors import DeviceError, DeviceLostError, DeviceMemoryError, InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.closing import Closing
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.numba_backend import NumbaSession
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedule_costs import PRODUCTS_PER_LINEARIZATION
from autograd_gpu.runtime.schedules import GroupFeatures, Schedule
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.device_preconditioner import SMALLEST_PROBLEM
from autograd_gpu.solvers.host_schedules import gram_of, host_chooser, host_features
from autograd_gpu.solvers.trial_times import Slope, TimedProgram, Warmth

OPEN_AT_ONCE = 6
"""Trials that keep their buffers meanwhile, at most."""


class Trial(Protocol):
    """One schedule of all groups, ready to be timed."""

    def sample(self) -> float:
        """Seconds of one unit of work, now."""
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


class Trials(Protocol):
    """The schedules of one problem for one purpose."""

    @property
    def chooser(self) -> ScheduleChooser:
        """Of the purpose and the device."""
        ...

    @property
    def features(self) -> Sequence[GroupFeatures]:
        """Of all groups."""
        ...

    def allows(self, schedule: Schedule) -> bool:
        """Whether a schedule is worth trying here."""
        ...

    def open(self, schedules: Sequence[Schedule]) -> Trial:
        """Make schedules ready, one per group.

        Raises:
            DeviceError: the device refuses, or has no memory left for them.
        """
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


class Stand(Closing):
    """Samples schedules in any order; keeps the trials sampled last open.

    Where memory is short, the others make room.

    Args:
        trials: opens them; borrowed.
    """

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._open: OrderedDict[tuple[Schedule, ...], Trial] = OrderedDict()
        self._refused: set[tuple[Schedule, ...]] = set()

    def ready(self, wanted: Sequence[tuple[Schedule, ...]]) -> None:
        """Open some, as many as fit, so that no time is lost between their samples."""
        for schedules in wanted[:OPEN_AT_ONCE]:
            self._opened(schedules)

    def sample(self, schedules: tuple[Schedule, ...]) -> float | None:
        """Seconds of one unit of work; None if the device refuses.

        Raises:
            DeviceLostError: the device is gone.
        """
        trial = self._opened(schedules)
        return None if trial is None else trial.sample()

    def _opened(self, schedules: tuple[Schedule, ...]) -> Trial | None:
        if schedules in self._open:
            self._open.move_to_end(schedules)
            return self._open[schedules]
        if schedules in self._refused:
            return None
        while len(self._open) >= OPEN_AT_ONCE:
            self._open.popitem(last=False)[1].close()
        try:
            trial = self._with_room(schedules)
        except DeviceLostError:
            raise
        except DeviceError:
            self._refused.add(schedules)
            return None
        self._open[schedules] = trial
        return trial

    def _with_room(self, schedules: tuple[Schedule, ...]) -> Trial:
        try:
            return self._trials.open(schedules)
        except DeviceMemoryError:
            if not self._open:
                raise
        self.close()
        return self._trials.open(schedules)

    def close(self) -> None:
        """Close all; those that are sampled again are opened anew."""
        while self._open:
            self._open.popitem()[1].close()


@dataclass(slots=True)
class _SolveTrial:
    """A linearization with its products.

    Attributes:
        program: of the solve.
        iterations: that conjugate gradients make before they find themselves converged.
    """

    program: TimedProgram
    iterations: int

    def sample(self) -> float:
        """Of as many products as a step has, about; reckoned where there are fewer unknowns."""
        both = self.program.seconds(("linearize", *("cg",) * self.iterations))
        if self.iterations >= PRODUCTS_PER_LINEARIZATION:
            return both
        linearize = self.program.seconds(("linearize",))
        product = max(both - linearize, 0.0) / self.iterations
        return linearize + PRODUCTS_PER_LINEARIZATION * product

    def close(self) -> None:
        """Free the buffers."""
        self.program.close()


@dataclass(slots=True)
class _GradientTrial:
    """One gradient at a time."""

    program: TimedProgram

    def sample(self) -> float:
        """Of one gradient."""
        return self.program.seconds(("gradient",))

    def close(self) -> None:
        """Free the buffers."""
        self.program.close()


class _DeviceTrials(Closing):
    """What trials on a device share: orders of nodes, found once."""

    purpose = ""

    def __init__(
        self,
        analysis: Analysis,
        device: Device,
        parameters: FloatArray,
        precision: str = "float32",
    ) -> None:
        self._device = device
        self._parameters = parameters
        layouts = array_layouts(analysis)
        where = identity_of(device)
        first = ScheduleChooser("solve", where, (Schedule(),))
        self._tables = NodeTables(
            layouts, analysis.groups, parameters, schedules=first, precision=precision
        )
        self.chooser = ScheduleChooser(self.purpose, where)
        self.features = [self._tables.features(g, precision) for g in range(len(analysis.groups))]
        self._warmth = Warmth(needed=not device.adapter.is_software)

    def allows(self, schedule: Schedule) -> bool:
        """Whether the device takes such workgroups."""
        return schedule.workgroup_size <= self._device.limits["max-compute-workgroup-size-x"]

    def close(self) -> None:
        """Nothing is kept between trials."""


class SolveTrials(_DeviceTrials):
    """Linearization with its products, in a resident solve.

    Args:
        analysis: the problem; borrowed.
        device: where.
        parameters: the point, flat.
        precision: of the whole solve.
    """

    purpose = "solve"
    iterations = 0
    """Of conjugate gradients, in a sample; found at the first opening."""

    def allows(self, schedule: Schedule) -> bool:
        """Large problems keep the usual workgroups, which their coarse spaces need."""
        usual = schedule.workgroup_size == Schedule().workgroup_size
        small = self._tables.sizes.components < SMALLEST_PROBLEM
        return super().allows(schedule) and (usual or small)

    def open(self, schedules: Sequence[Schedule]) -> Trial:
        """See ``Trials.open``."""
        solve = DeviceSolve(self._device, self._tables.rescheduled(schedules))
        try:
            solve.start(self._parameters, 1e-4, 0.0, 1e-3)
            if not self.iterations:
                # One less: under another schedule they may be converged one earlier.
                used = solve.step(PRODUCTS_PER_LINEARIZATION + 1).linear_iterations
                self.iterations = max(1, used - 1)
                solve.start(self._parameters, 1e-4, 0.0, 1e-3)
            return _SolveTrial(TimedProgram(solve.runner, self._warmth, solve), self.iterations)
        except BaseException:
            solve.close()
            raise


class GradientTrials(_DeviceTrials):
    """One gradient at a time, under any accumulation."""

    purpose = "gradient"

    def open(self, schedules: Sequence[Schedule]) -> Trial:
        """See ``Trials.open``."""
        operators = Operators(self._device, self._tables.rescheduled(schedules))
        try:
            operators.gradient(self._parameters)
            return _GradientTrial(TimedProgram(operators.runner, self._warmth, operators))
        except BaseException:
            operators.close()
            raise


class AssemblyTrials(Closing):
    """Residuals, Jacobian and JᵀJ on the host.

    Args:
        analysis: the problem; borrowed.
        parameters: the point, flat.

    Raises:
        InputError: residuals of a user's function, energies or long rows, which have one schedule.
    """

    def __init__(self, analysis: Analysis, parameters: FloatArray) -> None:
        if analysis.external_names or analysis.energies or analysis.has_long_rows:
            raise InputError(
                "tune: sums on the host over external residuals, energies or long rows have one "
                "schedule each; there is nothing to tune"
            )
        self._analysis = analysis
        self._parameters = parameters
        self.chooser = host_chooser()
        self.features = host_features(analysis)

    def allows(self, schedule: Schedule) -> bool:
        """Every alternative."""
        return True

    def open(self, schedules: Sequence[Schedule]) -> Trial:
        """See ``Trials.open``."""
        return _AssemblyTrial(self._analysis, self._parameters, schedules)

    def close(self) -> None:
        """Nothing is kept between trials."""


class _AssemblyTrial:
    """Residuals, Jacobian and JᵀJ on the host under one schedule of each group."""

    def __init__(
        self, analysis: Analysis, parameters: FloatArray, schedules: Sequence[Schedule]
    ) -> None:
        lanes = [s.workgroup_size for s in schedules]
        self._session = NumbaSession(
            analysis.groups, analysis.parameter_count, "float64", lanes=lanes
        )
        self._gram = gram_of(analysis, schedules[0].materialise)
        self._upper = np.zeros(len(self._gram.pattern()[1]))
        self._gradient = np.zeros(analysis.column_count)
        self._parameters = parameters
        self._slope: Slope | None = None

    def sample(self) -> float:
        """Of residuals, Jacobian and JᵀJ."""
        if self._slope is None:
            self._slope = Slope(self._work)
        return self._slope()

    def _work(self, count: int) -> None:
        for _ in range(count):
            residuals, values = self._session.residual_jacobian(self._parameters)
            self._gram.sum(values, residuals, self._upper, self._gradient)

    def close(self) -> None:
        """Free what both keep."""
        self._gram.close()
        self._session.close()
