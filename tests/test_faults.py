"""Drills: a device is lost, memory runs out, a text is rejected, somebody interrupts.

In none of them may a result be lost, and the next solve works as if nothing had been.
"""

from __future__ import annotations

import dataclasses
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen import solve_program
from autograd_gpu.codegen.program import PipelineSpec
from autograd_gpu.errors import DeviceLostError, DeviceMemoryError, KernelError
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.adapters import load_wgpu
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.runtime.device import Device, set_default_device
from autograd_gpu.runtime.pipelines import CompiledPipeline
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.runtime.threads import run_in_threads
from autograd_gpu.solvers import recovery
from tolerances import GRAPH, tolerance

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())
each_driver = pytest.mark.parametrize(
    "linear_solver", ["sparse-cholesky", "pcg"], ids=["host", "resident"]
)
FLOAT32 = tolerance("float32", GRAPH)
OPTIONS = ag.LevenbergMarquardtOptions(initial_damping=10.0)
"""Short steps, so that there are some."""


def springs(level: int = 1) -> ag.Problem:
    """A sphere whose springs want to be of various lengths: the least cost is not 0."""
    mesh = ag.meshes.icosphere(level)
    i, j = mesh.edges.T
    rest = mesh.edge_lengths * np.random.default_rng(0).uniform(0.8, 1.2, len(i))
    problem = ag.Problem()
    x = problem.parameters("x", 1.2 * mesh.vertices)
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    problem.add_residuals(lambda p, q: 0.3 * (p - q), x, mesh.vertices, name="anchors")
    return problem


@pytest.fixture
def device(adapter: str) -> Iterator[Device]:
    made = Device(adapter)
    yield made
    made.close()


def solve(problem: ag.Problem, device: Device | None, **options: Any) -> ag.Solution:
    backend = "auto" if device is None else "wgsl"
    options.setdefault("precision", "float32")
    return ag.solve(problem, backend=backend, device=device, options=OPTIONS, **options)


def least_cost() -> float:
    return ag.solve(springs(), backend="numba").cost


def at_step(number: int, act: Callable[[], Any]) -> Callable[[Any], None]:
    """A callback that acts after so many steps, once."""

    def callback(record: Any) -> None:
        if record.iteration == number:
            act()

    return callback


def check_next_solve(problem: ag.Problem, device: Device | None, **options: Any) -> None:
    """The next solve knows nothing of what happened."""
    after = solve(problem, device, **options)
    assert after.success and after.faults == ()
    FLOAT32.check(after.cost, least_cost(), "cost of the next solve")


# -- lost devices ------------------------------------------------------------------------------


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_a_destroyed_device_is_opened_again(device: Device, linear_solver: str) -> None:
    problem = springs()
    destroy = at_step(2, lambda: device.wgpu_device.destroy())
    solution = solve(problem, device, linear_solver=linear_solver, callback=destroy)
    assert solution.success and solution.backend == "wgsl"
    assert device.generation == 1
    (fault,) = solution.faults
    assert "was lost at step 3; resumed from" in fault and "on the device, opened again" in fault
    assert "the last accepted point" in fault
    assert "was lost at step 3" in " ".join(solution.report().split())
    FLOAT32.check(solution.cost, least_cost(), "cost")
    # What had been reached was kept: no later cost is above it but by rounding.
    reached = solution.history[2].cost
    assert all(r.cost <= reached * (1.0 + 1e-5) for r in solution.history[2:])
    check_next_solve(problem, device, linear_solver=linear_solver)


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("end", ["reopen", "close"])
def test_nothing_is_handed_to_a_device_that_another_thread_has_ended(
    device: Device, end: str
) -> None:
    """wgpu-native would end the process."""
    encoder = device.wgpu_device.create_command_encoder()
    ended = getattr(device, end)

    class Slow:
        def finish(self) -> Any:
            commands = encoder.finish()
            thread = threading.Thread(target=ended)
            thread.start()
            thread.join()
            return commands

    with pytest.raises(DeviceLostError, match="closed or opened again"):
        device.submit(Slow())


@pytest.mark.wgsl
@each_adapter
def test_a_large_point_is_saved_from_time_to_time(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve_program, "LARGEST_POINT", 0)
    monkeypatch.setattr(recovery, "SECONDS_BETWEEN_SAVES", 0.0)
    destroy = at_step(2, lambda: device.wgpu_device.destroy())
    solution = solve(springs(), device, linear_solver="pcg", callback=destroy)
    assert solution.success
    assert "resumed from the point after step 2 on the device, opened again" in solution.faults[0]
    FLOAT32.check(solution.cost, least_cost(), "cost")


