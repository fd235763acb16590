"""Every row of the op table, on every backend. A new row is tested without a new test.

All ops run in a few kernels: each reads its own components of one wide argument, so the Jacobian
is block-sparse and one batch serves the random points, the documented points and the poles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from bindings import bind

import autograd_gpu as ag
from autograd_gpu.ops import BOOL, NUMPY_ALGEBRA, OPS, Op
from sessions import (
    JAX,
    NUMBA,
    NUMPY,
    WGSL,
    WGSL_FLOAT64,
    Backend,
    evaluate,
    float32_exact,
    parameters_of,
)
from tolerances import (
    CENTRAL_DIFFERENCE,
    DERIVATIVE,
    FAR,
    MPMATH,
    MPMATH_DERIVATIVE,
    VALUE,
    tolerance,
)

ROWS = list(OPS.values())
POINTS = 2000
CHUNKS = 10
BACKENDS = [NUMPY, NUMBA, *JAX, *WGSL]
OTHERS = [Backend("numba", "float32"), *BACKENDS[1:], *WGSL_FLOAT64]

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_backend = pytest.mark.parametrize("backend", parameters_of(BACKENDS))
each_other = pytest.mark.parametrize("backend", parameters_of(OTHERS))

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b, "neg": lambda a: -a, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
}  # fmt: skip

# Where the value is not finite: operands by op. Every backend must show it.
POLES: dict[str, list[tuple[float, ...]]] = {
    "sqrt": [(-1.0,)], "log": [(0.0,), (-1.0,)], "log1p": [(-1.0,), (-2.0,)],
    "div": [(1.0, 0.0), (0.0, 0.0)], "reciprocal": [(0.0,)],
    "asin": [(1.5,), (-1.5,)], "acos": [(1.5,), (-1.5,)],
    "pow": [(-2.0, 0.5), (0.0, -1.0)], "exp": [(1000.0,)], "sinh": [(1000.0,)],
    "cosh": [(-1000.0,)], "expm1": [(1000.0,)],
}  # fmt: skip


def public(row: Op) -> Callable[..., Any]:
    """What a person writes for an op: an operator, or ``ag.<name>``."""
    return OPERATORS.get(row.name) or getattr(ag, row.name)


def traced(row: Op, operands: list[Any]) -> Any:
    """The op on traced reals: truth values come from, and become, numbers."""
    lifted = [
        v > 0.5 if dtype == BOOL else v for v, dtype in zip(operands, row.operands, strict=True)
    ]
    result = public(row)(*lifted)
    return ag.where(result, 1.0, 0.0) if row.result == BOOL else result


def on_arrays(row: Op, *operands: Any) -> Any:
    """The same in float64 NumPy: the oracle."""
    lifted = [
        np.asarray(v) > 0.5 if dtype == BOOL else np.asarray(v, float)
        for v, dtype in zip(operands, row.operands, strict=True)
    ]
    with np.errstate(all="ignore"):
        return np.asarray(row.numpy(*lifted), float)


@functools.cache
def sample(name: str) -> Any:
    """Operands ``(POINTS, arity)`` inside the row's domain, exact in float32."""
    row = OPS[name]
    rng = np.random.default_rng([len(name), *name.encode()])
    low, high = np.array(row.domain, float).T
    points = float32_exact(rng.uniform(low, high, (POINTS, len(row.domain))))
    if name == "mod":
        # In float32 the rounded quotient may lie on the other side of a jump.
        quotient = points[:, 0] / points[:, 1]
        near = np.abs(quotient - np.rint(quotient)) < 1e-4
        points[near, 0] += float32_exact(0.25 * points[near, 1])
        points = float32_exact(points)
    if row.result == BOOL and row.arity == 2:
        points[: POINTS // 10, 1] = points[: POINTS // 10, 0]  # random reals are never equal
    return points


def chunk_of(row: Op) -> int:
    return ROWS.index(row) * CHUNKS // len(ROWS)


@functools.cache
def layout(chunk: int) -> tuple[list[Op], dict[str, int], Any]:
    """Rows of a chunk, first component of each, and all points of its batch."""
    rows = [row for row in ROWS if chunk_of(row) == chunk]
    first: dict[str, int] = {}
    total = 0
    for row in rows:
        first[row.name] = total
        total += row.arity
    specials = max(len(row.singular) + len(POLES.get(row.name, ())) for row in rows)
    points = np.empty((POINTS + specials, total))
    for row in rows:
        columns = slice(first[row.name], first[row.name] + row.arity)
        points[:POINTS, columns] = sample(row.name)
        points[POINTS:, columns] = sample(row.name)[0]
        special = [s.at for s in row.singular] + POLES.get(row.name, [])
        if special:
            points[POINTS : POINTS + len(special), columns] = special
    return rows, first, points


@functools.cache
def run_chunk(backend: Backend, chunk: int) -> tuple[Any, Any]:
    rows, first, points = layout(chunk)

    def residual(v: Any) -> list[Any]:
        return [traced(row, [v[first[row.name] + k] for k in range(row.arity)]) for row in rows]

    residual.__name__ = f"ops_{chunk}"
    batch = evaluate(backend, bind(ag.trace(residual, (points.shape[1],)), [points]))
    return batch.residuals, batch.jacobian


def measured(backend: Backend, row: Op) -> tuple[Any, Any]:
    """Values and partials of ``row`` at all points: ``(points,)``, ``(points, arity)``."""
    rows, first, _ = layout(chunk_of(row))
    values, jacobian = run_chunk(backend, chunk_of(row))
    position = rows.index(row)
    columns = slice(first[row.name], first[row.name] + row.arity)
    return values[:, position], jacobian[:, position, columns]


@each_row
@each_other
def test_value_agrees_with_oracle(row: Op, backend: Backend) -> None:
    values, _ = measured(backend, row)
    want = on_arrays(row, *sample(row.name).T)
    tolerance(backend.precision, VALUE, row.name).check(values[:POINTS], want, row.name)


@each_row
@each_other
def test_derivative_agrees_with_oracle(row: Op, backend: Backend) -> None:
    _, partials = measured(backend, row)
    _, want = measured(NUMPY, row)
    tolerance(backend.precision, DERIVATIVE, row.name).check(
        partials[:POINTS], want[:POINTS], row.name
    )


@each_row
@pytest.mark.parametrize("backend", parameters_of([NUMPY, *OTHERS]))
def test_documented_singular_points(row: Op, backend: Backend) -> None:
    values, partials = measured(backend, row)
    for k, point in enumerate(row.singular):
        where = f"{row.name} at {point.at}"
        tolerance(backend.precision, VALUE, row.name).check(values[POINTS + k], point.value, where)
        tolerance(backend.precision, DERIVATIVE, row.name).check(
            partials[POINTS + k], point.partials, f"{where}, partials"
        )


@pytest.mark.parametrize("name", POLES)
@pytest.mark.parametrize("backend", parameters_of([NUMPY, *OTHERS]))
def test_poles_stay_visible(name: str, backend: Backend) -> None:
    row = OPS[name]
    values, _ = measured(backend, row)
    first = POINTS + len(row.singular)
    want = on_arrays(row, *np.array(POLES[name]).T)
    got = values[first : first + len(POLES[name])]
    assert not np.isfinite(want).any()
    assert not np.isfinite(got).any(), f"{name} at {POLES[name]}: {got}"


# Magnitudes far from the sampled domain: (lowest, highest, both signs).
FAR_RANGES: dict[str, tuple[float, float, bool]] = {
    **dict.fromkeys(("sin", "tan", "asin", "atan", "sinh", "tanh", "erf", "expm1"),
                    (1e-7, 0.1, True)),
    "log1p": (1e-7, 0.1, True),
    "exp": (1.0, 80.0, True),
    "log": (1e-30, 1e30, False),
    "sqrt": (1e-30, 1e30, False),
    "cbrt": (1e-18, 1e18, True),
    "cosh": (1.0, 80.0, True),
    "softplus": (1.0, 80.0, True),
    "sigmoid": (1.0, 80.0, True),
    "reciprocal": (1e-30, 1e30, True),
}  # fmt: skip
# The same ops once more, where they grow or saturate.
LARGE_RANGES: dict[str, tuple[float, float, bool]] = {
    "sinh": (0.5, 80.0, True),
    "tanh": (0.5, 80.0, True),
    "erf": (0.5, 80.0, True),
    "expm1": (0.1, 80.0, True),
    "log1p": (0.1, 1e30, False),
    "atan": (1.0, 1e30, True),
}


@functools.cache
def run_far(backend: Backend, large: bool) -> tuple[Any, Any]:
    ranges = LARGE_RANGES if large else FAR_RANGES
    rng = np.random.default_rng(5)
    columns: list[Any] = []
    for low, high, signed in ranges.values():
        x = np.exp(rng.uniform(np.log(low), np.log(high), 1000))
        columns.append(float32_exact(x * rng.choice([-1.0, 1.0], 1000) if signed else x))
    points = np.stack(columns, axis=1)
    graph = ag.trace(
        lambda v: [getattr(ag, name)(v[k]) for k, name in enumerate(ranges)], (len(ranges),)
    )
    return points, evaluate(backend, bind(graph, [points])).residuals


# tests/test_real_functions.py measures double-float function by function; all in one kernel would
# take a software driver a minute to compile.
@pytest.mark.parametrize(
    "backend", parameters_of([b for b in OTHERS if b.precision != "float64-emulated"])
)
@pytest.mark.parametrize("large", [False, True], ids=["far", "large"])
def test_relative_accuracy_far_from_the_domain(backend: Backend, large: bool) -> None:
    points, values = run_far(backend, large)
    for k, name in enumerate(LARGE_RANGES if large else FAR_RANGES):
        row = OPS[name]
        FAR[backend.precision].check(values[:, k], on_arrays(row, points[:, k]), name)


# -- the oracle itself ---------------------------------------------------------------------------

mp = mpmath.mp.clone()
mp.dps = 50

# Spellings that mpmath lacks or names otherwise.
MP_OPS: dict[str, Callable[..., Any]] = {
    **{name: OPERATORS[name] for name in ("add", "sub", "mul", "div", "neg")},
    "pow": lambda x, y: mp.power(x, y),
    "abs": lambda x: mp.fabs(x),
    "round": lambda x: mp.nint(x),
    "minimum": min,
    "maximum": max,
    "mod": lambda a, b: a - b * mp.floor(a / b),
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "cube": lambda x: x**3,
    "clip": lambda x, low, high: min(max(x, low), high),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "relu": lambda x: max(x, mp.mpf(0)),
}


def mp_function(name: str) -> Callable[..., Any] | None:
    return MP_OPS.get(name) or getattr(mp, name, None)


REAL_ROWS = [row for row in ROWS if BOOL not in (*row.operands, row.result)]
each_real_row = pytest.mark.parametrize("row", REAL_ROWS, ids=lambda row: row.name)


@each_real_row
def test_oracle_agrees_with_mpmath(row: Op) -> None:
    function = mp_function(row.name)
    if function is None:
        pytest.fail(f"mpmath has no {row.name!r}; give its definition in MP_OPS")
    points = sample(row.name)[:200]
    want = [float(function(*map(mp.mpf, p))) for p in points.tolist()]
    MPMATH.check(on_arrays(row, *points.T), want, row.name)


@each_real_row
def test_derivative_agrees_with_mpmath(row: Op) -> None:
    function = mp_function(row.name)
    assert function is not None
    _, partials = measured(NUMPY, row)
    points = sample(row.name)[:20]
    for k in range(row.arity):
        order = tuple(int(j == k) for j in range(row.arity))
        want = [float(mp.diff(function, tuple(map(mp.mpf, p)), order)) for p in points.tolist()]
        MPMATH_DERIVATIVE.check(partials[:20, k], want, f"{row.name}, operand {k}")


@pytest.mark.parametrize("row", [r for r in ROWS if r.result != BOOL], ids=lambda r: r.name)
def test_derivative_agrees_with_central_differences(row: Op) -> None:
    step = 1e-5
    points = sample(row.name)
    _, partials = measured(NUMPY, row)
    for k in range(row.arity):
        if row.operands[k] == BOOL:
            continue
        ahead, behind = points.copy(), points.copy()
        ahead[:, k] += step
        behind[:, k] -= step
        slope = (on_arrays(row, *ahead.T) - on_arrays(row, *behind.T)) / (2 * step)
        # A kink or jump between the two points makes the quotient meaningless.
        here = on_arrays(row, *points.T)
        one_sided = (on_arrays(row, *ahead.T) - here) / step
        smooth = np.abs(one_sided - slope) < 1e-3 * (1 + np.abs(slope))
        assert smooth.mean() > 0.98
        CENTRAL_DIFFERENCE.check(partials[:POINTS, k][smooth], slope[smooth], row.name)


@pytest.mark.parametrize("row", [r for r in ROWS if r.partials], ids=lambda r: r.name)
def test_rule_on_arrays_is_the_rule_in_the_ir(row: Op) -> None:
    """Partials written over an algebra give numbers with arrays and IR with traced scalars."""
    points = sample(row.name)
    operands = list(points.T)
    _, partials = measured(NUMPY, row)
    with np.errstate(all="ignore"):
        for k, rule in enumerate(row.partials):
            want = rule(NUMPY_ALGEBRA, *operands, on_arrays(row, *operands))
            tolerance("float64", DERIVATIVE).check(partials[:POINTS, k], want, row.name)


# -- the public spelling -------------------------------------------------------------------------


@each_row
def test_public_function_on_numbers_arrays_and_traced_values(row: Op) -> None:
    points = sample(row.name)[:7]
    operands = [
        c > 0.5 if dtype == BOOL else c for c, dtype in zip(points.T, row.operands, strict=True)
    ]
    want = on_arrays(row, *points.T)
    np.testing.assert_array_equal(np.asarray(public(row)(*operands), float), want)
    for k in range(len(points)):
        numbers = [o[k].item() for o in operands]
        assert math.isclose(float(public(row)(*numbers)), want[k], rel_tol=1e-15)
    graph = ag.trace(lambda *v: traced(row, list(v)), *[1] * row.arity)
    np.testing.assert_array_equal(graph(*points.T), want)


@each_row
def test_row_is_complete(row: Op) -> None:
    assert row.doc.endswith(".") or row.expand is not None
    assert len(row.domain) == row.arity
    assert all(low < high for low, high in row.domain)
    assert all(len(s.at) == len(s.partials) == row.arity for s in row.singular)
    if row.expand is None:
        reals = [d for d in row.operands if d != BOOL]
        if row.partials:
            assert len(row.partials) == len(reals) == row.arity
        else:
            assert row.result == BOOL or row.name == "where", "a real op needs its derivative"
        assert row.wgsl and row.numba and row.jax
