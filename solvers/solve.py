"""``ag.solve``: from a problem to a solution."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from autograd_gpu.errors import InputError, PrecisionError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.blas_threads import one_blas_thread
from autograd_gpu.runtime.choice import (
    BackendChoice,
    choose_backend,
    in_float64,
    runs_on_a_gpu,
)
from autograd_gpu.solvers.bounds import check_bounds
from autograd_gpu.solvers.cost_gradient import open_cost_gradient
from autograd_gpu.solvers.driver import Engine, Observer, iterate
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.external import ExternalGroup
from autograd_gpu.solvers.gradient_engine import GradientRun
from autograd_gpu.solvers.group_costs import GroupCosts, group_costs
from autograd_gpu.solvers.host_engine import HostRun
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.linear_solvers import (
    check_linear_solver,
    choose_linear_solver,
)
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.methods import METHODS, GradientMethod, check_method, choose_method
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.probe_values import probe_values_at_the_end
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.progress import SolveProgress
from autograd_gpu.solvers.recovery import Recovery, with_damping
from autograd_gpu.solvers.schedule import Whole, check_constraints, run_schedule
from autograd_gpu.solvers.solution import Solution
from autograd_gpu.solvers.stages import StageRun, Stages
from autograd_gpu.solvers.watcher import Callback, Watcher, named_values

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis

FLOAT32_TOLERANCE = 1e-8
"""``function_tolerance`` below which ``precision="auto"`` does not stop at float32 on a GPU."""

THREADED_ROWS = 4096
"""Residuals from which on kernels run in several threads."""


def solve(
    problem: Problem,
    method: str = "auto",
    linear_solver: str = "auto",
    options: SolverOptions | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Solution:
    """Minimise ½‖r‖² + ΣE from the problem's current parameters, which stay as they are.

    Args:
        problem: what to solve.
        method: ``auto``: ``newton`` if there are energies, else ``levenberg-marquardt``; or
            ``gauss-newton``, ``dogleg``; by gradients alone ``l-bfgs``, ``adam``, ``adamw``,
            ``gradient-descent``.
        linear_solver: ``auto``, ``sparse-cholesky``, ``dense-cholesky``, ``dense-qr``,
            ``schur``, ``schur-implicit`` or ``pcg`` (conjugate gradients; with backend ``wgsl``
            the whole solve then stays on the device).
        options: of the method, an object of its options class.
        backend: ``auto``, ``numpy``, ``numba`` (``cpu``), ``jax``, ``wgsl`` (``gpu``).
        precision: ``auto``, ``float32``, ``float64``: of residuals and Jacobians. Linear algebra
            on the CPU is float64. ``mixed`` (on ``wgsl``): Jacobians in float32 and the rest in
            float64, Jacobians too once float32 ones stagnate; on a GPU it begins all in
            float32 on the device. ``float64-native`` and ``float64-emulated`` force the way in
            which ``wgsl`` gets float64. ``auto`` is float64 on CPUs; on a GPU float32, or mixed
            if ``function_tolerance`` is below 1e-8.
        device: for ``wgsl``: a device, or part of an adapter's name.
        callback: called with each ``IterationRecord``, and with the values by name if it takes
            two arguments; a true result stops the solve. It may call ``problem.update(data=…)``:
            the solve goes on from there with the new data.
        progress: show a progress bar.

    Returns:
        The last accepted point, whatever the status.

    Raises:
        InputError: an unknown option, or a problem without residuals.
    """
    request = Request(problem, method, linear_solver, options, backend, precision, device)
    if callback is not None and not callable(callback):
        raise InputError(f"callback: got {type(callback).__name__}, expected a function")
    began = time.perf_counter()
    with problem.alone, request.structure() as analysis:
        plan = request.plan(analysis)
        choice, chosen = plan.choice, plan.options
        timings: dict[str, float] = {}
        free = backend == "auto" and device is None
        recovery = Recovery(choice, free, plan.resident is not None)

        def run_stage(
            analysis: Analysis, start: FloatArray, options: SolverOptions, observer: Observer
        ) -> StageRun:
            def make(where: BackendChoice, point: FloatArray, damping: float | None) -> Engine:
                begun = with_damping(options, damping)
                return plan.moved(where, recovery.resident).engine(analysis, point, begun, timings)

            engine = recovery.engine(make, analysis, start)
            watcher.engine = engine
            with closing(engine), one_blas_thread(not plan.resident and _shares_cores(analysis)):
                outcome = iterate(engine, options, observer)
                recovery.look_at_memory()
                solver, kernels = engine.linear_solver(), engine.kernels()
                return StageRun(outcome, engine.description, solver, kernels)

        watching = _watching(problem, analysis, chosen, callback, progress)
        with problem.in_use(), watching as watcher, recovery.of(analysis):
            stages = Stages(run_stage, chosen, watcher)
            start, constraints = current_parameters(problem), problem.constraints
            whole = run_schedule(analysis, constraints, choice, start, chosen, stages, watcher)
        timings["total"] = time.perf_counter() - began
        return _solution(problem, analysis, recovery, plan.method, whole, timings)


def _shares_cores(analysis: Analysis) -> bool:
    """Whether threads of ours work beside those of OpenBLAS, and not a user's function."""
    return analysis.row_count >= THREADED_ROWS and not analysis.external_names


