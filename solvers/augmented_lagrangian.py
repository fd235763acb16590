"""Equality and inequality constraints by an augmented Lagrangian, over any method.

Minimises ½‖r‖² subject to l ≤ c(x) ≤ u as a row of problems without these constraints, in which
√μ (c + λ/μ - P(c + λ/μ)) are further residuals; after each, λ becomes what those residuals press
with, and the penalty μ grows where the violation did not fall enough. Box bounds are left to the
method. The measure of violation is the change of λ/μ: |c - P(c)| for an equality, and 0 for an
inequality only if it holds and its multiplier is zero or it is active.

Sources: Birgin, Martínez 2014, "Practical augmented Lagrangian methods for constrained
optimization", algorithm 4.1 and §12.4 (first penalty); Boyd, Vandenberghe 2018, "Introduction to
applied linear algebra", §19.3 (nonlinear least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from autograd_gpu.runtime.batch import BoundGroup, DataBinding, FloatArray
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.bounds import bound_multipliers
from autograd_gpu.solvers.constraint_group import Constraint
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import Status
from autograd_gpu.solvers.stages import StageRun, Stages

LARGEST_PENALTY = 1e16
LARGEST_MULTIPLIER = 1e20


@dataclass(frozen=True, slots=True)
class Constrained:
    """How a constrained solve ended.

    Attributes:
        run: the last stage, with the status of the whole.
        multipliers: by name of the constraint: the rate at which the least cost grows with the
            bound; ≥ 0 at a lower one, ≤ 0 at an upper one, of either sign at an equality.
        bound_multipliers: of box bounds, under these multipliers.
        violation: the largest, as the module says.
        initial_cost, cost: ½‖r‖² without the terms of constraints.
    """

    run: StageRun
    multipliers: dict[str, FloatArray]
    bound_multipliers: dict[str, FloatArray]
    violation: float
    initial_cost: float
    cost: float


class _State:
    """Multipliers and penalty, and the problem that they make.

    Args:
        analysis: of the problem whose last groups are the constraints'; borrowed.
        constraints: in the order of these groups.
        choice: where residuals are evaluated.
    """

    def __init__(
        self, analysis: Analysis, constraints: Sequence[Constraint], choice: BackendChoice
    ) -> None:
        self.analysis = analysis
        self._choice = choice
        self._first = len(analysis.groups) - len(constraints)
        self._constraints = constraints
        self.penalty = 1.0
        self.multipliers = [
            np.zeros((g.count, g.residual_size)) for g in analysis.groups[self._first :]
        ]

    def problem(self) -> Analysis:
        """The problem of a stage; the caller closes it."""
        own = self.analysis.groups[: self._first]
        bound = zip(
            self.analysis.groups[self._first :], self._constraints, self.multipliers, strict=True
        )
        return self.analysis.rebound([*own, *(self._bound(g, c, v) for g, c, v in bound)])

    def _bound(
        self, group: BoundGroup, constraint: Constraint, multipliers: FloatArray
    ) -> BoundGroup:
        first = len(constraint.group.arguments) - 2
        data = {
            first: DataBinding(values=multipliers / self.penalty, shared=False),
            first + 1: DataBinding(values=np.full((1, 1), np.sqrt(self.penalty)), shared=True),
        }
        bindings = list(group.bindings)
        for argument, binding in data.items():
            bindings[group.topology.arguments.index(argument)] = binding
        return replace(group, bindings=tuple(bindings))

    def measure(self, problem: Analysis, x: FloatArray) -> tuple[float, list[FloatArray]]:
        """½‖r‖² without constraints, and what λ becomes at a point of a stage's problem."""
        residuals = problem.session(self._choice).residuals(x).astype(np.float64)
        sizes = [g.count * g.residual_size for g in problem.groups]
        rows = np.split(residuals, np.cumsum(sizes)[:-1])
        own = np.concatenate([np.zeros(0), *rows[: self._first]])
        limit = LARGEST_MULTIPLIER
        pressed = [
            np.clip(np.sqrt(self.penalty) * r.reshape(v.shape), -limit, limit)
            for r, v in zip(rows[self._first :], self.multipliers, strict=True)
        ]
        return 0.5 * float(own @ own), pressed

    def violations(self, pressed: Sequence[FloatArray]) -> list[FloatArray]:
        """Change of λ/μ by constraint."""
        pairs = zip(pressed, self.multipliers, strict=True)
        return [np.abs(new - old) / self.penalty for new, old in pairs]

    def first_penalty(self, x: FloatArray) -> float:
        """Choose μ so that cost and violation weigh about the same; returns the cost at x."""
        problem = self.problem()
        try:
            cost, pressed = self.measure(problem, x)
        finally:
            problem.close()
        violation = 0.5 * sum(float(np.sum(np.square(v))) for v in self.violations(pressed))
        if np.isfinite(cost) and np.isfinite(violation):
            guess = 10.0 * max(1.0, cost) / max(1.0, violation)
            self.penalty = float(np.clip(guess, 1e-8, 1e8))
        return cost

    def worst(self, violations: Sequence[FloatArray]) -> str:
        """Name the largest violation."""
        k = int(np.argmax([float(v.max(initial=0.0)) for v in violations]))
        element, component = np.unravel_index(int(np.argmax(violations[k])), violations[k].shape)
        return (
            f"constraint {self._constraints[k].group.name!r}, element {element}, component "
            f"{component} is off by {violations[k].max():.3g}"
        )

    def reported(self) -> dict[str, FloatArray]:
        """-λ by name, in the shape of the constraint."""
        pairs = zip(self._constraints, self.multipliers, strict=True)
        return {c.group.name: (0.0 - v).reshape(c.shape) for c, v in pairs}


