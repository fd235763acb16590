"""Long rows: one kernel with a loop for all lengths, against the float64 oracle item by item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.codegen.kernel import Product, make_kernel
from autograd_gpu.codegen.render import render
from autograd_gpu.diff import _jacobian  # pyright: ignore[reportPrivateUsage]
from autograd_gpu.folds import FOLDS
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.long_rows import LONGEST_UNROLLED_ROW, evaluate_rows, trace_rows, unroll
from autograd_gpu.rewrite import simplify
from autograd_gpu.runtime.numba_backend import NumbaSession
from sessions import JAX, NUMBA, NUMPY, WGSL, WGSL_FLOAT64, Backend, device_on, parameters_of
from tolerances import GRAPH, tolerance

Array = NDArray[Any]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])

RNG = np.random.default_rng(11)
X = RNG.standard_normal((60, 3)).astype(np.float32).astype(float)
# Short and long in no order; two of one class, one long row alone in its class, the longest 200.
LENGTHS = np.array([3, 40, 200, 4, LONGEST_UNROLLED_ROW + 1, 5, 39, 3, 64])
INDPTR = np.concatenate([[0], np.cumsum(LENGTHS)])
INDICES = RNG.integers(0, len(X), INDPTR[-1])
INDICES[4] = INDICES[3]  # a block twice in a row
WEIGHTS = (0.5 + RNG.random(INDPTR[-1])).astype(np.float32).astype(float)
CENTRES = np.arange(len(LENGTHS)) + 7


def spread(p: Any, ring: Any, weights: Any) -> Any:
    """Weighted mean, variance about it (a loop that needs a loop), extremes of the ring."""
    mean = ag.sum([w * q for w, q in zip(weights, ring, strict=True)]) / ag.sum(weights)
    variance = ag.mean([ag.dot(q - mean, q - mean) for q in ring])
    lengths = [ag.norm(q - p) for q in ring]
    energy = 0.01 * ag.dot(weights, weights)
    return [p - mean, variance, ag.max(ring - p), ag.min(lengths), energy * p.x]


def smooth_part(p: Any, ring: Any, weights: Any) -> Any:
    """Without the extremes, at whose ties a derivative jumps."""
    return spread(p, ring, weights)[:2]


def long_problem(fn: Callable[..., Any] = spread, unroll: bool = False, **keywords: Any) -> Any:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p: 0.5 * p, x, name="before")
    problem.add_residuals(
        fn,
        x[CENTRES],
        x[ag.Ragged(INDPTR, INDICES, unroll)],
        ag.Ragged(INDPTR, WEIGHTS, unroll),
        name="rings",
        **keywords,
    )
    problem.add_residuals(lambda p, q: p - q, x[1:], x[:-1], name="after")
    problem.freeze(x, [4, INDICES[INDPTR[2] + 1]])
    return problem


def evaluate(problem: ag.Problem, backend: Backend = NUMPY) -> Any:
    return problem.evaluate(
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )


def check(found: Any, oracle: Any, precision: str) -> None:
    bounds = tolerance(precision, GRAPH)
    bounds.check(found.residuals, oracle.residuals, "residuals")
    bounds.check(found.jacobian.toarray(), oracle.jacobian.toarray(), "Jacobian")
    bounds.check(found.cost / oracle.cost, 1.0, "cost")
    assert found.jacobian.nnz == oracle.jacobian.nnz, "room for items that do not exist shows"


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The function unrolled for every length, as short rows are, with NumPy."""
    return evaluate(long_problem(unroll=True))


def test_the_oracle_is_what_numpy_says(oracle: Any) -> None:
    rows: list[Array] = []
    for k, c in enumerate(CENTRES):
        part = slice(INDPTR[k], INDPTR[k + 1])
        ring, w, p = X[INDICES[part]], WEIGHTS[part], X[c]
        mean = w @ ring / w.sum()
        variance = np.mean(np.sum((ring - mean) ** 2, axis=1))
        nearest = np.linalg.norm(ring - p, axis=1).min()
        rows.append(np.concatenate([p - mean, [variance], (ring - p).max(0)]))
        rows[-1] = np.append(rows[-1], [nearest, 0.01 * (w @ w) * p[0]])
    found = oracle.residuals[X.size : X.size + 9 * len(rows)]
    np.testing.assert_allclose(found, np.concatenate(rows), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_agrees_with_the_function_item_by_item(backend: Backend, oracle: Any) -> None:
    check(evaluate(long_problem(), backend), oracle, backend.precision)


@pytest.mark.long
@pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))
def test_float64_on_wgsl_has_loops_too(backend: Backend, oracle: Any) -> None:
    check(evaluate(long_problem(), backend), oracle, backend.precision)


