"""Elementary functions in float64 on WGSL against mpmath: accuracy, and bits at 0, ±inf and NaN.

A few thousand points a function in CI, 10^5 in the long profile; points where such functions
usually go wrong are always among them. Inputs are numbers that the device can hold, so rounding
them is no part of an error.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import pytest
from conftest import LONG

from autograd_gpu.codegen import real_constants
from autograd_gpu.codegen.printer import select_prelude
from autograd_gpu.codegen.render import wgsl_prelude
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.ops import NODE_OPS, REAL
from autograd_gpu.runtime.number_formats import FORMATS
from autograd_gpu.runtime.self_test import evaluate_on
from sessions import WGSL_FLOAT64, Backend, device_on, parameters_of

POINTS = 100_000 if LONG else 2_000
EMULATED_LIMIT = 4e-13
NATIVE_LIMIT = 4 * 2.0**-52
SMALLEST, LARGEST = 1e-23, 1e30
"""Results outside are not judged: double-float has the exponent range of float32."""

mp = mpmath.mp.clone()
mp.dps = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How a function is sampled.

    Attributes:
        ranges: (lowest, highest) magnitude per operand, sampled evenly in the logarithm.
        signs: per operand, whether both signs occur.
        hard: further points.
        reference: mpmath's function.
        near_zero: errors are absolute where the true value is below 1.
    """

    ranges: tuple[tuple[float, float], ...]
    signs: tuple[bool, ...]
    reference: Callable[..., Any]
    hard: tuple[tuple[float, ...], ...] = ()
    near_zero: bool = False


def _near(*centers: float) -> tuple[tuple[float, ...], ...]:
    """Points at, and a few small steps to both sides of, each center."""
    steps = [0.0, *(s * 2.0**-k for k in (3, 8, 13, 20, 30, 40, 46) for s in (1.0, -1.0))]
    return tuple((c * (1.0 + d) if c else d,) for c in centers for d in steps)


_MULTIPLES = tuple(k * math.pi / 2 for k in (1, 2, 3, 4, 5, 710, 10**5, 636_619))
_ANGLES = (*_near(*_MULTIPLES, 0.0, math.pi / 4), (1e6,), (-1e6,))
_UNIT = _near(0.5, -0.5, 1.0, -1.0)
_INSIDE = tuple(p for p in _UNIT if abs(p[0]) <= 1.0)

