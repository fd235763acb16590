"""Pipelines are begun early, longest text first, and compiled once each."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.element_parts import ElementParts
from autograd_gpu.codegen.incidence import linearize_contribution, product_contribution
from autograd_gpu.codegen.program import PipelineSpec
from autograd_gpu.codegen.solve_kernels import Told, element_kernels
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.errors import KernelError
from autograd_gpu.events import Event, leave, listen
from autograd_gpu.runtime import pipelines as pipelines_module
from autograd_gpu.runtime.collection import no_collection
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.pipelines import CompiledPipeline, Pipelines
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

FEW = ag.LevenbergMarquardtOptions(max_iterations=1)


def spec(name: str, length: int = 10) -> PipelineSpec:
    return PipelineSpec(
        name=name,
        source=f"// {name}".ljust(length, "."),
        entry_point="main",
        bindings=("uniform",),
        workgroup_size=64,
    )


class Compiler:
    """Compiles nothing; notes the names of what it is given, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, one: PipelineSpec) -> CompiledPipeline:
        self.names.append(one.name)
        assert self.go.wait(60.0)
        if one.name.startswith("broken"):
            raise KernelError(f"{one.name} is broken")
        return CompiledPipeline(one.name, None)


class Hits:
    """Hits and misses of the cache of pipelines, in order."""

    def __init__(self) -> None:
        self.heard: list[bool] = []

    def hear(self, event: Event) -> None:
        if event.kind == "cache" and event.name == "pipelines":
            self.heard.append(bool(event.facts["hit"]))


@pytest.fixture
def hits() -> Iterator[list[bool]]:
    listener = Hits()
    listen(listener)
    yield listener.heard
    leave(listener)


def test_the_longest_text_is_compiled_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines_module, "available_threads", lambda: 1)
    compiler, pipelines = Compiler(), Pipelines()
    specs = [spec("short", 20), spec("long", 200), spec("middle", 100)]
    found = pipelines.get(specs, compiler)
    assert [one.pipeline for one in found] == ["short", "long", "middle"]
    assert compiler.names == ["long", "middle", "short"]


def test_what_was_begun_is_compiled_once_and_missed_once(hits: list[bool]) -> None:
    compiler, pipelines = Compiler(), Pipelines()
    compiler.go.clear()  # the work is in flight when it is asked for
    pipelines.begin([spec("a")], compiler)
    pipelines.begin([spec("a")], compiler)
    assert hits == []
    compiler.go.set()
    first = pipelines.get([spec("a"), spec("b"), spec("b")], compiler)
    assert hits == [False, False, True]
    assert pipelines.get([spec("b"), spec("a")], compiler) == [first[1], first[0]]
    assert hits == [False, False, True, True, True]
    assert sorted(compiler.names) == ["a", "b"]


def test_an_error_reaches_whoever_asks_and_the_next_one_tries_again() -> None:
    compiler, pipelines = Compiler(), Pipelines()
    pipelines.begin([spec("broken")], compiler)
    for _ in range(2):
        with pytest.raises(KernelError, match="broken one is broken"):
            pipelines.get([spec("fine"), spec("broken one"), spec("broken two")], compiler)
    assert compiler.names.count("fine") == 1
    assert compiler.names.count("broken one") == 2


def test_what_was_begun_for_a_lost_device_is_not_kept() -> None:
    compiler, pipelines = Compiler(), Pipelines()
    compiler.go.clear()
    pipelines.begin([spec("a")], compiler)
    pipelines.clear()
    compiler.go.set()
    pipelines.get([spec("a")], compiler)
    pipelines.close()
    assert compiler.names == ["a", "a"]


def test_closing_waits_for_what_is_being_compiled() -> None:
    compiler, pipelines = Compiler(), Pipelines()
    compiler.go.clear()
    pipelines.begin([spec("a")], compiler)
    closing = threading.Thread(target=pipelines.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    compiler.go.set()
    closing.join(60.0)
    assert not closing.is_alive()


def test_cycles_are_not_collected_inside_and_the_setting_returns() -> None:
    assert gc.isenabled()
    with no_collection():
        assert not gc.isenabled()
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the inner one found it off, and leaves it so"
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_collection():
        raise ZeroDivisionError
    assert gc.isenabled()


def test_no_cycles_are_collected_while_a_function_is_traced() -> None:
    seen: list[bool] = []

    def residual(p: Any) -> Any:
        seen.append(gc.isenabled())
        return p

    problem = ag.Problem()
    problem.add_residuals(residual, problem.parameters("x", [1.0, 2.0]))
    assert seen and not any(seen)
    assert gc.isenabled()


def springs() -> ag.Problem:
    return workloads.springs_problem(1)


def test_sums_of_stored_blocks_do_not_look_into_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = springs()
    analysis = problem.analysis()
    schedules = [Schedule(materialise="jtj-blocks")]
    x = current_parameters(problem)
    group = NodeTables(
        array_layouts(analysis), analysis.groups, x, schedules=schedules
    ).structure.groups[0]

    def looked(_: ElementParts) -> list[int]:
        raise AssertionError("the kernel's graph was copied")

    monkeypatch.setattr(ElementParts, "_values", property(looked))
    product_contribution.__wrapped__(group, 0)
    linearize_contribution.__wrapped__(group, 0, 3)


def test_whoever_is_told_hears_of_each_text_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")  # nothing is kept
    problem = springs()
    analysis = problem.analysis()
    fixed = [Schedule(materialise="jacobian", workgroup_size=128)]
    x = current_parameters(problem)
    structure = NodeTables(array_layouts(analysis), analysis.groups, x, schedules=fixed).structure
    told: list[str] = []
    made = element_kernels(structure, Told(lambda kernel: told.append(kernel.name)))
    assert told == list(made) == ["linearize_elements", "trial_elements"]
    again = element_kernels(structure, Told(lambda kernel: told.append(kernel.name)))
    assert again is made and len(told) == 2


# -- on a device -------------------------------------------------------------------------------


@pytest.fixture(params=wgsl_adapters())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


@pytest.mark.wgsl
def test_kernels_of_elements_are_begun_before_tables_are_filled(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(self: object, *given: Sequence[PipelineSpec]) -> None:
            steps.append(" ".join([name, *(one.name for one in (given[0] if given else ()))]))
            return call(self, *given)

        return wrapped

    monkeypatch.setattr(Device, "begin_pipelines", noted("begin", Device.begin_pipelines))
    monkeypatch.setattr(NodeTables, "_fill", noted("fill", NodeTables._fill))  # pyright: ignore[reportPrivateUsage]
    ag.solve(springs(), backend="wgsl", device=device, linear_solver="pcg", options=FEW)
    # Once when there is its text, and once with all others, which may be kept ones.
    begun = steps[: steps.index("fill")]
    assert 1 <= len(begun) <= 2 and set(begun) == {"begin trial_elements"}


@pytest.mark.wgsl
def test_a_text_that_is_rejected_early_is_quoted(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_one = Device._compile  # pyright: ignore[reportPrivateUsage]

    def broken(self: Device, one: PipelineSpec) -> CompiledPipeline:
        if one.name == "trial_elements":
            one = dataclasses.replace(one, source=f"{one.source}\nfn broken( {{")
        return compile_one(self, one)

    monkeypatch.setattr(Device, "_compile", broken)
    with pytest.raises(KernelError, match=r"line \d+: 'fn broken\( \{'"):
        ag.solve(springs(), backend="wgsl", device=device, linear_solver="pcg", options=FEW)
    assert device.memory.bytes == 0
