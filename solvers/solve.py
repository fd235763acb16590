"""``ag.solve``: from a problem to a solution."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray, Session
from autograd_gpu.runtime.choice import BackendChoice, choose_backend
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions, Outcome
from autograd_gpu.solvers.linear_solvers import LinearSolver, choose_linear_solver
from autograd_gpu.solvers.progress import SolveProgress
from autograd_gpu.solvers.solution import IterationRecord, KernelSummary, Solution

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

METHODS = (
    "levenberg-marquardt", "gauss-newton", "dogleg", "l-bfgs", "adam", "gradient-descent",
)  # fmt: skip

Callback = Callable[[IterationRecord], Any]


def solve(
    problem: Problem,
    method: str = "levenberg-marquardt",
    linear_solver: str = "auto",
    options: LevenbergMarquardtOptions | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Solution:
    """Minimise ½‖r‖² from the problem's current parameters, which stay as they are.

    Args:
        problem: what to solve.
        method: ``levenberg-marquardt``; the others of the list are not available yet.
        linear_solver: ``auto``, ``sparse-cholesky`` or ``dense-cholesky``.
        options: of the method.
        backend: ``auto``, ``numpy``, ``numba`` (``cpu``), ``wgsl`` (``gpu``).
        precision: ``auto``, ``float32``, ``float64``: of residuals and Jacobians. The linear
            algebra is float64.
        device: for ``wgsl``: a device, or part of an adapter's name.
        callback: called with each ``IterationRecord``; a true result stops the solve.
        progress: show a progress bar.

    Returns:
        The last accepted point, whatever the status.

    Raises:
        InputError: an unknown option, or a problem without residuals.
        NotImplementedError: a method or option that is not available yet.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown; expected one of {', '.join(METHODS)}")
    if method != "levenberg-marquardt":
        raise NotImplementedError(f"method={method!r}: only levenberg-marquardt")
    chosen = options or LevenbergMarquardtOptions()
    if not isinstance(chosen, LevenbergMarquardtOptions):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"options: got {type(chosen).__name__}, expected ag.LevenbergMarquardtOptions"
        )
    began = time.perf_counter()
    timings: dict[str, float] = {}
    analysis = problem.analysis()
    choice = choose_backend(backend, precision, device, analysis.row_count)
    normal = analysis.normal_equations
    solver, why = choose_linear_solver(linear_solver, normal.n, len(normal.indices))
    timings["analyze"] = time.perf_counter() - began
    session = analysis.session(choice)
    timings["compile"] = time.perf_counter() - began - timings["analyze"]
    try:
        outcome = _run(problem, analysis, session, solver, chosen, timings, callback, progress)
    finally:
        solver.close()
    timings["total"] = time.perf_counter() - began
    return _solution(problem, analysis, session, choice, solver, why, outcome, timings)


def _run(
    problem: Problem,
    analysis: Analysis,
    session: Session,
    solver: LinearSolver,
    options: LevenbergMarquardtOptions,
    timings: dict[str, float],
    callback: Callback | None,
    progress: bool,
) -> Outcome:
    with ExitStack() as stack:
        bar: SolveProgress | None = None
        if progress:
            title = f"{analysis.row_count} residuals, {analysis.column_count} parameters"
            bar = stack.enter_context(SolveProgress(options.max_iterations, title))

        def observe(record: IterationRecord, parameters: FloatArray) -> bool:
            if bar is not None:
                bar.update(record)
            return callback is not None and bool(callback(record))

        method = LevenbergMarquardt(analysis, session, solver, options, timings)
        return method.run(current_parameters(problem), observe)


def _solution(
    problem: Problem,
    analysis: Analysis,
    session: Session,
    choice: BackendChoice,
    solver: LinearSolver,
    why: str,
    outcome: Outcome,
    timings: dict[str, float],
) -> Solution:
    values: dict[str, FloatArray] = {}
    for array in problem.arrays:
        start = problem.values_of(array)
        base = analysis.base[array.name]
        values[array.name] = np.array(outcome.parameters[base : base + start.size]).reshape(
            start.shape
        )
    kernels = tuple(
        KernelSummary(name=s.kernel.name, target=s.target, ops=s.kernel.graph.stats.ops)
        for s in session.sources()
    )
    return Solution(
        values=values,
        cost=outcome.cost,
        initial_cost=outcome.initial_cost,
        iterations=outcome.history[-1].iteration,
        status=outcome.status,
        message=outcome.message,
        history=tuple(outcome.history),
        backend=choice.backend,
        precision=choice.precision,
        device=session.description,
        backend_reason=choice.reason,
        linear_solver=solver.name,
        linear_solver_reason=why,
        timings=timings,
        residual_count=analysis.row_count,
        parameter_count=analysis.column_count,
        kernels=kernels,
    )
