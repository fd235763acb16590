"""Memory that is set, or runs out: the same results in pieces, and what they take, counted."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import DeviceMemoryError
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.adapters import load_wgpu
from autograd_gpu.runtime.device import Device
from tolerances import GRAPH, tolerance

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())


def springs(count: int = 6000) -> ag.Problem:
    """Many springs among few vertices, and a robust anchor on each vertex."""
    rng = np.random.default_rng(0)
    i = rng.integers(0, 60, count)
    j = (i + rng.integers(1, 60, count)) % 60
    vertices = rng.standard_normal((60, 3))
    problem = ag.Problem()
    x = problem.parameters("x", vertices)
    rest = np.linalg.norm(vertices[j] - vertices[i], axis=1) * rng.uniform(0.9, 1.1, count)
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    anchors = vertices + 0.1 * rng.standard_normal(vertices.shape)
    loss = ag.losses.Huber(0.1)
    problem.add_residuals(lambda p, q: p - q, x, anchors, loss=loss, name="anchors")
    problem.freeze(x, [0, 7])
    return problem


@pytest.fixture
def device(adapter: str) -> Iterator[Device]:
    made = Device(adapter)
    yield made
    made.close()


def peak_of(device: Device, problem: ag.Problem, precision: str) -> tuple[int, ag.Solution, Any]:
    device.memory.reset_peak()
    where = {"backend": "wgsl", "precision": precision, "device": device}
    evaluation = problem.evaluate(**where)
    solution = ag.solve(problem, linear_solver="sparse-cholesky", **where)
    return device.memory.peak, solution, evaluation


def check_equal(whole: Any, pieces: Any) -> None:
    """Residuals and Jacobians come element by element: they have the same bits."""
    assert np.array_equal(whole.residuals, pieces.residuals)
    assert (whole.jacobian != pieces.jacobian).nnz == 0
    tolerance("float64", GRAPH).check(pieces.cost, whole.cost, "cost")


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_four_times_a_devices_budget(device: Device, adapter: str, precision: str) -> None:
    whole_peak, whole, at_start = peak_of(device, springs(), precision)
    budget = whole_peak // 4
    small = Device(adapter, memory_budget=budget)
    problem = springs()
    peak, solution, evaluation = peak_of(small, problem, precision)
    assert 0 < peak <= budget
    check_equal(at_start, evaluation)
    assert np.array_equal(whole.values["x"], solution.values["x"])
    assert whole.history[-1].cost == solution.history[-1].cost
    assert "pieces" in solution.device or precision == "mixed"
    # The pieces of a group share their buffers; those of the next group may need their room.
    before = small.counters.snapshot()
    problem.evaluate(backend="wgsl", precision=precision, device=small)
    made = small.counters.buffers_created - before.buffers_created
    assert made <= 2 * 16 < 7 * (small.counters.submits - before.submits)
    small.close()


@pytest.mark.wgsl
@each_adapter
def test_a_budget_of_the_problem_leaves_the_devices_alone(device: Device) -> None:
    whole_peak, _, at_start = peak_of(device, springs(), "float32")
    gc.collect()
    assert device.memory.bytes == 0  # what nobody closed is given back all the same
    device.memory.trim()
    problem = springs()
    problem.memory_budget = whole_peak // 4
    peak, _, evaluation = peak_of(device, problem, "float32")
    # The pieces of a group fit into the budget; those of another one wait beside them.
    assert peak <= whole_peak // 2
    check_equal(at_start, evaluation)


@pytest.mark.wgsl
@each_adapter
def test_memory_that_runs_out_is_used_in_pieces(
    device: Device, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_peak, whole, at_start = peak_of(device, springs(), "float32")
    wgpu: Any = load_wgpu()
    small = Device(adapter)
    create = small.wgpu_device.create_buffer

    def limited(*, label: str, size: int, usage: int) -> Any:
        if small.memory.bytes + small.memory.idle + size > whole_peak // 3:
            raise wgpu.GPUOutOfMemoryError("Not enough memory left.")
        return create(label=label, size=size, usage=usage)

    monkeypatch.setattr(small.wgpu_device, "create_buffer", limited)
    peak, solution, evaluation = peak_of(small, springs(), "float32")
    assert peak <= whole_peak // 3
    check_equal(at_start, evaluation)
    assert np.array_equal(whole.values["x"], solution.values["x"])
    small.close()


@pytest.mark.wgsl
@each_adapter
def test_a_resident_solve_without_memory_steps_on_the_host(device: Device, adapter: str) -> None:
    whole_peak, whole, _ = peak_of(device, springs(), "float32")
    small = Device(adapter, memory_budget=whole_peak // 4)
    solution = ag.solve(
        springs(), backend="wgsl", precision="float32", device=small, linear_solver="pcg"
    )
    assert solution.success and small.memory.peak <= whole_peak // 4
    assert "steps on the host" in solution.faults[0]
    tolerance("float32", GRAPH).check(solution.cost, whole.cost, "cost")
    small.close()


@pytest.mark.wgsl
@each_adapter
def test_a_budget_for_nothing_is_refused_by_name(adapter: str) -> None:
    small = Device(adapter, memory_budget=1000)
    with pytest.raises(DeviceMemoryError, match=r"one element needs \d+ bytes.*raise it"):
        springs().evaluate(backend="wgsl", precision="float32", device=small)
    small.close()


@pytest.mark.wgsl
@each_adapter
def test_buffers_are_used_again(device: Device) -> None:
    """A resident solve makes its buffers anew: the second time it finds those of the first."""
    where = {"backend": "wgsl", "precision": "float32", "device": device, "linear_solver": "pcg"}
    first = ag.solve(springs(500), **where)
    device.memory.reset_peak()
    made, peak = device.counters.buffers_created, device.memory.peak
    second = ag.solve(springs(500), **where)
    assert device.counters.buffers_created == made
    assert device.memory.peak == peak
    assert np.array_equal(first.values["x"], second.values["x"])
    report = device.memory.report()
    assert report.bytes == 0 and report.idle == peak and report.buffers == 0
    device.memory.trim()
    assert device.memory.idle == 0


@pytest.mark.wgsl
@each_adapter
def test_a_buffer_that_is_used_again_holds_zeros(device: Device) -> None:
    usage: Any = load_wgpu().BufferUsage
    kind = usage.STORAGE | usage.COPY_DST | usage.COPY_SRC
    first = device.create_buffer("first", 1024, kind)
    device.queue.write_buffer(first, 0, np.ones(256, np.float32))
    device.give_back(first)
    second = device.create_buffer("second", 1000, kind)
    assert second is first
    assert not np.frombuffer(device.queue.read_buffer(second), np.float32).any()
    other = device.create_buffer("other", 100, kind)
    assert other is not first
    device.give_back(second, keep=False)
    device.give_back(other)
    assert device.memory.bytes == 0 and device.memory.idle == 100


@pytest.mark.wgsl
@each_adapter
def test_a_larger_buffer_that_is_used_again_is_read_as_the_smaller_one(device: Device) -> None:
    def solve(on: Device, count: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        vertices = rng.standard_normal((count, 3))
        problem = ag.Problem()
        x = problem.parameters("x", vertices)
        problem.add_residuals(energies.spring, x[:-1], x[1:], np.ones(count - 1), name="chain")
        problem.add_residuals(lambda p, q: p - q, x, vertices, name="anchors")
        return ag.solve(
            problem, backend="wgsl", precision="float32", device=on, linear_solver="pcg"
        ).values["x"]

    solve(device, 110)
    made = device.counters.buffers_created
    again = solve(device, 100)
    assert device.counters.buffers_created - made < 4  # nearly all are those of 110
    fresh = Device(device.adapter)
    assert np.array_equal(again, solve(fresh, 100))
    fresh.close()


@pytest.mark.wgsl
@each_adapter
def test_the_report_says_how_much_memory_a_solve_took(device: Device) -> None:
    where = {"backend": "wgsl", "precision": "float32", "device": device, "linear_solver": "pcg"}
    solution = ag.solve(springs(500), **where)
    sizes = solution.device_bytes, solution.peak_device_bytes
    assert 0 < sizes[0] <= sizes[1] == device.memory.peak
    shown = f"{sizes[0] / 1e6:.3g} MB in buffers, at most {sizes[1] / 1e6:.3g} MB"
    assert shown in solution.report()
    on_the_cpu = ag.solve(springs(500), backend="numba")
    assert on_the_cpu.peak_device_bytes == 0 and "device memory" not in on_the_cpu.report()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_a_budget_on_the_cpu(backend: str) -> None:
    at_start = springs().evaluate(backend=backend)
    problem = springs()
    problem.memory_budget = 100_000
    evaluation = problem.evaluate(backend=backend)
    check_equal(at_start, evaluation)
    assert "pieces" in evaluation.device
    whole = ag.solve(springs(), backend=backend)
    assert np.array_equal(whole.values["x"], ag.solve(problem, backend=backend).values["x"])


def mapped(folder: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as a memory-mapped file."""
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def long_chain(folder: Path | None, count: int = 30_000) -> ag.Problem:
    """Many springs between few vertices; with a folder all their arrays are files."""
    rng = np.random.default_rng(0)
    i = rng.integers(0, 50, count)
    j = (i + rng.integers(1, 50, count)) % 50
    rest = rng.uniform(0.5, 1.5, count)
    if folder is not None:
        i, j, rest = (mapped(folder, name, a) for name, a in (("i", i), ("j", j), ("rest", rest)))
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((50, 3)))
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    problem.freeze(x, [3])
    return problem


