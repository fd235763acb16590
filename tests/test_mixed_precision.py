"""Solves in float64 and mixed precision on WGSL end where the CPU ends."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from conftest import LONG

import autograd_gpu as ag
from autograd_gpu.errors import InputError, PrecisionError
from sessions import WGSL_FLOAT64, Backend, device_on, parameters_of
from workloads import PROBLEMS, deformation_problem, reprojection_error, springs_problem

TIGHT = ag.LevenbergMarquardtOptions(
    max_iterations=200, function_tolerance=1e-14, gradient_tolerance=1e-14,
    parameter_tolerance=1e-14,
)  # fmt: skip
LIMITS = {"float64-native": 1e-9, "float64-emulated": 1e-9, "mixed": 1e-8}
"""Relative difference of the final cost from the CPU's."""

# llvmpipe alone: SwiftShader has one thread, and test_float64_wgsl.py solves there.
PRECISIONS = sorted({b.precision for b in WGSL_FLOAT64 if b.adapter == "llvmpipe"} | {"mixed"})
BACKENDS = [Backend("wgsl", precision, "llvmpipe") for precision in PRECISIONS]
NAMES = ["W2_s3", "W4_s3", *(["W3"] if LONG else [])]


@functools.cache
def cpu_cost(name: str) -> float:
    return ag.solve(PROBLEMS[name](), backend="numba", precision="float64", options=TIGHT).cost


