"""Kernels above the op budget: cut into stages, with the same results, and no more bytes stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bindings import Bound, bind
from conftest import LONG

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.codegen import rematerialization
from autograd_gpu.codegen.kernel import Product, make_kernel, parameter_slot, topology_of
from autograd_gpu.codegen.render import render_stages
from autograd_gpu.codegen.stages import OP_BUDGET, Plan, cut
from autograd_gpu.diff import value_and_jacobian
from autograd_gpu.ir import evaluate_nodes
from autograd_gpu.ops import BOOL
from autograd_gpu.runtime.numba_backend import NumbaSession
from autograd_gpu.runtime.wgsl_backend import WgslSession
from random_graphs import random_arrays, random_recipe, well_conditioned
from sessions import NUMBA, WGSL, WGSL_FLOAT64, Backend, device_on, parameters_of
from tolerances import GRAPH, Tolerance, tolerance

EXACT = Tolerance(1e-12, 1e-12, "the same operations, some done twice")
LONG_CHAIN = Tolerance(1e-2, 1e-2, "2000 steps of float32, each with a rounding of 6e-8")
each_staged = pytest.mark.parametrize("backend", parameters_of([NUMBA, *WGSL]))


def mixer(length: int) -> Any:
    """A residual of about 11 · ``length`` operations; a rotation keeps values and slopes near 1."""

    def residual(p: Any, q: Any) -> list[Any]:
        a, b, c = p[0], p[1], q
        for k in range(length):
            kept = ag.where(b > c, b, 0.9 * b + 0.1 * c) if k % 7 == 3 else b
            a, b, c = 0.95 * a - 0.31 * kept, 0.31 * a + 0.95 * kept, 0.7 * c + 0.2 * ag.sin(a * b)
        return [a, b * c, a - c]

    return residual


def open_staged(backend: Backend, bound: Bound, budget: int | None) -> Any:
    count = bound.parameters.size
    if backend.name == "numba":
        return NumbaSession([bound.group], count, backend.precision, budget)
    assert backend.adapter is not None
    device = device_on(backend.adapter)
    return WgslSession([bound.group], count, backend.precision, device, op_budget=budget)


def run_plan(graph: Graph, plan: Plan, arrays: list[Any]) -> Any:
    """Outputs of all stages, run one after another in NumPy through the cells of the buffer."""
    batch = len(arrays[0])
    columns = [a.reshape(batch, -1).T for a in arrays]
    buffer = np.full((max(1, plan.cells), batch), np.nan)
    outputs = np.full((len(graph.outputs), batch), np.nan)
    for stage in plan.stages:
        sources = [*columns, buffer]
        values = evaluate_nodes(stage.graph.nodes, lambda a, k, s=sources: s[a][k].copy())
        results = [np.broadcast_to(values[o], (batch,)) for o in stage.graph.outputs]
        made = len(stage.outputs)
        outputs[list(stage.outputs)] = results[:made] if made else np.zeros((0, batch))
        for cell, value in zip(stage.stores, results[made:], strict=True):
            buffer[cell] = value
    return outputs.T


@pytest.mark.parametrize("seed", range(100 if LONG else 12))
def test_plans_give_the_same_outputs_and_store_no_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = (2, 3, 1)
    recipe = random_recipe(rng, (20, 60), widths)
    arrays = random_arrays(widths, 7, seed)
    for graph in (ag.simplify(recipe.trace()), ag.jacobian(recipe.trace())):
        flat = Graph(graph.nodes, graph.outputs, graph.arguments, (len(graph.outputs),))
        with np.errstate(all="ignore"):
            want = flat(*arrays)
        for budget in (5, 17, 60):
            plan = cut(graph, budget)
            with np.errstate(all="ignore"):
                np.testing.assert_array_equal(run_plan(graph, plan, arrays), want)
            assert sorted(o for s in plan.stages for o in s.outputs) == list(range(len(want[0])))
            assert plan.cells <= plan.stored <= plan.alive
            assert len(plan.stages) <= 1 + 2 * graph.stats.ops // max(1, budget - 1) + 1


def test_truth_values_cross_from_stage_to_stage() -> None:
    def residual(p: Any) -> Any:
        early = ag.sin(p[0]) * ag.exp(p[1]) > 0.3  # too dear to be found out again
        total = p[0]
        for _ in range(20):
            total = ag.sin(total) * 0.5 + p[1]
        return ag.where(early, total, -total)

    graph = ag.trace(residual, 2)
    plan = cut(graph, 15)
    last = plan.stages[-1].graph
    restored = [n for n in last.nodes if n.op == "gt" and last.nodes[n.args[0]].op == "input"]
    assert len(restored) == 1
    assert restored[0].dtype == BOOL
    arrays = random_arrays((2,), 9, 0)
    np.testing.assert_array_equal(run_plan(graph, plan, arrays)[:, 0], graph(*arrays))


def test_recomputing_lowers_what_is_stored() -> None:
    """What is cheap, given a few stored values, is computed again where it is read."""

    def residual(p: Any) -> Any:
        root = ag.exp(ag.sin(p[0]) * p[1])  # dear, and alone
        cheap = [root + 1.0 * k for k in range(1, 9)]
        total = root
        for _ in range(30):
            total = ag.sin(total) * 0.5 + 0.1
        for value in cheap:
            total = total * value
        return total

    graph = ag.trace(residual, 2)
    plan = cut(graph, 40)
    assert plan.alive >= 10, "eight cheap values, the root, running totals"
    assert plan.stored == len(plan.stages), "the root, and a running total at each boundary"
    assert plan.cells == 2
    arrays = random_arrays((2,), 5, 0)
    np.testing.assert_array_equal(run_plan(graph, plan, arrays)[:, 0], graph(*arrays))


def test_nothing_dear_is_computed_again() -> None:
    """A value that costs more than a store is stored, one that costs less is not."""

    def nodes_of(fn: Any) -> tuple[Graph, int]:
        graph = ag.trace(fn, 1, 1)
        return graph, graph.outputs[0]

    dear, value = nodes_of(lambda x, y: ag.sin(x) * ag.exp(y))
    assert rematerialization.rematerialize(dear.nodes, [value], ()) == [value]
    cheap, value = nodes_of(lambda x, y: x + y)
    assert rematerialization.rematerialize(cheap.nodes, [value], ()) == []
    # What is stored anyway costs a load.
    assert rematerialization.rematerialize(cheap.nodes, [value], {value}) == [value]


@each_staged
def test_staged_kernels_agree_with_the_oracle(backend: Backend) -> None:
    graph = ag.trace(mixer(30), 2, 1)
    arrays = random_arrays((2, 1), 700, 1)
    bound = bind(graph, arrays)
    bounds = tolerance(backend.precision, GRAPH)
    with open_staged(backend, bound, 150) as session:
        residuals, values = (a.copy() for a in session.residual_jacobian(bound.parameters))
        alone = session.residuals(bound.parameters).copy()
        cost = session.cost(bound.parameters)
        texts = session.sources()
    want = graph(*arrays)
    fair = well_conditioned(value_and_jacobian(graph), arrays)
    assert fair.mean() > 0.8
    slopes = ag.jacobian(graph)(*arrays)
    assert np.abs(slopes[:, 0, :2]).mean() > 0.1, "nothing to compare"
    bounds.check(residuals.reshape(want.shape)[fair], want[fair], "residuals")
    bounds.check(alone.reshape(want.shape)[fair], want[fair], "residuals alone")
    bounds.check(bound.dense_jacobian(values)[fair], slopes[fair], "Jacobian")
    exact = 0.5 * float(np.sum(want**2))
    bounds.check(cost / exact, 1.0, "cost")
    by_product = {p: [s for s in texts if s.kernel.product is p] for p in Product}
    assert all(len(by_product[p]) > 1 for p in Product), "a kernel was not cut"
    for sources in by_product.values():
        assert [s.stage for s in sources] == list(range(sources[0].stages))
    assert len({s.key for s in texts}) == len(texts)


@pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))
def test_numbers_of_64_bits_cross_from_stage_to_stage(backend: Backend) -> None:
    def residual(p: Any) -> Any:
        a, b = p[0], p[1]
        for _ in range(4):
            a, b = 0.95 * a - 0.31 * b, 0.31 * a + 0.95 * b
        return a * b

    graph = ag.trace(residual, 2)
    arrays = random_arrays((2,), 20, 1)
    bound = bind(graph, arrays)
    with open_staged(backend, bound, 14) as session:
        residuals = session.residuals(bound.parameters).copy()
        assert len([s for s in session.sources() if s.kernel.product is Product.RESIDUAL]) > 1
    tolerance("float64", GRAPH).check(residuals, graph(*arrays), "residuals")


@each_staged
def test_results_do_not_depend_on_ranges(backend: Backend) -> None:
    """Blocks and chunks of elements have intermediate buffers of their own."""
    graph = ag.trace(mixer(12), 2, 1)
    arrays = random_arrays((2, 1), 9001, 2)
    outcomes: list[Any] = []
    for part in (slice(None), slice(4000, 4700)):
        bound = bind(graph, [a[part] for a in arrays])
        with open_staged(backend, bound, 100) as session:
            values = session.residual_jacobian(bound.parameters)[1]
            outcomes.append(bound.dense_jacobian(values).copy())
    np.testing.assert_array_equal(outcomes[0][4000:4700], outcomes[1])


def test_small_kernels_stay_whole() -> None:
    topology = topology_of(ag.trace(mixer(3), 2, 1), [parameter_slot((2,)), parameter_slot(())])
    for target, precision in (("numba", "float64"), ("wgsl", "float32")):
        for product in Product:
            (source,) = render_stages(make_kernel(topology, product), target, precision)
            assert source.stages == 1
            assert "intermediate" not in source.source


@pytest.mark.long
@each_staged
def test_a_graph_of_100_000_operations_works_end_to_end(backend: Backend) -> None:
    graph = ag.trace(mixer(2000), 2, 1)
    arrays = random_arrays((2, 1), 300, 1)
    bound = bind(graph, arrays)
    kernel = bound.group.kernel(Product.RESIDUAL_JACOBIAN)
    assert kernel.graph.stats.ops > 100_000
    with open_staged(backend, bound, None) as session:
        residuals, values = (a.copy() for a in session.residual_jacobian(bound.parameters))
        stages = [s for s in session.sources() if s.kernel is kernel]
    assert len(stages) >= kernel.graph.stats.ops / OP_BUDGET[backend.name]
    want, slopes = graph(*arrays), ag.jacobian(graph)(*arrays)
    # Roundings of 2000 rotations add up, and float32 takes another branch now and then.
    loose = Tolerance(1e-7, 1e-7, "2000 steps") if backend is NUMBA else LONG_CHAIN
    close = np.abs(bound.dense_jacobian(values) - slopes) <= loose.bound(slopes)
    assert close.all(axis=(1, 2)).mean() > 0.9
    close = np.abs(residuals.reshape(want.shape) - want) <= loose.bound(want)
    assert close.all(axis=1).mean() > 0.9
