"""A problem that is solved again: nothing compiled, nothing allocated, nothing that grows."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.meshes import energies
from autograd_gpu.runtime import numba_backend
from autograd_gpu.runtime.batch import Session
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import NodeTables
from tolerances import GRAPH, tolerance

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())


def springs() -> tuple[ag.Problem, np.ndarray, np.ndarray]:
    mesh = ag.meshes.icosphere(0)
    i, j = mesh.edges.T
    rest = 0.9 * mesh.edge_lengths
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    return problem, mesh.vertices, rest


def fresh(rest: np.ndarray, start: np.ndarray) -> ag.Problem:
    """The same problem, made anew."""
    problem = springs()[0]
    problem.update(data={"springs": rest}, x=start)
    return problem


def session_of(problem: ag.Problem, backend: str, precision: str, device: object) -> Session:
    return problem.analysis().session(choose_backend(backend, precision, device, 0))  # pyright: ignore[reportArgumentType]


def test_new_data_reuse_session_and_arrays_on_numba() -> None:
    problem, vertices, rest = springs()
    ag.solve(problem, backend="numba")
    session = session_of(problem, "numba", "float64", None)
    made = len(numba_backend._compiled)  # pyright: ignore[reportPrivateUsage]
    rng = np.random.default_rng(0)
    for _ in range(3):
        other = rest * rng.uniform(0.9, 1.1, rest.shape)
        start = vertices + 0.05 * rng.standard_normal(vertices.shape)
        problem.update(data={"springs": other}, x=start)
        solution = ag.solve(problem, backend="numba")
        assert session_of(problem, "numba", "float64", None) is session
        again = ag.solve(fresh(other, start), backend="numba")
        assert np.array_equal(solution.values["x"], again.values["x"])
        assert solution.cost == again.cost
    assert len(numba_backend._compiled) == made  # pyright: ignore[reportPrivateUsage]


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_new_data_make_no_buffer_and_no_pipeline(adapter: str, precision: str) -> None:
    problem, _, rest = springs()
    device = Device(adapter)
    problem.evaluate(backend="wgsl", precision=precision, device=device)
    before = device.counters.snapshot()
    for scale in (0.7, 1.3):
        problem.update(data={"springs": scale * rest})
        got = problem.evaluate(backend="wgsl", precision=precision, device=device)
        oracle = problem.evaluate(backend="numpy")
        bound = tolerance("float32", GRAPH)
        bound.check(got.residuals, oracle.residuals, "residuals")
        bound.check(got.gradient, oracle.gradient, "gradient")
    assert device.counters.buffers_created == before.buffers_created
    assert device.counters.pipelines_created == before.pipelines_created
    problem.analysis().close()
    assert device.memory.bytes == 0
    device.close()


def test_numpy_and_external_residuals_follow_new_data() -> None:
    problem, vertices, rest = springs()
    x = problem.arrays[0]
    problem.add_external(
        lambda p, q: (p - q, [np.broadcast_to(np.eye(3), (len(p), 3, 3))]), x, vertices, name="near"
    )
    for backend in ("numpy", "numba"):
        problem.update(data={"springs": rest, "near": vertices})
        before = problem.evaluate(backend=backend).cost
        problem.update(data={"springs": 0.5 * rest, "near": 1.1 * vertices})
        after = problem.evaluate(backend=backend).cost
        oracle = fresh(0.5 * rest, vertices).evaluate(backend="numpy").cost
        oracle += 0.5 * float(np.square(0.1 * vertices).sum())
        tolerance("float64", GRAPH).check(after, oracle, backend)
        assert after != before


def test_data_replaced_during_a_solve_leave_its_session_alone() -> None:
    problem, vertices, rest = springs()
    problem.update(x=1.05 * vertices)
    seen: list[Session] = []

    def callback(record: object) -> bool:
        seen.append(session_of(problem, "numba", "float64", None))
        if len(seen) == 1:
            problem.update(data={"springs": 0.8 * rest})
        return False

    solution = ag.solve(problem, backend="numba", callback=callback)
    assert seen[0] is not seen[-1]
    other = fresh(0.8 * rest, solution.values["x"])
    tolerance("float64", GRAPH).check(solution.cost, other.evaluate("numpy").cost, "cost")


def test_hundreds_of_solves_do_not_grow() -> None:
    problem, vertices, rest = springs()
    rng = np.random.default_rng(0)

    def some(count: int) -> None:
        for k in range(count):
            problem.update(x=vertices + 0.05 * rng.standard_normal(vertices.shape))
            if k % 4 == 0:
                problem.update(data={"springs": rest * rng.uniform(0.95, 1.05, rest.shape)})
            ag.solve(problem, backend="numba")

    some(20)
    grown: list[int] = []
    tracemalloc.start()
    try:
        some(200)  # the interpreter's own free lists fill up meanwhile
        for _ in range(4):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            some(100)
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    # One record of 100 bytes kept by each solve would be 10 000 in each round; what a thread or a
    # cache takes once is in one of them.
    assert min(grown) < 5_000


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is built on the host for resident solves."""
    found: list[str] = []
    for name in ("_order_nodes", "_sort_elements", "_fill"):
        inner = getattr(NodeTables, name)

        def counted(self: NodeTables, *arguments: Any, n: str = name, f: Any = inner) -> None:
            found.append(n)
            f(self, *arguments)

        monkeypatch.setattr(NodeTables, name, counted)
    return found


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("precision", ["float32", "float64-emulated"])
def test_a_second_resident_solve_builds_and_uploads_nothing_but_its_start(
    adapter: str, precision: str, built: list[str]
) -> None:
    problem, vertices, rest = springs()
    device = Device(adapter)
    where = {"backend": "wgsl", "precision": precision, "device": device, "linear_solver": "pcg"}
    first = ag.solve(problem, **where)
    built.clear()
    before = device.counters.snapshot()
    with ag.telemetry() as heard:
        second = ag.solve(problem, **where)
    after = device.counters
    assert built == []
    assert after.buffers_created == before.buffers_created
    assert after.pipelines_created == before.pipelines_created
    assert {b.name for b in heard.buffers if b.uploads} == {"parameters", "state"}
    assert first.values["x"].tobytes() == second.values["x"].tobytes()

    # Other data: the tables are filled again, and the words that differ travel.
    other = rest * np.random.default_rng(0).uniform(0.9, 1.1, rest.shape)
    problem.update(data={"springs": other}, x=1.1 * vertices)
    before = device.counters.snapshot()
    with ag.telemetry() as heard:
        third = ag.solve(problem, **where)
    assert built == ["_fill"]
    assert device.counters.buffers_created == before.buffers_created
    data = {b.name: b.bytes_up for b in heard.buffers if b.uploads}
    assert set(data) == {"parameters", "state", "tables" if precision == "float32" else "numbers"}
    expected = ag.solve(fresh(other, 1.1 * vertices), **where)
    bound = tolerance("float32" if precision == "float32" else "float64", GRAPH)
    assert third.success
    oracle = ag.solve(fresh(other, 1.1 * vertices), backend="numba")
    assert third.cost == pytest.approx(oracle.cost, rel=1e-4)
    bound.check(third.initial_cost, expected.initial_cost, "cost at the start")
    problem.freeze(problem.arrays[0], [0])  # another structure
    ag.solve(problem, **where)
    assert built.count("_order_nodes") == 2
    problem.analysis().close()
    device.close()


@pytest.mark.wgsl
@each_adapter
def test_what_waits_makes_room_and_ends_with_its_problem(adapter: str) -> None:
    problem = springs()[0]
    device = Device(adapter)
    where = {"backend": "wgsl", "precision": "float32", "device": device, "linear_solver": "pcg"}
    ag.solve(problem, **where)
    assert device.memory.bytes > 0
    device.memory.trim()  # as where memory runs out
    assert device.memory.bytes == device.memory.idle == 0
    assert ag.solve(problem, **where).success
    device.reopen()
    assert ag.solve(problem, **where).faults == ()  # what was kept is gone: made again
    ag.solve(problem, **{**where, "options": ag.LevenbergMarquardtOptions(damping="identity")})
    problem.freeze(problem.arrays[0], [0])
    assert device.memory.bytes == 0
    ag.solve(problem, **where)
    problem.analysis().close()
    assert device.memory.bytes == 0
    small = Device(adapter, memory_budget=1 << 20)
    ag.solve(problem, **{**where, "device": small})
    assert small.memory.bytes == 0  # whoever has a budget keeps nothing
    small.close()
    device.close()
