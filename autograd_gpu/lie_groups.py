"""Rotations and rigid motions: what residual functions see of ``ag.manifolds.SO3`` and the like.

Components are traced scalars, eager Values, or NumPy arrays whose last axis is the vector and
whose leading axes are a batch. Tangent coordinates come in the order of the stored numbers, and
are those of the body: x ⊞ δ = x · exp(δ).

Source: Solà, Deray, Atchuthan 2018, "A micro Lie theory for state estimation in robotics".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import numpy as np

from .errors import TraceError
from .functions import cos, round, sin, sqrt, where
from .quaternion import Quaternion, components_of, gathered
from .rotation_series import angle_over_sine, cotangent_rest, half_angle, sine_rest
from .scalar import user_line


def wrapped_angle(angle: Any) -> Any:
    """The angle in [-π, π] that differs by whole turns; derivative 1."""
    return angle - (2.0 * math.pi) * round(angle * (0.5 / math.pi))


class LieGroup(ABC):
    """An element of a matrix Lie group; ``a @ b`` composes, ``a.act(p)`` moves a point.

    Attributes:
        ambient: stored numbers.
        tangent: degrees of freedom.
    """

    __slots__ = ()
    ambient: ClassVar[int]
    tangent: ClassVar[int]
    # NumPy must not take `array @ element` apart.
    __array_ufunc__ = None

    @classmethod
    @abstractmethod
    def identity(cls) -> Self:
        """The element that moves nothing."""

    @classmethod
    @abstractmethod
    def from_vector(cls, numbers: Any) -> Self:
        """From the stored numbers: a vector, or an array whose last axis they are."""

    @abstractmethod
    def to_vector(self) -> Any:
        """The stored numbers."""

    @classmethod
    @abstractmethod
    def exp(cls, delta: Any) -> Self:
        """The element at tangent coordinates ``delta``; identity at 0."""

    @abstractmethod
    def log(self) -> Any:
        """Tangent coordinates of this element, rotation by at most π."""

    @abstractmethod
    def inverse(self) -> Self:
        """The element that undoes this one."""

    @abstractmethod
    def compose(self, other: Any) -> Self:
        """First ``other``, then this one; also ``self @ other``."""

    @abstractmethod
    def act(self, point: Any) -> Any:
        """A point, moved."""

    def __matmul__(self, other: Any) -> Self:
        if not isinstance(other, type(self)):
            name = type(self).__name__
            raise TraceError(
                f"{user_line()}\n  {name} @ {type(other).__name__}: @ composes two elements of "
                f"{name}; move a point by .act(point), and make an element of plain numbers by "
                f"{name}.from_vector(numbers)"
            )
        return self.compose(other)

    @classmethod
    def plus(cls, x: Any, delta: Any) -> Any:
        """Numbers of x · exp(δ) from those of x."""
        return (cls.from_vector(x) @ cls.exp(delta)).to_vector()

    @classmethod
    def minus(cls, y: Any, x: Any) -> Any:
        """The δ with x · exp(δ) = y, from numbers of x and y."""
        return (cls.from_vector(x).inverse() @ cls.from_vector(y)).log()

    @classmethod
    def nearest(cls, x: Any) -> Any:
        """Numbers of the element next to x, without what rounding did to a unit quaternion."""
        return x

    @classmethod
    def element(cls, x: Any) -> Self:
        """What a residual function sees of stored numbers."""
        return cls.from_vector(x)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_vector()!r})"


class SO2(LieGroup):
    """Rotation of the plane, stored as its angle: radians, counter-clockwise, not wrapped."""

    __slots__ = ("angle",)
    ambient = 1
    tangent = 1

    def __init__(self, angle: Any) -> None:
        self.angle = angle

    @classmethod
    def identity(cls) -> SO2:
        """Angle 0."""
        return cls(0.0)

    @classmethod
    def from_vector(cls, numbers: Any) -> SO2:
        """From an angle, or an array of angles."""
        return cls(numbers)

    def to_vector(self) -> Any:
        """The angle."""
        return self.angle

    @classmethod
    def exp(cls, delta: Any) -> SO2:
        """Rotation by ``delta``."""
        return cls(delta)

    def log(self) -> Any:
        """The angle in [-π, π]."""
        return wrapped_angle(self.angle)

    def inverse(self) -> SO2:
        """Rotation by the opposite angle."""
        return SO2(-self.angle)

    def compose(self, other: Any) -> SO2:
        """Angles add."""
        return SO2(self.angle + other.angle)

    def act(self, point: Any) -> Any:
        """A 2-vector, turned."""
        x, y = components_of(point, 2, "SO2.act")
        c, s = cos(self.angle), sin(self.angle)
        return gathered([c * x - s * y, s * x + c * y])


class SE2(LieGroup):
    """Rigid motion of the plane: (x, y, angle), first turned, then shifted by (x, y).

    Tangent coordinates are (forward, left, angle) in the frame of the body. The angle is not
    wrapped.
    """

    __slots__ = ("angle", "x", "y")
    ambient = 3
    tangent = 3

    def __init__(self, x: Any, y: Any, angle: Any) -> None:
        self.x, self.y, self.angle = x, y, angle

    @classmethod
    def identity(cls) -> SE2:
        """No shift, angle 0."""
        return cls(0.0, 0.0, 0.0)

    @classmethod
    def from_vector(cls, numbers: Any) -> SE2:
        """From (x, y, angle)."""
        return cls(*components_of(numbers, 3, "SE2.from_vector"))

    def to_vector(self) -> Any:
        """(x, y, angle)."""
        return gathered([self.x, self.y, self.angle])

    @property
    def rotation(self) -> SO2:
        """The turn alone."""
        return SO2(self.angle)

    @property
    def translation(self) -> Any:
        """The shift (x, y)."""
        return gathered([self.x, self.y])

    @classmethod
    def exp(cls, delta: Any) -> SE2:
        """Motion along a circular arc: (forward, left, angle)."""
        u, v, angle = components_of(delta, 3, "SE2.exp")
        c, k = half_angle(angle * angle)
        along, across = 2.0 * k * c, 2.0 * angle * (k * k)
        return cls(along * u - across * v, across * u + along * v, angle)

    def log(self) -> Any:
        """(forward, left, angle) with the angle in [-π, π]."""
        angle = wrapped_angle(self.angle)
        squared = angle * angle
        c, k = half_angle(squared)
        along = 1.0 - squared * cotangent_rest(squared, c, 1.0 / k)
        half = 0.5 * angle
        return gathered([along * self.x + half * self.y, along * self.y - half * self.x, angle])

    def inverse(self) -> SE2:
        """Turned back, and shifted back in the turned frame."""
        c, s = cos(self.angle), sin(self.angle)
        return SE2(-(c * self.x + s * self.y), s * self.x - c * self.y, -self.angle)

    def compose(self, other: Any) -> SE2:
        """First ``other``, then this one."""
        x, y = components_of(self.act(gathered([other.x, other.y])), 2, "SE2")
        return SE2(x, y, self.angle + other.angle)

    def act(self, point: Any) -> Any:
        """A 2-vector, turned and shifted."""
        x, y = components_of(self.rotation.act(point), 2, "SE2.act")
        return gathered([x + self.x, y + self.y])


class SO3(LieGroup):
    """Rotation of space, stored as a unit quaternion (w, x, y, z); q and -q are the same.

    Tangent coordinates are axis times angle, radians.
    """

    __slots__ = ("quaternion",)
    ambient = 4
    tangent = 3

    def __init__(self, quaternion: Quaternion) -> None:
        self.quaternion = quaternion

    @classmethod
    def identity(cls) -> SO3:
        """Quaternion (1, 0, 0, 0)."""
        return cls(Quaternion.identity())

    @classmethod
    def from_vector(cls, numbers: Any) -> SO3:
        """From (w, x, y, z)."""
        return cls(Quaternion(*components_of(numbers, 4, "SO3.from_vector")))

    def to_vector(self) -> Any:
        """(w, x, y, z)."""
        return self.quaternion.to_vector()

    def to_matrix(self) -> Any:
        """Rotation matrix, 3 x 3."""
        return self.quaternion.to_matrix()

    @classmethod
    def exp(cls, delta: Any) -> SO3:
        """Rotation about the axis ``delta`` by its length in radians."""
        a, b, c = components_of(delta, 3, "SO3.exp")
        cosine, k = half_angle(a * a + b * b + c * c)
        return cls(Quaternion(cosine, k * a, k * b, k * c))

    def log(self) -> Any:
        """Axis times angle, the angle in [0, π]; which of two axes at π is a matter of rounding."""
        (x, y, z), scale, _ = _axis(self.quaternion)
        return gathered([scale * x, scale * y, scale * z])

    def inverse(self) -> SO3:
        """The conjugate quaternion."""
        return SO3(self.quaternion.conjugate())

    def compose(self, other: Any) -> SO3:
        """First ``other``, then this one."""
        return SO3(self.quaternion * other.quaternion)

    def act(self, point: Any) -> Any:
        """A 3-vector, turned."""
        return self.quaternion.rotate(point)

    @classmethod
    def nearest(cls, x: Any) -> Any:
        """(w, x, y, z) of unit length; no rotation where all are 0."""
        return gathered(_unit_quaternion(components_of(x, 4, "SO3.nearest")))


class SE3(LieGroup):
    """Rigid motion of space: unit quaternion (w, x, y, z), then translation (x, y, z).

    A point is first turned, then shifted. Tangent coordinates are axis times angle, then the
    translation, in the frame of the body.
    """

    __slots__ = ("rotation", "translation")
    ambient = 7
    tangent = 6

    def __init__(self, rotation: SO3, translation: Any) -> None:
        self.rotation, self.translation = rotation, translation

    @classmethod
    def identity(cls) -> SE3:
        """No turn, no shift."""
        return cls(SO3.identity(), np.zeros(3))

    @classmethod
    def from_vector(cls, numbers: Any) -> SE3:
        """From (w, x, y, z) and the translation."""
        items = components_of(numbers, 7, "SE3.from_vector")
        return cls(SO3(Quaternion(*items[:4])), gathered(items[4:]))

    def to_vector(self) -> Any:
        """(w, x, y, z) and the translation."""
        shift = components_of(self.translation, 3, "SE3.translation")
        return gathered([*self.rotation.quaternion, *shift])

    @classmethod
    def exp(cls, delta: Any) -> SE3:
        """Screw motion: rotation vector, then velocity."""
        a, b, c, *velocity = components_of(delta, 6, "SE3.exp")
        squared = a * a + b * b + c * c
        cosine, k = half_angle(squared)
        turn = (a, b, c)
        first, second = 2.0 * k * k, sine_rest(squared, cosine, k)
        shift = _left_jacobian(turn, velocity, first, second)
        return cls(SO3(Quaternion(cosine, k * a, k * b, k * c)), gathered(shift))

    def log(self) -> Any:
        """Rotation vector of angle in [0, π], then velocity."""
        (x, y, z), scale, cosine = _axis(self.rotation.quaternion)
        turn = (scale * x, scale * y, scale * z)
        squared = turn[0] * turn[0] + turn[1] * turn[1] + turn[2] * turn[2]
        rest = cotangent_rest(squared, cosine, scale)
        shift = components_of(self.translation, 3, "SE3.translation")
        return gathered([*turn, *_left_jacobian(turn, shift, -0.5, rest)])

    def inverse(self) -> SE3:
        """Turned back, and shifted back in the turned frame."""
        back = self.rotation.inverse()
        return SE3(back, -back.act(self.translation))

    def compose(self, other: Any) -> SE3:
        """First ``other``, then this one."""
        return SE3(self.rotation @ other.rotation, self.act(other.translation))

    def act(self, point: Any) -> Any:
        """A 3-vector, turned and shifted."""
        return self.rotation.act(point) + self.translation

    @classmethod
    def nearest(cls, x: Any) -> Any:
        """The quaternion of unit length, the translation as it is."""
        items = components_of(x, 7, "SE3.nearest")
        return gathered([*_unit_quaternion(items[:4]), *items[4:]])


def _axis(q: Quaternion) -> tuple[tuple[Any, Any, Any], Any, Any]:
    """sin(θ/2) · axis with w ≥ 0, θ / sin(θ/2), and cos(θ/2) of a unit quaternion."""
    w, x, y, z = q
    side = where(w < 0.0, -1.0, 1.0)
    x, y, z, w = side * x, side * y, side * z, side * w
    return (x, y, z), angle_over_sine(w, x * x + y * y + z * z), w


def _cross(u: Any, v: Any) -> list[Any]:
    return [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]


def _left_jacobian(turn: Any, v: Any, first: Any, second: Any) -> list[Any]:
    """The left Jacobian of SO(3), or its inverse: v + first (ω x v) + second (ω x (ω x v))."""
    once = _cross(turn, v)
    twice = _cross(turn, once)
    return [a + first * b + second * c for a, b, c in zip(v, once, twice, strict=True)]


def _unit_quaternion(items: list[Any]) -> list[Any]:
    w, x, y, z = items
    squared = w * w + x * x + y * y + z * z
    positive = squared > 0.0
    scale = 1.0 / sqrt(where(positive, squared, 1.0))
    return [where(positive, w * scale, 1.0), x * scale, y * scale, z * scale]
