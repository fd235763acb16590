"""Box bounds: minima against SciPy and Hock-Schittkowski, multipliers, bad input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, lsq_linear

import autograd_gpu as ag
from autograd_gpu.solvers.methods import METHODS
from more_garbow_hillstrom import rosenbrock, wood
from sessions import JAX, NUMBA, WGSL, Backend, device_on, parameters_of

TIGHT = ag.LevenbergMarquardtOptions(
    function_tolerance=0.0, gradient_tolerance=1e-12, parameter_tolerance=1e-15
)


def linear(seed: int, columns: int, tightness: float) -> tuple[Any, Any, Any, Any]:
    """Matrix, right side and bounds; some infinite, some equal, zero inside."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((3 * columns, columns))
    right = 3.0 * rng.standard_normal(3 * columns)
    lower = np.where(rng.random(columns) < tightness, -0.2 * rng.random(columns), -np.inf)
    upper = np.where(rng.random(columns) < tightness, 0.3 * rng.random(columns), np.inf)
    return matrix, right, lower, upper


def linear_problem(matrix: Any, right: Any, lower: Any, upper: Any) -> ag.Problem:
    problem = ag.Problem()
    start = np.zeros((1, matrix.shape[1]))
    x = problem.parameters("x", start, bounds=(lower, upper))
    problem.add_residuals(lambda x, a, b: ag.dot(a, x) - b, x[0], matrix, right)
    return problem


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), columns=st.integers(2, 9), tightness=st.sampled_from([0.3, 1.0])
)  # fmt: skip
def test_linear_problems_end_where_active_sets_do(
    seed: int, columns: int, tightness: float
) -> None:
    matrix, right, lower, upper = linear(seed, columns, tightness)
    found = ag.solve(linear_problem(matrix, right, lower, upper), backend="numpy", options=TIGHT)
    oracle = lsq_linear(matrix, right, (lower, upper), method="bvls", tol=1e-14)
    x = found.values["x"][0]
    assert found.success, found.report()
    # Steps end where they change the cost by less than its rounding: half the digits of x.
    np.testing.assert_allclose(x, oracle.x, atol=1e-6)
    assert np.all((lower <= x) & (x <= upper))
    # Karush-Kuhn-Tucker: the gradient is what the bounds press with, and only where they hold.
    gradient = matrix.T @ (matrix @ x - right)
    pressed = found.bound_multipliers["x"][0]
    np.testing.assert_allclose(pressed, gradient, atol=1e-5)
    assert np.all(pressed[x == lower] >= 0.0) and np.all(pressed[x == upper] <= 0.0)
    assert np.all(pressed[(x > lower) & (x < upper)] == 0.0)
    for before, after in itertools.pairwise(found.history):
        assert after.cost <= before.cost * (1.0 + 1e-13)  # stated to its rounding


@pytest.mark.parametrize(
    "linear_solver", ["dense-cholesky", "dense-qr", "sparse-cholesky", "schur", "pcg"]
)
def test_every_linear_solver_holds_unknowns(linear_solver: str) -> None:
    matrix, right, lower, upper = linear(7, 8, 0.8)
    problem = linear_problem(matrix, right, lower, upper)
    if linear_solver == "schur":  # blocks that couple by one shared block alone
        problem = ag.Problem()
        points = problem.parameters("points", np.zeros((4, 1)), bounds=(-0.1, 0.1))
        shared = problem.parameters("shared", np.zeros((1, 2)), bounds=(None, [0.2, np.inf]))
        problem.add_residuals(
            lambda p, s, a, b: [p + a * s[0] - b, p - s[1] + b * a], points, shared[0],
            matrix[:4, 0], right[:4],
        )  # fmt: skip
        dense = ag.solve(problem, linear_solver="dense-cholesky", backend="numpy", options=TIGHT)
        found = ag.solve(problem, linear_solver="schur", backend="numpy", options=TIGHT)
        for name, values in dense.values.items():
            np.testing.assert_allclose(found.values[name], values, atol=1e-9)
        assert np.any(np.abs(found.values["points"]) == 0.1)
        return
    found = ag.solve(problem, linear_solver=linear_solver, backend="numpy", options=TIGHT)
    oracle = lsq_linear(matrix, right, (lower, upper), method="bvls", tol=1e-14)
    np.testing.assert_allclose(found.values["x"][0], oracle.x, atol=1e-7)


