"""Spaces that parameters live on: ``ag.manifolds``.

A manifold says how many numbers a block has (``ambient``), in how many directions it can move
(``tangent``), and where it gets by moving: ``plus(x, delta)``, with plus(x, 0) = x, smooth, and
traced like a residual function. A solver sees tangent coordinates only. Your own manifold is a
class with these three::

    class Circle:
        ambient, tangent = 2, 1

        def plus(self, x, delta):
            c, s = ag.cos(delta), ag.sin(delta)
            return [c * x[0] - s * x[1], s * x[0] + c * x[1]]

and if you like ``nearest(x)``, the point of the manifold next to x, which must leave points of the
manifold as they are: it takes away rounding after each step and is what start values are checked
by; ``minus(y, x)``, the delta with plus(x, delta) = y; and ``element(x)``, what residual functions
get to see instead of a vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, ShapeError
from .functions import exp, log, sqrt, where
from .lie_groups import SE2, SE3, SO2, SO3, LieGroup
from .quaternion import components_of, gathered
from .rotation_series import angle_over_sine, half_angle

__all__ = [
    "SE2",
    "SE3",
    "SO2",
    "SO3",
    "Euclidean",
    "LieGroup",
    "Manifold",
    "Positive",
    "Subspace",
    "UnitSphere",
]


class Manifold(ABC):
    """What the built-in manifolds that are no groups share; your own need not inherit from it.

    Attributes:
        ambient: numbers per block.
        tangent: directions in which a block can move.
    """

    ambient: int
    tangent: int

    @abstractmethod
    def plus(self, x: Any, delta: Any) -> Any:
        """Where x gets by ``delta``; x at 0."""

    @abstractmethod
    def minus(self, y: Any, x: Any) -> Any:
        """The delta with plus(x, delta) = y."""

    def nearest(self, x: Any) -> Any:
        """The point of the manifold next to x."""
        return x

    def outside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which rows of ``(n, ambient)`` no rounding explains; none by default."""
        return np.zeros(len(values), np.bool_)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.ambient})"


def _listed(value: Any, count: int, what: str) -> list[Any]:
    """Components of a vector; a single number where one is expected."""
    return [value] if count == 1 else components_of(value, count, what)