class Request:
    """What a caller of ``solve`` wants, checked.

    Raises:
        InputError: no problem, or something that does not exist or does not go together.
    """

    def __init__(
        self,
        problem: Problem,
        method: str,
        linear_solver: str,
        options: SolverOptions | None,
        backend: str,
        precision: str,
        device: Device | str | None,
    ) -> None:
        check_linear_solver(linear_solver)
        if not isinstance(problem, Problem):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"problem: got {type(problem).__name__}, expected an ag.Problem")
        energies = [g.name for g in problem.energies]
        external = [g.name for g in problem.groups if isinstance(g, ExternalGroup)]
        self._problem = problem
        self._method = choose_method(method, energies, external, linear_solver, precision)
        self._options = check_method(self._method[0], options, linear_solver, precision)
        if problem.constraints and precision == "auto":
            precision = "float64"  # their multipliers need it
        self._linear_solver, self._precision = linear_solver, precision
        self._backend, self._device = backend, device

    @contextmanager
    def structure(self) -> Generator[Analysis]:
        """What is solved: constraints are residuals of it, and then it lives inside alone."""
        analysis = self._problem.augmented_analysis()
        try:
            yield analysis
        finally:
            if self._problem.constraints:
                analysis.close()

    def plan(self, analysis: Analysis) -> Plan:
        """Where and how the problem is solved."""
        problem, options, linear_solver = self._problem, self._options, self._linear_solver
        check_bounds(analysis, options)
        size = analysis.row_count + sum(g.count for g in analysis.energies)
        device = problem.device(self._device)
        choice = choose_backend(self._backend, self._precision, device, size)
        check_constraints(problem.constraints, options, choice.precision)
        why = _on_device(choice, linear_solver, analysis, options)
        if why is not None and self._precision == "auto" and choice.precision == "float32":
            choice = _as_tolerances_ask(choice, options)
        if why is not None and any(a.chart is not None for a in analysis.arrays):
            why = None
            reason = f"{choice.reason}; steps on the host, which moves parameters on manifolds"
            choice = replace(choice, reason=reason)
        return Plan(choice, why, self._method, linear_solver, options)


