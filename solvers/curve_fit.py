"""``ag.curve_fit``: SciPy's interface, with exact derivatives and samples as one batch."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import InputError, ShapeError, SolveError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.dense_trust_region import (
    MESSAGES,
    DenseMinimum,
    DenseTrustRegion,
    Tolerances,
)
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.selection import finite_array
from autograd_gpu.solvers.shared_block import StoredModel, choose_for_fit

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device

TOLERANCE = 1e-15
"""Default ftol, xtol and gtol: such problems are small, so they are solved to rounding."""

Bounds = tuple[ArrayLike, ArrayLike]


def curve_fit(
    f: Callable[..., Any],
    xdata: ArrayLike,
    ydata: ArrayLike,
    p0: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    absolute_sigma: bool = False,
    bounds: Bounds = (-np.inf, np.inf),
    *,
    full_output: bool = False,
    ftol: float = TOLERANCE,
    xtol: float = TOLERANCE,
    gtol: float = TOLERANCE,
    max_nfev: int | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> tuple[Any, ...]:
    """Fit f(x, *parameters) to data by least squares, like ``scipy.optimize.curve_fit``.

    ``f`` is traced once for one sample and compiled; derivatives are exact. Without bounds the
    method is Moré's trust region (``dense_trust_region.py``), followed by Gauss-Newton steps that
    take the gradient to rounding; with bounds it is SciPy's ``trf`` on the same residuals and
    Jacobian.

    Args:
        f: model, written with ``ag.*`` functions or NumPy ufuncs; sees one sample of ``xdata``.
        xdata: ``(m,)``, or ``(k, m)`` for samples of k numbers.
        ydata: observations ``(m,)``.
        p0: start, ``(n,)``; ones by default, or inside the bounds.
        sigma: standard deviations ``(m,)``, or covariance ``(m, m)``, of ``ydata``.
        absolute_sigma: ``sigma`` is in units of ``ydata`` and not only relative.
        bounds: lower and upper, numbers or ``(n,)``.
        full_output: also return a dictionary (``nfev``, ``njev``, ``fvec``, ``cost``), a message
            and SciPy's status.
        ftol: relative change of the cost.
        xtol: relative change of x.
        gtol: largest cosine between the residuals and a column of J.
        max_nfev: evaluations at most; 200 (n + 1) by default.
        backend: as in ``ag.solve``; ``auto`` takes NumPy for up to 20 000 samples, Numba above.
        precision: as in ``ag.solve``.
        device: as in ``ag.solve``.

    Returns:
        ``popt`` (n,) and ``pcov`` (n, n), the covariance; infinite where it cannot be told.

    Raises:
        SolveError: the limit of evaluations was reached, or the start is not finite.
        ShapeError, InputError, TraceError: an argument does not fit.
    """
    x, y = _data(xdata, ydata)
    lower, upper = (np.asarray(b, np.float64) for b in bounds)
    start = _start(f, p0, lower, upper)
    problem = Problem()
    block = problem.parameters("parameters", start[None])
    weight, whiten = _weight(sigma, len(y))
    single = len(start) == 1

    def residual(p: Any, x: Any, y: Any) -> Any:
        return f(x, p) - y if single else f(x, *p) - y

    name = getattr(f, "__name__", "curve")
    problem.add_residuals(residual, block[0], x, y, weight=weight, name=name)
    choice = choose_for_fit(backend, precision, problem.device(device), len(y))
    model = StoredModel(problem, choice, whiten=whiten)
    limit = 200 * (len(start) + 1) if max_nfev is None else max_nfev
    tolerances = Tolerances(ftol=ftol, xtol=xtol, gtol=gtol, max_evaluations=limit)
    if np.isfinite(lower).any() or np.isfinite(upper).any():
        found = _bounded(model, start, (lower, upper), tolerances)
    else:
        found = DenseTrustRegion(model, start, tolerances).run()
    if found.status == 0:
        raise SolveError(f"curve_fit: {MESSAGES[0]} ({limit}); raise max_nfev or change p0")
    covariance = _covariance(model, found, len(y), absolute_sigma)
    if not full_output:
        return found.x, covariance
    info = {
        "nfev": found.evaluations,
        "njev": found.linearizations,
        "fvec": model.residuals(found.x),
        "cost": found.cost,
    }
    return found.x, covariance, info, MESSAGES[found.status], found.status


def _data(xdata: ArrayLike, ydata: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """One row per sample."""
    y = finite_array(ydata, "curve_fit, ydata")
    x = finite_array(xdata, "curve_fit, xdata")
    if y.ndim != 1 or x.ndim not in (1, 2) or x.shape[-1] != len(y) or not len(y):
        raise ShapeError(
            f"curve_fit: got xdata of shape {x.shape} and ydata of shape {y.shape}; expected (m,) "
            "or (k, m), and (m,)"
        )
    return (x if x.ndim == 1 else np.ascontiguousarray(x.T)), y


def _start(
    f: Callable[..., Any], p0: ArrayLike | None, lower: FloatArray, upper: FloatArray
) -> FloatArray:
    if p0 is not None:
        start = np.atleast_1d(finite_array(p0, "curve_fit, p0"))
        if start.ndim != 1 or not start.size:
            raise ShapeError(f"curve_fit, p0: got shape {start.shape}, expected (n,)")
        return start
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(f).parameters.values())
    count = sum(p.kind in kinds for p in parameters) - 1
    if count < 1 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise InputError("curve_fit: the number of parameters of f is not known; pass p0")
    low, high = np.broadcast_to(lower, count), np.broadcast_to(upper, count)
    start = np.ones(count)
    both = np.isfinite(low) & np.isfinite(high)
    start[both] = 0.5 * (low[both] + high[both])
    only_low, only_high = np.isfinite(low) & ~both, np.isfinite(high) & ~both
    start[only_low] = low[only_low] + 1.0
    start[only_high] = high[only_high] - 1.0
    return start


def _weight(
    sigma: ArrayLike | None, count: int
) -> tuple[FloatArray | None, Callable[[FloatArray], FloatArray] | None]:
    """A weight per sample, or for a covariance a map of all residuals."""
    if sigma is None:
        return None, None
    values = finite_array(sigma, "curve_fit, sigma")
    if values.shape in ((), (count,)):
        if not (values > 0.0).all():
            raise InputError("curve_fit, sigma: standard deviations must be positive")
        return np.broadcast_to(1.0 / values, (count,)).copy(), None
    if values.shape != (count, count):
        raise ShapeError(
            f"curve_fit, sigma: got shape {values.shape}, expected ({count},) or ({count}, {count})"
        )
    linalg: Any = importlib.import_module("scipy.linalg")
    try:
        factor: NDArray[np.float64] = linalg.cholesky(values, lower=True)
    except np.linalg.LinAlgError as error:
        raise InputError("curve_fit, sigma: the covariance is not positive definite") from error
    return None, lambda rows: linalg.solve_triangular(factor, rows, lower=True)


def _bounded(
    model: StoredModel, start: FloatArray, bounds: Sequence[FloatArray], limits: Tolerances
) -> DenseMinimum:
    """SciPy's trust-region reflective method over our residuals and Jacobian."""
    optimize: Any = importlib.import_module("scipy.optimize")
    found = optimize.least_squares(
        model.residuals, start, jac=model.jacobian, bounds=tuple(bounds),
        method="trf", x_scale="jac", ftol=limits.ftol, xtol=limits.xtol, gtol=limits.gtol,
        max_nfev=limits.max_evaluations,
    )  # fmt: skip
    return DenseMinimum(found.x, found.cost, int(found.status), found.nfev, found.njev)


def _covariance(model: StoredModel, found: DenseMinimum, count: int, absolute: bool) -> FloatArray:
    """(JᵀJ)⁻¹, scaled by the variance of the residuals unless ``absolute``."""
    linear = model.linearize(found.x)
    n = len(found.x)
    norms = np.where(linear.column_norms > 0.0, linear.column_norms, 1.0)
    _, s, right = np.linalg.svd(linear.factor / norms)
    known = len(s) == n and s[-1] > np.finfo(np.float64).eps * max(count, n) * s[0]
    if not known or (count <= n and not absolute):
        # The class that SciPy's own curve_fit warns with.
        category: type[Warning] = importlib.import_module("scipy.optimize").OptimizeWarning
        warnings.warn(
            "the covariance of the parameters could not be estimated", category, stacklevel=3
        )
        return np.full((n, n), np.inf)
    spread = (right.T / s) / norms[:, None]
    covariance = spread @ spread.T
    return covariance if absolute else covariance * (2.0 * found.cost / (count - n))