def _joined(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else gathered(items)


class Euclidean(Manifold):
    """Vectors of ``width`` numbers that add: as without a manifold."""

    def __init__(self, width: int = 1) -> None:
        self.ambient = self.tangent = width

    @classmethod
    def of_width(cls, width: int) -> Euclidean:
        """The space of vectors of ``width`` numbers."""
        return cls(width)

    def plus(self, x: Any, delta: Any) -> Any:
        """X + δ."""
        return x + delta

    def minus(self, y: Any, x: Any) -> Any:
        """Y - x."""
        return y - x


class Positive(Manifold):
    """Positive numbers, each by itself: x ⊞ δ = x exp(δ), so steps are relative."""

    def __init__(self, width: int = 1) -> None:
        self.ambient = self.tangent = width

    @classmethod
    def of_width(cls, width: int) -> Positive:
        """Blocks of ``width`` positive numbers."""
        return cls(width)

    def plus(self, x: Any, delta: Any) -> Any:
        """X exp(δ)."""
        return x * exp(delta)

    def minus(self, y: Any, x: Any) -> Any:
        """Log(y / x)."""
        return log(y / x)

    def outside(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Rows with a number that is not positive."""
        return np.any(values <= 0.0, axis=1)


class Subspace(Manifold):
    """Moves along the columns of a matrix only: x ⊞ δ = x + Bδ.

    What is across them stays as it starts. ``Subspace.holding(7, [3, 4])`` holds components.

    Args:
        basis: B, ``(ambient, tangent)``, of full column rank; a vector is one column.

    Raises:
        ShapeError: more columns than rows, or more than two dimensions.
        InputError: columns that depend on each other.
    """

    def __init__(self, basis: ArrayLike) -> None:
        matrix = np.array(basis, np.float64)
        matrix = matrix[:, None] if matrix.ndim == 1 else matrix
        if matrix.ndim != 2 or not 0 < matrix.shape[1] <= len(matrix):
            raise ShapeError(
                f"Subspace: got a basis of shape {np.shape(basis)}, expected (ambient, tangent) "
                "with at least one column and no more columns than rows"
            )
        if not np.isfinite(matrix).all() or np.linalg.matrix_rank(matrix) < matrix.shape[1]:
            raise InputError("Subspace: the columns of the basis must be finite and independent")
        self.basis = matrix
        self.ambient, self.tangent = matrix.shape
        self._left_inverse = np.linalg.pinv(matrix)

    @classmethod
    def holding(cls, width: int, held: ArrayLike) -> Subspace:
        """Vectors of ``width`` numbers of which the components ``held`` do not move.

        Raises:
            InputError: a component that is none, or nothing left that moves.
        """
        components = np.atleast_1d(np.asarray(held, np.int64))
        if ((components < 0) | (components >= width)).any():
            raise InputError(
                f"Subspace.holding: components {components.tolist()}, expected 0 to {width - 1}"
            )
        moving = np.setdiff1d(np.arange(width), components)
        if not len(moving):
            raise InputError("Subspace.holding: holds every component; use problem.freeze")
        return cls(np.eye(width)[:, moving])

    def plus(self, x: Any, delta: Any) -> Any:
        """X + Bδ."""
        steps = _listed(delta, self.tangent, "Subspace.plus, delta")
        moved = _listed(x, self.ambient, "Subspace.plus, x")
        for k, row in enumerate(self.basis.tolist()):
            for factor, step in zip(row, steps, strict=True):
                if factor != 0.0:
                    moved[k] = moved[k] + factor * step
        return _joined(moved)

    def minus(self, y: Any, x: Any) -> Any:
        """The coordinates of y - x, as far as it lies in the subspace."""
        pairs = zip(
            _listed(y, self.ambient, "Subspace.minus, y"),
            _listed(x, self.ambient, "Subspace.minus, x"),
            strict=True,
        )
        difference = [a - b for a, b in pairs]
        rows = self._left_inverse.tolist()
        return _joined([sum(f * d for f, d in zip(row, difference, strict=True)) for row in rows])

    def __repr__(self) -> str:
        return f"Subspace({self.tangent} of {self.ambient})"


class UnitSphere(Manifold):
    """Vectors of unit length; steps go along great circles, in radians.

    The tangent basis is that of the Householder reflection that turns x to the last axis.

    Source: Hertzberg et al. 2013, "Integrating generic sensor fusion algorithms with sound state
    representations through encapsulation of manifolds", §2.6.
    """

    def __init__(self, width: int = 3) -> None:
        if width < 2:
            raise InputError(f"UnitSphere({width}): expected vectors of at least 2 numbers")
        self.ambient, self.tangent = width, width - 1

    @classmethod
    def of_width(cls, width: int) -> UnitSphere:
        """The sphere in the space of vectors of ``width`` numbers."""
        return cls(width)

    def _reflection(self, items: list[Any]) -> tuple[list[Any], Any]:
        """Householder vector v and 2/(v·v), which take x to ∓ the last axis without cancelling."""
        side = where(items[-1] < 0.0, -1.0, 1.0)
        return [*items[:-1], items[-1] + side], 1.0 / (1.0 + side * items[-1])

    def plus(self, x: Any, delta: Any) -> Any:
        """cos‖δ‖ x + sin‖δ‖/‖δ‖ Bδ, B being the tangent basis at x."""
        items = components_of(x, self.ambient, "UnitSphere.plus, x")
        steps = _listed(delta, self.tangent, "UnitSphere.plus, delta")
        # half_angle of (2 ‖δ‖)²
        cosine, half_scale = half_angle(4.0 * sum(d * d for d in steps))
        scale = 2.0 * half_scale
        v, factor = self._reflection(items)
        along = factor * sum(d * a for d, a in zip(steps, v, strict=False))
        moved = [d - along * a for d, a in zip([*steps, 0.0], v, strict=True)]
        return gathered([cosine * a + scale * b for a, b in zip(items, moved, strict=True)])

    def minus(self, y: Any, x: Any) -> Any:
        """Steps from x to y, of length at most π; 0 where y is opposite to x."""
        items = components_of(x, self.ambient, "UnitSphere.minus, x")
        other = components_of(y, self.ambient, "UnitSphere.minus, y")
        cosine = sum(a * b for a, b in zip(items, other, strict=True))
        v, factor = self._reflection(items)
        along = factor * sum(a * b for a, b in zip(other, v, strict=True))
        across = [b - along * a for a, b in zip(v[:-1], other[:-1], strict=True)]
        squared = sum(u * u for u in across)
        # Opposite to x every direction is as good: none is taken.
        scale = 0.5 * angle_over_sine(where(squared > 0.0, cosine, 1.0), squared)
        return _joined([scale * u for u in across])

    def nearest(self, x: Any) -> Any:
        """x / ‖x‖; the last axis where x is 0."""  # noqa: D403
        items = components_of(x, self.ambient, "UnitSphere.nearest")
        squared = sum(a * a for a in items)
        positive = squared > 0.0
        scale = 1.0 / sqrt(where(positive, squared, 1.0))
        scaled = [scale * a for a in items]
        return gathered([*scaled[:-1], where(positive, scaled[-1], 1.0)])
