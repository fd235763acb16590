"""Solves that stay on the device in float64 end where the CPU ends, to digits of float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import LONG

import autograd_gpu as ag
from autograd_gpu.codegen.scatter_kernels import SHARED_WORDS
from autograd_gpu.codegen.solve_program import solve_program
from autograd_gpu.codegen.wgsl_reals import WGSL_REALS
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from sessions import WGSL_FLOAT64, Backend, device_on, parameters_of, shared_words
from workloads import PROBLEMS, bundle_problem, deformation_problem, springs_problem

TIGHT = ag.LevenbergMarquardtOptions(
    max_iterations=200, function_tolerance=1e-14, gradient_tolerance=1e-14,
    parameter_tolerance=1e-14,
)  # fmt: skip
ON_LLVMPIPE = [b for b in WGSL_FLOAT64 if b.adapter == "llvmpipe"]
# SwiftShader takes 20 s to compile the springs' kernels in double-float.
BACKENDS = WGSL_FLOAT64 if LONG else ON_LLVMPIPE
each_backend = pytest.mark.parametrize("backend", parameters_of(BACKENDS))
each_on_llvmpipe = pytest.mark.parametrize("backend", parameters_of(ON_LLVMPIPE))


def solve_on(backend: Backend, problem: ag.Problem, **options: Any) -> ag.Solution:
    assert backend.adapter is not None
    return ag.solve(
        problem, backend="wgsl", precision=backend.precision, linear_solver="pcg",
        device=device_on(backend.adapter), options=TIGHT if not options
        else ag.LevenbergMarquardtOptions(**options),
    )  # fmt: skip


def tables_of(problem: ag.Problem, precision: str, materialise: str) -> NodeTables:
    analysis, x = problem.analysis(), current_parameters(problem)
    schedules = [Schedule(materialise=materialise)]
    return NodeTables(
        array_layouts(analysis), analysis.groups, x, schedules=schedules, precision=precision
    )


MATERIALISED = ("nothing", "jacobian", "jtj-blocks")
# llvmpipe takes a minute for double-float kernels that turn and recompute.
ON_A_STEP = [
    pytest.param(
        backend, materialise, id=f"{backend}-{materialise}",
        marks=[pytest.mark.wgsl, *([pytest.mark.long] if slow else [])],
    )
    for backend in ON_LLVMPIPE
    for materialise in MATERIALISED
    for slow in [backend.precision == "float64-emulated" and materialise != "jacobian"]
]  # fmt: skip


def frozen_springs() -> ag.Problem:
    problem = springs_problem(1)
    problem.freeze(problem.arrays[0], [0, 5, 6, 30])
    return problem


@each_backend
def test_the_minimum_is_that_of_the_cpu_and_frozen_blocks_keep_their_bits(
    backend: Backend,
) -> None:
    problem = frozen_springs()
    before = problem.values_of(problem.arrays[0]).copy()
    want = ag.solve(frozen_springs(), backend="numba", precision="float64", options=TIGHT).cost
    solution = solve_on(backend, problem)
    assert solution.precision == backend.precision
    assert solution.linear_solver == "pcg (device, block-Jacobi)"
    assert solution.success and abs(solution.cost - want) <= 1e-12 * want
    # What it reports is the cost of the point that it gives.
    problem.update(**solution.values)
    there = problem.evaluate(backend="numpy").cost
    assert abs(there - want) <= 1e-12 * want
    np.testing.assert_array_equal(solution.values["x"][[0, 5, 6, 30]], before[[0, 5, 6, 30]])
    assert all(0 < r.linear_iterations for r in solution.history[1:])


@each_on_llvmpipe
def test_problems_without_data(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([[-1.2, 1.0]]))
    problem.add_residuals(lambda p: [10.0 * (p[1] - p[0] * p[0]), 1.0 - p[0]], x)
    solution = solve_on(backend, problem)
    np.testing.assert_allclose(solution.values["x"], 1.0, atol=1e-10)


@each_on_llvmpipe
def test_a_start_that_is_not_finite_names_the_residual(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([1.0, 2.0, -1.0]))
    problem.add_residuals(lambda p: ag.sqrt(p) - 1.0, x, name="roots")
    solution = solve_on(backend, problem)
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "residuals 'roots', element 2" in solution.message


@pytest.mark.long
@pytest.mark.parametrize("name", ["W2_s3", "W4_s3", "W3"])
@each_on_llvmpipe
def test_workloads_end_where_the_cpu_ends(backend: Backend, name: str) -> None:
    want = ag.solve(PROBLEMS[name](), backend="numba", precision="float64", options=TIGHT).cost
    assert abs(solve_on(backend, PROBLEMS[name]()).cost - want) <= 1e-9 * want


@each_on_llvmpipe
def test_a_step_costs_one_readback_and_two_solves_are_equal_to_the_bit(backend: Backend) -> None:
    device = device_on("llvmpipe")
    first = solve_on(backend, springs_problem(1), max_iterations=6)
    before = device.counters.snapshot()
    second = solve_on(backend, springs_problem(1), max_iterations=6)
    after = device.counters.snapshot()
    # One a step, which brings the point as well.
    assert after.readbacks - before.readbacks == 6
    assert after.pipelines_created == before.pipelines_created
    assert [r.cost for r in first.history] == [r.cost for r in second.history]
    assert first.values["x"].tobytes() == second.values["x"].tobytes()


@pytest.mark.parametrize(("backend", "materialise"), ON_A_STEP)
def test_costs_gradients_and_gains_of_a_step_are_the_oracles(
    backend: Backend, materialise: str
) -> None:
    problem = deformation_problem(1)
    solve = DeviceSolve(device_on("llvmpipe"), tables_of(problem, backend.precision, materialise))
    solve.start(current_parameters(problem), 1e-4, 1e-6, 1e-3)
    record = solve.step(400)
    values = solve.parameters()
    solve.close()
    here = problem.evaluate(backend="numpy")
    assert record.accepted
    assert record.cost_before == pytest.approx(here.cost, rel=1e-12)
    # The largest entry goes through float32.
    assert record.gradient_norm == pytest.approx(np.abs(here.gradient).max(), rel=1e-6)
    x, _ = problem.arrays
    count = x.blocks * x.width
    problem.update(x=values[:count].reshape(-1, 3), r=values[count:].reshape(-1, 3))
    there = problem.evaluate(backend="numpy")
    assert record.cost == pytest.approx(there.cost, rel=1e-12)
    assert record.change == pytest.approx(there.cost - here.cost, rel=1e-11)


@pytest.mark.parametrize("precision", WGSL_REALS)
@pytest.mark.parametrize("materialise", MATERIALISED)
def test_kernels_stay_within_what_every_device_grants(precision: str, materialise: str) -> None:
    words = WGSL_REALS[precision].words
    for problem in (bundle_problem(6, 40), deformation_problem(1)):
        for pipeline in solve_program(tables_of(problem, precision, materialise).sizes).pipelines:
            assert pipeline.storage_buffers <= 8
            assert pipeline.workgroup_size <= 256
            assert shared_words(pipeline.source, words) <= SHARED_WORDS, pipeline.name
