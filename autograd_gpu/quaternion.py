"""Quaternions of traced scalars, eager Values or NumPy arrays: scalar first, w + xi + yj + zk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .errors import ShapeError
from .functions import cos, dot, normalize, sin, sqrt, where
from .scalar import user_line
from .vector import Matrix, as_traced, is_traced, vector


def components_of(values: Any, count: int, what: str) -> list[Any]:
    """Components of a vector; of an array those along the last axis.

    Raises:
        ShapeError: not ``count`` of them; ``what`` says of what.
    """
    if is_traced(values):
        items = list(as_traced(values))
    else:
        array = np.asarray(values, np.float64)
        items = [array[..., k] for k in range(array.shape[-1])] if array.ndim else []
    if len(items) != count:
        raise ShapeError(f"{user_line()}\n  {what}: got {len(items)} components, expected {count}")
    return items


def gathered(items: Sequence[Any]) -> Any:
    """A vector of components; of arrays (a batch) an array with them along the last axis."""
    if any(is_traced(v) for v in items):
        return vector(items)
    return np.stack(np.broadcast_arrays(*items), axis=-1)


class Quaternion:
    """A quaternion w + xi + yj + zk; a unit one is a rotation, and so is its negative.

    Args:
        w, x, y, z: scalars, numbers, or arrays of one shape (a batch).

    ``q * p`` is the product (of rotations: first p, then q), ``q * s`` scales. Iterating gives the
    components.
    """

    __slots__ = ("w", "x", "y", "z")

    def __init__(self, w: Any, x: Any, y: Any, z: Any) -> None:
        self.w, self.x, self.y, self.z = w, x, y, z

    @classmethod
    def identity(cls) -> Quaternion:
        """The rotation that turns nothing."""
        return cls(1.0, 0.0, 0.0, 0.0)

    @classmethod
    def from_vector(cls, components: Any) -> Quaternion:
        """From (w, x, y, z): a vector of 4, or an array ``(..., 4)``.

        Raises:
            ShapeError: another number of components.
        """
        return cls(*components_of(components, 4, "Quaternion.from_vector"))

    @classmethod
    def from_axis_angle(cls, axis: Any, angle: Any) -> Quaternion:
        """Rotation by ``angle`` (radians, right-handed) about ``axis``, of any length.

        An axis of length 0 gives cos(angle/2) alone, which is no rotation unless the angle is 0.

        Raises:
            ShapeError: the axis has not 3 components.
        """
        components_of(axis, 3, "Quaternion.from_axis_angle, axis")
        unit = components_of(normalize(axis), 3, "axis")
        half = angle * 0.5
        return cls(cos(half), *(u * sin(half) for u in unit))

    def to_vector(self) -> Any:
        """Components (w, x, y, z) as a vector or an array ``(..., 4)``."""
        return gathered(list(self))

    def __iter__(self) -> Iterator[Any]:
        return iter((self.w, self.x, self.y, self.z))

    def __mul__(self, other: Any) -> Quaternion:
        if not isinstance(other, Quaternion):
            return Quaternion(*(c * other for c in self))
        a, b, c, d = self
        e, f, g, h = other
        return Quaternion(
            a * e - b * f - c * g - d * h,
            a * f + b * e + c * h - d * g,
            a * g - b * h + c * e + d * f,
            a * h + b * g - c * f + d * e,
        )

    def __rmul__(self, other: Any) -> Quaternion:
        return self * other

    def __add__(self, other: Quaternion) -> Quaternion:
        return Quaternion(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: Quaternion) -> Quaternion:
        return Quaternion(*(a - b for a, b in zip(self, other, strict=True)))

    def __neg__(self) -> Quaternion:
        return Quaternion(*(-c for c in self))

    def __repr__(self) -> str:
        return f"Quaternion({self.w!r}, {self.x!r}, {self.y!r}, {self.z!r})"

    def conjugate(self) -> Quaternion:
        """W - xi - yj - zk; the inverse rotation of a unit quaternion."""
        return Quaternion(self.w, -self.x, -self.y, -self.z)

    def squared_norm(self) -> Any:
        """w² + x² + y² + z²."""
        return self.w * self.w + self.x * self.x + self.y * self.y + self.z * self.z

    def norm(self) -> Any:
        """Length; gradient 0 at 0."""
        return sqrt(self.squared_norm())

    def inverse(self) -> Quaternion:
        """The quaternion whose product with this one is 1; a pole at 0."""
        scale = 1.0 / self.squared_norm()
        return Quaternion(*(c * scale for c in self.conjugate()))

    def normalized(self) -> Quaternion:
        """The unit quaternion of the same direction; 0 with derivative 0 at 0."""
        squared = self.squared_norm()
        positive = squared > 0.0
        # Both arms of a where are evaluated: keep the untaken division finite.
        scale = where(positive, 1.0 / sqrt(where(positive, squared, 1.0)), 0.0)
        return Quaternion(*(c * scale for c in self))

    def rotate(self, v: Any) -> Any:
        """A 3-vector (or ``(..., 3)``) turned by this unit quaternion.

        v + 2u x (u x v + w v) with u = (x, y, z): 30 operations instead of two products. A
        quaternion that is not of unit length gives no rotation; normalise it first.

        Raises:
            ShapeError: v has not 3 components.
        """
        a, b, c = components_of(v, 3, "Quaternion.rotate")
        w, x, y, z = self
        t0 = y * c - z * b + w * a
        t1 = z * a - x * c + w * b
        t2 = x * b - y * a + w * c
        return gathered(
            [
                a + 2.0 * (y * t2 - z * t1),
                b + 2.0 * (z * t0 - x * t2),
                c + 2.0 * (x * t1 - y * t0),
            ]
        )

    def to_matrix(self) -> Any:
        """Rotation matrix of this unit quaternion: a ``Mat3``, or an array ``(..., 3, 3)``."""
        w, x, y, z = self
        rows = [
            [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
            [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
            [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
        ]
        if is_traced([w, x, y, z]):
            return Matrix(rows)
        return np.stack([gathered(row) for row in rows], axis=-2)

    def dot(self, other: Quaternion) -> Any:
        """Inner product of the components; the cosine of half the angle between unit rotations."""
        return dot(self.to_vector(), other.to_vector())
