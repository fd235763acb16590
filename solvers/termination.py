"""Why a solve ends: every status and its message, judged here for all methods and engines.

Source of the three tests: Ceres Solver. What is added: a step that the model promises to be
smaller than the rounding of the cost, and that does not lower it, is the end as well.
"""

from __future__ import annotations

import math
from collections import deque
from types import MappingProxyType
from typing import NamedTuple

from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import Status

ROUNDING = MappingProxyType(
    {
        "float64": 0.0,
        "float32": 1e-7,
        "float64-native": 0.0,
        "float64-emulated": 1e-14,
        "mixed": 1e-14,
    }
)
"""Share of the cost below which a change is not looked for, by the precision of the residuals.

In difference form float64 residuals show changes far below the rounding of the cost itself.
"""

_CHECK_GRADIENTS = "check the gradients with problem.check_gradients()"


class Verdict(NamedTuple):
    """How a solve ended."""

    status: Status
    message: str


def interrupted(iteration: int) -> Verdict:
    """How a solve ends that a person interrupts (Ctrl-C) after so many steps."""
    return Verdict(
        Status.INTERRUPTED,
        f"interrupted after {iteration} steps; the values are those of the last accepted point",
    )


class Termination:
    """The tests of one run.

    Args:
        options: limits and tolerances.
        rounding: relative rounding of the cost, a value of ``ROUNDING``.
        unknowns: number of parameters that are not frozen.
    """

    def __init__(self, options: SolverOptions, rounding: float, unknowns: int) -> None:
        self._options = options
        self._rounding = rounding
        self._unknowns = unknowns
        self._costs: deque[float] = deque(maxlen=options.window() + 1)

    def unusable(self, record: StepRecord) -> Verdict | None:
        """Whether nothing can begin at the start."""
        if record.lost:
            return Verdict(Status.FAILED_NUMERICAL, f"at the start, {record.trouble}")
        return None

    def at_start(self, record: StepRecord, stopped: bool) -> Verdict | None:
        """Whether the start is the end already; ``stopped`` is the callback's wish."""
        self._costs.append(record.cost)
        if self._unknowns == 0:
            return Verdict(Status.CONVERGED_GRADIENT, "every parameter is frozen")
        if stopped:
            return self._stopped()
        return self._flat(record) or self._spent(0)

    def after(
        self, record: StepRecord, iteration: int, seconds: float, stopped: bool
    ) -> Verdict | None:
        """Whether the solve ends after this step.

        Args:
            record: of the step.
            iteration: number of steps tried so far.
            seconds: since the solve began.
            stopped: the callback's wish.
        """
        return (
            self._judged(record)
            or (self._stopped() if stopped else None)
            or self._late(seconds)
            or self._spent(iteration)
        )

    def _judged(self, record: StepRecord) -> Verdict | None:
        if record.lost:
            return self._failed_after(record)
        flat = self._flat(record)
        if flat is not None:
            return flat
        still = self._still(record)
        if still is not None:
            return still
        return self._after_accepted(record) if record.accepted else self._after_rejected(record)

    def _still(self, record: StepRecord) -> Verdict | None:
        """Whether many steps together changed little: for methods whose single steps may rise."""
        window = self._options.window()
        self._costs.append(record.cost)
        if window == 1 or len(self._costs) <= window:
            return None
        change = self._costs[0] - self._costs[-1]
        if change > self._options.function_tolerance * self._costs[0]:
            return None
        share = change / self._costs[0] if self._costs[0] > 0.0 else 0.0
        return Verdict(
            Status.CONVERGED_FUNCTION,
            f"the cost changed by {share:.3g}, relatively, in {window} steps",
        )

    def _after_accepted(self, record: StepRecord) -> Verdict | None:
        if self._options.window() > 1:
            return self._short(record) if self._is_short(record) else None
        before = abs(record.cost_before)  # energies may be negative
        if -record.change <= self._options.function_tolerance * before:
            share = -record.change / before if before > 0.0 else 0.0
            return Verdict(
                Status.CONVERGED_FUNCTION, f"the cost changed by {share:.3g}, relatively"
            )
        return self._short(record) if self._is_short(record) else None

    def _after_rejected(self, record: StepRecord) -> Verdict | None:
        if math.isnan(record.gain):
            # No promise of a model, and no shortness of a step, makes this a minimum.
            if record.trouble and self._is_short(record):
                return self._failed_after(record)
        else:
            share = max(self._options.function_tolerance, self._rounding)
            if 0.0 <= record.predicted <= share * abs(record.cost):
                promised = record.predicted / max(abs(record.cost), 1e-300)
                return Verdict(
                    Status.CONVERGED_FUNCTION,
                    f"the model promises a change of {promised:.3g}, relatively, and rounding "
                    "takes it",
                )
            if self._is_short(record):
                return self._short(record)
        if record.exhausted:
            return Verdict(
                Status.FAILED_NUMERICAL,
                f"no step lowers the cost, however short; {record.trouble or _CHECK_GRADIENTS}",
            )
        return None

    def _flat(self, record: StepRecord) -> Verdict | None:
        if record.gradient_norm <= self._options.gradient_tolerance:
            return Verdict(
                Status.CONVERGED_GRADIENT, f"largest gradient entry is {record.gradient_norm:.3g}"
            )
        return None

    def _is_short(self, record: StepRecord) -> bool:
        tolerance = self._options.parameter_tolerance
        return record.step_norm <= tolerance * (record.parameter_norm + tolerance)

    def _short(self, record: StepRecord) -> Verdict:
        return Verdict(Status.CONVERGED_PARAMETER, f"the step is {record.step_norm:.3g} long")

    def _failed_after(self, record: StepRecord) -> Verdict:
        where = f"after a step of length {record.step_norm:.3g}, {record.trouble}"
        return Verdict(Status.FAILED_NUMERICAL, where)

    def _stopped(self) -> Verdict:
        return Verdict(Status.STOPPED_BY_CALLBACK, "stopped by the callback")

    def _late(self, seconds: float) -> Verdict | None:
        limit = self._options.max_seconds
        if limit is not None and seconds > limit:
            return Verdict(Status.MAX_SECONDS, f"{limit} s are over")
        return None

    def _spent(self, iteration: int) -> Verdict | None:
        limit = self._options.max_iterations
        if iteration >= limit:
            return Verdict(Status.MAX_ITERATIONS, f"{limit} iterations are done")
        return None
