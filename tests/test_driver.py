"""The loop and the stopping tests, with engines that take any step one wants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.driver import Engine, Outcome, iterate
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import IterationRecord, KernelSummary, Status
from autograd_gpu.solvers.step_control import (
    DAMPING_CONTROLS,
    LARGEST_DAMPING,
    CeresRadius,
    NielsenDamping,
)

START = StepRecord(cost=8.0, cost_before=8.0, gradient_norm=4.0, damping=1.0)
KEPT = StepRecord(
    cost=4.0, cost_before=8.0, change=-4.0, gradient_norm=2.0, damping=1.0, gain=0.9,
    predicted=4.4, linear_iterations=3, step_norm=0.5, parameter_norm=2.0,
)  # fmt: skip
REFUSED = replace(KEPT, cost=8.0, change=1.0, gradient_norm=4.0, gain=-0.2, accepted=False)


class Scripted:
    """An engine that reports what it was told, and counts what was asked of it."""

    description = "paper"

    def __init__(self, *records: StepRecord, rounding: float = 0.0, unknowns: int = 1) -> None:
        self.rounding = rounding
        self.unknowns = unknowns
        self.steps = 0
        self._records: Iterator[StepRecord] = iter(records)

    def start(self) -> StepRecord:
        return next(self._records)

    def step(self) -> StepRecord:
        self.steps += 1
        return next(self._records)

    def parameters(self) -> FloatArray:
        return np.array([float(self.steps)])

    def linear_solver(self) -> tuple[str, str]:
        return "none", "scripted"

    def kernels(self) -> tuple[KernelSummary, ...]:
        return ()

    def close(self) -> None:
        pass


def run(*records: StepRecord, rounding: float = 0.0, **options: float) -> Outcome:
    engine: Engine = Scripted(START, *records, rounding=rounding)
    limits = SolverOptions(**{"max_iterations": len(records), **options})  # type: ignore[arg-type]
    return iterate(engine, limits, lambda record: False)


@pytest.mark.parametrize(
    ("last", "options", "status", "message"),
    [
        (replace(KEPT, gradient_norm=1e-11), {}, Status.CONVERGED_GRADIENT, "is 1e-11"),
        (replace(KEPT, change=-1e-8), {}, Status.CONVERGED_FUNCTION, "1.25e-09, relatively"),
        (replace(KEPT, change=0.0, cost_before=0.0), {}, Status.CONVERGED_FUNCTION, "by 0,"),
        (replace(KEPT, step_norm=1e-9), {}, Status.CONVERGED_PARAMETER, "is 1e-09 long"),
        (replace(REFUSED, step_norm=1e-9), {}, Status.CONVERGED_PARAMETER, "is 1e-09 long"),
        (replace(REFUSED, predicted=1e-9), {}, Status.CONVERGED_FUNCTION, "rounding takes it"),
        (replace(REFUSED, exhausted=True), {}, Status.FAILED_NUMERICAL, "check_gradients"),
        (
            replace(REFUSED, gain=math.nan, exhausted=True, trouble="row 7 is nan"),
            {}, Status.FAILED_NUMERICAL, "row 7 is nan",
        ),
        (
            replace(REFUSED, gain=math.nan, step_norm=1e-9, trouble="row 7 is nan"),
            {}, Status.FAILED_NUMERICAL, "after a step of length 1e-09, row 7 is nan",
        ),
        (
            replace(KEPT, accepted=False, lost=True, trouble="row 7 is inf"),
            {}, Status.FAILED_NUMERICAL, "after a step of length 0.5, row 7 is inf",
        ),
        (KEPT, {"max_seconds": 0.0}, Status.MAX_SECONDS, "0.0 s are over"),
        (KEPT, {}, Status.MAX_ITERATIONS, "2 iterations are done"),
        (REFUSED, {}, Status.MAX_ITERATIONS, "2 iterations are done"),
    ],
)  # fmt: skip
def test_every_verdict(
    last: StepRecord, options: dict[str, float], status: Status, message: str
) -> None:
    first = [] if "max_seconds" in options else [KEPT]
    outcome = run(*first, last, **options)
    assert outcome.status is status
    assert message in outcome.message
    assert len(outcome.history) == len(first) + 2
    assert (outcome.initial_cost, outcome.cost) == (START.cost, last.cost)


@pytest.mark.parametrize(
    "step",
    [
        KEPT,
        REFUSED,
        # No step could be computed, or what was promised means nothing: that is no end.
        replace(REFUSED, gain=math.nan, step_norm=math.nan, predicted=math.inf),
        replace(REFUSED, gain=math.nan, step_norm=1e-9, predicted=-1.0),
        replace(REFUSED, gain=math.nan, predicted=1e-30, trouble="row 7 is nan"),
        replace(REFUSED, predicted=-1e-30),
    ],
)
def test_what_does_not_end_a_solve(step: StepRecord) -> None:
    outcome = run(step, KEPT)
    assert outcome.status is Status.MAX_ITERATIONS
    assert len(outcome.history) == 3


def test_rounding_is_a_floor_for_promises_and_for_nothing_else() -> None:
    small = replace(REFUSED, predicted=4e-7)
    options = {"function_tolerance": 0.0}
    assert run(small, small, **options).status is Status.MAX_ITERATIONS
    assert run(small, rounding=1e-7, **options).status is Status.CONVERGED_FUNCTION
    kept = replace(KEPT, change=-4e-7)
    assert run(kept, rounding=1e-7, **options).status is Status.MAX_ITERATIONS


def test_a_start_that_is_not_finite_is_the_end_and_unseen() -> None:
    seen: list[IterationRecord] = []
    poor = replace(START, cost=math.inf, lost=True, trouble="row 7 is inf")
    engine = Scripted(poor)
    outcome = iterate(engine, SolverOptions(), lambda r: bool(seen.append(r)))
    assert (outcome.status, engine.steps, seen) == (Status.FAILED_NUMERICAL, 0, [])
    assert outcome.message == "at the start, row 7 is inf"
    assert len(outcome.history) == 1


def test_starts_that_are_the_end() -> None:
    def end(record: StepRecord, unknowns: int, stop: bool, **options: int) -> Outcome:
        engine = Scripted(record, unknowns=unknowns)
        return iterate(engine, SolverOptions(**options), lambda _: stop)

    assert end(START, 0, False).message == "every parameter is frozen"
    assert end(START, 1, True).status is Status.STOPPED_BY_CALLBACK
    assert end(replace(START, gradient_norm=0.0), 1, False).status is Status.CONVERGED_GRADIENT
    assert end(START, 1, False, max_iterations=0).status is Status.MAX_ITERATIONS


def test_history_is_what_the_engine_reported() -> None:
    seen: list[IterationRecord] = []

    def observe(record: IterationRecord) -> bool:
        seen.append(record)
        return record.iteration == 2

    engine = Scripted(START, KEPT, replace(REFUSED, step_norm=math.nan), KEPT)
    outcome = iterate(engine, SolverOptions(), observe)
    assert outcome.status is Status.STOPPED_BY_CALLBACK
    assert outcome.history == seen
    assert outcome.parameters[0] == engine.steps == 2
    assert [r.iteration for r in seen] == [0, 1, 2]
    assert math.isnan(seen[0].gain_ratio)
    assert (seen[1].gain_ratio, seen[1].linear_iterations, seen[1].accepted) == (0.9, 3, True)
    assert (seen[2].step_norm, seen[2].accepted) == (0.0, False)


@pytest.mark.parametrize("name", DAMPING_CONTROLS)
def test_damping_controls_follow_the_gain_ratio(name: str) -> None:
    control = DAMPING_CONTROLS[name](1.0)
    for gain, factor in ((1.0, 1 / 3), (0.5, 1.0), (0.25, 1.125), (0.0, 2.0), (1e9, 1 / 3)):
        before = control.damping
        control.accepted(gain)
        assert control.damping == pytest.approx(factor * before)
    before = control.damping
    for _ in range(3):
        control.rejected()
    assert control.damping == pytest.approx(2 * 4 * 8 * before)
    control.accepted(0.5)
    before = control.damping
    control.rejected()
    assert control.damping == pytest.approx(2.0 * before)
    steps = 0
    while not control.exhausted:
        control.rejected()
        steps += 1
    assert 8 < steps < 20


def test_damping_controls_keep_their_bounds() -> None:
    nielsen, ceres = NielsenDamping(1e-30), CeresRadius(1e-15)
    for control in (nielsen, ceres):
        for _ in range(10):
            control.accepted(1.0)
    assert nielsen.damping == 1.0 / LARGEST_DAMPING
    assert ceres.damping == 1.0 / CeresRadius.LARGEST


def test_both_damping_controls_take_the_same_steps_within_their_bounds() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[-1.2, 1.0]])
    problem.add_residuals(lambda p: [10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]], x)
    found = [
        ag.solve(
            problem,
            backend="numpy",
            options=ag.LevenbergMarquardtOptions(step_control=name, function_tolerance=1e-3),
        )
        for name in DAMPING_CONTROLS
    ]
    first, second = ([(r.cost, r.accepted) for r in s.history] for s in found)
    assert len(first) > 5
    assert first == [(pytest.approx(cost, rel=1e-6), accepted) for cost, accepted in second]