def test_long_rows_share_a_kernel_and_short_ones_have_one_each() -> None:
    analysis = long_problem().analysis()
    rings = [g for g in analysis.groups if g.name.startswith("rings")]
    folded = [g for g in rings if g.lengths is not None]
    assert [g.count for g in folded] == [3, 1, 1]
    assert [g.capacity for g in folded] == [40, 64, 224]
    assert len({g.topology.key for g in folded}) == 1
    assert len({g.topology.key for g in rings}) == 1 + len({3, 4, 5})
    with NumbaSession(analysis.groups, X.size, "float64") as session:
        session.residual_jacobian(X.ravel())
        loops = [s.source for s in session.sources() if "for i in range(length)" in s.source]
    assert len(loops) == 1, "one text for all long lengths"
    # Mean and extremes, then the variance about the mean, then the derivatives by each item.
    assert loops[0].count("for i in range(length)") == 3


def test_rows_are_folded_from_one_length_on() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    lengths = [LONGEST_UNROLLED_ROW, LONGEST_UNROLLED_ROW + 1]
    rows = ag.Ragged(np.concatenate([[0], np.cumsum(lengths)]), np.zeros(sum(lengths), int))
    problem.add_residuals(lambda r: ag.sum(r), x[rows])
    assert [g.lengths is not None for g in problem.groups] == [False, True]
    assert problem.groups[1].capacity == 40


def test_compiling_does_not_grow_with_the_rows() -> None:
    def text_of(length: int) -> str:
        problem = ag.Problem()
        x = problem.parameters("x", X)
        row = ag.Ragged([0, length], np.arange(length) % len(X))
        problem.add_residuals(lambda p, ring: ag.sum([ag.norm(q - p) for q in ring]), x[:1], x[row])
        (group,) = problem.groups
        return render(
            make_kernel(group.topology, Product.RESIDUAL_JACOBIAN), "wgsl", "float32"
        ).source

    assert text_of(33) == text_of(5000)


@pytest.mark.parametrize("backend", parameters_of([NUMBA, *WGSL[:1]]))
def test_weights_losses_and_new_data(backend: Backend) -> None:
    keywords = {"weight": 1.0 + np.arange(len(LENGTHS)), "loss": ag.losses.Huber(0.7)}
    problem, reference = long_problem(**keywords), long_problem(unroll=True, **keywords)
    check(evaluate(problem, backend), evaluate(reference), backend.precision)
    fresh = WEIGHTS[::-1].copy()
    for changed in (problem, reference):
        changed.update(data={"rings": {"weights": fresh, "weight": np.ones(len(LENGTHS))}})
    check(evaluate(problem, backend), evaluate(reference), backend.precision)


def test_parts_of_a_batch_are_like_the_whole() -> None:
    """Chunks of elements, as a device with a small binding limit cuts them."""
    analysis = long_problem().analysis()
    whole = next(g for g in analysis.groups if g.capacity == 40)
    results: list[list[Array]] = []
    for groups in ([whole], [whole.part(0, 1), whole.part(1, 3)]):
        with NumbaSession(groups, X.size, "float64") as session:
            results.append([a.copy() for a in session.residual_jacobian(X.ravel())])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", ["levenberg-marquardt", "l-bfgs"])
