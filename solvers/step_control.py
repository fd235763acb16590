"""How far to trust a model: damping factors and trust-region radii, updated by the gain ratio.

Sources: Nielsen 1999, "Damping parameter in Marquardt's method", IMM-REP-1999-05, eq. 2.4 and 2.5;
Ceres Solver, ``LevenbergMarquardtStrategy``, which updates the radius 1/λ by the same rule but
bounds it; Madsen, Nielsen, Tingleff 2004, "Methods for non-linear least squares problems", eq. 2.4
(the radius of a trust region).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LARGEST_DAMPING = 1e32


class DampingControl(Protocol):
    """The factor λ of (JᵀJ + λD)δ = -Jᵀr from step to step."""

    @property
    def damping(self) -> float:
        """λ for the next step."""
        ...

    @property
    def exhausted(self) -> bool:
        """No larger λ is tried."""
        ...

    def accepted(self, gain: float) -> None:
        """The step was kept; ``gain`` is actual over predicted reduction."""
        ...

    def rejected(self) -> None:
        """The step was not kept, or there was none."""
        ...


def nielsen_factor(gain: float) -> float:
    """Change of λ after a step that was kept: from 1/3 for good models to about 2 for poor ones."""
    return float(nielsen_factors(np.array(gain)))


def nielsen_factors(gains: FloatArray) -> FloatArray:
    """The same for many; an array of the shape given."""
    # Bounded, so that the cube of an absurd gain does not overflow.
    return np.maximum(1.0 / 3.0, 1.0 - (2.0 * np.minimum(gains, 1e3) - 1.0) ** 3)


class NielsenDamping:
    """λ falls smoothly with the gain ratio, and grows by 2, 4, 8 … over rejected steps."""

    def __init__(self, initial_damping: float) -> None:
        self.damping = initial_damping
        self._growth = 2.0

    @property
    def exhausted(self) -> bool:
        """No larger λ is tried."""
        return self.damping > LARGEST_DAMPING

    def accepted(self, gain: float) -> None:
        """Trust the model more if it was right."""
        self.damping = max(self.damping * nielsen_factor(gain), 1.0 / LARGEST_DAMPING)
        self._growth = 2.0

    def rejected(self) -> None:
        """Trust the model less, sooner and sooner."""
        self.damping *= self._growth
        self._growth *= 2.0


class CeresRadius:
    """A trust-region radius 1/λ from 1e-32 to 1e16: as Ceres does it, so λ stays above 1e-16."""

    LARGEST, SMALLEST = 1e16, 1e-32

    def __init__(self, initial_damping: float) -> None:
        self.radius = 1.0 / initial_damping
        self._decrease = 2.0

    @property
    def damping(self) -> float:
        """λ for the next step."""
        return 1.0 / self.radius

    @property
    def exhausted(self) -> bool:
        """No smaller radius is tried."""
        return self.radius < self.SMALLEST

    def accepted(self, gain: float) -> None:
        """Widen the region if the model was right."""
        self.radius = min(self.radius / nielsen_factor(gain), self.LARGEST)
        self._decrease = 2.0

    def rejected(self) -> None:
        """Shrink the region, sooner and sooner."""
        self.radius /= self._decrease
        self._decrease *= 2.0


class Regularization:
    """No damping as long as none is needed; then 1e-10, and 10, 100, 1000 … times as much.

    For methods that step by JᵀJ itself, where that is singular or its step leads nowhere.
    """

    SMALLEST = 1e-10

    def __init__(self) -> None:
        self.damping = 0.0
        self._growth = 10.0

    @property
    def exhausted(self) -> bool:
        """No larger λ is tried."""
        return self.damping > LARGEST_DAMPING

    def accepted(self, gain: float) -> None:
        """Take less, and none in the end, whatever the gain."""
        self.damping = 0.1 * self.damping if self.damping > self.SMALLEST else 0.0
        self._growth = 10.0

    def rejected(self) -> None:
        """Take more, sooner and sooner."""
        if self.damping == 0.0:
            self.damping = self.SMALLEST
        else:
            self.damping *= self._growth
            self._growth *= 10.0


class TrustRegion:
    """The radius of a ball in scaled unknowns: halved after poor steps, tripled by good ones."""

    POOR, GOOD = 0.25, 0.75
    SMALLEST = 1.0 / LARGEST_DAMPING

    def __init__(self, initial_radius: float) -> None:
        self.radius = initial_radius

    @property
    def exhausted(self) -> bool:
        """No smaller radius is tried."""
        return self.radius < self.SMALLEST

    def accepted(self, gain: float, length: float) -> None:
        """The step was kept; ``length`` is its own, in scaled unknowns."""
        if gain < self.POOR:
            self.radius *= 0.5
        elif gain > self.GOOD:
            self.radius = max(self.radius, 3.0 * length)

    def rejected(self, length: float) -> None:
        """The step of that length was not kept; the next one is at most half as long."""
        self.radius = 0.5 * min(self.radius, length)


DAMPING_CONTROLS: MappingProxyType[str, Callable[[float], DampingControl]] = MappingProxyType(
    {"nielsen": NielsenDamping, "ceres": CeresRadius}
)
"""By the option ``step_control``; each is made from the initial damping."""
