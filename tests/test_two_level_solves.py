"""Lists of heavy nodes in resident solves: summed slice by slice, with the same result and bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import native_adapters
from autograd_gpu.codegen.program import MAX_STORAGE_BUFFERS, MAX_WORKGROUP_SIZE
from autograd_gpu.codegen.scatter_kernels import SHARED_WORDS
from autograd_gpu.codegen.solve_layout import Vector, sliced_kinds
from autograd_gpu.codegen.solve_program import solve_program
from autograd_gpu.errors import InputError
from autograd_gpu.runtime import program_runner, schedule_choice
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_orders import NodeOrders
from autograd_gpu.runtime.node_slices import cut_lists
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import DeviceIdentity, ScheduleChooser, identity_of
from autograd_gpu.runtime.schedule_costs import GPU, SOFTWARE
from autograd_gpu.runtime.schedules import (
    DETERMINISTIC,
    MATERIALISATIONS,
    GroupFeatures,
    Schedule,
    alternatives,
    heavy_from,
)
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.device_preconditioner import coarse_tables
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.schedule_trials import SolveTrials
from sessions import WGSL, WGSL_FLOAT64, Backend, device_on, parameters_of, shared_words
from tolerances import GRAPH, TOLERANCES

SIZE = 64
"""Threads of a workgroup in most tests: lists of 256 incidences are heavy then."""


def observed_points() -> ag.Problem:
    """Points seen by four cameras with shared intrinsics, of which three see most.

    The intrinsics are heavy in one group and light in another, one heavy camera is frozen, one is
    light; observations have weights and a robust loss.
    """
    rng = np.random.default_rng(2)
    points = rng.uniform(-1.0, 1.0, (400, 3)) + np.array([0.0, 0.0, 4.0])
    camera = np.concatenate([np.repeat([0, 1, 2], 400), np.full(40, 3)])
    point = np.concatenate([np.tile(np.arange(400), 3), np.arange(40)])
    offsets = rng.uniform(-0.3, 0.3, (4, 3))
    seen = points[point] - offsets[camera]
    pixels = 1.1 * seen[:, :2] / seen[:, 2:] + 0.02 * rng.standard_normal((len(point), 2))
    pixels[::37] += 0.5
    problem = ag.Problem()
    x = problem.parameters("points", points + 0.05 * rng.standard_normal(points.shape))
    c = problem.parameters("cameras", offsets + 0.05 * rng.standard_normal(offsets.shape))
    k = problem.parameters("intrinsics", np.array([[1.0, 0.0, 0.0]]))

    def reprojection(p: ag.Vec3, o: ag.Vec3, f: ag.Vec3, uv: Any) -> Any:
        q = p - o
        return [f[0] * q[0] / q[2] + f[1] - uv[0], f[0] * q[1] / q[2] + f[2] - uv[1]]

    problem.add_residuals(
        reprojection, x[point], c[camera], k[0], pixels, weight=rng.uniform(0.5, 2.0, len(point)),
        loss=ag.losses.Huber(0.1), name="observations",
    )  # fmt: skip
    problem.add_residuals(lambda f: f - [1.0, 0.0, 0.0], k, name="usual intrinsics")
    problem.add_residuals(lambda o, s: 0.3 * (o - s), c, offsets, name="cameras are about here")
    problem.add_residuals(lambda p, q: 0.1 * (p - q), x, points, name="points are about here")
    problem.freeze(c, [1])
    return problem


def wheel(rim: int = 700) -> ag.Problem:
    """Springs from a hub to its rim and along the rim: both ends alike, one of them heavy."""
    angle = 2.0 * np.pi * np.arange(rim) / rim
    ends = np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(5.0 * angle)], axis=1)
    hub = rim // 2
    vertices = np.concatenate([ends[:hub], [[0.1, 0.2, 0.0]], ends[hub:]])
    around = np.delete(np.arange(rim + 1), hub)
    i = np.concatenate([np.full(rim, hub), around])
    j = np.concatenate([around, np.roll(around, 1)])
    problem = ag.Problem()
    x = problem.parameters("x", vertices)
    rest = np.concatenate([np.ones(rim), np.full(rim, 8.0 / rim)])
    problem.add_residuals(ag.meshes.energies.spring, x[i], x[j], rest)
    problem.add_residuals(lambda p, q: 0.3 * (p - q), x, vertices, name="anchor")
    return problem


def half_edges(rim: int = 300) -> ag.Problem:
    """A wheel of half-edges, each with its reverse, whose vertices turn: nodes of two arrays."""
    rng = np.random.default_rng(4)
    around = np.arange(1, rim + 1)
    spokes = np.stack([np.zeros(rim, int), around], axis=1)
    edges = np.concatenate([spokes, np.stack([around, np.roll(around, 1)], axis=1)])
    first, second = np.concatenate([edges, edges[:, ::-1]]).T
    p = rng.standard_normal((rim + 1, 3))
    problem = ag.Problem()
    x = problem.parameters("x", p + 0.1 * rng.standard_normal(p.shape))
    r = problem.parameters("r", 0.3 * rng.standard_normal(p.shape))

    def turned(a: ag.Vec3, b: ag.Vec3, turn: ag.Vec3, q: ag.Vec3) -> Any:
        return (b - a) - ag.meshes.energies.rotate(turn, q)

    problem.add_residuals(turned, x[first], x[second], r[first], p[second] - p[first])
    problem.add_residuals(lambda a, q: 0.5 * (a - q), x, p, name="anchor")
    return problem


PROBLEMS: MappingProxyType[str, Callable[[], ag.Problem]] = MappingProxyType(
    {
        "points": observed_points,
        "wheel": wheel,
        "half-edges": half_edges,
        "curve": lambda: workloads.curve_problem(5_000),
    }
)


def tables_of(problem: ag.Problem, *schedules: Schedule, precision: str = "float32") -> NodeTables:
    analysis, x = problem.analysis(), current_parameters(problem)
    layouts = array_layouts(analysis)
    return NodeTables(layouts, analysis.groups, x, schedules=schedules, precision=precision)


def two_level(materialise: str = "nothing", size: int = SIZE) -> Schedule:
    return Schedule(materialise=materialise, accumulate="two-level", workgroup_size=size)


# -- lists ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 256])
def test_slices_cover_heavy_lists_once_in_order(size: int) -> None:
    lengths = np.array([3, heavy_from(size), 0, 100_003, heavy_from(size) - 1, 5_000])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    (cut,), team = cut_lists([starts], [True], size)
    assert cut is not None
    assert np.unique(cut.nodes).tolist() == [1, 3, 5]
    assert cut.starts[-1] == len(cut.nodes) > 10
    for node in range(6):
        own = slice(*cut.starts[node : node + 2])
        assert (cut.nodes[own] == node).all()
        walked = [
            k for a, b in zip(cut.first[own], cut.last[own], strict=True) for k in range(a, b)
        ]
        assert walked == (list(range(*starts[node : node + 2])) if node in (1, 3, 5) else [])
    assert ((cut.last - cut.first) % size == 0)[:-1].sum() >= len(cut.nodes) - 3
    assert team in (8, 32, 64, 128)


def test_light_lists_are_not_cut_and_keep_their_team() -> None:
    lists = np.arange(0, 6 * 5_001, 6)
    assert cut_lists([lists], [True], 64) == ([None], 1)
    shared = np.array([0, 100_000])
    assert cut_lists([shared], [False], 256) == ([None], 128)


def test_both_walks_of_a_long_list_are_about_as_long() -> None:
    (cut,), team = cut_lists([np.array([0, 1_000_000])], [True], 256)
    assert cut is not None and team == 128
    turns, sums = (cut.last - cut.first).max() / 256, len(cut.nodes) / team
    assert turns <= 2 * sums and sums <= 2 * turns


# -- sums ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oracle:
    """J and residuals in float64, by all parameters, frozen ones as columns of zeros."""

    problem: ag.Problem
    jacobian: Any
    residuals: Any
    cost: float


@cache
def oracle(name: str) -> Oracle:
    problem = PROBLEMS[name]()
    found = problem.evaluate(backend="numpy", precision="float64")
    jacobian = np.zeros((len(found.residuals), current_parameters(problem).size))
    jacobian[:, problem.analysis().free_positions] = found.jacobian.toarray()
    return Oracle(problem, jacobian, found.residuals, found.cost)


def first_sums(device: Device, problem: ag.Problem, tables: NodeTables) -> dict[Vector, Any]:
    """Vectors after the first linearization and the first product; no damping."""
    solve = DeviceSolve(device, tables)
    solve.start(current_parameters(problem), 0.0, 0.0, 1e-3)
    solve.runner.run(["linearize", "product"])
    stored = solve.runner.read("vectors", tables.number_format.dtype).reshape(len(Vector), -1)
    solve.close()
    return {v: tables.unpack(stored[v]) for v in Vector}


def check_sums(backend: Backend, name: str, schedules: list[Schedule]) -> None:
    """Gradient, diagonal, preconditioned gradient and product of the first step."""
    known = oracle(name)
    tables = tables_of(known.problem, *schedules, precision=backend.precision)
    assert sliced_kinds(tables.structure)
    assert backend.adapter is not None
    found = first_sums(device_on(backend.adapter), known.problem, tables)
    tolerance = TOLERANCES[backend.precision, GRAPH]
    j, size = known.jacobian, np.abs(known.jacobian)

    def check(got: Any, wanted: Any, terms: Any, what: str) -> None:
        # Relative to the sum of the terms' sizes; where there are none, an exact zero.
        scale = np.where(terms > 0.0, terms, 1.0)
        tolerance.check(got / scale, wanted / scale, what)
        assert (got[terms == 0.0] == 0.0).all()

    check(
        found[Vector.GRADIENT],
        j.T @ known.residuals,
        size.T @ (np.abs(known.residuals) + np.sqrt(np.mean(known.residuals**2))),
        "gradient",
    )
    free = size.sum(axis=0) > 0.0
    diagonal = (j**2).sum(axis=0)
    check(found[Vector.SCALE][free], (1.0 + np.sqrt(diagonal[free])) ** 2, diagonal[free], "D")
    z = found[Vector.PRECONDITIONED]
    check(found[Vector.PRODUCT], j.T @ (j @ z), size.T @ (size @ np.abs(z)), "product")
    got, terms, rhs = np.zeros_like(z), np.zeros_like(z), -found[Vector.GRADIENT]
    analysis = known.problem.analysis()
    for members in tables.members:
        arrays = [analysis.arrays[a] for a in members]
        starts = [analysis.base[a.name] for a in arrays]
        for block in range(arrays[0].blocks):
            at = np.concatenate(
                [
                    s + block * a.width + np.arange(a.width)
                    for s, a in zip(starts, arrays, strict=True)
                ]
            )
            at = at[free[at]]
            got[at] = j[:, at].T @ (j[:, at] @ z[at])
            terms[at] = size[:, at].T @ (size[:, at] @ np.abs(z[at])) + np.abs(rhs[at])
    check(got, rhs, terms, "diagonal blocks times the preconditioned gradient")


each_name = pytest.mark.parametrize("name", PROBLEMS)
each_backend = pytest.mark.parametrize("backend", parameters_of(WGSL))
IN_FLOAT64 = parameters_of([b for b in WGSL_FLOAT64 if b.adapter in ("llvmpipe", "none")])


@each_backend
@each_name
def test_sums_of_slices_agree_with_the_oracle(backend: Backend, name: str) -> None:
    check_sums(backend, name, [two_level()])


@pytest.mark.parametrize("backend", IN_FLOAT64)
def test_sums_of_slices_in_float64_agree_with_the_oracle(backend: Backend) -> None:
    check_sums(backend, "wheel", [two_level()])


@pytest.mark.wgsl
@pytest.mark.parametrize("materialise", ["jacobian", "jtj-blocks"])
def test_slices_load_stored_records(materialise: str) -> None:
    check_sums(WGSL[0], "points", [two_level(materialise)])


def test_lists_of_half_edges_and_their_reverses_are_sliced() -> None:
    tables = tables_of(oracle("half-edges").problem, two_level())
    sliced = [tables.structure.kinds[k][j] for k, j in sliced_kinds(tables.structure)]
    assert any(kind.reverse is not None and kind.walked for kind in sliced)


@pytest.mark.wgsl
def test_groups_of_a_problem_may_differ() -> None:
    """Observations are cut; groups beside them gather from records or recompute."""
    gather = [Schedule(materialise=m, workgroup_size=SIZE) for m in ("jacobian", "nothing")]
    check_sums(WGSL[0], "points", [two_level(), *gather, gather[0]])
    check_sums(WGSL[0], "wheel", [two_level("jacobian"), gather[1]])


@each_backend
def test_two_runs_and_two_devices_give_the_same_bits(backend: Backend) -> None:
    assert backend.adapter is not None
    problem = oracle("points").problem
    bits: set[bytes] = set()
    for device in (device_on(backend.adapter), device_on(backend.adapter), Device(backend.adapter)):
        found = first_sums(device, problem, tables_of(problem, two_level()))
        bits.add(b"".join(found[v].tobytes() for v in Vector))
    device.close()
    assert len(bits) == 1


@pytest.mark.wgsl
def test_slices_beyond_one_row_of_workgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_runner, "MAX_WORKGROUPS_PER_DIMENSION", 6)
    tables = tables_of(oracle("points").problem, two_level())
    rows, used = divmod(tables.sizes.slices, 6)
    assert rows > 0 and used > 0
    check_sums(WGSL[0], "points", [two_level()])


# -- solves --------------------------------------------------------------------------------------


def remembered(problem: ag.Problem, device: Device, schedule: Schedule) -> None:
    """As if ``ag.tune`` had found this schedule, for all groups, to be the fastest."""
    orders = tables_of(problem, schedule)
    features = [orders.features(g) for g in range(len(problem.analysis().groups))]
    chooser = ScheduleChooser("solve", identity_of(device))
    chooser.remember(features, (((schedule,) * len(features), 1.0),))


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param(backend, name, id=f"{backend}-{name}")
        for backend, name in [(WGSL[0], "points"), *((backend, "curve") for backend in WGSL)]
    ],
)
@pytest.mark.wgsl
def test_solves_reach_the_minimum_of_the_host_with_the_same_bits(
    backend: Backend, name: str
) -> None:
    assert backend.adapter is not None
    device = device_on(backend.adapter)
    remembered(PROBLEMS[name](), device, two_level())
    options = ag.LevenbergMarquardtOptions(max_iterations=60, linear_tolerance=1e-3)
    found = [
        ag.solve(
            PROBLEMS[name](), backend="wgsl", device=device, linear_solver="pcg", options=options
        )
        for _ in range(2)
    ]
    schedule_choice.forget_memory()
    want = ag.solve(PROBLEMS[name](), backend="numba").cost
    assert {k.name for k in found[0].kernels} >= {"slices_linearize", "slices_product"}
    assert found[0].cost == pytest.approx(want, rel=1e-4)
    assert [r.cost for r in found[0].history] == [r.cost for r in found[1].history]
    for array, values in found[0].values.items():
        assert values.tobytes() == found[1].values[array].tobytes()
    assert found[0].cost < 0.7 * found[0].initial_cost


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", native_adapters()[:1])
def test_constraints_go_with_slices(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of an augmented Lagrangian: one block in a heavy group and in a constraint."""
    monkeypatch.setattr(schedule_choice, "PROFILES", {"software": GPU})
    problem = workloads.curve_problem(5_000)
    problem.add_constraint(lambda theta: theta[4] - 0.3, problem.arrays[0])
    found = ag.solve(
        problem, backend="wgsl", device=device_on(adapter), linear_solver="pcg",
        precision="float64-native",
    )  # fmt: skip
    assert {k.name for k in found.kernels} >= {"slices_linearize", "slices_product"}
    want = ag.solve(problem, backend="numba")
    assert found.cost == pytest.approx(want.cost, rel=1e-8)
    assert abs(found.values["theta"][0, 4] - 0.3) < 1e-7


