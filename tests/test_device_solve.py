"""Solves that stay on the device: minima, determinism, and what they cost in dispatches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.block_factor import block_factor, lower_index
from autograd_gpu.codegen.program import MAX_STORAGE_BUFFERS, MAX_WORKGROUP_SIZE, Program
from autograd_gpu.codegen.solve_program import gradient_program, solve_program
from autograd_gpu.ir import evaluate_nodes
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.locality import hilbert_order
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.program_runner import ProgramRunner
from autograd_gpu.runtime.schedules import MATERIALISATIONS, Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

pytestmark = pytest.mark.wgsl
FLOAT32_MINIMUM = 1e-4
"""Relative excess over the float64 minimum that a float32 solve may end with."""


@pytest.fixture(params=wgsl_adapters(), scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


def tables_of(problem: ag.Problem, materialise: str | None = None) -> NodeTables:
    analysis = problem.analysis()
    x = current_parameters(problem)
    schedules = None if materialise is None else [Schedule(materialise=materialise)]
    return NodeTables(array_layouts(analysis), analysis.groups, x, schedules=schedules)


def many_groups() -> ag.Problem:
    """One parameter array under five residual groups, some stored and some recomputed."""
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", 1.1 * mesh.vertices)
    problem.add_residuals(energies.spring, x[i], x[j], mesh.edge_lengths)
    problem.add_residuals(energies.edge_strain, x[i], x[j], mesh.edge_lengths)
    problem.add_residuals(lambda p, q: 0.1 * (p - q), x, mesh.vertices, name="anchor")
    a, b, c, d = mesh.dihedral_stencils.T
    problem.add_residuals(energies.dihedral_angle, x[a], x[b], x[c], x[d])
    problem.add_residuals(lambda p: 0.01 * ag.exp(p[0]), x[3], name="one")
    return problem


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("W1r_s3", lambda: workloads.springs_problem(3)),
        ("W2_s3", lambda: workloads.deformation_problem(3)),
        ("W4_s3", lambda: workloads.bending_problem(3)),
    ],
)
def test_minima_in_float32(device: Device, name: str, make: Callable[[], ag.Problem]) -> None:
    options = ag.LevenbergMarquardtOptions(max_iterations=200)
    solution = ag.solve(make(), backend="wgsl", device=device, linear_solver="pcg", options=options)
    assert solution.status.converged, solution.message
    assert solution.cost == pytest.approx(workloads.MINIMA[name], rel=FLOAT32_MINIMUM)
    assert "pcg" in solution.linear_solver


def test_bundle_adjustment_reaches_its_minimum(device: Device) -> None:
    if device.adapter.name.startswith("SwiftShader"):
        # The same kernels ran on the smaller bundle below; 100 000 observations take minutes.
        problem, minimum = workloads.bundle_problem(12, 300), None
    else:
        problem, minimum = workloads.bundle_problem(), workloads.MINIMA["W3"]
    options = ag.LevenbergMarquardtOptions(max_iterations=30, function_tolerance=1e-6)
    solution = ag.solve(
        problem, backend="wgsl", device=device, linear_solver="pcg", options=options
    )
    if minimum is None:
        minimum = ag.solve(problem, backend="numba").cost
    assert solution.cost == pytest.approx(minimum, rel=FLOAT32_MINIMUM)


def test_two_solves_are_equal_to_the_bit(device: Device) -> None:
    found = [
        ag.solve(
            workloads.deformation_problem(2), backend="wgsl", device=device, linear_solver="pcg"
        )
        for _ in range(2)
    ]
    for name in ("x", "r"):
        first, second = (s.values[name] for s in found)
        assert first.tobytes() == second.tobytes()
    assert [r.cost for r in found[0].history] == [r.cost for r in found[1].history]


def test_another_device_gives_the_same_bits(device: Device) -> None:
    other = Device(device.adapter)
    first, second = (
        ag.solve(workloads.springs_problem(2), backend="wgsl", device=d, linear_solver="pcg")
        for d in (device, other)
    )
    other.close()
    assert first.values["x"].tobytes() == second.values["x"].tobytes()


def test_frozen_vertices_keep_their_bits(device: Device) -> None:
    mesh = ag.meshes.icosphere(2)
    i, j = mesh.edges.T
    start = mesh.vertices + 0.01 * np.random.default_rng(1).standard_normal(mesh.vertices.shape)
    problem = ag.Problem()
    x = problem.parameters("x", start)
    problem.add_residuals(energies.spring, x[i], x[j], 0.9 * mesh.edge_lengths)
    # Held well, so that there is one minimum.
    problem.add_residuals(lambda p, q: p - q, x, mesh.vertices, name="anchor")
    rows = [0, 5, 17]
    problem.freeze(x, rows)
    solution = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    assert solution.values["x"][rows].tobytes() == start[rows].tobytes()
    host = ag.solve(problem, backend="numba")
    assert solution.cost == pytest.approx(host.cost, rel=FLOAT32_MINIMUM)


def test_history_never_rises_and_counts_linear_iterations(device: Device) -> None:
    solution = ag.solve(
        workloads.springs_problem(2), backend="wgsl", device=device, linear_solver="pcg"
    )
    costs = [r.cost for r in solution.history]
    assert all(b <= a for a, b in itertools.pairwise(costs))
    assert all(r.linear_iterations > 0 for r in solution.history[1:])
    assert solution.initial_cost == pytest.approx(solution.history[0].cost)


@pytest.mark.parametrize("make", [many_groups, lambda: workloads.deformation_problem(1)])
def test_dispatches_and_readbacks_are_bounded(
    device: Device, make: Callable[[], ag.Problem]
) -> None:
    tables = tables_of(make())
    program = solve_program(tables.sizes)
    sets = len(tables.structure.node_sets)
    assert sets == 1
    assert len(program.sequences["cg"].dispatches) <= 2
    outside = [*program.sequences["linearize"].dispatches, *program.sequences["trial"].dispatches]
    assert len(outside) <= 6
    engine = DeviceSolve(device, tables)
    engine.start(current_parameters(make()), 1e-4, 1e-2, 1e-3)
    engine.step(8)
    before = device.counters.snapshot()
    record = engine.step(8)
    after = device.counters.snapshot()
    engine.close()
    assert record.linear_iterations <= 8
    assert after.readbacks - before.readbacks == 1
    assert after.dispatches - before.dispatches <= 2 * 8 + 6
    assert after.buffers_created == before.buffers_created
    assert after.pipelines_created == before.pipelines_created


def test_a_second_array_costs_one_dispatch(device: Device) -> None:
    tables = tables_of(workloads.bundle_problem(6, 40))
    assert len(tables.structure.node_sets) == 2
    assert len(solve_program(tables.sizes).sequences["cg"].dispatches) == 3


@pytest.mark.parametrize("materialise", MATERIALISATIONS)
def test_kernels_stay_within_a_browser(materialise: str) -> None:
    problem = workloads.bundle_problem(6, 40)
    for program in (
        solve_program(tables_of(problem, materialise).sizes),
        solve_program(tables_of(many_groups(), materialise).sizes),
    ):
        for pipeline in program.pipelines:
            assert pipeline.storage_buffers <= MAX_STORAGE_BUFFERS
            assert pipeline.workgroup_size <= MAX_WORKGROUP_SIZE
            assert "enable" not in pipeline.source and "atomic" not in pipeline.source


def test_the_program_is_data(device: Device) -> None:
    program = solve_program(tables_of(many_groups()).sizes)
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize("materialise", MATERIALISATIONS)
def test_storing_and_recomputing_agree(device: Device, materialise: str) -> None:
    problem = many_groups()
    tables = tables_of(problem, materialise)
    engine = DeviceSolve(device, tables)
    engine.start(current_parameters(problem), 1e-4, 1e-4, 1e-3)
    record = engine.step(200)
    engine.close()
    host = problem.evaluate(backend="numpy")
    assert record.cost_before == pytest.approx(host.cost, rel=1e-5)
    assert record.gradient_norm == pytest.approx(np.abs(host.gradient).max(), rel=1e-4)
    assert record.accepted
    assert record.gain == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    "make",
    [many_groups, lambda: workloads.springs_problem(2), lambda: workloads.bundle_problem(6, 40)],
)
def test_gathered_gradient_is_the_oracles(device: Device, make: Callable[[], ag.Problem]) -> None:
    problem = make()
    tables = tables_of(problem, "nothing")
    with ProgramRunner(device, gradient_program(tables.sizes)) as runner:
        runner.upload("control", tables.control)
        runner.upload("tables", tables.tables)
        packed = tables.pack(current_parameters(problem))
        runner.upload("parameters", np.concatenate([packed, packed]))
        gradient = tables.unpack(runner.run("gradient", np.float32)["result"])
    host = problem.evaluate(backend="numpy").gradient
    scale = np.abs(host).max()
    np.testing.assert_allclose(gradient / scale, host / scale, atol=5e-5)


def test_pack_and_unpack_are_inverse() -> None:
    for problem in (many_groups(), workloads.bundle_problem(6, 40)):
        tables = tables_of(problem)
        x = current_parameters(problem).astype(np.float32).astype(np.float64)
        assert np.array_equal(tables.unpack(tables.pack(x)), x)


def test_springs_are_seen_alike_from_both_ends_and_others_not() -> None:
    springs = tables_of(workloads.springs_problem(1))
    assert [k.mirrored for k in springs.structure.kinds[0]] == [True, False]

    problem = ag.Problem()
    x = problem.parameters("x", np.random.default_rng(0).standard_normal((6, 2)))
    i, j = np.arange(5), np.arange(1, 6)
    problem.add_residuals(lambda p, q: ag.norm(2.0 * q - p), x[i], x[j], name="lopsided")
    problem.add_residuals(
        lambda p, q: ag.where(q[0] > p[0], 1.0, 2.0) * ag.norm(q - p), x[i], x[j], name="directed"
    )
    lopsided = tables_of(problem)
    assert not any(k.mirrored for k in lopsided.structure.kinds[0])


@pytest.mark.parametrize("width", [1, 3, 6, 9])
def test_block_factor_solves(width: int) -> None:
    rng = np.random.default_rng(width)
    half = rng.standard_normal((width, width))
    block = half @ half.T + width * np.eye(width)
    # A structural zero, as between the axes of a position.
    if width > 2:
        block[1, 0] = block[0, 1] = 0.0
    nonzero = frozenset(
        lower_index(a, b) for a in range(width) for b in range(a + 1) if block[a, b] != 0.0
    )
    packed = [block[a, b] for a in range(width) for b in range(a + 1)]
    factor = block_factor(width, nonzero)
    values = evaluate_nodes(factor.factor.nodes, lambda _, k: packed[k])
    stored = [values[o] for o in factor.factor.outputs]
    assert len(stored) == factor.stored
    rhs = rng.standard_normal(width)
    solved = evaluate_nodes(factor.solve.nodes, lambda s, k: stored[k] if s == 0 else rhs[k])
    x = np.array([solved[o] for o in factor.solve.outputs])
    np.testing.assert_allclose(block @ x, rhs, atol=1e-10)


@pytest.mark.parametrize("axes", [2, 3])
def test_hilbert_order_walks_to_neighbours(axes: int) -> None:
    side = 8
    grid = np.stack(np.meshgrid(*[np.arange(side, dtype=float)] * axes), axis=-1).reshape(-1, axes)
    steps = np.abs(np.diff(grid[hilbert_order(grid)], axis=0)).sum(axis=1)
    # Cells of the curve are finer than the grid, so a step may skip, but the mean stays near 1.
    assert steps.mean() < 1.4


@pytest.mark.parametrize("damping", ["diagonal", "one-plus-norm", "identity"])
def test_damping_forms_on_the_device(device: Device, damping: str) -> None:
    options = ag.LevenbergMarquardtOptions(damping=damping, max_iterations=100)
    problem = workloads.deformation_problem(1)
    solution = ag.solve(
        problem, backend="wgsl", device=device, linear_solver="pcg", options=options
    )
    assert solution.cost == pytest.approx(ag.solve(problem).cost, rel=FLOAT32_MINIMUM)


def test_statuses_on_the_device(device: Device) -> None:
    def run(**options: float) -> ag.Solution:
        return ag.solve(
            workloads.springs_problem(1),
            backend="wgsl",
            device=device,
            linear_solver="pcg",
            options=ag.LevenbergMarquardtOptions(**options),
            callback=(lambda r: r.iteration == 2) if not options else None,
        )

    assert run(max_iterations=2).status is ag.Status.MAX_ITERATIONS
    assert run(max_seconds=0.0).status is ag.Status.MAX_SECONDS
    assert run().status is ag.Status.STOPPED_BY_CALLBACK
    assert run(gradient_tolerance=1e3).status is ag.Status.CONVERGED_GRADIENT
    assert run(parameter_tolerance=1e3).status is ag.Status.CONVERGED_PARAMETER


@pytest.mark.parametrize(
    ("residual", "start"),
    [
        (lambda x: ag.exp(x) - 20.0, 0.0),  # the first step overshoots by far
        (lambda x: ag.exp(x) - 1.0, -6.0),
        (ag.log, 5.0),  # the first step lands where the residual is NaN
    ],
    ids=["overshoot", "flat", "nan"],
)
def test_the_start_cost_does_not_hang_on_the_first_step(
    device: Device, residual: Callable[..., object], start: float
) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [start])
    problem.add_residuals(residual, x, name="r")
    solution = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    assert solution.initial_cost == pytest.approx(problem.evaluate(backend="numpy").cost, rel=1e-5)
    assert solution.status.converged
    assert solution.cost < 1e-9


def test_no_iterations_give_the_start(device: Device) -> None:
    problem = workloads.springs_problem(1)
    options = ag.LevenbergMarquardtOptions(max_iterations=0)
    solution = ag.solve(
        problem, backend="wgsl", device=device, linear_solver="pcg", options=options
    )
    assert (solution.status, solution.iterations) == (ag.Status.MAX_ITERATIONS, 0)
    assert solution.cost == pytest.approx(problem.evaluate(backend="numpy").cost, rel=1e-5)


def test_an_array_without_residuals_keeps_its_values(device: Device) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((5, 3)))
    problem.parameters("y", np.ones((4, 2)))
    problem.add_residuals(lambda a: 2.0 * a - 3.0, x)
    solution = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    np.testing.assert_allclose(solution.values["x"], 1.5, rtol=1e-6)
    assert np.array_equal(solution.values["y"], np.ones((4, 2)))


def test_frozen_blocks_wider_than_a_word_are_refused_by_name(device: Device) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((3, 40)))
    problem.add_residuals(lambda a: 2.0 * a, x)
    problem.freeze(x, [1])
    with pytest.raises(ag.DeviceLimitError, match="sparse-cholesky"):
        ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")


def test_a_start_that_is_not_finite_names_the_residual(device: Device) -> None:
    def solve(fn: Callable[..., object], start: list[float]) -> ag.Solution:
        problem = ag.Problem()
        x = problem.parameters("x", start)
        problem.add_residuals(lambda x: x - 1.0, x, name="fine")
        problem.add_residuals(fn, x, name="poor")
        solution = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
        assert solution.status is ag.Status.FAILED_NUMERICAL
        assert solution.iterations == 0
        assert np.array_equal(solution.values["x"], start)
        return solution

    undefined = solve(lambda x: [x, ag.log(x)], [1.0, -1.0]).message
    assert undefined == "at the start, residuals 'poor', element 1, component 1 is nan"
    large = solve(lambda x: ag.exp(30.0 * x), [1.0, 2.0]).message
    assert "residuals 'poor', element 1, component 0 is 1.14e+26, and" in large


def test_nan_wherever_one_steps_has_no_gain_ratio_and_moves_nothing(device: Device) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [2.0])
    problem.add_residuals(
        lambda x: x + ag.log(ag.where(ag.abs(x - 2.0) > 0.0, -1.0, 1.0)), x, name="island"
    )
    solution = ag.solve(problem, backend="wgsl", device=device, linear_solver="pcg")
    assert np.array_equal(solution.values["x"], [2.0])
    assert not any(r.accepted for r in solution.history[1:])
    assert np.isnan(solution.history[1].gain_ratio)


def test_the_other_step_control_is_refused_by_name(device: Device) -> None:
    with pytest.raises(ag.InputError, match=r"step_control='ceres'.*sparse-cholesky"):
        ag.solve(
            workloads.springs_problem(1),
            backend="wgsl",
            device=device,
            linear_solver="pcg",
            options=ag.LevenbergMarquardtOptions(step_control="ceres"),
        )
