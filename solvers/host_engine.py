"""What engines on the host share: the run they belong to, its start, and their records."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from autograd_gpu.runtime.batch import FloatArray, Session
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.conjugate_gradients import ConjugateGradients
from autograd_gpu.solvers.damped_system import DampedSystem, LinearStep
from autograd_gpu.solvers.dense_qr import DenseQR
from autograd_gpu.solvers.linear_solvers import LinearSolver
from autograd_gpu.solvers.linearization import Linearization, Stopwatch, Trial
from autograd_gpu.solvers.retraction import Retraction
from autograd_gpu.solvers.solution import KernelSummary
from autograd_gpu.solvers.termination import ROUNDING


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRun:
    """What a solve on the host is made of.

    Attributes:
        analysis: the problem; borrowed.
        session: where residuals and Jacobians come from; borrowed.
        retraction: moves parameters by a step; borrowed.
        precision: of the session.
        start: all parameters, flat; not changed.
        linear_solver: owned by the engine, which closes it.
        linear_solver_reason: why that one.
        watch: books the time.
        choice: backend and precision, for sessions of an engine's own.
    """

    analysis: Analysis
    session: Session
    retraction: Retraction
    precision: str
    start: FloatArray
    linear_solver: LinearSolver | DenseQR
    linear_solver_reason: str
    watch: Stopwatch
    choice: BackendChoice


class NormalEquationsEngine(ABC):
    """An engine whose steps come from JᵀJ and Jᵀr at the last accepted point.

    Args:
        run: what it is made of.
        linear_tolerance: relative residual at which an iterative linear solver stops.
        max_linear_iterations: of an iterative linear solver, per step.
        point: the point to start from; one at ``run.start`` that knows residuals alone if None.
    """

    def __init__(
        self,
        run: HostRun,
        linear_tolerance: float,
        max_linear_iterations: int,
        point: Linearization | None = None,
    ) -> None:
        self._run = run
        solver = run.linear_solver
        if isinstance(solver, ConjugateGradients):
            solver.tolerance = linear_tolerance
            solver.max_iterations = max_linear_iterations
        self.point = point or Linearization(
            run.analysis, run.session, run.retraction, run.start, run.watch
        )
        self._system: DampedSystem | None = None

    @property
    def description(self) -> str:
        """Processor or device that evaluates."""
        return self._run.session.description

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        return self._run.analysis.column_count

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost."""
        return ROUNDING[self._run.precision]

    @property
    def system(self) -> DampedSystem:
        """The normal equations under changing damping; analysed at first use."""
        if self._system is None:
            self._system = DampedSystem(self.point, self._run.linear_solver, self._run.watch)
        return self._system

    @property
    @abstractmethod
    def damping(self) -> float:
        """Factor in force for the next step, as the history states it."""

    @abstractmethod
    def step(self) -> StepRecord:
        """Try one step, and keep it or not."""

    def start(self) -> StepRecord:
        """Residuals, Jacobian and normal equations at the start."""
        trouble = self.point.linearize()
        return StepRecord(
            cost=self.point.cost,
            cost_before=self.point.cost,
            gradient_norm=math.nan if trouble else self.point.gradient_norm,
            damping=self.damping,
            trouble=trouble,
            lost=bool(trouble),
        )

    def warm_up(self) -> None:
        """Compile everything that a solve may need.

        Kernels of the linear algebra are compiled by a system of zeros and the identity.
        """
        run = self._run
        run.session.warm_up()
        run.retraction.warm_up()
        groups, normal = run.analysis.groups, self.point.normal
        values = sum(g.count * g.value_count for g in groups)
        normal.assemble(np.zeros(values), np.zeros(sum(g.count * g.residual_size for g in groups)))
        if isinstance(run.linear_solver, DenseQR):  # LAPACK alone
            return
        normal.gradient[:] = 1.0
        self.system.solve(np.ones(normal.n))
        if isinstance(run.linear_solver, ConjugateGradients):
            run.linear_solver.warm_up()

    def relinearize(self) -> str:
        """Evaluate the point again, with Jacobians that the session now gives otherwise.

        Returns:
            What is not finite; nothing if all is.
        """
        return self.point.linearize()

    def parameters(self) -> FloatArray:
        """The last accepted point."""
        return self.point.x

    def linear_solver(self) -> tuple[str, str]:
        """Name of the linear solver; why it was chosen, and what it did."""
        solver, why = self._run.linear_solver, self._run.linear_solver_reason
        if isinstance(solver, ConjugateGradients):
            why = f"{why} {solver.describe()}"
        return solver.name, why

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far."""
        return session_kernels(self._run.analysis, self._run.session)

    def close(self) -> None:
        """Free the linear solver."""
        self._run.linear_solver.close()

    def keep(self, linear: LinearStep, damping: float, trial: Trial) -> StepRecord:
        """Make a trial the point, and report it as kept; or as lost, if nothing can go on there."""
        point = self.point
        before, length = point.cost, point.norm()
        trouble = point.move(trial)
        return StepRecord(
            cost=point.cost,
            cost_before=before,
            gradient_norm=point.gradient_norm,
            damping=damping,
            change=-trial.reduction,
            gain=trial.reduction / linear.predicted,
            predicted=linear.predicted,
            linear_iterations=linear.linear_iterations,
            accepted=not trouble,
            step_norm=linear.norm,
            parameter_norm=length,
            trouble=trouble,
            lost=bool(trouble),
        )

    def refuse(
        self,
        linear: LinearStep | None,
        damping: float,
        exhausted: bool,
        trial: Trial | None = None,
    ) -> StepRecord:
        """Report a step that is not kept.

        Args:
            linear: the step; None if there was none.
            damping: it was computed with.
            exhausted: the step control gives up.
            trial: what came of it; None if it was not tried.
        """
        point = self.point
        gain = math.nan
        if linear is not None and trial is not None and not trial.trouble:
            gain = trial.reduction / linear.predicted
        return StepRecord(
            cost=point.cost,
            cost_before=point.cost,
            gradient_norm=point.gradient_norm,
            damping=damping,
            change=math.nan if trial is None else -trial.reduction,
            gain=gain,
            predicted=math.inf if linear is None else linear.predicted,
            linear_iterations=1 if linear is None else linear.linear_iterations,
            accepted=False,
            step_norm=math.nan if linear is None else linear.norm,
            parameter_norm=point.norm(),
            exhausted=exhausted,
            trouble="" if trial is None else trial.trouble,
        )


def session_kernels(analysis: Analysis, session: Session) -> tuple[KernelSummary, ...]:
    """Kernels that a session compiled, named by the first group that uses each."""
    names = {g.topology.key: g.name for g in reversed(analysis.groups)}
    return tuple(
        KernelSummary(
            name=f"{names[s.kernel.topology_key]} {s.kernel.product.value}",
            target=s.target,
            ops=s.kernel.graph.stats.ops,
        )
        for s in session.sources()
    )
