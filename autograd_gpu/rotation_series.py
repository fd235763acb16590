"""Coefficients of the exponential and logarithm of rotations, accurate at the identity and near π.

Each has a closed form that cancels at small angles and a series that does not converge fast at
large ones; ``where`` chooses by the angle and both arms stay finite. Arguments and results are
scalars, traced or eager, or arrays of one shape.

Source: Eade 2017, "Lie groups for 2D and 3D transformations", §3 and §8.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import Any

from .functions import abs, atan2, cos, sin, sqrt, where

SMALL = 0.1
"""Squared angle below which the series of exponentials are used; six terms leave 1e-17."""

SMALL_TANGENT = 0.01
"""Squared tangent of half the angle below which the series of logarithms are used."""

_HALF_SINE = [(-1) ** k / (2 ** (2 * k + 1) * factorial(2 * k + 1)) for k in range(7)]
_HALF_COSINE = [(-1) ** k / (4**k * factorial(2 * k)) for k in range(7)]
_SINE_REST = [(-1) ** k / factorial(2 * k + 3) for k in range(7)]
_ARC_TANGENT = [(-1) ** k / (2 * k + 1) for k in range(9)]
_COTANGENT_REST = [1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000]


def _series(x: Any, coefficients: Sequence[float]) -> Any:
    """Σ cₖ xᵏ by Horner's rule."""
    total: Any = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def half_angle(squared: Any) -> tuple[Any, Any]:
    """cos(θ/2) and sin(θ/2)/θ from θ²; 1 and ½ at 0."""
    small = squared < SMALL
    near = where(small, squared, 0.0)
    angle = sqrt(where(small, 1.0, squared))
    cosine = where(small, _series(near, _HALF_COSINE), cos(0.5 * angle))
    sine = where(small, _series(near, _HALF_SINE), sin(0.5 * angle) / angle)
    return cosine, sine


def sine_rest(squared: Any, cosine: Any, sine: Any) -> Any:
    """(θ - sin θ)/θ³ from θ² and ``half_angle(θ²)``; 1/6 at 0."""
    small = squared < SMALL
    near, far = where(small, squared, 0.0), where(small, 1.0, squared)
    return where(small, _series(near, _SINE_REST), (1.0 - 2.0 * sine * cosine) / far)


def angle_over_sine(cosine: Any, squared_sine: Any) -> Any:
    """θ / sin(θ/2) for θ in [0, 2π), from cos(θ/2) and sin²(θ/2); 2 at 0."""
    # The product is negative beyond π, where no series is wanted.
    small = squared_sine < SMALL_TANGENT * (cosine * abs(cosine))
    divisor = where(small, cosine, 1.0)
    squared_tangent = where(small, squared_sine, 0.0) / (divisor * divisor)
    near = 2.0 * _series(squared_tangent, _ARC_TANGENT) / divisor
    sine = sqrt(where(small, 1.0, squared_sine))
    return where(small, near, 2.0 * atan2(sine, cosine) / sine)


def cotangent_rest(squared: Any, cosine: Any, over_sine: Any) -> Any:
    """(1 - θ/2 cot(θ/2))/θ² from θ², cos(θ/2) and θ / sin(θ/2); 1/12 at 0.

    For θ in [0, π]; smooth at π, where the cotangent is 0.
    """
    small = squared < SMALL
    near, far = where(small, squared, 0.0), where(small, 1.0, squared)
    return where(small, _series(near, _COTANGENT_REST), (1.0 - 0.5 * cosine * over_sine) / far)