def solve_constrained(
    analysis: Analysis,
    constraints: Sequence[Constraint],
    choice: BackendChoice,
    start: FloatArray,
    options: SolverOptions,
    stages: Stages,
) -> Constrained:
    """Stages with better and better multipliers.

    Args:
        analysis: of the problem, its last groups being those of the constraints; borrowed.
        constraints: in that order.
        choice: where residuals are evaluated.
        start: all parameters, flat.
        options: of every stage.
        stages: runs them.
    """
    rules = options.augmented_lagrangian
    state = _State(analysis, constraints, choice)
    initial_cost = state.first_penalty(start)
    if rules.initial_penalty is not None:
        state.penalty = rules.initial_penalty
    x, before = start, np.inf
    while True:
        problem = state.problem()
        try:
            run = stages.run(problem, x, options)
            x = run.outcome.parameters
            cost, pressed = state.measure(problem, x)
            # Under the old multipliers the gradient is that of the Lagrangian under the new ones.
            at_bounds = bound_multipliers(problem, choice, x)
        finally:
            problem.close()
        violations = state.violations(pressed)
        violation = max(float(v.max(initial=0.0)) for v in violations)
        state.multipliers = pressed
        end = _verdict(run, violation <= rules.tolerance, stages, state, violations)
        if end is not None:
            found = state.reported()
            return Constrained(end, found, at_bounds, violation, initial_cost, cost)
        if violation > rules.decrease * before:
            state.penalty = min(rules.growth * state.penalty, 2.0 * LARGEST_PENALTY)
        before = violation


def _verdict(
    run: StageRun, met: bool, stages: Stages, state: _State, violations: Sequence[FloatArray]
) -> StageRun | None:
    """The last stage with the status of the whole; None if another one follows."""
    outcome = run.outcome
    if run.stopped:
        return run
    if met and outcome.status.converged:
        largest = max(float(v.max(initial=0.0)) for v in violations)
        said = f"{outcome.message}; constraints hold to {largest:.3g}"
        status = outcome.status
    elif stages.spent:
        status = Status.MAX_ITERATIONS
        said = f"{stages.iterations} iterations are done; {state.worst(violations)}"
    elif state.penalty > LARGEST_PENALTY:
        status = Status.FAILED_NUMERICAL
        said = f"no penalty meets the constraints: {state.worst(violations)}"
    else:
        return None
    return replace(run, outcome=replace(outcome, status=status, message=said))