CASES: dict[str, Case] = {
    "add": Case(ranges=((1e-12, 1e12),) * 2, signs=(True, True), reference=lambda a, b: a + b),
    "sub": Case(ranges=((1e-12, 1e12),) * 2, signs=(True, True), reference=lambda a, b: a - b),
    "mul": Case(ranges=((1e-11, 1e14),) * 2, signs=(True, True), reference=lambda a, b: a * b),
    "div": Case(ranges=((1e-11, 1e14),) * 2, signs=(True, True), reference=lambda a, b: a / b),
    "sqrt": Case(ranges=((1e-30, 1e30),), signs=(False,), reference=mp.sqrt),
    "cbrt": Case(
        ranges=((1e-22, 1e30),), signs=(True,),
        reference=lambda x: mp.sign(x) * mp.cbrt(abs(x)),
        hard=_near(1.0, 8.0, 2.0),
    ),
    "exp": Case(ranges=((1e-8, 52.0),), signs=(True,), reference=mp.exp,
                hard=_near(0.0, math.log(2), -math.log(2), 50 * math.log(2), 0.5 * math.log(2))),
    "expm1": Case(ranges=((1e-12, 52.0),), signs=(True,), reference=mp.expm1,
                  hard=_near(0.5, -0.5, 0.3466, 40.0, -40.0)),
    "log": Case(ranges=((1e-30, 1e30),), signs=(False,), reference=mp.log,
                hard=_near(1.0, 2.0, 2**0.5, 0.5**0.5)),
    "log1p": Case(ranges=((1e-12, 1e30),), signs=(False,), reference=mp.log1p,
                  hard=_near(0.41, -0.29, 2**0.5 - 1)
                  + tuple((-x,) for x in np.geomspace(1e-10, 0.9999, 200))),
    "sin": Case(ranges=((1e-8, 1e6),), signs=(True,), reference=mp.sin, hard=_ANGLES,
                near_zero=True),
    "cos": Case(ranges=((1e-8, 1e6),), signs=(True,), reference=mp.cos, hard=_ANGLES,
                near_zero=True),
    "tan": Case(ranges=((1e-8, 1e6),), signs=(True,), reference=mp.tan,
                hard=_near(0.0, math.pi / 4, 1.5, 3.0)),
    "asin": Case(ranges=((1e-9, 1.0),), signs=(True,), reference=mp.asin, hard=_INSIDE),
    "acos": Case(ranges=((1e-9, 1.0),), signs=(True,), reference=mp.acos, hard=_INSIDE),
    "atan": Case(ranges=((1e-12, 1e12),), signs=(True,), reference=mp.atan,
                 hard=_near(*(k / 16 for k in range(1, 17)), 1.0)),
    "atan2": Case(ranges=((1e-6, 1e6),) * 2, signs=(True, True), reference=mp.atan2),
    "sinh": Case(ranges=((1e-9, 52.0),), signs=(True,), reference=mp.sinh, hard=_near(1.0)),
    "cosh": Case(ranges=((1e-9, 52.0),), signs=(True,), reference=mp.cosh, hard=_near(0.0)),
    "tanh": Case(ranges=((1e-9, 40.0),), signs=(True,), reference=mp.tanh, hard=_near(1.0, 22.0)),
    "erf": Case(ranges=((1e-9, 8.0),), signs=(True,), reference=mp.erf, hard=_near(1.0, 6.0)),
    "hypot": Case(ranges=((1e-9, 1e9),) * 2, signs=(True, True), reference=mp.hypot),
    "pow": Case(ranges=((1e-4, 1e4), (1e-3, 7.0)), signs=(False, True), reference=mp.power),
    "sigmoid": Case(ranges=((1e-9, 52.0),), signs=(True,),
                    reference=lambda x: 1 / (1 + mp.exp(-x))),
    "softplus": Case(ranges=((1e-9, 52.0),), signs=(True,),
                     reference=lambda x: mp.log1p(mp.exp(x))),
    "mod": Case(ranges=((1e-3, 1e5), (1e-1, 1e1)), signs=(True, True),
                reference=lambda a, b: a - b * mp.floor(a / b)),
    "floor": Case(ranges=((1e-3, 1e12),), signs=(True,), reference=mp.floor),
    "ceil": Case(ranges=((1e-3, 1e12),), signs=(True,), reference=mp.ceil),
    "round": Case(ranges=((1e-3, 1e12),), signs=(True,), reference=mp.nint,
                  hard=tuple((k + 0.5,) for k in range(-6, 6))),
}  # fmt: skip

WITHOUT_ROUNDING = {
    "neg", "abs", "sign", "minimum", "maximum", "where", "lt", "le", "gt", "ge", "eq", "ne",
}  # fmt: skip
"""Ops whose results are operands or truth values; tested for equality."""


def apply(name: str) -> Graph:
    """The graph of one op on reals; a truth value becomes 1 or 0."""
    row = NODE_OPS[name]
    builder = Builder()
    operands = [builder.input(k, 0) for k in range(row.arity)]
    lifted = [
        o if dtype == REAL else builder.raw("lt", (builder.constant(0.5), o))
        for o, dtype in zip(operands, row.operands, strict=True)
    ]
    value = builder.raw(name, tuple(lifted))
    if row.result != REAL:
        value = builder.raw("where", (value, builder.constant(1.0), builder.constant(0.0)))
    arguments = [Argument(f"x{k}", ()) for k in range(row.arity)]
    return Graph.build(builder, [value], arguments, (1,), name)


def on_device(backend: Backend, name: str, operands: Any) -> Any:
    """The op at ``(points, arity)`` operands."""
    assert backend.adapter is not None
    columns = tuple(np.ascontiguousarray(c) for c in np.asarray(operands, float).T)
    return evaluate_on(device_on(backend.adapter), backend.precision, apply(name), columns)[:, 0]