def test_heavy_nodes_cost_a_dispatch_a_product_and_one_a_linearization() -> None:
    problem = oracle("points").problem
    plain = solve_program(tables_of(problem, Schedule(workgroup_size=SIZE)).sizes)
    cut = solve_program(tables_of(problem, two_level()).sizes)
    more = {name: 1 for name in ("linearize", "product", "cg")}
    for name, sequence in plain.sequences.items():
        assert len(cut.sequences[name].dispatches) == len(sequence.dispatches) + more.get(name, 0)
    assert cut.sequences["cg"].dispatches[0].pipeline == "slices_product"
    # The intrinsics and three cameras are heavy; two lists, nothing for points.
    sliced = sliced_kinds(tables_of(problem, two_level()).structure)
    assert len(sliced) == 2


@pytest.mark.parametrize(
    "make", [lambda: workloads.springs_problem(2), lambda: workloads.bundle_problem(6, 40)]
)
def test_problems_without_heavy_nodes_keep_their_program(make: Callable[[], ag.Problem]) -> None:
    gathered, cut = (
        solve_program(tables_of(make(), s).sizes) for s in (Schedule(), two_level(size=256))
    )
    assert gathered == cut


@pytest.mark.parametrize("precision", ["float32", "float64-emulated"])
@pytest.mark.parametrize("materialise", MATERIALISATIONS)
def test_kernels_stay_within_a_browser(materialise: str, precision: str) -> None:
    # Each of three cameras is in most pictures: nine unknowns, 54 sums of a slice.
    schedule = two_level(materialise, 256)
    tables = tables_of(workloads.bundle_problem(3, 1_000), schedule, precision=precision)
    assert sliced_kinds(tables.structure) == ((0, 0),)
    for pipeline in solve_program(tables.sizes).pipelines:
        assert shared_words(pipeline.source, tables.structure.real.words) <= SHARED_WORDS
        assert pipeline.storage_buffers <= MAX_STORAGE_BUFFERS
        assert pipeline.workgroup_size <= MAX_WORKGROUP_SIZE


