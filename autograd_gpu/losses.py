"""Robust losses: ρ(s) of the squared norm s = ‖r‖² of a residual block; the cost is ½Σρ(s).

Near s = 0 every loss here is s itself, to first order, so small residuals weigh as without one
(``Tolerant`` is the exception: it forgives them). ``delta`` is in units of the residual: where the
loss begins to bend.

Sources: Ceres Solver, ``loss_function.h``, for Huber, SoftL1, Cauchy, Arctan (whose parameter there
is delta²), Tukey and Tolerant; Barron 2019, "A general and adaptive robust loss function", for
GemanMcClure (α = -2, scaled to slope 1) and Welsch. Formulas are written so that they keep their
digits for small s.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .diff import jacobian
from .errors import InputError, ShapeError
from .functions import atan, exp, expm1, log1p, maximum, minimum, sqrt, where
from .ir import Argument, Builder, Graph
from .rewrite import RULES, simplify
from .trace import function_name, trace_shapes

FloatArray = NDArray[np.float64]


class Loss:
    """ρ(s) with parameters that are numbers, or arrays with one number per element.

    Parameters are data of the kernels: other values compile nothing.

    Attributes:
        concave: ρ″ ≤ 0 everywhere, so that the second-order correction of the Jacobian is never
            made and no kernel has to look.
        scale: which parameter δ makes it ρ(s) = δ² φ(s/δ²); None if none does.
        parameters: name -> number ``()`` or numbers ``(count,)``.
        rho: method of (s, *parameters), traced: ρ(s) for s ≥ 0.

    Raises:
        InputError: a parameter that is not positive and finite.
    """

    concave: ClassVar[bool] = True
    scale: ClassVar[str | None] = None
    rho: Callable[..., Any]

    def __init__(self, **parameters: ArrayLike) -> None:
        self.parameters: dict[str, FloatArray] = {}
        for name, value in parameters.items():
            array = np.array(value, np.float64)
            what = f"{type(self).__name__}, {name}"
            if array.ndim > 1:
                raise ShapeError(
                    f"{what}: got shape {array.shape}, expected a number or one per element"
                )
            if not (np.isfinite(array).all() and (array > 0.0).all()):
                raise InputError(f"{what}: got {value!r}, expected positive, finite numbers")
            self.parameters[name] = array

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    def of(self, elements: NDArray[np.integer[Any]]) -> Loss:
        """The loss of some elements; a parameter that all elements share stays as it is."""
        chosen = copy(self)
        chosen.parameters = {
            name: values if values.ndim == 0 else values[elements]
            for name, values in self.parameters.items()
        }
        return chosen

    def graph(self) -> Graph:
        """ρ, ρ′ and ρ″ of (s, *parameters) as a graph of shape (3,)."""
        arguments = [Argument("s", ()), *(Argument(name, ()) for name in self.parameters)]
        value = simplify(trace_shapes(self.rho, arguments, f"loss {self.name}"))
        if len(value.outputs) != 1:
            raise ShapeError(
                f"loss {self.name}: returns {len(value.outputs)} values, expected ρ(s) alone; its "
                "derivatives are found by differentiation"
            )
        first = jacobian(value, [0])
        second = jacobian(first, [0])
        b = Builder(RULES)
        outputs = [b.absorb(g.nodes)[g.outputs[0]] for g in (value, first, second)]
        return simplify(Graph.build(b, outputs, arguments, (3,), value.name))

    def __call__(self, s: ArrayLike) -> FloatArray:
        """ρ, ρ′ and ρ″ at each s: ``(3, *shape of s)``, in float64 with NumPy."""
        values = np.asarray(s, np.float64)
        given = [np.broadcast_to(p, values.shape).ravel() for p in self.parameters.values()]
        rows = self.graph()(values.ravel(), *given)
        return np.moveaxis(rows, -1, 0).reshape(3, *values.shape)

    def __repr__(self) -> str:
        listed = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.name}({listed})"


class _Scaled(Loss):
    """A loss of one scale: ρ(s) = δ² φ(s / δ²)."""

    scale = "delta"

    def __init__(self, delta: ArrayLike = 1.0) -> None:
        super().__init__(delta=delta)


class Huber(_Scaled):
    """s up to δ², 2δ√s - δ² beyond: squares for small residuals, lengths for large ones."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return where(s > delta * delta, delta * (2.0 * sqrt(s) - delta), s)


