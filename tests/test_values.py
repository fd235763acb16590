"""Eager Values: every op against the oracle, reverse mode, leaf identity, modes."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu.ops import BOOL, OPS, Op
from autograd_gpu.scalar import apply
from random_graphs import Recipe, random_arrays, recipes, smooth_points
from tolerances import DERIVATIVE, GRAPH, VALUE, tolerance

each_row = pytest.mark.parametrize("row", OPS.values(), ids=lambda row: row.name)
REAL_ROWS = [row for row in OPS.values() if row.result != BOOL and BOOL not in row.operands]
each_real_row = pytest.mark.parametrize("row", REAL_ROWS, ids=lambda row: row.name)


def samples(row: Op, count: int = 12) -> Any:
    """Operands inside the domain, ``(count, arity)``; truth values are 0 or 1."""
    rng = np.random.default_rng(sum(map(ord, row.name)))
    points = np.array([rng.uniform(low, high, count) for low, high in row.domain]).T
    truth = [kind == BOOL for kind in row.operands]
    points[:, truth] = points[:, truth] > 0.5
    return points


def leaves(row: Op, point: Any) -> list[Any]:
    """Operands as Values; truth values as conditions."""
    return [
        ag.Value(x) > 0.5 if kind == BOOL else ag.Value(x)
        for x, kind in zip(point, row.operands, strict=True)
    ]


@each_row
def test_value_of_every_op(row: Op) -> None:
    for point in samples(row):
        result = apply(row.name, *leaves(row, point))
        typed = [bool(x) if k == BOOL else x for x, k in zip(point, row.operands, strict=True)]
        want = row.numpy(*typed)
        assert type(result.data) is (bool if row.result == BOOL else float)
        tolerance("float64", VALUE).check(result.data, want, row.name)


@each_real_row
def test_gradient_of_every_op(row: Op) -> None:
    graph = ag.trace(lambda *v: apply(row.name, *v), *[1] * row.arity)
    jacobian = ag.jacobian(graph)
    for point in samples(row):
        operands = leaves(row, point)
        apply(row.name, *operands).backward()
        want = jacobian(*point)[0]
        tolerance("float64", DERIVATIVE).check([v.grad for v in operands], want, row.name)


@each_real_row
def test_gradient_at_documented_singular_points(row: Op) -> None:
    for point in row.singular:
        operands = leaves(row, point.at)
        result = apply(row.name, *operands)
        result.backward()
        tolerance("float64", VALUE).check(result.data, point.value, row.name)
        grads = [v.grad for v in operands]
        tolerance("float64", DERIVATIVE).check(grads, point.partials, row.name)


@settings(max_examples=60)
@given(recipes(), st.integers(0, 10**6))
def test_eager_agrees_with_traced(recipe: Recipe, seed: int) -> None:
    """Value and gradient of random expressions, where no kink is near."""
    arrays = random_arrays(recipe.widths, 1, seed)
    graph = recipe.trace()
    arguments: list[Any] = []
    flat: list[ag.Value] = []
    for array in arrays:
        numbers = [ag.Value(x) for x in array[0].ravel()] if array.ndim > 1 else None
        if numbers is None:
            arguments.append(ag.Value(float(array[0])))
            flat.append(arguments[-1])
        else:
            arguments.append(ag.vector.vector(numbers))
            flat += numbers
    results = recipe(*arguments)
    want = graph(*arrays)[0]
    tolerance("float64", GRAPH).check([r.data for r in results], want, "values")
    if not smooth_points(graph, arrays)[0]:
        return
    oracle = ag.jacobian(graph)(*arrays)[0]
    if not np.isfinite(oracle).all():
        return
    for k, result in enumerate(results):
        result.zero_grad()
        for leaf in flat:
            leaf.grad = 0.0
        result.backward()
        tolerance("float64", GRAPH).check([v.grad for v in flat], oracle[k], f"gradient {k}")


def test_the_example_of_the_documentation() -> None:
    a, b = ag.Value(2.0, name="a"), ag.Value(3.0, name="b")
    y = ag.log(a * b + ag.sin(a))
    y.backward()
    inner = 6.0 + math.sin(2.0)
    assert y.data == pytest.approx(math.log(inner), rel=1e-15)
    assert a.grad == pytest.approx((3.0 + math.cos(2.0)) / inner, rel=1e-15)
    assert b.grad == pytest.approx(2.0 / inner, rel=1e-15)


def test_gradients_accumulate_until_they_are_zeroed() -> None:
    a = ag.Value(3.0)
    y = a * a
    y.backward()
    y.backward(2.0)
    assert a.grad == 18.0
    y.zero_grad()
    assert a.grad == 0.0 == y.grad


def test_a_shared_subexpression_is_passed_once() -> None:
    a = ag.Value(1.5)
    s = a * a
    (s * s + s).backward()
    assert a.grad == pytest.approx(4 * 1.5**3 + 2 * 1.5)


def test_a_chain_of_100_000_is_no_problem() -> None:
    a = ag.Value(0.5)
    y = a
    for _ in range(100_000):
        y = y + 1e-6
    y.backward()
    assert a.grad == 1.0
    assert y.data == pytest.approx(0.6)
    del y  # and its destruction does not recurse either


def test_leaves_are_told_apart_by_object() -> None:
    a, b = ag.Value(1.0, name="x"), ag.Value(1.0, name="x")
    (a * 2.0 + b * 3.0).backward()
    assert (a.grad, b.grad) == (2.0, 3.0)
    assert bool(a == b)
    assert len({a: 1, b: 2}) == 2


def test_only_the_taken_arm_of_where_gets_a_gradient() -> None:
    x = ag.Value(-1.0)
    y = ag.where(x > 0.0, ag.log(x), 2.0 * x)  # log(-1) is NaN, and so is its gradient
    y.backward()
    assert (y.data, x.grad) == (-2.0, 2.0)


def test_no_gradient_where_none_is_required() -> None:
    a, target = ag.Value(2.0), ag.Value(5.0, requires_grad=False)
    ((a - target) ** 2).backward()
    assert (a.grad, target.grad) == (-6.0, 0.0)


def test_no_grad_leaves_no_history() -> None:
    a = ag.Value(2.0)
    with ag.no_grad():
        y = ag.exp(a) * a
    assert not y.requires_grad
    y.backward()
    assert a.grad == 0.0
    (a * y).backward()
    assert a.grad == pytest.approx(2.0 * math.exp(2.0))


def test_reductions_over_lists() -> None:
    numbers = [3.0, -4.0, 12.0]
    for reduce, want, grads in [
        (ag.sum, 11.0, [1.0, 1.0, 1.0]),
        (ag.mean, 11.0 / 3.0, [1 / 3] * 3),
        (ag.min, -4.0, [0.0, 1.0, 0.0]),
        (ag.max, 12.0, [0.0, 0.0, 1.0]),
        (ag.norm, 13.0, [3 / 13, -4 / 13, 12 / 13]),
        (lambda v: ag.dot(v, [1.0, 2.0, 3.0]), 31.0, [1.0, 2.0, 3.0]),
    ]:
        values = [ag.Value(x) for x in numbers]
        result: Any = reduce(values)
        result.backward()
        assert result.data == pytest.approx(want)
        assert [v.grad for v in values] == pytest.approx(grads)


@pytest.mark.parametrize(
    "op", [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow,
           operator.mod, operator.floordiv, operator.lt, operator.ge, operator.eq],
)  # fmt: skip
def test_operators_take_numbers_on_either_side(op: Any) -> None:
    a, b = ag.Value(2.5), ag.Value(1.25)
    want = op(2.5, 1.25)
    assert op(a, b).data == op(a, 1.25).data == op(2.5, b).data == want
    assert op(np.float64(2.5), b).data == op(a, np.array(1.25)).data == want


def test_numpy_and_vectors_of_values() -> None:
    p = ag.Vec3([ag.Value(x) for x in (1.0, 2.0, 3.0)])
    q = np.array([0.5, -1.0, 2.0])
    assert ag.dot(p, q).data == pytest.approx(np.dot([1, 2, 3], q))
    want = np.cross([1.0, 2.0, 3.0], q)
    assert [c.data for c in ag.cross(p, q)] == pytest.approx(want)
    assert np.sin(p.x).data == pytest.approx(math.sin(1.0))


def test_a_branch_decides_by_the_number() -> None:
    a = ag.Value(2.0)
    assert (a if a > 1.0 else -a) is a
    assert float(a) == 2.0
    assert bool(ag.logical_and(a > 1.0, ~(a > 3.0)))


def test_edited_leaves_and_refused_edits() -> None:
    a = ag.Value(2.0)
    y = a * 3.0
    a.data = 4.0
    assert y.data == 6.0  # eager: what was computed stays
    assert (a * 3.0).data == 12.0
    with pytest.raises(ag.InputError, match="edit the leaves"):
        y.data = 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, "three", None])
def test_a_leaf_is_a_finite_number(bad: Any) -> None:
    with pytest.raises(ag.InputError, match="Value 'a'"):
        ag.Value(bad, name="a")


def test_misuse_is_named() -> None:
    a = ag.Value(2.0)
    with pytest.raises(ag.TraceError, match="compare it first"):
        ag.logical_not(a)
    with pytest.raises(ag.TraceError, match="differentiates a condition"):
        (a > 1.0).backward()
    with pytest.raises(ag.TraceError, match="add_residuals as an argument"):
        ag.trace(lambda x: x * a, 1)
    with pytest.raises(ag.TraceError, match="add_residuals as an argument"):
        ag.trace(lambda x: a * x, 1)
