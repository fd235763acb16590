"""Large residual functions of resident solves: cut into short texts, with the same results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_stages import run_plan

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu import Graph
from autograd_gpu.codegen import element_stages
from autograd_gpu.codegen.element_stages import MOST_STAGES, record_plan, trial_plan
from autograd_gpu.codegen.rematerialization import CHEAP, compute_cheap_again
from autograd_gpu.codegen.solve_program import solve_program
from autograd_gpu.codegen.stages import Style, cut
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import DeviceIdentity, ScheduleChooser
from autograd_gpu.runtime.schedule_costs import GPU, SOFTWARE, DeviceProfile
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from random_graphs import random_arrays, random_recipe
from tolerances import GRAPH, tolerance

STYLES = [
    Style(compute_cheap_again, by_cost, least, last, outputs_last, in_quads)
    for by_cost, least, last in ((True, 0.75, 1.25), (False, 0.5, 1.0))
    for outputs_last in (False, True)
    for in_quads in (False, True)
]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("style", STYLES)
def test_stages_compute_the_same_bits(seed: int, style: Style) -> None:
    widths = (2, 3, 1)
    recipe = random_recipe(np.random.default_rng(seed), (20, 60), widths)
    arrays = random_arrays(widths, 7, seed)
    for graph in (ag.simplify(recipe.trace()), ag.jacobian(recipe.trace())):
        flat = Graph(graph.nodes, graph.outputs, graph.arguments, (len(graph.outputs),))
        for budget in (12, 60):
            plan = cut(graph, budget, style)
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(run_plan(graph, plan, arrays), flat(*arrays))
            if style.in_quads:
                made = [{cell // 4 for cell in stage.stores} for stage in plan.stages]
                assert plan.cells <= 4 * sum(map(len, made)), "quads are used again"
                for stage, quads in zip(plan.stages, made, strict=True):
                    assert len(quads) == -(-len(stage.stores) // 4), "they are filled"
            if style.outputs_last:
                assert not any(stage.outputs for stage in plan.stages[:-1])


def test_cheap_values_are_computed_again_and_dear_ones_loaded() -> None:
    def residual(x: Any, y: Any) -> list[Any]:
        root = ag.sin(x)
        return [root, root + y, (root + y) * y - x, root * y + root * x, ag.exp(root)]

    graph = ag.trace(residual, 1, 1)
    root, added, cheap, dear, power = graph.outputs
    loaded = compute_cheap_again(graph.nodes, sorted(graph.outputs), ())
    assert {root, power} <= set(loaded)
    assert not {added, cheap} & set(loaded)
    assert (dear not in loaded) == (sum(NODE_OPS[o].cost for o in ("mul", "mul", "add")) <= CHEAP)
    assert set(loaded) <= set(graph.outputs), "nothing is loaded that nobody asked for"
    alone = compute_cheap_again(graph.nodes, [added], ())
    assert alone == [added], "its operand is dear and not at hand"


# -- what is cut ---------------------------------------------------------------------------------

SHORT = dataclasses.replace(GPU, stage_cost=100)
"""Short texts, so that a function that software adapters compile soon counts as a large one."""


def large(p: Any, q: Any, d: Any) -> list[Any]:
    """Three residuals of order 1 with a dozen elementary functions, well conditioned."""
    a, b, c = p[0] - q[0], p[1] - 0.5 * q[2], d + p[2]
    total = [a - d, b, c + q[1]]
    for k in range(6):
        a, b, c = ag.sin(a + 0.3 * b), b * ag.cos(c) - 0.2 * a, 0.7 * c + 0.4 * a * b
        total[k % 3] = total[k % 3] + 0.2 * a - 0.3 * b * c
    return total


def problem_of(elements: int = 40) -> ag.Problem:
    """A chain of points under a large function and a small one."""
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    x = problem.parameters("x", rng.normal(size=(elements + 1, 3)))
    problem.add_residuals(large, x[:-1], x[1:], rng.normal(size=elements))
    problem.add_residuals(lambda p, m: 0.5 * (p - m), x, rng.normal(size=(elements + 1, 3)))
    return problem


def tables_of(
    problem: ag.Problem,
    materialise: str = "jacobian",
    profile: DeviceProfile = SHORT,
    precision: str = "float32",
    sizes: tuple[int, ...] = (256,),
) -> NodeTables:
    analysis = problem.analysis()
    fixed = tuple(Schedule(materialise=materialise, workgroup_size=size) for size in sizes)
    chooser = ScheduleChooser("solve", DeviceIdentity(("nowhere",), profile), fixed)
    x = current_parameters(problem)
    layouts = array_layouts(analysis)
    return NodeTables(layouts, analysis.groups, x, schedules=chooser, precision=precision)


def dispatches(tables: NodeTables) -> dict[str, list[str]]:
    sequences = solve_program(tables.sizes).sequences
    return {name: [d.pipeline for d in sequences[name].dispatches] for name in sequences}


@pytest.mark.parametrize("materialise", ["jacobian", "jtj-blocks"])
def test_a_large_function_is_cut_into_few_stages(materialise: str) -> None:
    tables = tables_of(problem_of(), materialise)
    group, small = tables.structure.groups
    assert small.stage_cost is None
    records, trials = record_plan(group).stages, trial_plan(group).stages
    assert 3 <= len(records) <= MOST_STAGES
    assert group.stage_cost is not None
    assert all(stage.graph.cost <= 1.6 * group.stage_cost for stage in records)
    names = dispatches(tables)
    assert len(names["linearize"]) == len(records) + 1
    assert names["linearize"][-2:] == ["linearize_elements", "linearize_nodes_0"]
    assert len(names["trial"]) == len(trials) + 2


def test_stages_are_bounded_in_number_and_in_what_they_leave() -> None:
    group = tables_of(problem_of()).structure.groups[0]
    cost = element_stages.record_graph(group).cost
    tiny = element_stages.stage_cost(group, cost // 100, 1000)
    assert tiny is not None and tiny >= cost / MOST_STAGES
    assert element_stages.stage_cost(group, cost, 1000) is None
    assert element_stages.stage_cost(group, 100, 1000) is not None
    assert element_stages.stage_cost(group, 100, 100_000_000) is None


def test_usual_functions_and_software_adapters_have_one_text() -> None:
    for problem in (
        workloads.springs_problem(1), workloads.deformation_problem(1),
        workloads.bending_problem(1), workloads.bundle_problem(4, 20),
    ):  # fmt: skip
        for materialise in ("nothing", "jacobian", "jtj-blocks"):
            assert all(
                g.stage_cost is None for g in tables_of(problem, materialise, GPU).structure.groups
            )
    software = tables_of(problem_of(), profile=SOFTWARE)
    assert dispatches(software)["linearize"] == ["linearize_elements", "linearize_nodes_0"]


# -- on a device ---------------------------------------------------------------------------------


@pytest.fixture(params=wgsl_adapters(), scope="module")
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = Device(request.param)
    yield opened
    opened.close()


@pytest.mark.wgsl
@pytest.mark.parametrize(
    ("materialise", "sizes"),
    [("jacobian", (256,)), ("jtj-blocks", (256,)), ("jacobian", (64, 256))],
)
def test_a_step_in_stages_is_the_step_in_one_text(
    device: Device, materialise: str, sizes: tuple[int, ...]
) -> None:
    problem = problem_of()
    x = current_parameters(problem)
    records = []
    for profile in (SHORT, SOFTWARE):
        tables = tables_of(problem, materialise, profile, sizes=sizes)
        engine = DeviceSolve(device, tables)
        engine.start(x, 1e-2, 1e-6, 1e-3)
        before = device.counters.snapshot()
        records.append([engine.step(20), engine.step(20)])
        expected = dispatches(tables)
        outside = 2 * len(expected["linearize"] + expected["trial"])
        cg = device.counters.dispatches - before.dispatches - outside
        assert cg == 2 * 20 * 2, "nothing else is dispatched"
        engine.close()
    accurate = tolerance("float32", GRAPH)
    for staged, whole in zip(*records, strict=True):
        assert staged.accepted == whole.accepted
        for name in ("cost", "cost_before", "gradient_norm", "step_norm", "predicted"):
            accurate.check(getattr(staged, name), getattr(whole, name), name)
    host = problem.evaluate(backend="numpy")
    accurate.check(records[0][0].cost_before, host.cost, "cost")


@pytest.mark.wgsl
@pytest.mark.parametrize("precision", ["float32", "float64-emulated"])
def test_products_read_records_made_in_stages(device: Device, precision: str) -> None:
    problem = problem_of(12)
    x = current_parameters(problem)
    jacobian = problem.evaluate(backend="numpy").jacobian.toarray()
    residuals = problem.evaluate(backend="numpy").residuals
    with Operators(device, tables_of(problem, "jacobian", precision=precision)) as operators:
        gradient = operators.gradient(x)
    tolerance(precision, GRAPH).check(gradient, jacobian.T @ residuals, "gradient")
