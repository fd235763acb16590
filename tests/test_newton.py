"""Energies: derivatives against oracles, projection, and projected Newton over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
import workloads
from autograd_gpu.runtime.semidefinite import project
from autograd_gpu.solvers.evaluation import current_parameters
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, float32_exact, parameters_of
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

Array = NDArray[np.float64]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
RNG = np.random.default_rng(11)
POSITIONS = float32_exact(RNG.standard_normal((6, 3)))
PAIRS = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5], [1, 4]])


def spring_energy(p: Any, q: Any, rest: Any) -> Any:
    return 0.5 * ag.square(ag.norm(q - p) - rest)


def logarithmic(p: Any) -> Any:
    return ag.sum(p * p) - ag.log(p[0] + 4.0) + p[1] * p[2]


def evaluate(problem: ag.Problem, backend: Backend) -> Any:
    device = device_on(backend.adapter) if backend.adapter else None
    return problem.evaluate(backend=backend.name, precision=backend.precision, device=device)


def mixed_problem() -> ag.Problem:
    """Two energies and residuals, a frozen block, and an element that gathers a block twice."""
    problem = ag.Problem()
    x = problem.parameters("x", POSITIONS)
    i, j = np.concatenate([PAIRS, [[3, 3]]]).T
    problem.add_energy(lambda p, q: ag.exp(-ag.dot(p - 2.0 * q, p)), x[i], x[j], name="pairs")
    problem.add_energy(logarithmic, x[1:5], weight=np.array([1.0, 2.0, 0.5, 3.0]))
    problem.add_residuals(lambda p, t: ag.sin(p) - t, x, POSITIONS[::-1], name="sines")
    problem.freeze(x, 2)
    return problem


# -- derivatives -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_and_hessians_are_those_of_differences(backend: Backend) -> None:
    problem = mixed_problem()
    found = evaluate(problem, backend)
    start = problem.values_of(problem.arrays[0])
    free = np.delete(np.arange(start.size), np.arange(6, 9))
    h = 1e-5

    def moved(column: int, step: float) -> Any:
        flat = start.ravel().copy()
        flat[free[column]] += step
        problem.update(x=flat.reshape(start.shape))
        return problem.evaluate(backend="numpy")

    slopes, curvature = np.empty(free.size), np.empty((free.size, free.size))
    for k in range(free.size):
        up, down = moved(k, h), moved(k, -h)
        slopes[k] = (up.cost - down.cost) / (2 * h)
        curvature[k] = (up.energy_gradient - down.energy_gradient) / (2 * h)
    exact = CENTRAL_DIFFERENCE if backend.precision == "float64" else tolerance("float32", GRAPH)
    exact.check(found.gradient, slopes, "gradient")
    exact.check(found.energy_hessian.toarray(), curvature, "Hessian")
    problem.update(x=start)
    tolerance(backend.precision, GRAPH).check(
        found.cost, problem.evaluate(backend="numpy").cost, "cost"
    )


def test_hessians_are_those_of_sympy() -> None:
    sympy = pytest.importorskip("sympy")
    names = sympy.symbols("p0:3 q0:3")
    p, q = sympy.Matrix(names[:3]), sympy.Matrix(names[3:])
    length = sympy.sqrt((q - p).dot(q - p))
    energy = (length - sympy.Rational(7, 10)) ** 2 / 2
    hessian = sympy.lambdify(names, sympy.hessian(energy, names))
    problem = ag.Problem()
    x = problem.parameters("x", POSITIONS)
    problem.add_energy(spring_energy, x[[4]], x[[1]], 0.7)
    found = problem.evaluate(backend="numba").energy_hessian.toarray()
    columns = np.concatenate([problem.columns(x)[4], problem.columns(x)[1]])
    expected = hessian(*POSITIONS[4], *POSITIONS[1])
    tolerance("float64", GRAPH).check(found[np.ix_(columns, columns)], expected, "Hessian")


def test_check_gradients_sees_energies() -> None:
    checked = mixed_problem().check_gradients()
    assert checked.ok
    assert {g.name for g in checked.groups} == {"pairs", "logarithmic", "sines"}


# -- projection --------------------------------------------------------------------------------


def random_symmetric(count: int, n: int) -> Array:
    m = np.random.default_rng(3).standard_normal((count, n, n))
    return m + m.transpose(0, 2, 1)


@pytest.mark.parametrize("n", [1, 2, 6, 9])
@pytest.mark.parametrize(("how", "floor"), [("clamp", 0.0), ("clamp", 0.3), ("absolute", 0.1)])
def test_projected_matrices_have_the_wanted_eigenvalues(n: int, how: str, floor: float) -> None:
    given = random_symmetric(2100, n)
    values, vectors = np.linalg.eigh(given)
    wanted = np.maximum(np.abs(values) if how == "absolute" else values, floor)
    expected = np.einsum("eik,ek,ejk->eij", vectors, wanted, vectors)
    found = given.copy()
    changed = project(found, how, floor)
    tolerance("float64", GRAPH).check(found, expected, how)
    assert changed == np.sum(values.min(axis=1) < floor)


def test_semidefinite_matrices_are_left_as_they_are() -> None:
    factors = np.random.default_rng(4).standard_normal((500, 6, 3))
    factors[0] = 0.0
    given = factors @ factors.transpose(0, 2, 1)
    given[1, :, 2] = given[1, 2, :] = 0.0  # a zero row in the middle
    found = given.copy()
    # A small pivot before a zero one leaves rounding in doubt: a few take the longer way.
    assert project(found) <= 10
    assert np.sum((found == given).all(axis=(1, 2))) >= 490
    tolerance("float64", GRAPH).check(found, given, "semi-definite")
    indefinite = random_symmetric(5, 4)
    kept = indefinite.copy()
    assert project(kept, "none") == 0
    assert np.array_equal(kept, indefinite)


# -- Newton ------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_springs_as_an_energy_come_to_the_minimum_of_least_squares(backend: Backend) -> None:
    large = backend.name == "numba"
    arrays = workloads.w1r(3 if large else 1)
    # A tenth of the noise keeps the small sphere out of other minima, which it has.
    start = arrays["x0"] if large else 0.9 * arrays["p"] + 0.1 * arrays["x0"]
    squares = workloads.springs_problem(1)
    if not large:
        squares.update(x=start)
    minimum = workloads.MINIMA["W1r_s3"] if large else ag.solve(squares).cost
    problem = ag.Problem()
    x = problem.parameters("x", start)
    i, j = arrays["e"].T
    problem.add_energy(spring_energy, x[i], x[j], arrays["L0"], name="springs")
    problem.add_residuals(ag.meshes.energies.anchor, x, arrays["p"], 0.05, name="anchor")
    solution = ag.solve(
        problem,
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    assert solution.success, solution.message
    assert solution.method == "newton"
    assert "the problem has energies ('springs')" in solution.report()
    assert solution.cost == pytest.approx(minimum, rel=1e-5)
    assert any("second order" in k.name for k in solution.kernels) == (backend.name != "numpy")


def test_springs_of_the_large_sphere_end_below_the_peer() -> None:
    """W1_s5: noise of 0.05; a projected Newton of TinyAD ends at 0.0802."""
    arrays = workloads.w1r(5)
    noise = 0.05 * np.random.default_rng(0).standard_normal(arrays["p"].shape)
    problem = ag.Problem()
    x = problem.parameters("x", arrays["p"] + noise)
    i, j = arrays["e"].T
    problem.add_energy(spring_energy, x[i], x[j], arrays["L0"])
    problem.add_energy(lambda p, t: 0.5 * ag.dot(0.05 * (p - t), 0.05 * (p - t)), x, arrays["p"])
    solution = ag.solve(problem, options=ag.NewtonOptions(max_iterations=30))
    assert solution.initial_cost == pytest.approx(146.72536755)
    assert solution.success
    assert solution.cost <= 0.0802


def test_a_quadratic_energy_takes_one_step_and_frozen_blocks_stay() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", POSITIONS)
    problem.add_energy(lambda p, q: ag.dot(p, p) + 0.5 * ag.dot(p - q, p - q), x[:-1], x[1:])
    problem.freeze(x, [5])
    solution = ag.solve(problem, options=ag.NewtonOptions(max_iterations=1))
    problem.update(x=solution.values["x"])
    assert np.abs(problem.evaluate().gradient).max() < 1e-12
    assert np.array_equal(solution.values["x"][5], POSITIONS[5])


@pytest.mark.parametrize("method", ["newton", "l-bfgs"])
def test_methods_agree_on_an_energy_beside_residuals(method: str) -> None:
    problem = mixed_problem()
    limits = {"function_tolerance": 1e-13, "max_iterations": 500}
    options = (ag.NewtonOptions if method == "newton" else ag.LBFGSOptions)(**limits)
    solution = ag.solve(problem, method=method, options=options)
    assert solution.success, solution.message
    problem.update(x=solution.values["x"])
    found = problem.evaluate()
    assert np.abs(found.gradient).max() < 1e-4
    assert found.cost == pytest.approx(solution.cost)
    hessian = found.energy_hessian.toarray()
    assert np.array_equal(hessian, hessian.T)


def test_negative_costs_end_as_well() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[0.5, 0.5]])
    problem.add_energy(lambda p: ag.cos(p[0]) + 2.0 * ag.cos(p[1]) - 10.0, x)
    solution = ag.solve(problem)
    assert solution.success
    assert solution.cost == pytest.approx(-13.0)


@pytest.mark.parametrize("line_search", ["backtracking", "strong-wolfe"])
def test_points_where_an_energy_is_not_finite_are_stepped_around(line_search: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([3.0, 0.01, 40.0]))
    problem.add_energy(lambda t: 0.01 * t - ag.log(t), x, name="barrier")
    solution = ag.solve(
        problem, options=ag.NewtonOptions(line_search=line_search, function_tolerance=1e-14)
    )
    assert solution.success, solution.message
    np.testing.assert_allclose(solution.values["x"], 100.0, rtol=1e-5)


def test_a_start_that_is_not_finite_is_named() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([1.0, -2.0]))
    problem.add_energy(lambda t: t - ag.log(t), x, name="barrier")
    for method in ("newton", "l-bfgs"):
        solution = ag.solve(problem, method=method)
        assert solution.status is ag.Status.FAILED_NUMERICAL
        assert "energy 'barrier', element 1 is nan" in solution.message


def test_steps_are_bounded() -> None:
    def solve(**bounds: Any) -> ag.Solution:
        problem = ag.Problem()
        x = problem.parameters("x", [[3.0, 4.0]])
        problem.freeze(problem.parameters("held", [1.0]))
        problem.add_energy(lambda p: ag.dot(p, p), x)
        return ag.solve(problem, options=ag.NewtonOptions(**bounds))

    assert solve().history[1].step_norm == pytest.approx(5.0)
    assert solve(max_step=1.0).history[1].step_norm == pytest.approx(1.25)
    seen: list[tuple[Array, Array]] = []

    def bound(values: Any, direction: Any) -> float:
        seen.append((values["x"], direction["x"]))
        assert direction["held"].shape == (1,)
        return 0.5

    solution = solve(step_bound=bound, function_tolerance=0.0, gradient_tolerance=1e-6)
    assert solution.history[1].step_norm == pytest.approx(2.5)
    np.testing.assert_allclose(seen[0], [[[3.0, 4.0]], [[-3.0, -4.0]]])
    assert solution.success
    with pytest.raises(ag.InputError, match=r"step_bound: returned 0\.0"):
        solve(step_bound=lambda values, direction: 0.0)


def test_data_of_an_energy_can_be_replaced() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", POSITIONS)
    problem.add_energy(lambda p, t: ag.dot(p - t, p - t), x, np.zeros((6, 3)), name="pull")
    problem.update(data={"pull": POSITIONS + 1.0})
    assert problem.evaluate().cost == pytest.approx(18.0)
    np.testing.assert_allclose(ag.solve(problem).values["x"], POSITIONS + 1.0, atol=1e-12)


# -- what is refused ---------------------------------------------------------------------------


REFUSED: dict[str, tuple[type[Exception], str, Callable[[ag.Problem], Any]]] = {
    "method": (
        ag.InputError, "method='dogleg' minimises sums of squares.*'pairs'",
        lambda p: ag.solve(p, method="dogleg"),
    ),
    "unknown method": (
        ag.InputError, "method='nelder' is unknown", lambda p: ag.solve(p, method="nelder"),
    ),
    "precision": (
        ag.InputError, "precision='mixed'.*energies", lambda p: ag.solve(p, precision="mixed"),
    ),
    "linear solver": (
        ag.InputError, "dense-qr.*energies", lambda p: ag.solve(p, linear_solver="dense-qr"),
    ),
    "covariance": (
        ag.InputError, "covariance: .*'pairs'", lambda p: p.covariance(p.arrays[0]),
    ),
    "audit": (ag.InputError, "audit: .*'pairs' is an energy", lambda p: p.audit()),
    "a vector": (
        ag.ShapeError, "energy 'vector': returns 3 numbers",
        lambda p: p.add_energy(lambda v: v, p.arrays[0], name="vector"),
    ),
    "a name taken": (
        ag.InputError, "'sines': the problem already has",
        lambda p: p.add_energy(logarithmic, p.arrays[0], name="sines"),
    ),
    "no parameter": (
        ag.InputError, "energy 'data'.*no argument is a parameter",
        lambda p: p.add_energy(logarithmic, np.ones((3, 3)), name="data"),
    ),
    "projection": (
        ag.InputError, "projection='x' is unknown", lambda p: ag.NewtonOptions(projection="x"),
    ),
    "max_step": (
        ag.InputError, "max_step=-1.0", lambda p: ag.NewtonOptions(max_step=-1.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_energies_cannot_do_is_refused_by_name(name: str) -> None:
    error, message, act = REFUSED[name]
    problem = mixed_problem()
    before = current_parameters(problem)
    with pytest.raises(error, match=message):
        act(problem)
    assert np.array_equal(current_parameters(problem), before)
