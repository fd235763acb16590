"""``ag.tune``: the schedules of a problem by measurement, remembered for later solves."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autograd_gpu.errors import DeviceError, InputError
from autograd_gpu.runtime.choice import BackendChoice, choose_backend, runs_on_a_gpu
from autograd_gpu.runtime.schedule_choice import Measured
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.explanation import resident, resident_precision
from autograd_gpu.solvers.schedule_search import Search
from autograd_gpu.solvers.schedule_trials import (
    AssemblyTrials,
    GradientTrials,
    SolveTrials,
    Stand,
    Trials,
)

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeTuning:
    """What was measured for one purpose.

    Attributes:
        groups: names of the residual groups.
        modelled: what the cost model alone would have taken; chosen where nothing is faster by
            more than the times differ from one to the next.
        modelled_seconds: what that took, in the same rounds as what was chosen.
        measured: everything tried, what was chosen first, then the fastest first; median seconds.
        samples: how many times were taken.
    """

    groups: tuple[str, ...]
    modelled: tuple[Schedule, ...]
    modelled_seconds: float
    measured: Measured
    samples: int

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """What was chosen."""
        return self.measured[0][0]

    @property
    def seconds(self) -> float:
        """What that took."""
        return self.measured[0][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Result of ``ag.tune``.

    Attributes:
        device: where.
        purposes: those that ``explain`` tells of: ``solve`` and ``gradient`` on a device, and
            ``assembly`` where JᵀJ is summed on the host.
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
            for heading in (*tuning.groups, "µs", "times the chosen"):
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
    """Measure the schedules of a problem where it would run, and remember what to take.

    Schedules are timed in turns, and what the cost model would take stays unless another one is
    faster by more than times differ (`schedule_race`); a few seconds to half a minute.

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
            try:
                found[trials.chooser.purpose] = tuned(trials)
            finally:
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
    found: list[Trials] = []
    if choice.device is not None and resident(analysis, choice):
        given = (analysis, choice.device, parameters, resident_precision(choice))
        found = [SolveTrials(*given), GradientTrials(*given)]
    if not found or not runs_on_a_gpu(choice):
        # A direct solver sums on the host, whatever evaluates.
        found.append(AssemblyTrials(analysis, parameters))
    return found


def tuned(trials: Trials) -> PurposeTuning:
    """Measure, choose, and remember the choice.

    Raises:
        DeviceError: the device refuses every schedule.
    """
    features = trials.features
    modelled = tuple(replace(trials.chooser, measured=False)(features))
    with Stand(trials) as stand:
        search = Search(trials, stand)
        measured = search.run(modelled)
    if not measured:
        raise DeviceError(
            f"tune: {trials.chooser.where.name} refuses every schedule of this problem, for "
            f"purpose {trials.chooser.purpose!r}; its memory may be too small for the problem"
        )
    trials.chooser.remember(features, measured)
    return PurposeTuning(
        groups=tuple(f.name for f in features),
        modelled=modelled,
        modelled_seconds=dict(measured).get(modelled, math.inf),
        measured=measured,
        samples=search.samples,
    )
