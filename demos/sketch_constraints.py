"""Constraints of plane geometry as residuals: points are 2-vectors, a circle is centre and radius.

Residuals are lengths (or radians), 0 where the constraint holds. Lines are given by two points,
and degenerate to a zero residual where those coincide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import autograd_gpu as ag

Scalar: TypeAlias = Any
Vec2: TypeAlias = Any


def cross(u: Vec2, v: Vec2) -> Scalar:
    """Area of the parallelogram of two 2-vectors, signed."""
    return u[0] * v[1] - u[1] * v[0]


def offset(p: Vec2, a: Vec2, b: Vec2) -> Scalar:
    """Signed distance of p from the line ab, positive to its left."""
    return cross(ag.normalize(b - a), p - a)


def fixed(p: Vec2, target: Vec2) -> Vec2:
    """A point stays at a place."""
    return p - target


def coincident(p: Vec2, q: Vec2) -> Vec2:
    """Two points are one."""
    return p - q


def distance(p: Vec2, q: Vec2, length: Scalar) -> Scalar:
    """Two points have a distance."""
    return ag.norm(q - p) - length


def distance_on(p: Vec2, a: Vec2, b: Vec2, length: Scalar) -> Scalar:
    """A point lies that far to the left of the line ab."""
    return offset(p, a, b) - length


def on_line(p: Vec2, a: Vec2, b: Vec2) -> Scalar:
    """A point lies on the line ab."""
    return offset(p, a, b)


def horizontal(p: Vec2, q: Vec2) -> Scalar:
    """A segment runs along x."""
    return q[1] - p[1]


def vertical(p: Vec2, q: Vec2) -> Scalar:
    """A segment runs along y."""
    return q[0] - p[0]


def parallel(a: Vec2, b: Vec2, c: Vec2, d: Vec2) -> Scalar:
    """Two segments have one direction, or opposite ones: the sine of their angle."""
    return cross(ag.normalize(b - a), ag.normalize(d - c))


def perpendicular(a: Vec2, b: Vec2, c: Vec2, d: Vec2) -> Scalar:
    """Two segments meet at right angles: the cosine of their angle."""
    return ag.dot(ag.normalize(b - a), ag.normalize(d - c))


def angle(a: Vec2, b: Vec2, c: Vec2, d: Vec2, degrees: Scalar) -> Scalar:
    """The direction of cd turns from that of ab by an angle, clockwise, in (−180°, 180°)."""
    u, v = b - a, d - c
    return ag.atan2(cross(v, u), ag.dot(u, v)) - degrees * (math.pi / 180.0)


def equal(a: Vec2, b: Vec2, c: Vec2, d: Vec2) -> Scalar:
    """Two segments have one length."""
    return ag.norm(b - a) - ag.norm(d - c)


def on_circle(p: Vec2, centre: Vec2, radius: Scalar) -> Scalar:
    """A point lies on a circle."""
    return ag.norm(p - centre) - radius


def tangent(a: Vec2, b: Vec2, centre: Vec2, radius: Scalar) -> Scalar:
    """The line ab touches a circle, on either side."""
    return ag.abs(offset(centre, a, b)) - radius


def radius_of(centre: Vec2, radius: Scalar, length: Scalar) -> Scalar:
    """A circle has a radius."""
    return radius - length + 0.0 * centre[0]


def equal_radii(centre: Vec2, radius: Scalar, other: Vec2, second: Scalar) -> Scalar:
    """Two circles have one radius."""
    return radius - second + 0.0 * (centre[0] + other[0])


def symmetric(p: Vec2, q: Vec2, a: Vec2, b: Vec2) -> tuple[Scalar, Scalar]:
    """Two points are mirror images at the line ab."""
    axis = ag.normalize(b - a)
    return cross(axis, 0.5 * (p + q) - a), ag.dot(axis, q - p)


CONSTRAINTS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "fixed": (fixed, ("point", "place")),
    "coincident": (coincident, ("point", "point")),
    "distance": (distance, ("point", "point", "length")),
    "distance on": (distance_on, ("point", "point", "point", "length")),
    "on line": (on_line, ("point", "point", "point")),
    "horizontal": (horizontal, ("point", "point")),
    "vertical": (vertical, ("point", "point")),
    "parallel": (parallel, ("point", "point", "point", "point")),
    "perpendicular": (perpendicular, ("point", "point", "point", "point")),
    "angle": (angle, ("point", "point", "point", "point", "degrees")),
    "equal": (equal, ("point", "point", "point", "point")),
    "on circle": (on_circle, ("point", "circle")),
    "tangent": (tangent, ("point", "point", "circle")),
    "radius": (radius_of, ("circle", "length")),
    "equal radii": (equal_radii, ("circle", "circle")),
    "symmetric": (symmetric, ("point", "point", "point", "point")),
}
"""Kind: residual function, and what its arguments are; a circle stands for centre and radius."""
