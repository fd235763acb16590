"""All methods over the same problems: minima, every status, and what a stopped solve returns."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.cost_gradient import open_cost_gradient
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.line_search import WolfeConditions, backtracking, strong_wolfe
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.methods import METHODS
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.step_control import Regularization, TrustRegion
from more_garbow_hillstrom import LISTED
from sessions import NUMBA, NUMPY, WGSL, WGSL_FLOAT64, Backend, device_on, parameters_of
from tolerances import GRAPH, tolerance
from workloads import MINIMA, PROBLEMS, bending_problem

SECOND_ORDER = ["levenberg-marquardt", "gauss-newton", "dogleg", "newton"]
# Levenberg-Marquardt's own tests are in test_solve.py; what all share is tried with it too.
ALL = list(METHODS)
FIRST_ORDER = [m for m in ALL if m not in SECOND_ORDER]
SMALL_DECAY = {"adamw": {"weight_decay": 1e-7}}


def options_of(method: str, **values: Any) -> SolverOptions:
    # Decay moves the minimum: small enough here that it does not show.
    return METHODS[method].options(**{**SMALL_DECAY.get(method, {}), **values})


def one_block(fn: Callable[[Any], Any], start: list[float]) -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", [start] if len(start) > 1 else start)
    problem.add_residuals(fn, x, name="r")
    return problem


def rosenbrock(start: tuple[float, float] = (-1.2, 1.0)) -> ag.Problem:
    return one_block(lambda p: [10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]], list(start))


def true_cost(problem: ag.Problem, solution: ag.Solution) -> float:
    problem.update(**solution.values)
    return problem.evaluate(backend="numpy").cost


# -- minima ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gauss-newton", "dogleg"])
@pytest.mark.parametrize("name", ["W1r_s3", "W2_s3", "W4_s3"])
def test_known_minima(name: str, method: str) -> None:
    problem = PROBLEMS[name]()
    solution = ag.solve(problem, method=method, backend="numba")
    assert solution.success, solution.report()
    # W1r_s3 is known to its last digit, 1e-6.
    assert solution.cost == pytest.approx(MINIMA[name], rel=1e-6 if name == "W1r_s3" else 1e-7)
    assert true_cost(problem, solution) == pytest.approx(solution.cost, rel=1e-12)


CLASSICS = ("rosenbrock", "powell singular", "freudenstein and roth", "beale")


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("name", CLASSICS)
def test_classic_problems(name: str, method: str) -> None:
    listed = LISTED[name]
    options = options_of(
        method, function_tolerance=1e-14, gradient_tolerance=1e-12, parameter_tolerance=1e-14,
        max_iterations=500,
    )  # fmt: skip
    solution = ag.solve(listed.problem(), method=method, backend="numpy", options=options)
    assert solution.success, solution.report()
    total = 2.0 * solution.cost
    assert any(total == pytest.approx(m, rel=1e-6, abs=1e-9) for m in listed.minima), total


@pytest.mark.parametrize("line_search", ["backtracking", "strong-wolfe"])
def test_gauss_newton_with_either_line_search(line_search: str) -> None:
    options = ag.GaussNewtonOptions(line_search=line_search, function_tolerance=1e-12)
    for problem, minimum in ((rosenbrock(), 0.0), (PROBLEMS["W4_s3"](), MINIMA["W4_s3"])):
        solution = ag.solve(problem, method="gauss-newton", options=options, backend="numba")
        assert solution.success, solution.report()
        assert solution.cost == pytest.approx(minimum, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("method", ["gauss-newton", "dogleg"])
@pytest.mark.parametrize(
    "linear_solver", ["sparse-cholesky", "dense-cholesky", "dense-qr", "schur", "pcg"]
)
def test_linear_solvers_compose_with_methods(method: str, linear_solver: str) -> None:
    problem = bending_problem(1)
    expected = ag.solve(problem, backend="numba").cost
    solution = ag.solve(problem, method=method, linear_solver=linear_solver, backend="numba")
    assert solution.cost == pytest.approx(expected, rel=1e-6)
    assert solution.linear_solver.startswith(linear_solver)


# -- gradients alone ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "values", "excess"),
    [
        ("l-bfgs", {}, 1e-5),
        ("adam", {"max_iterations": 3000}, 1e-3),
        ("adamw", {"max_iterations": 3000}, 1e-3),
        ("gradient-descent", {"max_iterations": 3000}, 1e-4),
    ],
)
@pytest.mark.parametrize("name", ["W1r_s3", "W4_s3"])
def test_first_order_methods_come_close_to_known_minima(
    name: str, method: str, values: dict[str, Any], excess: float
) -> None:
    problem = PROBLEMS[name]()
    solution = ag.solve(
        problem, method=method, backend="numba", options=options_of(method, **values)
    )
    assert solution.success, solution.report()
    assert solution.cost == pytest.approx(MINIMA[name], rel=excess)
    assert solution.linear_solver == "none"
    # Neither J nor JᵀJ was made.
    assert "normal_equations" not in problem.analysis().__dict__
    assert all("energy" in k.name for k in solution.kernels)


def lossy_problem() -> ag.Problem:
    """Several groups, vectors of residuals, a robust loss, frozen blocks, unequal arguments."""
    rng = np.random.default_rng(5)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((6, 3)))
    a = problem.parameters("a", [0.7])
    i, j, d = np.arange(5), np.arange(1, 6), rng.standard_normal((5, 3))
    problem.add_residuals(
        lambda d, p, q, a: a * (q - p) * ag.norm(q) - d, d, x[i], x[j], a[0],
        loss=ag.losses.Cauchy(0.5), name="edges",
    )  # fmt: skip
    problem.add_residuals(lambda p: [ag.exp(0.1 * p[0]), p[1] * p[2]], x, name="bend")
    problem.freeze(x, [2])
    return problem


# SwiftShader takes half a minute for double-float kernels with exp and log.
DEVICES = [*WGSL, *(b for b in WGSL_FLOAT64 if b.adapter == "llvmpipe")]


@pytest.mark.parametrize("backend", parameters_of([NUMPY, NUMBA, *DEVICES]))
def test_costs_and_gradients_are_those_of_the_jacobian(backend: Backend) -> None:
    problem = lossy_problem()
    analysis = problem.analysis()
    device = device_on(backend.adapter) if backend.adapter else None
    choice = choose_backend(backend.name, backend.precision, device, analysis.row_count)
    start = current_parameters(problem)
    source = open_cost_gradient(analysis, choice, start, Stopwatch({}))
    here, there = source.at(start), source.at(start + 0.01)
    change = source.change(here, there)
    source.close()
    exact = problem.evaluate(backend="numpy")
    close = tolerance(backend.precision, GRAPH)
    close.check(here.cost, exact.cost, "cost")
    close.check(here.gradient, exact.gradient, "gradient")
    x, a = problem.arrays
    problem.update(x=problem.values_of(x) + 0.01, a=problem.values_of(a) + 0.01)
    problem.unfreeze(x, [2])
    close.check(change, problem.evaluate(backend="numpy").cost - exact.cost, "change")


@pytest.mark.parametrize("backend", parameters_of(WGSL))
@pytest.mark.parametrize("method", ["l-bfgs", "adam"])
def test_first_order_methods_on_a_device(method: str, backend: Backend) -> None:
    assert backend.adapter is not None
    solution = ag.solve(
        PROBLEMS["W4_s3"](), method=method, backend="wgsl", device=device_on(backend.adapter),
        options=options_of(method, max_iterations=60, learning_rate=0.003)
        if method == "adam" else options_of(method, max_iterations=60),
    )  # fmt: skip
    assert solution.cost < 0.1 * solution.initial_cost
    assert any("gradient" in k.name for k in solution.kernels)


def test_adam_takes_the_steps_of_the_paper() -> None:
    scale, right = np.array([1.0, 10.0, 0.1]), np.array([1.0, -2.0, 3.0])
    problem = ag.Problem()
    x = problem.parameters("x", np.zeros((1, 3)))
    problem.add_residuals(lambda p, s, r: s * p - r, x[0], scale[None], right[None])
    for method, decay in (("adam", 0.0), ("adamw", 0.3)):
        more = {"weight_decay": decay} if decay else {}
        options = options_of(method, learning_rate=0.01, max_iterations=7, **more)
        solution = ag.solve(problem, method=method, backend="numpy", options=options)
        p, m, v = np.zeros(3), np.zeros(3), np.zeros(3)
        for t in range(1, 8):
            g = scale * (scale * p - right)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            p = p - 0.01 * (step + decay * p)
        assert all(r.accepted for r in solution.history)
        assert solution.values["x"][0] == pytest.approx(p, rel=1e-9)


def test_heavy_ball_takes_the_steps_of_polyak_and_survives_a_rate_too_large() -> None:
    problem = one_block(lambda x: [2.0 * x - 2.0], [0.0])
    options = ag.GradientDescentOptions(learning_rate=0.01, momentum=0.5, max_iterations=5)
    solution = ag.solve(problem, method="gradient-descent", backend="numpy", options=options)
    x = velocity = 0.0
    for _ in range(5):
        velocity = 0.5 * velocity - 4.0 * (x - 1.0)
        x += 0.01 * velocity
    assert solution.values["x"][0] == pytest.approx(x, rel=1e-12)
    wild = ag.GradientDescentOptions(learning_rate=100.0, max_iterations=2000, patience=2000)
    solution = ag.solve(problem, method="gradient-descent", backend="numpy", options=wild)
    assert solution.cost <= solution.initial_cost
    assert np.isfinite(solution.values["x"]).all()


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_a_linear_solver_is_refused_where_there_is_no_linear_system(method: str) -> None:
    with pytest.raises(ag.InputError, match=f"method='{method}' solves no linear systems"):
        ag.solve(rosenbrock(), method=method, linear_solver="pcg")
    with pytest.raises(ag.InputError, match=f"method='{method}' forms none"):
        ag.solve(rosenbrock(), method=method, precision="mixed")


# -- degenerate problems -----------------------------------------------------------------------


@pytest.mark.parametrize("method", SECOND_ORDER)
@pytest.mark.parametrize("linear_solver", ["sparse-cholesky", "dense-cholesky", "pcg"])
def test_singular_systems_are_damped(method: str, linear_solver: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 5.0, 2.0])
    problem.parameters("lonely", np.arange(3.0))
    problem.add_residuals(lambda a, b: ag.exp(0.1 * (a + b)) - 4.0, x[0], x[1])
    solution = ag.solve(problem, method=method, linear_solver=linear_solver, backend="numpy")
    assert solution.success, solution.report()
    assert solution.cost < 1e-8
    assert solution.values["x"][:2].sum() == pytest.approx(10.0 * math.log(4.0), abs=1e-3)
    assert np.array_equal(solution.values["lonely"], np.arange(3.0))


def test_gauss_newton_damps_only_while_it_must() -> None:
    # Where p[0] is 0 the Jacobian is singular, and nowhere else.
    problem = one_block(lambda p: [p[0] * p[1] - 6.0, p[0] - 2.0], [0.0, 2.0])
    options = ag.GaussNewtonOptions(function_tolerance=1e-12)
    solution = ag.solve(problem, method="gauss-newton", backend="numpy", options=options)
    first, last = solution.history[1], solution.history[-1]
    assert (first.accepted, first.damping, first.linear_iterations) == (False, 0.0, 1)
    assert solution.history[2].damping == Regularization.SMALLEST
    assert last.damping == 0.0
    assert solution.values["x"][0] == pytest.approx([2.0, 3.0])


def test_gauss_newton_does_not_stall_where_the_jacobian_is_singular() -> None:
    # Powell 1970: undamped, x[0] stalls near 1.8016, where the gradient is not 0.
    problem = one_block(lambda p: [p[0], 10.0 * p[0] / (p[0] + 0.1) + 2.0 * p[1] ** 2], [3.0, 1.0])
    solution = ag.solve(problem, method="gauss-newton", backend="numpy")
    assert solution.success
    assert solution.cost < 1e-6, solution.report()


def test_dogleg_without_a_newton_step_goes_down_the_gradient() -> None:
    # Columns of 1e-9 and 1e9: no damping of up to 1 makes their JᵀJ definite in float64.
    problem = one_block(lambda p: [1e9 * (p[0] + p[1]) - 1e9], [0.0, 0.0])
    solution = ag.solve(problem, method="dogleg", backend="numpy")
    assert solution.values["x"].sum() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("method", ALL)
def test_steps_into_nan_are_survived(method: str) -> None:
    problem = one_block(lambda x: [ag.log(x), x], [10.0])
    options = options_of(method, max_iterations=5000)
    solution = ag.solve(problem, method=method, backend="numpy", options=options)
    x = solution.values["x"]
    assert np.isfinite(solution.cost)
    assert np.log(x) / x + x == pytest.approx(0.0, abs=1e-3), solution.report()


# -- statuses ----------------------------------------------------------------------------------

NONE = {"function_tolerance": 0.0, "gradient_tolerance": 0.0, "parameter_tolerance": 0.0}


@pytest.mark.parametrize("method", ALL)
def test_converged_by_the_cost(method: str) -> None:
    problem = one_block(lambda x: [x, x - 1.0, ag.exp(x)], [2.0])
    options = options_of(method, **{**NONE, "function_tolerance": 1e-6, "max_iterations": 5000})
    solution = ag.solve(problem, method=method, backend="numpy", options=options)
    assert solution.status is ag.Status.CONVERGED_FUNCTION, solution.report()
    assert "relatively" in solution.message


@pytest.mark.parametrize("method", ALL)
def test_converged_by_the_gradient(method: str) -> None:
    options = options_of(method, **{**NONE, "gradient_tolerance": 1e-3, "max_iterations": 20_000})
    problem = one_block(lambda p: [2.0 * (p[1] - p[0] ** 2), 1.0 - p[0]], [-1.2, 1.0])
    solution = ag.solve(problem, method=method, backend="numpy", options=options)
    assert solution.status is ag.Status.CONVERGED_GRADIENT, solution.report()
    problem.update(**solution.values)
    assert np.abs(problem.evaluate(backend="numpy").gradient).max() <= 1e-3


@pytest.mark.parametrize("method", ALL)
def test_converged_by_the_step(method: str) -> None:
    options = options_of(method, **{**NONE, "parameter_tolerance": 1e-3})
    problem = one_block(lambda x: [x - 1.0, x * x], [0.0])
    solution = ag.solve(problem, method=method, backend="numpy", options=options)
    assert solution.status is ag.Status.CONVERGED_PARAMETER, solution.report()
    assert solution.history[-1].step_norm <= 1e-3 * (1.0 + 1e-3)


@pytest.mark.parametrize("method", ALL)
def test_limits_and_the_callback(method: str) -> None:
    def run(callback: Callable[[Any], Any] | None = None, **values: Any) -> ag.Solution:
        options = options_of(method, **NONE, **values)
        return ag.solve(
            rosenbrock(), method=method, backend="numpy", options=options, callback=callback
        )

    for count in (0, 1, 3):
        solution = run(max_iterations=count)
        assert (solution.status, solution.iterations) == (ag.Status.MAX_ITERATIONS, count)
    assert run(max_seconds=0).status is ag.Status.MAX_SECONDS
    stopped = run(lambda r: r.iteration == 2)
    assert (stopped.status, stopped.iterations) == (ag.Status.STOPPED_BY_CALLBACK, 2)


@pytest.mark.parametrize("method", ALL)
def test_failures_name_the_residual(method: str) -> None:
    at_start = ag.solve(one_block(ag.log, [-1.0]), method=method, backend="numpy")
    assert at_start.status is ag.Status.FAILED_NUMERICAL
    assert at_start.message == "at the start, residuals 'r', element 0, component 0 is nan"

    # Finite only at 2: log(1) = 0 there, log(-1) anywhere else.
    island = one_block(lambda x: x + ag.log(ag.where(ag.abs(x - 2.0) > 0.0, -1.0, 1.0)), [2.0])
    solution = ag.solve(island, method=method, backend="numpy")
    assert solution.status is ag.Status.FAILED_NUMERICAL, solution.report()
    assert "residuals 'r', element 0, component 0 is nan" in solution.message
    assert np.array_equal(solution.values["x"], [2.0])
    assert solution.cost == solution.initial_cost == 2.0


@pytest.mark.parametrize("method", ALL)
def test_everything_frozen(method: str) -> None:
    problem = rosenbrock()
    (x,) = problem.arrays
    problem.freeze(x)
    solution = ag.solve(problem, method=method, backend="numpy")
    assert solution.message == "every parameter is frozen"
    assert solution.cost == pytest.approx(12.1)


# -- what a solve returns ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_a_solve_stopped_anywhere_returns_the_best_accepted_point(method: str) -> None:
    problem = rosenbrock()
    whole = ag.solve(
        problem, method=method, backend="numpy", options=options_of(method, max_iterations=25)
    )
    for count in range(0, whole.iterations, 3):
        options = options_of(method, max_iterations=count)
        part = ag.solve(rosenbrock(), method=method, backend="numpy", options=options)
        assert part.cost == whole.history[count].cost
        assert part.cost == min(r.cost for r in part.history)
        assert true_cost(rosenbrock(), part) == pytest.approx(part.cost, rel=1e-12)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_cost_never_rises_and_rejected_steps_leave_no_trace(method: str, backend: str) -> None:
    problem = PROBLEMS["W1r_s3"]()
    options = options_of(method, max_iterations=30)
    solution = ag.solve(problem, method=method, backend=backend, options=options)
    for before, after in itertools.pairwise(solution.history):
        if after.accepted:
            assert after.cost <= before.cost
        else:
            assert (after.cost, after.gradient_norm) == (before.cost, before.gradient_norm)
    assert solution.cost < solution.initial_cost
    problem.update(**solution.values)
    found = problem.evaluate(backend=backend)
    assert found.cost == pytest.approx(solution.cost, rel=1e-12)
    largest = float(np.abs(found.gradient).max())
    assert largest == pytest.approx(solution.history[-1].gradient_norm, rel=1e-9)


def random_problem(
    seed: int, rows: int, columns: int, bend: float, loss: ag.losses.Loss | None, bounded: bool
) -> ag.Problem:
    """A linear least-squares problem, bent by tanh, under- or overdetermined."""
    rng = np.random.default_rng(seed)
    matrices, rights = rng.standard_normal((rows, columns, columns)), rng.standard_normal(rows)
    problem = ag.Problem()
    start = np.clip(rng.standard_normal((1, columns)), -0.6, 0.6)
    x = problem.parameters("x", start, bounds=(-0.6, 0.6) if bounded else None)

    def residual(p: Any, a: Any, b: Any) -> Any:
        return ag.tanh(bend * ag.dot(a @ p, p)) + a @ p - b

    problem.add_residuals(residual, x[0], matrices, rights, loss=loss)
    return problem


def check_claim(solution: ag.Solution, options: SolverOptions, gradient: Any) -> None:
    """What the status says holds at the solution, where ``gradient`` is the cost's."""
    last, x = solution.history[-1], solution.values["x"]
    if solution.bound_multipliers:
        gradient = x.ravel() - np.clip(x.ravel() - gradient, -0.6, 0.6)
    if solution.status is ag.Status.CONVERGED_GRADIENT:
        assert np.abs(gradient).max() <= options.gradient_tolerance * (1.0 + 1e-6)
    elif solution.status is ag.Status.CONVERGED_PARAMETER:
        length = float(np.linalg.norm(x))
        assert last.step_norm <= options.parameter_tolerance * (length * 1.001 + 1e-8)
    elif solution.status is ag.Status.CONVERGED_FUNCTION:
        tolerance = options.function_tolerance
        promised = re.search(r"the model promises a change of (\S+),", solution.message)
        if promised:
            assert float(promised[1]) <= tolerance and not last.accepted
        else:
            before = solution.history[-1 - options.window()].cost
            assert before - last.cost <= (tolerance + 1e-13) * before
    else:
        assert solution.status is ag.Status.MAX_ITERATIONS, solution.report()
        assert solution.iterations == options.max_iterations


