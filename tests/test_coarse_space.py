"""The coarse correction on the device: its matrix, its effect, its cost in dispatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.coarse_layout import LARGEST_SPACE, TILE
from autograd_gpu.codegen.coarse_program import coarse_program
from autograd_gpu.codegen.program import MAX_STORAGE_BUFFERS, BufferSpec, Program
from autograd_gpu.codegen.solve_layout import Vector
from autograd_gpu.runtime.coarse_tables import CoarseTables, aggregate_sizes
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers import device_preconditioner
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.device_preconditioner import AdaptiveSteps, coarse_tables
from autograd_gpu.solvers.evaluation import current_parameters

pytestmark = pytest.mark.wgsl
DAMPING = 1e-3
FloatArray = NDArray[np.float64]


@pytest.fixture(params=wgsl_adapters(), scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


def frozen_deformation() -> ag.Problem:
    """W2 with frozen positions, one whole neighbourhood among them."""
    problem = workloads.deformation_problem(2)
    x = next(a for a in problem.arrays if a.name == "x")
    problem.freeze(x, [*range(40), 100])
    return problem


def bundle() -> ag.Problem:
    """Two arrays, cameras of nine numbers and points."""
    return workloads.bundle_problem(20, 300)


def plate() -> ag.Problem:
    """Heights over a grid: one number a node, so that constants are the only modes."""
    mesh = ag.meshes.grid(15, 15)
    i, j = mesh.edges.T
    problem = ag.Problem()
    h = problem.parameters("h", np.sin(5.0 * mesh.vertices[:, 0]))
    problem.add_residuals(lambda a, b: a - b, h[i], h[j], name="flat")
    problem.add_residuals(lambda a: 0.01 * (a - 1.0), h, name="level")
    return problem


def points_and_offset(width: int = 4) -> ag.Problem:
    """Some numbers a node, and one block that all elements share: no modes of its own."""
    rng = np.random.default_rng(3)
    problem = ag.Problem()
    p = problem.parameters("p", rng.standard_normal((300, width)))
    shift = problem.parameters("shift", np.ones((1, 3)))
    i = np.arange(299)
    problem.add_residuals(lambda a, b: a - b, p[i], p[i + 1], name="alike")
    problem.add_residuals(
        lambda a, s, d: 0.1 * (a[0:3] + s - d), p, shift[0], rng.standard_normal((300, 3))
    )
    return problem


def strip() -> ag.Problem:
    """A long strip held at one end, which block-Jacobi crosses a node an iteration."""
    mesh = ag.meshes.grid(3, 240)
    along = mesh.vertices[:, np.ptp(mesh.vertices, axis=0).argmax()]
    i, j = mesh.edges.T
    problem = ag.Problem()
    h = problem.parameters("h", np.zeros(len(along)))
    problem.add_residuals(lambda a, b: a - b, h[i], h[j], name="flat")
    held = np.flatnonzero(along == along.min())
    problem.add_residuals(lambda a: a - 1.0, h[held], name="held")
    return problem


class Prepared:
    """A problem on a device, one step begun with a coarse space."""

    def __init__(self, problem: ag.Problem, device: Device, unknowns: int = 96) -> None:
        self.problem = problem
        self.analysis = problem.analysis()
        self.x = current_parameters(problem).astype(np.float32).astype(np.float64)
        self.layouts = array_layouts(self.analysis)
        self.tables = NodeTables(self.layouts, self.analysis.groups, self.x)
        made = coarse_tables(self.tables, self.layouts, self.x, unknowns)
        assert made is not None
        self.coarse: CoarseTables = made
        self.solve = DeviceSolve(device, self.tables)
        self.solve.add_coarse_space(made)
        self.solve.start(self.x, DAMPING, 1e-2, 1e-3)

    def matrix(self, half: int) -> FloatArray:
        """One of the two matrices between which the inversion goes."""
        n = self.coarse.sizes.unknowns
        both = self.solve.runner.read("coarse_matrix", np.float32).reshape(2, n, n)
        return both[half].astype(float)

    def modes(self) -> FloatArray:
        """P over the problem's parameters, made from its definition in float64."""
        sizes, structure = self.coarse.sizes, self.coarse.structure
        positions = self.tables.unpack(np.arange(self.tables.sizes.components, dtype=np.float32))
        frozen = np.concatenate([np.repeat(a.frozen, a.width) for a in self.layouts])
        space = np.zeros((len(self.x), sizes.unknowns))
        for k, modes in enumerate(structure.modes):
            width = structure.solve.node_sets[k].width
            first = sizes.solve.vector_bases[k] * structure.solve.lanes
            local = positions.astype(int) - first
            mine = np.flatnonzero((local >= 0) & (local < width * sizes.solve.nodes[k]))
            node, component = np.divmod(local[mine], width)
            values = np.zeros((sizes.solve.nodes[k], width))
            values[node, component] = self.x[mine]
            size = sizes.aggregate_nodes[k]
            aggregate = np.arange(sizes.solve.nodes[k]) // size
            middle = np.minimum(aggregate * size + size // 2, sizes.solve.nodes[k] - 1)
            arms = np.zeros((len(values), 3))
            if modes.position is not None:
                arms = (values - values[middle])[:, modes.position : modes.position + 3]
            for e in modes.entries:
                row = mine[component == e.component]
                own = node[component == e.component]
                column = sizes.unknown_bases[k] + aggregate[own] * modes.count + e.mode
                value = 1.0 if e.axis is None else arms[own, e.axis]
                space[row, column] = e.sign * value * ~frozen[row]
        return space

    def oracle(self) -> tuple[FloatArray, FloatArray]:
        """JᵀJ + λD over all parameters in float64, zero where frozen, and PᵀAP."""
        evaluated = self.problem.evaluate(backend="numpy")
        jacobian = evaluated.jacobian.toarray()
        small = jacobian.T @ jacobian
        diagonal = np.diag(small)
        small = small + DAMPING * np.diag((1.0 + np.sqrt(diagonal)) ** 2)
        full = np.zeros((len(self.x), len(self.x)))
        free = self.analysis.free_positions
        full[np.ix_(free, free)] = small
        modes = self.modes()
        return full, modes.T @ full @ modes


PROBLEMS: dict[str, Callable[[], ag.Problem]] = {
    "W1r": lambda: workloads.springs_problem(2),
    "W2": lambda: workloads.deformation_problem(2),
    "W4": lambda: workloads.bending_problem(2),
    "frozen": frozen_deformation,
    "W3": bundle,
    "plate": plate,
    "shared": points_and_offset,
}


# 144 sums a thread: software devices need long to compile them, and no device may lack the memory.
WIDE = pytest.param("wide", marks=pytest.mark.long)


@pytest.mark.parametrize("name", [*PROBLEMS, WIDE])
def test_coarse_matrix_and_its_inverse_are_the_oracles(device: Device, name: str) -> None:
    make = PROBLEMS.get(name, lambda: points_and_offset(12))
    prepared = Prepared(make(), device)
    runner = prepared.solve.runner
    _, oracle = prepared.oracle()
    runner.run(["linearize", "coarse_assemble"])
    found = prepared.matrix(0)
    scale = np.sqrt(np.diag(oracle))
    scale = np.outer(scale, scale)
    # Sums over hundreds of elements with both signs, on the scale of the diagonal.
    np.testing.assert_allclose(
        found[scale > 0.0] / scale[scale > 0.0], oracle[scale > 0.0] / scale[scale > 0.0], atol=5e-5
    )
    assert not found[scale == 0.0].any()

    runner.run(["linearize", "coarse"])
    inverse = prepared.matrix(prepared.coarse.sizes.inversion_steps % 2)
    prepared.solve.close()
    kept = np.flatnonzero(np.diag(inverse) > 0.0)
    dropped = np.flatnonzero(np.diag(inverse) <= 0.0)
    assert not inverse[dropped].any() and not inverse[:, dropped].any()
    assert len(kept) >= 0.9 * (np.diag(oracle) > 0.0).sum()
    d = np.sqrt(np.diag(oracle)[kept])
    scaled = oracle[np.ix_(kept, kept)] / np.outer(d, d)
    condition = np.linalg.cond(scaled)
    product = scaled @ (inverse[np.ix_(kept, kept)] * np.outer(d, d))
    error = np.abs(product - np.eye(len(kept))).max()
    assert error < 10.0 * condition * np.finfo(np.float32).eps, (error, condition)


@pytest.mark.parametrize("name", ["W2", "frozen", "W3", "shared"])
def test_restricted_residual_follows_the_residual(device: Device, name: str) -> None:
    """Pᵀr by its recurrence, after some iterations, against P and the residual itself."""
    prepared = Prepared(PROBLEMS[name](), device)
    runner, sizes = prepared.solve.runner, prepared.tables.sizes
    iterations = 3
    runner.run(["linearize", "coarse", *["coarse_cg"] * iterations])
    vectors = runner.read("vectors", np.float32).reshape(-1, sizes.components)
    residual = prepared.tables.unpack(vectors[Vector.RESIDUAL])
    n, slots = prepared.coarse.sizes.unknowns, prepared.coarse.sizes.sum_bases[1]
    start = slots + 2 * n * (iterations % 2)
    found = runner.read("coarse_sums", np.float32)[start : start + n]
    prepared.solve.close()
    modes = prepared.modes()
    scale = (np.abs(modes).T @ np.abs(residual)).max()
    # Both recurrences subtract vectors that are larger than what is left.
    np.testing.assert_allclose(found / scale, modes.T @ residual / scale, atol=1e-5)


def steps(
    problem: ag.Problem,
    device: Device,
    preconditioner: str,
    tolerance: float,
    count: int,
    unknowns: int = 64,
) -> tuple[list[StepRecord], bytes, str]:
    """Some steps of a solve, the point after them, and what the report would say."""
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    tables = NodeTables(layouts, analysis.groups, x)
    engine = DeviceSolve(device, tables)
    engine.start(x, 1e-6, tolerance, 1e-3)
    adaptive = AdaptiveSteps(engine, tables, layouts, x, preconditioner, unknowns, smallest=0)
    records = [adaptive.step(400) for _ in range(count)]
    point = engine.parameters().tobytes()
    engine.close()
    return records, point, adaptive.name


@pytest.mark.parametrize(
    ("make", "unknowns", "factor"),
    [(strip, 64, 8.0), (lambda: workloads.deformation_problem(3), 256, 1.7)],
    ids=["strip", "W2_s3"],
)
def test_a_coarse_space_lowers_the_iterations(
    device: Device, make: Callable[[], ag.Problem], unknowns: int, factor: float
) -> None:
    plain, _, _ = steps(make(), device, "block-jacobi", 1e-4, 3)
    coarse, _, name = steps(make(), device, "coarse", 1e-4, 3, unknowns)
    assert "coarse space of" in name
    # The first step is cut short at what is submitted with it.
    needed, now = (max(r.linear_iterations for r in q) for q in (plain, coarse))
    assert factor * now < needed, (needed, now)
    assert coarse[-1].cost <= plain[-1].cost * (1.0 + 1e-3) + 1e-6


def test_two_solves_with_it_are_equal_to_the_bit(device: Device) -> None:
    first, second = (steps(bundle(), device, "coarse", 1e-2, 3)[:2] for _ in range(2))
    assert first == second


def test_it_is_chosen_where_block_jacobi_is_slow(device: Device) -> None:
    records, _, name = steps(strip(), device, "auto", 1e-4, 3)
    assert records[0].linear_iterations > 60
    assert records[1].linear_iterations < records[0].linear_iterations
    assert name.startswith("block-Jacobi + coarse space of")


def test_a_small_problem_stays_with_block_jacobi(device: Device) -> None:
    problem = strip()
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    tables = NodeTables(layouts, analysis.groups, x)
    engine = DeviceSolve(device, tables)
    engine.start(x, 1e-6, 1e-4, 1e-3)
    adaptive = AdaptiveSteps(engine, tables, layouts, x)
    assert max(adaptive.step(400).linear_iterations for _ in range(3)) > 60
    engine.close()
    assert adaptive.name == "block-Jacobi"


def test_a_correction_that_breaks_down_is_given_up() -> None:
    """Rounding may make it indefinite: CG then ends before its first iteration."""

    class Breaking:
        coarse = True
        cut_short = False
        calls: ClassVar[list[bool]] = []

        def step(self, _: int, coarse: bool = False) -> StepRecord:
            self.calls.append(coarse)
            count = 0 if coarse else 7
            return StepRecord(
                cost=1.0, cost_before=2.0, gradient_norm=1.0, damping=1.0, linear_iterations=count
            )

    problem = workloads.springs_problem(1)
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    tables = NodeTables(layouts, analysis.groups, x)
    adaptive = AdaptiveSteps(cast(DeviceSolve, Breaking()), tables, layouts, x, "coarse")
    assert [adaptive.step(9).linear_iterations for _ in range(2)] == [7, 7]
    assert Breaking.calls == [True, False, False]
    assert adaptive.name == "block-Jacobi"


def test_the_report_says_what_preconditioned(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_preconditioner, "SMALLEST_PROBLEM", 0)
    options = ag.LevenbergMarquardtOptions(max_iterations=3, linear_tolerance=1e-4)
    solution = ag.solve(
        strip(),
        backend="wgsl", device=device, linear_solver="pcg", options=options,
    )  # fmt: skip
    assert solution.linear_solver.startswith("pcg (device, block-Jacobi + coarse space of")
    assert "iterations on average" in solution.linear_solver_reason
    easy = ag.solve(
        workloads.springs_problem(1), backend="wgsl", device=device, linear_solver="pcg"
    )
    assert easy.linear_solver == "pcg (device, block-Jacobi)"


@pytest.mark.parametrize("name", ["W2", "W3"])
def test_dispatches_buffers_and_pipelines_are_counted(device: Device, name: str) -> None:
    prepared = Prepared(PROBLEMS[name](), device)
    program = prepared.solve.runner.program
    sets = len(prepared.tables.structure.node_sets)
    # None more than without, in each iteration; four and the inversion in each step.
    assert len(program.sequences["coarse_cg"].dispatches) == sets + 1
    steps_of_inversion = prepared.coarse.sizes.unknowns // TILE
    assert len(program.sequences["coarse"].dispatches) == 4 + steps_of_inversion
    assert all(p.storage_buffers <= MAX_STORAGE_BUFFERS for p in program.pipelines)
    assert Program.from_json(program.to_json()) == program
    assert program == coarse_program(prepared.coarse.sizes)

    prepared.solve.step(8, coarse=True)
    before = device.counters.snapshot()
    prepared.solve.step(8, coarse=True)
    prepared.solve.step(8)
    after = device.counters.snapshot()
    prepared.solve.close()
    assert after.readbacks - before.readbacks == 2
    assert after.buffers_created == before.buffers_created
    assert after.pipelines_created == before.pipelines_created


def test_only_a_larger_program_continues_a_smaller_one(device: Device) -> None:
    prepared = Prepared(strip(), device)
    runner = prepared.solve.runner
    program = runner.program
    fewer = replace(program, buffers=program.buffers[1:], sequences={}, pipelines=())
    with pytest.raises(ag.InputError, match="control"):
        runner.extend(fewer)
    huge = BufferSpec(name="huge", size=2**62, role="state")
    with pytest.raises(ag.DeviceLimitError):
        runner.extend(replace(program, buffers=(*program.buffers, huge)))
    assert runner.program is program
    assert prepared.solve.step(8, coarse=True).linear_iterations == 8
    prepared.solve.close()


def test_the_switch_is_the_only_time_that_buffers_are_made(device: Device) -> None:
    problem = strip()
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    tables = NodeTables(layouts, analysis.groups, x)
    engine = DeviceSolve(device, tables)
    engine.start(x, 1e-6, 1e-4, 1e-3)
    adaptive = AdaptiveSteps(engine, tables, layouts, x, smallest=0)
    device.memory.trim()  # what other problems left would be used again, and not be counted
    made: list[int] = []
    for _ in range(4):
        before = device.counters.snapshot().buffers_created
        adaptive.step(400)
        made.append(device.counters.snapshot().buffers_created - before)
    engine.close()
    assert made == [0, 3, 0, 0]


def test_aggregates_fit_workgroups_and_the_limit() -> None:
    problem = workloads.deformation_problem(1)
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    made = coarse_tables(NodeTables(layouts, analysis.groups, x), layouts, x)
    assert made is not None
    for limit in (12, 60, 200, 10_000):
        for nodes in (17, 642, 10_242, 163_842, 5_000_000):
            (size,) = aggregate_sizes(made.structure, (nodes,), limit)
            assert 256 % size == 0 or size % 256 == 0
            assert size >= 16 or nodes < 16
            assert 6 * -(-nodes // size) <= max(6, min(limit, LARGEST_SPACE))