@pytest.mark.parametrize("backend", parameters_of([NUMBA, *JAX[:1], *WGSL[:1]]))
def test_a_curve_with_bounded_parameters_on_every_backend(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    t = np.linspace(0.0, 4.0, 60)
    y = 2.5 * np.exp(-1.3 * t) + 0.5 + 0.02 * rng.standard_normal(60)
    lower, upper = np.array([0.0, 0.0, 0.6]), np.array([2.4, np.inf, 1.0])
    problem = ag.Problem()
    theta = problem.parameters("theta", [[1.0, 1.0, 0.7]], bounds=(lower, upper))
    problem.add_residuals(
        lambda p, t, y: p[0] * ag.exp(-p[1] * t) + p[2] - y, theta[0], t, y, name="decay"
    )
    found = ag.solve(
        problem, backend=backend.name, precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None, linear_solver="pcg",
    )  # fmt: skip
    oracle = least_squares(
        lambda p: p[0] * np.exp(-p[1] * t) + p[2] - y, [1.0, 1.0, 0.7], bounds=(lower, upper),
        ftol=1e-15, xtol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert found.success, found.report()
    single = backend.precision == "float32"
    assert found.cost == pytest.approx(oracle.cost, rel=1e-4 if single else 1e-7)
    assert found.values["theta"][0] == pytest.approx(oracle.x, rel=1e-2 if single else 1e-3)
    a, _, c = found.values["theta"][0]
    assert (a, c) == (2.4, 0.6)  # exactly, in every precision
    assert "device" not in found.linear_solver


# Hock, Schittkowski 1981, "Test examples for nonlinear programming codes", problems 1, 2, 38:
# start, bounds, minimum and its point; the objective there is twice the cost. The start of problem
# 2 is outside; from its projection, (-2, 1.5), one comes to the other minimum, 4.9412.
ROOT = np.sqrt(598.0 / 1200.0)
SECOND = 2.0 * ROOT * np.cos(np.arccos(0.0025 / ROOT**3) / 3.0)


@pytest.mark.parametrize(
    ("fn", "start", "bounds", "minimum", "point"),
    [
        (rosenbrock, [-2.0, 1.0], ([-np.inf, -1.5], None), 0.0, [1.0, 1.0]),
        (rosenbrock, [0.0, 1.5], ([-np.inf, 1.5], None), 0.0504261879, [SECOND, 1.5]),
        (wood, [-3.0, -1.0, -3.0, -1.0], (-10.0, 10.0), 0.0, [1.0] * 4),
    ],
    ids=["1", "2", "38"],
)  # fmt: skip
def test_hock_schittkowski(fn: Any, start: Any, bounds: Any, minimum: float, point: Any) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [start], bounds=bounds)
    problem.add_residuals(fn, x, name="f")
    options = ag.LevenbergMarquardtOptions(function_tolerance=1e-14, max_iterations=300)
    found = ag.solve(problem, backend="numpy", options=options)
    assert found.success, found.report()
    assert 2.0 * found.cost == pytest.approx(minimum, rel=1e-8, abs=1e-12)
    assert found.values["x"][0] == pytest.approx(point, rel=1e-6)
    pressed = found.bound_multipliers["x"][0]
    # The rate by which the least cost grows with the bound, by a central difference of minima.
    if minimum:
        sides = []
        for lower in (1.5 - 1e-4, 1.5 + 1e-4):
            moved = ag.Problem()
            y = moved.parameters("x", [[0.0, 1.6]], bounds=([-np.inf, lower], None))
            moved.add_residuals(fn, y, name="f")
            sides.append(ag.solve(moved, backend="numpy", options=options).cost)
        assert pressed == pytest.approx([0.0, (sides[1] - sides[0]) / 2e-4], rel=1e-4)
    else:
        assert not pressed.any()


def test_everything_at_its_bound_is_a_minimum() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 2.0], bounds=([1.0, 2.0], [5.0, 2.0]))
    problem.add_residuals(lambda v: v + 1.0, x, name="r")
    found = ag.solve(problem, backend="numpy")
    assert (found.status, found.iterations) == (ag.Status.CONVERGED_GRADIENT, 0)
    assert np.array_equal(found.values["x"], [1.0, 2.0])
    assert found.bound_multipliers["x"].ravel().tolist() == [2.0, 3.0]