@dataclass(frozen=True, slots=True)
class Plan:
    """Decisions of a solve.

    Attributes:
        choice: backend and precision.
        resident: why the whole solve stays on a device; None if it does not.
        method: its name, and why.
        linear_solver: as asked for.
        options: of the method.
    """

    choice: BackendChoice
    resident: str | None
    method: tuple[str, str]
    linear_solver: str
    options: SolverOptions

    def moved(self, where: BackendChoice, stays: bool) -> Plan:
        """The same somewhere else, or without staying there, to which a fault has driven it."""
        stays = stays and where.backend == self.choice.backend
        resident = self.resident if stays else None
        return replace(self, choice=where, resident=resident)

    def engine(
        self,
        analysis: Analysis,
        start: FloatArray,
        options: SolverOptions,
        timings: dict[str, float],
    ) -> Engine:
        """What takes the steps from a start; compiled, with its data where it is needed."""
        if self.resident is None:
            return _host_engine(analysis, start, self.choice, self.linear_solver, options, timings)
        assert isinstance(options, LevenbergMarquardtOptions)
        return _device_engine(
            analysis, start, self.choice, self.resident, self.linear_solver, options, timings
        )


def _on_device(
    choice: BackendChoice,
    linear_solver: str,
    analysis: Analysis,
    options: SolverOptions,
) -> str | None:
    """Why the whole solve stays on the GPU; None if it does not."""
    if not isinstance(options, LevenbergMarquardtOptions):
        return None  # the other methods run on the host
    if choice.backend not in ("wgsl", "jax") or analysis.column_count == 0:
        return None
    if analysis.box is not None:
        return None  # steps are projected on the host
    if analysis.external_names:
        return None  # they are asked for on the host
    if analysis.has_long_rows:
        return None  # its kernels gather by place and have no loops over long rows
    if linear_solver == "pcg":
        return "conjugate gradients on the device, as requested"
    if options.step_control != "nielsen":
        return None
    if linear_solver == "auto" and runs_on_a_gpu(choice):
        return (
            "conjugate gradients on the device: nothing but one record a step is read back; "
            "linear_solver='sparse-cholesky' factorises on the CPU instead"
        )
    return None


@contextmanager
def _watching(
    problem: Problem,
    analysis: Analysis,
    options: SolverOptions,
    callback: Callback | None,
    progress: bool,
) -> Generator[Watcher]:
    """What sees every iteration: the progress bar and the callback."""
    with ExitStack() as stack:
        bar: SolveProgress | None = None
        if progress:
            title = f"{analysis.row_count} residuals, {analysis.column_count} parameters"
            bar = stack.enter_context(SolveProgress(options.max_iterations, title))
        yield Watcher(problem, analysis, callback, bar)


def _host_engine(
    analysis: Analysis,
    start: FloatArray,
    choice: BackendChoice,
    linear_solver: str,
    options: SolverOptions,
    timings: dict[str, float],
) -> Engine:
    """Residuals, Jacobians or gradients from the backend, the rest on the CPU."""
    watch = Stopwatch(timings)
    method = METHODS[options.method]
    if isinstance(method, GradientMethod):
        source = open_cost_gradient(analysis, choice, start, watch)
        gradient_run = GradientRun(
            analysis=analysis,
            source=source,
            retraction=analysis.retraction(choice),
            precision=choice.precision,
            start=start,
        )
        return method.engine(gradient_run, options)
    normal = analysis.normal_equations
    pattern = (normal.indptr, normal.indices)
    solver, why = choose_linear_solver(
        linear_solver, normal.n, len(normal.indices), pattern, normal.blocks
    )
    watch.lap("analyze")
    session = analysis.session(choice)
    session.prepare()
    watch.lap("compile")
    run = HostRun(
        analysis=analysis,
        session=session,
        retraction=analysis.retraction(choice),
        precision=choice.precision,
        start=start,
        linear_solver=solver,
        linear_solver_reason=why,
        watch=watch,
        choice=choice,
    )
    engine = method.engine(run, options)
    if choice.precision != "mixed":
        return engine
    from autograd_gpu.runtime.mixed_session import MixedSession
    from autograd_gpu.solvers.host_engine import NormalEquationsEngine
    from autograd_gpu.solvers.mixed_engine import MixedEngine

    assert isinstance(session, MixedSession)
    assert isinstance(engine, NormalEquationsEngine)
    return MixedEngine(engine, session)