@settings(deadline=None, max_examples=30)
@given(
    method=st.sampled_from(ALL), seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 4),
    columns=st.integers(2, 4), bend=st.sampled_from([0.0, 0.3, 2.0]), cut=st.integers(0, 60),
    loss=st.sampled_from([None, ag.losses.Huber(0.3), ag.losses.GemanMcClure(0.5)]),
    bounded=st.booleans(),
)  # fmt: skip
def test_claims_hold_for_random_problems(
    method: str, seed: int, rows: int, columns: int, bend: float, cut: int,
    loss: ag.losses.Loss | None, bounded: bool,
) -> None:  # fmt: skip
    bounded = bounded and method == "levenberg-marquardt"
    problem = random_problem(seed, rows, columns, bend, loss, bounded)
    options = options_of(method, max_iterations=60)
    solution = ag.solve(problem, method=method, backend="numpy", options=options)
    for before, after in itertools.pairwise(solution.history):
        if after.accepted:
            assert after.cost <= before.cost
        else:
            assert (after.cost, after.gradient_norm) == (before.cost, before.gradient_norm)
    problem.update(**solution.values)
    end = problem.evaluate(backend="numpy")
    assert end.cost == pytest.approx(solution.cost, rel=1e-12, abs=1e-300)
    check_claim(solution, options, end.gradient)

    # Stopped anywhere, the same solve returns the best point so far, and its history is a prefix.
    problem = random_problem(seed, rows, columns, bend, loss, bounded)
    cut = min(cut, solution.iterations)
    part = ag.solve(
        problem, method=method, backend="numpy", options=options,
        callback=lambda r: r.iteration >= cut,
    )  # fmt: skip
    assert part.iterations == cut
    assert part.status in (ag.Status.STOPPED_BY_CALLBACK, solution.status)
    assert part.cost == solution.history[cut].cost == min(r.cost for r in part.history)
    problem.update(**part.values)
    assert problem.evaluate("numpy").cost == pytest.approx(part.cost, rel=1e-12, abs=1e-300)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ALL)