def held(precision: str, values: Any) -> Any:
    """The nearest numbers that the device can hold."""
    number = FORMATS[precision]
    stored = number.encode(np.ascontiguousarray(values), "values")
    return number.decode(stored.reshape(-1)).reshape(np.shape(values))


@functools.cache
def operands_of(name: str, precision: str) -> Any:
    case = CASES[name]
    rng = np.random.default_rng([len(name), *name.encode()])
    columns: list[Any] = []
    for (low, high), signed in zip(case.ranges, case.signs, strict=True):
        x = np.exp(rng.uniform(math.log(low), math.log(high), POINTS))
        columns.append(x * rng.choice([-1.0, 1.0], POINTS) if signed else x)
    points = np.stack(columns, axis=1)
    if case.hard:
        points = np.concatenate([points, np.array(case.hard, float)])
    return held(precision, points)


@functools.cache
def truth_of(name: str, precision: str) -> list[Any]:
    reference = CASES[name].reference
    return [reference(*map(mp.mpf, p)) for p in operands_of(name, precision).tolist()]


def errors(name: str, precision: str, got: Any) -> Any:
    """Error by point, in the measure of the issue: relative, or as ``Case`` says."""
    operands = operands_of(name, precision)
    out = np.zeros(len(operands))
    for k, (value, true) in enumerate(zip(got.tolist(), truth_of(name, precision), strict=True)):
        size = abs(true)
        if size < SMALLEST or size > LARGEST:
            continue
        scale = max(size, mp.mpf(1)) if CASES[name].near_zero else size
        if name == "pow":
            x, y = operands[k]
            scale *= max(1.0, abs(y * math.log(x)))
        out[k] = float(abs(mp.mpf(value) - true) / scale) if math.isfinite(value) else math.inf
    return out


each_backend = pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))


@pytest.mark.parametrize("name", CASES)
@each_backend
def test_accuracy_against_mpmath(name: str, backend: Backend) -> None:
    points = operands_of(name, backend.precision)
    measured = errors(name, backend.precision, on_device(backend, name, points))
    limit = EMULATED_LIMIT if backend.precision == "float64-emulated" else NATIVE_LIMIT
    worst = int(np.argmax(measured))
    assert measured[worst] <= limit, f"{name}{tuple(points[worst])}: {measured[worst]:.2e}"


@pytest.mark.parametrize("name", sorted(WITHOUT_ROUNDING))
@each_backend
def test_results_that_need_no_rounding_are_exact(name: str, backend: Backend) -> None:
    row = NODE_OPS[name]
    rng = np.random.default_rng(2)
    points = held(backend.precision, rng.standard_normal((2000, row.arity)))
    if row.arity == 2:
        points[:500, 1] = points[:500, 0]
        # Equal high parts, so that the low ones decide.
        points[500:1000, 1] = held(backend.precision, points[500:1000, 0] * (1.0 + 2.0**-40))
    operands = [
        c > 0.5 if dtype != REAL else c for c, dtype in zip(points.T, row.operands, strict=True)
    ]
    want = np.asarray(row.numpy(*operands), float)
    np.testing.assert_array_equal(on_device(backend, name, points), want)


def test_every_op_is_measured() -> None:
    reals = {n for n, row in NODE_OPS.items() if REAL in row.operands}
    assert reals == set(CASES) | WITHOUT_ROUNDING


# -- 0, infinities and NaN -----------------------------------------------------------------------

SPECIAL = (0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.5, -2.0, 3.0)
# NumPy differs where the table says otherwise or a sign of zero is all there is.
UNARY = [n for n, row in NODE_OPS.items() if row.operands == (REAL,)]
BINARY = [n for n, row in NODE_OPS.items() if row.operands == (REAL, REAL)]


