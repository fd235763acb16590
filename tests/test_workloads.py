"""Known minima are reached on every backend, and frozen vertices stay as they are, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from workloads import (
    CERES_AFTER_20_ITERATIONS,
    INITIAL_COSTS,
    MINIMA,
    PROBLEMS,
    aligned_cameras,
    robust_bundle_problem,
)

# Relative error of the cost at the minimum. W1r_s3 is known to 1e-6 only (its last digit).
AT_MINIMUM = {"float64": 1e-6, "float32": 1e-4}


def solve(problem: ag.Problem, backend: Backend, **options: float) -> ag.Solution:
    return ag.solve(
        problem,
        options=ag.LevenbergMarquardtOptions(**options),
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )


def true_cost(problem: ag.Problem, solution: ag.Solution) -> float:
    """Cost at the solution by the oracle; what a float32 backend reports has its own rounding."""
    problem.update(**solution.values)
    return problem.evaluate(backend="numpy", precision="float64").cost


@pytest.mark.parametrize("name", PROBLEMS)
def test_cost_at_the_start(name: str) -> None:
    cost = PROBLEMS[name]().evaluate(backend="numba").cost
    assert cost == pytest.approx(INITIAL_COSTS[name], rel=1e-9)


@pytest.mark.parametrize("backend", parameters_of([NUMPY, NUMBA, *JAX, *WGSL]))
@pytest.mark.parametrize("name", ["W1r_s3", "W2_s3"])
def test_minimum_on_every_backend(name: str, backend: Backend) -> None:
    problem = PROBLEMS[name]()
    solution = solve(problem, backend, max_iterations=200)
    assert solution.success, solution.report()
    relative = AT_MINIMUM[backend.precision]
    assert solution.cost == pytest.approx(MINIMA[name], rel=relative)
    assert true_cost(problem, solution) == pytest.approx(MINIMA[name], rel=relative)


@pytest.mark.parametrize("name", ["W3", "W4_s3", "W4_s5", "W5"])
def test_minimum_of_the_larger_problems(name: str) -> None:
    solution = solve(PROBLEMS[name](), NUMBA)
    assert solution.success, solution.report()
    assert solution.cost == pytest.approx(MINIMA[name], rel=AT_MINIMUM["float64"])


@pytest.mark.parametrize("name", CERES_AFTER_20_ITERATIONS)
def test_no_higher_than_ceres_after_20_iterations(name: str) -> None:
    solution = solve(PROBLEMS[name](), NUMBA, max_iterations=20, function_tolerance=0.0)
    assert solution.iterations <= 20
    assert solution.cost <= CERES_AFTER_20_ITERATIONS[name], solution.report()


@pytest.mark.parametrize("backend", parameters_of([NUMPY, NUMBA, *JAX, *WGSL]))
def test_frozen_vertices_keep_every_bit(backend: Backend) -> None:
    problem = PROBLEMS["W1r_s3"]()
    (x,) = problem.arrays
    start = problem.values_of(x)
    rows = np.random.default_rng(3).choice(len(start), 40, replace=False)
    problem.freeze(x, rows)
    end = solve(problem, backend, max_iterations=5).values["x"]
    frozen = np.zeros(len(start), bool)
    frozen[rows] = True
    assert end[frozen].tobytes() == start[frozen].tobytes()
    assert (end[~frozen] != start[~frozen]).any(axis=1).all()


NEAR, FAR = (5.0, 25.0), (50.0, 200.0)
SMALL, WHOLE = (10, 2000), (60, 20_000)


@pytest.mark.parametrize(
    ("size", "loss", "pixels"),
    [
        (SMALL, ag.losses.Huber(1.0), NEAR),
        (SMALL, ag.losses.Huber(1.0), FAR),
        pytest.param(WHOLE, ag.losses.Huber(1.0), NEAR, marks=pytest.mark.long),
        # A sighting pulls as hard by Huber's loss however far it is off: 2.0e-3 at this size.
        pytest.param(WHOLE, ag.losses.Cauchy(1.0), FAR, marks=pytest.mark.long),
    ],
    ids=["huber-small-near", "huber-small-far", "huber-whole-near", "cauchy-whole-far"],
)
def test_a_robust_loss_recovers_the_cameras_from_outliers(
    size: tuple[int, int], loss: ag.losses.Loss, pixels: tuple[float, float]
) -> None:
    """One sighting in twenty is off by so many pixels, where the others are off by 0.5."""
    clean = solve(robust_bundle_problem(*size, 0.0, None), NUMBA)
    problem = robust_bundle_problem(*size, 0.05, loss, pixels)
    robust = solve(problem, NUMBA, function_tolerance=1e-6)
    assert clean.success and robust.success, robust.report()
    wanted = clean.values["cameras"]
    difference = aligned_cameras(robust.values["cameras"], wanted) - wanted
    assert np.linalg.norm(difference) < 1e-3 * np.linalg.norm(wanted)
    assert np.abs(difference[:, :6]).max() < 0.02  # radians and lengths, of 6 to the centre
