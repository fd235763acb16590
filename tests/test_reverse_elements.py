"""Half-edges whose reverse is there too share one list; forward mode where it has fewer ops."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.element_parts import Contribution
from autograd_gpu.codegen.incidence import product_contribution
from autograd_gpu.codegen.solve_kernels import cg_product, product_bodies
from autograd_gpu.codegen.tangent_product import product_at_least_cost, product_of
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from sessions import device_on
from tolerances import GRAPH, TOLERANCES

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())

Change = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


WEIGHTS = np.tile(np.random.default_rng(3).uniform(0.5, 2.0, 36), 2)
"""Of the half-edges of the ring: those of an edge have the same."""


def ring_of_half_edges(
    change: Change = lambda e, q, w: (e, q, w), loss: ag.losses.Loss | None = None
) -> ag.Problem:
    """A ring with chords, every edge in both directions, with a vector and a weight each."""
    rng = np.random.default_rng(0)
    count = 12
    i = np.arange(count)
    edges = np.concatenate([np.stack([i, (i + k) % count], axis=1) for k in (1, 2, 5)])
    edges = np.concatenate([edges, edges[:, ::-1]])
    p = rng.standard_normal((count, 3))
    edges, q, weights = change(edges, p[edges[:, 1]] - p[edges[:, 0]], WEIGHTS)
    problem = ag.Problem()
    x = problem.parameters("x", p + 0.1 * rng.standard_normal(p.shape))
    r = problem.parameters("r", 0.5 * rng.standard_normal(p.shape))

    def turned(
        a: ag.Vector, b: ag.Vector, turn: ag.Vector, q: ag.Vector, w: ag.Scalar
    ) -> ag.Vector:
        return w * ((b - a) - energies.rotate(turn, q))

    first, second = edges.T
    problem.add_residuals(turned, x[first], x[second], r[first], q, weights, loss=loss)
    return problem


def tables_of(problem: ag.Problem, materialise: str = "nothing") -> NodeTables:
    analysis = problem.analysis()
    schedule = Schedule(materialise=materialise)
    return NodeTables(
        array_layouts(analysis), analysis.groups, current_parameters(problem), schedules=[schedule]
    )


def reverse_of(problem: ag.Problem, materialise: str = "nothing") -> list[object]:
    return [kind.reverse for kind in tables_of(problem, materialise).structure.kinds[0]]


def shuffled(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.random.default_rng(1).permutation(len(e))
    return e[order], q[order], w[order]


def doubled(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Every half-edge a second time, with data of its own."""
    return np.concatenate([e, e]), np.concatenate([q, 2 * q]), np.concatenate([w, 3 * w])


