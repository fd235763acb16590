"""Telemetry: what is counted, its JSON, its trace, its tables; and the advice, each rule twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.events import Event, leave, listen, listening, report
from autograd_gpu.runtime import device_clock
from autograd_gpu.solvers import telemetry as module
from autograd_gpu.solvers.adviser import advise
from autograd_gpu.solvers.telemetry import Telemetry

ADAPTERS = wgsl_adapters()
FEW = ag.LevenbergMarquardtOptions(max_iterations=3)


def chain(n: int, constant: float = 0.1) -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.1, 1.0, 3 * n).reshape(n, 3))
    problem.add_residuals(lambda a, b: ag.norm(a - b) - constant, x[:-1], x[1:])
    return problem


@pytest.fixture(scope="module", params=ADAPTERS)
def device(request: pytest.FixtureRequest) -> Any:
    opened = ag.Device(request.param)
    yield opened
    opened.close()


# -- events ------------------------------------------------------------------------------------


def test_nobody_listens_by_default_and_listeners_leave() -> None:
    assert not listening()
    with ag.telemetry() as t:
        assert listening()
        report("cache", "thing", hit=True)
    report("cache", "thing", hit=True)
    assert not listening()
    assert [(c.hits, c.misses) for c in t.caches] == [(1, 0)]


def test_several_listeners_hear_everything() -> None:
    with ag.telemetry() as outer:
        report("cache", "thing", hit=False)
        with ag.telemetry() as inner:
            report("cache", "thing", hit=True)
    assert outer.totals["cache_hits"] == outer.totals["cache_misses"] == 1
    assert inner.totals["cache_hits"] == 1 and inner.totals["cache_misses"] == 0


def test_an_error_inside_still_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), ag.telemetry():
        _ = 1 / 0
    assert not listening()


def test_events_are_bounded_and_totals_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_EVENTS", 10)
    with ag.telemetry() as t:
        for _ in range(25):
            report("dispatch", "kernel", invocations=2)
    assert len(t.events) == 10
    assert t.kernels[0].dispatches == 25 and t.kernels[0].invocations == 50
    assert t.to_json()["events_dropped"] == 15


# -- on the CPU --------------------------------------------------------------------------------


def test_runs_on_the_cpu_are_counted_with_their_elements() -> None:
    problem = chain(5000)
    with ag.telemetry() as t:
        ag.solve(problem, backend="numba", options=FEW)
    by_name = {k.name.rpartition("_")[0]: k for k in t.kernels if k.runs}
    jacobian = by_name["residual_jacobian"]
    assert jacobian.elements % 4999 == 0 and jacobian.elements >= 4999
    assert jacobian.run_seconds > 0.0 and 0 < jacobian.batch <= 4999


def test_a_second_solve_compiles_nothing() -> None:
    problem = chain(50, 0.123)
    with ag.telemetry() as first:
        ag.solve(problem, backend="numba", options=FEW)
    with ag.telemetry() as second:
        ag.solve(problem, backend="numba", options=FEW)
    assert first.totals["compiled"] + first.totals["loaded"] >= 2
    assert second.totals["compiled"] == second.totals["loaded"] == second.totals["generated"] == 0


def test_calls_of_jax_are_counted() -> None:
    pytest.importorskip("jax")
    with ag.telemetry() as t:
        chain(50, 0.321).evaluate(backend="jax")
    runs = {k.name.rpartition("_")[0]: k for k in t.kernels if k.runs}
    assert runs["residual_jacobian"].elements == 49
    assert t.totals["compiled"] >= 1


# -- on a device -------------------------------------------------------------------------------


@pytest.mark.wgsl
def test_counts_agree_with_the_devices_own(device: ag.Device) -> None:
    problem = chain(400)
    before = device.counters.snapshot()
    with ag.telemetry() as t:
        ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg", options=FEW)
    after = device.counters
    totals = t.totals
    assert totals["dispatches"] == after.dispatches - before.dispatches > 0
    assert totals["bytes_up"] == after.bytes_up - before.bytes_up > 0
    assert totals["bytes_down"] == after.bytes_down - before.bytes_down > 0
    assert totals["downloads"] == after.readbacks - before.readbacks > 0
    made = sum(k.compiled for k in t.kernels if k.dispatches)
    assert made == after.pipelines_created - before.pipelines_created
    named = {k.name for k in t.kernels}
    assert {"linearize_nodes_0", "cg_product_0", "cg_update", "decide"} <= named


@pytest.mark.wgsl
def test_every_dispatch_is_timed_where_the_device_can(device: ag.Device) -> None:
    with ag.telemetry() as t:
        ag.solve(chain(400), backend="wgsl", device=device, linear_solver="pcg", options=FEW)
    timed = [e for e in t.events if e.kind == "device"]
    if device_clock.FEATURE not in device.capabilities:
        assert timed == []
        return
    assert sum(int(e.facts["dispatches"]) for e in timed) == t.totals["dispatches"]
    assert all(e.seconds >= 0.0 for e in timed) and t.totals["device_seconds"] > 0.0
    assert t.totals["device_seconds"] < t.seconds


@pytest.mark.wgsl
def test_results_have_the_same_bits_while_somebody_listens(device: ag.Device) -> None:
    def solve() -> ag.Solution:
        return ag.solve(chain(300), backend="wgsl", device=device, linear_solver="pcg", options=FEW)

    plain = solve()
    with ag.telemetry():
        heard = solve()
    np.testing.assert_array_equal(plain.values["x"], heard.values["x"])


@pytest.mark.wgsl
def test_more_passes_than_a_query_set_has_room_for(
    device: ag.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_clock, "PASSES", 16)
    with ag.telemetry() as t:
        ag.solve(chain(300), backend="wgsl", device=device, linear_solver="pcg", options=FEW)
    timed = sum(int(e.facts["dispatches"]) for e in t.events if e.kind == "device")
    assert timed <= t.totals["dispatches"]
    assert (timed >= 16) == (device_clock.FEATURE in device.capabilities)


# -- documents ---------------------------------------------------------------------------------


def listened() -> Telemetry:
    with ag.telemetry() as t:
        report("compile", "kernel [bold]", seconds=0.25, target="wgsl")
        report("dispatch", "kernel [bold]", invocations=2048)
        report("device", "kernel [bold]", seconds=1e-3, dispatches=1)
        report("upload", "data", seconds=1e-4, bytes=4096, checksum=1)
        report("download", "trial", seconds=2e-4, bytes=64)
        report("cache", "source", hit=False)
        report("run", "residual_x", seconds=1e-5, elements=7)
    return t


def test_the_json_document(tmp_path: Path) -> None:
    t = listened()
    document = json.loads(t.save(tmp_path / "t.json").read_text())
    assert document.pop("seconds") > 0.0
    totals = document.pop("totals")
    assert totals == t.totals and totals["compile_seconds"] == 0.25
    none = dict.fromkeys(
        ("compiled", "loaded", "dispatches", "invocations", "runs", "elements"), 0
    ) | dict.fromkeys(("compile_seconds", "device_seconds", "run_seconds"), 0.0)
    assert document == {
        "version": 1,
        "kernels": [
            {
                **none,
                "name": "kernel [bold]",
                "compiled": 1,
                "compile_seconds": 0.25,
                "dispatches": 1,
                "invocations": 2048,
                "device_seconds": 1e-3,
                "batch": 2048.0,
            },
            {**none, "name": "residual_x", "runs": 1, "elements": 7, "run_seconds": 1e-5,
             "batch": 7.0},
        ],
        "buffers": [
            {"name": "data", "uploads": 1, "downloads": 0, "bytes_up": 4096, "bytes_down": 0,
             "seconds": 1e-4},
            {"name": "trial", "uploads": 0, "downloads": 1, "bytes_up": 0, "bytes_down": 64,
             "seconds": 2e-4},
        ],
        "caches": [{"name": "source", "hits": 0, "misses": 1}],
        "advice": [],
        "events_dropped": 0,
    }  # fmt: skip


def test_the_trace_is_what_chrome_reads(tmp_path: Path) -> None:
    trace = json.loads(listened().save_trace(tmp_path / "trace.json").read_text())
    assert trace["displayTimeUnit"] == "ms"
    rows = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert rows == {0: "device", 1: "MainThread"}
    events = [e for e in trace["traceEvents"] if e["ph"] != "M"]
    assert len(events) == 7
    for event in events:
        assert event["ph"] in ("X", "i") and event["pid"] == 1 and event["tid"] in rows
        assert event["ts"] >= 0.0 and isinstance(event["args"], dict)
        assert ("dur" in event) == (event["ph"] == "X")
        assert (event["tid"] == 0) == (event["cat"] == "device")
    assert events[0]["dur"] == pytest.approx(0.25e6)


def test_the_tables_name_everything() -> None:
    text = str(listened())
    for word in ("kernel [bold]", "0.25 s", "2048", "4 KiB", "trial", "source", "Traffic"):
        assert word in text


# -- advice ------------------------------------------------------------------------------------


def event(kind: str, name: str = "thing", **facts: Any) -> Event:
    return Event(kind, name, 0.0, 0.0, "MainThread", facts)


def kinds(events: list[Event]) -> list[str]:
    return [advice.kind for advice in advise(events)]


def dispatches(count: int, invocations: int = 100_000) -> list[Event]:
    return [event("dispatch", "kernel", invocations=invocations)] * count


def test_readbacks_in_a_loop() -> None:
    download = [event("download", bytes=10**6)]
    assert kinds((dispatches(2) + download) * 10) == ["read-backs in a loop"]
    assert kinds((dispatches(2) + download) * 9) == []
    assert kinds((dispatches(40) + download) * 10) == []


def test_dispatches_too_small() -> None:
    assert kinds(dispatches(20, 100)) == ["small dispatches"]
    assert kinds(dispatches(19, 100)) == []
    assert kinds(dispatches(20, 100) + dispatches(10)) == []


def test_compiling_in_a_loop() -> None:
    once = [event("compile", "kernel"), event("run", "kernel", elements=10)]
    assert kinds(once * 6) == ["compiling in a loop"]
    assert kinds(once * 5) == []
    assert kinds([event("compile")] * 20 + [event("run", elements=10)] * 20) == []


def test_uploads_repeated() -> None:
    same = event("upload", bytes=8192, checksum=7)
    assert kinds([same] * 3) == ["uploads repeated"]
    assert kinds([same] * 2) == []
    assert kinds([event("upload", bytes=8192, checksum=k) for k in range(9)]) == []
    assert kinds([event("upload", bytes=16, checksum=7)] * 9) == []


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", ADAPTERS[:1])
def test_mistakes_on_a_device_are_seen(adapter: str) -> None:
    device = ag.Device(adapter)
    with ag.telemetry() as t:
        for _ in range(4):
            chain(400).evaluate(backend="wgsl", device=device, precision="float32")
    assert {a.kind for a in t.advice()} == {"uploads repeated"}  # four problems of the same data
    problem = chain(300)  # few enough bytes that uploads of the same parameters are no matter
    with ag.telemetry() as t:
        for _ in range(12):
            problem.evaluate(backend="wgsl", device=device, precision="float32")
    found = {a.kind: a.message for a in t.advice()}
    assert set(found) == {"read-backs in a loop", "small dispatches"}
    assert "12 times" in found["read-backs in a loop"]
    device.close()


def test_a_constant_in_the_text_of_each_residual_is_seen() -> None:
    with ag.telemetry() as t:
        for k in range(6):
            chain(10, 0.7 + 0.01 * k).evaluate(backend="numba")
    (advice,) = t.advice()
    assert advice.kind == "compiling in a loop" and "data arguments" in advice.message
    problem = chain(10, 0.91)
    with ag.telemetry() as t:
        for _ in range(6):
            problem.evaluate(backend="numba")
    assert t.advice() == []


def test_a_listener_of_ones_own() -> None:
    class Names:
        def __init__(self) -> None:
            self.heard: list[str] = []

        def hear(self, event: Event) -> None:
            self.heard.append(event.name)

    names = Names()
    listen(names)
    report("cache", "thing", hit=True)
    leave(names)
    assert names.heard == ["thing"]
