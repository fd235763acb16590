"""``ag.least_squares``: SciPy's interface over traced residuals with exact derivatives."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu import losses
from autograd_gpu.codegen.kernel import topology_of
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.ir import Graph
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.curve_fit import TOLERANCE, Bounds
from autograd_gpu.solvers.dense_trust_region import (
    MESSAGES,
    DenseTrustRegion,
    Tolerances,
)
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.residual_group import DataRows, ResidualGroup, robust, slot_of
from autograd_gpu.solvers.selection import ParameterArray, finite_array
from autograd_gpu.solvers.shared_block import StoredModel, choose_for_fit
from autograd_gpu.trace import trace_samples

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device

LOSSES: MappingProxyType[str, Callable[[float], losses.Loss]] = MappingProxyType(
    {
        "huber": losses.Huber,
        "soft_l1": losses.SoftL1,
        "cauchy": losses.Cauchy,
        "arctan": losses.Arctan,
    }
)
"""SciPy's C² ρ(f²/C²) is a loss of scale C."""

_DIFFERENCES = ("2-point", "3-point", "cs")


def least_squares(
    fun: Callable[..., Any],
    x0: ArrayLike,
    jac: str | Callable[..., Any] = "exact",
    bounds: Bounds = (-np.inf, np.inf),
    *,
    ftol: float | None = TOLERANCE,
    xtol: float | None = TOLERANCE,
    gtol: float | None = TOLERANCE,
    x_scale: ArrayLike | str = "jac",
    loss: str | Callable[[Any], Any] = "linear",
    f_scale: float = 1.0,
    max_nfev: int | None = None,
    verbose: int = 0,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> Any:
    """Minimise ½Σ C² ρ(f_i(x)²/C²) with C = ``f_scale``, like ``scipy.optimize.least_squares``.

    ``fun`` is traced once, with x a vector of traced numbers: it may be written with ``ag.*``
    functions, NumPy ufuncs and Python loops. Arrays of more than 64 numbers in it, from ``args`` or
    around it, are samples: one row of a batch each, never unrolled. Without bounds the method is
    Moré's trust region (``dense_trust_region.py``), followed by Gauss-Newton steps that take the
    gradient to rounding; with bounds it is SciPy's ``trf`` on the same residuals and Jacobian.

    Args:
        fun: residuals f(x, *args, **kwargs): a list, a vector, or an expression over samples.
        x0: start, ``(n,)`` or a number.
        jac: derivatives are exact; SciPy's names of differences are accepted and not needed. A
            function jac(x, *args, **kwargs) is accepted for the linear loss, and used.
        bounds: lower and upper, numbers or ``(n,)``.
        ftol: relative change of the cost; None for no test.
        xtol: relative change of x; None for no test.
        gtol: largest cosine between the residuals and a column of J; None for no test.
        x_scale: sizes of the unknowns, or ``jac``: by the columns of J.
        loss: ``linear``, ``huber``, ``soft_l1``, ``cauchy``, ``arctan``, or a traced ρ(z); acts on
            each residual by itself.
        f_scale: C.
        max_nfev: evaluations at most; 200 (n + 1) by default.
        verbose: 1 prints the end, 2 every evaluation.
        args: further arguments of ``fun``.
        kwargs: further keywords of ``fun``.
        backend: as in ``ag.solve``; ``auto`` takes NumPy for up to 20 000 residuals, Numba above.
        precision: as in ``ag.solve``.
        device: as in ``ag.solve``.

    Returns:
        SciPy's ``OptimizeResult``: x, cost, fun (before the loss), jac (after it), grad,
        optimality, active_mask, nfev, njev, status, message, success.

    Raises:
        TraceError, ShapeError, InputError: an argument does not fit.
        SolveError: the start is not finite.
    """
    start = np.atleast_1d(finite_array(x0, "least_squares, x0"))
    if start.ndim != 1 or not start.size:
        raise ShapeError(f"least_squares, x0: got shape {start.shape}, expected (n,)")
    own = _own_jacobian(jac, loss, args, kwargs)
    rho = _loss(loss, f_scale)
    limit = 200 * (len(start) + 1) if max_nfev is None else max_nfev
    graph, columns, sampled = trace_samples(
        lambda x: fun(x, *args, **dict(kwargs or {})), len(start)
    )
    traced = _Traced(graph, columns, sampled)
    opened = Problem().device(device)
    lower, upper = (np.asarray(b, np.float64) for b in bounds)
    bounded = bool(np.isfinite(lower).any() or np.isfinite(upper).any())
    choice = choose_for_fit(backend, precision, opened, traced.rows)
    # SciPy's method under bounds applies the loss itself, to plain residuals.
    plain = StoredModel(traced.problem(start, None), choice, traced.order, jacobian=own)
    if bounded:
        given = loss if rho is None or isinstance(loss, str) else _as_scipy(rho, f_scale)
        optimize: Any = importlib.import_module("scipy.optimize")
        return optimize.least_squares(
            plain.residuals, start, jac=plain.jacobian, bounds=(lower, upper),
            method="trf", ftol=ftol, xtol=xtol, gtol=gtol, x_scale=x_scale, loss=given,
            f_scale=f_scale, max_nfev=limit, verbose=verbose,
        )  # fmt: skip
    model = plain
    if rho is not None:
        model = StoredModel(traced.problem(start, rho), choice, traced.order)
    tolerances = Tolerances(
        ftol=ftol or 0.0, xtol=xtol or 0.0, gtol=gtol or 0.0, max_evaluations=limit
    )
    report = _table if verbose >= 2 else None
    method = DenseTrustRegion(model, start, tolerances, _scale(x_scale, len(start)), report)
    found = method.run()
    if verbose >= 1:
        print(f"{MESSAGES[found.status]}: cost {found.cost:.6g}")  # noqa: T201 - SciPy's verbose
    residuals, jacobian = model.pair(found.x)
    gradient = jacobian.T @ residuals
    result: Any = importlib.import_module("scipy.optimize").OptimizeResult
    return result(
        x=found.x,
        cost=found.cost,
        fun=residuals if rho is None else plain.residuals(found.x),
        jac=jacobian,
        grad=gradient,
        optimality=float(np.max(np.abs(gradient), initial=0.0)),
        active_mask=np.zeros(len(start), int),
        nfev=found.evaluations,
        njev=found.linearizations,
        status=found.status,
        message=MESSAGES[found.status],
        success=found.status > 0,
    )


class _Traced:
    """A traced function of one vector as residual groups: over samples, and single residuals."""

    def __init__(
        self, graph: Graph, columns: Sequence[FloatArray], sampled: Sequence[bool]
    ) -> None:
        self._graph = graph
        self._columns = columns
        samples = len(columns[0]) if columns else 0
        self._parts = [
            (positions, count)
            for positions, count in (
                ([k for k, s in enumerate(sampled) if s], samples),
                ([k for k, s in enumerate(sampled) if not s], 1),
            )
            if positions
        ]
        lengths = [samples if s else 1 for s in sampled]
        self.rows = sum(lengths)
        # The problem has rows element by element, the user output by output.
        first = 0
        place: list[NDArray[np.intp]] = [np.zeros(0, np.intp)] * len(sampled)
        for positions, count in self._parts:
            for k, position in enumerate(positions):
                place[position] = first + k + len(positions) * np.arange(count, dtype=np.intp)
            first += len(positions) * count
        self.order = np.concatenate(place)

    def problem(self, start: FloatArray, loss: losses.Loss | None) -> Problem:
        """One block of parameters and a group per kind of residual."""
        problem = Problem()
        block = problem.parameters("x", start[None])
        for positions, count in self._parts:
            problem.add_group(self._group(block, positions, count, loss))
        return problem

    def _group(
        self, block: ParameterArray, positions: list[int], count: int, loss: losses.Loss | None
    ) -> ResidualGroup:
        whole = self._graph
        outputs = tuple(whole.outputs[k] for k in positions)
        graph = Graph(whole.nodes, outputs, whole.arguments, (len(outputs),), whole.name)
        arguments: list[Any] = [block[0], *(DataRows(c, False) for c in self._columns)]
        blocks = None
        name = "samples" if count > 1 else "residuals"
        if loss is not None:
            graph, blocks, rows = robust(graph, loss, count, name, per_residual=True)
            arguments += rows
        return ResidualGroup(
            name=name,
            graph=graph,
            topology=topology_of(graph, [slot_of(a) for a in arguments], blocks),
            arguments=tuple(arguments),
            count=count,
        )


class _ScaledFunction(losses.Loss):
    """C² ρ(s/C²) of the user's ρ(z)."""

    concave = False

    def __init__(self, fn: Callable[[Any], Any], f_scale: float) -> None:
        super().__init__(scale=f_scale)
        self._fn = fn

    def rho(self, s: Any, scale: Any) -> Any:
        """ρ(s)."""
        return scale * scale * self._fn(s / (scale * scale))


def _loss(loss: str | Callable[[Any], Any], f_scale: float) -> losses.Loss | None:
    if loss == "linear":
        return None
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise InputError(
                f"least_squares, loss={loss!r} is unknown; expected linear, {', '.join(LOSSES)}, "
                "or a function rho(z)"
            )
        return LOSSES[loss](f_scale)
    return losses.as_loss(_ScaledFunction(loss, f_scale), "least_squares")


def _as_scipy(loss: losses.Loss, f_scale: float) -> Callable[[FloatArray], FloatArray]:
    """ρ, ρ′ and ρ″ of z = (f / C)², as SciPy asks for them."""
    powers = np.array([-2.0, 0.0, 2.0])
    return lambda z: loss(z * f_scale**2) * (f_scale**powers)[:, None]


def _own_jacobian(
    jac: str | Callable[..., Any],
    loss: str | Callable[[Any], Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> Callable[[FloatArray], FloatArray] | None:
    """The user's Jacobian of x alone, or None."""
    if callable(jac):
        if loss != "linear":
            raise InputError(
                "least_squares: a function jac with a robust loss is not supported; leave jac out, "
                "derivatives are exact"
            )
        return lambda x: np.asarray(jac(x, *args, **dict(kwargs or {})), np.float64)
    if jac not in ("exact", *_DIFFERENCES):
        raise InputError(
            f"least_squares, jac={jac!r} is unknown; leave it out, derivatives are exact"
        )
    return None


def _scale(x_scale: ArrayLike | str, n: int) -> FloatArray | None:
    if isinstance(x_scale, str):
        if x_scale != "jac":
            raise InputError(f"least_squares, x_scale={x_scale!r}: expected 'jac' or numbers")
        return None
    values = finite_array(x_scale, "least_squares, x_scale")
    if values.shape not in ((), (n,)) or not (values > 0.0).all():
        raise InputError(
            f"least_squares, x_scale: got {x_scale!r}, expected positive numbers, () or ({n},)"
        )
    return np.broadcast_to(1.0 / values, (n,)).copy()


def _table(evaluations: int, cost: float, reduction: float, length: float, cosine: float) -> None:
    print(  # noqa: T201 - SciPy's verbose=2
        f"{evaluations:6d}  cost {cost:.8e}  reduction {reduction:10.2e}  step {length:9.2e}  "
        f"gradient {cosine:9.2e}"
    )