def test_solves_end_where_unrolled_ones_do(method: str) -> None:
    ends = [  # machine code for 200 unrolled items would take minutes
        ag.solve(long_problem(smooth_part, unroll), method=method, backend=backend).cost
        for unroll, backend in ((True, "numpy"), (False, "numba"))
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert ends[0] < 0.9 * evaluate(long_problem(smooth_part)).cost


@pytest.mark.wgsl
@pytest.mark.parametrize("backend", parameters_of(WGSL[:1]))
@pytest.mark.parametrize("method", ["levenberg-marquardt", "l-bfgs"])
def test_solves_on_a_device_evaluate_there_and_step_on_the_host(
    backend: Backend, method: str
) -> None:
    assert backend.adapter is not None
    keywords = {"linear_solver": "pcg"} if method == "levenberg-marquardt" else {}
    solution = ag.solve(
        long_problem(smooth_part), method=method, backend="wgsl", precision="float32",
        device=device_on(backend.adapter), **keywords,
    )  # fmt: skip
    exact = ag.solve(long_problem(smooth_part), method=method, backend="numba")
    assert solution.cost == pytest.approx(exact.cost, rel=1e-4)


def test_checks_audits_and_searches_go_through_long_rows() -> None:
    problem = long_problem()
    assert long_problem(smooth_part).check_gradients(samples=2).ok
    assert problem.audit(backend="numba").ok

    def inverse(p: Any, ring: Any, weights: Any) -> Any:
        return ag.sum([w / (w - 1.0) * q.x for w, q in zip(weights, ring, strict=True)])

    weights = WEIGHTS.copy()
    weights[INDPTR[2] + 77] = 1.0
    broken = ag.Problem()
    x = broken.parameters("x", X)
    rows = ag.Ragged(INDPTR, INDICES), ag.Ragged(INDPTR, weights)
    broken.add_residuals(inverse, x[CENTRES], x[rows[0]], rows[1], name="inverse")
    (finding,) = ag.debug_nans(broken, backend="numba").findings
    assert (finding.group, finding.element) == ("inverse (lengths up to 224)", 2)
    assert finding.op == "div"
    assert "w / (w - 1.0) * q.x" in finding.line


def test_a_tie_belongs_to_the_earlier_item() -> None:
    """As in short rows: the whole derivative goes to the first of equal items."""
    values = np.ones(50)
    values[[7, 12]] = -2.0
    problem = ag.Problem()
    x = problem.parameters("x", values)
    row = ag.Ragged([0, 50], np.arange(50))
    problem.add_residuals(lambda r: [ag.min(r), ag.max(r)], x[row])
    for backend in ("numpy", "numba"):
        dense = problem.evaluate(backend=backend).jacobian.toarray()
        assert np.flatnonzero(dense[0]).tolist() == [7]
        assert np.flatnonzero(dense[1]).tolist() == [0]


def carried(p: Any, ring: Any, weights: Any) -> Any:
    total = p
    for q in ring:
        total = 0.5 * total + q
    return ag.sum([total])


def numbered(p: Any, ring: Any, weights: Any) -> Any:
    return ag.sum([(k + 1.0) * q for k, q in enumerate(ring)])


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda p, r, w: ag.sum(r) / len(r), r"test_long_rows.*\n.*the length of a long row"),
        (lambda p, r, w: r[0] - p, r"test_long_rows.*\n.*takes items of a long row by number"),
        (lambda p, r, w: [q - p for q in r], "returns values of single items of a long row"),
        (lambda p, r, w: p * sum(q.x for q in r), "returns values of single items of a long row"),
        (lambda p, r, w: ag.sum(r @ p), r"test_long_rows.*\n.*uses a long row as one vector"),
        (carried, "carries a value from item to item"),
        (numbered, "uses the number of an item"),
    ],
)  # fmt: skip
def test_what_a_loop_cannot_do_is_refused_with_the_remedy(fn: Any, message: str) -> None:
    with pytest.raises(ag.TraceError, match=message) as caught:
        long_problem(fn)
    assert "'rings'" in str(caught.value)
    assert "unroll=True" in str(caught.value)


def test_rows_of_an_element_must_be_equally_long() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    long, longer = ag.Ragged([0, 40], np.arange(40)), ag.Ragged([0, 41], np.arange(41))
    with pytest.raises(ag.ShapeError, match=r"element 0: its rows have lengths 40, 41"):
        problem.add_residuals(lambda a, b: ag.sum(a) - ag.sum(b), x[long], x[longer])


