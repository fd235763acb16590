"""Robust losses: values and derivatives, the corrected pair on all backends, and solves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import least_squares

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu import losses
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.runtime.device import Device
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import GRAPH, MPMATH_DERIVATIVE, tolerance

Array = NDArray[np.float64]
mp = mpmath.mp.clone()
mp.dps = 40


def _huber(s: Any, d: Any) -> Any:
    return s if s <= d * d else 2 * d * mp.sqrt(s) - d * d


def _tukey(s: Any, d: Any) -> Any:
    return d * d / 3 * (1 - (1 - s / d**2) ** 3) if s < d * d else d * d / 3


def _tolerant(s: Any, a: Any, b: Any) -> Any:
    return b * mp.log(1 + mp.exp((s - a) / b)) - b * mp.log(1 + mp.exp(-a / b))


# Written from the definitions, not from the package.
TRUTH: dict[str, tuple[losses.Loss, Callable[..., Any]]] = {
    "Huber": (losses.Huber(1.5), _huber),
    "SoftL1": (losses.SoftL1(1.5), lambda s, d: 2 * d * d * (mp.sqrt(1 + s / d**2) - 1)),
    "Cauchy": (losses.Cauchy(1.5), lambda s, d: d * d * mp.log(1 + s / d**2)),
    "Arctan": (losses.Arctan(1.5), lambda s, d: d * d * mp.atan(s / d**2)),
    "Tukey": (losses.Tukey(1.5), _tukey),
    "GemanMcClure": (losses.GemanMcClure(1.5), lambda s, d: d * d * s / (d * d + s)),
    "Welsch": (losses.Welsch(1.5), lambda s, d: d * d * (1 - mp.exp(-s / d**2))),
    "Tolerant": (losses.Tolerant(2.0, 0.25), _tolerant),
}
each_loss = pytest.mark.parametrize("name", TRUTH)


@each_loss
def test_value_and_derivatives_against_mpmath(name: str) -> None:
    loss, rho = TRUTH[name]
    parameters = [mp.mpf(float(v)) for v in loss.parameters.values()]
    for s in (1e-9, 1e-3, 0.4, 1.9, 2.2, 2.3, 7.0, 1e3):
        step = mp.mpf(s) * mp.mpf(10) ** -10
        true = [mp.diff(lambda t: rho(t, *parameters), mp.mpf(s), k, h=step) for k in range(3)]
        MPMATH_DERIVATIVE.check(loss(s), [float(v) for v in true], f"{name} at {s}")


@each_loss
def test_at_zero_and_far_away(name: str) -> None:
    loss, _ = TRUTH[name]
    rho, slope, curvature = loss(np.array([0.0, 1e30]))
    assert rho[0] == 0.0
    assert slope[0] == 1.0 or name == "Tolerant"
    assert np.isfinite([rho, slope, curvature]).all()
    assert 0.0 <= slope[1] <= 1.0
    many = loss(np.logspace(-9, 9, 400))
    assert (np.diff(many[0]) >= -1e-15 * many[0][1:]).all()
    if loss.concave:
        assert (many[2] <= 0.0).all()


# -- the corrected pair ------------------------------------------------------------------------


def residual(p: Any, t: Any, y: Any) -> Any:
    return [p[0] * ag.exp(-p[1] * t) - y, p[0] * t - p[2] * y]


T = np.linspace(0.1, 2.0, 23)
Y = 2.0 * np.exp(-T) + np.where(np.arange(23) % 5 == 0, 4.0, 0.01)
START = np.array([[1.0, 0.5, 0.25]])


def robust_problem(loss: Any, count: int = 23) -> ag.Problem:
    problem = ag.Problem()
    p = problem.parameters("p", START)
    problem.add_residuals(residual, p[0], T[:count], Y[:count], loss=loss, name="fit")
    return problem


def corrected_by_hand(loss: losses.Loss) -> tuple[Array, Array, float]:
    """Residuals, Jacobian and cost as Ceres's ``Corrector`` makes them, element by element."""
    plain = robust_problem(None).evaluate("numpy")
    r, j = plain.residuals.reshape(-1, 2).copy(), plain.jacobian.toarray().reshape(-1, 2, 3)
    cost = 0.0
    for k in range(len(r)):
        s = r[k] @ r[k]
        rho, slope, curvature = (float(v) for v in loss(s))
        cost += 0.5 * rho
        alpha = 0.0
        if s > 0.0 and curvature > 0.0:
            alpha = 1.0 - np.sqrt(1.0 + 2.0 * s * curvature / slope)
        j[k] = np.sqrt(slope) * (j[k] - alpha / s * np.outer(r[k], r[k] @ j[k]))
        r[k] *= np.sqrt(slope) / (1.0 - alpha)
    return r.ravel(), j.reshape(-1, 3), cost


