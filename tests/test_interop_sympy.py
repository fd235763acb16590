"""SymPy: graphs there and back, residuals given as expressions, a second oracle of derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu import Graph, interop
from autograd_gpu.ops import BOOL, NODE_OPS, OPS, Op
from random_graphs import TERNARY, Array, Recipe, random_arrays, recipes, smooth_points
from tolerances import Tolerance

SAME = Tolerance(1e-9, 1e-9, "two spellings of tens of float64 operations")
SAME_OP = Tolerance(1e-12, 1e-12, "two spellings of one op, log(1 + x) for log1p(x) among them")

x, y, z = sympy.symbols("x y z", real=True)
each_op = pytest.mark.parametrize("row", OPS.values(), ids=lambda row: row.name)


def traced(row: Op) -> Graph:
    """The op on real arguments; truth values come from numbers and become numbers."""

    def residual(*operands: Any) -> Any:
        lifted = [v > 0.5 if t == BOOL else v for v, t in zip(operands, row.operands, strict=True)]
        result = lifted[0].applied(row, lifted)
        return ag.where(result, 1.0, 0.0) if row.result == BOOL else result

    return ag.trace(residual, *[1] * row.arity)


def sample(row: Op, count: int = 200) -> list[Array]:
    rng = np.random.default_rng(len(row.name))
    return [rng.uniform(*interval, count) for interval in row.domain]


def by_sympy(expressions: Any, symbols: list[Any], columns: list[Array]) -> Array:
    """SymPy's own evaluation, ``(batch, expressions)``; nothing of ours is involved."""
    # Almost everywhere steps have slope 0 and an impulse is nowhere.
    steps = (sympy.Derivative, sympy.Subs)
    flat = [sympy.sympify(e).replace(lambda e: isinstance(e, steps), lambda e: 0 * e.args[0])
            for e in sympy.flatten([expressions])]  # fmt: skip
    modules: Any = [{"DiracDelta": lambda x, order=0: np.zeros_like(x)}, "scipy", "numpy"]
    function = sympy.lambdify(symbols, flat, modules=modules, cse=True)
    with np.errstate(all="ignore"):
        values = function(*columns)
    return np.stack([np.broadcast_to(v, columns[0].shape) for v in values], axis=1).astype(float)


def columns_of(arrays: list[Array]) -> list[Array]:
    return [a.reshape(len(a), -1)[:, k] for a in arrays for k in range(a[0].size)]


MOST_CASES = 3
"""Steps with a case distinction: where one decides another, SymPy multiplies their cases out."""


def has_few_cases(recipe: Recipe) -> bool:
    return sum(step.op in TERNARY and step.op != "clip" for step in recipe.steps) <= MOST_CASES


# -- there and back ------------------------------------------------------------------------------


@each_op
def test_every_op_comes_back(row: Op) -> None:
    graph = traced(row)
    back = interop.from_sympy(*interop.to_sympy(graph))
    arrays = sample(row)
    arrays = [np.concatenate([a, [s.at[k] for s in row.singular if abs(max(s.at)) < 100]])
              for k, a in enumerate(arrays)]  # fmt: skip
    SAME_OP.check(back(*arrays), graph(*arrays), row.name)


