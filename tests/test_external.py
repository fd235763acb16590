"""Residuals of a user's own function beside traced ones, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import GRAPH, tolerance

Array = NDArray[np.float64]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
START = np.random.default_rng(2).uniform(0.5, 1.5, (5, 3))
PAIRS = np.array([[0, 1], [1, 2], [3, 2], [4, 0], [2, 2], [0, 4]])
REST = np.linspace(0.5, 1.0, 6)


def traced(p: Any, q: Any, s: Any, rest: Any) -> list[Any]:
    return [s * ag.dot(p, q) - rest, ag.sin(p[0]) * s + q[2]]


def by_hand(p: Array, q: Array, s: Array, rest: Array) -> tuple[Array, list[Array]]:
    dot = np.einsum("ei,ei->e", p, q)
    residuals = np.stack([s * dot - rest, np.sin(p[:, 0]) * s + q[:, 2]], axis=1)
    by_p = np.zeros((len(p), 2, 3))
    by_p[:, 0] = s[:, None] * q
    by_p[:, 1, 0] = np.cos(p[:, 0]) * s
    by_q = np.zeros((len(p), 2, 3))
    by_q[:, 0] = s[:, None] * p
    by_q[:, 1, 2] = 1.0
    by_s = np.stack([dot, np.sin(p[:, 0])], axis=1)
    return residuals, [by_p, by_q, by_s]


def problem_of(external: bool, frozen: bool = True) -> ag.Problem:
    problem = ag.Problem()
    s = problem.parameters("s", [0.7, 2.0])
    x = problem.parameters("x", START)
    i, j = PAIRS.T
    problem.add_residuals(lambda p, t: 0.3 * (p - t), x, START[::-1], name="anchor")
    if external:
        problem.add_external(by_hand, x[i], x[j], s[1], REST, name="pairs")
    else:
        problem.add_residuals(traced, x[i], x[j], s[1], REST, name="pairs")
    problem.add_residuals(lambda a: ag.exp(a) - 2.0, s, loss=ag.losses.Huber(0.5), name="exponents")
    if frozen:
        problem.freeze(x, [3])
    return problem


def where(backend: Backend) -> dict[str, Any]:
    return {
        "backend": backend.name,
        "precision": backend.precision,
        "device": device_on(backend.adapter) if backend.adapter else None,
    }


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_external_residuals_are_those_of_the_traced_function(
    backend: Backend, frozen: bool
) -> None:
    found = problem_of(True, frozen).evaluate(**where(backend))
    expected = problem_of(False, frozen).evaluate(backend="numpy")
    close = tolerance(backend.precision, GRAPH)
    close.check(found.residuals, expected.residuals, "residuals")
    close.check(found.jacobian.toarray(), expected.jacobian.toarray(), "Jacobian")
    close.check(found.gradient, expected.gradient, "gradient")
    close.check(found.cost, expected.cost, "cost")
    assert "external residuals 'pairs' by NumPy on the CPU" in found.device


@pytest.mark.parametrize("method", ["levenberg-marquardt", "dogleg", "newton"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mixed_problem_ends_where_the_traced_one_does(backend: Backend, method: str) -> None:
    solution = ag.solve(problem_of(True), method=method, **where(backend))
    expected = ag.solve(problem_of(False))
    assert solution.success, solution.message
    assert solution.cost == pytest.approx(expected.cost, rel=1e-6)
    assert np.array_equal(solution.values["x"][3], START[3])
    assert "external residuals 'pairs' by NumPy on the CPU" in solution.device
    assert "'pairs'" in solution.report()
    assert solution.backend == backend.name


def test_external_residuals_alone_and_beside_an_energy() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[3.0, -1.0]])
    problem.add_external(lambda p: (p - 1.0, [np.eye(2)[None]]), x, name="offset")
    assert ag.solve(problem).cost < 1e-20
    problem.add_energy(lambda p: 0.5 * ag.dot(p, p), x, name="pull")
    solution = ag.solve(problem)
    np.testing.assert_allclose(solution.values["x"], [[0.5, 0.5]], atol=1e-9)


def test_data_can_be_replaced_and_the_function_runs_once_an_evaluation() -> None:
    calls: list[Array] = []

    def offset(p: Array, t: Array) -> tuple[Array, list[Array]]:
        calls.append(t)
        p += 0.0  # the arrays are copies
        return p - t, [np.broadcast_to(np.eye(3), (5, 3, 3))]

    problem = ag.Problem()
    x = problem.parameters("x", START)
    problem.add_external(offset, x, np.zeros((5, 3)))
    assert len(calls) == 1
    problem.update(data={"offset": START + 2.0})
    assert problem.evaluate().residuals == pytest.approx(-2.0)
    np.testing.assert_allclose(ag.solve(problem).values["x"], START + 2.0, atol=1e-9)
    assert np.array_equal(calls[-1], START + 2.0)
    with pytest.raises(ag.InputError, match="argument 'u': no such data argument"):
        problem.update(data={"offset": {"u": START}})


def test_wrong_jacobians_are_found() -> None:
    assert problem_of(True).check_gradients().ok
    problem = ag.Problem()
    x = problem.parameters("x", START)
    problem.add_external(
        lambda p: (p[:, 0] ** 2, [np.stack([2 * p[:, 0], 0 * p[:, 1], 0.1 + 0 * p[:, 2]], 1)]),
        x,
        name="wrong",
    )
    (checked,) = problem.check_gradients().groups
    assert not checked.ok
    assert checked.column == 2
    assert checked.worst_error == pytest.approx(0.1)


def test_numbers_that_are_not_finite_are_named() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([1.0, 4.0]))
    with np.errstate(all="ignore"):
        problem.add_external(lambda v: (np.log(v - 2.0), [1.0 / (v - 2.0)]), x, name="logs")
    solution = ag.solve(problem)
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "residuals 'logs', element 0" in solution.message
    assert "external function <lambda>" in str(ag.debug_nans(problem))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[ag.Problem, Any], Any]]] = {
    "no pair": (
        ag.InputError, "external residuals 'bad': returned ndarray, expected a pair",
        lambda p, x: p.add_external(lambda v: v, x, name="bad"),
    ),
    "residuals": (
        ag.ShapeError, r"'bad': returned residuals of shape \(3,\s*1\), expected \(5, m\)",
        lambda p, x: p.add_external(lambda v: (v[:3, 0], [v]), x, name="bad"),
    ),
    "Jacobians": (
        ag.ShapeError, "'bad': returned 2 Jacobians, expected 1, one for each of 'v'",
        lambda p, x: p.add_external(lambda v: (v[:, 0], [v, v]), x, name="bad"),
    ),
    "a Jacobian": (
        ag.ShapeError, r"by 'v' has shape \(5, 3\), expected \(5, 2, 3\)",
        lambda p, x: p.add_external(lambda v: (v[:, :2], [v]), x, name="bad"),
    ),
    "a sequence": (
        ag.InputError, "argument 'v': got rows of varying length",
        lambda p, x: p.add_external(
            lambda v: (v, [v]), x[ag.Ragged([0, 2, 3], [0, 1, 2])], name="bad"
        ),
    ),
    "a manifold": (
        ag.InputError, "argument 'q': lives on a manifold",
        lambda p, x: p.add_external(
            lambda q: (q, [q]),
            p.parameters("q", [[0.0, 0.0, 1.0]], manifold=ag.manifolds.UnitSphere),
            name="bad",
        ),
    ),
    "gradients alone": (
        ag.InputError, "method='l-bfgs' takes gradients from kernels.*'pairs'",
        lambda p, x: ag.solve(p, method="l-bfgs"),
    ),
    "mixed": (
        ag.InputError, "precision='mixed': external residuals",
        lambda p, x: ag.solve(p, backend="wgsl", precision="mixed"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    error, message, act = REFUSED[name]
    problem = problem_of(True)
    with pytest.raises(error, match=message):
        act(problem, problem.arrays[1])
