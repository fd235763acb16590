"""Energies that vanish where a triangle mesh is developable, as functions of a vertex and its ring.

Each takes the position ``p`` of an interior vertex and the positions ``ring`` of its n >= 3
neighbours, counter-clockwise: face k is (p, ring[k], ring[k + 1]), the last one closing the star.
All faces start at the centre, so stars of equal valence have equal graphs and share one kernel::

    v = mesh.interior_vertices
    problem.add_residuals(covariance_eigenvalue, x[v], x[mesh.one_rings][v])

An energy has no unit, does not change under rigid motions, scaling or renumbering of the ring,
and is at least 0. ``Problem`` minimises ½ Σ E², E being what a function returns.

A surface is developable where its normals, on the unit sphere, lie on a curve, in the smallest
neighbourhood on a great circle. On a mesh, two conditions express that: the normals of a star lie
in a plane through the origin (covariance, alignment, great circle, plane alignment), or the star
is a hinge, at most two flat parts (bipartition, bimodal). The second implies the first.

Normals of faces without area count as 0. Functions that choose (a partition, a pair, an edge) are
not differentiable where two choices tie; there the gradient is that of the first.

Source: Stein, Grinspun and Crane 2018, Developability of triangle meshes, for the two conditions,
the covariance energy and the combinatorial energy. The other four are defined here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import autograd_gpu as ag

Scalar: TypeAlias = Any
Vec3: TypeAlias = Any
Ring: TypeAlias = Any

# Added to a product of two eigenvalues, each at most 2π: far below what matters, and more than
# the square of a float32 rounding, so a flat star gives 0 / 1e-12 and not 0 / 0.
_FLAT = 1e-12
_THIRD_OF_A_TURN = 2.0 * math.pi / 3.0


def star(p: Vec3, ring: Ring) -> tuple[list[Vec3], list[Scalar]]:
    """Unit normals of the faces (p, ring[k], ring[k + 1]), and their angles at p in radians."""
    normals: list[Vec3] = []
    angles: list[Scalar] = []
    spokes = [q - p for q in ring]
    for k, a in enumerate(spokes):
        b = spokes[(k + 1) % len(spokes)]
        area = ag.cross(a, b)
        normals.append(ag.normalize(area))
        angles.append(ag.atan2(ag.norm(area), ag.dot(a, b)))
    return normals, angles


def normal_covariance(p: Vec3, ring: Ring) -> tuple[Scalar, ...]:
    """Second moment C = Σ θ N Nᵀ of a star's normals: C₀₀, C₀₁, C₀₂, C₁₁, C₁₂, C₂₂, in radians."""
    return _second_moment(*star(p, ring))


def _second_moment(vectors: list[Vec3], weights: list[Scalar]) -> tuple[Scalar, ...]:
    """Σ w v vᵀ, the upper triangle row by row."""
    return tuple(
        ag.sum([w * (v[i] * v[j]) for v, w in zip(vectors, weights, strict=True)])
        for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
    )


def _invariants(p: Vec3, ring: Ring) -> tuple[Scalar, Scalar, Scalar]:
    """Trace, sum of principal 2 × 2 minors and determinant of Σ θ N Nᵀ.

    C = S + Σθ · mean meanᵀ with S about the mean: computed from S, which is small where normals are
    nearly equal, as they are on every fine mesh, nothing cancels.
    """
    normals, angles = star(p, ring)
    total = ag.sum(angles)
    mean = ag.sum([t * n for n, t in zip(normals, angles, strict=True)]) / total
    spread = _second_moment([n - mean for n in normals], angles)
    a, b, c, d, e, f = spread
    adjugate = (
        d * f - e * e,
        c * e - b * f,
        b * e - c * d,
        a * f - c * c,
        b * c - a * e,
        a * d - b * b,
    )
    squared = ag.dot(mean, mean)
    minors = adjugate[0] + adjugate[3] + adjugate[5]
    minors = minors + total * ((a + d + f) * squared - _quadratic(spread, mean))
    determinant = a * adjugate[0] + b * adjugate[1] + c * adjugate[2]
    return (
        a + d + f + total * squared,
        minors,
        determinant + total * _quadratic(adjugate, mean),
    )


