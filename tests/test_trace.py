"""Tracing: what a residual function may do, and what an error says where it may not."""

from __future__ import annotations

import linecache
import math
import operator
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu import Matrix, Scalar, Vec2, Vec3, Vec4, Vector
from autograd_gpu.errors import ShapeError, TraceError

# No quotient is an integer: Python's // and % round there with the exact quotient, and a target
# has only the rounded one.
X = np.array([0.7, -0.4, 2.0, 1.0])
Y = np.array([1.3, 0.6, 0.5, 1.0])
U = np.array([[0.3, -1.2, 2.0], [1.1, 0.5, -0.25], [2.0, 2.0, 0.1]])
V = np.array([[1.5, 0.4, -0.6], [0.2, 0.9, 1.1], [-1.0, 3.0, 2.0]])
M = np.linspace(-1, 2, 27).reshape(3, 3, 3) ** 2


def same(fn: Callable[..., Any], *arrays: Any) -> None:
    """The traced graph gives what the function gives on each element's plain numbers."""
    widths = [1 if a.ndim == 1 else a.shape[1:] for a in arrays]
    got = ag.trace(fn, *widths)(*arrays)
    want = np.array([np.asarray(fn(*(a[e] for a in arrays)), float) for e in range(len(got))])
    np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-14, atol=1e-14)


# -- scalars -------------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.mod,
          operator.floordiv]  # fmt: skip


@pytest.mark.parametrize("op", BINARY, ids=lambda op: op.__name__)
def test_binary_operators(op: Callable[..., Any]) -> None:
    same(op, X, Y)
    same(lambda x: op(x, 1.5), X)
    same(lambda y: op(1.5, y), Y)
    same(lambda y: op(2, y), Y)
    same(lambda u, v: op(u, v), U, np.abs(V))
    same(lambda u, y: op(u, y), U, Y[:3])
    same(lambda u: op(u, 1.5), U)
    same(lambda v: op(1.7, v), np.abs(V))


def test_powers() -> None:
    same(lambda x, y: abs(x) ** y, X, Y)
    same(lambda x: x**2 + x**-1 + x**0, X)
    same(lambda y: 2.0**y, Y)
    same(lambda v: v**2, V)
    same(lambda v: 2.0**v, V)


def test_unary_operators_and_python_functions() -> None:
    same(lambda x: [-x, +x, abs(x)], X)
    same(lambda x: [math.floor(x), math.ceil(x), round(x)], X)
    same(lambda v: [-v, +v, abs(v)], V)


COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("op", COMPARISONS, ids=lambda op: op.__name__)
def test_comparisons_and_where(op: Callable[..., Any]) -> None:
    same(lambda x, y: ag.where(op(x, y), x, 2 * y), X, Y)
    same(lambda x: ag.where(op(x, 1.0), 1.0, 0.0), X)
    same(lambda x: ag.where(op(1.0, x), 1.0, 0.0), X)
    same(lambda u, v: ag.where(op(u, v), u, v), U, V)


def test_logic_of_truth_values() -> None:
    for fn in (
        lambda a, b: a & b, lambda a, b: a | b, lambda a, b: ~a, ag.logical_and, ag.logical_or,
        lambda a, b: ag.logical_not(b), np.logical_and, np.logical_or,
    ):  # fmt: skip
        same(lambda x, y, fn=fn: ag.where(fn(x > 0.5, y > 0.8), x, y), X, Y)


def test_a_truth_value_counts_as_0_or_1() -> None:
    graph = ag.trace(lambda x, y: (x > 0) + (y > 1) * 2.0, 1, 1)
    np.testing.assert_array_equal(graph(X, Y), (X > 0) + 2.0 * (Y > 1))


UFUNCS = [
    np.sin, np.cos, np.tan, np.arcsin, np.arccos, np.arctan, np.sinh, np.cosh, np.tanh, np.exp,
    np.expm1, np.log, np.log1p, np.sqrt, np.cbrt, np.absolute, np.fabs, np.sign, np.floor, np.ceil,
    np.rint, np.negative, np.positive, np.square, np.reciprocal,
]  # fmt: skip
BINARY_UFUNCS = [
    np.add, np.subtract, np.multiply, np.divide, np.true_divide, np.power, np.float_power,
    np.minimum, np.maximum, np.fmin, np.fmax, np.remainder, np.mod, np.hypot, np.arctan2,
]  # fmt: skip