@each_backend
def test_products_with_a_coarse_space_add_slices_too(backend: Backend) -> None:
    problem = wheel(1_100)
    x, layouts = current_parameters(problem), array_layouts(problem.analysis())
    tables = tables_of(problem, two_level(size=256))
    coarse = coarse_tables(tables, layouts, x, 64)
    assert coarse is not None and backend.adapter is not None
    solve = DeviceSolve(device_on(backend.adapter), tables)
    solve.add_coarse_space(coarse)
    program = solve.runner.program
    names = [d.pipeline for d in program.sequences["coarse_cg"].dispatches]
    assert names == ["slices_product", "cg_product_coarse_0", "cg_update_coarse"]
    solve.start(x, 1e-3, 1e-4, 1e-3)
    solve.runner.run(["linearize", "coarse", "coarse_product"])
    stored = solve.runner.read("vectors", np.float32).reshape(len(Vector), -1)
    solve.close()
    found = {v: tables.unpack(stored[v]) for v in Vector}
    z = found[Vector.PRECONDITIONED]
    jacobian = problem.evaluate(backend="numpy", precision="float64").jacobian
    wanted = jacobian.T @ (jacobian @ z) + 1e-3 * found[Vector.SCALE] * z
    size = abs(jacobian)
    terms = size.T @ (size @ np.abs(z)) + 1e-3 * found[Vector.SCALE] * np.abs(z)
    TOLERANCES["float32", GRAPH].check(
        found[Vector.PRODUCT] / terms, wanted / terms, "product with a coarse space"
    )


