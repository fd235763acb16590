"""``ag.tune`` and ``problem.explain``: what is measured, remembered, used and told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import InputError
from autograd_gpu.runtime import schedule_choice
from autograd_gpu.runtime.block_assembly import BlockAssembly, SharedAssembly
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedules import Schedule, alternatives
from autograd_gpu.solvers import schedule_trials
from autograd_gpu.solvers.host_schedules import assembly_decisions, gram_of, host_features
from autograd_gpu.solvers.normal_equations import NormalEquations, RowGram
from autograd_gpu.solvers.schedule_trials import SolveTrials, work_seconds
from autograd_gpu.solvers.tune import Search

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
    monkeypatch.setattr(schedule_trials, "BURST", 5e-4)
    schedule_choice.forget_memory()
    yield
    schedule_choice.forget_memory()


class PretendTrials:
    """Times that a function makes up, counted."""

    def __init__(self, real: SolveTrials, cost: dict[str, float]) -> None:
        self.chooser, self.features = real.chooser, real.features
        self._cost = cost
        self.tried: list[tuple[Schedule, ...]] = []

    def allows(self, schedule: Schedule) -> bool:
        return schedule.workgroup_size != 128

    def seconds(self, schedules: Sequence[Schedule]) -> float | None:
        self.tried.append(tuple(schedules))
        if any(s.materialise == "jtj-blocks" for s in schedules):
            return None
        total = sum((k + 1) * self._cost[s.materialise] for k, s in enumerate(schedules))
        return total + (0.5 if schedules[0].workgroup_size == 256 else 0.0)

    def close(self) -> None:
        pass


@pytest.mark.wgsl
def test_the_search_finds_the_fastest_and_times_each_once(device: Device) -> None:
    problem = workloads.springs_problem(1)
    x = np.concatenate([problem.values_of(a).ravel() for a in problem.arrays])
    real = SolveTrials(problem.analysis(), device, x)
    trials = PretendTrials(real, {"nothing": 2.0, "jacobian": 1.0})
    search = Search(trials)
    best = search.descend([Schedule(), Schedule()])
    assert best == (Schedule(materialise="jacobian", workgroup_size=64),) * 2
    assert len(set(trials.tried)) == len(trials.tried)
    assert all(s.workgroup_size != 128 for tried in trials.tried for s in tried)
    assert search.measured[0] == (best, 3.0)
    refused = [t for t in trials.tried if "jtj-blocks" in {s.materialise for s in t}]
    assert refused and not {s for s, _ in search.measured} & set(refused)


def test_work_is_timed_by_what_more_of_it_takes() -> None:
    counts: list[int] = []
    assert work_seconds(counts.append, repeats=3) > 0.0
    assert counts[0] == 1 and len(counts) == 3 + 2 * 3 and counts[-1] > 1


@pytest.mark.wgsl
def test_a_tuned_schedule_is_remembered_and_used(device: Device) -> None:
    problem = workloads.springs_problem(1)
    before = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    tuning = ag.tune(problem, backend="wgsl", device=device)
    assert set(tuning.purposes) == {"solve", "gradient"}
    solve = tuning.purposes["solve"]
    assert solve.groups == ("springs", "anchor")
    assert solve.seconds == min(t for _, t in solve.measured) <= solve.modelled_seconds
    assert "times the fastest" in str(tuning)

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
