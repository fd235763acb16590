"""Geometry of points, triangles and symmetric matrices: ``ag.geometry``.

Everything works on traced vectors, on eager Values and on NumPy arrays, where the last axis is the
vector and leading axes are a batch. Points are 3-vectors unless said otherwise; angles are in
radians, right-handed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from .errors import ShapeError
from .functions import atan2, cos, cross, dot, maximum, minimum, norm, normalize, sin, sqrt, where
from .vector import Matrix, as_traced, is_traced, vector


def _point(value: Any) -> Any:
    """A vector of scalars, or an array."""
    return as_traced(value) if is_traced(value) else np.asarray(value, np.float64)


def _scaled(v: Any, factor: Any) -> Any:
    """Vector times scalar, also for batches of both."""
    return v * factor if is_traced(v) or is_traced(factor) else v * np.asarray(factor)[..., None]


def _points(points: Any, least: int, what: str) -> list[Any]:
    given = [_point(p) for p in points]
    if len(given) < least:
        raise ShapeError(f"{what}: got {len(given)} points, expected at least {least}")
    return given


def triangle_normal(a: Any, b: Any, c: Any) -> Any:
    """Unit normal of triangle (a, b, c), counter-clockwise seen from outside.

    0 with derivative 0 where the area is zero.
    """
    a, b, c = _point(a), _point(b), _point(c)
    return normalize(cross(b - a, c - a))


def triangle_area(a: Any, b: Any, c: Any) -> Any:
    """Area ½‖(b - a) x (c - a)‖ of a triangle, in units of length squared.

    Not differentiable where the area is zero; the gradient is 0 there.
    """
    a, b, c = _point(a), _point(b), _point(c)
    return 0.5 * norm(cross(b - a, c - a))


def interior_angle(a: Any, b: Any, c: Any) -> Any:
    """Angle at a between ab and ac, in [0, π].

    0 where an edge has no length. Not differentiable where the points are collinear; the part of
    the gradient that turns the angle is 0 there. Accurate for every angle, unlike the arc cosine.
    """
    a = _point(a)
    u, v = _point(b) - a, _point(c) - a
    return atan2(norm(cross(u, v)), dot(u, v))


def angle_defect(center: Any, ring: Sequence[Any], closed: bool = True) -> Any:
    """Angle defect at a vertex: 2π less the angles between successive neighbours.

    Integrated Gaussian curvature of a mesh at an inner vertex.

    Args:
        center: the vertex.
        ring: its neighbours in order, at least 3 (2 if not ``closed``).
        closed: whether the last neighbour is joined to the first; at a boundary vertex it is not,
            and the angles are taken from π.

    Raises:
        ShapeError: too few neighbours.
    """
    points = _points(ring, 3 if closed else 2, "angle_defect, ring")
    ends = [*points[1:], points[0]] if closed else points[1:]
    angles = [interior_angle(center, p, q) for p, q in zip(points, ends, strict=False)]
    return (2.0 * math.pi if closed else math.pi) - reduce(lambda s, t: s + t, angles)


def dihedral_angle(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Signed angle across edge ab between triangles (a, b, c) and (b, a, d), in (-π, π].

    0 where the triangles are coplanar, positive where they are convex (seen from the side that
    their normals point to). Jumps from π to -π where they fold onto each other. Not differentiable
    where a triangle has zero area; returns 0 with zero gradient there. Fourth powers of length
    appear: in float32, choose a unit in which edges are longer than 1e-4.

    Source: Bergou et al. 2006, A quadratic bending model for inextensible surfaces, §3; sign
    such that convex is positive.
    """
    a, b, c, d = _point(a), _point(b), _point(c), _point(d)
    e = b - a
    n1 = cross(e, c - a)
    n2 = cross(d - a, e)
    squared_length = dot(e, e)
    # Keep the quotient finite for a collapsed edge; atan2 is 0 with zero gradient at the origin.
    length = sqrt(where(squared_length > 0.0, squared_length, 1.0))
    return atan2(dot(cross(n1, n2), e) / length, dot(n1, n2))