# -- other products of the same tables -----------------------------------------------------------


@pytest.mark.wgsl
def test_products_outside_solves_walk_whole_lists() -> None:
    known = oracle("points")
    tables = tables_of(known.problem, two_level())
    x = current_parameters(known.problem)
    wanted = known.jacobian.T @ known.residuals
    assert WGSL[0].adapter is not None
    device = device_on(WGSL[0].adapter)
    for accumulation in ("gather", "two-level"):
        with Operators(device, tables, accumulation) as operators:
            got = operators.gradient(x)
        assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.wgsl
def test_what_only_solves_can_do_is_refused_elsewhere_and_the_other_way_round() -> None:
    problem = oracle("points").problem
    assert WGSL[0].adapter is not None
    device = device_on(WGSL[0].adapter)
    with pytest.raises(InputError, match="store nothing; got materialise='jacobian'"):
        Operators(device, tables_of(problem, two_level("jacobian")))
    with pytest.raises(InputError, match="'atomic-cas'; expected gather or two-level"):
        DeviceSolve(device, tables_of(problem, Schedule(accumulate="atomic-cas")))


# -- the choice ----------------------------------------------------------------------------------

A_GPU = DeviceIdentity(("a GPU", "Vulkan", "1", "0"), GPU)
A_SOFTWARE_DEVICE = DeviceIdentity(("software",), SOFTWARE)