def test_frozen_numbers_and_free_arrays_have_no_part_in_the_box() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [0.5, 0.5, 0.5], bounds=(0.0, 1.0))
    y = problem.parameters("y", [0.5, 0.5, 0.5])
    problem.add_residuals(lambda v, w: [v - 3.0, w - 3.0 * v], x, y, name="r")
    problem.freeze(x, 1)
    found = ag.solve(problem, backend="numpy")
    assert found.values["x"] == pytest.approx([1.0, 0.5, 1.0])
    assert found.values["y"] == pytest.approx([3.0, 1.5, 3.0])
    pressed = found.bound_multipliers
    assert set(pressed) == {"x"}
    assert pressed["x"].ravel() == pytest.approx([-2.0, 0.0, -2.0], abs=1e-6)
    problem.freeze(x)
    assert ag.solve(problem, method="dogleg", backend="numpy").success  # no bound on what varies


@pytest.mark.parametrize("method", [m for m in METHODS if m != "levenberg-marquardt"])
def test_methods_that_keep_no_bounds_refuse_them(method: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [0.5], bounds=(0.0, 1.0))
    problem.add_residuals(lambda v: v - 3.0, x)
    with pytest.raises(ag.InputError, match=f"method='{method}' keeps no bounds, and param"):
        ag.solve(problem, method=method)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((0.6, 1.0), ag.InputError, r"1 of 2 numbers .* first at \(0,\) is 0.5, expected 0.6 to 1"),
        ((1.0, 0.0), ag.InputError, r"the lower bound at \(0,\) is 1.0, above the upper one, 0.0"),
        (1.0, ag.InputError, r"got bounds=1.0, expected a pair \(lower, upper\)"),
        ((0.0, np.nan), ag.InputError, "upper bound: got NaN or -inf"),
        ((np.inf, None), ag.InputError, "lower bound: got NaN or inf"),
        (("a", None), ag.InputError, "lower bound: got 'a', expected numbers"),
        ((np.zeros(3), None), ag.ShapeError, r"got shape \(3,\), expected what broadcasts"),
    ],
)
def test_bad_bounds_are_named(bounds: Any, error: type[Exception], message: str) -> None:
    problem = ag.Problem()
    with pytest.raises(error, match=f"parameters 'x'.*{message}"):
        problem.parameters("x", [0.5, 0.7], bounds=bounds)
    x = problem.parameters("x", [0.5, 0.7], bounds=(0.0, 1.0))
    problem.add_residuals(lambda v: v, x)
    with pytest.raises(ag.InputError, match="update, parameters 'x': 1 of 2 numbers are outside"):
        problem.update(x=[0.5, 1.1])


def test_bounds_on_a_manifold_are_refused() -> None:
    with pytest.raises(ag.InputError, match="parameters 'q': bounds on a manifold"):
        ag.Problem().parameters("q", [[1.0, 0.0]], manifold=ag.manifolds.SO2, bounds=(0.0, 1.0))
