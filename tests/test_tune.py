"""``ag.tune`` and ``problem.explain``: what is measured, remembered, used and told."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import DeviceError, DeviceMemoryError, InputError
from autograd_gpu.runtime import schedule_choice
from autograd_gpu.runtime.block_assembly import BlockAssembly, SharedAssembly
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_stopwatch import DeviceStopwatch, can_time
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import Measured, ScheduleChooser, identity_of
from autograd_gpu.runtime.schedules import GroupFeatures, Schedule, alternatives
from autograd_gpu.solvers import trial_times
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.host_schedules import assembly_decisions, gram_of, host_features
from autograd_gpu.solvers.normal_equations import NormalEquations, RowGram
from autograd_gpu.solvers.schedule_search import MOST_SAMPLES, Search
from autograd_gpu.solvers.schedule_trials import GradientTrials, SolveTrials, Stand
from autograd_gpu.solvers.trial_times import Slope
from autograd_gpu.solvers.tune import tuned
from benchmarks.metrics import Recorder
from benchmarks.schedules import measure

FLOAT32 = 1e-4


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    opened = Device(wgsl_adapters()[0])
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is remembered from one test to the next."""
    monkeypatch.setenv("AUTOGRAD_GPU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(trial_times, "BURST", 5e-4)
    schedule_choice.forget_memory()
    yield
    schedule_choice.forget_memory()


class PretendTrials:
    """Times that a function makes up; openings, closings and times are counted.

    Args:
        groups: how many the problem has.
        cost: seconds of schedules.
        noise: factor of the n-th time that is taken at all.
        room: trials that fit into memory at once.
    """

    def __init__(
        self,
        groups: int,
        cost: Callable[[tuple[Schedule, ...]], float],
        noise: Callable[[int], float] = lambda n: 1.0,
        room: int = 100,
    ) -> None:
        self.chooser = ScheduleChooser("solve", identity_of(None))
        self.features = [springs_features()] * groups
        self.cost, self.noise, self.room = cost, noise, room
        self.opened: list[tuple[Schedule, ...]] = []
        self.open_now = 0
        self.sampled: Counter[tuple[Schedule, ...]] = Counter()

    def allows(self, schedule: Schedule) -> bool:
        return schedule.workgroup_size != 128

    def open(self, schedules: Sequence[Schedule]) -> PretendTrial:
        key = tuple(schedules)
        if math.isinf(self.cost(key)):
            raise DeviceError("refused")
        if self.open_now >= self.room:
            raise DeviceMemoryError("no room")
        self.opened.append(key)
        self.open_now += 1
        return PretendTrial(self, key)

    def close(self) -> None:
        pass


class PretendTrial:
    def __init__(self, owner: PretendTrials, schedules: tuple[Schedule, ...]) -> None:
        self.owner, self.schedules = owner, schedules

    def sample(self) -> float:
        noise = self.owner.noise(self.owner.sampled.total())
        self.owner.sampled[self.schedules] += 1
        return self.owner.cost(self.schedules) * noise

    def close(self) -> None:
        self.owner.open_now -= 1


@cache
def springs_features() -> GroupFeatures:
    problem = workloads.springs_problem(1)
    (features, _) = host_features(problem.analysis())
    return replace(features, assembly=None)


def searched(trials: PretendTrials, start: Sequence[Schedule], most: int = 600) -> Measured:
    with Stand(trials) as stand:
        found = Search(trials, stand, most).run(start)
    assert trials.open_now == 0
    assert trials.sampled.total() <= most
    return found


SECONDS = {"nothing": 2.0, "jacobian": 1.0, "jtj-blocks": math.inf}


def by_words(schedules: tuple[Schedule, ...]) -> float:
    """Blocks are refused, Jacobians are fast, 64 threads are best."""
    total = sum((k + 1) * SECONDS[s.materialise] for k, s in enumerate(schedules))
    return total + (0.5 if schedules[0].workgroup_size == 256 else 0.0)


def test_the_search_finds_the_fastest() -> None:
    trials = PretendTrials(2, by_words)
    (best, seconds), *others = searched(trials, [Schedule(), Schedule()])
    assert best[0] == Schedule(materialise="jacobian", workgroup_size=64)
    assert best[1].materialise == "jacobian"
    assert seconds == 3.0
    assert [t for _, t in others] == sorted(t for _, t in others)
    assert all(s.workgroup_size != 128 for tried in trials.opened for s in tried)
    assert not any("jtj-blocks" in {s.materialise for s in t} for t in trials.opened)
    # One opening each, but for the two of the last race, which are set up anew.
    assert len(trials.opened) <= len(set(trials.opened)) + 2


def test_groups_get_schedules_of_their_own() -> None:
    wanted = ("jacobian", "nothing", "jtj-blocks")

    def cost(schedules: tuple[Schedule, ...]) -> float:
        return 1.0 + sum(s.materialise != w for s, w in zip(schedules, wanted, strict=True))

    (best, _), *_ = searched(PretendTrials(3, cost), [Schedule()] * 3)
    assert tuple(s.materialise for s in best) == wanted


def test_what_all_share_is_tried_before_single_groups() -> None:
    """W4's gradient on an H200: a change of one group that pays with 256 threads only is a trap."""

    def cost(schedules: tuple[Schedule, ...]) -> float:
        wide = schedules[0].workgroup_size == 256
        stored = sum(s.materialise == "jacobian" for s in schedules)
        if wide:
            return {0: 16.4, 1: 16.0}.get(stored, 25.0)
        return 15.2 + 5.0 * stored

    (best, seconds), *_ = searched(PretendTrials(3, cost), [Schedule()] * 3)
    assert seconds == 15.2 and {s.workgroup_size for s in best} == {64}


def test_groups_with_kernels_of_their_own_get_workgroups_of_their_own() -> None:
    def cost(schedules: tuple[Schedule, ...]) -> float:
        heavy, light = schedules
        total = 2.0 + (heavy.workgroup_size != 256) + (light.materialise != "jacobian")
        return total + 0.1 * (light.workgroup_size != 64)

    (best, seconds), *_ = searched(PretendTrials(2, cost), [Schedule()] * 2)
    assert best == (
        Schedule(materialise=best[0].materialise),
        Schedule(materialise="jacobian", workgroup_size=64),
    )
    assert seconds == 2.0


costs = st.lists(
    st.fixed_dictionaries(
        {m: st.sampled_from([1.0, 1.5, 2.5, math.inf]) for m in ("nothing", "jtj-blocks")}
        | {"jacobian": st.sampled_from([1.0, 1.7])}
    ),
    min_size=1,
    max_size=4,
)


@given(costs, st.dictionaries(st.integers(0, 300), st.sampled_from([1e-6, 0.3, 1e6]), max_size=2))
def test_two_wild_times_do_not_change_what_is_chosen(
    seconds: list[dict[str, float]], wild: dict[int, float]
) -> None:
    def cost(schedules: tuple[Schedule, ...]) -> float:
        return sum(of[s.materialise] for of, s in zip(seconds, schedules, strict=True))

    trials = PretendTrials(len(seconds), cost, lambda n: wild.get(n, 1.0))
    (best, _), *_ = searched(trials, [Schedule(materialise="jacobian")] * len(seconds))
    assert cost(best) <= 1.02 * sum(min(of.values()) for of in seconds)


def test_chance_rarely_moves_what_was_modelled() -> None:
    kept = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        trials = PretendTrials(
            2, lambda s: 1.0, lambda n, r=random: float(np.exp(r.normal(0, 0.1)))
        )
        start = (Schedule(materialise="jacobian"),) * 2
        kept += searched(trials, start)[0][0] == start
    assert kept >= 45


def test_little_memory_opens_one_trial_after_another() -> None:
    trials = PretendTrials(2, by_words, room=1)
    assert searched(trials, [Schedule(), Schedule()])[0][0][0].materialise == "jacobian"


def test_a_device_that_refuses_everything_is_an_error() -> None:
    trials = PretendTrials(1, lambda s: math.inf)
    with pytest.raises(DeviceError, match="refuses every schedule of this problem, for purpose"):
        tuned(trials)


def test_times_taken_are_bounded() -> None:
    """Twelve groups in heavy noise: the bound holds, and the last race has its share."""
    random = np.random.default_rng(0)
    trials = PretendTrials(12, lambda s: 1.0, lambda n: float(np.exp(random.normal(0.0, 0.5))))
    searched(trials, [Schedule()] * 12, most=200)
    assert 100 < trials.sampled.total() <= 200
    assert MOST_SAMPLES <= 600


def test_the_comparison_is_recorded_and_merged(tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    record = Recorder("a machine", "float32", "abc")
    record.add("W1_level1/solve/tuned", 1.0, "us")
    record.add("old", 2.0, "us")
    record.merge(file)
    record = Recorder("a machine", "float32", "abd")
    trials = PretendTrials(2, by_words)
    measure(record, "W1_level1/solve", trials)
    record.merge(file)
    stored = {m["key"]: m for m in json.loads(file.read_text())}
    assert stored["old"]["commit"] == "abc" and stored["old"]["value"] == 2.0
    assert stored["W1_level1/solve/tuned"]["commit"] == "abd"
    at = "W1_level1/solve/"
    assert stored[at + "best_by_hand"]["value"] == stored[at + "tuned"]["value"] == 3e6
    assert stored[at + "tuned_over_best"]["value"] == 1.0
    assert stored[at + "modelled_over_best"]["value"] == pytest.approx(6.5 / 3.0)
    assert stored[at + "worst_over_tuned"]["value"] == pytest.approx(6.5 / 3.0)
    assert record.has(file, at + "worst_over_tuned")
    assert not Recorder("another", "float32", "abd").has(file, at + "worst_over_tuned")
    assert not record.has(file, "old") and not record.has(tmp_path / "none", "old")


class PretendClock:
    """A clock that work moves: so much for a way there and back, so much for each unit."""

    def __init__(self, way: float, unit: float) -> None:
        self.now, self.way, self.unit = 0.0, way, unit
        self.counts: list[int] = []
        self.late = 0.0

    def work(self, count: int) -> None:
        self.counts.append(count)
        self.now += self.way + count * self.unit + self.late
        self.late = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("way", "unit"), [(1e-3, 1e-5), (1e-4, 1e-3), (0.0, 5.0)])
def test_work_is_timed_by_what_more_of_it_takes(
    way: float, unit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_times, "BURST", 0.02)
    clock = PretendClock(way, unit)
    slope = Slope(clock.work, clock)
    for _ in range(3):
        assert slope() == pytest.approx(unit, rel=1e-6)
    assert clock.now < 20 * unit + 0.2, "no more than some bursts"
    clock.late = -0.9 * way
    assert slope() > 0.0
    clock.late = 10.0  # hits the smaller amount: the difference would be negative
    assert slope() > 0.0


@pytest.mark.wgsl
def test_the_device_times_itself(device: Device) -> None:
    problem = workloads.springs_problem(2)
    analysis = problem.analysis()
    x = current_parameters(problem)
    for trials in (SolveTrials(analysis, device, x), GradientTrials(analysis, device, x)):
        with closing(trials.open([Schedule(), Schedule()])) as trial:
            began = time.perf_counter()
            seconds = trial.sample()
            assert 0.0 < seconds <= time.perf_counter() - began
    runner = Operators(device, NodeTables(array_layouts(analysis), analysis.groups, x)).runner
    if can_time(runner):
        with DeviceStopwatch(runner) as watch:
            before = device.counters.snapshot()
            assert watch.seconds(("gradient",) * 3) > 0.0
            after = device.counters.snapshot()
        assert after.submits == before.submits + 1
        assert after.dispatches == before.dispatches + 3 * len(runner.launches(["gradient"]))
        with pytest.raises(InputError, match="unknown sequence 'no'"):
            DeviceStopwatch(runner).seconds(["no"])
    runner.release()


@pytest.mark.wgsl
def test_products_are_counted_until_conjugate_gradients_end(device: Device) -> None:
    """A curve has five unknowns, springs many: the first is reckoned, the second measured."""
    for problem, ends in (
        (workloads.curve_problem(200), True),
        (workloads.springs_problem(2), False),
    ):
        analysis = problem.analysis()
        trials = SolveTrials(analysis, device, current_parameters(problem))
        trials.open([Schedule()] * len(analysis.groups)).close()
        assert (1 <= trials.iterations < 8) if ends else (trials.iterations == 40)


@pytest.mark.wgsl
def test_a_tuned_schedule_is_remembered_and_used(device: Device) -> None:
    problem = workloads.springs_problem(1)
    before = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    tuning = ag.tune(problem, backend="wgsl", device=device)
    assert set(tuning.purposes) == set(problem.explain(backend="wgsl", device=device).decisions)
    assert set(tuning.purposes) == {"solve", "gradient", "assembly"}
    solve = tuning.purposes["solve"]
    assert solve.groups == ("springs", "anchor")
    assert solve.measured[0] == (solve.schedules, solve.seconds)
    assert solve.modelled in dict(solve.measured) and 0 < solve.samples <= MOST_SAMPLES
    assert "times the chosen" in str(tuning)

    # Whatever was the fastest here, a choice that nothing would suggest is used once remembered.
    explained = problem.explain(backend="wgsl", device=device)
    features = [d.features for d in explained.decisions["solve"]]
    chooser = ScheduleChooser("solve", identity_of(device))
    odd = (Schedule(materialise="jtj-blocks", workgroup_size=64),) * 2
    chooser.remember(features, ((odd, 1e-12), *solve.measured))
    schedule_choice.forget_memory()  # as another process would find it
    again = ag.solve(
        workloads.springs_problem(1), backend="wgsl", device=device, linear_solver="pcg"
    )
    names = {k.name for k in again.kernels}
    assert "linearize_elements" in names, "which stores the blocks"
    assert "linearize_elements" not in {k.name for k in before.kernels}
    assert "schedules (measured): jtj-blocks, gather, 64 threads" in again.linear_solver_reason
    assert "schedules (estimated): nothing, gather, 256" in before.linear_solver_reason
    assert again.cost == pytest.approx(before.cost, rel=FLOAT32)
    compiled = device.counters.snapshot().pipelines_created
    twice = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    assert device.counters.snapshot().pipelines_created == compiled
    assert twice.values["x"].tobytes() == again.values["x"].tobytes()
    found = problem.explain(backend="wgsl", device=device).decisions["solve"]
    assert [d.schedule for d in found] == list(odd)
    assert {d.source for d in found} == {"measured"}
    assert "measured on" in str(problem.explain(backend="wgsl", device=device))


@pytest.mark.wgsl
def test_float64_on_a_device_is_explained_and_tuned(device: Device) -> None:
    problem = workloads.springs_problem(1)
    where = {"backend": "wgsl", "precision": "float64", "device": device}
    explained = problem.explain(**where)
    assert explained.precision.startswith("float64-")
    for purpose in ("solve", "gradient"):
        precisions = {d.features.precision for d in explained.decisions[purpose]}
        assert precisions == {explained.precision}
    tuning = ag.tune(problem, **where)
    assert set(tuning.purposes) == {"solve", "gradient", "assembly"}
    again = problem.explain(**where)
    assert {d.source for ds in again.decisions.values() for d in ds} == {"measured"}
    single = problem.explain(backend="wgsl", precision="float32", device=device)
    assert {d.source for d in single.decisions["solve"]} == {"model"}
    solved = ag.solve(problem, linear_solver="pcg", **where)
    assert "schedules (measured)" in solved.linear_solver_reason


def test_sums_on_the_host_are_tuned() -> None:
    problem = workloads.bundle_problem(6, 60)
    model = assembly_decisions(problem.analysis())
    first = ag.solve(problem, backend="numba")
    tuning = ag.tune(problem, backend="numba").purposes["assembly"]
    tried = {s[0] for s, _ in tuning.measured}
    assert {s.materialise for s in tried} == {"jacobian", "jtj-blocks"}
    assert {s.workgroup_size for s in tried} == {1, 16}
    assert model[0].schedule in tried

    chooser, features = (
        ScheduleChooser("assembly", identity_of(None)),
        host_features(problem.analysis()),
    )
    for materialise, blocks in (("jacobian", False), ("jtj-blocks", True)):
        chooser.remember(features, (((Schedule(materialise=materialise, workgroup_size=1),), 1.0),))
        problem.analysis().forget_schedules()
        normal = problem.analysis().normal_equations
        assert (normal.blocks is not None) == blocks
        solution = ag.solve(problem, backend="numba")
        assert solution.cost == pytest.approx(first.cost, rel=1e-9)


@pytest.mark.parametrize("name", ["W3", "W5"])
def test_both_ways_of_summing_give_the_same_equations(name: str) -> None:
    problem = {
        "W3": lambda: workloads.bundle_problem(6, 60),
        "W5": lambda: workloads.curve_problem(500),
    }[name]()
    analysis = problem.analysis()
    evaluated = problem.evaluate(backend="numpy", precision="float64")
    session = analysis.session(choose_backend("numpy", "float64", None, 0))
    x = np.concatenate([problem.values_of(a).ravel() for a in problem.arrays])
    residuals, values = session.residual_jacobian(x)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for materialise, kind in (
        ("jacobian", RowGram),
        ("jtj-blocks", (BlockAssembly, SharedAssembly)),
    ):
        gram = gram_of(analysis, materialise)
        assert isinstance(gram, kind)
        normal = NormalEquations(gram)
        normal.assemble(values, residuals)
        found.append((normal.diagonal.copy(), normal.gradient.copy()))
        gram.close()
    expected = (evaluated.jacobian.T @ evaluated.jacobian).diagonal()
    for diagonal, gradient in found:
        np.testing.assert_allclose(diagonal, expected, rtol=1e-10)
        np.testing.assert_allclose(
            gradient, evaluated.gradient, rtol=1e-8, atol=1e-8 * np.abs(evaluated.gradient).max()
        )


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_backends_with_one_schedule_are_refused(backend: str) -> None:
    with pytest.raises(InputError, match=f"backend {backend!r} has one schedule"):
        ag.tune(workloads.curve_problem(10), backend=backend)


# -- explain -------------------------------------------------------------------------------------


@pytest.mark.wgsl
def test_explain_tells_every_alternative(device: Device) -> None:
    problem = workloads.bundle_problem(6, 60)
    explained = problem.explain(backend="wgsl", device=device)
    text = str(explained)
    for word in ("solve", "gradient", "two-level", "jtj-blocks", "→", "estimated", "elements per"):
        assert word in text
    for purpose in ("solve", "gradient"):
        (decision,) = explained.decisions[purpose]
        size = decision.schedule.workgroup_size
        wanted = [s for s in alternatives(decision.features, purpose) if s.workgroup_size == size]
        assert {a.schedule for a in decision.alternatives} == set(wanted)
        assert decision.schedule == decision.alternatives[0].schedule
        estimates = [a.estimated for a in decision.alternatives]
        assert estimates == sorted(estimates)
    plain = json.loads(json.dumps(explained.as_dict()))
    (group,) = plain["purposes"]["solve"]
    assert group["features"]["elements"] == problem.groups[0].count
    assert group["source"] == "model" and "least estimate" in group["reason"]


def test_explain_on_the_host_and_through_jax() -> None:
    problem = workloads.springs_problem(1)
    explained = problem.explain(backend="numba")
    assert set(explained.decisions) == {"assembly"}
    assert [d.features.name for d in explained.decisions["assembly"]] == ["springs", "anchor"]
    through = problem.explain(backend="jax").decisions["solve"]
    assert {d.source for d in through} == {"fixed"}
    assert "XLA" in str(problem.explain(backend="jax"))


def test_problems_of_other_kinds_are_explained() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((4, 2)))
    problem.add_energy(lambda p: p.x**4 + p.y**2, x, name="well")
    assert problem.explain(backend="numba").decisions == {"assembly": ()}
    problem.add_external(lambda p: (p - 1.0, [np.tile(np.eye(2), (4, 1, 1))]), x, name="outside")
    (decision,) = problem.explain(backend="numba").decisions["assembly"]
    assert decision.features.name == "outside" and "the only one" in decision.reason
    with pytest.raises(InputError, match="external residuals, energies or long rows"):
        ag.tune(problem, backend="numba")


def test_asked_for_schedules_are_told_as_such() -> None:
    features = host_features(workloads.curve_problem(10).analysis())
    chooser = replace(
        ScheduleChooser("assembly", identity_of(None)), fixed=(Schedule(workgroup_size=1),)
    )
    (decision,) = chooser.decide(features)
    assert decision.source == "asked for"
