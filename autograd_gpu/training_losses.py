"""Scalar losses between predictions and targets, averaged: for eager graphs and by hand.

Predictions and targets are scalars or sequences of equal length: Values, traced values, numbers,
arrays. Huber and Tukey are ½ρ(r²) of the robust losses of ``ag.losses``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError, ShapeError
from .functions import abs, clip, log, mean, square, sum
from .losses import Huber, Tukey
from .scalar import user_line
from .vector import Vector, as_traced, is_traced, vector

SMALLEST_PROBABILITY = 1e-12
"""Probabilities are kept this far from 0 and 1 under a logarithm; the gradient is 0 beyond."""


def _sequence(values: Any) -> Any:
    """A vector of scalars or a flat array."""
    if is_traced(values):
        lifted = as_traced(values)
        return lifted if isinstance(lifted, Vector) else vector([lifted])
    return np.asarray(values, np.float64).reshape(-1)


def _pair(prediction: Any, target: Any, what: str) -> tuple[Any, Any]:
    p, t = _sequence(prediction), _sequence(target)
    if len(p) != len(t) or len(p) == 0:
        raise ShapeError(
            f"{user_line()}\n  {what}: got {len(p)} predictions and {len(t)} targets, expected "
            "one target for each prediction, and at least one"
        )
    return p, t


def mse_loss(prediction: Any, target: Any) -> Any:
    """Mean of (prediction - target)²."""
    p, t = _pair(prediction, target, "mse_loss")
    return mean(square(p - t))


def mae_loss(prediction: Any, target: Any) -> Any:
    """Mean of |prediction - target|; gradient 0 where they are equal."""
    p, t = _pair(prediction, target, "mae_loss")
    return mean(abs(p - t))


def binary_cross_entropy_loss(probability: Any, target: Any) -> Any:
    """Mean of -t log p - (1 - t) log(1 - p), in nats.

    Args:
        probability: of class 1, in [0, 1]; see ``SMALLEST_PROBABILITY`` for the ends.
        target: 0 or 1, or a probability.
    """
    p, t = _pair(probability, target, "binary_cross_entropy_loss")
    p = clip(p, SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY)
    return mean(-(t * log(p)) - (1.0 - t) * log(1.0 - p))


def categorical_cross_entropy_loss(probabilities: Any, target: Any) -> Any:
    """-Σ t log p over the classes of one sample, in nats.

    Args:
        probabilities: one per class; see ``SMALLEST_PROBABILITY`` for the ends.
        target: one per class, or the number of the right one.

    Raises:
        ShapeError: another number of targets than of classes.
        InputError: no class of that number.
    """
    p = _sequence(probabilities)
    if isinstance(target, int | np.integer) and not isinstance(target, bool):
        if not 0 <= target < len(p):
            raise InputError(
                f"{user_line()}\n  categorical_cross_entropy_loss: class {target}, expected 0 to "
                f"{len(p) - 1}"
            )
        target = [float(k == target) for k in range(len(p))]
    p, t = _pair(p, target, "categorical_cross_entropy_loss")
    return -sum(t * log(clip(p, SMALLEST_PROBABILITY, 1.0)))


def huber_loss(prediction: Any, target: Any, delta: float = 1.0) -> Any:
    """Mean of ½r² up to |r| = δ and δ(|r| - ½δ) beyond, r = prediction - target.

    Raises:
        InputError: delta is not positive and finite.
    """
    p, t = _pair(prediction, target, "huber_loss")
    return _robust(Huber(delta), p - t)


def tukey_loss(prediction: Any, target: Any, delta: float = 4.685) -> Any:
    """Mean of Tukey's biweight δ²/6 (1 - (1 - r²/δ²)³), δ²/6 beyond |r| = δ.

    Raises:
        InputError: delta is not positive and finite.
    """
    p, t = _pair(prediction, target, "tukey_loss")
    return _robust(Tukey(delta), p - t)


def _robust(loss: Huber | Tukey, residual: Any) -> Any:
    delta = float(loss.parameters["delta"])
    return mean(0.5 * loss.rho(square(residual), delta))
