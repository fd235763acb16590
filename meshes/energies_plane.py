"""Maps of a surface to the plane, as residual functions; public through ``meshes.energies``.

Corners u of a face are 2-vectors, and ``gradients`` is the face's G from ``mesh.face_gradients``,
which makes the Jacobian of the map, J = [u_b − u_a, u_c − u_a] G. Residuals are per square root of
area: pass ``weight=np.sqrt(mesh.face_areas)``, and ½‖r‖² sums to an integral over the surface.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import autograd_gpu as ag

# What a flipped face costs: more than any map that is tried, and a number in float32.
_FLIPPED = 1e30

Scalar: TypeAlias = Any
Vec2: TypeAlias = Any
Mat2: TypeAlias = Any


def flat_jacobian(
    u_a: Vec2, u_b: Vec2, u_c: Vec2, gradients: Mat2
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Entries J₀₀, J₀₁, J₁₀, J₁₁ of the map's Jacobian, length over length."""
    s, t = u_b - u_a, u_c - u_a
    (g00, g01), (g10, g11) = (gradients[0, 0], gradients[0, 1]), (gradients[1, 0], gradients[1, 1])
    return (
        s[0] * g00 + t[0] * g10,
        s[0] * g01 + t[0] * g11,
        s[1] * g00 + t[1] * g10,
        s[1] * g01 + t[1] * g11,
    )


def conformal(u_a: Vec2, u_b: Vec2, u_c: Vec2, gradients: Mat2) -> tuple[Scalar, Scalar]:
    """Deviation from the Cauchy–Riemann equations, (J₀₀ − J₁₁, J₀₁ + J₁₀), 2 residuals.

    Least-squares conformal map: with weight √area, ½‖r‖² sums to the Dirichlet energy of the map
    less the signed area of its image. Linear in u, and 0 also where all points coincide: hold two
    vertices.

    Source: Lévy, Petitjean, Ray and Maillot 2002, Least squares conformal maps, §2.2.
    """
    j00, j01, j10, j11 = flat_jacobian(u_a, u_b, u_c, gradients)
    return j00 - j11, j01 + j10


def isometric(
    u_a: Vec2, u_b: Vec2, u_c: Vec2, gradients: Mat2
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Difference J − R between the map's Jacobian and the rotation nearest to it, 4 residuals.

    ‖r‖² = (σ₁ − 1)² + (σ₂ − 1)² with singular values σ₁ ≥ |σ₂|, σ₂ < 0 where the face is flipped:
    as-rigid-as-possible flattening, without rotations as unknowns. Not differentiable where
    σ₁ = −σ₂; R and its gradient are 0 there.

    Source: Liu, Zhang, Xu, Gotsman and Gortler 2008, A local/global approach to mesh
    parameterization, eq. 3 and §4.2; the nearest rotation in the plane in closed form.
    """
    j00, j01, j10, j11 = flat_jacobian(u_a, u_b, u_c, gradients)
    c, s = ag.normalize([j00 + j11, j10 - j01])
    return j00 - c, j01 + s, j10 - s, j11 - c


def symmetric_dirichlet(u_a: Vec2, u_b: Vec2, u_c: Vec2, gradients: Mat2) -> Scalar:
    """Distortion ‖J‖² + ‖J⁻¹‖² of a face: an energy for ``add_energy``, no residual.

    4 for an isometry, more for every other map, without bound where a face loses its area, and
    1e30 where it is flipped: start from a map without flipped faces, such as
    ``meshes.tutte_embedding``. Pass ``weight=mesh.face_areas``.

    Source: Smith and Schaefer 2015, Bijective parameterization with free boundaries, eq. 2; in the
    plane ‖J⁻¹‖ = ‖J‖ / |det J|.
    """
    j00, j01, j10, j11 = flat_jacobian(u_a, u_b, u_c, gradients)
    det = j00 * j11 - j01 * j10
    squared = j00 * j00 + j01 * j01 + j10 * j10 + j11 * j11
    upright = det > 0.0
    # Both arms of `where` are evaluated: keep the quotient of the untaken one finite.
    inverse = 1.0 / ag.where(upright, det, 1.0)
    return ag.where(upright, squared * (1.0 + inverse * inverse), _FLIPPED)


def mips(u_a: Vec2, u_b: Vec2, u_c: Vec2, gradients: Mat2) -> Scalar:
    """Conformal distortion σ₁/σ₂ + σ₂/σ₁ of a face: an energy for ``add_energy``, no residual.

    Most isometric parametrisation: 2 for a conformal map whatever its scale, more for every other
    one, without bound where a face loses its area, and 1e30 where it is flipped: start from a map
    without flipped faces, such as ``meshes.tutte_embedding``. Pass ``weight=mesh.face_areas``, and
    hold two vertices, for motions and scale cost nothing.

    Source: Hormann and Greiner 2000, MIPS: an efficient global parametrization method, §3; in the
    plane σ₁/σ₂ + σ₂/σ₁ = ‖J‖² / det J.
    """
    j00, j01, j10, j11 = flat_jacobian(u_a, u_b, u_c, gradients)
    det = j00 * j11 - j01 * j10
    squared = j00 * j00 + j01 * j01 + j10 * j10 + j11 * j11
    upright = det > 0.0
    # Both arms of `where` are evaluated: keep the quotient of the untaken one finite.
    return ag.where(upright, squared / ag.where(upright, det, 1.0), _FLIPPED)
