"""Rewriting: equal values, never more expensive, stable, and without recursion."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.ir import Argument, Builder
from autograd_gpu.ops import BOOL, NODE_OPS
from autograd_gpu.rewrite import IDENTITIES, RULES, factor, simplify
from random_graphs import Recipe, random_arrays, recipes
from tolerances import Tolerance

SAME = Tolerance(1e-11, 1e-11, "rules may reassociate literals and factor sums")
SAMPLES = np.array([-2.5, -1.0, -0.6, -1e-3, 0.25, 0.9, 1.0, 1.7, 3.0])


def evaluate(graph: Graph, arrays: list[Any]) -> Any:
    with np.errstate(all="ignore"):
        return graph(*arrays)


@given(recipes(), st.integers(0, 2**32))
def test_simplify_keeps_values_and_lowers_cost(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    simple = simplify(graph)
    arrays = random_arrays(recipe.widths, 50, seed)
    want = evaluate(graph, arrays)
    finite = np.isfinite(want)
    SAME.check(evaluate(simple, arrays)[finite], want[finite], str(graph))
    assert simple.stats.cost <= graph.stats.cost
    assert (simple.arguments, simple.output_shape) == (graph.arguments, graph.output_shape)


@given(recipes())
def test_simplify_is_idempotent(recipe: Recipe) -> None:
    once = simplify(recipe.trace())
    twice = simplify(once)
    assert twice.canonical.serial == once.canonical.serial
    assert twice.stats.cost == once.stats.cost


@given(recipes(), st.integers(0, 2**32))
def test_factor_keeps_values(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    arrays = random_arrays(recipe.widths, 20, seed)
    want = evaluate(graph, arrays)
    finite = np.isfinite(want)
    SAME.check(evaluate(factor(graph), arrays)[finite], want[finite], str(graph))


def _operand_shapes(b: Builder, x: int, y: int) -> list[int]:
    """Nodes of every shape that a rule looks for."""
    c = b.constant
    app = b.apply
    return [
        x, y, c(0.0), c(-0.0), c(1.0), c(-1.0), c(0.5), c(2.0), c(3.0), c(-0.7),
        app("neg", x), app("neg", y), app("mul", x, x), app("mul", c(3.0), x),
        app("mul", x, c(-2.0)), app("mul", app("mul", y, c(0.5)), x), app("div", c(2.0), x),
        app("sub", x, y), app("add", x, y), app("abs", x), app("sqrt", app("abs", x)),
        app("exp", x), app("hypot", x, y),
        app("where", app("lt", x, y), c(2.0), c(3.0)), app("where", app("lt", x, y), x, y),
    ]  # fmt: skip


def _conditions(b: Builder, x: int, y: int) -> list[int]:
    less, positive = b.apply("lt", x, y), b.apply("gt", x, b.constant(0.0))
    return [
        less, b.apply("logical_not", less), b.constant(True), b.constant(False), positive,
        b.apply("logical_and", less, positive), b.apply("logical_or", positive, less),
    ]  # fmt: skip


def _applications(op: str) -> Graph:
    """``op`` on all combinations of operand shapes, not rewritten."""
    b = Builder()
    x, y = b.input(0, 0), b.input(1, 0)
    reals, bools = _operand_shapes(b, x, y), _conditions(b, x, y)
    combinations: list[list[int]] = [[]]
    for dtype in NODE_OPS[op].operands:
        pool = bools if dtype == BOOL else reals
        combinations = [[*done, k] for done in combinations for k in pool]
    results = [b.apply(op, *operands) for operands in combinations]
    if NODE_OPS[op].result == BOOL:
        results = [b.apply("where", r, b.constant(1.0), b.constant(0.0)) for r in results]
    return Graph.build(b, results, (Argument("x", ()), Argument("y", ())))


@pytest.mark.parametrize("op", IDENTITIES)
def test_each_rule_keeps_values(op: str) -> None:
    graph = _applications(op)
    b = Builder(RULES)
    ids = b.absorb(graph.nodes)
    rewritten = Graph.build(b, [ids[o] for o in graph.outputs], graph.arguments, graph.output_shape)
    x, y = (a.ravel() for a in np.meshgrid(SAMPLES, SAMPLES + 0.03))
    want, got = evaluate(graph, [x, y]), evaluate(rewritten, [x, y])
    finite = np.isfinite(want)
    Tolerance(1e-13, 1e-13, "one rule at a time").check(got[finite], want[finite], op)
    assert rewritten.stats.cost < graph.stats.cost, "no rule applied"


def _single(fn: Callable[..., Any], *widths: int) -> str:
    """The simplified graph of one output, as an expression."""
    graph = simplify(ag.trace(fn, *widths))
    text: list[str] = []
    for node in graph.nodes:
        if node.op == "input":
            text.append("xyz"[node.payload[0]])  # type: ignore[index]
        elif node.op == "const":
            text.append(repr(node.payload))
        else:
            text.append(f"{node.op}({', '.join(text[a] for a in node.args)})")
    return text[graph.outputs[0]]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x, y: x + 0.0, "x"),
        (lambda x, y: 0.0 + x, "x"),
        (lambda x, y: x - 0.0, "x"),
        (lambda x, y: x - x, "0.0"),
        (lambda x, y: x * 1.0, "x"),
        (lambda x, y: x * 0.0, "0.0"),
        (lambda x, y: x + x, "mul(x, 2.0)"),
        (lambda x, y: 2.0 * x + 3.0 * x, "mul(x, 5.0)"),
        (lambda x, y: 2.0 * (3.0 * x), "mul(x, 6.0)"),
        (lambda x, y: -(-x), "x"),  # noqa: B002
        (lambda x, y: x - (-y), "add(x, y)"),
        (lambda x, y: -(x - y), "sub(y, x)"),
        (lambda x, y: x / 1.0, "x"),
        (lambda x, y: x / 4.0, "mul(x, 0.25)"),
        (lambda x, y: x**2, "mul(x, x)"),
        (lambda x, y: x**0.5, "sqrt(x)"),
        (lambda x, y: x**0, "1.0"),
        (lambda x, y: ag.sqrt(x * x), "abs(x)"),
        (lambda x, y: ag.abs(ag.abs(x)), "abs(x)"),
        (lambda x, y: ag.cos(-x), "cos(x)"),
        (lambda x, y: ag.sin(-x), "neg(sin(x))"),
        (lambda x, y: ag.minimum(x, x), "x"),
        (lambda x, y: ag.where(x < y, x, x), "x"),
        (lambda x, y: ag.where(~(x < y), x, y), "where(lt(x, y), y, x)"),
        (lambda x, y: ag.where((x < y) | ~(x < y), x, y), "x"),
        (lambda x, y: ag.where(~(x < y) & (x < y), x, y), "y"),
        (lambda x, y: ag.where((x < y) | ((x < y) & (x > 0)), x, y), "where(lt(x, y), x, y)"),
        (lambda x, y: ag.where((x > 0) & ((x < y) | (x > 0)), x, y), "where(gt(x, 0.0), x, y)"),
        (lambda x, y: ag.sin(ag.abs(x - x) + 1.0), repr(math.sin(1.0))),
        (lambda x, y: x * y + x * x, "mul(x, add(y, x))"),
    ],
)
def test_targeted_rewrites(fn: Callable[..., Any], expected: str) -> None:
    got = _single(fn, 1, 1)
    # Operand order of commutative ops is the arena's and means nothing.
    assert sorted(got) == sorted(expected), f"got {got}, expected {expected}"


@pytest.mark.parametrize("wide", [0.1, 0.3, 7.0, 10.0, 3.0])
def test_division_by_a_literal_stays_exact(wide: float) -> None:
    """Only powers of two become multiplications: x / 3 and x · (1/3) differ by an ulp."""
    x = np.linspace(-5, 5, 101)
    graph = simplify(ag.trace(lambda x: x / wide, 1))
    np.testing.assert_array_equal(graph(x), x / wide)


def test_common_subexpressions_exist_once() -> None:
    graph = simplify(
        ag.trace(lambda x, y: [ag.sin(x * y) + 1, ag.cos(y * x) * ag.sin(y * x)], 1, 1)
    )
    counts = dict(graph.stats.by_op)
    assert counts["sin"] == 1
    assert counts["mul"] == 2


def test_zeros_of_both_signs_are_different_literals() -> None:
    b = Builder(RULES)
    plus, minus = b.constant(0.0), b.constant(-0.0)
    assert plus != minus
    assert math.copysign(1.0, b.literal(plus) or 0.0) == 1.0
    assert struct.pack("<d", b.literal(minus)) == struct.pack("<d", -0.0)
    graph = simplify(ag.trace(lambda x: [ag.atan2(0.0, x), ag.atan2(-0.0, x)], 1))
    np.testing.assert_array_equal(graph(np.array([-1.0])), [[np.pi, -np.pi]])
    keys = {ag.trace(lambda x, z=z: ag.atan2(z, x), 1).key for z in (0.0, -0.0)}
    assert len(keys) == 2


def test_truth_values_and_numbers_are_different_literals() -> None:
    b = Builder(RULES)
    assert len({b.constant(True), b.constant(1.0), b.constant(False), b.constant(0.0)}) == 4


def test_literals_never_become_infinite() -> None:
    """No target has a literal for infinity: an overflow stays an operation, a value stays right."""
    x = np.array([1e-300, 2.0, 0.0])
    for fn in (
        lambda x: 1e200 * (1e200 * x),
        lambda x: 1.5e308 * x + 1.5e308 * x,
        lambda x: 1e200 * (1e200 / (1.0 + x)),
        lambda x: x / 1e-200 / 1e-200,
        lambda x: ag.exp(1000.0 + 0.0 * x),
    ):
        graph = ag.trace(fn, 1)
        simple = simplify(graph)
        for node in simple.nodes:
            assert node.op != "const" or math.isfinite(node.payload), f"{graph}\n{simple}"  # type: ignore[arg-type]
        np.testing.assert_allclose(evaluate(simple, [x]), evaluate(graph, [x]), rtol=1e-14)


def test_literals_do_not_vanish() -> None:
    """Two small factors must not merge into zero."""
    x = np.array([1e300, 1.0])
    for fn in (lambda x: 1e-200 * (1e-200 * x), lambda x: 1e-200 * (1e-200 / (1e-300 * x))):
        graph = ag.trace(fn, 1)
        np.testing.assert_allclose(simplify(graph)(x), graph(x), rtol=1e-14)


DEPTH = 100_000


def test_a_chain_100_000_deep_simplifies_differentiates_and_hashes() -> None:
    def chain(x: Any, y: Any) -> Any:
        for k in range(DEPTH // 2):
            x = ag.sin(x) + (y if k % 2 else 0.5)
        return x

    graph = ag.trace(chain, 1, 1)
    assert graph.stats.depth == DEPTH
    simple = simplify(graph)
    derivative = ag.jacobian(simple)
    assert len(graph.key) == len(derivative.key) == 32
    # Linear in the depth: a partial, a product and a sum for each step, in either mode.
    assert len(derivative.nodes) < 6 * DEPTH
    x, y = np.array([0.3]), np.array([0.1])
    np.testing.assert_allclose(simple(x, y), graph(x, y))
    step = 1e-6
    slope = (graph(x, y + step) - graph(x, y - step)) / (2 * step)
    np.testing.assert_allclose(derivative(x, y)[0, 0, 1], slope[0], rtol=1e-6)
    assert np.isfinite(derivative(x, y)).all()
    assert str(graph).count("\n") > DEPTH