def test_options_of_another_method_are_refused_by_name(method: str) -> None:
    expected = METHODS[method].options
    assert expected.method == method
    assert getattr(ag, expected.__name__) is expected
    for other in METHODS.values():
        if other.options is not expected:
            with pytest.raises(
                ag.InputError,
                match=rf"got {other.options.__name__}, expected ag\.{expected.__name__}",
            ):
                ag.solve(rosenbrock(), method=method, options=other.options())
    with pytest.raises(ag.InputError, match="options: got dict"):
        ag.solve(rosenbrock(), method=method, options={"max_iterations": 3})  # type: ignore[arg-type]


def test_unknown_methods_are_refused_by_name() -> None:
    with pytest.raises(ag.InputError, match="method='nelder' is unknown; expected one of leven"):
        ag.solve(rosenbrock(), method="nelder")


BAD: list[tuple[str, str, Any]] = [
    ("gauss-newton", "line_search", "exact"),
    ("gauss-newton", "sufficient_decrease", 0.0),
    ("gauss-newton", "sufficient_decrease", 0.95),
    ("gauss-newton", "curvature", 1.0),
    ("gauss-newton", "max_line_search_steps", 0),
    ("gauss-newton", "scaling", "none"),
    ("dogleg", "initial_radius", 0.0),
    ("dogleg", "initial_radius", math.inf),
    ("dogleg", "min_gain_ratio", 1.0),
    ("dogleg", "max_iterations", -1),
    ("levenberg-marquardt", "step_control", "moré"),
    ("l-bfgs", "memory", 0),
    ("l-bfgs", "sufficient_decrease", 0.95),
    ("adam", "learning_rate", 0.0),
    ("adam", "learning_rate", None),
    ("adam", "beta1", 1.0),
    ("adam", "beta2", -0.1),
    ("adam", "patience", 0),
    ("adamw", "weight_decay", -1.0),
    ("gradient-descent", "learning_rate", -1.0),
    ("gradient-descent", "momentum", 1.0),
]


