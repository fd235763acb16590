"""Problems: what elements gather, weights, frozen blocks, updates, evaluation, shared kernels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.runtime import numba_backend
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

Array = NDArray[Any]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
EXACT = tolerance("float64", GRAPH)


def evaluate(problem: ag.Problem, backend: Backend = NUMPY) -> Any:
    return problem.evaluate(
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )


def residuals_of(fn: Callable[..., Any], *arguments: Any, **keywords: Any) -> Array:
    """Residuals of one group, with arguments given as functions of the parameter array x."""
    problem = ag.Problem()
    x = problem.parameters("x", X)
    chosen = [a(x) if callable(a) else a for a in arguments]
    problem.add_residuals(fn, *chosen, **keywords)
    return evaluate(problem).residuals


X = np.random.default_rng(1).standard_normal((7, 3))
D = np.random.default_rng(2).standard_normal((7, 3))


# -- selections --------------------------------------------------------------------------------

SELECTIONS: dict[str, tuple[Callable[[Any], Any], Array]] = {
    "whole": (lambda x: x, np.arange(7)),
    "index list": (lambda x: x[[3, 3, 0]], np.array([3, 3, 0])),
    "index array": (lambda x: x[np.array([6, 2], np.uint8)], np.array([6, 2])),
    "slice": (lambda x: x[1:6:2], np.array([1, 3, 5])),
    "open slice": (lambda x: x[-3:], np.array([4, 5, 6])),
    "reversed slice": (lambda x: x[::-1], np.arange(7)[::-1]),
    "negative step": (lambda x: x[5:1:-2], np.array([5, 3])),
    "mask": (lambda x: x[np.arange(7) % 3 == 1], np.array([1, 4])),
    "slice of a slice": (lambda x: x[1::2][::-1], np.array([5, 3, 1])),
    "array of a slice": (lambda x: x[::-1][[0, 6, 2]], np.array([6, 0, 4])),
    "slice of an array": (lambda x: x[[5, 1, 2]][1:], np.array([1, 2])),
    "array of an array": (lambda x: x[[5, 1, 2]][[2, 2]], np.array([2, 2])),
    "mask of an array": (lambda x: x[[5, 1, 2]][[True, False, True]], np.array([5, 2])),
    "mask of a mask": (lambda x: x[X[:, 0] < 9][np.arange(7) > 4], np.array([5, 6])),
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_selections_are_those_of_numpy(name: str, backend: Backend) -> None:
    select, rows = SELECTIONS[name]
    problem = ag.Problem()
    x = problem.parameters("x", X)
    chosen = select(x)
    assert len(chosen) == len(rows)
    problem.add_residuals(lambda p, d: 2.0 * p - d, chosen, D[: len(rows)])
    found = evaluate(problem, backend)
    tolerance(backend.precision, GRAPH).check(
        found.residuals, (2.0 * X[rows] - D[: len(rows)]).ravel(), name
    )
    expected = np.zeros((3 * len(rows), X.size))
    columns = (3 * rows[:, None] + np.arange(3)).ravel()
    expected[np.arange(3 * len(rows)), columns] = 2.0
    assert np.array_equal(found.jacobian.toarray(), expected)


@pytest.mark.parametrize(
    "select", [lambda x: x[4], lambda x: x[::-1][2], lambda x: x[[0, 4]][np.int8(1)]]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_integer_is_one_block_for_all_elements(
    select: Callable[[Any], Any], backend: Backend
) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p, d: p * d, select(x), D)
    found = evaluate(problem, backend)
    tolerance(backend.precision, GRAPH).check(found.residuals, (X[4] * D).ravel(), "residuals")
    columns = found.jacobian[:, problem.columns(x)[4]].toarray()
    expected = (D[:, :, None] * np.eye(3)).reshape(-1, 3)
    tolerance(backend.precision, GRAPH).check(columns, expected, "shared block")
    assert found.jacobian.nnz == D.size


def test_one_block_and_shared_values_alone_are_one_element() -> None:
    found = residuals_of(lambda p, q, s: s * (p - q), lambda x: x[1], lambda x: x[2], 3.0)
    EXACT.check(found, 3.0 * (X[1] - X[2]), "one element")


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,), (6,), (3, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_data_of_any_trailing_shape(
    shape: tuple[int, ...], is_shared: bool, backend: Backend
) -> None:
    rng = np.random.default_rng(5)
    data = rng.standard_normal(shape if is_shared else (7, *shape))
    seen: list[Any] = []

    def residual(p: Any, d: Any) -> Any:
        seen.append(d)
        total = ag.sum(d) if shape else d
        return p * total

    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(residual, x, ag.shared(data) if is_shared else data)
    rows = np.broadcast_to(data, (7, *shape)).reshape(7, -1).sum(axis=1)
    found = evaluate(problem, backend).residuals
    tolerance(backend.precision, GRAPH).check(found, (X * rows[:, None]).ravel(), "residuals")
    assert getattr(seen[0], "shape", ()) == shape


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2.0), np.array(2.0), np.int64(2)], ids=repr)
def test_numbers_are_shared(value: Any) -> None:
    EXACT.check(residuals_of(lambda p, s: s * p, lambda x: x, value), 2.0 * X.ravel(), "2x")


@pytest.mark.parametrize(
    ("shape", "seen_shape"),
    [((7,), ()), ((7, 1), ()), ((7, 2), (2,)), ((7, 5), (5,)), ((7, 3, 3), (3, 3)),
     ((7, 2, 3), (2, 3))],
)  # fmt: skip
@pytest.mark.parametrize("backend", BACKENDS)
def test_block_widths(
    shape: tuple[int, ...], seen_shape: tuple[int, ...], backend: Backend
) -> None:
    array = np.random.default_rng(6).standard_normal(shape)
    seen: list[tuple[int, ...]] = []

    def residual(p: Any) -> Any:
        seen.append(getattr(p, "shape", ()))
        return p * 2.0 if not seen_shape else [p[0], ag.sum(p)]

    problem = ag.Problem()
    p = problem.parameters("p", array)
    problem.add_residuals(residual, p)
    found = evaluate(problem, backend)
    sums = array.reshape(7, -1).sum(axis=1, keepdims=True)
    rows = array.reshape(7, -1)
    first = rows[:, : shape[-1] if len(shape) == 3 else 1]
    expected = rows * 2.0 if not seen_shape else np.concatenate([first, sums], axis=1)
    tolerance(backend.precision, GRAPH).check(found.residuals, expected.ravel(), "residuals")
    assert seen == [seen_shape]
    assert problem.columns(p).shape == (7, array[0].size)
    assert found.jacobian.shape == (expected.size, array.size)
    one_step = ag.LevenbergMarquardtOptions(max_iterations=1)
    solution = ag.solve(problem, backend="numpy", options=one_step)
    assert solution.values["p"].shape == shape


def test_a_matrix_block_multiplies_vectors() -> None:
    rng = np.random.default_rng(7)
    matrices, vectors = rng.standard_normal((5, 3, 3)), rng.standard_normal((5, 3))
    problem = ag.Problem()
    m = problem.parameters("m", matrices)
    problem.add_residuals(lambda a, v: a @ v, m, vectors)
    found = evaluate(problem)
    EXACT.check(found.residuals, np.einsum("nij,nj->ni", matrices, vectors).ravel(), "product")
    expected = np.zeros((15, 45))
    for n in range(5):
        expected[3 * n : 3 * n + 3, 9 * n : 9 * n + 9] = np.kron(np.eye(3), vectors[n])
    EXACT.check(found.jacobian.toarray(), expected, "Jacobian")


# -- weights -----------------------------------------------------------------------------------

_rng = np.random.default_rng(8)
WEIGHTS: dict[str, Any] = {
    "number": 2.5,
    "one per element": _rng.standard_normal(7),
    "matrix for all": _rng.standard_normal((3, 3)),
    "shared matrix": _rng.standard_normal((3, 3)),
    "matrix per element": _rng.standard_normal((7, 3, 3)),
}


def weighted(weight: Any, rows: Array) -> Array:
    """Rows multiplied by hand."""
    w = np.asarray(weight)
    if w.ndim < 2:
        return w.reshape(-1, 1) * rows
    return np.einsum("nij,nj->ni", np.broadcast_to(w, (len(rows), 3, 3)), rows)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_multiply_residuals_and_jacobian(name: str, backend: Backend) -> None:
    weight = WEIGHTS[name]
    problem = ag.Problem()
    x = problem.parameters("x", X)
    given = ag.shared(weight) if name == "shared matrix" else weight
    problem.add_residuals(lambda p, d: p * p - d, x, D, weight=given, name="pull")
    found = evaluate(problem, backend)
    bound = tolerance(backend.precision, GRAPH)
    bound.check(found.residuals, weighted(weight, X * X - D).ravel(), "residuals")
    expected = np.zeros((21, 21))
    for n in range(7):
        w = np.asarray(weight)
        block = w if w.shape == (3, 3) else w[n] if w.shape else w
        block = block if np.ndim(block) == 2 else block * np.eye(3)
        expected[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] = block @ np.diag(2.0 * X[n])
    bound.check(found.jacobian.toarray(), expected, "Jacobian")
    problem.update(data={"pull": {"weight": 2.0 * np.asarray(weight)}})
    bound.check(
        evaluate(problem, backend).residuals, 2.0 * weighted(weight, X * X - D).ravel(), "updated"
    )


def test_weight_of_a_function_with_an_argument_named_weight() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(
        ag.meshes.energies.anchor, x, D, np.arange(7.0), weight=2.0, name="anchor"
    )
    rows = np.arange(7.0)[:, None] * (X - D)
    EXACT.check(evaluate(problem).residuals, 2.0 * rows.ravel(), "both weights")
    problem.update(data={"anchor": {"weight": np.ones(7)}})
    EXACT.check(evaluate(problem).residuals, 2.0 * (X - D).ravel(), "the argument")
    problem.update(data={"anchor": {"weight_of_residual": 5.0}})
    EXACT.check(evaluate(problem).residuals, 5.0 * (X - D).ravel(), "the factor")


# -- evaluation --------------------------------------------------------------------------------


def mixed_problem() -> tuple[ag.Problem, Any, Any]:
    """Groups of several widths, shared blocks, repeated blocks and a weight."""
    rng = np.random.default_rng(9)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((5, 3)))
    s = problem.parameters("s", rng.uniform(0.5, 1.5, 4))
    problem.add_residuals(
        lambda p, q, rest: ag.norm(q - p) - rest, x[[0, 1, 2, 3]], x[[1, 2, 3, 4]], 0.3, name="edge"
    )
    problem.add_residuals(
        lambda scale, p, d: [scale * p, ag.sin(scale) * d], s[2], x, rng.uniform(size=(5, 2)),
        weight=rng.uniform(0.5, 2.0, 5), name="scaled",
    )  # fmt: skip
    problem.add_residuals(lambda p, q: ag.cross(p, q), x[[0, 1]], x[[0, 4]], name="repeated")
    problem.add_residuals(lambda a, b: ag.exp(a - b) - 1.0, s, s[::-1], name="scalars")
    return problem, x, s


def dense_differences(problem: ag.Problem) -> Array:
    """dr/dp by central differences over every number of every parameter array."""
    start = {a.name: problem.values_of(a) for a in problem.arrays}
    columns: list[Array] = []
    for name, values in start.items():
        for k in range(values.size):
            sides: list[Array] = []
            for h in (1e-5, -1e-5):
                moved = values.copy()
                moved.flat[k] += h
                problem.update(**{name: moved})
                sides.append(problem.evaluate(backend="numpy").residuals)
            columns.append((sides[0] - sides[1]) / 2e-5)
        problem.update(**{name: values})
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_jacobian_gradient_and_cost_of_a_mixed_problem(backend: Backend) -> None:
    problem, x, s = mixed_problem()
    found = evaluate(problem, backend)
    differences = dense_differences(problem)
    scale = tolerance(backend.precision, GRAPH)
    bound = CENTRAL_DIFFERENCE if backend.precision == "float64" else scale
    assert found.jacobian.shape == differences.shape == (4 + 25 + 6 + 4, 15 + 4)
    bound.check(found.jacobian.toarray(), differences, "Jacobian")
    assert np.array_equal(problem.columns(x), np.arange(15).reshape(5, 3))
    assert np.array_equal(problem.columns(s), np.arange(15, 19).reshape(4, 1))
    scale.check(found.gradient, found.jacobian.toarray().T @ found.residuals, "gradient")
    scale.check(found.cost, 0.5 * found.residuals @ found.residuals, "cost")
    assert (found.backend, found.precision) == (backend.name, backend.precision)
    assert found.device and found.reason


def test_rows_come_in_the_order_added() -> None:
    problem, x, s = mixed_problem()
    p, scale = problem.values_of(x), problem.values_of(s)
    rows = evaluate(problem).residuals
    edges = np.linalg.norm(p[1:] - p[:-1], axis=1) - 0.3
    EXACT.check(rows[:4], edges, "first group")
    EXACT.check(rows[4 + 25 : 4 + 25 + 6], np.cross(p[[0, 1]], p[[0, 4]]).ravel(), "third group")
    EXACT.check(rows[-4:], np.exp(scale - scale[::-1]) - 1.0, "last group")
    assert [g.name for g in problem.groups] == ["edge", "scaled", "repeated", "scalars"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_twice_in_one_element_is_summed(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    i = np.arange(7)
    problem.add_residuals(lambda p, q: p * q + 3.0 * p, x[i], x[i])
    found = evaluate(problem, backend).jacobian
    assert found.nnz == X.size
    tolerance(backend.precision, GRAPH).check(
        found.toarray(), np.diag((2.0 * X + 3.0).ravel()), "Jacobian"
    )


def test_residuals_may_be_nested_and_ragged() -> None:
    rows = residuals_of(lambda p: [p[0], [p, (p.y * 2.0, 5.0)]], lambda x: x)
    expected = np.column_stack([X[:, 0], X, X[:, 1] * 2.0, np.full(7, 5.0)])
    EXACT.check(rows, expected.ravel(), "nested")


def test_a_group_that_ignores_its_parameters_has_no_columns() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p, d: d, x, D)
    for backend in (NUMPY, NUMBA):
        found = evaluate(problem, backend)
        assert found.jacobian.nnz == 0
        assert np.array_equal(found.residuals, D.ravel())


# -- freezing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([1, 3], [1, 3]), (np.arange(5) > 2, [3, 4]), (slice(None, 2), [0, 1]), (2, [2]),
     (np.int32(4), [4]), ((0, 1), [0, 1]), (None, [0, 1, 2, 3, 4])],
)  # fmt: skip
def test_frozen_blocks_have_no_columns(rows: Any, expected: list[int]) -> None:
    problem, x, s = mixed_problem()
    whole = evaluate(problem).jacobian.toarray()
    problem.freeze(x, rows)
    columns = problem.columns(x)
    frozen = np.isin(np.arange(5), expected)
    assert np.array_equal(problem.frozen_of(x), frozen)
    assert (columns[frozen] == -1).all()
    free = 3 * int((~frozen).sum())
    assert np.array_equal(columns[~frozen].ravel(), np.arange(free))
    assert np.array_equal(problem.columns(s).ravel(), free + np.arange(4))
    found = evaluate(problem)
    kept = np.concatenate([np.repeat(~frozen, 3), np.ones(4, bool)])
    assert np.array_equal(found.jacobian.toarray(), whole[:, kept])
    assert found.gradient.shape == (free + 4,)
    problem.unfreeze(x, rows)
    assert np.array_equal(evaluate(problem).jacobian.toarray(), whole)


def test_freezing_adds_up_and_unfreezing_takes_away() -> None:
    problem, x, _ = mixed_problem()
    problem.freeze(x, [0, 1])
    problem.freeze(x, [1, 2])
    problem.unfreeze(x, [0])
    assert np.flatnonzero(problem.frozen_of(x)).tolist() == [1, 2]
    problem.unfreeze(x)
    assert not problem.frozen_of(x).any()


# -- updates -----------------------------------------------------------------------------------


def test_updates_replace_numbers() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p, d: p - d, x, D, name="pull")
    problem.add_residuals(lambda p, a, b: a * p + b, x[0], 2.0, D, name="two")
    problem.update(x=2.0 * X, data={"pull": -D, "two": {"a": 3.0}})
    expected = np.concatenate([2.0 * X + D, 3.0 * 2.0 * X[0] + D])
    EXACT.check(evaluate(problem).residuals, expected.ravel(), "after the update")


def test_updates_compile_nothing_new_on_numba() -> None:
    problem, x, _ = mixed_problem()
    evaluate(problem, NUMBA)
    before = dict(numba_backend._compiled)
    new = problem.values_of(x) + 0.1
    problem.update(x=new, data={"edge": {"rest": 0.7}, "scaled": {"weight": np.ones(5)}})
    found = evaluate(problem, NUMBA)
    EXACT.check(found.residuals, evaluate(problem, NUMPY).residuals, "updated")
    assert list(numba_backend._compiled) == list(before)
    assert all(numba_backend._compiled[k] is v for k, v in before.items())


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", wgsl_adapters() or ("none",))
def test_updates_compile_nothing_new_on_a_device(adapter: str) -> None:
    device = device_on(adapter)
    problem, x, _ = mixed_problem()
    problem.evaluate(backend="wgsl", device=device)
    before = device.counters.snapshot()
    problem.update(x=problem.values_of(x) + 0.1)
    problem.evaluate(backend="wgsl", device=device)
    after_parameters = device.counters.snapshot()
    assert after_parameters.pipelines_created == before.pipelines_created
    assert after_parameters.buffers_created == before.buffers_created
    problem.update(data={"edge": {"rest": 0.7}})
    found = problem.evaluate(backend="wgsl", device=device)
    assert device.counters.pipelines_created == before.pipelines_created
    tolerance("float32", GRAPH).check(
        found.residuals, evaluate(problem, NUMPY).residuals, "updated"
    )


def test_a_refused_update_changes_nothing() -> None:
    problem, x, _ = mixed_problem()
    before = evaluate(problem).residuals
    with pytest.raises(ag.InputError):
        problem.update(x=problem.values_of(x) + 1.0, data={"nothing": 1.0})
    assert np.array_equal(evaluate(problem).residuals, before)


# -- kernels -----------------------------------------------------------------------------------


def kernel_count(problem: ag.Problem) -> int:
    return len({g.topology.key for g in problem.groups})


def test_groups_of_one_topology_share_a_kernel() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    y = problem.parameters("y", X + 1.0)
    problem.add_residuals(lambda p, d: ag.norm(p) - d, x, D[:, 0], name="a")
    problem.add_residuals(lambda p, d: ag.norm(p) - d, y[[1, 2]], 0.5, name="b")
    assert kernel_count(problem) == 1
    solution = ag.solve(problem, backend="numba")
    products = {k.name.rsplit("_", 1)[-1] for k in solution.kernels}
    assert len(solution.kernels) == len(products)


def test_renamed_and_reordered_arguments_share_a_kernel() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)

    def pull(p: Any, q: Any, rest: Any) -> Any:
        return ag.norm(q - p) * rest + q.x

    def draw(length: Any, other: Any, one: Any) -> Any:
        return one.x + length * ag.norm(one - other)

    problem.add_residuals(pull, x[[0, 1]], x[[2, 3]], np.array([1.0, 2.0]))
    problem.add_residuals(draw, np.array([1.0, 2.0]), x[[0, 1]], x[[2, 3]])
    assert kernel_count(problem) == 1
    found = evaluate(problem)
    EXACT.check(found.residuals[:2], found.residuals[2:], "residuals")
    rows = found.jacobian.toarray()
    EXACT.check(rows[:2], rows[2:], "Jacobian")


def test_different_functions_do_not_share_a_kernel() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", X)
    for fn in (lambda p: 2.0 * p, lambda p: 3.0 * p, lambda p: p * p):
        problem.add_residuals(fn, x)
    assert kernel_count(problem) == 3
    assert [g.name for g in problem.groups] == ["<lambda>", "<lambda>_2", "<lambda>_3"]


# -- gradient checks ---------------------------------------------------------------------------


def test_gradients_are_right() -> None:
    problem, x, _ = mixed_problem()
    problem.freeze(x, [0])
    found = problem.check_gradients()
    assert found.ok, str(found)
    assert [g.name for g in found.groups] == ["edge", "scaled", "repeated", "scalars"]
    assert str(found).count(": ok,") == 4


def test_a_wrong_rule_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(NODE_OPS["tanh"], partials=(lambda m, a, y: y,))
    monkeypatch.setitem(NODE_OPS, "tanh", wrong)
    problem = ag.Problem()
    x = problem.parameters("x", X)
    problem.add_residuals(lambda p: p * 2.0, x, name="right")
    problem.add_residuals(lambda p: [p.x, ag.tanh(p.y)], x, name="wrong")
    found = problem.check_gradients()
    assert not found.ok
    assert [g.ok for g in found.groups] == [True, False]
    worst = found.groups[1]
    assert (worst.row, worst.column) == (1, 1)
    expected = 1.0 - np.tanh(X[worst.element, 1]) ** 2
    assert worst.difference == pytest.approx(expected, rel=1e-6)
    assert "wrong: WRONG" in str(found)


# -- arrays of the user ------------------------------------------------------------------------


def digest(arrays: list[Array]) -> list[str]:
    return [hashlib.blake2b(a.tobytes()).hexdigest() for a in arrays]


def test_arrays_given_are_neither_changed_nor_shared() -> None:
    rng = np.random.default_rng(10)
    start, data = rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
    weight = rng.uniform(size=6)
    index = np.arange(6)[::-1].copy()
    mask = np.arange(6) > 3
    given = [start, data, weight, index, mask]
    for array in given:
        array.setflags(write=False)
    before = digest(given)
    problem = ag.Problem()
    x = problem.parameters("x", start)
    problem.add_residuals(lambda p, d: p - d, x[index], data, weight=weight)
    problem.freeze(x, mask)
    for backend in ("numpy", "numba"):
        solution = ag.solve(problem, backend=backend)
        assert not np.shares_memory(solution.values["x"], start)
    assert digest(given) == before
    problem.values_of(x)[:] = 7.0
    problem.frozen_of(x)[:] = True
    problem.columns(x)[:] = 7
    assert np.array_equal(problem.values_of(x), start)
    assert np.array_equal(problem.frozen_of(x), mask)
    for array in given:
        array.setflags(write=True)
    rows = evaluate(problem).residuals
    for array in given:
        array[:] = 0
    assert np.array_equal(evaluate(problem).residuals, rows)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, ">f8"])
def test_any_layout_and_real_dtype_is_taken(order: Any, kind: Any) -> None:
    array = np.asarray(np.round(10 * X), dtype=kind, order=order)
    strided = np.repeat(array, 2, axis=0)[::2]
    problem = ag.Problem()
    x = problem.parameters("x", array)
    problem.add_residuals(lambda p, d: p + d, x, strided)
    for backend in (NUMPY, NUMBA):
        assert np.array_equal(evaluate(problem, backend).residuals, 2 * np.round(10 * X).ravel())


def test_a_problem_describes_itself() -> None:
    problem, x, _ = mixed_problem()
    assert "edge × 4" in repr(problem)
    assert "x (5, 3)" in repr(problem)
    assert repr(x) == "<parameters 'x': 5 blocks of shape (3,)>"
    assert repr(x[2]) == "<one block of parameters 'x'>"
    assert repr(x[1:]) == "<4 blocks of parameters 'x'>"


@pytest.mark.parametrize("backend", ["numpy", "numba", *wgsl_adapters()])
def test_minimum_and_maximum_do_not_hide_nan(backend: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [-1.0])
    for name, fn in {
        "first": lambda v: ag.maximum(ag.log(v), 0.0),
        "second": lambda v: ag.minimum(3.0, ag.log(v)),
        "relu": lambda v: ag.relu(ag.log(v)),
        "clip": lambda v: ag.clip(ag.log(v), -1.0, 1.0),
    }.items():
        problem.add_residuals(fn, x, name=name)
    wgsl = backend not in ("numpy", "numba")
    found = problem.evaluate(
        backend="wgsl" if wgsl else backend, device=backend if wgsl else None
    ).residuals
    assert np.isnan(found).all()
