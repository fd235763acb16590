"""Times of schedules where they run: what ``ag.tune`` and the benchmarks measure.

Every trial is warmed up, waits for the device, and takes the median of differences between more
and less of the same work, in which submission and read-back cancel.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from autograd_gpu.errors import DeviceError, InputError
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

WARM_UP = 0.4
"""Seconds of the same work before the first trial on a GPU, whose clocks rise meanwhile."""

BURST = 0.02
"""Seconds of work between two looks at the clock, about."""

ITERATIONS = 4
"""Of conjugate gradients behind a linearization; few enough that none finds itself converged."""


def work_seconds(run: Callable[[int], None], repeats: int = 5) -> float:
    """Seconds of one unit of work: the median slope of time between two amounts.

    Args:
        run: does so many units, and waits for them.
        repeats: slopes.
    """
    run(1)  # compiles
    began = time.perf_counter()
    run(1)
    once = time.perf_counter() - began
    many = int(np.clip(BURST / max(once, 1e-6), 2, 200))
    began = time.perf_counter()
    run(many)
    # The first unit pays for the way to the device and back; now that is known.
    many = int(np.clip(BURST * many / max(time.perf_counter() - began, 1e-6), 2, 400))
    slopes: list[float] = []
    means: list[float] = []
    for _ in range(repeats):
        t0 = time.perf_counter()
        run(1)
        t1 = time.perf_counter()
        run(1 + many)
        t2 = time.perf_counter()
        slopes.append(((t2 - t1) - (t1 - t0)) / many)
        means.append((t2 - t1) / (1 + many))
    slope = float(np.median(slopes))
    # Where something else took the processor meanwhile, a difference may be negative.
    return slope if slope > 0.0 else float(np.median(means))


class Trials(Protocol):
    """Times the schedules of one problem for one purpose."""

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

    def seconds(self, schedules: Sequence[Schedule]) -> float | None:
        """Of one unit of work with the schedules of all groups; None if the device refuses."""
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


class _DeviceTrials(Closing):
    """What trials on a device share: orders of nodes, found once."""

    purpose = ""

    def __init__(self, analysis: Analysis, device: Device, parameters: FloatArray) -> None:
        self._device = device
        self._parameters = parameters
        layouts = array_layouts(analysis)
        self._tables = NodeTables(layouts, analysis.groups, parameters, schedules=[Schedule()])
        self.chooser = ScheduleChooser(self.purpose, identity_of(device))
        self.features = [self._tables.features(g) for g in range(len(analysis.groups))]
        self._warm = device.adapter.is_software

    def allows(self, schedule: Schedule) -> bool:
        """Whether the device takes such workgroups."""
        return schedule.workgroup_size <= self._device.limits["max-compute-workgroup-size-x"]

    def _time(self, run: Callable[[int], None]) -> float:
        began = time.perf_counter()
        while not self._warm and time.perf_counter() - began < WARM_UP:
            run(20)
        self._warm = True
        return work_seconds(run)

    def close(self) -> None:
        """Nothing is kept between trials."""


class SolveTrials(_DeviceTrials):
    """Linearization with its products, in a resident solve.

    Args:
        analysis: the problem; borrowed.
        device: where.
        parameters: the point, flat.
    """

    purpose = "solve"

    def allows(self, schedule: Schedule) -> bool:
        """Large problems keep the usual workgroups, which their coarse spaces need."""
        usual = schedule.workgroup_size == Schedule().workgroup_size
        small = self._tables.sizes.components < SMALLEST_PROBLEM
        return super().allows(schedule) and (usual or small)

    def seconds(self, schedules: Sequence[Schedule]) -> float | None:
        """Of a linearization and as many iterations as a step has, about."""
        try:
            solve = DeviceSolve(self._device, self._tables.rescheduled(schedules))
        except DeviceError:
            return None
        try:
            solve.start(self._parameters, 1e-4, 0.0, 1e-3)
            linearize = self._time(partial(self._burst, solve, ("linearize",)))
            iterations = ("linearize", *("cg",) * ITERATIONS)
            both = self._time(partial(self._burst, solve, iterations))
        finally:
            solve.close()
        iteration = max(both - linearize, 0.0) / ITERATIONS
        return linearize + PRODUCTS_PER_LINEARIZATION * iteration

    @staticmethod
    def _burst(solve: DeviceSolve, sequences: tuple[str, ...], count: int) -> None:
        solve.runner.run([*sequences] * count)
        solve.runner.read("state")


class GradientTrials(_DeviceTrials):
    """One gradient at a time, under any accumulation."""

    purpose = "gradient"

    def seconds(self, schedules: Sequence[Schedule]) -> float | None:
        """Of one gradient."""
        try:
            operators = Operators(self._device, self._tables.rescheduled(schedules))
        except DeviceError:
            return None
        with operators:
            operators.gradient(self._parameters)

            def run(count: int) -> None:
                operators.runner.run(["gradient"] * count)

            return self._time(run)


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

    def seconds(self, schedules: Sequence[Schedule]) -> float | None:
        """Of residuals, Jacobian and JᵀJ."""
        analysis = self._analysis
        lanes = [s.workgroup_size for s in schedules]
        session = NumbaSession(analysis.groups, analysis.parameter_count, "float64", lanes=lanes)
        gram = gram_of(analysis, schedules[0].materialise)
        entries = len(gram.pattern()[1])
        upper, gradient = np.zeros(entries), np.zeros(analysis.column_count)

        def run(count: int) -> None:
            for _ in range(count):
                residuals, values = session.residual_jacobian(self._parameters)
                gram.sum(values, residuals, upper, gradient)

        try:
            return work_seconds(run)
        finally:
            gram.close()
            session.close()

    def close(self) -> None:
        """Nothing is kept between trials."""