def _device_engine(
    analysis: Analysis,
    start: FloatArray,
    choice: BackendChoice,
    why: str,
    linear_solver: str,
    options: LevenbergMarquardtOptions,
    timings: dict[str, float],
) -> Engine:
    """Everything on the GPU, the host watches.

    In mixed precision float32 goes first. Where it stagnates, float64 follows, on the device too;
    a software adapter factorises on the host unless conjugate gradients were asked for.
    """
    from autograd_gpu.solvers.device_levenberg_marquardt import DeviceLevenbergMarquardt

    watch = Stopwatch(timings)
    if choice.precision != "mixed":
        return DeviceLevenbergMarquardt(analysis, choice, start, options, watch, why)
    from autograd_gpu.solvers.mixed_engine import MovingUp

    resident = replace(choice, precision="float32")

    def higher(point: FloatArray, damping: float) -> Engine:
        then = replace(options, initial_damping=damping)
        if linear_solver == "pcg" or runs_on_a_gpu(choice):
            wide = in_float64(choice)
            reason = f"{why}, in {wide.precision}"
            return DeviceLevenbergMarquardt(analysis, wide, point, then, watch, reason)
        return _host_engine(analysis, point, choice, linear_solver, then, timings)

    first = DeviceLevenbergMarquardt(analysis, resident, start, options, watch, why)
    return MovingUp(first, higher, options.initial_damping)


def _as_tolerances_ask(choice: BackendChoice, options: SolverOptions) -> BackendChoice:
    """Mixed precision in place of float32, if the tolerances ask for it and the device has it."""
    asked, finest = options.function_tolerance, FLOAT32_TOLERANCE
    if asked >= finest:
        return choice
    wish = f"function_tolerance={asked:g} is below the {finest:g} that float32 is good for"
    try:
        mixed = choose_backend("wgsl", "mixed", choice.device, 0)
    except PrecisionError as error:
        return replace(choice, reason=f"{choice.reason}; {wish}, but {error}")
    words = mixed.reason.removeprefix("as requested; ")
    return replace(mixed, reason=f"{choice.reason}; {wish}, so mixed: {words}")


def _solution(
    problem: Problem,
    analysis: Analysis,
    recovery: Recovery,
    method: tuple[str, str],
    whole: Whole,
    timings: dict[str, float],
) -> Solution:
    last, outcome, choice = whole.last, whole.last.outcome, recovery.choice
    solver, why = last.linear_solver
    # Names and bound data as they are now, after what a callback replaced: a later update of the
    # problem changes nothing here. Constraints cost nothing.
    present = problem.analysis()
    residuals = [
        (g.given_as or g.name, bound)
        for g, bound in zip(problem.groups, present.groups, strict=True)
    ]
    energies = [
        (g.given_as or g.name, bound)
        for g, bound in zip(problem.energies, present.energies, strict=True)
    ]
    final = np.array(outcome.parameters)
    everything = [*problem.groups, *problem.energies]
    return Solution(
        values=named_values(problem, analysis, outcome.parameters),
        cost=whole.cost,
        initial_cost=whole.initial_cost,
        iterations=whole.history[-1].iteration,
        status=outcome.status,
        message=outcome.message,
        history=whole.history,
        backend=choice.backend,
        precision=choice.precision,
        device=last.device,
        backend_reason=choice.reason,
        method=method[0],
        method_reason=method[1],
        linear_solver=solver,
        linear_solver_reason=why,
        timings=timings,
        residual_count=sum(g.count * g.residual_size for g in problem.groups),
        parameter_count=analysis.column_count,
        kernels=last.kernels,
        bound_multipliers=whole.bound_multipliers,
        multipliers=whole.multipliers,
        constraint_violation=whole.violation,
        probes=probe_values_at_the_end(everything, present.base, choice, final, recovery.faults),
        faults=tuple(recovery.faults),
        device_bytes=recovery.device_bytes,
        peak_device_bytes=recovery.peak_device_bytes,
        costs_of_groups=GroupCosts(lambda: group_costs(residuals, energies, final)),
    )