def special_graph(name: str) -> Graph:
    """The op on operands whose infinities and NaN are made on the device: a / b."""
    row = NODE_OPS[name]
    builder = Builder()
    made = [
        builder.raw("div", (builder.input(2 * k, 0), builder.input(2 * k + 1, 0)))
        for k in range(row.arity)
    ]
    value = builder.raw(name, tuple(made))
    if row.result != REAL:
        value = builder.raw("where", (value, builder.constant(1.0), builder.constant(0.0)))
    arguments = [Argument(f"x{k}", ()) for k in range(2 * row.arity)]
    return Graph.build(builder, [value], arguments, (1,), name)


def _quotient(value: float) -> tuple[float, float]:
    """Finite a, b with a / b = value."""
    if math.isnan(value):
        return 0.0, 0.0
    return (math.copysign(1.0, value), 0.0) if math.isinf(value) else (value, 1.0)


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
@each_backend
def test_zero_infinities_and_nan(name: str, backend: Backend) -> None:
    row = NODE_OPS[name]
    grid = np.stack(np.meshgrid(*[SPECIAL] * row.arity), axis=-1).reshape(-1, row.arity)
    operands = np.array([[part for v in p for part in _quotient(v)] for p in grid])
    assert backend.adapter is not None
    columns = tuple(np.ascontiguousarray(c) for c in operands.T)
    device = device_on(backend.adapter)
    got = evaluate_on(device, backend.precision, special_graph(name), columns)[:, 0]
    with np.errstate(all="ignore"):
        want = np.asarray(row.numpy(*grid.T), float)
    for point, value, expected in zip(grid, got, want, strict=True):
        where = f"{name}{tuple(map(float, point))}: {value}, NumPy says {expected}"
        if math.isfinite(expected):
            assert abs(value - expected) <= EMULATED_LIMIT * max(1.0, abs(expected)), where
        else:
            bits = np.float64(value).view(np.uint64), np.float64(expected).view(np.uint64)
            same = math.isnan(value) if math.isnan(expected) else bits[0] == bits[1]
            assert same, where


# -- what is generated ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float64-native", "float64-emulated"])
def test_only_what_a_kernel_uses_is_emitted(precision: str) -> None:
    text = select_prelude(wgsl_prelude(precision), "let v1 = ag_exp(v0);")
    assert "fn ag_exp(" in text and "ag_exp_table" in text
    assert "ag_sin" not in text and "ag_log" not in text


@pytest.mark.parametrize("precision", ["float64-native", "float64-emulated"])
def test_polynomials_are_loops(precision: str) -> None:
    assert len(wgsl_prelude(precision)) < 30_000
    assert wgsl_prelude(precision).count("for (var k") >= 9


def test_no_builtin_function_of_f64_is_used() -> None:
    text = wgsl_prelude("float64-native")
    text = re.sub(r"//[^\n]*", "", text)
    banned = "exp|log|sin|cos|tan|asin|acos|atan|atan2|pow|sinh|cosh|tanh|fma|ldexp|frexp"
    assert re.findall(rf"(?<![\w.])(?:{banned})\(", text) == []


def test_fitted_tables_are_what_they_say() -> None:
    def arc_sine(z: Any) -> Any:
        x = mp.sqrt(z)
        return (mp.asin(x) - x) / (x * z)

    for z in np.linspace(1e-6, 0.25, 200).tolist():
        got = mp.polyval([mp.mpf(c) for c in real_constants.ARC_SINE[::-1]], mp.mpf(z))
        assert abs(got / arc_sine(mp.mpf(z)) - 1) < mp.mpf("3e-16")
    for u in np.linspace(-1.0, 1.0, 200).tolist():
        t = mp.mpf(11) / 24 + mp.mpf(5) / 24 * u
        x = 2 * (1 / t - 1)
        got = mp.polyval([mp.mpf(c) for c in real_constants.ERFC[::-1]], mp.mpf(u))
        assert abs(got - mp.exp(x * x) * mp.erfc(x)) < mp.mpf("5e-17")
    for k, text in enumerate(real_constants.ARC_TANGENTS):
        assert abs(mp.mpf(text) - mp.atan(mp.mpf(k) / 8)) < mp.mpf("1e-38")