def test_files_are_read_piece_by_piece(tmp_path: Path) -> None:
    whole = long_chain(None)
    evaluation = whole.evaluate(backend="numba")
    problem = long_chain(tmp_path)
    for argument in problem.groups[0].arguments:
        values = argument.indices if hasattr(argument, "indices") else argument.values  # pyright: ignore
        assert isinstance(values, np.memmap) and not values.flags.writeable
    v = np.random.default_rng(1).standard_normal(len(evaluation.gradient))
    budget = 600_000
    with problem.products("numba", memory_budget=budget) as products:
        products.gradient()  # machine code and modules are loaded now
        tracemalloc.start()
        try:
            cost, gradient = products.cost(), products.gradient()
            product = products.jtj_product(v)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "pieces" in products.description
    # The values of J alone are 1.4 MB, its pattern as much.
    assert peak <= budget < evaluation.jacobian.data.nbytes
    bound = tolerance("float64", GRAPH)
    bound.check(cost, evaluation.cost, "cost")
    bound.check(gradient, evaluation.gradient, "gradient")
    bound.check(product, evaluation.jacobian.T @ (evaluation.jacobian @ v), "product")
    check_equal(evaluation, problem.evaluate(backend="numba"))


@pytest.mark.parametrize("method", ["l-bfgs", "levenberg-marquardt"])
def test_solves_from_files(tmp_path: Path, method: str) -> None:
    few = {
        "l-bfgs": ag.LBFGSOptions(max_iterations=6),
        "levenberg-marquardt": ag.LevenbergMarquardtOptions(max_iterations=6),
    }
    options = {"method": method, "backend": "numba", "options": few[method]}
    whole = ag.solve(long_chain(None, 4000), **options)
    problem = long_chain(tmp_path, 4000)
    problem.memory_budget = 100_000
    solution = ag.solve(problem, **options)
    assert "pieces" in solution.device and solution.cost < 0.9 * solution.initial_cost
    tolerance("float64", GRAPH).check(solution.cost, whole.cost, "cost")


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    rest = np.ones(10)
    rest[7] = np.nan
    problem = ag.Problem()
    x = problem.parameters("x", np.eye(10, 3))
    with pytest.raises(ag.InputError, match=r"rows from 0 on: 1 of 10 .* at \(7,\)"):
        problem.add_residuals(energies.spring, x, x[::-1], mapped(tmp_path, "rest", rest))
    with pytest.raises(ag.IndexRangeError, match=r"from position 0 on.* position 2"):
        x[mapped(tmp_path, "index", np.array([0, 1, 10]))]