@pytest.mark.parametrize(("method", "name", "value"), BAD)
def test_bad_options_are_named(method: str, name: str, value: Any) -> None:
    with pytest.raises(ag.InputError, match=f"{name}=.*expected"):
        options_of(method, **{name: value})


# -- parts -------------------------------------------------------------------------------------


@given(
    center=st.floats(0.05, 50.0), power=st.sampled_from([2.0, 4.0]), wiggle=st.floats(0.0, 0.4),
    first=st.sampled_from([1e-3, 1.0, 30.0]),
)  # fmt: skip
def test_strong_wolfe_lengths_meet_both_conditions(
    center: float, power: float, wiggle: float, first: float
) -> None:
    def value(a: float) -> float:
        return abs(a / center - 1.0) ** power + 0.1 * wiggle * (1.0 - math.cos(3.0 * a / center))

    def slope(a: float) -> float:
        d = a / center - 1.0
        down = power * math.copysign(abs(d) ** (power - 1.0), d)
        return (down + 0.3 * wiggle * math.sin(3.0 * a / center)) / center

    rule = WolfeConditions(curvature=0.5, max_evaluations=60)
    seen: list[float] = []

    def evaluate(a: float) -> tuple[float, float]:
        seen.append(a)
        return value(a) - value(0.0), slope(a)

    length = strong_wolfe(evaluate, slope(0.0), first, rule)
    assert length is not None
    assert length in seen
    assert value(length) - value(0.0) <= rule.decrease * length * slope(0.0)
    assert abs(slope(length)) <= rule.curvature * abs(slope(0.0))
    shorter = backtracking(lambda a: evaluate(a)[0], slope(0.0), first, rule)
    assert shorter is not None
    assert value(shorter) - value(0.0) <= rule.decrease * shorter * slope(0.0)