def centroid(points: Sequence[Any]) -> Any:
    """Mean of points of any dimension.

    Raises:
        ShapeError: no points.
    """
    given = _points(points, 1, "centroid")
    return reduce(lambda p, q: p + q, given) * (1.0 / len(given))


def vertex_normal(center: Any, ring: Sequence[Any], closed: bool = True) -> Any:
    """Unit normal at a vertex: area vectors of the triangles around it, summed.

    Arguments as for ``angle_defect``. 0 with derivative 0 where the sum vanishes.
    """
    center = _point(center)
    points = [p - center for p in _points(ring, 3 if closed else 2, "vertex_normal, ring")]
    ends = [*points[1:], points[0]] if closed else points[1:]
    areas = [cross(p, q) for p, q in zip(points, ends, strict=False)]
    return normalize(reduce(lambda s, t: s + t, areas))


def plane_distance(point: Any, origin: Any, normal: Any) -> Any:
    """Signed distance from the plane through ``origin``, positive on the side of ``normal``.

    ``normal`` has any length; where it is 0, so is the distance.
    """
    return dot(_point(point) - _point(origin), normalize(_point(normal)))


def plane_projection(point: Any, origin: Any, normal: Any) -> Any:
    """Nearest point of the plane through ``origin`` with the given normal, of any length."""
    point, unit = _point(point), normalize(_point(normal))
    return point - _scaled(unit, dot(point - _point(origin), unit))


def bounding_box(points: Sequence[Any]) -> tuple[Any, Any]:
    """Lower and upper corner of points of any dimension; a tie belongs to the earlier point.

    Raises:
        ShapeError: no points.
    """
    given = _points(points, 1, "bounding_box")
    return reduce(minimum, given), reduce(maximum, given)


def project(u: Any, v: Any) -> Any:
    """Part of u along v, v (u·v) / (v·v); 0 where v is 0."""
    u, v = _point(u), _point(v)
    squared = dot(v, v)
    # Both arms of a where are evaluated: keep the untaken division finite.
    along = where(squared > 0.0, dot(u, v) / where(squared > 0.0, squared, 1.0), 0.0)
    return _scaled(v, along)


def reject(u: Any, v: Any) -> Any:
    """Part of u across v, u - ``project(u, v)``; u itself where v is 0."""
    return _point(u) - project(u, v)


def lerp(a: Any, b: Any, t: Any) -> Any:
    """Point a + t (b - a) between a (t = 0) and b (t = 1); scalars or vectors."""
    a, b = _point(a), _point(b)
    if not (is_traced(a) or is_traced(b) or is_traced(t)):
        return a + (b - a) * (np.asarray(t)[..., None] if np.ndim(a) and np.ndim(t) else t)
    return a + (b - a) * t


def _symmetric_entries(matrix: Any) -> list[Any]:
    """Entries 00, 11, 22, 01, 02, 12 of the symmetric part."""
    m = as_traced(matrix) if is_traced(matrix) else np.asarray(matrix, np.float64)
    shape = m.shape if isinstance(m, Matrix) else m.shape[-2:]
    if shape != (3, 3):
        raise ShapeError(f"eigenvalues: got a matrix of shape {shape}, expected (3, 3)")

    def entry(i: int, j: int) -> Any:
        return m[i, j] if isinstance(m, Matrix) else m[..., i, j]

    diagonal = [entry(k, k) for k in range(3)]
    return diagonal + [0.5 * (entry(i, j) + entry(j, i)) for i, j in ((0, 1), (0, 2), (1, 2))]