@pytest.mark.parametrize("ufunc", UFUNCS, ids=lambda f: f.__name__)
def test_unary_ufuncs(ufunc: Callable[..., Any]) -> None:
    x = np.array([0.1, 0.5, 0.9])
    same(ufunc, x)
    same(ufunc, np.stack([x, x / 2, x**2], axis=1))


@pytest.mark.parametrize("ufunc", BINARY_UFUNCS, ids=lambda f: f.__name__)
def test_binary_ufuncs(ufunc: Callable[..., Any]) -> None:
    same(ufunc, np.abs(X), Y)
    same(lambda x: ufunc(x, 2.0), np.abs(X))
    same(lambda v: ufunc(np.array([1.0, 2.0, 3.0]), v), np.abs(V))


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int32, np.int64, np.bool_, np.array])
def test_numpy_numbers_on_either_side(kind: Callable[..., Any]) -> None:
    same(lambda x: kind(1) * x + x * kind(1) - kind(1), X)
    same(lambda v: kind(1) * v + v * kind(1) - kind(1), V)


# -- vectors -------------------------------------------------------------------------------------


def test_classes_by_width() -> None:
    seen: list[Any] = []

    def fn(*arguments: Any) -> Any:
        seen.extend(arguments)
        return arguments[0]

    ag.trace(fn, 1, 2, 3, 4, 5, (1,), (2, 3))
    assert [type(v) for v in seen] == [Scalar, Vec2, Vec3, Vec4, Vector, Vector, Matrix]
    assert [len(v) for v in seen[1:]] == [2, 3, 4, 5, 1, 2]
    assert seen[6].shape == (2, 3)


def test_indexing_slicing_unpacking_and_names() -> None:
    same(lambda v: [v[0], v[-1], *v[1:], *v[::-1], *v[[2, 0]]], U)
    np.testing.assert_array_equal(ag.trace(lambda v: [v.z, v.y, v.x], 3)(U), U[:, ::-1])
    same(lambda v: [a * b for a, b in pairwise(v)], U)

    def unpacked(v: Any) -> Any:
        x, y, z = v
        return x + 2 * y + 3 * z

    same(unpacked, U)
    ag.trace(lambda v: v.w, 4)
    with pytest.raises(TraceError, match="component w of a vector of 3"):
        ag.trace(lambda v: v.w, 3)


def test_an_index_past_the_end_names_the_line() -> None:
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+.*\n.*IndexError"):
        ag.trace(lambda v: v[3], 3)


def test_vector_functions() -> None:
    same(lambda u, v: ag.dot(u, v), U, V)
    same(lambda u, v: u @ v, U, V)
    same(ag.cross, U, V)
    same(ag.norm, U)
    same(ag.normalize, U)
    same(lambda u: [ag.sum(u), ag.mean(u), ag.min(u), ag.max(u)], U)
    same(lambda x, y: [ag.sum([x, y, 1.0]), ag.max([x, y]), ag.min([x, 0.0])], X, Y)
    graph = ag.trace(lambda u, v: ag.sum([u, v]), 3, 3)
    np.testing.assert_allclose(graph(U, V), U + V)


def test_numpy_functions_of_api() -> None:
    same(lambda u, v: np.where(u < v, u, v), U, V)
    same(lambda u: np.clip(u, -0.5, 0.5), U)
    same(np.cross, U, V)
    same(np.dot, U, V)
    same(np.linalg.norm, U)
    same(np.sum, U)
    same(lambda u: [np.mean(u), np.min(u), np.max(u), np.prod(u)], U)
    same(lambda u, v: np.concatenate([u, v]), U, V)
    same(lambda u, v: np.stack([u, v]) @ u, U, V)


def test_numpy_arrays_are_constants() -> None:
    offset = np.array([1.0, 2.0, 3.0])
    same(lambda u: offset - u * offset, U)
    same(lambda x: offset * x, X)
    same(lambda u: np.eye(3)[:, ::-1] @ u, U)


# -- matrices ------------------------------------------------------------------------------------


