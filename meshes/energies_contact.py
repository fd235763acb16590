"""Targets and contact, as residual functions; public through ``meshes.energies``."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import autograd_gpu as ag
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.geometry import plane_distance

Scalar: TypeAlias = Any
Vec3: TypeAlias = Any
IntArray = npt.NDArray[np.int64]


def landmark(a: Vec3, b: Vec3, c: Vec3, barycentric: Vec3, target: Vec3) -> Vec3:
    """Offset from ``target`` of the point of a face at barycentric coordinates, 3 residuals.

    Linear, hence smooth everywhere. For a vertex as a landmark take ``anchor``.

    Source: Allen, Curless and Popović 2003, The space of human body shapes, the marker error.
    """
    return barycentric[0] * a + barycentric[1] * b + barycentric[2] * c - target


def point_to_plane(p: Vec3, q: Vec3, normal: Vec3) -> Scalar:
    """Signed distance of p from the plane through q with the given normal, of any length.

    Source: Chen and Medioni 1992, Object modelling by registration of multiple range images.
    """
    return plane_distance(p, q, normal)


def plane_collision(
    p: Vec3, origin: Vec3, normal: Vec3, thickness: Scalar, weight: Scalar
) -> Scalar:
    """How far p is nearer to a plane than ``thickness``, times weight; 0 beyond.

    The half space that ``normal`` (of any length) points into is free. Once differentiable; a
    quadratic penalty, so p ends below the thickness by what the other forces need.

    Source: Moore and Wilhelms 1988, Collision detection and response for computer animation.
    """
    return weight * ag.relu(thickness - plane_distance(p, origin, normal))


def self_repulsion(p: Vec3, q: Vec3, radius: Scalar, weight: Scalar) -> Scalar:
    """How far p and q are nearer than ``radius``, relatively: weight · max(1 − ‖q − p‖/radius, 0).

    For pairs that are near in space and not joined, from ``close_pairs``; take new pairs after
    every few steps. Not differentiable where p = q; the gradient is 0 there.

    Source: Bridson, Fedkiw and Anderson 2002, Robust treatment of collisions, contact and friction
    for cloth animation, as a penalty between vertices.
    """
    return weight * ag.relu(1.0 - ag.norm(q - p) / radius)


def tangent_point(p: Vec3, normal: Vec3, q: Vec3, weight: Scalar) -> Scalar:
    """Curvature 1/R of the sphere through q that touches the surface at p, times weight; 1/length.

    2 |n · (q − p)| / ‖q − p‖² with the unit normal n of p: small for neighbours along the surface,
    large for what comes near from the side. With weight √(A_p A_q) the sum over all pairs is the
    tangent-point energy of power 2, which keeps a surface from passing through itself. Not
    finite where p = q.

    Source: Strzelecki and von der Mosel 2013, Tangent-point repulsive potentials; Yu,
    Brakensiek, Schumacher and Crane 2021, Repulsive surfaces.
    """
    offset = q - p
    return weight * 2.0 * ag.abs(ag.dot(normal, offset)) / ag.dot(offset, offset)


def close_pairs(vertices: npt.ArrayLike, radius: float, edges: npt.ArrayLike = ()) -> IntArray:
    """Pairs i < j of vertices nearer than ``radius`` that are not joined by an edge, (k, 2).

    Args:
        vertices: (n, 3) positions.
        radius: units of length, positive.
        edges: (m, 2) pairs to leave out, in any order; ``mesh.edges``, or more of them.

    In lexicographic order. By a k-d tree: O(n log n + k).

    Raises:
        ShapeError: an array has another shape.
        InputError: the radius is not positive and finite.
    """
    points: npt.NDArray[np.float64] = np.asarray(vertices, dtype=np.float64)
    joined: IntArray = np.asarray(edges, dtype=np.int64)
    if points.ndim != 2:
        raise ShapeError(f"close_pairs: vertices has shape {points.shape}, expected (n, 3)")
    if joined.size and (joined.ndim != 2 or joined.shape[1] != 2):
        raise ShapeError(f"close_pairs: edges has shape {joined.shape}, expected (m, 2)")
    if not (np.isfinite(radius) and radius > 0):
        raise InputError(f"close_pairs: radius is {radius}, expected a positive finite length")
    from scipy import spatial

    search: Any = spatial
    tree = search.KDTree(points)
    found: IntArray = np.sort(tree.query_pairs(radius, output_type="ndarray"), axis=1)
    width = len(points)
    keys = found[:, 0] * width + found[:, 1]
    joined = np.sort(joined.reshape(-1, 2), axis=1)
    kept = np.setdiff1d(keys, joined[:, 0] * width + joined[:, 1])
    return np.column_stack(np.divmod(kept, max(width, 1)))