def features_of(problem: ag.Problem) -> list[GroupFeatures]:
    analysis = problem.analysis()
    orders = NodeOrders(array_layouts(analysis), analysis.groups, current_parameters(problem))
    return [orders.features(g) for g in range(len(analysis.groups))]


def test_the_busiest_node_is_a_feature() -> None:
    springs, anchors = features_of(wheel(700))
    assert max(p.most for p in springs.places) >= 700
    assert springs.valences == (1400 / 701,) * 2
    assert [p.most for p in anchors.places] == [1]


@pytest.mark.parametrize("make", [lambda: wheel(20_000), lambda: workloads.curve_problem(20_000)])
def test_a_gpu_sums_heavy_nodes_in_two_levels(make: Callable[[], ag.Problem]) -> None:
    features = features_of(make())
    chosen = ScheduleChooser("solve", A_GPU)(features)
    assert chosen[0].accumulate == "two-level"
    assert {s.accumulate for s in chosen[1:]} <= {"gather"}  # nothing heavy among anchors
    # A software device does one thing after the other, and pays for trees in shared memory.
    chosen = ScheduleChooser("solve", A_SOFTWARE_DEVICE)(features)
    assert {s.accumulate for s in chosen} == {"gather"}


def test_light_lists_have_no_alternative_to_gathering() -> None:
    for features in features_of(workloads.deformation_problem(3)):
        assert {s.accumulate for s in alternatives(features, "solve")} == {"gather"}
    (heavy,) = features_of(workloads.curve_problem(20_000))
    found = {(s.materialise, s.accumulate) for s in alternatives(heavy, "solve")}
    assert found == {(m, a) for m in MATERIALISATIONS for a in DETERMINISTIC}


def test_measurements_of_a_mesh_with_a_hub_are_not_those_of_one_without() -> None:
    springs = features_of(wheel(3_000))[:1]
    places = tuple(replace(p, most=6) for p in springs[0].places)
    even = [replace(springs[0], places=places)]
    chooser = ScheduleChooser("solve", A_GPU)
    assert chooser.key(springs) != chooser.key(even)


@pytest.mark.wgsl
def test_two_levels_are_explained_and_timed() -> None:
    assert WGSL[0].adapter is not None
    device, problem = device_on(WGSL[0].adapter), oracle("curve").problem
    explained = problem.explain(backend="wgsl", device=device)
    (decision,) = explained.decisions["solve"]
    assert ("nothing", "two-level") in {
        (a.schedule.materialise, a.schedule.accumulate) for a in decision.alternatives
    }
    assert "elements per node 5e+03 (at most 5000)" in str(explained)
    with SolveTrials(problem.analysis(), device, current_parameters(problem)) as trials:
        trial = trials.open([two_level(size=256)])
        assert trial.sample() > 0.0
        trial.close()
