"""Graduated non-convexity: outliers in the majority, and what the stages claim."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.solvers.methods import METHODS
from sessions import WGSL, Backend, device_on, parameters_of

ANGLE, SHIFT = 1.2, np.array([0.4, -0.7])


def registration(loss: Any, outliers: float, seed: int = 0, count: int = 200) -> ag.Problem:
    """A planar motion from matched points with noise of 0.01, of which some matches are wrong."""
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((count, 2))
    c, s = np.cos(ANGLE), np.sin(ANGLE)
    target = source @ np.array([[c, s], [-s, c]]) + SHIFT
    target += 0.01 * rng.standard_normal(target.shape)
    wrong = rng.choice(count, round(outliers * count), replace=False)
    target[wrong] = 5.0 * rng.uniform(-1.0, 1.0, (len(wrong), 2)) + np.array([3.0, 3.0])
    problem = ag.Problem()
    motion = problem.parameters("motion", np.zeros((1, 3)))
    problem.add_residuals(distance, motion[0], source, target, loss=loss, name="matches")
    return problem


def distance(motion: Any, p: Any, q: Any) -> list[Any]:
    c, s = ag.cos(motion[0]), ag.sin(motion[0])
    return [c * p[0] - s * p[1] + motion[1] - q[0], s * p[0] + c * p[1] + motion[2] - q[1]]


def off(solution: ag.Solution) -> float:
    found: NDArray[np.float64] = solution.values["motion"][0]
    return float(np.abs(found - [ANGLE, *SHIFT]).max())


def graduated(**values: Any) -> ag.LevenbergMarquardtOptions:
    return ag.LevenbergMarquardtOptions(graduation=ag.Graduation(), max_iterations=300, **values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["GemanMcClure", "Welsch", "Tukey"])
def test_three_of_four_matches_may_be_wrong(loss: str, seed: int) -> None:
    problem = registration(getattr(ag.losses, loss)(0.05), 0.75, seed)
    found = ag.solve(problem, backend="numpy", options=graduated())
    assert found.success, found.report()
    assert off(found) < 0.01, found.report()
    if loss == "Tukey":  # blind to what is far, as all is at the start
        plain = ag.solve(problem, backend="numpy")
        assert off(plain) > 1.0
        assert found.cost < plain.cost


def test_history_begins_with_squares_and_never_rises() -> None:
    problem = registration(ag.losses.GemanMcClure(0.05), 0.5)
    found = ag.solve(problem, backend="numpy", options=graduated())
    plain = registration(None, 0.5)
    squares = np.square(plain.evaluate("numpy").residuals).reshape(-1, 2).sum(1)
    mu = 2.0 * squares.max() / 0.05**2
    wide = registration(ag.losses.GemanMcClure(0.05 * mu**0.5), 0.5).evaluate("numpy").cost
    first, *_, last = found.history
    assert first.cost == pytest.approx(wide, rel=1e-12)
    assert first.cost > 0.6 * plain.evaluate("numpy").cost
    assert [r.iteration for r in found.history] == list(range(found.iterations + 1))
    for before, after in itertools.pairwise(found.history):
        assert after.cost <= before.cost
        assert 0 <= after.stage - before.stage <= 1
        assert after.seconds >= before.seconds
    # μ falls from its first value to 1 by 1.4, and then the loss is as given.
    assert last.stage == np.ceil(np.log(mu) / np.log(1.4))
    assert last.cost == found.cost
    assert found.initial_cost == pytest.approx(problem.evaluate("numpy").cost, rel=1e-12)
    problem.update(**found.values)
    assert problem.evaluate("numpy").cost == pytest.approx(found.cost, rel=1e-12)


def test_a_solve_that_ends_in_between_states_its_own_cost() -> None:
    loss = ag.losses.GemanMcClure(0.05)
    options = ag.LevenbergMarquardtOptions(graduation=ag.Graduation(), max_iterations=7)
    found = ag.solve(registration(loss, 0.5), backend="numpy", options=options)
    assert (found.status, found.iterations) == (ag.Status.MAX_ITERATIONS, 7)
    problem = registration(loss, 0.5)
    problem.update(**found.values)
    assert problem.evaluate("numpy").cost == pytest.approx(found.cost, rel=1e-12)
    assert found.cost < 0.5 * found.history[-1].cost

    stopped = ag.solve(
        problem, backend="numpy", options=graduated(), callback=lambda r: r.stage == 2
    )
    assert stopped.status is ag.Status.STOPPED_BY_CALLBACK
    assert stopped.history[-1].stage == 2
    nothing = ag.LevenbergMarquardtOptions(graduation=ag.Graduation(), max_iterations=0)
    start = ag.solve(problem, backend="numpy", options=nothing)
    assert (start.status, start.iterations) == (ag.Status.MAX_ITERATIONS, 0)
    assert start.cost == pytest.approx(found.cost, rel=1e-12)


@pytest.mark.parametrize("method", ["gauss-newton", "dogleg", "l-bfgs"])
def test_other_methods_graduate_as_well(method: str) -> None:
    options = METHODS[method].options(graduation=ag.Graduation(), max_iterations=400)
    problem = registration(ag.losses.GemanMcClure(0.05), 0.5)
    found = ag.solve(problem, method=method, backend="numba", options=options)
    assert found.success, found.report()
    assert off(found) < 0.01


@pytest.mark.parametrize("backend", parameters_of(WGSL[:1]))
def test_a_solve_on_the_device_graduates(backend: Backend) -> None:
    assert backend.adapter is not None
    problem = registration(ag.losses.GemanMcClure(0.05), 0.5, count=60)
    options = ag.LevenbergMarquardtOptions(
        graduation=ag.Graduation(factor=3.0), max_iterations=200, function_tolerance=1e-5
    )
    found = ag.solve(
        problem, backend="wgsl", device=device_on(backend.adapter), linear_solver="pcg",
        options=options,
    )  # fmt: skip
    assert found.success, found.report()
    assert found.linear_solver.startswith("pcg (device")
    assert off(found) < 0.02


def test_scales_per_element_and_groups_without_scale() -> None:
    """Only what has a scale is graduated; each element keeps its own."""
    rng = np.random.default_rng(2)
    scales = rng.uniform(0.03, 0.08, 200)
    problem = registration(ag.losses.Welsch(scales), 0.5)
    (motion,) = problem.arrays
    problem.add_residuals(
        lambda m: 1e-3 * m[0], motion, loss=ag.losses.Tolerant(1.0, 0.1), name="prior"
    )
    kernels = ag.solve(problem, backend="numba").kernels
    found = ag.solve(problem, backend="numba", options=graduated())
    assert off(found) < 0.01
    assert found.kernels == kernels  # scales are data: no stage compiles anything


def test_start_and_factor_are_the_users() -> None:
    problem = registration(ag.losses.GemanMcClure(0.05), 0.3)
    options = ag.LevenbergMarquardtOptions(
        graduation=ag.Graduation(start=100.0, factor=10.0, iterations=1)
    )
    found = ag.solve(problem, backend="numpy", options=options)
    stages = [r.stage for r in found.history]
    assert stages[:4] == [0, 0, 1, 2] and set(stages) == {0, 1, 2}


def test_what_cannot_be_graduated_is_refused_by_name() -> None:
    for loss in (None, ag.losses.Tolerant(1.0, 0.1), lambda s: ag.log1p(s)):
        with pytest.raises(ag.InputError, match="graduation: no residuals have a loss with a"):
            ag.solve(registration(loss, 0.1), backend="numpy", options=graduated())
    with pytest.raises(ag.InputError, match=r"Graduation, factor=1\.0: expected"):
        ag.Graduation(factor=1.0)
    with pytest.raises(ag.InputError, match="Graduation, iterations=0: expected"):
        ag.Graduation(iterations=0)
    with pytest.raises(ag.InputError, match=r"graduation=1\.4: expected an ag\.Graduation"):
        ag.LevenbergMarquardtOptions(graduation=1.4)  # type: ignore[arg-type]


def test_a_start_that_is_not_finite_fails_by_name() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [-1.0])
    problem.add_residuals(lambda v: ag.log(v), x, loss=ag.losses.Cauchy(0.1), name="log")
    found = ag.solve(problem, backend="numpy", options=graduated())
    assert found.status is ag.Status.FAILED_NUMERICAL
    assert "at the start, residuals 'log', element 0" in found.message
