"""Schedules: what is chosen and why, and that results do not depend on it."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu import disk_cache
from autograd_gpu.codegen.element_parts import block_record
from autograd_gpu.codegen.incidence import PRODUCTS
from autograd_gpu.errors import InputError
from autograd_gpu.runtime import schedule_choice
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_orders import NodeOrders
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import DeviceIdentity, ScheduleChooser
from autograd_gpu.runtime.schedule_costs import GPU, SOFTWARE, estimate
from autograd_gpu.runtime.schedules import (
    DETERMINISTIC,
    MATERIALISATIONS,
    WORKGROUP_SIZES,
    GroupFeatures,
    Schedule,
    alternatives,
    team_of,
)
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

FLOAT32 = 1e-4
"""Relative to the largest entry: tens of operations in float32, in another order."""

H200 = DeviceIdentity(("a GPU", "Vulkan", "1", "0"), GPU)


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    opened = Device(wgsl_adapters()[0])
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def nothing_measured() -> Iterator[None]:
    yield
    schedule_choice.forget_memory()


def two_groups() -> ag.Problem:
    """Edges between neighbours, and a block that all elements share."""
    problem = workloads.springs_problem(2)
    x = problem.arrays[0]
    centre = problem.parameters("centre", np.array([[0.1, -0.2, 0.05]]))

    def from_centre(p: ag.Vec3, c: ag.Vec3) -> object:
        return 0.1 * (ag.norm(p - c) - 1.0)

    problem.add_residuals(from_centre, x, centre[0], name="sphere")
    return problem


def features_of(problem: ag.Problem, scale: int = 1) -> list[GroupFeatures]:
    """Features of all groups, as if the mesh were ``scale`` times as large."""
    analysis = problem.analysis()
    orders = NodeOrders(array_layouts(analysis), analysis.groups, current_parameters(problem))
    found = [orders.features(g) for g in range(len(analysis.groups))]
    return [
        dataclasses.replace(
            f,
            elements=f.elements * scale,
            places=tuple(dataclasses.replace(p, nodes=p.nodes * scale) for p in f.places),
        )
        for f in found
    ]


def tables_of(problem: ag.Problem, schedules: list[Schedule]) -> NodeTables:
    analysis = problem.analysis()
    x = current_parameters(problem)
    return NodeTables(array_layouts(analysis), analysis.groups, x, schedules=schedules)


# -- the words -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"materialise": "all"}, "materialise='all'; expected one of nothing, jacobian, jtj-bl"),
        ({"accumulate": "tree"}, "accumulate='tree'; expected one of gather, two-level"),
        ({"accumulate": "atomic-cas", "materialise": "jacobian"}, "expected 'nothing'"),
        ({"workgroup_size": 100}, "workgroup_size=100; expected a power of two up to 256"),
    ],
)
def test_schedules_that_do_not_exist_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schedule(**fields)  # pyright: ignore[reportArgumentType]


def test_teams_grow_with_the_sums_and_fit_into_a_workgroup() -> None:
    assert [team_of(mean) for mean in (6.0, 60.0, 300.0, 1e6)] == [1, 8, 32, 128]
    assert team_of(1e6, 64) == 64


@pytest.mark.parametrize("purpose", ["solve", "gradient"])
def test_nothing_that_differs_between_runs_is_an_alternative(purpose: str) -> None:
    for features in features_of(two_groups()):
        assert {s.accumulate for s in alternatives(features, purpose)} <= set(DETERMINISTIC)


# -- the model -----------------------------------------------------------------------------------


def chosen(problem: ag.Problem, purpose: str, scale: int = 1) -> list[tuple[str, str]]:
    schedules = ScheduleChooser(purpose, H200)(features_of(problem, scale))
    return [(s.materialise, s.accumulate) for s in schedules]


def test_the_model_orders_what_was_measured_on_a_gpu() -> None:
    """docs/performance.md: springs and bundles gather, shared blocks sum in two levels."""
    assert chosen(workloads.springs_problem(3), "gradient", 4096)[0] == ("nothing", "gather")
    assert chosen(workloads.bundle_problem(), "gradient") == [("nothing", "gather")]
    assert chosen(workloads.curve_problem(100_000), "gradient") == [("nothing", "two-level")]


def test_dear_jacobians_are_stored_for_many_products() -> None:
    """Until threads are so many that memory is dearer: on an H200 between levels 5 and 7 of W2."""
    assert chosen(workloads.deformation_problem(3), "solve", 16)[0] == ("jacobian", "gather")
    assert chosen(workloads.deformation_problem(3), "solve", 256)[0] == ("nothing", "gather")
    short_lists = features_of(workloads.bundle_problem(60, 2_000))  # no list is heavy
    (schedule,) = ScheduleChooser("solve", H200)(short_lists)
    assert (schedule.materialise, schedule.accumulate) == ("jacobian", "gather")
    assert chosen(workloads.springs_problem(3), "solve", 4096)[0] == ("nothing", "gather")


def test_heavy_nodes_are_sliced_as_measured() -> None:
    """Bundles of 60 and 12 cameras, a curve: 1.25, 1.26, 0.90 ms; gathered 1.39, 2.55, 84 ms."""
    for problem in (
        workloads.bundle_problem(), workloads.bundle_problem(12), workloads.curve_problem()
    ):  # fmt: skip
        assert chosen(problem, "solve") == [("nothing", "two-level")]


def test_atomics_are_estimated_as_measured() -> None:
    """Springs of level 9: 69 µs by gathering, 189 in two levels, 427 and 1599 by atomics."""
    springs = features_of(workloads.springs_problem(3), 4096)[0]
    seconds = [
        estimate(springs, Schedule(accumulate=a), "gradient", GPU)
        for a in ("gather", "two-level", "atomic-native", "atomic-cas")
    ]
    assert seconds == sorted(seconds)
    measured = np.array([68.6, 189.0, 427.2, 1598.7]) * 1e-6
    assert np.all(np.abs(np.log(seconds / measured)) < np.log(2.5)), seconds


def test_dear_precisions_store_what_float32_recomputes() -> None:
    edges = features_of(workloads.deformation_problem(3), 256)[:1]
    assert ScheduleChooser("solve", H200)(edges)[0].materialise == "nothing"
    for precision in ("float64-native", "float64-emulated"):
        dear = [dataclasses.replace(f, precision=precision) for f in edges]
        assert dear[0].word_bytes == 8
        assert ScheduleChooser("solve", H200)(dear)[0].materialise == "jacobian"


def test_a_software_device_gathers_one_shared_block() -> None:
    identity = DeviceIdentity(("software",), SOFTWARE)
    schedules = ScheduleChooser("gradient", identity)(features_of(workloads.curve_problem(262_144)))
    assert [s.accumulate for s in schedules] == ["gather"]


def test_groups_of_a_problem_share_their_workgroups() -> None:
    """Where estimates are equal, 128 threads for gradients, and 256 for solves: coarse spaces."""
    features = features_of(two_groups(), 512)[:2]
    for purpose, size in (("gradient", 128), ("solve", 256)):
        schedules = ScheduleChooser(purpose, H200)(features)
        assert {s.workgroup_size for s in schedules} == {size}
    schedules = ScheduleChooser("gradient", H200)(features_of(two_groups(), 512))
    assert len({s.workgroup_size for s in schedules}) == 1
    with pytest.raises(InputError, match="got 5, the problem has 3"):
        ScheduleChooser("solve", H200, (Schedule(),) * 5)(features_of(two_groups()))


# -- measurements --------------------------------------------------------------------------------


def test_measurements_are_remembered_by_device_topology_and_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = features_of(workloads.springs_problem(2))
    chooser = ScheduleChooser("solve", H200)
    slow = tuple(Schedule() for _ in features)
    fast = tuple(Schedule(materialise="jacobian", workgroup_size=64) for _ in features)
    assert chooser.recall(features) is None
    chooser.remember(features, ((fast, 1.0), (slow, 2.0)))
    schedule_choice.forget_memory()  # as another process would find it
    decisions = chooser.decide(features)
    assert tuple(d.schedule for d in decisions) == fast
    assert {d.source for d in decisions} == {"measured"}
    assert "measured on a GPU" in decisions[0].reason and "1 s" in decisions[0].reason

    other = DeviceIdentity(("another GPU", "Vulkan", "1", "0"), GPU)
    assert ScheduleChooser("solve", other).recall(features) is None
    assert ScheduleChooser("gradient", H200).recall(features) is None
    assert chooser.recall(features_of(workloads.springs_problem(2), 8)) is None
    assert chooser.recall(features_of(workloads.deformation_problem(2))) is None

    chooser.forget(features)
    assert chooser.recall(features) is None
    # The disk was asked: what another process leaves there now is found by the next one.
    schedule_choice.DiskCache("schedules").put(chooser.key(features), b"[]")
    monkeypatch.setattr(schedule_choice, "DiskCache", None)
    assert chooser.recall(features) is None
    assert {d.source for d in chooser.decide(features)} == {"model"}


VERSION = {"format": schedule_choice.FORMAT, "generator": schedule_choice.GENERATOR_VERSION}


def entry(measured: object, **version: str) -> bytes:
    return json.dumps({**VERSION, **version, "measured": measured}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        entry([]),
        entry([{"seconds": 1, "schedules": [["all", "gather", 64]]}]),
        entry([{"seconds": 1, "schedules": [["nothing", "gather", 64]] * 2}]),
        entry([{"seconds": 1}]),
    ],
)
def test_an_entry_that_does_not_read_counts_as_absent(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_cache, "_warned", set())
    features = features_of(workloads.curve_problem(100))
    chooser = ScheduleChooser("solve", H200)
    cache = schedule_choice.DiskCache("schedules")
    cache.put(chooser.key(features), content)
    with pytest.warns(RuntimeWarning, match="is damaged; it is removed"):
        assert chooser.recall(features) is None
    assert cache.get(chooser.key(features)) is None
    chooser.forget(features)


def test_measurements_of_other_versions_are_ignored_with_one_warning() -> None:
    cache = schedule_choice.DiskCache("schedules")
    measured = [{"seconds": 1.0, "schedules": [["nothing", "gather", 64]]}]
    features = features_of(workloads.curve_problem(100))
    schedule_choice._warn_of_version.cache_clear()  # pyright: ignore[reportPrivateUsage]
    choosers = [ScheduleChooser(purpose, H200) for purpose in ("solve", "gradient")]
    for chooser, other in zip(choosers, ({"format": "1"}, {"generator": "0"}), strict=True):
        cache.put(chooser.key(features), entry(measured, **other))
    with pytest.warns(RuntimeWarning, match=r"another version .* call ag.tune again") as found:
        assert choosers[0].recall(features) is None
        assert choosers[1].recall(features) is None
    assert len(found) == 1
    # Measured again, it is read again.
    choosers[0].remember(features, (((Schedule(workgroup_size=64),), 1.0),))
    schedule_choice.forget_memory()
    assert choosers[0].decide(features)[0].source == "measured"
    for chooser in choosers:
        chooser.forget(features)


def test_an_entry_is_plain_json() -> None:
    features = features_of(workloads.curve_problem(100))
    chooser = ScheduleChooser("solve", H200)
    chooser.remember(features, (((Schedule(workgroup_size=128),), 0.5),))
    stored = schedule_choice.DiskCache("schedules").get(chooser.key(features))
    assert stored is not None
    assert json.loads(stored) == {
        "format": "2",
        "generator": "1",
        "measured": [{"seconds": 0.5, "schedules": [["nothing", "gather", 128]]}],
    }
    chooser.forget(features)


# -- results -------------------------------------------------------------------------------------


def test_a_record_of_blocks_holds_each_number_once() -> None:
    """As-rigid-as-possible: [x_i, r] and [x_j, r] differ by their sign, [x, x] is constant."""
    tables = tables_of(workloads.deformation_problem(1), [Schedule(materialise="jtj-blocks")])
    record = block_record(tables.structure.groups[0])
    assert record.product_count == 9 + 6
    assert record.gradient_count == 3 + 3 + 3
    assert tables.structure.groups[0].record_quads == 6


def mixed_schedules(count: int) -> Iterator[list[Schedule]]:
    kinds = [
        Schedule(),
        Schedule(materialise="jacobian"),
        Schedule(materialise="jtj-blocks"),
        Schedule(accumulate="two-level"),
        Schedule(accumulate="atomic-cas"),
    ]
    yield from ([kind] * count for kind in kinds)
    # Every way of accumulation beside every other one.
    for first, second in itertools.permutations(kinds[2:], 2):
        yield [first, second, first][:count]


@pytest.mark.wgsl
def test_products_do_not_depend_on_schedules(device: Device) -> None:
    problem = two_groups()
    problem.freeze(problem.arrays[0], [3, 4])
    x = current_parameters(problem)
    vector = np.random.default_rng(0).standard_normal(x.size)
    oracle = problem.evaluate(backend="numpy", precision="float64")
    free = problem.analysis().free_positions
    expected = {"gradient": np.zeros(x.size), "jtj_product": np.zeros(x.size)}
    expected["gradient"][free] = oracle.gradient
    expected["jtj_product"][free] = oracle.jacobian.T @ (oracle.jacobian @ vector[free])
    blocks: list[np.ndarray] | None = None
    for schedules in mixed_schedules(len(problem.groups)):
        with Operators(device, tables_of(problem, schedules)) as operators:
            got = {
                "gradient": operators.gradient(x),
                "jtj_product": operators.jtj_product(x, vector),
            }
            found = operators.block_diagonal(x)
        for product, wanted in expected.items():
            assert np.abs(got[product] - wanted).max() <= FLOAT32 * np.abs(wanted).max(), schedules
        blocks = blocks or found
        for ours, first in zip(found, blocks, strict=True):
            assert np.abs(ours - first).max() <= FLOAT32 * np.abs(first).max(), schedules
    assert len(PRODUCTS) == 3


@pytest.mark.wgsl
@pytest.mark.parametrize(
    ("size", "materialise"), list(zip(WORKGROUP_SIZES, MATERIALISATIONS, strict=True))
)
def test_steps_do_not_depend_on_schedules(device: Device, size: int, materialise: str) -> None:
    problem = two_groups()
    tables = tables_of(problem, [Schedule(materialise=materialise, workgroup_size=size)])
    assert {p.team for p in tables.structure.node_sets} <= {1, 8, 32, 64, 128}
    engine = DeviceSolve(device, tables)
    x = current_parameters(problem)
    engine.start(x, 1e-4, 1e-4, 1e-3)
    record = engine.step(200)
    point = engine.parameters()
    sizes = {p.workgroup_size for p in engine.runner.program.pipelines}
    engine.close()
    assert sizes == {size}
    host = problem.evaluate(backend="numpy")
    assert record.cost_before == pytest.approx(host.cost, rel=1e-5)
    assert record.gradient_norm == pytest.approx(np.abs(host.gradient).max(), rel=FLOAT32)
    assert record.accepted
    problem.update(x=point[: 3 * 162].reshape(-1, 3), centre=point[-3:].reshape(1, 3))
    assert record.cost == pytest.approx(problem.evaluate(backend="numpy").cost, rel=FLOAT32)
