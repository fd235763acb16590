"""What the options of every method share: limits, tolerances, and how values are checked."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any, ClassVar, Self

from autograd_gpu.errors import InputError

Check = tuple[type, Callable[[Any], bool], str]
"""Kind of number, whether a value fits, and what is expected in words."""


def at_least(least: float) -> Callable[[Any], bool]:
    """Whether a value is ``least`` or more; False for NaN."""
    return lambda value: value >= least


NOT_NEGATIVE: Check = (Real, at_least(0.0), "a number of at least 0")
SHARE: Check = (Real, lambda v: 0.0 <= v < 1.0, "a number from 0 to below 1")
POSITIVE: Check = (Real, lambda v: 0.0 < v < float("inf"), "a finite number above 0")
COUNT: Check = (Integral, at_least(1), "a whole number of at least 1")

BETWEEN: Check = (Real, lambda v: 0.0 < v < 1.0, "a number between 0 and 1")
LINE_SEARCH_CHECKS: Mapping[str, Check] = MappingProxyType(
    {"sufficient_decrease": BETWEEN, "curvature": BETWEEN, "max_line_search_steps": COUNT}
)


def check_wolfe(sufficient_decrease: float, curvature: float) -> None:
    """The Wolfe conditions can be met together only if c₁ < c₂.

    Raises:
        InputError: they cannot.
    """
    if not sufficient_decrease < curvature:
        raise InputError(
            f"option sufficient_decrease={sufficient_decrease!r}: expected less than "
            f"curvature={curvature!r}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Graduation:
    """How losses bend from stage to stage.

    A loss of scale δ is solved with δ√μ, for μ falling to 1; see ``graduation.py``.

    Attributes:
        factor: by which μ falls between two stages.
        iterations: steps in a stage; the last one, with the losses as given, has no such limit.
        start: μ of the first stage; None for 2 max s/δ² over all residuals with a loss.

    Raises:
        InputError: a factor or a start that is not above 1, or no iterations.
    """

    factor: float = 1.4
    iterations: int = 3
    start: float | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "start"):
            value = getattr(self, name)
            if value is not None and not 1.0 < value < float("inf"):
                raise InputError(f"Graduation, {name}={value!r}: expected a finite number above 1")
        count = self.iterations
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"Graduation, iterations={count!r}: expected a whole number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentedLagrangian:
    """How constraints are met; see ``augmented_lagrangian.py``.

    Attributes:
        tolerance: largest violation, in units of the constraint.
        initial_penalty: μ of the first stage; None to weigh cost and violation alike.
        growth: by which μ grows ...
        decrease: ... where the violation did not fall to this part of the stage before.

    Raises:
        InputError: a value outside its range; names the option.
    """

    tolerance: float = 1e-8
    initial_penalty: float | None = None
    growth: float = 10.0
    decrease: float = 0.25

    def __post_init__(self) -> None:
        for name, least, most in (
            ("tolerance", 0.0, math.inf), ("initial_penalty", 0.0, math.inf),
            ("growth", 1.0, math.inf), ("decrease", 0.0, 1.0),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least < value < most:
                raise InputError(
                    f"AugmentedLagrangian, {name}={value!r}: expected a number between {least} "
                    f"and {most}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverOptions:
    """When any method ends.

    Attributes:
        max_iterations: steps tried, rejected ones included.
        max_seconds: wall-clock limit, looked at between iterations; None for none.
        function_tolerance: stop when an accepted step changes the cost by less, relatively.
        gradient_tolerance: stop when the largest entry of the gradient is not above.
        parameter_tolerance: stop when ‖δ‖ ≤ tolerance · (‖x‖ + tolerance).
        graduation: robust losses bend stage by stage; None for the losses as they are.
        augmented_lagrangian: how constraints are met, if the problem has any.

    Raises:
        InputError: a value outside its range; names the option.
    """

    max_iterations: int = 100
    max_seconds: float | None = None
    function_tolerance: float = 1e-8
    gradient_tolerance: float = 1e-10
    parameter_tolerance: float = 1e-8
    graduation: Graduation | None = None
    augmented_lagrangian: AugmentedLagrangian = AugmentedLagrangian()

    method: ClassVar[str] = ""
    checks: ClassVar[Mapping[str, Check]] = MappingProxyType(
        {
            "max_iterations": (Integral, at_least(0), "an integer of at least 0"),
            "max_seconds": (Real, at_least(0), "a number of at least 0, or None"),
            "function_tolerance": NOT_NEGATIVE,
            "gradient_tolerance": NOT_NEGATIVE,
            "parameter_tolerance": NOT_NEGATIVE,
            "graduation": (Graduation, lambda _: True, "an ag.Graduation, or None"),
            "augmented_lagrangian": (
                AugmentedLagrangian,
                lambda _: True,
                "an ag.AugmentedLagrangian",
            ),
        }
    )
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    optional: ClassVar[tuple[str, ...]] = ("max_seconds", "graduation")

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse options that there are not, with those that there are."""
        names = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in names]
        if unknown:
            near = difflib.get_close_matches(unknown[0], names, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"{cls.__name__} has no option {unknown[0]!r}; {hint}expected {', '.join(names)}"
            )
        return object.__new__(cls)

    def __post_init__(self) -> None:
        for name, known in self.choices.items():
            value = getattr(self, name)
            if value not in known:
                raise InputError(f"{name}={value!r} is unknown; expected one of {', '.join(known)}")
        for name, (kind, fits, expected) in self.checks.items():
            value = getattr(self, name)
            if value is None and name in self.optional:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not fits(value):
                raise InputError(f"option {name}={value!r}: expected {expected}")
        self.further_checks()

    def window(self) -> int:
        """Steps over which the change of the cost is judged."""
        return 1

    def further_checks(self) -> None:
        """What a single value does not show; nothing by default."""
