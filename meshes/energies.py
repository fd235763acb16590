"""Energies of springs, shells and sheets, as plain residual functions.

Every function takes traced vectors and scalars (or NumPy arrays and floats), returns a residual,
and enters a least-squares problem as ½‖r‖². Positions are in any one unit of length; angles are
in radians. Pass a function to ``Problem.add_residuals``, alone or called from your own.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import autograd_gpu as ag
from autograd_gpu.geometry import dihedral_angle as dihedral_angle
from autograd_gpu.geometry import triangle_area as triangle_area
from autograd_gpu.meshes.energies_contact import close_pairs as close_pairs
from autograd_gpu.meshes.energies_contact import landmark as landmark
from autograd_gpu.meshes.energies_contact import plane_collision as plane_collision
from autograd_gpu.meshes.energies_contact import point_to_plane as point_to_plane
from autograd_gpu.meshes.energies_contact import self_repulsion as self_repulsion
from autograd_gpu.meshes.energies_contact import tangent_point as tangent_point
from autograd_gpu.meshes.energies_plane import conformal as conformal
from autograd_gpu.meshes.energies_plane import flat_jacobian as flat_jacobian
from autograd_gpu.meshes.energies_plane import isometric as isometric
from autograd_gpu.meshes.energies_plane import mips as mips
from autograd_gpu.meshes.energies_plane import symmetric_dirichlet as symmetric_dirichlet
from autograd_gpu.meshes.energies_shape import enclosed_volume as enclosed_volume
from autograd_gpu.meshes.energies_shape import equal_angles as equal_angles
from autograd_gpu.meshes.energies_shape import quad_planarity as quad_planarity
from autograd_gpu.meshes.energies_shape import tetrahedron_volume as tetrahedron_volume
from autograd_gpu.meshes.energies_shape import volume as volume
from autograd_gpu.meshes.energies_surface import bilaplacian_smoothing as bilaplacian_smoothing
from autograd_gpu.meshes.energies_surface import cotangent_bilaplacian as cotangent_bilaplacian
from autograd_gpu.meshes.energies_surface import cotangent_dirichlet as cotangent_dirichlet
from autograd_gpu.meshes.energies_surface import laplacian_smoothing as laplacian_smoothing
from autograd_gpu.meshes.energies_surface import shell_area as shell_area
from autograd_gpu.meshes.energies_surface import shell_bending as shell_bending
from autograd_gpu.meshes.energies_surface import shell_stretch as shell_stretch
from autograd_gpu.meshes.energies_surface import willmore as willmore

# Traced values and NumPy values alike; the widths are in the docstrings.
Scalar: TypeAlias = Any
Vec3: TypeAlias = Any

# Below this squared angle (radians²) the series is exact to float64 rounding, and above it
# neither the quotients nor their derivatives lose more than a few digits of float32.
_SMALL_SQUARED_ANGLE = 1e-4


def spring(p: Vec3, q: Vec3, rest: Scalar) -> Scalar:
    """Elongation ‖q − p‖ − rest of a spring from p to q, in units of length.

    Not differentiable where p = q; the gradient is 0 there.
    """
    return ag.norm(q - p) - rest


def edge_strain(p: Vec3, q: Vec3, rest: Scalar) -> Scalar:
    """Relative elongation ‖q − p‖ / rest − 1 of an edge, without unit.

    Not differentiable where p = q (the gradient is 0 there); not finite where rest = 0.
    """
    return ag.norm(q - p) / rest - 1.0


def strain_limit(p: Vec3, q: Vec3, rest: Scalar, least: Scalar, most: Scalar) -> Scalar:
    """How far the strain ‖q − p‖/rest − 1 of an edge lies above ``most`` or below ``least``.

    0 between them, so a cloth may stretch a little for nothing and then not at all: give it a
    large weight. Once differentiable; the gradient is 0 where p = q.

    Source: Provot 1995, Deformation constraints in a mass-spring model to describe rigid cloth
    behavior, as a penalty.
    """
    strain = edge_strain(p, q, rest)
    return ag.relu(strain - most) - ag.relu(least - strain)


def anchor(p: Vec3, target: Vec3, weight: Scalar) -> Vec3:
    """Weighted offset weight · (p − target), 3 residuals; smooth everywhere."""
    return weight * (p - target)


def rotate(axis_angle: Vec3, v: Vec3) -> Vec3:
    """Vector v turned about the axis ``axis_angle`` by the angle ‖axis_angle‖ (radians).

    Value and derivatives are right at 0 and for any angle, beyond π too. The map from
    ``axis_angle`` to rotations is not one-to-one: at ‖axis_angle‖ = 2π its derivative across the
    axis vanishes, so keep rotations that turn far near 0 by re-basing them.

    Source: Rodrigues 1840, R(r)v = v + (sin θ/θ) r×v + ((1 − cos θ)/θ²) r×(r×v), θ = ‖r‖; series
    to θ⁴ near 0.
    """
    t2 = ag.dot(axis_angle, axis_angle)
    small = t2 < _SMALL_SQUARED_ANGLE
    # Both arms of `where` are evaluated: keep the root and the quotient of the untaken one finite.
    half = 0.5 * ag.sqrt(ag.where(small, 1.0, t2))
    # Half angles: 1 − cos θ = 2 sin²(θ/2) does not cancel.
    sinc = ag.sin(half) / half
    a = ag.where(small, 1.0 - t2 * (1.0 / 6.0 - t2 / 120.0), sinc * ag.cos(half))
    b = ag.where(small, 0.5 - t2 * (1.0 / 24.0 - t2 / 720.0), 0.5 * sinc * sinc)
    across = ag.cross(axis_angle, v)
    return v + a * across + b * ag.cross(axis_angle, across)


def as_rigid_as_possible(x_i: Vec3, x_j: Vec3, r_i: Vec3, rest_edge: Vec3) -> Vec3:
    """Deviation (x_j − x_i) − R(r_i) · rest_edge of an edge from its turned rest state.

    3 residuals, units of length; one element for each directed edge (i, j), with the axis-angle
    vector r_i of the cell around i and rest_edge = p_j − p_i. The weighted energy takes
    ``weight=np.sqrt(w_ij)`` in ``add_residuals``, w_ij the cotangent weight where it is positive.

    Source: Sorkine and Alexa 2007, As-rigid-as-possible surface modeling, eq. 3.
    """
    return (x_j - x_i) - rotate(r_i, rest_edge)


def as_rigid_as_possible_face(
    x_a: Vec3, x_b: Vec3, x_c: Vec3, r: Vec3, rest_ab: Vec3, rest_ac: Vec3, gradients: Any
) -> list[Vec3]:
    """Deviation of a face's deformation gradient from the rotation r of one of its corners.

    [x_b − x_a − R(r) rest_ab, x_c − x_a − R(r) rest_ac] G, 6 residuals, with G from
    ``mesh.face_gradients``. One element for each corner of each face, and
    ``weight=np.sqrt(face_areas / 3)``: the energy of "spokes and rims", which is a sum of squares
    for negative cotangent weights too, as ``as_rigid_as_possible`` is not.

    Source: Chao, Pinkall, Sanan and Schröder 2010, A simple geometric model for elastic
    deformations.
    """
    u = x_b - x_a - rotate(r, rest_ab)
    v = x_c - x_a - rotate(r, rest_ac)
    return [u * gradients[0, k] + v * gradients[1, k] for k in (0, 1)]


def dihedral_bending(
    a: Vec3, b: Vec3, c: Vec3, d: Vec3, rest_angle: Scalar, weight: Scalar
) -> Scalar:
    """Weighted bending weight · (θ − rest_angle), θ the dihedral angle in radians.

    For discrete shells, weight² = 3 ‖e‖² / A with rest edge e and A the area of both triangles.
    The difference is not wrapped: keep θ and rest_angle off the jump at ±π. Singular points as
    for ``dihedral_angle``.

    Source: Grinspun et al. 2003, Discrete shells, §3.
    """
    return weight * (dihedral_angle(a, b, c, d) - rest_angle)


def area(a: Vec3, b: Vec3, c: Vec3, rest_area: Scalar, weight: Scalar) -> Scalar:
    """Weighted change of area weight · (A − rest_area); not differentiable where A = 0."""
    return weight * (triangle_area(a, b, c) - rest_area)
