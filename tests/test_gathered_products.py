"""Products gathered in pieces: the bits of whole ones, and the memory that they take, counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import DeviceLimitError
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.gathered_products import GatheredProducts
from autograd_gpu.runtime.locality import lexical_order, stable_order
from autograd_gpu.runtime.node_incidences import NodeIncidences
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())


def many_springs() -> ag.Problem:
    """More springs than vertices by far, so that tables dwarf vectors; some vertices are held."""
    rng = np.random.default_rng(0)
    i, j = rng.integers(0, 60, (2, 4000))
    keep = i != j
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((60, 3)))
    rest = rng.uniform(0.5, 1.5, int(keep.sum()))
    problem.add_residuals(energies.spring, x[i[keep]], x[j[keep]], rest, name="springs")
    problem.freeze(x, [0, 31, 59])
    return problem


def deformation() -> ag.Problem:
    problem = workloads.deformation_problem(1)
    problem.freeze(problem.arrays[1], [3, 4])
    return problem


CASES: dict[str, Callable[[], ag.Problem]] = {
    "springs": many_springs,
    "arap": deformation,
    "bundle": lambda: workloads.bundle_problem(6, 120),
}
each_case = pytest.mark.parametrize("case", CASES)


def whole(device: Device, problem: ag.Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The point, and gradient and product there with all tables bound at once."""
    analysis = problem.analysis()
    x = current_parameters(problem)
    v = np.random.default_rng(1).standard_normal(x.size)
    tables = NodeTables(array_layouts(analysis), analysis.groups, x, schedules=[Schedule()])
    with Operators(device, tables) as operators:
        return x, operators.gradient(x), operators.jtj_product(x, v)


def lists_of(problem: ag.Problem) -> NodeIncidences:
    analysis = problem.analysis()
    x = current_parameters(problem)
    return NodeIncidences(array_layouts(analysis), analysis.groups, x, schedules=[Schedule()])


@pytest.mark.wgsl
@each_adapter
@each_case
def test_pieces_have_the_bits_of_the_whole(adapter: str, case: str) -> None:
    problem = CASES[case]()
    device = Device(adapter)
    x, gradient, product = whole(device, problem)
    lists = lists_of(problem)
    # A binding that holds the parameters and a piece of the tables.
    binding = 4 * x.size + 2048
    small = Device(adapter, limits={"max-storage-buffer-binding-size": binding})
    v = np.random.default_rng(1).standard_normal(x.size)
    counts: list[int] = []
    for on in (device, small):
        with GatheredProducts(on, lists) as pieces:
            assert not pieces.streamed
            assert np.array_equal(pieces.gradient(x), gradient)
            assert np.array_equal(pieces.jtj_product(x, v), product)
            counts.append(pieces.pieces)
        on.close()
    assert counts[0] == len(lists.sets) < counts[1]


@pytest.mark.wgsl
@each_adapter
def test_four_times_the_budget_is_streamed(adapter: str) -> None:
    problem = many_springs()
    device = Device(adapter)
    x, gradient, product = whole(device, problem)
    lists = lists_of(problem)
    v = np.random.default_rng(1).standard_normal(x.size)
    with GatheredProducts(device, lists) as resident:
        tables = sum(b.size for b in resident.runner.program.buffers if "tables" in b.name)
    assert device.memory.bytes == 0
    budget = tables // 4
    device.memory.trim()
    device.memory.reset_peak()
    with GatheredProducts(device, lists, memory_budget=budget) as pieces:
        assert pieces.streamed and pieces.pieces > 4
        made = device.counters.buffers_created
        for _ in range(2):
            assert np.array_equal(pieces.gradient(x), gradient)
            assert np.array_equal(pieces.jtj_product(x, v), product)
        assert device.counters.buffers_created == made
    assert 0 < device.memory.peak <= budget
    assert device.memory.bytes == 0
    device.close()


@pytest.mark.wgsl
@each_adapter
def test_a_budget_below_one_node_is_refused(adapter: str) -> None:
    device = Device(adapter)
    with pytest.raises(DeviceLimitError, match=r"one node needs \d+ bytes, .* raise the memory"):
        GatheredProducts(device, lists_of(many_springs()), memory_budget=4000)
    assert device.memory.bytes == 0
    device.close()


@pytest.mark.wgsl
@each_adapter
def test_large_transfers_go_in_parts(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autograd_gpu.runtime import gathered_products, program_runner

    problem = many_springs()
    device = Device(adapter)
    x, gradient, _ = whole(device, problem)
    for module in (program_runner, gathered_products):
        monkeypatch.setattr(module, "LARGEST_TRANSFER", 256)
    before = device.counters.snapshot()
    with GatheredProducts(device, lists_of(problem), products=("gradient",)) as pieces:
        assert np.array_equal(pieces.gradient(x), gradient)
        sizes = {b.name for b in pieces.runner.program.buffers}
    assert "vectors" not in sizes
    assert device.counters.readbacks - before.readbacks == -(-4 * x.size // 256)
    device.close()


def test_counting_orders_are_numpys() -> None:
    rng = np.random.default_rng(2)
    keys = [rng.integers(0, count, 500) for count in (7, 40, 300)]
    order, starts = stable_order(keys[0], 9)
    assert np.array_equal(order, np.argsort(keys[0], kind="stable"))
    assert np.array_equal(starts, np.searchsorted(keys[0][order], np.arange(10)))
    assert np.array_equal(lexical_order(keys, (7, 40, 300)), np.lexsort(keys))