class Clocked:
    """An engine whose steps and read-backs take time by a clock of its own."""

    def __init__(self, seconds_of_step: float, seconds_of_read: float) -> None:
        self.now, self.steps, self.reads = 0.0, 0, [0]
        self._step, self._read = seconds_of_step, seconds_of_read

    def step(self) -> StepRecord:
        self.now += self._step
        self.steps += 1
        return StepRecord(cost=1.0, cost_before=2.0, gradient_norm=1.0, accepted=True, damping=1.0)

    def parameters(self) -> FloatArray:
        self.now += self._read
        self.reads.append(self.steps)
        return np.zeros(1)


@pytest.mark.parametrize(
    ("step", "read", "most_lost", "most_time"),
    [
        (0.01, 1e-6, 0.01, 1e-3),  # at every step
        (0.01, 1e-3, 0.06, 0.02),  # at every fifth
        (0.01, 0.1, 0.26, 0.3),  # every quarter of a second
        (1.0, 0.1, 1.0, 0.1),
    ],
)
def test_what_a_lost_device_costs_is_bounded(
    step: float, read: float, most_lost: float, most_time: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Clocked(step, read)
    monkeypatch.setattr(recovery.time, "perf_counter", lambda: engine.now)
    choice = BackendChoice(backend="wgsl", precision="float32", reason="", device=Device())
    making: Any = lambda *_: engine  # noqa: E731
    nothing: Any = None
    recovering = recovery.Recovering(making, nothing, np.zeros(1), recovery.Recovery(choice, True))
    for _ in range(500):
        recovering.step()
    lost = step * float(np.max(np.diff([*engine.reads, engine.steps])))
    assert lost <= most_lost * (1 + 1e-9)
    assert read * (len(engine.reads) - 1) <= most_time * engine.now


class Poor(Clocked):
    """An engine for which memory runs out in its second step, so often."""

    left = 3
    unknowns, rounding = 1, 1e-7

    def start(self) -> StepRecord:
        return StepRecord(cost=2.0, cost_before=2.0, gradient_norm=1.0, damping=1.0)

    def step(self) -> StepRecord:
        record = super().step()
        if self.steps == 2 or (self.steps == 1 and Poor.left < 3 and Poor.left > 0):
            Poor.left -= 1
            raise DeviceMemoryError("none left")
        return record

    def close(self) -> None:
        pass


class Sparing:
    """As much of an analysis as `Recovery` asks for."""

    memory_budget = None

    def spare_memory(self, in_use: int) -> bool:
        return True

    def drop(self, choice: BackendChoice) -> None:
        pass


@pytest.mark.wgsl
@each_adapter
def test_memory_that_runs_out_in_a_step_again_and_again(device: Device) -> None:
    choice = BackendChoice(backend="wgsl", precision="float32", reason="", device=device)
    place = recovery.Recovery(choice, False)
    Poor.left = 3
    making: Any = lambda *_: Poor(0.01, 0.0)  # noqa: E731
    problem: Any = Sparing()
    recovering = recovery.Recovering(making, problem, np.zeros(1), place)
    assert [recovering.step().accepted for _ in range(2)] == [True, True]
    assert len(place.faults) == 3
    assert all("at step 2" in f and "smaller pieces" in f for f in place.faults)


@pytest.mark.wgsl
@each_adapter
def test_a_device_lost_twice_leaves_the_cpu(device: Device) -> None:
    problem = springs()

    def destroy(record: Any) -> None:
        if record.iteration in (1, 3):
            device.wgpu_device.destroy()

    with pytest.warns(RuntimeWarning, match="was lost at step 4; resumed from the last accepted"):
        solution = solve(problem, device, linear_solver="sparse-cholesky", callback=destroy)
    assert solution.success and solution.backend in ("numba", "numpy")
    assert len(solution.faults) == 2 and "on the CPU" in solution.faults[1]
    assert "so on the CPU" in solution.backend_reason
    FLOAT32.check(solution.cost, least_cost(), "cost")
    device.reopen()
    check_next_solve(problem, device, linear_solver="sparse-cholesky")


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_an_injected_loss_is_like_a_real_one(
    device: Device, linear_solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = springs()
    solve(problem, device, linear_solver=linear_solver)
    queue, failures = device.queue, [1]

    class Failing:
        def submit(self, *arguments: Any) -> Any:
            if failures and failures.pop():
                raise RuntimeError("Parent device is lost")
            return queue.submit(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(queue, name)

    opened = type(device).queue
    with monkeypatch.context() as patch:
        generation = device.generation
        injected = property(
            lambda self: Failing() if self.generation == generation else opened.fget(self)  # pyright: ignore
        )
        patch.setattr(Device, "queue", injected)
        solution = solve(problem, device, linear_solver=linear_solver)
    assert solution.success and len(solution.faults) == 1
    FLOAT32.check(solution.cost, least_cost(), "cost")


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_a_device_that_somebody_else_opened_again_is_left_open(
    device: Device, linear_solver: str
) -> None:
    problem = springs()
    solution = solve(
        problem, device, linear_solver=linear_solver, callback=at_step(2, device.reopen)
    )
    assert solution.success and solution.backend == "wgsl" and len(solution.faults) == 1
    assert device.generation == 1  # a second time would take it from the other one
    FLOAT32.check(solution.cost, least_cost(), "cost")


@pytest.mark.wgsl
@each_adapter
def test_evaluate_goes_on_after_a_loss(device: Device) -> None:
    problem = springs()
    before = problem.evaluate(backend="wgsl", precision="float32", device=device)
    device.wgpu_device.destroy()
    after = problem.evaluate(backend="wgsl", precision="float32", device=device)
    assert np.array_equal(before.residuals, after.residuals)


@pytest.mark.wgsl
@each_adapter
def test_what_was_made_before_a_reopening_says_so(device: Device) -> None:
    problem = springs()
    problem.evaluate(backend="wgsl", precision="float32", device=device)
    from autograd_gpu.runtime.choice import choose_backend

    session = problem.analysis().session(choose_backend("wgsl", "float32", device, 0))
    device.reopen()
    with pytest.raises(DeviceLostError, match="lost and opened again"):
        session.residuals(np.zeros(problem.analysis().parameter_count))


# -- memory and texts --------------------------------------------------------------------------


@pytest.fixture
def no_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that has no room for anything."""
    wgpu: Any = load_wgpu()

    def refuse(**_: Any) -> Any:
        raise wgpu.GPUOutOfMemoryError("Not enough memory left.")

    monkeypatch.setattr(device.wgpu_device, "create_buffer", refuse)
    return device


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_no_memory_is_named(no_memory: Device, linear_solver: str) -> None:
    with pytest.raises(DeviceMemoryError, match=r"cannot allocate .* bytes: .*memory_budget") as e:
        solve(springs(), no_memory, linear_solver=linear_solver)
    assert isinstance(e.value, MemoryError) and isinstance(e.value, ag.DeviceError)
    assert no_memory.memory.bytes == 0


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("lost", [False, True], ids=["", "and-the-device-is-lost"])
def test_memory_that_runs_out_at_a_step_is_used_in_pieces(
    device: Device, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograd_gpu.runtime.program_runner import ProgramRunner

    wgpu: Any = load_wgpu()
    problem, tight = springs(3), [0]
    undisturbed = solve(springs(3), device, linear_solver="sparse-cholesky")
    execute = ProgramRunner._execute  # pyright: ignore[reportPrivateUsage]

    def refuse(self: ProgramRunner, *arguments: Any) -> Any:
        if 0 < tight[0] < device.memory.bytes:
            if lost:
                device.wgpu_device.destroy()
            # As wgpu-native says it.
            raise wgpu.GPUValidationError(
                "Validation Error\n\nCaused by:\n  Not enough memory left."
            )
        return execute(self, *arguments)

    def tighten() -> None:
        tight[0] = device.memory.bytes // 2

    gc.collect()  # the buffers of that solve
    device.memory.trim()
    monkeypatch.setattr(ProgramRunner, "_execute", refuse)
    solution = solve(problem, device, linear_solver="sparse-cholesky", callback=at_step(2, tighten))
    assert solution.backend == "wgsl" and "pieces" in solution.device
    assert (
        "ran out of memory at step 3; resumed from the last accepted point in smaller pieces"
        in (solution.faults[0])
    )
    assert device.generation == lost
    FLOAT32.check(solution.cost, undisturbed.cost, "cost")
    tight[0] = 0
    evaluation = springs(3).evaluate(backend="wgsl", precision="float32", device=device)
    assert "pieces" not in evaluation.device


@pytest.fixture
def taken_by_auto(device: Device) -> Iterator[Device]:
    """The default device, which ``auto`` takes for everything."""
    set_default_device(device)
    ag.enable_gpu(True, min_batch=1)
    yield device
    ag.enable_gpu(None)
    set_default_device(None)


@pytest.mark.wgsl
@each_adapter
def test_no_memory_is_no_matter_to_auto(taken_by_auto: Device, no_memory: Device) -> None:
    with pytest.warns(RuntimeWarning, match="failed before the first step; resumed from the start"):
        solution = ag.solve(springs(), precision="float32")
    assert solution.backend == "numba" and len(solution.faults) == 1
    FLOAT32.check(solution.cost, least_cost(), "cost")


@pytest.fixture
def rejecting(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose compiler meets a line that it cannot read in every text."""
    compile_one = Device._compile  # pyright: ignore[reportPrivateUsage]

    def broken(self: Device, spec: PipelineSpec) -> CompiledPipeline:
        spec = dataclasses.replace(spec, source=f"{spec.source}\nfn broken( {{")
        return compile_one(self, spec)

    monkeypatch.setattr(Device, "_compile", broken)
    return device


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_a_rejected_text_is_quoted(rejecting: Device, linear_solver: str) -> None:
    with pytest.raises(KernelError, match=r"line \d+: 'fn broken\( \{'") as raised:
        solve(springs(), rejecting, linear_solver=linear_solver)
    error = raised.value
    assert error.line is not None
    assert error.source.splitlines()[error.line - 1] == "fn broken( {"
    assert rejecting.memory.bytes == 0


@pytest.mark.wgsl
@each_adapter
def test_a_rejected_text_sends_auto_to_the_cpu(taken_by_auto: Device, rejecting: Device) -> None:
    problem = springs()
    with pytest.warns(RuntimeWarning, match="failed while it evaluated; .* on the CPU"):
        evaluation = problem.evaluate(precision="float32")
    assert evaluation.backend == "numba"
    with pytest.warns(RuntimeWarning, match="on the CPU: .* rejected pipeline"):
        solution = ag.solve(problem, precision="float32")
    assert solution.backend == "numba"
    FLOAT32.check(solution.cost, least_cost(), "cost")


# -- interruptions -----------------------------------------------------------------------------


def check_interrupted(solution: ag.Solution, problem: ag.Problem) -> None:
    assert solution.status is ag.Status.INTERRUPTED and not solution.success
    assert solution.iterations == 2 and "interrupted after 2 steps" in solution.message
    assert solution.cost < solution.initial_cost
    other = problem.copy()
    other.update(x=solution.values["x"])
    FLOAT32.check(other.evaluate(backend="numpy").cost, solution.cost, "cost of the values")


def press_control_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_control_c_returns_the_last_point(device: Device, linear_solver: str) -> None:
    problem = springs()
    callback = at_step(2, press_control_c)
    solution = solve(problem, device, linear_solver=linear_solver, callback=callback)
    check_interrupted(solution, problem)
    check_next_solve(problem, device, linear_solver=linear_solver)


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_control_c_on_the_cpu(backend: str) -> None:
    problem = springs()
    callback = at_step(2, press_control_c)
    solution = ag.solve(problem, backend=backend, options=OPTIONS, callback=callback)
    check_interrupted(solution, problem)
    assert ag.solve(problem, backend=backend).success


@pytest.mark.wgsl
@each_adapter
@each_driver
def test_control_c_while_the_device_is_waited_for(
    device: Device, linear_solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autograd_gpu.runtime.program_runner import ProgramRunner

    problem = springs()
    waiting = ProgramRunner._read_staging  # pyright: ignore[reportPrivateUsage]
    steps = [0]

    def interrupted(self: ProgramRunner, *arguments: Any) -> None:
        if steps[0] == 2:
            steps[0] = 0
            # As if it came while the buffer is about to be mapped.
            self._staging.map_async("READ_NOSYNC", 0, 8)  # pyright: ignore
            press_control_c()
        waiting(self, *arguments)

    monkeypatch.setattr(ProgramRunner, "_read_staging", interrupted)

    def count(record: Any) -> None:
        steps[0] = record.iteration

    solution = solve(problem, device, linear_solver=linear_solver, callback=count)
    check_interrupted(solution, problem)
    check_next_solve(problem, device, linear_solver=linear_solver)


def test_control_c_before_the_start_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograd_gpu.runtime.numba_backend import NumbaSession

    monkeypatch.setattr(NumbaSession, "residual_jacobian", lambda *_: press_control_c())
    with pytest.raises(KeyboardInterrupt):
        ag.solve(springs(), backend="numba")


def test_threads_have_stopped_when_one_fails() -> None:
    done: list[int] = []

    def task(number: int) -> None:
        if number == 0:
            raise ValueError("first")
        for _ in range(1000):
            pass
        done.append(number)

    with pytest.raises(ValueError, match="first"):
        run_in_threads([lambda k=k: task(k) for k in range(50)])
    before = len(done)
    run_in_threads([lambda: None, lambda: None])
    assert len(done) == before
