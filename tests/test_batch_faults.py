"""Drills with many copies of a problem: none is lost, and cuts change no bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import DeviceMemoryError
from autograd_gpu.runtime.adapters import load_wgpu
from autograd_gpu.runtime.device import Device
from autograd_gpu.solvers import batch_levenberg_marquardt

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())
COPIES = 600


def curves() -> ag.Problem:
    t = np.linspace(0.0, 2.0, 12)
    problem = ag.Problem()
    amplitude, rate = problem.parameters("amplitude", [1.0]), problem.parameters("rate", [0.5])
    problem.add_residuals(
        lambda t, y, a, b: a * ag.exp(-b * t) - y, t, np.zeros(12), amplitude[0], rate[0],
        name="decay",
    )  # fmt: skip
    return problem


def solve(problem: ag.Problem | None = None, **where: Any) -> Any:
    rng = np.random.default_rng(5)
    a, b = rng.uniform(1.0, 3.0, (2, COPIES, 1))
    y = a * np.exp(-b * np.linspace(0.0, 2.0, 12)) + 0.05 * rng.standard_normal((COPIES, 12))
    return ag.solve_batch(problem or curves(), data={"decay": {"y": y}}, **where)


def check_equal(found: Any, whole: Any) -> None:
    assert found.success
    for name in ("rate", "amplitude"):
        assert np.array_equal(found.values[name], whole.values[name])
    assert np.array_equal(found.costs, whole.costs)
    assert np.array_equal(found.iterations, whole.iterations)


@pytest.fixture
def device(adapter: str) -> Iterator[Device]:
    made = Device(adapter)
    yield made
    made.close()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_budget_on_the_cpu(backend: str) -> None:
    whole, problem = solve(backend=backend), curves()
    problem.memory_budget = 150_000
    found = solve(problem, backend=backend)
    if backend == "numpy":
        check_equal(found, whole)
    # Numba computes elements of large batches side by side, with elementary functions of our own.
    np.testing.assert_allclose(found.costs, whole.costs, rtol=1e-12)
    assert "pieces" in found.device and found.faults == ()


def test_a_budget_through_jax() -> None:
    pytest.importorskip("jax")
    whole, problem = solve(backend="jax"), curves()
    problem.memory_budget = 150_000
    found = solve(problem, backend="jax")
    assert "pieces" in found.device
    np.testing.assert_allclose(found.costs, whole.costs, rtol=1e-6)  # XLA's sums follow lengths


@pytest.mark.wgsl
@each_adapter
def test_a_budget_of_a_device(device: Device, adapter: str) -> None:
    whole = solve(backend="wgsl", precision="float32", device=device)
    budget = device.memory.peak // 3
    small = Device(adapter, memory_budget=budget)
    found = solve(backend="wgsl", precision="float32", device=small)
    check_equal(found, whole)
    assert small.memory.peak <= budget and "pieces" in found.device and found.faults == ()
    small.close()


@pytest.mark.wgsl
@each_adapter
def test_memory_that_runs_out(
    device: Device, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = solve(backend="wgsl", precision="float32", device=device)
    small, wgpu, most = Device(adapter), load_wgpu(), device.memory.peak // 3
    create = small.wgpu_device.create_buffer

    def limited(*, label: str, size: int, usage: int) -> Any:
        if small.memory.bytes + small.memory.idle + size > most:
            raise wgpu.GPUValidationError("Not enough memory left.")
        return create(label=label, size=size, usage=usage)

    monkeypatch.setattr(small.wgpu_device, "create_buffer", limited)
    found = solve(backend="wgsl", precision="float32", device=small)
    check_equal(found, whole)
    assert small.memory.peak <= most
    assert "ran out of memory before the first step" in found.faults[0]
    assert "copies at a time" in " ".join(found.report().split())
    small.memory.trim()
    most = 0
    with pytest.raises(DeviceMemoryError):
        solve(backend="wgsl", precision="float32", device=small)
    small.close()


@pytest.fixture
def at_third_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Lets something happen in the third step, between the trial and the new Jacobian."""

    def arrange(act: Callable[[], None]) -> None:
        stage = batch_levenberg_marquardt._Stage  # pyright: ignore[reportPrivateUsage]
        linearize, calls = stage._linearize, [0]  # pyright: ignore[reportPrivateUsage]

        def counted(self: Any, chosen: Any) -> None:
            calls[0] += 1
            if calls[0] == 4:
                act()
            linearize(self, chosen)

        monkeypatch.setattr(stage, "_linearize", counted)

    return arrange


@pytest.mark.wgsl
@each_adapter
def test_a_lost_device_costs_nothing(
    device: Device, at_third_step: Callable[[Callable[[], None]], None]
) -> None:
    whole = solve(backend="wgsl", precision="float32", device=device)
    at_third_step(lambda: device.wgpu_device.destroy())
    found = solve(backend="wgsl", precision="float32", device=device)
    check_equal(found, whole)
    assert device.generation == 1
    assert "was lost after 2 steps; resumed from the last accepted points" in found.faults[0]


def test_a_device_of_jax_that_fails_leaves_the_cpu(
    at_third_step: Callable[[Callable[[], None]], None],
) -> None:
    jax = pytest.importorskip("jax")
    whole = solve(backend="jax")

    def fail() -> None:
        from autograd_gpu.runtime.jax_calls import jax_errors

        with jax_errors("a test"):
            raise jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS")

    at_third_step(fail)
    with pytest.warns(RuntimeWarning, match="failed after 2 steps"):
        found = solve(backend="jax")
    assert found.success and found.backend == "numba"
    np.testing.assert_allclose(found.costs, whole.costs, rtol=1e-6)


def test_control_c_keeps_what_was_reached(
    at_third_step: Callable[[Callable[[], None]], None],
) -> None:
    problem = curves()
    problem.memory_budget = 150_000
    at_third_step(lambda: signal.raise_signal(signal.SIGINT))
    found = solve(problem, backend="numba")
    statuses = set(found.statuses)
    assert ag.Status.INTERRUPTED in statuses and not found.success
    begun = found.iterations > 0
    assert 0 < np.count_nonzero(begun) < COPIES  # the first piece
    assert (found.costs[begun] < found.initial_costs[begun]).all()
