"""``ag.tune``: the schedules of a problem by measurement, remembered for later solves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.choice import BackendChoice, choose_backend
from autograd_gpu.runtime.schedule_choice import Measured
from autograd_gpu.runtime.schedule_costs import estimate
from autograd_gpu.runtime.schedules import Schedule, alternatives
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.schedule_trials import (
    AssemblyTrials,
    GradientTrials,
    SolveTrials,
    Trials,
)

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

FINALISTS = 3
"""The fastest are measured once more, one after the other, before one of them is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeTuning:
    """What was measured for one purpose.

    Attributes:
        groups: names of the residual groups.
        modelled: what the cost model alone would have taken.
        modelled_seconds: what that took.
        measured: everything tried, the fastest first.
    """

    groups: tuple[str, ...]
    modelled: tuple[Schedule, ...]
    modelled_seconds: float
    measured: Measured

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """The fastest."""
        return self.measured[0][0]

    @property
    def seconds(self) -> float:
        """What the fastest took."""
        return self.measured[0][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Result of ``ag.tune``.

    Attributes:
        device: where.
        purposes: ``solve`` and ``gradient`` on a device, ``assembly`` on the host.
    """

    device: str
    purposes: Mapping[str, PurposeTuning]

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        out = io.StringIO()
        console = Console(file=out, width=100, highlight=False)
        for purpose, tuning in self.purposes.items():
            table = Table(title=f"{purpose} on {self.device}", title_justify="left")
            for heading in (*tuning.groups, "µs", "times the fastest"):
                table.add_column(heading)
            for schedules, seconds in tuning.measured:
                times = f"{seconds / tuning.seconds:.2f}"
                words = [str(s) for s in schedules]
                table.add_row(*words, f"{seconds * 1e6:.4g}", times)
            console.print(table)
        return out.getvalue()


def tune(
    problem: Problem,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> Tuning:
    """Measure the schedules of a problem where it would run, and remember the fastest.

    Later solves and gradients of problems with the same residual functions and sizes (within a
    factor of two) on the same device use them, in this process and in others that share the cache
    folder. All of them give the same results up to rounding, and the same bits in every run.

    Args:
        problem: evaluated at its current parameters, which stay as they are.
        backend: as for ``ag.solve``.
        precision: as for ``ag.solve``.
        device: as for ``ag.solve``.

    Raises:
        InputError: a backend with one schedule (``numpy``, ``jax``), or a problem with one.
        DeviceError: the device fails.
    """
    analysis = problem.analysis()
    size = analysis.row_count + sum(g.count for g in analysis.energies)
    choice = choose_backend(backend, precision, problem.device(device), size)
    found: dict[str, PurposeTuning] = {}
    with problem.in_use():
        for trials in _trials(problem, analysis, choice):
            found[trials.chooser.purpose] = tuned(trials)
            trials.close()
    analysis.forget_schedules()
    where = "CPU" if choice.device is None else choice.device.name
    return Tuning(device=where, purposes=found)


def _trials(problem: Problem, analysis: Analysis, choice: BackendChoice) -> list[Trials]:
    parameters = current_parameters(problem)
    if choice.backend in ("numpy", "jax"):
        raise InputError(
            f"tune: backend {choice.backend!r} has one schedule; there is nothing to tune. "
            "backend='numba' and 'wgsl' have several"
        )
    if choice.device is None or choice.precision not in ("float32", "mixed"):
        return [AssemblyTrials(analysis, parameters)]
    plain = not analysis.external_names and all(a.chart is None for a in analysis.arrays)
    if analysis.energies or analysis.has_long_rows or not plain or not analysis.column_count:
        # Such problems are summed on the host, whatever evaluates them.
        return [AssemblyTrials(analysis, parameters)]
    device = choice.device
    return [
        SolveTrials(analysis, device, parameters), GradientTrials(analysis, device, parameters)
    ]  # fmt: skip


def tuned(trials: Trials) -> PurposeTuning:
    """Measure, take the fastest, and remember it."""
    features = trials.features
    modelled = tuple(replace(trials.chooser, measured=False)(features))
    search = Search(trials)
    search.descend(modelled)
    search.repeat(FINALISTS)
    trials.chooser.remember(features, search.measured)
    return PurposeTuning(
        groups=tuple(f.name for f in features),
        modelled=modelled,
        modelled_seconds=search.seconds_of(modelled),
        measured=search.measured,
    )


class Search:
    """Coordinate descent: one group at a time, then what all groups share."""

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._purpose = trials.chooser.purpose
        self._shared = "materialise" if self._purpose == "assembly" else "workgroup_size"
        self._times: dict[tuple[Schedule, ...], float] = {}

    @property
    def measured(self) -> Measured:
        """What was tried, the fastest first; what the device refused is left out."""
        known = [(s, t) for s, t in self._times.items() if math.isfinite(t)]
        return tuple(sorted(known, key=lambda pair: pair[1]))

    def seconds_of(self, schedules: Sequence[Schedule]) -> float:
        """Measured once; infinite if the device refuses."""
        key = tuple(schedules)
        if key not in self._times:
            seconds = self._trials.seconds(key)
            self._times[key] = math.inf if seconds is None else seconds
        return self._times[key]

    def descend(self, start: Sequence[Schedule]) -> tuple[Schedule, ...]:
        """The fastest that single changes lead to."""
        best = tuple(start)
        self.seconds_of(best)
        while True:
            before = best
            best = self._groups(best)
            best = self._common(best)
            if best == before:
                return best

    def repeat(self, count: int) -> None:
        """Measure the fastest again; each keeps its better time."""
        for schedules, seconds in self.measured[:count]:
            again = self._trials.seconds(schedules)
            if again is not None:
                self._times[schedules] = min(seconds, again)

    def _choices(self, k: int) -> list[Schedule]:
        found = alternatives(self._trials.features[k], self._purpose)
        return [s for s in found if self._trials.allows(s)]

    def _groups(self, best: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        profile = self._trials.chooser.where.profile
        features = self._trials.features
        heaviest = sorted(
            range(len(best)),
            key=lambda k: -estimate(features[k], best[k], self._purpose, profile),
        )
        for k in heaviest:
            shared = getattr(best[k], self._shared)
            for schedule in self._choices(k):
                if getattr(schedule, self._shared) == shared:
                    best = self._better(best, (*best[:k], schedule, *best[k + 1 :]))
        return best

    def _common(self, best: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        choices = [self._choices(k) for k in range(len(best))]
        values = {getattr(s, self._shared) for found in choices for s in found}
        for value in sorted(values, key=str):
            changed = tuple(replace(s, **{self._shared: value}) for s in best)
            if all(s in found for s, found in zip(changed, choices, strict=True)):
                best = self._better(best, changed)
        return best

    def _better(
        self, best: tuple[Schedule, ...], other: tuple[Schedule, ...]
    ) -> tuple[Schedule, ...]:
        return other if self.seconds_of(other) < self.seconds_of(best) else best
