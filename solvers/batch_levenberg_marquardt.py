"""Levenberg-Marquardt over many copies of a small problem, each with its own damping and end.

The rules are those of one solve, told for arrays of copies: Nielsen's damping (`step_control`),
the tests of `termination`. A copy that has ended is not moved any more; once most have, the rest
go on as a shorter batch. What a copy does depends on no other copy, to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.runtime.threads import available_threads, run_in_threads
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.copies import Copies, DataOfCopies, group_columns
from autograd_gpu.solvers.damped_system import DAMPING_FORMS
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.retraction import Retraction
from autograd_gpu.solvers.solution import Status
from autograd_gpu.solvers.step_control import LARGEST_DAMPING, nielsen_factors
from autograd_gpu.solvers.termination import ROUNDING

BoolArray = NDArray[np.bool_]

# Copies handed to a thread at a time.
_CHUNK = 256


@dataclass(slots=True)
class CopyStates:
    """State of each copy, one entry a copy.

    Attributes:
        cost, initial_cost: ½‖r‖²; NaN or infinite only at a start that is not finite.
        gradient_norm: largest entry of |Jᵀr|.
        damping, growth: λ, and its next factor after a rejected step.
        iterations: steps tried.
        status: why it ended; None while it goes on.
    """

    cost: FloatArray
    initial_cost: FloatArray
    gradient_norm: FloatArray
    damping: FloatArray
    growth: FloatArray
    iterations: IndexArray
    status: NDArray[np.object_]

    @classmethod
    def of(cls, count: int, damping: float) -> CopyStates:
        """States before the start."""
        nothing = np.full(count, np.nan)
        return cls(
            cost=nothing.copy(),
            initial_cost=nothing.copy(),
            gradient_norm=nothing.copy(),
            damping=np.full(count, damping),
            growth=np.full(count, 2.0),
            iterations=np.zeros(count, np.int64),
            status=np.full(count, None, np.object_),
        )


class BatchLevenbergMarquardt:
    """One run over all copies.

    Args:
        analysis: of the problem; borrowed.
        choice: backend and precision.
        data: rows that differ by copy.
        start: each array of each copy, ``(copies, …)``; not changed.
        options: of the method.

    Attributes:
        states: of all copies, in order.
        values: each array of each copy, ``(copies, numbers)``.
        description: device or processor.
    """

    def __init__(
        self,
        analysis: Analysis,
        choice: BackendChoice,
        data: DataOfCopies,
        start: list[FloatArray],
        options: LevenbergMarquardtOptions,
    ) -> None:
        self.analysis, self.choice, self.data = analysis, choice, data
        self.options = options
        self.columns = group_columns(analysis)
        count = len(start[0])
        self.values = [s.reshape(count, -1).copy() for s in start]
        self.states = CopyStates.of(count, options.initial_damping)
        self.description = ""

    @property
    def rounding(self) -> float:
        """Relative rounding of a cost."""
        return ROUNDING[self.choice.precision]

    @np.errstate(all="ignore")
    def stage(self, which: IndexArray, began: float) -> None:
        """Step these copies until half of them have ended; what they reached is kept.

        Args:
            which: numbers of the copies.
            began: when the run began, by ``time.perf_counter``.

        Raises:
            DeviceError, KernelError, MemoryError: every copy is then at its last accepted point.
        """
        stage = _Stage(self, which)
        try:
            self.description = stage.copies.session.description
            stage.start()
            stage.iterate(began)
        finally:
            stage.keep()
            stage.close()

    def going(self, which: IndexArray) -> IndexArray:
        """Those that have not ended."""
        return which[[status is None for status in self.states.status[which]]]


@dataclass(frozen=True, slots=True)
class _Tried:
    """What came of one step of each copy.

    Attributes:
        usable: there was a step, and the model promised a lower cost.
        kept, lost, refused: the copy moved; it may not, for its derivatives there; it did not.
        reduction, before: of the cost, and the cost before.
        norms, lengths: of the step, and of all parameters before it.
    """

    usable: BoolArray
    kept: BoolArray
    lost: BoolArray
    refused: BoolArray
    reduction: FloatArray
    before: FloatArray
    norms: FloatArray
    lengths: FloatArray


class _Stage:
    """The copies that go on, as one batch, until half of them have ended."""

    def __init__(self, run: BatchLevenbergMarquardt, which: IndexArray) -> None:
        self._run = run
        self._which = which
        self._options = run.options
        self.copies = Copies(run.analysis, run.choice, run.data, which)
        self._x = self.copies.flat([v[which] for v in run.values])
        movable = self.copies.movable()
        self._retraction = Retraction(movable, run.choice)
        self._positions = np.concatenate(
            [m.positions.reshape(len(which), -1) for m in movable], axis=1
        )
        n = run.analysis.column_count
        self._matrices = np.zeros((len(which), n, n))
        self._factors = np.zeros((len(which), n, n))
        self._definite = np.zeros(len(which), np.bool_)
        self._gradients = np.zeros((len(which), n))
        self._steps = np.zeros((len(which), n))
        self._predicted = np.zeros(len(which))
        self._residuals = np.zeros(0)
        self._scale = DAMPING_FORMS[self._options.damping]

    @property
    def _states(self) -> CopyStates:
        return self._run.states

    def start(self) -> None:
        """Linearise every copy; the first stage judges the start."""
        states, which = self._states, self._which
        everyone = np.ones(len(which), np.bool_)
        self._linearize(everyone)
        first = np.isnan(states.initial_cost[which])
        cost = self._half_squares(self._residuals)
        states.cost[which[first]] = cost[first]
        states.initial_cost[which[first]] = cost[first]
        states.gradient_norm[which] = norms = self._gradient_norms()
        unusable = ~np.isfinite(cost) | ~np.isfinite(norms)
        self._end(unusable, Status.FAILED_NUMERICAL)
        self._end(norms <= self._options.gradient_tolerance, Status.CONVERGED_GRADIENT)
        self._end(states.iterations[which] >= self._options.max_iterations, Status.MAX_ITERATIONS)

    def iterate(self, began: float) -> None:
        """Step until half of the copies have ended."""
        options, states, which = self._options, self._states, self._which
        while True:
            going = self._going()
            left = np.count_nonzero(going)
            if not left or (2 * left <= len(which) and len(which) > _CHUNK):
                break
            if (
                options.max_seconds is not None
                and time.perf_counter() - began > options.max_seconds
            ):
                self._end(going, Status.MAX_SECONDS)
                continue
            self._step(going)
            spent = states.iterations[which] >= options.max_iterations
            self._end(spent, Status.MAX_ITERATIONS)

    def keep(self) -> None:
        """Put the last accepted points where the run has them."""
        for values, own in zip(self._run.values, self.copies.arrays(self._x), strict=True):
            values[self._which] = own

    def _going(self) -> BoolArray:
        ended: NDArray[np.bool_] = self._states.status[self._which] != np.array(None, np.object_)
        return ~ended

    def _end(self, where: BoolArray, status: Status) -> None:
        """Give a status to those copies that have none."""
        self._states.status[self._which[where & self._going()]] = status

    def _step(self, going: BoolArray) -> None:
        """Try one step of every copy that goes on, and keep it or not."""
        states, which, x = self._states, self._which, self._x
        diagonals = np.einsum("cii->ci", self._matrices)
        damping = states.damping[which, None] * self._scale(diagonals)
        self._solve(damping, going)
        norms = np.linalg.norm(self._steps, axis=1)
        usable = going & np.isfinite(norms) & (self._predicted > 0.0)
        self._steps[~usable] = 0.0
        trial = self._retraction(x, self._steps.ravel())
        residuals = self.copies.session.residuals(trial)
        reduction = self._reductions(residuals)
        gain = reduction / self._predicted
        lengths = self._parameter_norms()
        kept = usable & np.isfinite(reduction) & (gain > self._options.min_gain_ratio)
        before = states.cost[which].copy()
        lost = self._keep(kept, trial, residuals)
        self._control(going, kept, gain)
        states.iterations[which[going]] += 1
        states.gradient_norm[which[lost]] = np.nan
        self._judge(
            _Tried(usable, kept & ~lost, lost, going & ~kept, reduction, before, norms, lengths)
        )

    def _keep(self, kept: BoolArray, trial: FloatArray, residuals: FloatArray) -> BoolArray:
        """Move kept copies to the trial; says which have unusable derivatives there, and stay."""
        states, which = self._states, self._which
        lost = np.zeros(len(which), np.bool_)
        if not kept.any():
            return lost
        old = self._x[self._positions]
        self._x[self._positions[kept]] = trial[self._positions[kept]]
        cost = self._half_squares(residuals)
        try:
            self._linearize(kept)
        except BaseException:  # a fault, or Ctrl-C: costs are those of the old points
            self._x[self._positions[kept]] = old[kept]
            raise
        norms = self._gradient_norms()
        lost = kept & ~np.isfinite(norms)
        self._x[self._positions[lost]] = old[lost]
        moved = kept & ~lost
        states.cost[which[moved]] = cost[moved]
        states.gradient_norm[which[moved]] = norms[moved]
        return lost

    def _linearize(self, chosen: BoolArray) -> None:
        """Residuals of all copies; normal equations of the chosen ones."""
        residuals, values = self.copies.session.residual_jacobian(self._x)
        self._matrices[chosen] = 0.0
        self._gradients[chosen] = 0.0
        first = entry = 0
        run = kernel("add_normal", "int32")
        for group in self._run.columns:
            count = self.copies.count * group.elements
            rows, entries = count * group.rows, count * len(group.entry_rows)
            own = (residuals[first : first + rows], values[entry : entry + entries])
            first, entry = first + rows, entry + entries
            fixed = (
                group.elements, group.rows, group.columns, group.entry_rows, group.entry_columns,
                *own, chosen, self._matrices, self._gradients,
            )  # fmt: skip
            _in_ranges(self.copies.count, lambda a, b, fixed=fixed: run(a, b, *fixed))
        if self._run.analysis.has_losses:
            # The corrected pair makes steps; half its square is not the cost.
            residuals = self.copies.session.residuals(self._x)
        self._residuals = residuals.copy()

    def _solve(self, damping: FloatArray, going: BoolArray) -> None:
        factor, step = kernel("factor_damped", "int32"), kernel("damped_steps", "int32")
        factors, definite = self._factors, self._definite

        def task(a: int, b: int) -> None:
            factor(a, b, self._matrices, damping, going, factors, definite)
            step(a, b, factors, definite, self._gradients, damping, self._steps, self._predicted)

        _in_ranges(self.copies.count, task)

    def _control(self, going: BoolArray, kept: BoolArray, gain: FloatArray) -> None:
        """Nielsen's rule."""
        states, which = self._states, self._which
        better, worse = which[kept], which[going & ~kept]
        damping = states.damping[better] * nielsen_factors(gain[kept])
        states.damping[better] = np.maximum(damping, 1.0 / LARGEST_DAMPING)
        states.growth[better] = 2.0
        states.damping[worse] *= states.growth[worse]
        states.growth[worse] *= 2.0

    def _judge(self, tried: _Tried) -> None:
        """The tests of `termination`, in its order; the first that holds decides."""
        options, states, which = self._options, self._states, self._which
        tolerance = options.parameter_tolerance
        short = tried.norms <= tolerance * (tried.lengths + tolerance)
        blind = tried.refused & ~(tried.usable & np.isfinite(tried.reduction))
        judged = tried.refused & ~blind
        share = max(options.function_tolerance, self._run.rounding)
        promised = self._predicted <= share * np.abs(states.cost[which])
        flat = states.gradient_norm[which] <= options.gradient_tolerance
        small = tried.reduction <= options.function_tolerance * tried.before
        self._end(tried.lost, Status.FAILED_NUMERICAL)
        self._end((tried.kept | tried.refused) & flat, Status.CONVERGED_GRADIENT)
        self._end(tried.kept & small, Status.CONVERGED_FUNCTION)
        self._end(tried.kept & short, Status.CONVERGED_PARAMETER)
        # No promise of a model, and no shortness of a step, makes a point beside NaN a minimum.
        self._end(blind & tried.usable & short, Status.FAILED_NUMERICAL)
        self._end(judged & promised, Status.CONVERGED_FUNCTION)
        self._end(judged & short, Status.CONVERGED_PARAMETER)
        exhausted = states.damping[which] > LARGEST_DAMPING
        self._end(tried.refused & exhausted, Status.FAILED_NUMERICAL)

    def _per_copy(self, by_group: Callable[[FloatArray, FloatArray], FloatArray],
                  residuals: FloatArray) -> FloatArray:  # fmt: skip
        pairs = zip(
            self.copies.by_copy(self._residuals), self.copies.by_copy(residuals), strict=True
        )
        return sum((by_group(old, new) for old, new in pairs), np.zeros(self.copies.count))

    def _half_squares(self, residuals: FloatArray) -> FloatArray:
        return self._per_copy(lambda _, new: 0.5 * np.einsum("ci,ci->c", new, new), residuals)

    def _reductions(self, residuals: FloatArray) -> FloatArray:
        return self._per_copy(
            lambda old, new: 0.5 * np.einsum("ci,ci->c", old - new, old + new), residuals
        )

    def _gradient_norms(self) -> FloatArray:
        return np.max(np.abs(self._gradients), axis=1, initial=0.0)

    def _parameter_norms(self) -> FloatArray:
        squares = [np.einsum("ci,ci->c", v, v) for v in self.copies.arrays(self._x)]
        return np.sqrt(sum(squares, np.zeros(self.copies.count)))

    def close(self) -> None:
        """Free the sessions."""
        self.copies.close()
        self._retraction.close()


def _in_ranges(count: int, task: Callable[[int, int], None]) -> None:
    parts = max(1, min(4 * available_threads(), count // _CHUNK))
    bounds = [count * k // parts for k in range(parts + 1)]

    def part(k: int) -> Callable[[], None]:
        return lambda: task(bounds[k], bounds[k + 1])

    run_in_threads([part(k) for k in range(parts)])
