"""Constraints: Hock-Schittkowski problems with their multipliers, statuses, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.solvers.methods import METHODS
from sessions import JAX, NUMBA, WGSL, Backend, device_on, parameters_of

OPTIONS = ag.LevenbergMarquardtOptions(
    max_iterations=500, function_tolerance=1e-15, gradient_tolerance=1e-12
)


@dataclass(frozen=True)
class Book:
    """A problem of the book whose objective is a sum of squares.

    Attributes:
        fn: whose squares are the objective.
        start: the book's, or its projection onto the bounds.
        minimum: of the objective (twice the cost).
        point: where.
        equal: c(x) = 0; None if there are none.
        positive: c(x) ≥ 0; None if there are none.
        bounds: lower and upper.
    """

    fn: Callable[[Any], Any]
    start: list[float]
    minimum: float
    point: list[float] | None
    equal: Callable[[Any], Any] | None = None
    positive: Callable[[Any], Any] | None = None
    bounds: tuple[Any, Any] | None = None

    def problem(self) -> ag.Problem:
        problem = ag.Problem()
        x = problem.parameters("x", [self.start], bounds=self.bounds)
        problem.add_residuals(self.fn, x, name="f")
        if self.equal is not None:
            problem.add_constraint(self.equal, x, name="equal")
        if self.positive is not None:
            problem.add_constraint(self.positive, x, kind="inequality", name="positive")
        return problem


R2 = math.sqrt(2.0)


def rosenbrock(x: Any) -> list[Any]:
    return [10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]]


def to(*targets: float) -> Callable[[Any], list[Any]]:
    return lambda x: [x[i] - t for i, t in enumerate(targets)]


def problem_48(x: Any) -> list[Any]:
    return [x[0] - 1.0, x[1] - x[2], x[3] - x[4]]


def problem_52(x: Any) -> list[Any]:
    return [4.0 * x[0] - x[1], x[1] + x[2] - 2.0, x[3] - 1.0, x[4] - 1.0]


def three_planes(x: Any) -> list[Any]:
    return [x[0] + 3.0 * x[1], x[2] + x[3] - 2.0 * x[4], x[1] - x[4]]


def problem_77(x: Any) -> list[Any]:
    return [x[0] - 1.0, x[0] - x[1], x[2] - 1.0, (x[3] - 1.0) ** 2, (x[4] - 1.0) ** 3]


def problem_79(x: Any) -> list[Any]:
    return [x[0] - 1.0, x[0] - x[1], x[1] - x[2], (x[2] - x[3]) ** 2, (x[3] - x[4]) ** 2]


# Hock, Schittkowski 1981, "Test examples for nonlinear programming codes", by number. From the
# book's start of problem 15, (-2, 1), the first penalty decides between it and a second minimum,
# 360.38; here it starts at (0, 1).
BOOK: dict[int, Book] = {
    6: Book(lambda x: 1.0 - x[0], [-1.2, 1.0], 0.0, [1.0, 1.0],
            equal=lambda x: 10.0 * (x[1] - x[0] ** 2)),
    14: Book(to(2.0, 1.0), [2.0, 2.0], 9.0 - 2.875 * math.sqrt(7.0),
             [0.5 * (math.sqrt(7.0) - 1.0), 0.25 * (math.sqrt(7.0) + 1.0)],
             equal=lambda x: x[0] - 2.0 * x[1] + 1.0,
             positive=lambda x: -0.25 * x[0] ** 2 - x[1] ** 2 + 1.0),
    15: Book(rosenbrock, [0.0, 1.0], 306.5, [0.5, 2.0],
             positive=lambda x: [x[0] * x[1] - 1.0, x[0] + x[1] ** 2],
             bounds=(None, [0.5, np.inf])),
    18: Book(lambda x: [0.1 * x[0], x[1]], [2.0, 2.0], 5.0, [math.sqrt(250.0), math.sqrt(2.5)],
             positive=lambda x: [x[0] * x[1] - 25.0, x[0] ** 2 + x[1] ** 2 - 25.0],
             bounds=([2.0, 0.0], 50.0)),
    22: Book(to(2.0, 1.0), [2.0, 2.0], 1.0, [1.0, 1.0],
             positive=lambda x: [-x[0] - x[1] + 2.0, -x[0] ** 2 + x[1]]),
    23: Book(to(0.0, 0.0), [3.0, 1.0], 2.0, [1.0, 1.0], bounds=(-50.0, 50.0),
             positive=lambda x: [
                 x[0] + x[1] - 1.0, x[0] ** 2 + x[1] ** 2 - 1.0, 9.0 * x[0] ** 2 + x[1] ** 2 - 9.0,
                 x[0] ** 2 - x[1], x[1] ** 2 - x[0],
             ]),
    26: Book(lambda x: [x[0] - x[1], (x[1] - x[2]) ** 2], [-2.6, 2.0, 2.0], 0.0, None,
             equal=lambda x: (1.0 + x[1] ** 2) * x[0] + x[2] ** 4 - 3.0),
    27: Book(lambda x: [0.1 * (x[0] - 1.0), x[1] - x[0] ** 2], [2.0, 2.0, 2.0], 0.04,
             [-1.0, 1.0, 0.0], equal=lambda x: x[0] + x[2] ** 2 + 1.0),
    28: Book(lambda x: [x[0] + x[1], x[1] + x[2]], [-4.0, 1.0, 1.0], 0.0, [0.5, -0.5, 0.5],
             equal=lambda x: x[0] + 2.0 * x[1] + 3.0 * x[2] - 1.0),
    30: Book(to(0.0, 0.0, 0.0), [1.0, 1.0, 1.0], 1.0, [1.0, 0.0, 0.0],
             positive=lambda x: x[0] ** 2 + x[1] ** 2 - 1.0,
             bounds=([1.0, -10.0, -10.0], 10.0)),
    31: Book(lambda x: [3.0 * x[0], x[1], 3.0 * x[2]], [1.0, 1.0, 1.0], 6.0,
             [1.0 / math.sqrt(3.0), math.sqrt(3.0), 0.0],
             positive=lambda x: x[0] * x[1] - 1.0,
             bounds=([-10.0, 1.0, -10.0], [10.0, 10.0, 1.0])),
    42: Book(to(1.0, 2.0, 3.0, 4.0), [1.0, 1.0, 1.0, 1.0], 28.0 - 10.0 * R2,
             [2.0, 2.0, 0.6 * R2, 0.8 * R2],
             equal=lambda x: [x[0] - 2.0, x[2] ** 2 + x[3] ** 2 - 2.0]),
    48: Book(problem_48, [3.0, 5.0, -3.0, 2.0, -2.0], 0.0, [1.0] * 5,
             equal=lambda x: [x[0] + x[1] + x[2] + x[3] + x[4] - 5.0,
                              x[2] - 2.0 * (x[3] + x[4]) + 3.0]),
    52: Book(problem_52, [2.0] * 5, 1859.0 / 349.0,
             [v / 349.0 for v in (-33.0, 11.0, 180.0, -158.0, 11.0)], equal=three_planes),
    53: Book(problem_53 := lambda x: [x[0] - x[1], x[1] + x[2] - 2.0, x[3] - 1.0, x[4] - 1.0],
             [2.0] * 5, 176.0 / 43.0, [v / 43.0 for v in (-33.0, 11.0, 27.0, -5.0, 11.0)],
             equal=three_planes, bounds=(-10.0, 10.0)),
    60: Book(lambda x: [x[0] - 1.0, x[0] - x[1], (x[1] - x[2]) ** 2], [2.0, 2.0, 2.0],
             0.03256820025, [1.104859024, 1.196674194, 1.535262257],
             equal=lambda x: x[0] * (1.0 + x[1] ** 2) + x[2] ** 4 - 4.0 - 3.0 * R2,
             bounds=(-10.0, 10.0)),
    65: Book(lambda x: [x[0] - x[1], (x[0] + x[1] - 10.0) / 3.0, x[2] - 5.0], [-4.5, 4.5, 0.0],
             0.9535288567, [3.650461821, 3.65046168, 4.6204170507],
             positive=lambda x: 48.0 - x[0] ** 2 - x[1] ** 2 - x[2] ** 2,
             bounds=([-4.5, -4.5, -5.0], [4.5, 4.5, 5.0])),
    77: Book(problem_77, [2.0] * 5, 0.24150512879,
             [1.166172, 1.182111, 1.380257, 1.506036, 0.6109203],
             equal=lambda x: [x[0] ** 2 * x[3] + ag.sin(x[3] - x[4]) - 2.0 * R2,
                              x[1] + x[2] ** 4 * x[3] ** 2 - 8.0 - R2]),
    79: Book(problem_79, [2.0] * 5, 0.0787768209,
             [1.191127, 1.362603, 1.472818, 1.635017, 1.679081],
             equal=lambda x: [x[0] + x[1] ** 2 + x[2] ** 3 - 2.0 - 3.0 * R2,
                              x[1] - x[2] ** 2 + x[3] + 2.0 - 2.0 * R2, x[0] * x[4] - 2.0]),
}  # fmt: skip


def stationarity(book: Book, found: ag.Solution) -> float:
    """The largest entry of ∇cost - Σ multipliers · ∇c - multipliers of bounds, by NumPy."""
    x = found.values["x"]

    def slopes(fn: Callable[[Any], Any]) -> Any:
        graph = ag.trace(fn, x.shape[1])
        return ag.jacobian(graph)(x).reshape(len(graph.outputs), -1)

    residuals = ag.trace(book.fn, x.shape[1])(x).ravel()
    left = slopes(book.fn).T @ residuals
    for name, fn in (("equal", book.equal), ("positive", book.positive)):
        if fn is not None:
            left = left - slopes(fn).T @ found.multipliers[name].ravel()
    if book.bounds is not None:
        left = left - found.bound_multipliers["x"][0]
    return float(np.abs(left).max())


@pytest.mark.parametrize("number", BOOK)
def test_hock_schittkowski(number: int) -> None:
    book = BOOK[number]
    found = ag.solve(book.problem(), backend="numpy", options=OPTIONS)
    assert found.success, found.report()
    assert 2.0 * found.cost == pytest.approx(book.minimum, rel=1e-6, abs=1e-9), found.report()
    if book.point is not None:
        assert found.values["x"][0] == pytest.approx(book.point, rel=1e-4, abs=1e-4)
    assert found.constraint_violation <= 1e-8
    assert stationarity(book, found) < 1e-5
    if book.positive is not None:
        values = np.ravel(ag.trace(book.positive, len(book.start))(found.values["x"]))
        pressed = found.multipliers["positive"].ravel()
        assert np.all(values > -1e-7) and np.all(pressed >= 0.0)
        assert np.all(np.abs(values * pressed) < 1e-6)


@pytest.mark.parametrize("number", [14, 31, 42, 52, 65])
def test_multipliers_are_rates_of_the_least_cost(number: int) -> None:
    """Every constraint and bound moved a little, and the minima compared."""
    book = BOOK[number]

    def least(equal: float, positive: float) -> ag.Solution:
        problem = ag.Problem()
        x = problem.parameters("x", [book.start], bounds=book.bounds)
        problem.add_residuals(book.fn, x, name="f")
        if book.equal is not None:
            problem.add_constraint(book.equal, x, lower=equal, upper=equal, name="equal")
        if book.positive is not None:
            problem.add_constraint(book.positive, x, lower=positive, name="positive")
        found = ag.solve(problem, backend="numpy", options=OPTIONS)
        assert found.success, found.report()
        return found

    h, found = 1e-4, least(0.0, 0.0)
    for name, there, step in (
        ("equal", book.equal, (h, 0.0)), ("positive", book.positive, (0.0, h)),
    ):  # fmt: skip
        if there is not None:
            rate = (least(*step).cost - least(*(-v for v in step)).cost) / (2.0 * h)
            assert found.multipliers[name].sum() == pytest.approx(rate, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("backend", parameters_of([NUMBA, *JAX[:1], *WGSL[:1]]))
def test_a_chain_hangs_between_constraints_on_every_backend(backend: Backend) -> None:
    """A batch of constraints over selections, with data that differ by element, and a floor."""
    if backend.precision == "float32" and backend.name != "wgsl":
        pytest.skip("constraints need float64")
    n = 9
    start = np.column_stack([np.linspace(0.0, 1.0, n), np.zeros(n)])
    rest = np.linspace(0.14, 0.16, n - 1)
    problem = ag.Problem()
    x = problem.parameters("x", start)
    problem.freeze(x, [0, n - 1])
    problem.add_residuals(lambda p: [0.01 * p.x, p.y + 2.0], x, name="weight")
    problem.add_constraint(
        lambda p, q, d: ag.dot(q - p, q - p) - d * d, x[: n - 1], x[1:], rest, name="links"
    )
    problem.add_constraint(lambda p: p.y, x, lower=-0.2, name="floor")
    found = ag.solve(
        problem, backend=backend.name, precision="auto" if backend.name == "wgsl" else "float64",
        device=device_on(backend.adapter) if backend.adapter else None,
        options=ag.LevenbergMarquardtOptions(max_iterations=400),
    )  # fmt: skip
    assert found.success, found.report()
    assert found.precision.startswith("float64")
    p = found.values["x"]
    np.testing.assert_allclose(np.linalg.norm(np.diff(p, axis=0), axis=1), rest, atol=1e-6)
    assert p[:, 1].min() >= -0.2 - 1e-6
    assert found.multipliers["links"].shape == (n - 1,)
    on_floor = np.abs(p[:, 1] + 0.2) < 1e-5
    assert 1 <= on_floor.sum() < n - 2
    np.testing.assert_allclose(found.multipliers["floor"][~on_floor], 0.0, atol=1e-6)
    assert (found.multipliers["floor"][on_floor] > 1e-3).all()
    assert "links (8), floor (9): largest violation" in " ".join(found.report().split())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "newton"][:4])
def test_every_second_order_method_and_l_bfgs_meets_constraints(method: str) -> None:
    options = METHODS[method].options(max_iterations=3000, function_tolerance=1e-14)
    found = ag.solve(BOOK[42].problem(), method=method, backend="numpy", options=options)
    assert found.success, found.report()
    assert 2.0 * found.cost == pytest.approx(BOOK[42].minimum, rel=1e-6)


def test_history_counts_through_all_stages_and_cost_is_without_penalties() -> None:
    problem = BOOK[42].problem()
    seen: list[int] = []
    found = ag.solve(problem, backend="numpy", callback=lambda r: bool(seen.append(r.iteration)))
    assert seen == list(range(found.iterations + 1)) == [r.iteration for r in found.history]
    stages = [r.stage for r in found.history]
    assert stages == sorted(stages) and stages[-1] > 1
    assert found.initial_cost == pytest.approx(problem.evaluate("numpy").cost)
    problem.update(**found.values)
    assert found.cost == pytest.approx(problem.evaluate("numpy").cost, rel=1e-12)
    assert found.residual_count == 4
    # A stage's own cost never rises within it.
    for before, after in zip(found.history, found.history[1:], strict=False):
        if before.stage == after.stage:
            assert after.cost <= before.cost


def test_limits_end_all_stages() -> None:
    problem = BOOK[77].problem()
    options = ag.LevenbergMarquardtOptions(max_iterations=9)
    few = ag.solve(problem, backend="numpy", options=options)
    assert (few.status, few.iterations) == (ag.Status.MAX_ITERATIONS, 9)
    assert not few.success
    stopped = ag.solve(problem, backend="numpy", callback=lambda r: r.iteration == 12)
    assert (stopped.status, stopped.iterations) == (ag.Status.STOPPED_BY_CALLBACK, 12)
    late = ag.LevenbergMarquardtOptions(max_seconds=0.0)
    assert ag.solve(problem, backend="numpy", options=late).status is ag.Status.MAX_SECONDS


def test_constraints_that_contradict_each_other_are_named() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[0.0, 0.0]])
    problem.add_residuals(lambda p: p, x)
    problem.add_constraint(lambda p: p[0] + p[1] - 1.0, x, name="one")
    problem.add_constraint(lambda p: p[0] + p[1] - 2.0, x, name="two")
    options = ag.LevenbergMarquardtOptions(max_iterations=2000)
    found = ag.solve(problem, backend="numpy", options=options)
    assert found.status is ag.Status.FAILED_NUMERICAL, found.report()
    assert "no penalty meets the constraints: constraint '" in found.message
    assert found.constraint_violation == pytest.approx(0.5, rel=0.1)


def test_two_sided_bounds_per_element_and_their_update() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [3.0, 0.1, -3.0])
    problem.add_residuals(lambda v, t: v - t, x, [5.0, 0.0, -5.0])
    problem.add_constraint(
        lambda v: v, x, lower=[-1.0, -2.0, -3.0], upper=[1.0, 2.0, np.inf], name="range"
    )
    found = ag.solve(problem, backend="numpy")
    assert found.values["x"] == pytest.approx([1.0, 0.0, -3.0], abs=1e-6)
    assert found.multipliers["range"] == pytest.approx([-4.0, 0.0, 2.0], abs=1e-6)
    problem.update(data={"range": {"upper": [[4.0], [2.0], [9.0]]}})
    assert ag.solve(problem, backend="numpy").values["x"][0] == pytest.approx(4.0, abs=1e-6)
    assert "constraints: range × 3" in repr(problem)


def c(p: Any) -> Any:
    return p[0]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"kind": "more"}, ag.InputError, "kind='more' is unknown; expected one of equality, ineq"),
        ({"kind": "equality", "lower": 0.0}, ag.InputError, "got kind='equality' and bounds"),
        ({"lower": 1.0, "upper": 0.0}, ag.InputError, "a lower bound is above its upper one"),
        ({"lower": np.nan}, ag.InputError, "lower: got NaN or inf, which nothing meets"),
        ({"upper": "a"}, ag.InputError, "upper: got 'a', expected numbers"),
        ({"upper": np.zeros((3, 2))}, ag.ShapeError, r"upper: got shape \(3, 2\), expected"),
        ({"lower": [0.0, 1.0], "upper": 1.0}, ag.InputError, "1 of 2 components are equalities"),
    ],
)
def test_bad_constraints_are_named(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[0.0, 0.0], [1.0, 1.0]])
    with pytest.raises(error, match=f"constraint 'c'.*{message}"):
        problem.add_constraint(c, x, **values)


def test_what_constraints_do_not_go_with_is_refused() -> None:
    problem = BOOK[42].problem()
    with pytest.raises(ag.InputError, match="precision='float32': the problem has constraints"):
        ag.solve(problem, precision="float32", backend="numpy")
    graduated = ag.LevenbergMarquardtOptions(graduation=ag.Graduation())
    with pytest.raises(ag.InputError, match="graduation: the problem has constraints"):
        ag.solve(problem, backend="numpy", options=graduated)
    with pytest.raises(ag.InputError, match="'equal': the problem already has a group"):
        problem.add_residuals(c, problem.arrays[0], name="equal")
    (x,) = problem.arrays
    with pytest.raises(ag.InputError, match="constraint 'row': an argument is ragged"):
        rows = ag.Ragged([0, 1], [0])
        problem.add_constraint(lambda row: row[0][0], x[rows], name="row")
    with pytest.raises(ag.InputError, match=r"AugmentedLagrangian, growth=1\.0: expected"):
        ag.AugmentedLagrangian(growth=1.0)


def test_constraints_go_with_manifolds_and_with_energies() -> None:
    problem = ag.Problem()
    q = problem.parameters("q", [[1.0, 0.0, 0.0, 0.0]], manifold=ag.manifolds.SO3)
    problem.add_residuals(
        lambda q: q.act(ag.Vec3([1.0, 0.0, 0.0])) - ag.Vec3([0.0, 1.0, 0.0]), q, name="turn"
    )
    problem.add_constraint(lambda q: q.act(ag.Vec3([1.0, 0.0, 0.0])).z - 0.5, q, name="tilt")
    found = ag.solve(problem, backend="numba")
    assert found.success, found.report()
    # On the unit sphere, the point of height h nearest to (0, 1, 0) has y = √(1 - h²).
    assert found.cost == pytest.approx(1.0 - math.sqrt(0.75), rel=1e-6)
    assert found.multipliers["tilt"] == pytest.approx([0.5 / math.sqrt(0.75)], rel=1e-4)

    bowl = ag.Problem()
    x = bowl.parameters("x", [[1.0, 2.0]])
    bowl.add_energy(lambda v: ag.exp(v[0]) + ag.exp(v[1]), x, name="bowl")
    bowl.add_constraint(lambda v: v[0] + v[1] - 1.0, x, name="line")
    lowest = ag.solve(bowl, backend="numba")
    assert (lowest.method, lowest.success) == ("newton", True)
    assert lowest.values["x"][0] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert lowest.cost == pytest.approx(2.0 * math.exp(0.5), rel=1e-7)
    assert lowest.multipliers["line"] == pytest.approx([math.exp(0.5)], rel=1e-5)