def one_missing(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    return e[1:], q[1:], w[1:]


def one_weight_differs(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    w = w.copy()
    w[7] = np.nextafter(w[7], 9.0)
    return e, q, w


def one_sign_differs(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    q = q.copy()
    q[7] *= -1.0
    return e, q, w


def one_direction(e: np.ndarray, q: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    half = len(e) // 2
    return e[:half], q[:half], w[:half]


PAIRED: tuple[Change, ...] = (shuffled, doubled)  # type: ignore[assignment]
NOT_PAIRED: tuple[Change, ...] = (  # type: ignore[assignment]
    one_missing, one_weight_differs, one_sign_differs, one_direction,
)  # fmt: skip


@pytest.mark.parametrize("change", PAIRED)
def test_one_list_serves_half_edges_and_their_reverses(change: Change) -> None:
    (signs,) = reverse_of(ring_of_half_edges(change))
    assert sorted(s for s in signs if s) == [(-1, -1, -1), (1,)]


@pytest.mark.parametrize("change", NOT_PAIRED)
def test_two_lists_where_reverses_are_missing_or_differ(change: Change) -> None:
    assert reverse_of(ring_of_half_edges(change)) == [None, None]


def test_stored_jacobians_are_read_element_by_element() -> None:
    assert reverse_of(ring_of_half_edges(), "jacobian") == [None, None]


def test_no_reverse_between_two_sets_of_nodes() -> None:
    tables = tables_of(workloads.bundle_problem(6, 40))
    assert all(kind.reverse is None for kinds in tables.structure.kinds for kind in kinds)


@pytest.mark.wgsl
@each_adapter
@pytest.mark.parametrize("change", (*PAIRED, one_missing, one_sign_differs))
def test_products_are_those_of_the_jacobian(adapter: str, change: Change) -> None:
    check_products(device_on(adapter), ring_of_half_edges(change))


@pytest.mark.wgsl
@each_adapter
def test_products_under_a_robust_loss(adapter: str) -> None:
    check_products(device_on(adapter), ring_of_half_edges(loss=ag.losses.Huber(0.3)))


def check_products(device: Device, problem: ag.Problem) -> None:
    """Gradient, JᵀJ v and diagonal blocks against the host's J, relative to the largest."""
    found = problem.evaluate(backend="numpy", precision="float64")
    jacobian, x = found.jacobian.toarray(), current_parameters(problem)
    v = np.random.default_rng(2).standard_normal(x.size)
    limit = TOLERANCES["float32", GRAPH]
    with Operators(device, tables_of(problem)) as operators:
        (blocks,) = operators.block_diagonal(x)
        products = (
            (operators.gradient(x), found.gradient, "gradient"),
            (operators.jtj_product(x, v), jacobian.T @ (jacobian @ v), "JᵀJ v"),
        )
    at = np.arange(x.size).reshape(2, -1, 3).transpose(1, 0, 2).reshape(-1, 6)
    pairs = [(a, b) for a in range(6) for b in range(a + 1)]
    wanted = np.stack(
        [np.einsum("en,en->n", jacobian[:, at[:, a]], jacobian[:, at[:, b]]) for a, b in pairs],
        axis=1,
    )
    for got, expected, what in (*products, (blocks, wanted, "blocks")):
        scale = np.abs(expected).max()
        limit.check(got / scale, expected / scale, what)


@pytest.mark.wgsl
@each_adapter
def test_data_that_no_longer_pair_are_solved_with_two_lists(adapter: str) -> None:
    """The same problem before and after an update that breaks one pair: the host's minima."""
    problem = ring_of_half_edges()
    targets = current_parameters(problem)[:6].reshape(2, 3) + 0.3
    problem.add_residuals(energies.anchor, problem.arrays[0][:2], targets, 10.0, name="anchors")
    group = problem.groups[0]
    weights = WEIGHTS.copy()
    device = device_on(adapter)
    for weight in (weights[7], 4.0):
        weights[7] = weight
        problem.update({group.name: {"w": weights}})
        paired = tables_of(problem).structure.kinds[0][0].reverse is not None
        assert paired == (weight != 4.0)
        solved = ag.solve(problem, device=device, precision="float32", linear_solver="pcg")
        known = ag.solve(problem, backend="numpy")
        assert solved.success
        TOLERANCES["float32", GRAPH].check(solved.cost, known.cost, "cost")


def test_what_depends_on_the_node_alone_precedes_its_list() -> None:
    tables = tables_of(workloads.deformation_problem(1))
    (edges, _) = product_bodies(tables.structure, 0)
    of_others = re.compile(r"[xp]1_\d|d\d_\d|j_\d")
    assert any("ag_cos" in line for line in edges.ahead)
    assert not any(of_others.search(line) for line in edges.ahead)
    text = cg_product(tables.structure, 0).source
    assert 0 < text.index(edges.ahead[0]) < text.index("for (var k =") < text.index(edges.loads[0])


def ops_of(contribution: Contribution) -> int:
    return sum(bool(node.args) for node in contribution.graph.nodes)


def test_forward_mode_where_it_has_fewer_operations() -> None:
    structure = tables_of(workloads.deformation_problem(1)).structure.groups[0]
    rng = np.random.default_rng(0)
    fewer: list[bool] = []
    for slot in structure.places:
        by_entries = product_contribution(structure, slot.place)
        chosen = product_at_least_cost(structure, slot.place)
        assert chosen.targets == by_entries.targets
        values = [rng.standard_normal((20, *a.shape)) for a in by_entries.graph.arguments]
        got, wanted = (np.asarray(c.graph(*values)) for c in (chosen, by_entries))
        TOLERANCES["float64", GRAPH].check(got, wanted, f"place {slot.place}")
        fewer.append(ops_of(chosen) < 0.7 * ops_of(by_entries))
    # The far end of an edge needs J v alone; the near end has the entries of its rotation anyway.
    assert sorted(fewer) == [False, True]


def test_entries_under_a_robust_loss() -> None:
    """Gauss-Newton's J is no derivative of the residuals there."""
    structure = tables_of(ring_of_half_edges(loss=ag.losses.Huber(0.3))).structure.groups[0]
    for slot in structure.places:
        assert product_at_least_cost(structure, slot.place) is product_contribution(
            structure, slot.place
        )


def test_entries_where_both_ends_share_a_text() -> None:
    springs = tables_of(workloads.springs_problem(1)).structure.kinds[0][0]
    assert springs.mirrored
    assert product_of(springs) is product_contribution
