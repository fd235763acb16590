"""Shapes of polygons and solids, as residual functions; public through ``meshes.energies``."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import autograd_gpu as ag
from autograd_gpu.geometry import interior_angle

Scalar: TypeAlias = Any
Vec3: TypeAlias = Any
Points: TypeAlias = Any


def quad_planarity(a: Vec3, b: Vec3, c: Vec3, d: Vec3) -> Scalar:
    """Signed distance between the diagonals ac and bd of a quad, units of length.

    0 exactly where the four corners lie in a plane. Where the diagonals are parallel both the
    distance and its gradient are 0.

    Source: Liu, Pottmann, Wallner, Yang and Wang 2006, Geometric modeling with conical meshes and
    developable surfaces, for planar quad meshes; the distance of the diagonals is the usual
    measure of how far a quad is from one.
    """
    return ag.dot(b - a, ag.normalize(ag.cross(c - a, d - b)))


def equal_angles(a: Vec3, b: Vec3, c: Vec3) -> tuple[Scalar, Scalar, Scalar]:
    """Differences of a triangle's angles from their mean π/3, 3 residuals, radians.

    0 exactly for an equilateral triangle. Singular points as for ``interior_angle``.

    Source: Freitag 1997, On combining Laplacian and optimization-based mesh smoothing
    techniques, for angles as the measure of quality; here as a sum of squares.
    """
    mean = math.pi / 3.0
    return (
        interior_angle(a, b, c) - mean,
        interior_angle(b, c, a) - mean,
        interior_angle(c, a, b) - mean,
    )


def tetrahedron_volume(a: Vec3, b: Vec3, c: Vec3, d: Vec3) -> Scalar:
    """Signed volume (b − a) · ((c − a) × (d − a)) / 6, units of length cubed."""
    return ag.dot(b - a, ag.cross(c - a, d - a)) * (1.0 / 6.0)


def volume(a: Vec3, b: Vec3, c: Vec3, d: Vec3, rest_volume: Scalar, weight: Scalar) -> Scalar:
    """Weighted change of volume of a tetrahedron, weight · (V − rest_volume); smooth everywhere.

    Source: Teschner, Heidelberger, Müller and Gross 2004, A versatile and robust model for
    geometrically complex deformable solids.
    """
    return weight * (tetrahedron_volume(a, b, c, d) - rest_volume)


def enclosed_volume(
    first: Points, second: Points, third: Points, rest_volume: Scalar, weight: Scalar
) -> Scalar:
    """Weighted change of the volume inside a closed mesh: one residual over all of its faces.

    The arguments are the first, second and third corners of all m faces, three sequences of m
    points: ``*(x[ag.Ragged([0, len(mesh.faces)], column)] for column in mesh.faces.T)``. Its
    Jacobian is one full row.

    Source: Desbrun, Meyer, Schröder and Barr 1999, Implicit fairing of irregular meshes:
    the volume as a sum of signed tetrahedra.
    """
    pieces = [ag.dot(a, ag.cross(b, c)) for a, b, c in zip(first, second, third, strict=True)]
    return weight * (ag.sum(pieces) * (1.0 / 6.0) - rest_volume)
