"""What one step of an iterative method reports, whatever ran it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One step that was tried; with ``step_norm`` 0 and nothing tried, the start.

    Attributes:
        cost: of the point kept.
        cost_before: of the point that the step began at.
        change: cost of the point tried minus ``cost_before``, in difference form.
        gradient_norm: largest gradient entry at the point kept, or at the point before the step
            where an engine linearizes only at the beginning of the next one.
        damping: factor in force when the step was computed.
        gain: actual over predicted reduction; NaN where no step could be computed, and where the
            cost of the point tried is not finite.
        predicted: reduction that the model promised.
        linear_iterations: of the linear solver; 1 for a direct one, 0 for none.
        accepted: whether the step was kept.
        step_norm: Euclidean length of the step tried; NaN if there was none.
        parameter_norm: Euclidean length of all parameters before the step.
        exhausted: the step control has come to its end (largest damping, smallest radius).
        trouble: what is not finite, and where; empty if there is nothing to say.
        lost: the method cannot go on from here; ``trouble`` says why.
    """

    cost: float
    cost_before: float
    gradient_norm: float
    damping: float
    change: float = 0.0
    gain: float = math.nan
    predicted: float = math.inf
    linear_iterations: int = 0
    accepted: bool = True
    step_norm: float = 0.0
    parameter_norm: float = 0.0
    exhausted: bool = False
    trouble: str = ""
    lost: bool = False
