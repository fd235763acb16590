"""``curve_fit`` and ``least_squares``: NIST's certified values, and SciPy's own answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize

import autograd_gpu as ag
import nist_data
from autograd_gpu.errors import InputError, ShapeError, SolveError, TraceError
from autograd_gpu.trace import trace_samples

Array = NDArray[np.float64]

# -- NIST --------------------------------------------------------------------------------------

ENOUGH_DIGITS, ALL_DIGITS, RUNS_WITH_ALL = 4.0, 8.0, 24


def digits(name: str, start: int) -> float:
    reference, y = nist_data.data_of(name)
    found, covariance, info, _, _ = ag.curve_fit(
        nist_data.MODELS[name], reference.x, y, p0=reference.starts[start], full_output=True
    )
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), reference.deviations, rtol=1e-4)
    assert 2.0 * info["cost"] == pytest.approx(reference.sum_of_squares, rel=1e-9)
    return nist_data.matching_digits(found, reference.certified)


def test_nist_from_both_starts() -> None:
    """Every run reaches 4 certified digits in its worst parameter, and 24 of 28 reach 8."""
    found = {(n, k): digits(n, k) for n in nist_data.MODELS for k in range(2)}
    assert len(found) == 28
    assert {run: d for run, d in found.items() if d < ENOUGH_DIGITS} == {}
    assert sum(d >= ALL_DIGITS for d in found.values()) >= RUNS_WITH_ALL


# -- curve_fit beside SciPy --------------------------------------------------------------------

T = np.linspace(0.0, 4.0, 120)
RNG = np.random.default_rng(0)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.05 * RNG.standard_normal(120)


def decay(t: Any, a: Any, b: Any, c: Any) -> Any:
    return a * np.exp(-b * t) + c


SIGMA = RNG.uniform(0.5, 2.0, 120)
COVARIANCE = np.diag(SIGMA**2) + 0.1


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("sigma", [None, SIGMA, COVARIANCE], ids=["none", "each", "matrix"])
def test_values_and_covariance_are_those_of_scipy(sigma: Array | None, absolute: bool) -> None:
    ours = ag.curve_fit(decay, T, Y, sigma=sigma, absolute_sigma=absolute)
    theirs = optimize.curve_fit(
        decay, T, Y, sigma=sigma, absolute_sigma=absolute, xtol=1e-14, ftol=1e-14
    )
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-4)


def test_bounds_are_kept() -> None:
    bounds = ([0.0, 0.0, 0.0], [3.0, 1.0, 1.0])
    ours = ag.curve_fit(decay, T, Y, bounds=bounds)
    theirs = optimize.curve_fit(decay, T, Y, bounds=bounds, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    assert ours[0][1] == pytest.approx(1.0, abs=1e-6)


def test_one_parameter_and_two_predictors() -> None:
    x = RNG.uniform(0.5, 2.0, (2, 50))
    found, covariance = ag.curve_fit(lambda x, a: a * x[0] / x[1], x, 3.0 * x[0] / x[1])
    assert found == pytest.approx([3.0], rel=1e-14)
    assert covariance.shape == (1, 1)


def test_full_output() -> None:
    _, _, info, message, status = ag.curve_fit(decay, T, Y, full_output=True)
    assert info["fvec"].shape == (120,)
    assert info["cost"] == pytest.approx(0.5 * info["fvec"] @ info["fvec"])
    assert info["nfev"] >= info["njev"] > 2
    assert status > 0
    assert message


def test_covariance_that_is_not_known_is_infinite() -> None:
    with pytest.warns(optimize.OptimizeWarning, match="covariance"):
        _, covariance = ag.curve_fit(lambda t, a, b: (a + b) * t, T, 2.0 * T)
    assert np.isinf(covariance).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ydata": Y[:5]}, ShapeError, "xdata of shape"),
        ({"xdata": np.where(T > 3.0, np.nan, T)}, InputError, "xdata"),
        ({"sigma": -SIGMA}, InputError, "positive"),
        ({"sigma": SIGMA[:3]}, ShapeError, "sigma"),
        ({"sigma": -COVARIANCE}, InputError, "not positive definite"),
        ({"p0": np.ones((2, 2))}, ShapeError, "p0"),
        ({"f": lambda t, *p: p[0] * t}, InputError, "pass p0"),
        ({"max_nfev": 2}, SolveError, "max_nfev"),
        ({"f": lambda t, a: ag.log(-a) * t}, SolveError, "not finite"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ag.curve_fit(**{"f": decay, "xdata": T, "ydata": Y, **change})


# -- least_squares beside SciPy ----------------------------------------------------------------

OUTLIERS = Y + np.where(np.arange(120) % 10 == 0, 1.0, 0.0)


def residuals(p: Any, t: Array, y: Array) -> Any:
    return p[0] * np.exp(-p[1] * t) + p[2] - y


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("loss", ["linear", "huber", "soft_l1", "cauchy"])
@pytest.mark.parametrize("samples", [30, 120], ids=["unrolled", "columns"])
def test_minimum_is_that_of_scipy(loss: str, bounded: bool, samples: int) -> None:
    keep = slice(None, None, 120 // samples)
    options: dict[str, Any] = {"loss": loss, "f_scale": 0.1, "args": (T[keep], OUTLIERS[keep])}
    options |= {"bounds": (0.0, [5.0, 5.0, 0.45])} if bounded else {}
    ours = ag.least_squares(residuals, [1.0, 1.0, 0.1], **options)
    theirs = optimize.least_squares(
        residuals, [1.0, 1.0, 0.1], ftol=1e-15, xtol=1e-15, gtol=1e-15, **options
    )
    assert ours.success
    assert ours.cost == pytest.approx(theirs.cost, rel=1e-10)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-5)
    np.testing.assert_allclose(ours.fun, theirs.fun, atol=1e-5)
    np.testing.assert_allclose(ours.grad, theirs.grad, atol=1e-4)
    assert ours.jac.shape == (samples, 3)
    assert set(theirs.keys()) == set(ours.keys())


def test_a_function_is_a_loss_of_scipys_meaning() -> None:
    made = {"args": (T, OUTLIERS), "f_scale": 0.1}
    named = ag.least_squares(residuals, [1.0, 1.0, 0.1], loss="cauchy", **made)
    for bounds in ((-np.inf, np.inf), (-10.0, 10.0)):
        found = ag.least_squares(
            residuals, [1.0, 1.0, 0.1], loss=lambda z: ag.log1p(z), bounds=bounds, **made
        )
        np.testing.assert_allclose(found.x, named.x, rtol=1e-6)


def test_residuals_keep_the_order_of_the_function() -> None:
    """Samples first, single residuals last, though these are groups of their own."""

    def mixed(p: Any) -> Any:
        return [0.5 * p[0], p[0] * T - Y, p[1] - 2.0, p[1] * T + Y]

    found = ag.least_squares(mixed, [0.3, 0.7])
    p = found.x
    expected = np.concatenate([[0.5 * p[0]], p[0] * T - Y, [p[1] - 2.0], p[1] * T + Y])
    np.testing.assert_allclose(found.fun, expected, atol=1e-14)
    assert found.jac[0].tolist() == [0.5, 0.0]
    assert found.jac[121].tolist() == [0.0, 1.0]


def test_long_arrays_are_columns() -> None:
    graph, columns, sampled = trace_samples(lambda p: p[0] * T + p[1] * Y - T, 2)
    assert [c.shape for c in columns] == [(120,), (120,)]
    assert sampled == [True]
    assert graph.stats.ops < 10


@pytest.mark.parametrize(
    "fun",
    [
        lambda p: np.sum(p[0] * T - Y),
        lambda p: ag.norm(p[0] * T),
        lambda p: ag.dot(p[0] * T, p[1] * T),
        lambda p: [ag.mean(p[0] * T)],
    ],
    ids=["sum", "norm", "dot", "mean"],
)
def test_sums_over_samples_are_refused(fun: Callable[[Any], Any]) -> None:
    with pytest.raises(TraceError, match="reduces over samples"):
        ag.least_squares(fun, [1.0, 1.0])


def test_samples_of_different_lengths_are_refused() -> None:
    with pytest.raises(ShapeError, match="equally long"):
        ag.least_squares(lambda p: p[0] * T - p[0] * Y[:100], [1.0])


def test_own_jacobian_and_scale(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Array] = []

    def jac(x: Array) -> Array:
        calls.append(x)
        return np.array([[-20.0 * x[0], 10.0], [-1.0, 0.0]])

    def rosenbrock(p: Any) -> Any:
        return [10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]]

    found = ag.least_squares(rosenbrock, [-1.2, 1.0], jac, x_scale=[1.0, 2.0], verbose=2)
    np.testing.assert_allclose(found.x, [1.0, 1.0], atol=1e-12)
    assert len(calls) >= found.njev
    assert "cost" in capsys.readouterr().out
    stopped = ag.least_squares(rosenbrock, [-1.2, 1.0], max_nfev=3)
    assert (stopped.status, stopped.success) == (0, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "tukey"}, "loss='tukey' is unknown"),
        ({"jac": "exactly"}, "jac='exactly' is unknown"),
        ({"x_scale": "columns"}, "x_scale"),
        ({"x_scale": [1.0, -1.0]}, "x_scale"),
        ({"f_scale": 0.0, "loss": "huber"}, "delta"),
        ({"jac": np.eye, "loss": "huber"}, "jac with a robust loss"),
    ],
)
def test_bad_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ag.least_squares(lambda p: [p[0] - 1.0, p[1]], [0.0, 0.0], **change)