class SoftL1(_Scaled):
    """2δ²(√(1 + s/δ²) - 1): a smooth Huber."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return 2.0 * s / (1.0 + sqrt(1.0 + s / (delta * delta)))


class Cauchy(_Scaled):
    """δ² log(1 + s/δ²)."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return delta * delta * log1p(s / (delta * delta))


class Arctan(_Scaled):
    """δ² atan(s/δ²): bounded by δ²π/2."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return delta * delta * atan(s / (delta * delta))


class Tukey(_Scaled):
    """δ²/3 (1 - (1 - s/δ²)³) up to δ², constant beyond: the biweight, blind to outliers."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        z = s / (delta * delta)
        return where(z < 1.0, s * (1.0 - z * (1.0 - z / 3.0)), delta * delta / 3.0)


class GemanMcClure(_Scaled):
    """s / (1 + s/δ²): bounded by δ²."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return s / (1.0 + s / (delta * delta))


class Welsch(_Scaled):
    """δ²(1 - exp(-s/δ²)): bounded by δ² (Leclerc's loss)."""

    def rho(self, s: Any, delta: Any) -> Any:
        """ρ(s)."""
        return -delta * delta * expm1(-s / (delta * delta))


class Tolerant(Loss):
    """b log(1 + exp((s - a)/b)) - b log(1 + exp(-a/b)): flat up to about a, then s - a.

    Args:
        a: squared residual that is forgiven.
        b: width of the transition, also in squared units.
    """

    concave = False

    def __init__(self, a: ArrayLike, b: ArrayLike) -> None:
        super().__init__(a=a, b=b)

    def rho(self, s: Any, a: Any, b: Any) -> Any:
        """ρ(s); both arms are the formula, each where its exponential cannot overflow."""
        forgotten = exp(-a / b)
        near = minimum(s, a)
        low = b * log1p(-exp((near - a) / b) * expm1(-near / b) / (1.0 + forgotten))
        beyond = maximum(s, a) - a
        high = beyond + b * (log1p(exp(-beyond / b)) - log1p(forgotten))
        return where(s > a, high, low)


class Traced(Loss):
    """A loss given as a plain function of s, written with ``ag.*`` like a residual."""

    concave = False

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        super().__init__()
        self._fn = fn

    @property
    def name(self) -> str:
        """The function's."""
        return function_name(self._fn)

    def rho(self, s: Any) -> Any:
        """ρ(s)."""
        return self._fn(s)


def as_loss(value: Any, what: str) -> Loss:
    """A ``Loss``, or one made of a function ρ(s).

    Raises:
        InputError: neither, or ρ is not a loss: ρ(0) = 0 ≤ ρ, and rising.
    """
    if isinstance(value, type) or not (isinstance(value, Loss) or callable(value)):
        raise InputError(
            f"{what}, loss: got {value!r}, expected a loss such as ag.losses.Huber(1.0), or a "
            "function rho(s)"
        )
    loss = value if isinstance(value, Loss) else Traced(value)
    _check(loss, what)
    return loss


def _check(loss: Loss, what: str) -> None:
    """Refuse what cannot be a loss: it must be 0 at 0, never negative, and never falling."""
    s = np.concatenate([[0.0], np.logspace(-6, 6, 49)])
    smallest = {name: value.min() for name, value in loss.parameters.items()}
    columns = [np.full(s.shape, value) for value in smallest.values()]
    rho, slope, _ = loss.graph()(s, *columns).T
    finite = np.isfinite(rho) & np.isfinite(slope)
    wrong = ~finite | (rho < -1e-12) | (slope < -1e-12)
    wrong[0] |= abs(rho[0]) > 1e-12
    if wrong.any():
        k = int(np.argmax(wrong))
        raise InputError(
            f"{what}, loss {loss.name}: ρ({s[k]:.3g}) = {rho[k]:.3g} with slope {slope[k]:.3g}; "
            "expected ρ(0) = 0, and finite values that never fall for s ≥ 0 (subtract the value "
            "at 0, it moves no minimum)"
        )