@given(recipes(max_steps=16).filter(has_few_cases), st.integers(0, 2**32))
def test_random_graphs_come_back(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    symbolic = interop.to_sympy(graph)
    back = interop.from_sympy(*symbolic)
    assert [a.shape for a in back.arguments] == [a.shape for a in graph.arguments]
    assert back.output_shape == graph.output_shape
    arrays = random_arrays(recipe.widths, 40, seed)
    fair = smooth_points(graph, arrays)
    assume(fair.any())
    SAME.check(back(*arrays)[fair], graph(*arrays)[fair], str(symbolic.expressions))


def test_shapes_names_and_symbols() -> None:
    graph = ag.trace(lambda p, M, k: [(M @ p) * k, p], 2, (2, 2), 1)
    symbolic = interop.to_sympy(graph)
    assert {k: str(v) for k, v in symbolic.arguments.items()} == {
        "p": "(p_0, p_1)", "M": "Matrix([[M_0_0, M_0_1], [M_1_0, M_1_1]])", "k": "k",
    }  # fmt: skip
    assert symbolic.expressions.shape == (2, 2)
    back = interop.from_sympy(*symbolic)
    assert [(a.name, a.shape) for a in back.arguments] == [("p", (2,)), ("M", (2, 2)), ("k", ())]
    assert back.output_shape == (2, 2)
    halves = interop.to_sympy(ag.trace(lambda x: 0.5 * x + 0.1, 1)).expressions
    assert str(halves) == "x/2 + 0.1"
    cube = ag.trace(lambda v: [[[v, v]], [[v, 2 * v]]], 1)
    flat = interop.from_sympy(*interop.to_sympy(cube))
    assert flat.output_shape == cube.output_shape


# -- residuals as expressions --------------------------------------------------------------------


def test_expressions_are_residuals() -> None:
    p, q = sympy.MatrixSymbol("p", 3, 1), sympy.symbols("q0:3")
    rest = sympy.Symbol("rest")
    difference = sympy.Matrix(p) - sympy.Matrix(q)
    length = sympy.sqrt(sum(d**2 for d in difference))
    spring = interop.from_sympy(length - rest, {"p": p, "q": q, "rest": rest}, name="spring")
    assert spring.stats.ops == ag.trace(lambda p, q, d: ag.norm(q - p) - d, 3, 3, 1).stats.ops

    def solved(residual: Any) -> ag.Solution:
        points = np.random.default_rng(0).normal(size=(6, 3))
        problem = ag.Problem()
        v = problem.parameters("v", points)
        i = np.arange(6)
        problem.add_residuals(residual, v[i], v[(i + 1) % 6], np.ones(6))
        problem.add_residuals(lambda p, c: 0.1 * (p - c), v, points)
        return ag.solve(problem, backend="numpy")

    mine = solved(spring)
    plain = solved(lambda p, q, rest: ag.norm(q - p) - rest)
    assert mine.success
    assert mine.cost == pytest.approx(plain.cost, rel=1e-12)


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        (x**3 / y - 2 * z, lambda x, y, z: x**3 / y - 2 * z),
        (sympy.sec(x) + sympy.coth(y) + sympy.asinh(z),
         lambda x, y, z: 1 / np.cos(x) + 1 / np.tanh(y) + np.arcsinh(z)),
        (sympy.Piecewise((x, x > y), (z, x <= y)), lambda x, y, z: np.where(x > y, x, z)),
        (sympy.Max(x, y, z) * sympy.Min(x, 2, z),
         lambda x, y, z: np.maximum(np.maximum(x, y), z) * np.minimum(np.minimum(x, 2), z)),
        (sympy.Mod(x, y) + sympy.pi * sympy.E, lambda x, y, z: np.mod(x, y) + np.pi * np.e),
        (x ** sympy.Rational(5, 2) + y**-1.5 + z**0.3, lambda x, y, z: x**2.5 + y**-1.5 + z**0.3),
        (2**x + sympy.exp(y) + sympy.log(z, 2), lambda x, y, z: 2**x + np.exp(y) + np.log2(z)),
        (sympy.Heaviside(x - y) + sympy.erfc(z),
         lambda x, y, z: (x > y) + 1 - np.array([float(sympy.erf(v)) for v in z])),
        (x**100, lambda x, y, z: x**100),
        (sympy.Integer(7), lambda x, y, z: 7.0 + 0 * x),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, sympy.Basic) else "",
)  # fmt: skip
def test_functions_of_sympy(expression: Any, want: Any) -> None:
    graph = interop.from_sympy([expression], [x, y, z])
    columns = list(np.random.default_rng(0).uniform(0.1, 2.0, (3, 50)))
    SAME_OP.check(graph(*columns)[:, 0], want(*columns), str(expression))


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        (sympy.gamma(x), "gamma has no counterpart"),
        (sympy.Symbol("other") + x, "the symbol other is no argument"),
        (x + sympy.I, "ImaginaryUnit"),
        (sympy.Piecewise((x, x > 0)), r"end it with \(expression, True\)"),
        (sympy.oo * sympy.Symbol("x", positive=True), "."),
        (x > 0, "truth value"),
    ],
    ids=str,
)
def test_what_has_no_counterpart_is_named(expression: Any, named: str) -> None:
    with pytest.raises(ag.TraceError, match=named):
        interop.from_sympy(expression, [x, y])


@pytest.mark.parametrize("arguments", [[x + 1], [x, x], {"p": (x, 2)}], ids=str)
def test_arguments_are_distinct_symbols(arguments: Any) -> None:
    with pytest.raises(ag.InputError, match="expected a symbol that no other place has"):
        interop.from_sympy(x, arguments)


# -- the second oracle of derivatives ------------------------------------------------------------


@each_op
def test_derivatives_of_every_op_are_those_of_sympy(row: Op) -> None:
    graph = traced(row)
    symbolic = interop.to_sympy(graph)
    symbols = list(symbolic.arguments.values())
    arrays = sample(row)
    if row.name == "mod":  # off its jumps
        arrays[0] = arrays[1] * (np.floor(arrays[0]) + 0.3)
    first = [symbolic.expressions.diff(s) for s in symbols]
    got = ag.jacobian(graph)(*arrays)[:, 0]
    SAME_OP.check(got, by_sympy(first, symbols, arrays), f"{row.name}: {first}")
    second = [d.diff(s) for d in first for s in symbols]
    got = ag.hessian(graph)(*arrays).reshape(len(got), -1)
    SAME.check(got, by_sympy(second, symbols, arrays), f"{row.name}, second: {second}")


@settings(max_examples=25)
@given(recipes(max_steps=7).filter(has_few_cases), st.integers(0, 2**32))
def test_derivatives_of_random_graphs_are_those_of_sympy(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    symbolic = interop.to_sympy(graph)
    symbols = sympy.flatten(list(symbolic.arguments.values()))
    arrays = random_arrays(recipe.widths, 30, seed)
    fair = smooth_points(graph, arrays)
    assume(fair.any())
    derivatives = [e.diff(s) for e in symbolic.expressions for s in symbols]
    with np.errstate(all="ignore"):
        got = ag.jacobian(graph)(*arrays).reshape(30, -1)
    want = by_sympy(derivatives, symbols, columns_of(arrays))
    settled = fair[:, None] & np.isfinite(want)
    assert settled[fair].mean() > 0.9
    SAME.check(got[settled], want[settled], str(symbolic.expressions))


def test_every_node_has_a_spelling() -> None:
    assert [name for name, row in NODE_OPS.items() if not row.sympy] == []
