"""Many copies of a small problem: the results of single solves, and independence of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from arms import arm_problem, arms
from numpy.typing import NDArray

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import GRAPH, tolerance

Array = NDArray[np.float64]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
EXACT = tolerance("float64", GRAPH)
TIGHT = ag.LevenbergMarquardtOptions(function_tolerance=1e-14, parameter_tolerance=1e-12)


def decay(t: Any, y: Any, a: Any, b: Any) -> Any:
    return a * ag.exp(-b * t) - y


def curves(loss: Any = None) -> ag.Problem:
    """A decay with 12 samples, amplitude and rate in two arrays, of which the rate is shared."""
    t = np.linspace(0.0, 2.0, 12)
    problem = ag.Problem()
    amplitude = problem.parameters("amplitude", [1.0])
    rate = problem.parameters("rate", [[0.5], [0.8]])
    problem.add_residuals(
        decay, t, np.zeros(12), amplitude[0], rate[np.arange(12) % 2], loss=loss, name="decay"
    )
    problem.add_residuals(lambda b, w: w * (b - 1.0), rate[1:], 0.1, name="prior")
    return problem


def samples(count: int) -> Array:
    rng = np.random.default_rng(5)
    a, b = rng.uniform(1.0, 3.0, (2, count, 1))
    t = np.linspace(0.0, 2.0, 12)
    return a * np.exp(-b * t) + 0.05 * rng.standard_normal((count, 12))


def one_by_one(problem: ag.Problem, y: Array, w: Array, **keywords: Any) -> list[ag.Solution]:
    found: list[ag.Solution] = []
    for k in range(len(y)):
        problem.update(data={"decay": {"y": y[k]}, "prior": {"w": w[k]}})
        found.append(ag.solve(problem, linear_solver="dense-cholesky", **keywords))
    return found


@pytest.mark.parametrize("loss", [None, ag.losses.Cauchy(0.1)], ids=["squares", "Cauchy"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_end_where_single_solves_end(backend: Backend, frozen: bool, loss: Any) -> None:
    y, w = samples(7), np.linspace(0.1, 2.0, 7)
    problem = curves(loss)
    if frozen:
        problem.freeze(problem.arrays[1], [0])
    options = TIGHT if backend.precision == "float64" else None
    found = ag.solve_batch(
        problem,
        data={"decay": {"y": y}, "prior": {"w": w}},
        options=options,
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    assert found.success, found.report()
    assert found.values["rate"].shape == (7, 2, 1)
    close = 1e-6 if backend.precision == "float64" else 2e-3
    for k, single in enumerate(one_by_one(curves_like(problem, loss, frozen), y, w, options=TIGHT)):
        assert found.initial_costs[k] == pytest.approx(single.initial_cost, rel=1e-4)
        assert found.costs[k] == pytest.approx(single.cost, rel=close)
        for name, values in single.values.items():
            np.testing.assert_allclose(found.values[name][k], values, atol=close)
    if frozen:
        assert (found.values["rate"][:, 0] == 0.5).all()


def curves_like(problem: ag.Problem, loss: Any, frozen: bool) -> ag.Problem:
    other = curves(loss)
    if frozen:
        other.freeze(other.arrays[1], [0])
    return other


def test_a_copy_takes_the_steps_of_a_single_solve() -> None:
    given, problem = arms(20), arm_problem()
    found = ag.solve_batch(problem, {"q": given["start"][:, None]}, arm_data(given))
    for k in range(20):
        single = arm_problem()
        single.update(
            q=given["start"][k : k + 1],
            data={"reach": {n: given[n][k : k + 1] for n in ("target", "orientation")}},
        )
        solution = ag.solve(single, linear_solver="dense-cholesky")
        assert found.iterations[k] == solution.iterations
        assert found.statuses[k] is solution.status
        np.testing.assert_allclose(found.values["q"][k], solution.values["q"], atol=1e-6)


def arm_data(given: dict[str, Array]) -> dict[str, dict[str, Array]]:
    return {"reach": {name: given[name][:, None] for name in ("target", "orientation")}}


def test_thousands_of_arms_reach_their_targets() -> None:
    given, problem = arms(1500), arm_problem()
    found = ag.solve_batch(problem, {"q": given["start"][:, None]}, arm_data(given))
    assert np.mean(found.costs < 1e-8) > 0.95
    assert set(found.iterations) > {4, 5, 6}  # ends of their own
    assert "1500 of 6 unknowns each" in found.report()
    assert np.array_equal(problem.values_of(problem.arrays[0]), np.zeros((1, 6)))


def wild(x: Any, kind: Any) -> list[Any]:
    """Kind 0: Rosenbrock; 1: not finite at the start; 2: ever steeper downhill, to infinity."""
    tame = [10.0 * (x[1] - x[0] * x[0]), 1.0 - x[0]]
    away = [ag.exp(-x[0]), 0.0 * x[1]]
    return [
        ag.where(kind > 1.5, away[k], tame[k] + ag.where(kind > 0.5, ag.log(-ag.abs(x[0])), 0.0))
        for k in range(2)
    ]


@pytest.mark.parametrize("count", [5, 700])
def test_a_copy_that_fails_leaves_the_others_as_they_are_to_the_bit(count: int) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[0.0, 0.0]])
    problem.add_residuals(wild, x, 0.0, name="wild")
    start = np.random.default_rng(3).uniform(-2.0, 2.0, (count, 1, 2))
    kinds = np.zeros(count)
    options = ag.LevenbergMarquardtOptions(gradient_tolerance=1e-13)
    tame = ag.solve_batch(problem, {"x": start}, {"wild": kinds}, options=options)
    kinds[[1, 3]] = 1.0, 2.0
    found = ag.solve_batch(problem, {"x": start}, {"wild": kinds}, options=options)
    others = np.delete(np.arange(count), [1, 3])
    assert tame.success
    assert found.statuses[1] is ag.Status.FAILED_NUMERICAL
    assert np.isnan(found.costs[1])
    assert np.array_equal(found.values["x"][1], start[1])
    for name in ("costs", "initial_costs", "gradient_norms", "iterations", "statuses"):
        assert np.array_equal(getattr(found, name)[others], getattr(tame, name)[others]), name
    assert np.array_equal(found.values["x"][others], tame.values["x"][others])
    assert not found.success
    assert found.converged[others].all()


def test_limits_are_kept_by_every_copy() -> None:
    given, problem = arms(40), arm_problem()
    start = {"q": given["start"][:, None]}
    few = ag.LevenbergMarquardtOptions(max_iterations=2)
    found = ag.solve_batch(problem, start, arm_data(given), options=few)
    assert (found.iterations == 2).all()
    assert (found.statuses == ag.Status.MAX_ITERATIONS).all()
    assert (found.costs < found.initial_costs).all()
    none = ag.solve_batch(
        problem, start, arm_data(given), options=ag.LevenbergMarquardtOptions(max_seconds=0.0)
    )
    assert (none.statuses == ag.Status.MAX_SECONDS).all()


REFUSED: dict[str, tuple[type[Exception], str, Callable[[ag.Problem], Any]]] = {
    "nothing": (ag.InputError, "nothing differs by copy", ag.solve_batch),
    "a name": (
        ag.InputError, "parameters 'p': the problem has 'amplitude', 'rate'",
        lambda p: ag.solve_batch(p, {"p": np.ones((3, 1))}),
    ),
    "a shape": (
        ag.ShapeError, r"parameters 'rate': got shape \(3, 2\), expected \(copies, 2, 1\)",
        lambda p: ag.solve_batch(p, {"rate": np.ones((3, 2))}),
    ),
    "counts": (
        ag.ShapeError, "has 4 copies, .* has 3",
        lambda p: ag.solve_batch(p, {"rate": np.ones((3, 2, 1)), "amplitude": np.ones((4, 1))}),
    ),
    "residuals": (
        ag.InputError, "no residuals 'sines'", lambda p: ag.solve_batch(p, None, {"sines": [1.0]}),
    ),
    "an argument": (
        ag.InputError, r"argument 'z': expected one of \['t', 'y'\]",
        lambda p: ag.solve_batch(p, None, {"decay": {"z": np.ones((3, 12))}}),
    ),
    "two arguments": (
        ag.InputError, r"'decay': has data arguments \['t', 'y'\]",
        lambda p: ag.solve_batch(p, None, {"decay": np.ones((3, 12))}),
    ),
    "NaN": (
        ag.InputError, "argument 'y'.*nan",
        lambda p: ag.solve_batch(p, None, {"decay": {"y": np.full((3, 12), np.nan)}}),
    ),
    "options": (
        ag.InputError, "got DoglegOptions",
        lambda p: ag.solve_batch(p, {"amplitude": np.ones((2, 1))}, options=ag.DoglegOptions()),  # type: ignore[arg-type]
    ),
    "step control": (
        ag.InputError, "step_control='nielsen' alone",
        lambda p: ag.solve_batch(
            p, {"amplitude": np.ones((2, 1))},
            options=ag.LevenbergMarquardtOptions(step_control="ceres"),
        ),
    ),
    "precision": (
        ag.InputError, "precision='mixed'",
        lambda p: ag.solve_batch(p, {"amplitude": np.ones((2, 1))}, precision="mixed"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    error, message, act = REFUSED[name]
    with pytest.raises(error, match=message):
        act(curves())


def test_copies_move_on_manifolds() -> None:
    rng = np.random.default_rng(4)
    targets = rng.standard_normal((30, 2, 3))
    start = rng.standard_normal((30, 2, 3))
    start /= np.linalg.norm(start, axis=2, keepdims=True)

    def template() -> ag.Problem:
        problem = ag.Problem()
        p = problem.parameters("p", start[0], manifold=ag.manifolds.UnitSphere)
        s = problem.parameters("s", [1.0])
        problem.add_residuals(lambda v, t, k: k * v - t, p, targets[0], s[0], name="pull")
        problem.add_residuals(lambda k: 0.1 * (k - 1.0), s)
        return problem

    found = ag.solve_batch(template(), {"p": start}, {"pull": {"t": targets}}, options=TIGHT)
    assert found.success, found.report()
    EXACT.check(np.linalg.norm(found.values["p"], axis=2), 1.0, "on the sphere")
    for k in range(0, 30, 7):
        single = template()
        single.update(p=start[k], data={"pull": {"t": targets[k]}})
        solution = ag.solve(single, options=TIGHT, linear_solver="dense-cholesky")
        assert found.costs[k] == pytest.approx(solution.cost, rel=1e-8)
        np.testing.assert_allclose(found.values["p"][k], solution.values["p"], atol=1e-5)
    with pytest.raises(ag.InputError, match="solve_batch, parameters 'p'"):
        ag.solve_batch(template(), {"p": 2.0 * start})


def test_templates_that_cannot_be_copied_are_refused() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((300, 1)))
    problem.add_residuals(lambda p: p, x)
    with pytest.raises(ag.InputError, match="300 unknowns, expected at most 256"):
        ag.solve_batch(problem, {"x": np.ones((2, 300, 1))})
    problem.add_constraint(lambda p: p, x[0], lower=0.0, name="side")
    with pytest.raises(ag.InputError, match="'side' has bounds"):
        ag.solve_batch(problem, {"x": np.ones((2, 300, 1))})
    boxed = ag.Problem()
    boxed.add_residuals(lambda p: p, boxed.parameters("b", [1.0], bounds=(0.0, None)))
    with pytest.raises(ag.InputError, match="'b' has bounds"):
        ag.solve_batch(boxed, {"b": np.ones((2, 1))})
    problem.add_energy(lambda p: p * p, x, name="bowl")
    with pytest.raises(ag.InputError, match="'bowl' is an energy"):
        ag.solve_batch(problem, {"x": np.ones((2, 300, 1))})
    bounded = ag.Problem()
    y = bounded.parameters("y", np.ones(2), bounds=(0.0, None))
    bounded.add_residuals(lambda p: p, y)
    with pytest.raises(ag.InputError, match="'y' has bounds"):
        ag.solve_batch(bounded, {"y": np.ones((2, 2))})
    outside = ag.Problem()
    z = outside.parameters("z", np.ones(2))
    outside.add_external(lambda p: (p, [np.ones(2)]), z, name="table")
    with pytest.raises(ag.InputError, match="'table' are external"):
        ag.solve_batch(outside, {"z": np.ones((2, 2))})
