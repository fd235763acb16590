"""Data that follow the point: a callback that replaces correspondences while a solve runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import KDTree

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of

Array = NDArray[np.float64]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
RNG = np.random.default_rng(8)
TARGETS = RNG.uniform(-1.0, 1.0, (150, 2))
ANGLE, SHIFT = 0.1, np.array([0.05, -0.03])


def turned(points: Array, angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array([[c, s], [-s, c]])


SOURCES = turned(TARGETS - SHIFT, -ANGLE)[RNG.permutation(150)[:100]]


def pair(motion: Any, p: Any, q: Any) -> list[Any]:
    c, s = ag.cos(motion[2]), ag.sin(motion[2])
    return [c * p[0] - s * p[1] + motion[0] - q[0], s * p[0] + c * p[1] + motion[1] - q[1]]


def closest(motion: Array) -> Array:
    return TARGETS[KDTree(TARGETS).query(turned(SOURCES, motion[2]) + motion[:2])[1]]


def registration(start: Array) -> ag.Problem:
    problem = ag.Problem()
    motion = problem.parameters("motion", start[None])
    problem.add_residuals(pair, motion[0], SOURCES, closest(start), name="pairs")
    return problem


@pytest.mark.parametrize("linear_solver", ["auto", "pcg"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_closest_points_are_followed(backend: Backend, linear_solver: str) -> None:
    problem = registration(np.zeros(3))
    seen: list[Array] = []

    def follow(_: Any, values: Mapping[str, Array]) -> None:
        (motion,) = values["motion"]
        seen.append(motion)
        problem.update(data={"pairs": {"q": closest(motion)}})

    solution = ag.solve(
        problem,
        linear_solver=linear_solver,
        callback=follow,
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    assert solution.success, solution.message
    found = solution.values["motion"][0]
    np.testing.assert_allclose(found, [*SHIFT, ANGLE], atol=1e-5)
    assert np.array_equal(seen[0], np.zeros(3))
    np.testing.assert_allclose(seen[-1], found, atol=1e-5)
    assert max(r.stage for r in solution.history) > 0
    assert [r.iteration for r in solution.history] == list(range(len(solution.history)))
    # The problem has the last correspondences and its own start.
    problem.update(motion=found[None])
    assert problem.evaluate().cost == pytest.approx(solution.cost, abs=1e-8)


def test_without_updates_the_correspondences_of_the_start_are_kept() -> None:
    solution = ag.solve(registration(np.zeros(3)))
    assert np.abs(solution.values["motion"][0] - [*SHIFT, ANGLE]).max() > 1e-3


def test_equal_data_change_nothing() -> None:
    problem = registration(np.zeros(3))
    plain = ag.solve(problem)
    same = ag.solve(
        problem, callback=lambda r: problem.update(data={"pairs": {"q": closest(np.zeros(3))}})
    )
    assert same.iterations == plain.iterations
    assert same.cost == plain.cost
    assert all(r.stage == 0 for r in same.history)


def test_limits_and_wishes_hold_over_all_updates() -> None:
    problem = registration(np.zeros(3))

    def noisy(record: Any) -> bool:
        noise = 1e-3 * np.random.default_rng(record.iteration).standard_normal((100, 2))
        problem.update(data={"pairs": {"q": closest(np.zeros(3)) + noise}})
        return record.iteration == 7

    limits = ag.LevenbergMarquardtOptions(max_iterations=5)
    solution = ag.solve(problem, callback=noisy, options=limits)
    assert solution.status is ag.Status.MAX_ITERATIONS
    assert solution.iterations == 5
    solution = ag.solve(problem, callback=noisy)
    assert solution.status is ag.Status.STOPPED_BY_CALLBACK
    assert solution.iterations == 7


def test_no_parameters_can_be_added_meanwhile() -> None:
    problem = registration(np.zeros(3))

    def add(record: Any) -> None:
        problem.parameters(f"more{record.iteration}", [1.0])

    with pytest.raises(ag.InputError, match="the callback added parameters"):
        ag.solve(problem, callback=add)
    assert ag.solve(registration(np.zeros(3))).success