def test_line_searches_step_back_from_nan_and_give_up_where_nothing_falls() -> None:
    def change(a: float) -> float:
        return a * a - a if a < 0.1 else math.nan

    found = backtracking(change, -1.0)
    assert found is not None and 0.0 < found < 0.1
    found = strong_wolfe(lambda a: (change(a), 2.0 * a - 1.0), -1.0, 1.0)
    assert found is not None and 0.0 < found < 0.1
    counted: list[float] = []

    def rising(a: float) -> float:
        counted.append(a)
        return a

    rule = WolfeConditions(max_evaluations=7)
    assert backtracking(rising, -1.0, 1.0, rule) is None
    assert strong_wolfe(lambda a: (rising(a), 1.0), -1.0, 1.0, rule) is None
    assert len(counted) == 14


def test_strong_wolfe_goes_further_than_the_first_length() -> None:
    length = strong_wolfe(lambda a: (a * a - 200.0 * a, 2.0 * a - 200.0), -200.0, 1.0)
    assert length is not None and 5.0 < length < 195.0


def test_trust_region_follows_the_gain_ratio() -> None:
    region = TrustRegion(4.0)
    region.accepted(0.9, 2.0)
    assert region.radius == 6.0
    region.accepted(0.5, 2.0)
    assert region.radius == 6.0
    region.accepted(0.1, 2.0)
    assert region.radius == 3.0
    region.rejected(2.0)
    assert region.radius == 1.0
    assert not region.exhausted
    for _ in range(200):
        region.rejected(1.0)
    assert region.exhausted
