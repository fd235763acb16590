"""Smoothness and bending of surfaces, as residual functions; public through ``meshes.energies``."""

from __future__ import annotations

from typing import Any, TypeAlias

import autograd_gpu as ag
from autograd_gpu.geometry import dihedral_angle, triangle_area

Scalar: TypeAlias = Any
Vec3: TypeAlias = Any
Ring: TypeAlias = Any
Mat2: TypeAlias = Any


def laplacian_smoothing(p: Vec3, q: Vec3, weight: Scalar) -> Vec3:
    """Membrane energy of an edge: weight · (q − p), 3 residuals; one element per edge.

    The gradient of ½ Σ w ‖q − p‖² is −Σ w (q − p), the (umbrella) Laplacian: pass
    weight = √w ≥ 0. Smooth everywhere; without anchors or frozen vertices everything contracts.

    Source: Kobbelt et al. 1998, Interactive multi-resolution modeling on arbitrary meshes.
    """
    return weight * (q - p)


def bilaplacian_smoothing(p: Vec3, ring: Ring, weight: Scalar) -> Vec3:
    """Thin-plate energy of a vertex: weight · (mean of the ring − p), 3 residuals.

    Half the squared umbrella; its gradient is the bilaplacian. 0 where every vertex is the mean of
    its neighbours, as on regular flat meshes.

    Source: Kobbelt et al. 1998, Interactive multi-resolution modeling on arbitrary meshes.
    """
    return weight * (ag.mean(ring) - p)


def cotangent_bilaplacian(p: Vec3, ring: Ring, weights: Ring, area: Scalar) -> Vec3:
    """Cotangent Laplacian Σ w (q − p) / √area of a vertex, 3 residuals, units of length.

    ½‖r‖² summed is ½ ∫ |Δx|², with barycentric areas as the mass matrix. ``weights`` are the
    cotangent weights of the edges, a sequence like ``ring``, and may be negative.

    Source: Botsch and Kobbelt 2004, An intuitive framework for real-time freeform modeling.
    """
    flow = [w * (q - p) for q, w in zip(ring, weights, strict=True)]
    return ag.sum(flow) / ag.sqrt(area)


def cotangent_dirichlet(f_a: Vec3, f_b: Vec3, f_c: Vec3, gradients: Mat2) -> list[Vec3]:
    """Gradient of values at the corners of a face, [f_b − f_a, f_c − f_a] G, 2 residuals a value.

    With ``weight=np.sqrt(mesh.face_areas)`` and G from ``mesh.face_gradients``, ½‖r‖² is the
    Dirichlet energy ½ ∫ |∇f|², which equals ½ Σ w_ij |f_j − f_i|² over the edges with cotangent
    weights, also where these are negative. Values are vectors or scalars.

    Source: Pinkall and Polthier 1993, Computing discrete minimal surfaces, §2.
    """
    u, v = f_b - f_a, f_c - f_a
    return [u * gradients[0, k] + v * gradients[1, k] for k in (0, 1)]


def shell_bending(
    a: Vec3, b: Vec3, c: Vec3, d: Vec3, rest_angle: Scalar, rest_length: Scalar, rest_area: Scalar
) -> Scalar:
    """Bending of an edge of a discrete shell: √(3/A) · ‖e‖ · (θ − rest_angle), without unit.

    ‖e‖ and A are the rest length of the edge and the rest area of its two faces together. The
    square, W_B = (θ − θ̄)² ‖ē‖/h̄ with h̄ = A / 3‖ē‖, is twice what enters the cost.

    Source: Grinspun et al. 2003, Discrete shells, §3.
    """
    scale = ag.sqrt(3.0 / rest_area) * rest_length
    return scale * (dihedral_angle(a, b, c, d) - rest_angle)


def shell_stretch(p: Vec3, q: Vec3, rest: Scalar) -> Scalar:
    """Stretch of an edge of a discrete shell: √rest · (‖q − p‖/rest − 1).

    Not differentiable where p = q; the gradient is 0 there.

    Source: Grinspun et al. 2003, Discrete shells, §3, the membrane energy W_L.
    """
    return ag.sqrt(rest) * (ag.norm(q - p) / rest - 1.0)


def shell_area(a: Vec3, b: Vec3, c: Vec3, rest_area: Scalar) -> Scalar:
    """Change of area of a face of a discrete shell: √Ā · (A/Ā − 1), units of length.

    Not differentiable where A = 0.

    Source: Grinspun et al. 2003, Discrete shells, §3, the membrane energy W_A.
    """
    return ag.sqrt(rest_area) * (triangle_area(a, b, c) / rest_area - 1.0)


def willmore(p: Vec3, ring: Ring) -> Vec3:
    """Mean curvature vector of a star, scaled so that ½‖r‖² is ∫ H² over it; 3 residuals, no unit.

    r = K / √(2A): K = 2 ∫ H n is the gradient of the star's area by p, A the barycentric area, a
    third of the star's. One element per interior vertex, ring counter-clockwise; the sum over a
    closed surface is its Willmore energy, 4π for a sphere of any size. Everything is taken from
    the current positions, so it does not change under rigid motions and scaling.

    Source: Meyer et al. 2003, Discrete differential-geometry operators for triangulated
    2-manifolds; barycentric instead of mixed areas.
    """
    area: Scalar = 0.0
    steps: list[Vec3] = []
    for k, b in enumerate(ring):
        c = ring[(k + 1) % len(ring)]
        normal = ag.cross(b - p, c - p)
        area = area + ag.norm(normal)
        # The face's area grows fastest across its far edge: half its length, along N × (c − b).
        steps.append(ag.cross(ag.normalize(normal), c - b))
    # norm is twice the area of a face, and a third of the star belongs to p.
    return 0.5 * ag.sum(steps) / ag.sqrt(area * (1.0 / 3.0))