def test_matrices() -> None:
    same(lambda m, v: m @ v, M, V)
    same(lambda m, v: v @ m, M, V)
    same(lambda m: m @ m.T, M)
    same(lambda m: m.T * 2 + m, M)
    same(lambda m: [m[0, 1], *m[2], *m[1:, 0], m[-1][-1]], M)
    same(lambda m: m[:2, 1:], M)
    same(lambda m: sum(m[k, k] for k in range(3)), M)
    same(lambda m, v: m + v, M, V)
    same(lambda m, v: [row @ v for row in m], M, V)
    same(lambda m: ag.sqrt(ag.abs(m)), M)


def test_results_may_nest() -> None:
    shape = lambda fn: ag.trace(fn, 3).output_shape  # noqa: E731
    assert shape(lambda v: v.x) == ()
    assert shape(lambda v: v) == (3,)
    assert shape(lambda v: [v, v]) == (2, 3)
    assert shape(lambda v: (v.x, [v.y, v.z])) == (3,)
    assert shape(lambda v: [v, 2 * v, [1.0, v.x, 0]]) == (3, 3)
    assert shape(lambda v: [1.0, 2]) == (2,)


def test_width_errors() -> None:
    for width in (0, -1, (2, 2, 2), (0,)):
        with pytest.raises(ShapeError, match="argument width"):
            ag.trace(lambda v: v, width)
    with pytest.raises(ShapeError, match="lengths 3 and 2"):
        ag.trace(lambda u, v: ag.dot(u, v), 3, 2)
    with pytest.raises(ShapeError, match="sub of shapes"):
        ag.trace(lambda u, v: u - v, 3, 2)
    with pytest.raises(ShapeError, match="two 3-vectors"):
        ag.trace(lambda u, v: ag.cross(u, v), 2, 2)


def test_calling_a_graph_checks_shapes() -> None:
    graph = ag.trace(lambda p, r: p * r, 3, 1)
    np.testing.assert_array_equal(graph(U, 2.0), 2 * U)
    np.testing.assert_array_equal(graph(U[0], 2.0), 2 * U[0])
    with pytest.raises(ShapeError, match="got 1 arrays"):
        graph(U)
    with pytest.raises(ShapeError, match="'p': got shape"):
        graph(np.ones((5, 2)), 1.0)
    with pytest.raises(ShapeError, match="batch of 2"):
        graph(U, np.ones(2))


# -- errors of people ----------------------------------------------------------------------------


def _if(x: Any, y: Any) -> Any:
    if x > 0:
        return x
    return y


def _ternary(x: Any, y: Any) -> Any:
    return x if x > y else y


def _and(x: Any, y: Any) -> Any:
    return ag.where(x > 0 and y > 0, x, y)


def _or(x: Any, y: Any) -> Any:
    return ag.where(x > 0 or y > 0, x, y)


def _not(x: Any, y: Any) -> Any:
    return ag.where(not x > 0, x, y)


def _chained(x: Any, y: Any) -> Any:
    return ag.where(0 < x < y, x, y)


def _chained_equal(x: Any, y: Any) -> Any:
    return ag.where(0 <= x <= y, x, y)


def _max(x: Any, y: Any) -> Any:
    return max(x, y)


def _min(x: Any, y: Any) -> Any:
    return min(x, y)


def _while(x: Any, y: Any) -> Any:
    while x > 0:
        x = x - 1
    return x


def _float(x: Any, y: Any) -> Any:
    return float(x)


def _int(x: Any, y: Any) -> Any:
    return int(x)


def _math_sin(x: Any, y: Any) -> Any:
    return math.sin(x)


def _math_fabs(x: Any, y: Any) -> Any:
    return math.fabs(x) + y


def _math_hypot(x: Any, y: Any) -> Any:
    return math.hypot(x, y)


def _index(x: Any, y: Any) -> Any:
    return [1.0, 2.0][x]


def _range(x: Any, y: Any) -> Any:
    return sum(range(x))


def _unpack(x: Any, y: Any) -> Any:
    first, _second = x
    return first


def _array(x: Any, y: Any) -> Any:
    return np.array([x, y])


def _bool(x: Any, y: Any) -> Any:
    return bool(x)


