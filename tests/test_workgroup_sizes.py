"""Workgroups of a size for each residual group: which kernels have them, and that results stay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.solve_layout import Vector
from autograd_gpu.runtime import program_runner
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

FLOAT32 = 1e-4
SIZES = (256, 64, 128)


@pytest.fixture(scope="module", params=wgsl_adapters())
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


def three_groups() -> ag.Problem:
    """Edges, which are the heaviest; anchors; and a block that all elements share."""
    problem = workloads.springs_problem(3)
    x = problem.arrays[0]
    centre = problem.parameters("centre", np.array([[0.1, -0.2, 0.05]]))

    def from_centre(p: ag.Vec3, c: ag.Vec3) -> object:
        return 0.1 * (ag.norm(p - c) - 1.0)

    problem.add_residuals(from_centre, x, centre[0], name="sphere")
    return problem


def tables_of(problem: ag.Problem, schedules: list[Schedule]) -> NodeTables:
    analysis = problem.analysis()
    x = current_parameters(problem)
    return NodeTables(array_layouts(analysis), analysis.groups, x, schedules=schedules)


def sized(sizes: tuple[int, ...], **fields: str) -> list[Schedule]:
    return [Schedule(workgroup_size=size, **fields) for size in sizes]


def started(device: Device, problem: ag.Problem, schedules: list[Schedule]) -> DeviceSolve:
    solve = DeviceSolve(device, tables_of(problem, schedules))
    solve.start(current_parameters(problem), 1e-4, 1e-4, 1e-3)
    return solve


@pytest.mark.wgsl
@pytest.mark.parametrize("materialise", ["nothing", "jacobian", "jtj-blocks"])
def test_a_step_has_the_same_bits_whatever_the_groups_have(
    device: Device, materialise: str
) -> None:
    """All but the last bits of costs, which are summed by workgroups."""
    problem = three_groups()
    found: list[tuple[bytes, bytes]] = []
    records: list[np.ndarray] = []
    for sizes in (SIZES[:1] * 3, SIZES, (256, 128, 64)):
        solve = started(device, problem, sized(sizes, materialise=materialise))
        own = {p.name: p.workgroup_size for p in solve.runner.program.pipelines}
        elements = {s for n, s in own.items() if n.startswith("trial_elements")}
        assert elements == set(sizes)
        assert {s for n, s in own.items() if "elements" not in n} == {256}, "as the heaviest has"
        record = solve.step(60)
        vectors = solve.runner.read("vectors", np.float32).reshape(len(Vector), -1)
        step = vectors[Vector.STEP]
        assert np.abs(step).max() > 0.0
        found.append((step.tobytes(), solve.parameters().tobytes()))
        records.append(np.array([record.cost, record.change, record.predicted, record.cost_before]))
        solve.close()
    assert len(set(found)) == 1
    for record in records[1:]:
        np.testing.assert_allclose(record, records[0], rtol=1e-5)


@pytest.mark.wgsl
def test_kernels_of_nodes_have_workgroups_like_the_heaviest_group(device: Device) -> None:
    solve = started(device, three_groups(), sized((64, 256, 128)))
    own = {p.name: p.workgroup_size for p in solve.runner.program.pipelines}
    assert own["cg_product_0"] == own["cg_update"] == own["trial_elements_64"] == 64
    assert own["trial_elements_256"] == 256
    before = solve.step(60)
    assert before.accepted
    solve.close()


@pytest.mark.wgsl
@pytest.mark.parametrize("accumulate", ["two-level", "atomic-cas"])
def test_sums_by_elements_take_workgroups_of_their_group(device: Device, accumulate: str) -> None:
    problem = three_groups()
    x = current_parameters(problem)
    vector = np.random.default_rng(0).standard_normal(x.size)
    oracle = problem.evaluate(backend="numpy", precision="float64")
    schedules = sized(SIZES, accumulate=accumulate)
    with Operators(device, tables_of(problem, schedules)) as operators:
        kernels = {p.name: p.workgroup_size for p in operators.runner.program.pipelines}
        gradient = operators.gradient(x)
        product = operators.jtj_product(x, vector)
    word = {"two-level": "two_level_gradient_elements", "atomic-cas": "atomic_gradient"}[accumulate]
    assert [kernels[f"{word}_{g}"] for g in range(3)] == list(SIZES)
    expected = oracle.jacobian.T @ (oracle.jacobian @ vector)
    for got, wanted in ((gradient, oracle.gradient), (product, expected)):
        assert np.abs(got - wanted).max() <= FLOAT32 * np.abs(wanted).max()


@pytest.mark.wgsl
def test_records_of_single_products_are_stored_by_sizes(device: Device) -> None:
    problem = three_groups()
    x = current_parameters(problem)
    bits: set[bytes] = set()
    for sizes in (SIZES[:1] * 3, SIZES):
        tables = tables_of(problem, sized(sizes, materialise="jacobian"))
        with Operators(device, tables) as operators:
            names = [p.name for p in operators.runner.program.pipelines if "linearize" in p.name]
            assert len(names) == len(set(sizes))
            bits.add(operators.gradient(x).tobytes())
    assert len(bits) == 1


@pytest.mark.wgsl
@pytest.mark.parametrize("sizes", [(256, 256, 256), SIZES])
def test_grids_of_two_dimensions_leave_other_sums_alone(
    device: Device, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such grids may have a workgroup too many; what it would store belongs to others."""
    problem = three_groups()
    records = []
    for most in (65_535, 4):
        monkeypatch.setattr(program_runner, "MAX_WORKGROUPS_PER_DIMENSION", most)
        solve = started(device, problem, sized(sizes, materialise="jacobian"))
        records.append(solve.step(40))
        solve.close()
    assert records[0] == records[1]
