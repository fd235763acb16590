"""Residuals over rows of varying length: one kernel a length, results in the order given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.runtime.device import Device
from autograd_gpu.sequence import TracedSequence, unrolled
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

Array = NDArray[Any]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])

RNG = np.random.default_rng(5)
X = RNG.standard_normal((9, 3)).astype(np.float32).astype(float)
# Lengths in no order, one of them once, an index twice in a row and twice in the batch.
LENGTHS = np.array([3, 1, 4, 3, 2, 4, 3])
INDPTR = np.concatenate([[0], np.cumsum(LENGTHS)])
INDICES = RNG.integers(0, 9, INDPTR[-1])
INDICES[1] = INDICES[0]
SAMPLES = RNG.random(INDPTR[-1]).astype(np.float32).astype(float)
RINGS = ag.Ragged(INDPTR, INDICES)
DATA = ag.Ragged(INDPTR, SAMPLES)
CENTRES = np.array([4, 4, 0, 8, 2, 1, 3])


def deviation(p: Any, ring: Any, samples: Any) -> Any:
    """Vec3: p against the weighted mean of its ring, and how far its first neighbour is."""
    weighted = ag.sum([s * q for s, q in zip(samples, ring, strict=True)])
    return [p - weighted / ag.sum(samples), ag.norm(p - ring[0] + 2.0)]


def deviation_rows() -> Array:
    """What ``deviation`` is, element by element with NumPy."""
    rows: list[Array] = []
    for k, c in enumerate(CENTRES):
        ring, s = X[RINGS[k]], DATA[k]
        rows.append(np.append(X[c] - s @ ring / s.sum(), np.linalg.norm(X[c] - ring[0] + 2.0)))
    return np.stack(rows)


def ring_problem(**keywords: Any) -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p: 0.5 * p, x, name="before")
    problem.add_residuals(deviation, x[CENTRES], x[RINGS], DATA, name="rings", **keywords)
    problem.add_residuals(lambda p, q: p - q, x[1:], x[:-1], name="after")
    return problem


def evaluate(problem: ag.Problem, backend: Backend = NUMPY) -> Any:
    return problem.evaluate(
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_residuals_come_in_the_order_given(backend: Backend) -> None:
    found = evaluate(ring_problem(), backend)
    expected = [0.5 * X.ravel(), deviation_rows().ravel(), (X[1:] - X[:-1]).ravel()]
    tolerance(backend.precision, GRAPH).check(found.residuals, np.concatenate(expected), "rings")


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacobian_has_the_rows_of_the_elements_given(backend: Backend) -> None:
    problem = ring_problem()
    problem.freeze(problem.arrays[0], [4])
    found = evaluate(problem, backend).jacobian.toarray()
    h, columns = 1e-5, problem.columns(problem.arrays[0])
    for block, component in ((0, 0), (3, 1), (8, 2)):
        sides: list[Array] = []
        for sign in (1.0, -1.0):
            moved = X.copy()
            moved[block, component] += sign * h
            problem.update(x=moved)
            sides.append(evaluate(problem).residuals)
        difference = (sides[0] - sides[1]) / (2.0 * h)
        problem.update(x=X)
        bound = CENTRAL_DIFFERENCE if backend.precision == "float64" else tolerance(
            backend.precision, GRAPH
        )  # fmt: skip
        bound.check(found[:, columns[block, component]], difference, f"block {block}")


def test_one_kernel_for_each_length() -> None:
    groups = ring_problem().groups
    rings = [g for g in groups if g.given_as == "rings"]
    assert [g.name for g in rings] == [f"rings (lengths {k}, {k})" for k in (1, 2, 3, 4)]
    assert [g.count for g in rings] == [1, 1, 3, 2]
    assert len({g.topology.key for g in rings}) == 4


def test_lengths_of_equal_graphs_share_a_kernel() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda ring: ring[-1] - ring[0], x[RINGS][LENGTHS > 1])
    assert len(problem.groups) == 3
    assert len({g.topology.key for g in problem.groups}) == 1


def test_a_residual_per_item_gives_elements_of_several_sizes() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p, ring: ring - p, x[CENTRES], x[RINGS])
    expected = np.concatenate([(X[RINGS[k]] - X[c]).ravel() for k, c in enumerate(CENTRES)])
    found = evaluate(problem)
    np.testing.assert_allclose(found.residuals, expected, rtol=1e-15)
    assert found.jacobian.shape == (len(expected), X.size)
    # Element 2 has rows 4 + 1 .. of one block each; its own centre is block 0.
    row = 3 * int(INDPTR[2])
    dense = found.jacobian.toarray()
    assert dense[row, 3 * INDICES[INDPTR[2]]] - dense[row, 3 * CENTRES[2]] == 2.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_solves_reach_the_same_minimum(backend: Backend) -> None:
    mesh = ag.meshes.icosphere(1)
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(lambda p, ring: p - ag.mean(ring), x, x[mesh.one_rings], name="smooth")
    problem.add_residuals(lambda p, p0: 0.3 * (p - p0), x, mesh.vertices, name="anchor")
    oracle = ag.solve(problem, backend="numpy")
    keywords: dict[str, Any] = {}
    if backend.adapter:
        # Conjugate gradients on the device, from gathered rows of both lengths.
        keywords = {"device": device_on(backend.adapter), "linear_solver": "pcg"}
    found = ag.solve(problem, backend=backend.name, precision=backend.precision, **keywords)
    assert found.success
    slack = 1e-9 if backend.precision == "float64" else 1e-5
    assert abs(found.cost - oracle.cost) <= slack * oracle.initial_cost
    np.testing.assert_allclose(found.values["x"], oracle.values["x"], atol=1e3 * slack)


@pytest.mark.parametrize(
    "weight",
    [2.0, np.arange(7) + 1.0, RNG.random((4, 4)), RNG.random((7, 4, 4))],
    ids=["number", "per element", "matrix", "matrix per element"],
)
def test_weights_follow_their_elements(weight: Any) -> None:
    found = evaluate(ring_problem(weight=weight)).residuals[X.size : X.size + 28]
    factor = np.broadcast_to(np.asarray(weight).reshape(-1, 1, 1), (7, 1, 1)) * np.eye(4) if (
        np.ndim(weight) < 2
    ) else np.broadcast_to(weight, (7, 4, 4))  # fmt: skip
    expected = np.einsum("eij,ej->ei", factor, deviation_rows())
    np.testing.assert_allclose(found.reshape(7, 4), expected, rtol=1e-12)


def test_update_replaces_ragged_data() -> None:
    problem = ring_problem(weight=np.ones(7))
    analysis = problem.analysis()
    fresh = 1.0 + RNG.random(len(SAMPLES))
    other = ag.Problem()
    x = other.parameters("x", X)
    other.add_residuals(
        deviation, x[CENTRES], x[RINGS], ag.Ragged(INDPTR, fresh), weight=np.arange(7)
    )
    expected = evaluate(other).residuals
    for new in (ag.Ragged(INDPTR, fresh), fresh):
        problem.update(data={"rings": {"samples": new, "weight": np.arange(7)}})
        found = evaluate(problem).residuals[X.size : X.size + 28]
        np.testing.assert_array_equal(found, expected)
    assert problem.analysis() is not analysis
    with pytest.raises(ag.ShapeError, match=r"'rings', argument 'samples'.*other lengths"):
        problem.update(data={"rings": {"samples": ag.Ragged([0, len(fresh)], fresh)}})
    with pytest.raises(ag.InputError, match=r"no such data argument; expected.*samples.*weight"):
        problem.update(data={"rings": {"ring": fresh}})


def test_checks_and_messages_name_the_users_element() -> None:
    problem = ring_problem()
    assert problem.check_gradients().ok
    problem.add_residuals(lambda d: 1.0 / d[0], problem.arrays[0][RINGS][2:4], name="inverse")
    analysis = problem.analysis()
    # Batches stand by length, so element 1 (length 3) of the last group comes first.
    first = analysis.row_count - 6
    assert analysis.locate_row(first) == "residuals 'inverse (length 3)', element 1, component 0"
    order = analysis.given_order
    assert order is not None
    np.testing.assert_array_equal(np.sort(order), np.arange(analysis.row_count))
    np.testing.assert_array_equal(order[-6:], first + np.array([3, 4, 5, 0, 1, 2]))


def test_empty_rows_are_refused_by_name() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    with pytest.raises(ag.ShapeError, match=r"(?s)residuals 'mean \(length 0\)'.*sums nothing"):
        problem.add_residuals(
            lambda ring: ag.mean(ring), x[ag.Ragged([0, 2, 2], [0, 1])], name="mean"
        )


def test_lengths_must_agree() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    with pytest.raises(ag.ShapeError, match="has 7 entries, argument 'p' has 9"):
        problem.add_residuals(deviation, x, x[RINGS], DATA)
    with pytest.raises(ag.ShapeError, match=r"weight: got shape \(3,\), expected a number, \(7,\)"):
        problem.add_residuals(deviation, x[CENTRES], x[RINGS], DATA, weight=np.ones(3))
    with pytest.raises(ag.IndexRangeError, match="is 9 at position 1"):
        x[ag.Ragged([0, 2], [0, 9])]


def test_selections_of_selections_and_of_rows() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    rows = x[::-1][ag.Ragged([0, 2, 3], [0, 8, 4])]
    assert rows.rows.values.tolist() == [8, 0, 4]
    assert [row.tolist() for row in rows[::-1].rows] == [[4], [8, 0]]
    assert [row.tolist() for row in rows[[0, 0]].rows] == [[8, 0], [8, 0]]
    assert len(rows[np.array([False, True])]) == 1
    assert repr(rows) == "<2 rows of blocks of parameters 'x'>"


def traced(fn: Any, length: int = 3) -> ag.Graph:
    return ag.trace(unrolled(fn, [None, length]), 3, *[3] * length)


def test_a_sequence_is_like_a_tuple_with_operators_per_item() -> None:
    p, ring = RNG.random(3), RNG.random((3, 3))

    def body(p: Any, ring: Any) -> Any:
        assert len(ring) == 3
        assert isinstance(ring[:2], TracedSequence)
        assert repr(ring) == "<traced sequence of 3>"
        turned = [ring[(k + 1) % len(ring)] for k in range(len(ring))]
        edges = [b - a for a, b in zip(ring, turned, strict=True)]
        return [
            ag.sum(ring - p), ag.mean(2.0 * ring), ag.max(ring), ring[-1], ag.sum(edges),
            ag.sum(ag.sin(ring) * ring), ring @ p, ag.norm(ring),
        ]  # fmt: skip

    expected = [
        (ring - p).sum(0), 2.0 * ring.mean(0), ring.max(0), ring[-1], np.zeros(3),
        (np.sin(ring) * ring).sum(0), ring @ p, [np.linalg.norm(ring)],
    ]  # fmt: skip
    found = traced(body)(p, *ring)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-13, atol=1e-13)


def test_misuse_of_a_sequence_names_the_line() -> None:
    with pytest.raises(ag.ShapeError, match=r"test_ragged.*\n.*sequences of lengths 2, 3"):
        traced(lambda p, ring: ag.sum(ring + ring[1:]))
    with pytest.raises(ag.TraceError, match="indexes by a traced value"):
        traced(lambda p, ring: ring[p.x])
    with pytest.raises(ag.TraceError, match="asks for the truth of a traced"):
        traced(lambda p, ring: p if ring else ring[0])


@pytest.mark.wgsl
@pytest.mark.parametrize("backend", parameters_of(WGSL))
def test_gathered_gradient_of_rings(backend: Backend) -> None:
    """The gather form sees every length as one more group; same bits in every run."""
    assert backend.adapter is not None
    device: Device = device_on(backend.adapter)
    options = ag.LevenbergMarquardtOptions(max_iterations=2)
    runs = [
        ag.solve(
            ring_problem(), backend="wgsl", device=device, linear_solver="pcg", options=options
        )
        for _ in range(2)
    ]
    exact = ag.solve(ring_problem(), backend="numpy", options=options)
    assert np.array_equal(runs[0].values["x"], runs[1].values["x"])
    first, oracle = runs[0].history[0], exact.history[0]
    np.testing.assert_allclose(first.gradient_norm, oracle.gradient_norm, rtol=1e-5)
    np.testing.assert_allclose(first.cost, oracle.cost, rtol=1e-5)