@pytest.mark.parametrize("fold", FOLDS)
def test_each_fold_is_what_its_unrolled_form_is(fold: str) -> None:
    """Values and derivatives; also of what is the same for all items, and with padding."""
    b = Builder()
    x, p, position = b.item(0, 0), b.input(1, 0), b.item(2, 0)
    inner = b.apply("mul", b.apply("sin", x), p)
    operands = (position,) if len(FOLDS[fold].operands) == 2 else ()
    outputs = [b.apply("mul", b.apply(fold, inner, *operands), p)]
    if fold == "sum_items":
        outputs.append(b.apply(fold, p))
    arguments = (Argument("x", (), True), Argument("p", ()), Argument("position", (), True))
    graph = Graph.build(b, outputs, arguments, None)
    length, padding = 7, 3
    items = np.random.default_rng(3).standard_normal((4, length + padding))
    p_values, places = np.linspace(-1.0, 2.0, 4), np.arange(length + padding, dtype=float)[None]
    valid = np.broadcast_to(np.arange(length + padding) < length, items.shape)
    flat, _ = unroll(graph, length)
    columns = [*items[:, :length].T, p_values, *np.broadcast_to(places.T, (10, 4))[:length]]
    for derive in (simplify, ag.jacobian):
        if derive is ag.jacobian:
            found = evaluate_rows(ag.jacobian(graph, [0, 1]), [items, p_values, places], valid)
            m = len(outputs)
            found = [np.broadcast_to(f, items.shape) for f in found]
            got = np.stack([
                np.column_stack([found[2 * i][:, :length], found[2 * i + 1][:, :1]])
                for i in range(m)
            ], axis=1)  # fmt: skip
            want = ag.jacobian(flat, list(range(length + 1)))(*columns)
        else:
            values = evaluate_rows(simplify(graph), [items, p_values, places], valid)
            got, want = np.concatenate(values, axis=1), flat(*columns)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_forward_and_reverse_agree_on_values_of_the_element() -> None:
    graph = trace_rows(
        lambda p, r: ag.sum([ag.norm(q - p) * ag.mean(r) for q in r]),
        [Argument("p", (3,)), Argument("r", (3,), True)],
        "both",
    )
    arrays = [RNG.random((5, 3)), RNG.random((5, 9, 3)), np.full(5, 9.0), np.arange(9.0)[None]]
    valid = np.ones((5, 9), np.bool_)
    components = [(0, k) for k in range(3)]
    sides = [
        np.concatenate(
            evaluate_rows(_jacobian(graph, components, forward=forward), arrays, valid), axis=1
        )
        for forward in (True, False)
    ]
    np.testing.assert_allclose(*sides, rtol=1e-12)


def test_energies_need_second_derivatives_and_are_refused() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    with pytest.raises(ag.TraceError, match=r"energy 'total'.*no second derivatives"):
        problem.add_energy(lambda r: ag.sum([ag.dot(q, q) for q in r]),
                           x[ag.Ragged([0, 40], np.arange(40))], name="total")  # fmt: skip


def test_second_derivatives_over_long_rows_are_refused() -> None:
    graph = trace_rows(lambda r: ag.sum(r), [Argument("r", (), True)], "total")
    for derive in (ag.hessian, ag.jvp, ag.vjp):
        with pytest.raises(ag.TraceError, match="is over long rows"):
            derive(graph)


def test_rows_of_blocks_on_a_manifold() -> None:
    """Items are elements of the manifold, and columns its tangent coordinates."""

    def mean_rotation(p: Any, rotations: Any) -> Any:
        return ag.mean([r.act(p) for r in rotations]) - p

    quaternions = RNG.standard_normal((50, 4))
    quaternions /= np.linalg.norm(quaternions, axis=1)[:, None]
    ends: list[Any] = []
    for unrolled in (True, False):
        problem = ag.Problem()
        x = problem.parameters("x", X[:2])
        q = problem.parameters("q", quaternions, manifold=ag.manifolds.SO3)
        rows = ag.Ragged([0, 40, 90], np.arange(90) % 50, unrolled)
        problem.add_residuals(mean_rotation, x, q[rows])
        assert problem.check_gradients(samples=2).ok
        ends.append(evaluate(problem, NUMPY if unrolled else NUMBA))
    assert ends[0].jacobian.shape == (6, 6 + 3 * 50)
    check(ends[1], ends[0], "float64")