def symmetric_eigenvalues(matrix: Any) -> Any:
    """Eigenvalues of a symmetric 3x3 matrix, smallest first.

    A vector if the matrix is traced, ``(..., 3)`` for arrays. Of a matrix that is not symmetric,
    the symmetric part is taken.

    The gradient of a simple eigenvalue is v vᵀ, v being its unit eigenvector. Where eigenvalues
    coincide, none of them is differentiable; each then gives the mean of their projectors, Σ v vᵀ
    over the coinciding ones divided by their number (I/3 where all three do): finite, and right
    for their sum. At a gap δ, relative to the largest deviation from the mean, rounding enters
    gradients as ε/δ, as in any eigenvector.

    Source: Smith 1961, Eigenvalues of a symmetric 3x3 matrix; the angle by atan2, with the
    discriminant as a sum of squares (the Gram determinant of I, B and B²), which keeps its digits
    where the arc cosine loses half of them (cf. Habera and Zilian 2021).
    """
    a00, a11, a22, a01, a02, a12 = _symmetric_entries(matrix)
    q = (a00 + a11 + a22) * (1.0 / 3.0)
    # B, the part without trace, and B².
    b00, b11, b22 = a00 - q, a11 - q, a22 - q
    c00 = b00 * b00 + a01 * a01 + a02 * a02
    c11 = a01 * a01 + b11 * b11 + a12 * a12
    c22 = a02 * a02 + a12 * a12 + b22 * b22
    c01 = a01 * (b00 + b11) + a02 * a12
    c02 = a02 * (b00 + b22) + a01 * a12
    c12 = a12 * (b11 + b22) + a01 * a02
    p = sqrt((c00 + c11 + c22) * (1.0 / 6.0))
    determinant = (
        b00 * (b11 * b22 - a12 * a12)
        - a01 * (a01 * b22 - a12 * a02)
        + a02 * (a01 * a12 - b11 * a02)
    )
    first = _traceless(b00, b11, b22, a01, a02, a12)
    second = _traceless(c00, c11, c22, c01, c02, c12)
    squares: list[Any] = []
    for j in range(5):
        for k in range(j):
            minor = first[j] * second[k] - first[k] * second[j]
            squares.append(minor * minor)
    # Discriminant 3 · |B ∧ B²|², and 27 is Smith's: sine and cosine of 3θ, both times 2 p³.
    sine = sqrt(reduce(lambda s, t: s + t, squares)) * (1.0 / 3.0)
    angle = atan2(sine, determinant) * (1.0 / 3.0)
    # p cos θ ± √3 p sin θ with θ in [0, π/3]: in order without sorting.
    along, across = p * cos(angle), (3.0**0.5) * p * sin(angle)
    values = [q - along - across, q - along + across, q + 2.0 * along]
    if any(is_traced(v) for v in values):
        return vector(values)
    return np.stack(np.broadcast_arrays(*values), axis=-1)


def _traceless(d0: Any, d1: Any, d2: Any, m01: Any, m02: Any, m12: Any) -> list[Any]:
    """Coordinates of a symmetric matrix, trace left out, in an orthonormal basis."""
    return [
        (d0 - d1) * 0.5**0.5, (d0 + d1 - 2.0 * d2) * (1.0 / 6.0) ** 0.5,
        m01 * 2.0**0.5, m02 * 2.0**0.5, m12 * 2.0**0.5,
    ]  # fmt: skip


def smallest_eigenvalue(matrix: Any) -> Any:
    """Smallest eigenvalue of a symmetric 3x3 matrix; see ``symmetric_eigenvalues``."""
    return _eigenvalue(matrix, 0)


def middle_eigenvalue(matrix: Any) -> Any:
    """Middle eigenvalue of a symmetric 3x3 matrix; see ``symmetric_eigenvalues``."""
    return _eigenvalue(matrix, 1)


def largest_eigenvalue(matrix: Any) -> Any:
    """Largest eigenvalue of a symmetric 3x3 matrix; see ``symmetric_eigenvalues``."""
    return _eigenvalue(matrix, 2)


def _eigenvalue(matrix: Any, k: int) -> Any:
    values = symmetric_eigenvalues(matrix)
    return values[k] if is_traced(values) else values[..., k]
