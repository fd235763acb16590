"""Which stages a solve takes, and what all of them together say of the problem as it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.augmented_lagrangian import solve_constrained
from autograd_gpu.solvers.bounds import bound_multipliers
from autograd_gpu.solvers.constraint_group import Constraint
from autograd_gpu.solvers.energy_model import total_energy
from autograd_gpu.solvers.graduation import solve_graduated
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import IterationRecord, Status
from autograd_gpu.solvers.stages import StageRun, Stages
from autograd_gpu.solvers.watcher import Watcher

# New data change nothing then: time is over, somebody interrupted, or nothing could go on.
_OVER = (Status.MAX_SECONDS, Status.FAILED_NUMERICAL, Status.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Whole:
    """A solve of one stage or many.

    Attributes:
        last: the stage that gave the result.
        history: of all stages.
        initial_cost, cost: the problem's own, whatever the stages minimised.
        bound_multipliers: by name of the parameter array, ``(blocks, width)``.
        multipliers: by name of the constraint.
        violation: the largest of all constraints; 0 if there are none.
    """

    last: StageRun
    history: tuple[IterationRecord, ...]
    initial_cost: float
    cost: float
    bound_multipliers: Mapping[str, FloatArray]
    multipliers: Mapping[str, FloatArray] = field(default_factory=dict[str, FloatArray])
    violation: float = 0.0


def check_constraints(
    constraints: Sequence[Constraint], options: SolverOptions, precision: str
) -> None:
    """Refuse what constraints do not go with.

    Raises:
        InputError: graduated losses, or float32, in which they cannot be met.
    """
    if constraints and options.graduation is not None:
        raise InputError("graduation: the problem has constraints; leave one of the two out")
    if constraints and precision == "float32":
        raise InputError(
            "precision='float32': the problem has constraints, whose multipliers need float64; "
            "expected 'float64' or 'auto'"
        )


def run_schedule(
    analysis: Analysis,
    constraints: Sequence[Constraint],
    choice: BackendChoice,
    start: FloatArray,
    options: SolverOptions,
    stages: Stages,
    watcher: Watcher,
) -> Whole:
    """Run what the problem and the options ask for.

    Args:
        analysis: the problem, its last groups being those of the constraints; borrowed.
        constraints: in that order.
        choice: where costs and gradients outside of stages are evaluated.
        start: all parameters, flat.
        options: of the whole.
        stages: runs them.
        watcher: knows whether the callback changed the problem meanwhile.

    Raises:
        InputError: the callback changed the problem of a graduated or a constrained solve.
    """
    if constraints:
        met = solve_constrained(analysis, constraints, choice, start, options, stages)
        if watcher.stale:
            raise InputError("a callback cannot change the problem of a constrained solve")
        energies = [total_energy(analysis, choice, x) for x in (start, met.run.outcome.parameters)]
        return Whole(
            last=met.run,
            history=tuple(stages.history),
            initial_cost=met.initial_cost + energies[0],
            cost=met.cost + energies[1],
            bound_multipliers=met.bound_multipliers,
            multipliers=met.multipliers,
            violation=met.violation,
        )
    if options.graduation is None:
        last = stages.run(analysis, start, options)
        initial_cost = last.outcome.initial_cost
        while watcher.stale and not watcher.asked and last.outcome.status not in _OVER:
            analysis = watcher.follow()
            last = stages.run(analysis, last.outcome.parameters, options)
        cost = last.outcome.cost
    else:
        initial_cost = _cost(analysis, choice, start)
        graduated = solve_graduated(analysis, choice, start, options, stages)
        if watcher.stale:
            raise InputError("a callback cannot change the problem of a graduated solve")
        last = graduated.run
        # Before the last stage the history has costs of losses that are not the problem's.
        end = last.outcome
        cost = end.cost if graduated.finished else _cost(analysis, choice, end.parameters)
    pressed = bound_multipliers(analysis, choice, last.outcome.parameters)
    return Whole(last, tuple(stages.history), initial_cost, cost, pressed)


def _cost(analysis: Analysis, choice: BackendChoice, parameters: FloatArray) -> float:
    # By the kernel that a solve has anyway; under losses its half square is the cost.
    residuals = analysis.session(choice).residuals(parameters).astype(np.float64)
    return 0.5 * float(residuals @ residuals) + total_energy(analysis, choice, parameters)
