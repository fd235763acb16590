"""The methods by name: what their options are, and which engine runs them on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from autograd_gpu.errors import InputError
from autograd_gpu.solvers.dogleg import Dogleg, DoglegOptions
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.gauss_newton import GaussNewton, GaussNewtonOptions
from autograd_gpu.solvers.host_engine import HostRun
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardt, LevenbergMarquardtOptions
from autograd_gpu.solvers.options import SolverOptions


@dataclass(frozen=True, slots=True)
class Method:
    """One way to minimise.

    Attributes:
        options: class of its options; the defaults are those of the class.
        engine: makes the engine on the host.
    """

    options: type[SolverOptions]
    engine: Callable[[HostRun, Any], Engine]


_ALL = (
    Method(LevenbergMarquardtOptions, LevenbergMarquardt),
    Method(GaussNewtonOptions, GaussNewton),
    Method(DoglegOptions, Dogleg),
)

METHODS: Mapping[str, Method] = MappingProxyType({m.options.method: m for m in _ALL})
LATER = ("l-bfgs", "adam", "adamw", "gradient-descent")


def check_method(method: str, options: SolverOptions | None) -> SolverOptions:
    """The options to use.

    Raises:
        InputError: an unknown method, or options of another one.
        NotImplementedError: a method that is not there yet.
    """
    if method in LATER:
        raise NotImplementedError(f"method={method!r} is not available yet")
    if method not in METHODS:
        raise InputError(f"method={method!r} is unknown; expected one of {', '.join(METHODS)}")
    expected = METHODS[method].options
    if options is None:
        return expected()
    # Not a subclass: Adam's options are AdamW's but for one.
    if type(options) is not expected:
        raise InputError(
            f"options: got {type(options).__name__}, expected ag.{expected.__name__} for "
            f"method={method!r}"
        )
    return options