def covariance_eigenvalue(p: Vec3, ring: Ring) -> Scalar:
    """Smallest eigenvalue λ₁ of Σ θ N Nᵀ, in radians: 0 where the normals lie in a plane.

    Its error is a few roundings of λ₁ itself, not of the largest eigenvalue; half of the digits
    are lost where λ₁ and λ₂ coincide. Not differentiable there; the gradient is finite.

    Source: Stein, Grinspun and Crane 2018, §4.1, the covariance energy; eigenvalues by Smith 1961,
    Eigenvalues of a symmetric 3 × 3 matrix.
    """
    trace, minors, determinant = _invariants(p, ring)
    q = trace / 3.0
    squared = (trace * trace - 3.0 * minors) / 9.0
    spread = ag.sqrt(ag.maximum(squared, _FLAT))
    skew = 2.0 * trace * trace * trace - 9.0 * trace * minors + 27.0 * determinant
    r = ag.clip(skew / (54.0 * spread * spread * spread), -1.0, 1.0)
    angle = ag.acos(r) / 3.0
    # r > 0: the largest is apart. It is well conditioned, and leaves a quadratic for the others.
    largest = q + 2.0 * spread * ag.cos(angle)
    product = determinant / largest
    sum_of_two = (minors - product) / largest
    root = ag.sqrt(ag.maximum(sum_of_two * sum_of_two - 4.0 * product, 0.0))
    divisor = sum_of_two + root
    curved = divisor > 0.0
    of_quadratic = ag.where(curved, 2.0 * product / ag.where(curved, divisor, 1.0), 0.0)
    # r < 0: the smallest is apart. λ₁ = det / (λ₂ λ₃) keeps the digits that q + … has lost.
    rough = q + 2.0 * spread * ag.cos(angle + _THIRD_OF_A_TURN)
    apart = determinant / (minors - rough * (trace - rough) + _FLAT)
    return ag.where(r > 0.0, of_quadratic, apart)


def combinatorial_bipartition(p: Vec3, ring: Ring) -> Scalar:
    """Least disagreement of normals over all cuts of the star along two of its edges.

    For a cut into parts of n₁ and n₂ faces: Σ over parts of (1/n_p) Σ over pairs of |N_i − N_j|²,
    every pair once. 0 exactly for a hinge. n(n − 1)/2 cuts, O(n²) operations.

    Source: Stein, Grinspun and Crane 2018, §4.1, the combinatorial energy.
    """
    normals, _ = star(p, ring)
    n = len(normals)
    apart = {(i, j): _squared_distance(normals[i], normals[j]) for i in range(n) for j in range(i)}
    # spread[i, m]: sum over the pairs of the m faces from i on, built up by additions alone;
    # last[i, m]: those of its pairs that have the last face in them.
    last: dict[tuple[int, int], Scalar] = {(i, 1): 0.0 for i in range(n)}
    spread: dict[tuple[int, int], Scalar] = {(i, 1): 0.0 for i in range(n)}
    for m in range(2, n):
        for i in range(n):
            end = (i + m - 1) % n
            pair = apart[max(i, end), min(i, end)]
            last[i, m] = last[(i + 1) % n, m - 1] + pair
            spread[i, m] = spread[i, m - 1] + last[i, m]
    cuts = [
        spread[i, j - i] * (1.0 / (j - i)) + spread[j, n - j + i] * (1.0 / (n - j + i))
        for i in range(n)
        for j in range(i + 1, n)
    ]
    return ag.min(cuts)


def bimodal_variance(p: Vec3, ring: Ring) -> Scalar:
    """Variance of normals that two modes leave over, weighted by angles, in radians.

    The two normals that are farthest apart are the seeds; every face goes with the nearer one, and
    Σ θ |N − mean of its part|² is summed over both parts. Unlike for the combinatorial energy, a
    part need not be connected. 0 exactly where the star has at most two normals.

    Defined here, as two-means clustering with one assignment.
    """
    normals, angles = star(p, ring)
    (first, second), _ = _widest(normals, _squared_distance)
    nearer = [
        ag.where(_squared_distance(n, first) <= _squared_distance(n, second), 1.0, 0.0)
        for n in normals
    ]
    total = 0.0
    for shares in (nearer, [1.0 - s for s in nearer]):
        weights = [s * t for s, t in zip(shares, angles, strict=True)]
        mass = ag.sum(weights)
        # The second part of a flat star is empty.
        inverse = ag.where(mass > 0.0, 1.0 / ag.where(mass > 0.0, mass, 1.0), 0.0)
        mean = ag.sum([w * n for w, n in zip(weights, normals, strict=True)]) * inverse
        total = total + ag.sum(
            [w * ag.dot(n - mean, n - mean) for w, n in zip(weights, normals, strict=True)]
        )
    return total


