"""How far to trust a model: damping factors and trust-region radii, updated by the gain ratio.

Sources: Nielsen 1999, "Damping parameter in Marquardt's method", IMM-REP-1999-05, eq. 2.4 and 2.5;
Ceres Solver, ``LevenbergMarquardtStrategy``, which updates the radius 1/λ by the same rule but
bounds it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Protocol

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


def _nielsen_factor(gain: float) -> float:
    """Change of λ after a step that was kept: from 1/3 for good models to about 2 for poor ones."""
    # Bounded, so that the cube of an absurd gain does not overflow.
    return max(1.0 / 3.0, 1.0 - (2.0 * min(gain, 1e3) - 1.0) ** 3)


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
        self.damping = max(self.damping * _nielsen_factor(gain), 1.0 / LARGEST_DAMPING)
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
        self.radius = min(self.radius / _nielsen_factor(gain), self.LARGEST)
        self._decrease = 2.0

    def rejected(self) -> None:
        """Shrink the region, sooner and sooner."""
        self.radius /= self._decrease
        self._decrease *= 2.0


DAMPING_CONTROLS: MappingProxyType[str, Callable[[float], DampingControl]] = MappingProxyType(
    {"nielsen": NielsenDamping, "ceres": CeresRadius}
)
"""By the option ``step_control``; each is made from the initial damping."""