def solve_on(backend: Backend, problem: ag.Problem, options: Any = TIGHT) -> ag.Solution:
    assert backend.adapter is not None
    device = device_on(backend.adapter)
    return ag.solve(
        problem, backend="wgsl", precision=backend.precision, device=device, options=options
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", parameters_of(BACKENDS))
def test_the_minimum_is_that_of_the_cpu(name: str, backend: Backend) -> None:
    problem = PROBLEMS[name]()
    solution = solve_on(backend, problem)
    assert solution.precision == backend.precision
    want, limit = cpu_cost(name), LIMITS[backend.precision]
    assert abs(solution.cost - want) <= limit * want
    # The cost that it reports is the cost at the point that it gives.
    problem.update(**solution.values)
    there = problem.evaluate(backend="numba", precision="float64").cost
    assert abs(there - want) <= limit * want


MIXED = Backend("wgsl", "mixed", "llvmpipe")


@pytest.mark.wgsl
def test_mixed_moves_up_where_float32_stagnates_and_says_so() -> None:
    tight = solve_on(MIXED, deformation_problem(1))
    assert "Jacobians in float64 from step" in tight.linear_solver_reason
    assert "Jacobians in float32, residuals in float64" in tight.backend_reason
    loose = ag.LevenbergMarquardtOptions(function_tolerance=1e-4)
    assert (
        "float32 throughout" in solve_on(MIXED, deformation_problem(1), loose).linear_solver_reason
    )


@pytest.mark.wgsl
@pytest.mark.parametrize("method", ["gauss-newton", "dogleg"])
def test_other_methods_move_up_too(method: str) -> None:
    options = {"gauss-newton": ag.GaussNewtonOptions, "dogleg": ag.DoglegOptions}[method](
        max_iterations=200, function_tolerance=1e-14, gradient_tolerance=1e-14,
        parameter_tolerance=1e-14,
    )  # fmt: skip

    def solved(backend: str, **how: Any) -> ag.Solution:
        return ag.solve(deformation_problem(1), method, backend=backend, options=options, **how)

    want = solved("numba", precision="float64").cost
    got = solved("wgsl", precision="mixed", device=device_on("llvmpipe"))
    assert "Jacobians in float64 from step" in got.linear_solver_reason
    assert abs(got.cost - want) <= 1e-8 * want


def resident(precision: str, options: Any = TIGHT) -> ag.Solution:
    return ag.solve(
        springs_problem(1), backend="wgsl", precision=precision, linear_solver="pcg",
        device=device_on("llvmpipe"), options=options,
    )  # fmt: skip


@pytest.mark.wgsl
def test_a_resident_solve_moves_up_where_float32_stagnates_and_says_so() -> None:
    want = ag.solve(springs_problem(1), backend="numba", precision="float64", options=TIGHT).cost
    low, high = resident("float32"), resident("mixed")
    assert abs(high.cost - want) <= 1e-8 * want
    assert abs(high.cost - want) < abs(low.cost - want)
    assert low.precision == "float32" and high.precision == "mixed"
    why = high.linear_solver_reason
    assert "where float32 brought no more, pcg (device, block-Jacobi), all in float32" in why
    # And the rest is on the device too.
    assert high.linear_solver == "pcg (device, block-Jacobi)"
    assert "conjugate gradients on the device, as requested, in float64-" in why
    # Its first steps are those of the float32 solve, bit for bit.
    moved = int(why.split("before step ")[1].split(",")[0])
    assert 2 < moved < high.iterations
    for a, b in zip(low.history[:moved], high.history[:moved], strict=False):
        assert a.cost == b.cost and a.linear_iterations == b.linear_iterations
    # It goes on with the damping that the float32 solve had come to.
    before = max(k for k in range(1, moved) if high.history[k].accepted)
    assert high.history[moved].damping == high.history[before].damping < 1e-4


@pytest.mark.wgsl
def test_a_resident_solve_that_meets_its_tolerance_in_float32_stays() -> None:
    loose = ag.LevenbergMarquardtOptions(function_tolerance=1e-3)
    solution = resident("mixed", loose)
    assert "all in float32, which did not stagnate" in solution.linear_solver_reason
    assert solution.linear_solver == "pcg (device, block-Jacobi)"


@pytest.mark.wgsl
def test_auto_on_a_gpu_moves_up_if_the_tolerance_asks_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autograd_gpu.solvers.solve.runs_on_a_gpu", lambda choice: True)

    def solved(**how: Any) -> ag.Solution:
        device = device_on("llvmpipe")
        return ag.solve(springs_problem(1), backend="wgsl", device=device, **how)

    plain = solved()
    assert plain.precision == "float32" and "float32, in which the whole" in plain.backend_reason
    tight = solved(options=TIGHT)
    assert tight.precision == "mixed"
    assert "function_tolerance=1e-14 is below the 1e-08" in tight.backend_reason
    assert "residuals in float64" in tight.backend_reason
    # Where float32 brings no more, float64 goes on there and not with a factorisation on the host.
    assert tight.linear_solver == "pcg (device, block-Jacobi)"
    assert "all in float32" in tight.linear_solver_reason
    wide = solved(options=TIGHT, precision="float64")
    assert wide.linear_solver == "pcg (device, block-Jacobi)"
    assert wide.precision.startswith("float64")
    assert wide.cost == pytest.approx(tight.cost, rel=1e-9)
    assert solved(options=TIGHT, precision="float32").precision == "float32"

    def refused(*_: Any) -> str:
        raise PrecisionError("the device fails")

    monkeypatch.setattr("autograd_gpu.runtime.self_test.require_float64", refused)
    kept = solved(options=TIGHT)
    assert kept.precision == "float32" and "but the device fails" in kept.backend_reason


@pytest.mark.wgsl
def test_mixed_begins_every_solve_in_float32() -> None:
    problem = deformation_problem(1)
    first, second = (solve_on(MIXED, problem) for _ in range(2))
    assert first.history[1].cost == second.history[1].cost
    assert first.cost == second.cost
    assert first.linear_solver_reason == second.linear_solver_reason


@pytest.mark.wgsl
def test_mixed_evaluates_residuals_in_float64_and_jacobians_in_float32() -> None:
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    camera = problem.parameters("camera", rng.uniform(0.1, 1.0, (4, 9)))
    point = problem.parameters("point", rng.uniform(0.5, 1.0, (4, 3)))
    problem.add_residuals(reprojection_error, camera, point, np.zeros((4, 2)))
    got = problem.evaluate(backend="wgsl", precision="mixed", device=device_on("llvmpipe"))
    want = problem.evaluate(backend="numpy", precision="float64")
    np.testing.assert_allclose(got.residuals, want.residuals, rtol=1e-12)
    assert abs(got.cost - want.cost) <= 1e-12 * want.cost
    error = np.abs(got.jacobian.toarray() - want.jacobian.toarray()).max()
    assert 1e-12 < error < 1e-4


@pytest.mark.wgsl
def test_mixed_with_a_robust_loss() -> None:
    def solved(backend: str, **how: Any) -> float:
        rng = np.random.default_rng(1)
        problem = ag.Problem()
        line = problem.parameters("line", np.array([[0.0, 0.0]]))
        t = np.linspace(0.0, 1.0, 50)
        y = 2.0 * t + 1.0 + 0.01 * rng.standard_normal(50) + 5.0 * (rng.random(50) < 0.1)
        problem.add_residuals(
            lambda p, t, y: p[0] * t + p[1] - y, line[0], t, y, loss=ag.losses.Huber(0.1)
        )
        return ag.solve(problem, backend=backend, options=TIGHT, **how).cost

    want = solved("numba", precision="float64")
    got = solved("wgsl", precision="mixed", device=device_on("llvmpipe"))
    assert abs(got - want) <= 1e-8 * want


def test_mixed_belongs_to_wgsl() -> None:
    with pytest.raises(InputError, match="precision='mixed' belongs to backend 'wgsl'"):
        ag.solve(deformation_problem(1), backend="numba", precision="mixed")
