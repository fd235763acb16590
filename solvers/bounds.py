"""Box bounds on parameters: checked when given, kept by projection, with multipliers in the end.

With bounds l ≤ x ≤ u a step of Levenberg-Marquardt is computed over the unknowns that are free to
take it, an unknown at a bound that the gradient pushes outwards being held, and x + δ is projected
onto the box. Near a minimum where no unknown stands at its bound by chance the held ones are those
of the minimum, and convergence is that of the method without bounds.

Sources: Bertsekas 1982, "Projected Newton methods for optimization problems with simple
constraints", SIAM J. Control Optim. 20(2); Kanzow, Yamashita, Fukushima 2004, "Levenberg-Marquardt
methods with strong local convergence properties for solving nonlinear equations with convex
constraints", J. Comput. Appl. Math. 172.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.runtime.choice import BackendChoice

if TYPE_CHECKING:
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.options import SolverOptions
    from autograd_gpu.solvers.selection import ParameterArray

HELD = 1e20
"""Damping that holds an unknown, times 1 plus its entry of the diagonal: no step, no coupling."""


@dataclass(frozen=True, slots=True)
class ArrayBounds:
    """Bounds of one parameter array, each in the shape of its values; ±inf where there is none."""

    lower: FloatArray
    upper: FloatArray

    def check(self, values: FloatArray, what: str) -> None:
        """Refuse values outside.

        Raises:
            InputError: with the first of them.
        """
        outside = (values < self.lower) | (values > self.upper)
        if outside.any():
            first = tuple(int(k) for k in np.argwhere(outside)[0])
            raise InputError(
                f"{what}: {int(outside.sum())} of {values.size} numbers are outside their bounds, "
                f"the first at {first} is {values[first]}, expected {self.lower[first]} to "
                f"{self.upper[first]}; np.clip(array, lower, upper) brings them inside"
            )


def array_bounds(given: Any, shape: tuple[int, ...], what: str) -> ArrayBounds:
    """Bounds as a user gives them: ``(lower, upper)``, each None or broadcast to the values.

    Raises:
        InputError: no pair, NaN, not numbers, or a lower bound above the upper one.
        ShapeError: a bound that does not broadcast to ``shape``.
    """
    sides = cast("Sequence[Any]", given) if isinstance(given, tuple | list) else ()
    if len(sides) != 2:
        raise InputError(
            f"{what}: got bounds={given!r:.80}, expected a pair (lower, upper); None, -inf and inf "
            "stand for no bound"
        )
    lower = _side(sides[0], -np.inf, shape, f"{what}, lower bound")
    upper = _side(sides[1], np.inf, shape, f"{what}, upper bound")
    crossed = lower > upper
    if crossed.any():
        first = tuple(int(k) for k in np.argwhere(crossed)[0])
        raise InputError(
            f"{what}: the lower bound at {first} is {lower[first]}, above the upper one, "
            f"{upper[first]}; exchange them"
        )
    return ArrayBounds(lower, upper)


def _side(given: Any, missing: float, shape: tuple[int, ...], what: str) -> FloatArray:
    try:
        values = np.array(missing if given is None else given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: got {given!r:.80}, expected numbers") from error
    if np.isnan(values).any() or (values == -missing).any():
        raise InputError(f"{what}: got NaN or {-missing}, which no number meets")
    try:
        return np.broadcast_to(values, shape).copy()
    except ValueError as error:
        raise ShapeError(
            f"{what}: got shape {values.shape}, expected what broadcasts to {shape}"
        ) from error


@dataclass(frozen=True, slots=True)
class Box:
    """The bounds among the unknowns of a problem.

    Attributes:
        columns: unknowns with a bound on at least one side.
        positions: of their numbers among all parameters.
        lower, upper: one a column of ``columns``; ±inf where there is none.
    """

    columns: IndexArray
    positions: IndexArray
    lower: FloatArray
    upper: FloatArray

    def project(self, parameters: FloatArray, start: FloatArray, step: FloatArray) -> None:
        """Put ``start`` + ``step`` into the box, in place, exact at the bounds.

        Args:
            parameters: all of them, flat; changed.
            start: all of them before the step.
            step: one number an unknown.
        """
        moved = start[self.positions] + step[self.columns]
        parameters[self.positions] = np.clip(moved, self.lower, self.upper)

    def shortened(self, parameters: FloatArray, step: FloatArray) -> FloatArray:
        """The part of a step that stays inside."""
        here = parameters[self.positions]
        inside = step.copy()
        inside[self.columns] = np.clip(step[self.columns], self.lower - here, self.upper - here)
        return inside

    def held(self, parameters: FloatArray, gradient: FloatArray) -> IndexArray:
        """Unknowns at a bound that the cost would leave the box by."""
        return self.columns[self._pressed(parameters, gradient)]

    def _pressed(self, parameters: FloatArray, gradient: FloatArray) -> NDArray[np.bool_]:
        here, slope = parameters[self.positions], gradient[self.columns]
        at_lower = (here <= self.lower) & (slope >= 0.0)
        at_upper = (here >= self.upper) & (slope <= 0.0)
        return at_lower | at_upper

    def projected_gradient(self, parameters: FloatArray, gradient: FloatArray) -> FloatArray:
        """X - P(x - g): the gradient, less what points out of the box; zero at a minimum."""
        return -self.shortened(parameters, -gradient)

    def multipliers(self, parameters: FloatArray, gradient: FloatArray) -> FloatArray:
        """The gradient where a bound holds, one a column of ``columns``; 0 elsewhere."""
        return np.where(self._pressed(parameters, gradient), gradient[self.columns], 0.0)


def make_box(
    arrays: Sequence[ParameterArray],
    bounds: Mapping[str, ArrayBounds],
    columns: Mapping[str, IndexArray],
    base: Mapping[str, int],
) -> Box | None:
    """The box of a problem; None if nothing that varies has a bound.

    Args:
        arrays: all parameter arrays.
        bounds: by name of the array, where there are any.
        columns: by name, the column of each number, ``(blocks, width)``, -1 where frozen.
        base: by name, the first position among all parameters.
    """
    parts: list[tuple[IndexArray, IndexArray, FloatArray, FloatArray]] = []
    for array in arrays:
        if array.name not in bounds:
            continue
        lower, upper = bounds[array.name].lower.ravel(), bounds[array.name].upper.ravel()
        own = columns[array.name].ravel()
        chosen = np.flatnonzero((own >= 0) & (np.isfinite(lower) | np.isfinite(upper)))
        parts.append((own[chosen], base[array.name] + chosen, lower[chosen], upper[chosen]))
    if not parts or not any(len(p[0]) for p in parts):
        return None
    found, positions, lowers, uppers = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Box(found, positions, lowers, uppers)


def check_bounds(analysis: Analysis, options: SolverOptions) -> None:
    """Refuse a method that does not keep bounds.

    Raises:
        InputError: any but Levenberg-Marquardt, if an unknown has a bound.
    """
    if analysis.box is not None and options.method != "levenberg-marquardt":
        names = ", ".join(map(repr, analysis.bounds))
        raise InputError(
            f"method={options.method!r} keeps no bounds, and parameters {names} have some; "
            "expected 'levenberg-marquardt'"
        )


def _gradient(analysis: Analysis, choice: BackendChoice, parameters: FloatArray) -> FloatArray:
    """Jᵀr at a point, one number an unknown."""
    residuals, values = analysis.session(choice).residual_jacobian(parameters)
    normal = analysis.normal_equations
    normal.assemble(values.astype(np.float64), residuals.astype(np.float64))
    return normal.gradient.copy()


def bound_multipliers(
    analysis: Analysis, choice: BackendChoice, parameters: FloatArray
) -> dict[str, FloatArray]:
    """By name of each parameter array with bounds, one multiplier a number: ``(blocks, width)``.

    A multiplier is the rate at which the least cost grows with its bound: ≥ 0 at a lower one, ≤ 0
    at an upper one, 0 where none holds.
    """
    box = analysis.box
    flat = np.zeros(analysis.parameter_count)
    if box is not None:
        gradient = _gradient(analysis, choice, parameters)
        flat[box.positions] = box.multipliers(parameters, gradient)
    found: dict[str, FloatArray] = {}
    for array in analysis.arrays:
        if array.name in analysis.bounds:
            base = analysis.base[array.name]
            size = array.blocks * array.width
            found[array.name] = flat[base : base + size].reshape(array.blocks, array.width)
    return found
