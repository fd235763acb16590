"""How far to go along a descent direction: backtracking, and the strong Wolfe conditions.

A search sees the cost along the line only as its change φ(α) - φ(0), which callers sum in
difference form, and its slope φ′(α). A change that is NaN or infinite means: too far.

Source: Nocedal, Wright 2006, "Numerical optimization", §3.1 (sufficient decrease), algorithms 3.5
and 3.6, eq. 3.57 to 3.59 (interpolation).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Change = Callable[[float], float]
"""α -> φ(α) - φ(0)."""

ChangeAndSlope = Callable[[float], tuple[float, float]]
"""α -> φ(α) - φ(0) and φ′(α)."""

# Interpolated lengths stay inside this part of the bracket, so that it shrinks.
_LEAST, _MOST = 0.1, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WolfeConditions:
    """When a step length is good enough.

    Attributes:
        decrease: c₁ of φ(α) ≤ φ(0) + c₁αφ′(0).
        curvature: c₂ of |φ′(α)| ≤ c₂|φ′(0)|.
        max_evaluations: of φ in one search.
        shortest: share of the first length below which nothing is tried any more.
    """

    decrease: float = 1e-4
    curvature: float = 0.9
    max_evaluations: int = 30
    shortest: float = 0.0


def backtracking(
    change: Change, slope: float, first: float = 1.0, conditions: WolfeConditions | None = None
) -> float | None:
    """Shorten ``first`` until the cost decreases enough.

    Args:
        change: of the cost.
        slope: φ′(0), negative.
        first: length tried first.
        conditions: sufficient decrease, and how often to try.

    Returns:
        the length, or None if none was found.
    """
    rule = conditions or WolfeConditions()
    length = first
    for _ in range(rule.max_evaluations):
        if length < rule.shortest * first:
            break
        found = change(length)
        if found <= rule.decrease * length * slope:
            return length
        # Minimum of the parabola through φ(0), φ′(0) and φ(α).
        bend = 2.0 * (found - slope * length)
        share = -slope * length / bend if math.isfinite(bend) and bend > 0.0 else _LEAST
        length *= min(max(share, _LEAST), _MOST)
    return None


@dataclass(slots=True)
class _End:
    """One end of a bracket."""

    length: float
    change: float
    slope: float


class _StrongWolfe:
    """One search by algorithms 3.5 and 3.6; ``best`` is the lowest length of enough decrease."""

    def __init__(self, evaluate: ChangeAndSlope, slope: float, rule: WolfeConditions) -> None:
        self._evaluate = evaluate
        self._slope = slope
        self._rule = rule
        self._left = rule.max_evaluations
        self._best: _End | None = None
        self._shortest = 0.0

    def search(self, first: float) -> float | None:
        """Widen until a bracket is found, then shrink it."""
        before = _End(0.0, 0.0, self._slope)
        length = first
        self._shortest = max(1e-15, self._rule.shortest) * first
        while self._left > 0:
            end = self._look(length)
            if not self._decreases(end) or (before.length > 0.0 and end.change >= before.change):
                return self._zoom(before, end)
            if self._is_flat(end):
                return end.length
            if end.slope >= 0.0:
                return self._zoom(end, before)
            before, length = end, 2.0 * length
        return self._lowest()

    def _zoom(self, low: _End, high: _End) -> float | None:
        while self._left > 0:
            if max(high.length, low.length) < self._shortest or low.length == high.length:
                break
            end = self._look(_between(low, high))
            if not self._decreases(end) or end.change >= low.change:
                high = end
                continue
            if self._is_flat(end):
                return end.length
            if end.slope * (high.length - low.length) >= 0.0:
                high = low
            low = end
        return self._lowest()

    def _look(self, length: float) -> _End:
        self._left -= 1
        end = _End(length, *self._evaluate(length))
        if not (math.isfinite(end.change) and math.isfinite(end.slope)):
            end.change, end.slope = math.inf, math.inf
        elif self._decreases(end) and (self._best is None or end.change < self._best.change):
            self._best = end
        return end

    def _decreases(self, end: _End) -> bool:
        return end.change <= self._rule.decrease * end.length * self._slope

    def _is_flat(self, end: _End) -> bool:
        return abs(end.slope) <= -self._rule.curvature * self._slope

    def _lowest(self) -> float | None:
        return None if self._best is None else self._best.length


def _between(low: _End, high: _End) -> float:
    """Minimum of the cubic through both ends (eq. 3.59), well inside; else the middle."""
    span = high.length - low.length
    if math.isfinite(high.change):
        d1 = low.slope + high.slope - 3.0 * (low.change - high.change) / (low.length - high.length)
        inside = d1 * d1 - low.slope * high.slope
        if inside >= 0.0:
            d2 = math.copysign(math.sqrt(inside), span)
            bottom = high.slope - low.slope + 2.0 * d2
            if bottom != 0.0:
                share = 1.0 - (high.slope + d2 - d1) / bottom
                return low.length + min(max(share, _LEAST), 1.0 - _LEAST) * span
    return low.length + _MOST * span


def strong_wolfe(
    evaluate: ChangeAndSlope,
    slope: float,
    first: float = 1.0,
    conditions: WolfeConditions | None = None,
) -> float | None:
    """A length with enough decrease and a slope that is flat enough.

    Args:
        evaluate: change of the cost, and its slope there.
        slope: φ′(0), negative.
        first: length tried first.
        conditions: c₁, c₂ and how often to try.

    Returns:
        the length; the lowest one with enough decrease if the slopes never became flat; None if
        there was none.
    """
    return _StrongWolfe(evaluate, slope, conditions or WolfeConditions()).search(first)