def test_products_of_energies_and_of_other_lengths_are_refused() -> None:
    problem = springs(100)
    with problem.products("numpy") as products, pytest.raises(ag.ShapeError, match="columns"):
        products.jtj_product(np.ones(3))
    problem.add_energy(lambda p: ag.dot(p, p), problem.arrays[0], name="weight")
    with pytest.raises(ag.InputError, match="energies"):
        problem.products("numpy")


@pytest.mark.wgsl
@each_adapter
def test_products_and_gradients_on_a_small_device(device: Device, adapter: str) -> None:
    problem = springs()
    evaluation = problem.evaluate(backend="wgsl", precision="float32", device=device)
    v = np.random.default_rng(1).standard_normal(len(evaluation.gradient))
    budget = device.memory.peak // 4
    small = Device(adapter, memory_budget=budget)
    where = {"backend": "wgsl", "precision": "float32", "device": small}
    with problem.products(**where) as products:
        bound = tolerance("float64", GRAPH)
        bound.check(products.gradient(), evaluation.gradient, "gradient")
        product = evaluation.jacobian.T @ (evaluation.jacobian @ v)
        bound.check(products.jtj_product(v), product, "product")
    # A method of gradients gathers them on the device, in pieces too.
    whole = ag.solve(problem, "l-bfgs", backend="wgsl", precision="float32", device=device)
    solution = ag.solve(problem.copy(), "l-bfgs", **where)
    assert small.memory.peak <= budget
    tolerance("float32", GRAPH).check(solution.cost, whole.cost, "cost")
    small.close()