@pytest.mark.parametrize("backend", parameters_of([NUMPY, NUMBA, *JAX, *WGSL]))
@each_loss
def test_corrected_pair_on_every_backend(name: str, backend: Backend) -> None:
    loss, _ = TRUTH[name]
    r, j, cost = corrected_by_hand(loss)
    device = None if backend.adapter is None else device_on(backend.adapter)
    found = robust_problem(loss).evaluate(backend.name, backend.precision, device)
    bound = tolerance(backend.precision, GRAPH)
    bound.check(found.residuals, r, "residuals")
    bound.check(found.jacobian.toarray(), j, "jacobian")
    bound.check(found.cost, cost, "cost")


@each_loss
def test_gradient_is_that_of_the_cost(name: str) -> None:
    problem = robust_problem(TRUTH[name][0])
    gradient = problem.evaluate("numpy").gradient
    for k in range(3):
        costs: list[float] = []
        for sign in (1.0, -1.0):
            moved = START.copy()
            moved[0, k] += sign * 1e-6
            problem.update(p=moved)
            costs.append(problem.evaluate("numpy").cost)
        assert gradient[k] == pytest.approx((costs[0] - costs[1]) / 2e-6, rel=1e-6, abs=1e-7)


def test_residuals_of_a_session_have_the_cost_as_half_their_square() -> None:
    problem = robust_problem(losses.Tukey(0.5))
    found = problem.evaluate("numba")
    (session,) = problem.analysis()._sessions.values()  # pyright: ignore[reportPrivateUsage]
    scaled = session.residuals(START.ravel())
    assert 0.5 * scaled @ scaled == pytest.approx(found.cost, rel=1e-13)
    assert 0.5 * found.residuals @ found.residuals != pytest.approx(found.cost, rel=1e-2)


def test_zero_residuals_are_finite() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.zeros((3, 2)))
    problem.add_residuals(lambda p: p * 1.0, x, loss=losses.Tolerant(1.0, 0.5), name="a")
    problem.add_residuals(lambda p: p * p, x, loss=losses.Huber(1.0), name="b")
    found = problem.evaluate("numpy")
    assert found.cost == 0.0
    assert np.isfinite(found.jacobian.toarray()).all()
    assert not found.gradient.any()


def test_parameters_are_data_of_one_kernel() -> None:
    one, other = (robust_problem(losses.Huber(d)) for d in (0.5, 3.0))
    (a,), (b,) = one.groups, other.groups
    assert a.topology.serial == b.topology.serial
    expected = other.evaluate("numba").cost
    one.update(data={"fit": {"loss_delta": 3.0}})
    assert one.evaluate("numba").cost == expected
    per_element = robust_problem(losses.Huber(np.full(23, 3.0)))
    assert per_element.evaluate("numba").cost == pytest.approx(expected, rel=1e-15)


def test_weight_comes_before_the_loss() -> None:
    problem, alike = ag.Problem(), ag.Problem()
    for made, fn, weight in ((problem, residual, 2.0), (alike, doubled, None)):
        p = made.parameters("p", START)
        made.add_residuals(fn, p[0], T, Y, weight=weight, loss=losses.Cauchy(0.7))
    a, b = problem.evaluate("numpy"), alike.evaluate("numpy")
    assert a.cost == pytest.approx(b.cost, rel=1e-14)
    tolerance("float64", GRAPH).check(a.residuals, b.residuals, "residuals")


def doubled(p: Any, t: Any, y: Any) -> Any:
    return [2.0 * r for r in residual(p, t, y)]


def test_a_function_is_a_loss() -> None:
    by_hand = robust_problem(lambda s: 2.25 * ag.log1p(s / 2.25)).evaluate("numpy")
    named = robust_problem(losses.Cauchy(1.5)).evaluate("numpy")
    tolerance("float64", GRAPH).check(by_hand.residuals, named.residuals, "residuals")
    tolerance("float64", GRAPH).check(
        by_hand.jacobian.toarray(), named.jacobian.toarray(), "jacobian"
    )