WRONG: list[tuple[Callable[..., Any], str, str]] = [
    (_if, "if x > 0:", "ag.where"),
    (_ternary, "x if x > y else y", "ag.where"),
    (_and, "x > 0 and y > 0", "ag.logical_and"),
    (_or, "x > 0 or y > 0", "ag.logical_or"),
    (_not, "not x > 0", "ag.logical_not"),
    (_chained, "0 < x < y", "ag.logical_and(a < b, b < c)"),
    (_chained_equal, "0 <= x <= y", "ag.logical_and(a < b, b < c)"),
    (_max, "max(x, y)", "ag.maximum"),
    (_min, "min(x, y)", "ag.minimum"),
    (_while, "while x > 0:", "fixed number of steps"),
    (_float, "float(x)", "ag.*"),
    (_int, "int(x)", "ag.*"),
    (_math_sin, "math.sin(x)", "use ag.sin instead of math.sin"),
    (_math_fabs, "math.fabs(x)", "use ag.abs instead of math.fabs"),
    (_math_hypot, "math.hypot(x, y)", "use ag.hypot instead of math.hypot"),
    (_index, "[1.0, 2.0][x]", "index"),
    (_range, "range(x)", "index"),
    (_unpack, "first, _second = x", "a block of width 1 is a scalar"),
    (_array, "np.array([x, y])", "ag.*"),
    (_bool, "bool(x)", "ag.where"),
]


@pytest.mark.parametrize(("fn", "line", "remedy"), WRONG, ids=[w[0].__name__ for w in WRONG])
def test_errors_name_the_line_and_the_replacement(
    fn: Callable[..., Any], line: str, remedy: str
) -> None:
    with pytest.raises(TraceError) as caught:
        ag.trace(fn, 1, 1)
    message = str(caught.value)
    found = re.search(rf"{re.escape(__file__)}:(\d+)", message)
    assert found, message
    assert line in linecache.getline(__file__, int(found.group(1)))
    assert line in message
    assert remedy in message


