"""The methods by name: what their options are, and which engine runs them on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from autograd_gpu.errors import InputError
from autograd_gpu.solvers.dogleg import Dogleg, DoglegOptions
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.first_order import (
    Adam,
    AdamOptions,
    AdamWOptions,
    GradientDescentOptions,
    gradient_descent,
)
from autograd_gpu.solvers.gauss_newton import GaussNewton, GaussNewtonOptions
from autograd_gpu.solvers.gradient_engine import GradientRun
from autograd_gpu.solvers.host_engine import HostRun
from autograd_gpu.solvers.lbfgs import LBFGS, LBFGSOptions
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions
from autograd_gpu.solvers.newton import Newton, NewtonOptions
from autograd_gpu.solvers.options import SolverOptions


@dataclass(frozen=True, slots=True)
class Method:
    """A method that steps by the normal equations.

    Attributes:
        options: class of its options; the defaults are those of the class.
        engine: makes the engine on the host.
    """

    options: type[SolverOptions]
    engine: Callable[[HostRun, Any], Engine]


@dataclass(frozen=True, slots=True)
class GradientMethod:
    """A method that steps by gradients alone; attributes as for ``Method``."""

    options: type[SolverOptions]
    engine: Callable[[GradientRun, Any], Engine]


_ALL = (
    Method(LevenbergMarquardtOptions, LevenbergMarquardt),
    Method(GaussNewtonOptions, GaussNewton),
    Method(DoglegOptions, Dogleg),
    Method(NewtonOptions, Newton),
    GradientMethod(LBFGSOptions, LBFGS),
    GradientMethod(AdamOptions, Adam),
    GradientMethod(AdamWOptions, Adam),
    GradientMethod(GradientDescentOptions, gradient_descent),
)

METHODS: Mapping[str, Method | GradientMethod] = MappingProxyType(
    {m.options.method: m for m in _ALL}
)


def choose_method(
    method: str,
    energies: Sequence[str],
    external: Sequence[str],
    linear_solver: str,
    precision: str,
) -> tuple[str, str]:
    """The method for a problem, and why.

    Args:
        method: a name, or ``auto``.
        energies: names of the problem's energies.
        external: names of its external residuals.
        linear_solver: as requested.
        precision: as requested.

    Raises:
        InputError: the problem has energies, and the method, the linear solver or the precision
            knows only residuals; or external residuals, and those know only kernels.
    """
    _check_external(method, external, precision)
    listed = ", ".join(map(repr, energies))
    if method == "auto":
        if not energies:
            return LevenbergMarquardtOptions.method, "the cost is a sum of squares"
        method, why = NewtonOptions.method, f"the problem has energies ({listed})"
    else:
        why = "as requested"
    if not energies:
        return method, why
    able = [m.options.method for m in _ALL if m.options is NewtonOptions or _by_gradients(m)]
    if method in METHODS and method not in able:
        raise InputError(
            f"method={method!r} minimises sums of squares, and the problem has energies "
            f"({listed}); expected one of {', '.join(able)}"
        )
    if precision == "mixed":
        raise InputError(
            f"precision='mixed' is for Jacobians of residuals, and the problem has energies "
            f"({listed}); expected 'float32' or 'float64'"
        )
    if linear_solver == "dense-qr":
        raise InputError(
            f"linear_solver='dense-qr' factorises J, and energies ({listed}) have none; expected "
            "'dense-cholesky' or 'auto'"
        )
    return method, why


def _check_external(method: str, external: Sequence[str], precision: str) -> None:
    if not external:
        return
    listed = ", ".join(map(repr, external))
    if method in METHODS and _by_gradients(METHODS[method]):
        able = ", ".join(m.options.method for m in _ALL if not _by_gradients(m))
        raise InputError(
            f"method={method!r} takes gradients from kernels, and the problem has external "
            f"residuals ({listed}); expected one of {able}"
        )
    if precision == "mixed":
        raise InputError(
            f"precision='mixed': external residuals ({listed}) have one precision; expected "
            "'float32' or 'float64'"
        )


def _by_gradients(method: Method | GradientMethod) -> bool:
    return isinstance(method, GradientMethod)


def check_method(
    method: str,
    options: SolverOptions | None,
    linear_solver: str = "auto",
    precision: str = "auto",
) -> SolverOptions:
    """The options to use.

    Raises:
        InputError: an unknown method, options of another one, or a linear solver or a precision of
            Jacobians for a method that has no use for it.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown; expected one of {', '.join(METHODS)}")
    expected = METHODS[method].options
    if linear_solver != "auto" and isinstance(METHODS[method], GradientMethod):
        raise InputError(
            f"linear_solver={linear_solver!r}: method={method!r} solves no linear systems; "
            "expected 'auto'"
        )
    if precision == "mixed" and isinstance(METHODS[method], GradientMethod):
        raise InputError(
            f"precision='mixed' means Jacobians in float32, and method={method!r} forms none; "
            "expected 'float32' or 'float64'"
        )
    if options is None:
        return expected()
    # Not a subclass: Adam's options are AdamW's but for one.
    if type(options) is not expected:
        raise InputError(
            f"options: got {type(options).__name__}, expected ag.{expected.__name__} for "
            f"method={method!r}"
        )
    return options