def test_a_loss_on_rows_of_varying_length() -> None:
    """As four residuals of fixed length, whose parameters are those of their elements."""
    rows = ag.Ragged([0, 2, 3, 5, 6], [0, 1, 2, 3, 4, 5])
    delta, weight = np.array([0.5, 1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    values = np.linspace(-3.0, 4.0, 6)
    problem, alike = ag.Problem(), ag.Problem()
    x, y = problem.parameters("x", values), alike.parameters("x", values)
    problem.add_residuals(
        lambda row: ag.sum(row), x[rows], weight=weight, loss=losses.Cauchy(delta), name="a"
    )
    sums = [np.array([0, 1]), np.array([2]), np.array([3, 4]), np.array([5])]
    for k, members in enumerate(sums):
        chosen = [y[members[i : i + 1]] for i in range(len(members))]
        alike.add_residuals(
            lambda *row: ag.sum(list(row)), *chosen, weight=weight[k], loss=losses.Cauchy(delta[k])
        )
    for _ in range(2):
        a, b = problem.evaluate("numpy"), alike.evaluate("numpy")
        assert a.cost == pytest.approx(b.cost, rel=1e-14)
        tolerance("float64", GRAPH).check(a.residuals, b.residuals, "residuals")
        problem.update(data={"a": {"loss_delta": 2 * delta, "weight": weight}})
        for k, name in enumerate(g.name for g in alike.groups):
            alike.update(data={name: {"loss_delta": 2 * delta[k]}})


# -- solves ------------------------------------------------------------------------------------

SCIPY_NAMES = {"huber": losses.Huber, "soft_l1": losses.SoftL1, "cauchy": losses.Cauchy,
               "arctan": losses.Arctan}  # fmt: skip


def decay(p: Any, t: Any, y: Any) -> Any:
    return p[0] * ag.exp(-p[1] * t) - y


@pytest.mark.parametrize("name", SCIPY_NAMES)
def test_minimum_is_that_of_scipy(name: str) -> None:
    problem = ag.Problem()
    p = problem.parameters("p", START[:, :2])
    problem.add_residuals(decay, p[0], T, Y, loss=SCIPY_NAMES[name](0.3))
    options = ag.LevenbergMarquardtOptions(function_tolerance=1e-15)
    solution = ag.solve(problem, options=options)
    oracle = least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) - Y, START[0, :2], loss=name, f_scale=0.3,
        ftol=1e-15, xtol=1e-15, gtol=1e-15,
    )  # fmt: skip
    assert solution.status.converged
    assert solution.cost == pytest.approx(oracle.cost, rel=1e-8)
    np.testing.assert_allclose(solution.values["p"][0], oracle.x, rtol=1e-4)
    problem.update(p=solution.values["p"])
    assert problem.evaluate().cost == pytest.approx(solution.cost, rel=1e-13)
    assert solution.cost < solution.initial_cost


@pytest.fixture(params=wgsl_adapters(), scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


@pytest.mark.wgsl
@pytest.mark.parametrize("loss", [losses.Huber(0.02), losses.Tukey(0.3)], ids=lambda v: v.name)
def test_solve_on_the_device_finds_the_minimum_of_the_host(
    device: Device, loss: losses.Loss
) -> None:
    """Springs, of which every ninth is torn; a mirrored kind, a unit kind, and a loss on one."""
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    rest = np.where(np.arange(len(i)) % 9 == 0, 3.0, 0.9) * mesh.edge_lengths
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(ag.meshes.energies.spring, x[i], x[j], rest, loss=loss, name="springs")
    problem.add_residuals(ag.meshes.energies.anchor, x, mesh.vertices, 0.3, name="anchor")
    host = ag.solve(problem, backend="numba")
    found = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    assert found.status.converged, found.message
    assert found.initial_cost == pytest.approx(host.initial_cost, rel=1e-5)
    assert found.cost == pytest.approx(host.cost, rel=1e-4)
    np.testing.assert_allclose(found.values["x"], host.values["x"], atol=5e-3)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("huber", "expected a loss such as"),
        (losses.Huber, "expected a loss such as"),
        (lambda s: ag.log(s + 0.5), r"expected ρ\(0\) = 0"),
        (lambda s: -s, "never fall"),
        (lambda s: ag.log(s), "finite"),
    ],
)
def test_what_is_no_loss_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        robust_problem(loss)
    assert "residuals 'fit'" in str(caught.value)


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="Huber, delta"):
        losses.Huber(0.0)
    with pytest.raises(InputError, match="Tolerant, b"):
        losses.Tolerant(1.0, np.nan)
    with pytest.raises(ShapeError, match="expected a number or one per element"):
        losses.Cauchy(np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"expected a number or \(23,\)"):
        robust_problem(losses.Cauchy(np.ones(22)))  # of 23 elements
    with pytest.raises(ShapeError, match="returns 2 values"):
        robust_problem(lambda s: [s, s])
