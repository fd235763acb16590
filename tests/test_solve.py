"""The solver: every status, what history and report say, classic problems against SciPy."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import least_squares

import autograd_gpu as ag
from more_garbow_hillstrom import LISTED
from workloads import PROBLEMS, bending_problem

Array = NDArray[Any]
Options = ag.LevenbergMarquardtOptions
# As close as float64 goes: only a step or a gradient of nothing ends the iteration.
TIGHT = Options(
    function_tolerance=0.0, gradient_tolerance=1e-14, parameter_tolerance=1e-15, max_iterations=400
)


def rosenbrock(start: tuple[float, float] = (-1.2, 1.0)) -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", [start])
    problem.add_residuals(lambda p: [10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]], x, name="rosenbrock")
    return problem


def scalar(fn: Callable[..., Any], *start: float, name: str = "r") -> ag.Problem:
    """One residual for every start value."""
    problem = ag.Problem()
    x = problem.parameters("x", np.array(start))
    problem.add_residuals(fn, x, name=name)
    return problem


# -- statuses ----------------------------------------------------------------------------------


def test_converged_by_the_cost() -> None:
    solution = ag.solve(scalar(lambda x: [x, x - 1.0, ag.exp(x)], 2.0), backend="numpy")
    assert solution.status is ag.Status.CONVERGED_FUNCTION
    before, after = (r.cost for r in solution.history[-2:])
    assert 0.0 <= before - after <= 1e-8 * before
    assert "relatively" in solution.message


def test_converged_by_the_gradient() -> None:
    solution = ag.solve(rosenbrock(), backend="numpy", options=Options(function_tolerance=0.0))
    assert solution.status is ag.Status.CONVERGED_GRADIENT
    assert solution.history[-1].gradient_norm <= 1e-10


def test_converged_by_the_gradient_at_the_start() -> None:
    solution = ag.solve(rosenbrock((1.0, 1.0)), backend="numpy")
    assert solution.status is ag.Status.CONVERGED_GRADIENT
    assert (solution.iterations, len(solution.history)) == (0, 1)
    assert np.array_equal(solution.values["x"], [[1.0, 1.0]])


def test_converged_by_the_step() -> None:
    options = Options(function_tolerance=0.0, gradient_tolerance=0.0, parameter_tolerance=1e-3)
    solution = ag.solve(scalar(lambda x: [x - 1.0, x * x], 0.0), backend="numpy", options=options)
    assert solution.status is ag.Status.CONVERGED_PARAMETER
    assert solution.history[-1].step_norm <= 1e-3 * (1.0 + 1e-3)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_iterations_run_out(count: int) -> None:
    solution = ag.solve(rosenbrock(), backend="numpy", options=Options(max_iterations=count))
    assert solution.status is ag.Status.MAX_ITERATIONS
    assert solution.iterations == count
    assert len(solution.history) == count + 1
    assert not solution.success


def test_seconds_run_out() -> None:
    solution = ag.solve(rosenbrock(), backend="numpy", options=Options(max_seconds=0))
    assert solution.status is ag.Status.MAX_SECONDS
    assert solution.iterations == 1
    assert "0 s" in solution.message


@pytest.mark.parametrize("after", [0, 2])
def test_callback_stops(after: int) -> None:
    seen: list[int] = []

    def callback(record: Any) -> bool:
        seen.append(record.iteration)
        return record.iteration == after

    solution = ag.solve(rosenbrock(), backend="numpy", callback=callback)
    assert solution.status is ag.Status.STOPPED_BY_CALLBACK
    assert seen == list(range(after + 1)) == [r.iteration for r in solution.history]


def test_callback_sees_every_record_and_none_does_not_stop() -> None:
    seen: list[Any] = []
    solution = ag.solve(rosenbrock(), backend="numpy", callback=seen.append)
    assert solution.success
    assert tuple(seen) == solution.history


# -- numerical failure -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("fn", "value"), [(lambda x: [1.0 + x, ag.log(x)], "nan"), (lambda x: [x, 1.0 / x], "inf")]
)
def test_not_finite_at_the_start_names_the_residual(
    backend: str, fn: Callable[..., Any], value: str
) -> None:
    start = (1.0, 2.0, -1.0 if value == "nan" else 0.0, 3.0)
    problem = ag.Problem()
    x = problem.parameters("x", np.array(start))
    problem.add_residuals(lambda x: x - 1.0, x, name="fine")
    problem.add_residuals(fn, x, name="poor")
    solution = ag.solve(problem, backend=backend)
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "residuals 'poor', element 2, component 1" in solution.message
    assert f"is {value}" in solution.message
    assert solution.message.startswith("at the start")
    assert np.array_equal(solution.values["x"], start)
    assert not math.isfinite(solution.cost)
    assert "FAILED_NUMERICAL" in solution.report()


def test_jacobian_not_finite_at_the_start_names_the_residual() -> None:
    solution = ag.solve(scalar(ag.cbrt, 1.0, 0.0), backend="numpy")
    if solution.status is ag.Status.FAILED_NUMERICAL:  # a finite convention is fine as well
        assert "Jacobian of residuals 'r', element 1" in solution.message
    overflowing = ag.solve(scalar(lambda x: 1e200 * x, 0.0), backend="numpy")
    assert overflowing.status is ag.Status.FAILED_NUMERICAL
    assert "Jacobian of residuals 'r', element 0, component 0 is 1e+200" in overflowing.message


def test_cost_overflow_at_the_start_names_the_residual() -> None:
    solution = ag.solve(scalar(lambda x: 1e200 + x, 0.0), backend="numpy")
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "element 0, component 0 is 1e+200, and the cost is not finite" in solution.message


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_steps_into_nan_are_rejected_and_survived(backend: str) -> None:
    # The first step from 10 overshoots to negative x, where the logarithm is NaN.
    problem = scalar(lambda x: [ag.log(x), x], 10.0)
    solution = ag.solve(problem, backend=backend, options=TIGHT)
    assert any(math.isnan(r.gain_ratio) and not r.accepted for r in solution.history[1:])
    x = solution.values["x"]
    assert np.log(x) / x + x == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_nan_wherever_one_steps_is_a_failure_and_not_convergence(backend: str) -> None:
    # Finite only at 2: log(1) = 0 there, log(-1) anywhere else.
    def residual(x: Any) -> Any:
        return x + ag.log(ag.where(ag.abs(x - 2.0) > 0.0, -1.0, 1.0))

    problem = ag.Problem()
    x = problem.parameters("x", [5.0, 2.0])
    problem.add_residuals(lambda x: x - 4.0, x[0], name="fine")
    problem.add_residuals(residual, x[1:], name="island")
    solution = ag.solve(problem, backend=backend)
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "residuals 'island', element 0, component 0 is nan" in solution.message
    assert np.array_equal(solution.values["x"], [5.0, 2.0])
    assert solution.cost == solution.initial_cost == 0.5 * (1.0 + 4.0)


def test_jacobian_lost_at_an_accepted_point_returns_the_point_before() -> None:
    # Below 1/2 the second residual is small, but its slope of 1e195 overflows when squared.
    def residual(x: Any) -> Any:
        return [x, ag.where(x > 0.5, 0.0, 1e-5 * ag.sin(1e200 * x))]

    solution = ag.solve(scalar(residual, 1.0), backend="numpy")
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "Jacobian of residuals 'r', element 0, component 1" in solution.message
    assert solution.message.startswith("after a step")
    assert np.array_equal(solution.values["x"], [1.0])
    assert solution.cost == solution.initial_cost == solution.history[-1].cost == 0.5
    assert not solution.history[-1].accepted


# -- history and report ------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("make", [rosenbrock, PROBLEMS["W1r_s3"]])
def test_cost_never_rises_and_rejected_steps_leave_no_trace(
    make: Callable[[], ag.Problem], backend: str
) -> None:
    problem = make()
    solution = ag.solve(problem, backend=backend, options=Options(max_iterations=60))
    history = solution.history
    assert [r.iteration for r in history] == list(range(len(history)))
    assert history[0].accepted
    assert history[0].cost == solution.initial_cost
    assert solution.rejected == sum(not r.accepted for r in history) > 0
    for before, after in itertools.pairwise(history):
        if after.accepted:
            assert after.cost < before.cost
            assert after.gain_ratio > 1e-3
        else:
            assert (after.cost, after.gradient_norm) == (before.cost, before.gradient_norm)
        assert after.seconds >= before.seconds
        assert after.damping > 0.0
        assert after.linear_iterations == 1
    assert solution.cost == history[-1].cost
    problem.update(**solution.values)
    found = problem.evaluate(backend=backend)
    assert found.cost == pytest.approx(solution.cost, rel=1e-12)
    assert np.abs(found.gradient).max() == pytest.approx(history[-1].gradient_norm, rel=1e-9)


def test_a_solve_that_ends_in_a_rejected_step_returns_the_point_before() -> None:
    problem = rosenbrock()
    whole = ag.solve(problem, backend="numpy").history
    last = next(r.iteration for r in whole[1:] if not r.accepted)
    solution = ag.solve(problem, backend="numpy", options=Options(max_iterations=last))
    shorter = ag.solve(problem, backend="numpy", options=Options(max_iterations=last - 1))
    assert not solution.history[-1].accepted
    assert solution.values["x"].tobytes() == shorter.values["x"].tobytes()
    assert solution.cost == shorter.cost


def test_a_solve_leaves_its_problem_as_it_was() -> None:
    problem = rosenbrock()
    (x,) = problem.arrays
    before = problem.values_of(x)
    first = ag.solve(problem, backend="numba")
    assert np.array_equal(problem.values_of(x), before)
    second = ag.solve(problem, backend="numba")
    assert first.values["x"].tobytes() == second.values["x"].tobytes()
    assert first.values["x"] is not second.values["x"]
    assert [r.cost for r in first.history] == [r.cost for r in second.history]


def test_report_says_what_a_person_asks_first() -> None:
    solution = ag.solve(rosenbrock(), backend="numba")
    report = solution.report()
    for text in (
        solution.status.value,
        f"{solution.iterations} ({solution.rejected} rejected)",
        "2 residuals, 2 free parameters",
        "numba, float64",
        "dense-cholesky",
        "rosenbrock residual",
        "kernels",
    ):
        assert text in report, report
    assert solution.backend_reason in report
    assert set(solution.timings) >= {"analyze", "compile", "evaluate", "solve", "total"}
    assert all(seconds >= 0.0 for seconds in solution.timings.values())
    assert {k.target for k in solution.kernels} == {"numba"}


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_on_a_terminal_and_on_a_pipe(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    stream = Stream()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    solution = ag.solve(rosenbrock(), backend="numpy", progress=True)
    assert solution.success
    assert "cost" in stream.getvalue()
    stream.truncate(0)
    with pytest.raises(KeyError):
        ag.solve(rosenbrock(), backend="numpy", progress=True, callback=lambda r: {}["no"])
    assert ag.solve(rosenbrock(), backend="numpy", progress=True).success


# -- classic problems --------------------------------------------------------------------------


CLASSICS: dict[str, tuple[list[float], float]] = {
    # Minimum, and how close one gets (Powell's Hessian is singular there: half the digits).
    "rosenbrock": ([1.0, 1.0], 1e-10),
    "powell singular": ([0.0] * 4, 1e-4),
    "beale": ([3.0, 0.5], 1e-10),
    "helical valley": ([1.0, 0.0, 0.0], 1e-10),
    "brown badly scaled": ([1e6, 2e-6], 1e-6),
}


@pytest.mark.parametrize("damping", ["diagonal", "one-plus-norm", "identity"])
@pytest.mark.parametrize("name", CLASSICS)
def test_classic_problems(name: str, damping: str) -> None:
    minimum, close = CLASSICS[name]
    options = Options(
        damping=damping, function_tolerance=0.0, gradient_tolerance=1e-15,
        parameter_tolerance=1e-15, max_iterations=500,
    )  # fmt: skip
    solution = ag.solve(LISTED[name].problem(), backend="numpy", options=options)
    assert solution.cost < 1e-14, solution.report()
    assert solution.values["x"][0] == pytest.approx(minimum, rel=close, abs=close)


def test_curve_fit_agrees_with_scipy() -> None:
    rng = np.random.default_rng(11)
    t = np.linspace(0.0, 4.0, 60)
    y = 2.5 * np.exp(-1.3 * t) + 0.5 + 0.05 * rng.standard_normal(60)
    start = np.array([1.0, 1.0, 0.0])

    def model(p: Any, t: Any, y: Any) -> Any:
        return p[0] * ag.exp(-p[1] * t) + p[2] - y

    problem = ag.Problem()
    p = problem.parameters("p", start[None])
    problem.add_residuals(model, p[0], t, y)
    expected = least_squares(
        lambda p: p[0] * np.exp(-p[1] * t) + p[2] - y, start, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    for backend in ("numpy", "numba"):
        solution = ag.solve(problem, backend=backend, options=TIGHT)
        assert solution.cost == pytest.approx(expected.cost, rel=1e-12)
        assert solution.values["p"][0] == pytest.approx(expected.x, rel=1e-7)


def test_circle_fit_with_scalar_parameters_agrees_with_scipy() -> None:
    rng = np.random.default_rng(12)
    angle = rng.uniform(0.0, 6.0, 40)
    points = np.column_stack([2.0 + 3.0 * np.cos(angle), -1.0 + 3.0 * np.sin(angle)])
    points += 0.1 * rng.standard_normal(points.shape)

    def off(center: Any, radius: Any, point: Any) -> Any:
        return ag.norm(point - center) - radius

    problem = ag.Problem()
    center = problem.parameters("center", np.zeros((1, 2)))
    radius = problem.parameters("radius", [1.0])
    problem.add_residuals(off, center[0], radius[0], points)
    expected = least_squares(
        lambda p: np.linalg.norm(points - p[:2], axis=1) - p[2], [0.0, 0.0, 1.0], xtol=1e-15,
        ftol=1e-15, gtol=1e-15,
    )  # fmt: skip
    solution = ag.solve(problem, backend="numpy", options=TIGHT)
    assert solution.cost == pytest.approx(expected.cost, rel=1e-12)
    found = [*solution.values["center"][0], *solution.values["radius"]]
    assert found == pytest.approx(list(expected.x), rel=1e-6)


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 6), seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
def test_linear_least_squares_equals_lstsq(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((rows, columns))
    right = scale * rng.standard_normal(rows)
    problem = ag.Problem()
    x = problem.parameters("x", [np.zeros(columns)] if columns > 1 else [0.0])
    block = x[0]
    if columns > 1:
        problem.add_residuals(lambda a, x, b: ag.dot(a, x) - b, matrix, block, right)
    else:
        problem.add_residuals(lambda a, x, b: a * x - b, matrix[:, 0], block, right)
    options = Options(
        function_tolerance=0.0, gradient_tolerance=1e-13 * scale, parameter_tolerance=1e-14,
        max_iterations=300,
    )  # fmt: skip
    solution = ag.solve(problem, backend="numpy", options=options)
    expected = np.linalg.lstsq(matrix, right, rcond=None)[0]
    best = 0.5 * float(np.sum((matrix @ expected - right) ** 2))
    size = float(right @ right)
    # Flat directions of an ill-conditioned matrix are found slowly; the cost is what counts.
    assert solution.cost <= best + 1e-9 * size
    singular = np.linalg.svd(matrix, compute_uv=False)
    if rows >= columns and singular[-1] > 0.05 * singular[0]:
        assert solution.values["x"].ravel() == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale)


# -- degenerate problems -----------------------------------------------------------------------


@pytest.mark.parametrize("damping", ["diagonal", "one-plus-norm", "identity"])
@pytest.mark.parametrize("linear_solver", ["auto", "sparse-cholesky", "dense-cholesky"])
def test_parameters_without_residuals_stay(damping: str, linear_solver: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.arange(12.0).reshape(4, 3))
    y = problem.parameters("lonely", np.arange(3.0))
    problem.add_residuals(lambda p: p - 1.0, x[[0, 2]])
    solution = ag.solve(
        problem, linear_solver=linear_solver, backend="numpy", options=Options(damping=damping)
    )
    assert solution.success, solution.report()
    assert solution.values["x"][[0, 2]] == pytest.approx(np.ones((2, 3)), abs=1e-4)
    assert np.array_equal(solution.values["x"][[1, 3]], np.arange(12.0).reshape(4, 3)[[1, 3]])
    assert np.array_equal(solution.values["lonely"], problem.values_of(y))


def test_only_the_sum_is_determined() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 5.0])
    problem.add_residuals(lambda a, b: a + b - 10.0, x[0], x[1])
    solution = ag.solve(problem, backend="numpy", options=TIGHT)
    assert solution.values["x"].sum() == pytest.approx(10.0, abs=1e-9)
    assert solution.cost < 1e-18


@pytest.mark.parametrize("linear_solver", ["auto", "sparse-cholesky", "dense-cholesky"])
def test_everything_frozen(linear_solver: str) -> None:
    problem = rosenbrock()
    (x,) = problem.arrays
    problem.freeze(x)
    solution = ag.solve(problem, backend="numpy", linear_solver=linear_solver)
    assert solution.success
    assert solution.message == "every parameter is frozen"
    assert solution.cost == solution.initial_cost == pytest.approx(12.1)
    assert np.array_equal(solution.values["x"], problem.values_of(x))
    assert solution.parameter_count == 0
    found = problem.evaluate(backend="numpy")
    assert found.jacobian.shape == (2, 0)
    assert found.gradient.shape == (0,)


def test_residuals_that_ignore_their_parameters_converge_at_once() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 2.0])
    problem.add_residuals(lambda x, d: d, x, [3.0, 4.0])
    solution = ag.solve(problem, backend="numpy")
    assert solution.status is ag.Status.CONVERGED_GRADIENT
    assert solution.cost == 12.5


# -- linear solvers and options ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "sparse-cholesky", "dense-cholesky"])
def test_linear_solvers_agree(name: str) -> None:
    problem = bending_problem(2)
    solution = ag.solve(
        problem, linear_solver=name, backend="numba", options=Options(max_iterations=3)
    )
    expected = ag.solve(problem, backend="numba", options=Options(max_iterations=3))
    assert solution.cost == pytest.approx(expected.cost, rel=1e-10)
    assert name == "auto" or solution.linear_solver.startswith(name)
    assert solution.linear_solver_reason.endswith((".", ")"))


BAD_OPTIONS = {
    "max_iterations": [-1, 2.5, math.nan, None, "3", True],
    "max_seconds": [-1.0, math.nan, "1"],
    "function_tolerance": [-1e-9, math.nan, None],
    "gradient_tolerance": [-1e-9, math.nan, None],
    "parameter_tolerance": [-1e-9, math.nan, None],
    "initial_damping": [0.0, -1.0, math.nan, math.inf, None],
    "min_gain_ratio": [-0.1, 1.0, math.nan, None],
    "damping": ["none", "Diagonal", None],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, v) for name, values in BAD_OPTIONS.items() for v in values]
)
def test_bad_options_are_named(name: str, value: Any) -> None:
    with pytest.raises(ag.InputError, match=f"{name}=.*expected"):
        Options(**{name: value})


def test_options_are_frozen_and_keyword_only() -> None:
    with pytest.raises(AttributeError):
        Options().max_iterations = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Options(3)  # type: ignore[misc]
    Options(max_iterations=np.int64(3), function_tolerance=np.float32(0.1), max_seconds=1)


# -- names -------------------------------------------------------------------------------------


def test_unknown_names_are_plain_attribute_errors() -> None:
    assert not hasattr(ag, "no_such_name")
    with pytest.raises(AttributeError, match=r"no attribute 'slove'; did you mean ag\.solve\?"):
        ag.slove  # noqa: B018 - asked for  # pyright: ignore[reportAttributeAccessIssue]