def alignment(p: Vec3, ring: Ring) -> Scalar:
    """How far the normals are from being perpendicular to the best edge of the star, in radians.

    Least Σ θ (N · d)² over the directions d of the n edges at p: the covariance energy, with the
    ruling held to an edge. At least as large as ``covariance_eigenvalue``.

    Defined here; that rulings should run along edges is in Stein, Grinspun and Crane 2018, §3.
    """
    covariance = normal_covariance(p, ring)
    # Only comparisons see the losing edges, so the gradient is that of one edge.
    best, least = None, None
    for q in ring:
        size = _quadratic(covariance, ag.normalize(q - p))
        if least is None:
            best, least = q, size
        else:
            closer = size < least
            best, least = ag.where(closer, q, best), ag.where(closer, size, least)
    return _quadratic(covariance, ag.normalize(best - p))


def great_circle(p: Vec3, ring: Ring) -> Scalar:
    """How far the normals are from the great circle through two of them, in radians.

    Σ θ (N · d)², d the unit vector across the two normals N_i, N_j of largest |N_i × N_j|. 0 where
    all normals are equal. At least as large as ``covariance_eigenvalue``.

    Defined here.
    """
    normals, angles = star(p, ring)
    _, across = _widest(normals, _squared_sine)
    d = ag.normalize(across)
    return ag.sum([t * ag.square(ag.dot(n, d)) for n, t in zip(normals, angles, strict=True)])


def differentiable_plane_alignment(p: Vec3, ring: Ring) -> Scalar:
    """A smooth bound of the covariance energy, without eigenvalues or choices, in radians.

    det C / (e₂(C) + 1e-12) with C = Σ θ N Nᵀ and e₂ the sum of its principal 2 × 2 minors, which
    is 1 / (1/λ₁ + 1/λ₂ + 1/λ₃): between a third of the smallest eigenvalue and all of it.
    Differentiable wherever no face is without area; 0 with zero gradient where the star is flat.

    Defined here.
    """
    _, minors, determinant = _invariants(p, ring)
    return determinant / (minors + _FLAT)


def _quadratic(upper: tuple[Scalar, ...], d: Vec3) -> Scalar:
    """Evaluate dᵀ C d for the upper triangle of C; Σ θ (N · d)² for the covariance of normals."""
    a, b, c, e, f, g = upper
    x, y, z = d
    return a * x * x + e * y * y + g * z * z + 2.0 * (b * x * y + c * x * z + f * y * z)


def _squared_distance(a: Vec3, b: Vec3) -> Scalar:
    return ag.dot(a - b, a - b)


def _squared_sine(a: Vec3, b: Vec3) -> Scalar:
    across = ag.cross(a, b)
    return ag.dot(across, across)


def _widest(
    normals: list[Vec3], measure: Callable[[Vec3, Vec3], Scalar]
) -> tuple[tuple[Vec3, Vec3], Vec3]:
    """The pair of normals of largest measure, the first of equals, and their cross product."""
    pairs = [(a, b) for k, a in enumerate(normals) for b in normals[k + 1 :]]
    (first, second), best = pairs[0], measure(*pairs[0])
    for a, b in pairs[1:]:
        size = measure(a, b)
        wider = size > best
        first, second = ag.where(wider, a, first), ag.where(wider, b, second)
        best = ag.where(wider, size, best)
    return (first, second), ag.cross(first, second)


ENERGIES: dict[str, Callable[[Vec3, Ring], Scalar]] = {
    "covariance eigenvalue": covariance_eigenvalue,
    "combinatorial bipartition": combinatorial_bipartition,
    "bimodal variance": bimodal_variance,
    "alignment": alignment,
    "great circle": great_circle,
    "differentiable plane alignment": differentiable_plane_alignment,
}
"""By the name that tables and reports use."""