def test_a_call_from_a_function_of_this_package_names_the_users_line() -> None:
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+: .*ag\.maximum\(x"):
        ag.trace(lambda x, y: ag.maximum(x, None), 1, 1)


def test_a_folder_that_begins_like_the_package_is_the_users() -> None:
    folder = Path(ag.__file__).parent
    file = str(folder) + "_of_mine/energies.py"
    namespace: dict[str, Any] = {}
    exec(compile("def fn(x):\n    return 1 if x > 0 else 2\n", file, "exec"), namespace)
    with pytest.raises(TraceError, match=r"energies\.py:2"):
        ag.trace(namespace["fn"], 1)


def test_truth_of_vectors() -> None:
    with pytest.raises(TraceError, match=r"truth of a traced vector"):
        ag.trace(lambda u, v: u if u == v else v, 3, 3)


def test_traced_index() -> None:
    with pytest.raises(TraceError, match=r"ag\.where"):
        ag.trace(lambda v, x: v[x], 3, 1)


def test_returning_nothing() -> None:
    def forgot(x: Any) -> None:
        x * 2

    with pytest.raises(TraceError, match="'forgot' returned None; return the residual"):
        ag.trace(forgot, 1)
    for nothing in ([], "text", {"a": 1}, object()):
        with pytest.raises(TraceError, match="expected a traced"):
            ag.trace(lambda x, nothing=nothing: nothing, 1)
    with pytest.raises(TraceError, match="truth value at position 1"):
        ag.trace(lambda x: [x, x > 0], 1)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_constants_that_are_not_finite(bad: float) -> None:
    with pytest.raises(TraceError, match="finite"):
        ag.trace(lambda x: x * bad, 1)
    with pytest.raises(TraceError, match="constant"):
        ag.trace(lambda x: [x, bad], 1)


def test_values_of_two_traces_do_not_mix() -> None:
    kept: list[Any] = []
    ag.trace(lambda x: (kept.append(x), x)[1], 1)
    with pytest.raises(TraceError, match="mixes values of two traces"):
        ag.trace(lambda x: x + kept[0], 1)
    with pytest.raises(TraceError, match="two traces"):
        ag.trace(lambda x: kept[0] * 2, 1)


def test_long_arrays_are_data_and_not_constants() -> None:
    data = np.ones(1000)
    for fn in (lambda x: data * x, lambda x: x * data, lambda x: ag.sum(data - x)):
        with pytest.raises(TraceError, match=r"array of 1000 numbers.*\n?.*argument"):
            ag.trace(fn, 1)


def test_foreign_errors_keep_their_line_and_cause() -> None:
    def broken(x: Any) -> Any:
        table = {"a": 1}
        return x * table["b"]

    with pytest.raises(TraceError) as caught:
        ag.trace(broken, 1)
    assert isinstance(caught.value.__cause__, KeyError)
    assert 'return x * table["b"]' in str(caught.value)
    assert "'broken' failed while being traced" in str(caught.value)
    assert f"{__file__}:" in str(caught.value)


def test_ufuncs_and_functions_that_do_not_trace() -> None:
    with pytest.raises(TraceError, match=r"np\.frexp cannot be traced"):
        ag.trace(lambda x: np.frexp(x), 1)
    with pytest.raises(TraceError, match=r"np\.add\.reduce"):
        ag.trace(lambda v: np.add.reduce(v), 3)
    with pytest.raises(TraceError, match=r"np\.argsort cannot be traced"):
        ag.trace(lambda v: np.argsort(v), 3)
    with pytest.raises(TraceError, match="axis"):
        ag.trace(lambda v: np.sum(v, axis=0), 3)


def test_wrong_number_of_operands() -> None:
    with pytest.raises(TraceError, match=r"ag\.atan2 with 1 arguments, it takes 2"):
        ag.trace(lambda x: ag.atan2(x), 1)


def test_every_error_is_of_this_package() -> None:
    assert issubclass(TraceError, ag.AutogradGpuError)
    assert issubclass(TraceError, TypeError)
    assert issubclass(ShapeError, ValueError)


def test_a_function_is_called_once_per_trace_and_never_cached() -> None:
    state = {"calls": 0, "factor": 1.0}

    def fn(x: Any) -> Any:
        state["calls"] += 1
        return x * state["factor"]

    first = ag.trace(fn, 1)
    state["factor"] = 5.0
    second = ag.trace(fn, 1)
    assert state["calls"] == 2
    assert (first(2.0), second(2.0)) == (2.0, 10.0)


def test_traced_values_show_themselves() -> None:
    seen: list[str] = []
    ag.trace(lambda x, v, m: (seen.extend(map(repr, (x, x > 0, v, m))), x)[1], 1, 3, (2, 3))
    assert seen == [
        "<traced real v0>",
        seen[1],
        "<traced vector of 3>",
        "<traced matrix of (2, 3)>",
    ]
    assert seen[1].startswith("<traced bool")


def test_a_graph_prints_as_a_program() -> None:
    text = str(ag.trace(lambda p, rest: ag.norm(p) - rest, 2, 1))
    assert "p[0]" in text and "rest" in text and text.splitlines()[-1].startswith("  return")


# -- graphs as residual functions ----------------------------------------------------------------


def test_a_graph_is_a_residual_function() -> None:
    spring = ag.trace(lambda p, q, rest: ag.norm(q - p) - rest, 3, 3, 1)
    both = ag.trace(lambda a, b: [2 * spring(a, b, 1.0), spring(b, a, a[0])], 3, 3)
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3))
    want = np.stack([2 * spring(a, b, np.ones(5)), spring(b, a, a[:, 0])], axis=1)
    np.testing.assert_allclose(both(a, b), want, rtol=1e-14)
    shaped = ag.trace(lambda M, v: M @ v, (2, 3), 3)
    outer = ag.trace(lambda M, v: shaped(M, 2 * v), (2, 3), 3)
    assert outer.output_shape == (2,)
    eager = spring(*[ag.Vec3([ag.Value(float(c)) for c in v]) for v in (a[0], b[0])], 1.0)
    assert eager.data == pytest.approx(spring(a[0], b[0], 1.0))
    eager.backward()


def test_a_graph_keeps_its_name_and_signature_as_a_residual() -> None:
    graph = ag.trace(lambda p, q: q - p, 2, 2)
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((4, 2)))
    problem.add_residuals(graph, x, np.zeros((4, 2)))
    assert [a.name for a in problem.groups[0].graph.arguments] == ["p", "q"]
    assert problem.groups[0].name == "<lambda>"
    with pytest.raises(ag.InputError, match="got 1 arguments"):
        problem.add_residuals(graph, x)


def test_a_graph_called_with_what_does_not_fit_is_refused() -> None:
    graph = ag.trace(lambda p, q: q - p, 2, 2)
    with pytest.raises(ag.ShapeError, match=r"argument 'q' of shape \(3,\), expected \(2,\)"):
        ag.trace(lambda a, b: graph(a, b), 2, 3)
    with pytest.raises(ag.ShapeError, match="with 1 arguments, it takes 2"):
        ag.trace(lambda a: graph(a), 2)
