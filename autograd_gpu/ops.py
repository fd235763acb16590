"""The op table: one row is everything the project knows about an op.

A row holds the NumPy evaluation (the float64 oracle), the partial derivatives, the interval that
tests sample, the value and derivative at singular points, and the spelling per target. Printers,
tests and the documentation iterate this table, so a new op is a new row and nothing else.

Conventions at singular points:

* value finite, derivative infinite or not unique: the derivative is a documented finite number
  (0 for ``sqrt`` at 0, the first operand's for a tie in ``minimum``), so that a zero-length edge
  gives a zero gradient and not NaN;
* value not finite (poles, negative square roots): nothing is hidden. The residual is not finite
  and the solver says which element it was.

Partial derivatives are written over an abstract algebra ``m``: with NumPy arrays they evaluate,
with traced scalars they build IR, which is how derivatives of derivatives come for free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import erf, pi
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray


class DType(StrEnum):
    """Type of a node's value."""

    REAL = "real"
    BOOL = "bool"
    INT = "int"


REAL, BOOL, INT = DType.REAL, DType.BOOL, DType.INT

# (m, *operands, value) -> partial derivative; m offers every op of the table by name.
Partial = Callable[..., Any]
# An interval that tests sample uniformly, open at both ends.
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Singular:
    """Documented behaviour at one point: operands, value there, partial derivatives there."""

    at: tuple[float, ...]
    value: float
    partials: tuple[float, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One row of the table.

    Attributes:
        name: name in IR and in the public face (``ag.<name>``).
        doc: what it computes, one line.
        numpy: elementwise evaluation on NumPy arrays of any float dtype.
        partials: one rule per real operand; empty where the derivative is zero everywhere.
        domain: one interval per operand, inside which tests sample.
        singular: documented points.
        operands: dtypes of the operands; their number is the arity.
        result: dtype of the value.
        commutative: operands may be swapped.
        wgsl, numba, jax, sympy: format strings over the printed operands. WGSL names that start
            with ``ag_`` live in the prelude template. SymPy's mean the same for real operands, and
            ask nothing that its automatic evaluation would take long to answer.
        expand: builds the op from others; such a row never becomes a node.
        cost: rough number of machine operations, for schedules and statistics.
        lanes: a processor computes it for several elements at once: no call of a C library.
    """

    name: str
    doc: str
    numpy: Callable[..., Any]
    partials: tuple[Partial, ...] = ()
    domain: tuple[Interval, ...]
    singular: tuple[Singular, ...] = ()
    operands: tuple[DType, ...] = (REAL,)
    result: DType = REAL
    commutative: bool = False
    wgsl: str = ""
    numba: str = ""
    jax: str = ""
    sympy: str = ""
    expand: Callable[..., Any] | None = field(default=None)
    cost: int = 1
    lanes: bool = True

    @property
    def arity(self) -> int:
        """Number of operands."""
        return len(self.operands)

    @property
    def wgsl_call(self) -> str:
        """WGSL spelling in float64, where every op on reals is a function of the prelude."""
        if REAL not in self.operands or self.wgsl.startswith("ag_"):
            return self.wgsl
        return f"ag_{self.name}({', '.join(f'{{{k}}}' for k in range(self.arity))})"


# The same rules by number of operands, which is how type checkers understand the lambdas below.
_Partial = Callable[[Any, Any, Any], Any] | Callable[[Any, Any, Any, Any], Any]
_Expansion = Callable[[Any, Any], Any] | Callable[[Any, Any, Any, Any], Any]
_Evaluation = Callable[[Any], Any] | Callable[[Any, Any], Any] | Callable[[Any, Any, Any], Any]


class _Spelling(TypedDict):
    wgsl: str
    numba: str
    jax: str
    sympy: str


def _row(
    name: str,
    doc: str,
    *,
    numpy: _Evaluation,
    partials: tuple[_Partial, ...] = (),
    expand: _Expansion | None = None,
    **facts: Any,
) -> Op:
    return Op(name=name, doc=doc, numpy=numpy, partials=partials, expand=expand, **facts)


_TWO = (REAL, REAL)
_WIDE: Interval = (-3.0, 3.0)
_POSITIVE: Interval = (0.05, 5.0)
_UNIT: Interval = (-0.98, 0.98)


def _zero(m: Any, *_: Any) -> Any:
    return m.constant(0.0)


def _spell(name: str, arity: int = 1, *, wgsl: str | None = None, numba: str | None = None,
           jax: str | None = None, sympy: str | None = None) -> _Spelling:  # fmt: skip
    """Spellings of a plain function call that is named alike on every target."""
    args = ", ".join(f"{{{k}}}" for k in range(arity))
    return {
        "wgsl": f"{wgsl or name}({args})",
        "numba": f"{numba or 'math.' + name}({args})",
        "jax": f"jnp.{jax or name}({args})",
        "sympy": sympy or f"sympy.{name}({args})",
    }


def _infix(symbol: str, sympy: str | None = None) -> _Spelling:
    text = f"{{0}} {symbol} {{1}}"
    return {"wgsl": text, "numba": text, "jax": text, "sympy": sympy or text}


_ARITHMETIC = (
    _row(
        "add", "Sum a + b.", numpy=np.add, operands=_TWO, commutative=True,
        partials=(lambda m, a, b, y: m.constant(1.0), lambda m, a, b, y: m.constant(1.0)),
        domain=(_WIDE, _WIDE), **_infix("+"),
    ),
    _row(
        "sub", "Difference a - b.", numpy=np.subtract, operands=_TWO,
        partials=(lambda m, a, b, y: m.constant(1.0), lambda m, a, b, y: m.constant(-1.0)),
        domain=(_WIDE, _WIDE), **_infix("-"),
    ),
    _row(
        "mul", "Product a b.", numpy=np.multiply, operands=_TWO, commutative=True,
        partials=(lambda m, a, b, y: b, lambda m, a, b, y: a),
        domain=(_WIDE, _WIDE), **_infix("*"),
    ),
    _row(
        "div", "Quotient a / b; a pole at b = 0.", numpy=np.divide, operands=_TWO, cost=4,
        partials=(lambda m, a, b, y: 1.0 / b, lambda m, a, b, y: -(y / b)),
        domain=(_WIDE, _POSITIVE), **_infix("/"),
    ),
    _row(
        "neg", "Negation -x.", numpy=np.negative,
        partials=(lambda m, x, y: m.constant(-1.0),),
        domain=(_WIDE,), wgsl="-{0}", numba="-{0}", jax="-{0}", sympy="-{0}",
    ),
    _row(
        "pow", "Power x ** y. Negative x: real only for integer y.", numpy=np.power, operands=_TWO,
        lanes=False,
        partials=(
            lambda m, x, p, y: m.where(
                m.logical_or(m.ne(x, 0.0), m.ge(p, 1.0)), p * m.pow(x, p - 1.0), 0.0
            ),
            lambda m, x, p, y: m.where(m.gt(x, 0.0), y * m.log(x), 0.0),
        ),
        domain=(_POSITIVE, _WIDE), cost=20,
        singular=(
            Singular(at=(0.0, 0.5), value=0.0, partials=(0.0, 0.0)),
            Singular(at=(0.0, 0.0), value=1.0, partials=(0.0, 0.0)),
            Singular(at=(0.0, 1.0), value=0.0, partials=(1.0, 0.0)),
            Singular(at=(0.0, 2.0), value=0.0, partials=(0.0, 0.0)),
            Singular(at=(-2.0, 3.0), value=-8.0, partials=(12.0, 0.0), note="integer exponent"),
        ),
        wgsl="ag_pow({0}, {1})", numba="math.pow({0}, {1})", jax="jnp.power({0}, {1})",
        sympy="{0} ** {1}",
    ),
    _row(
        "sqrt", "Square root; NaN for x < 0.", numpy=np.sqrt, cost=4,
        partials=(lambda m, x, y: m.where(m.gt(x, 0.0), 0.5 / y, 0.0),),
        domain=(_POSITIVE,), singular=(Singular(at=(0.0,), value=0.0, partials=(0.0,)),),
        **_spell("sqrt"),
    ),
    _row(
        "cbrt", "Real cube root, odd in x.", lanes=False, numpy=np.cbrt, cost=20,
        partials=(lambda m, x, y: m.where(m.ne(x, 0.0), (1.0 / 3.0) / (y * y), 0.0),),
        domain=(_POSITIVE,),
        singular=(
            Singular(at=(0.0,), value=0.0, partials=(0.0,)),
            Singular(at=(-8.0,), value=-2.0, partials=(1.0 / 12.0,)),
        ),
        wgsl="ag_cbrt({0})", numba="np.cbrt({0})", jax="jnp.cbrt({0})",
        sympy="sympy.Piecewise((sympy.cbrt({0}), sympy.Ge({0}, 0, evaluate=False)), "
        "(-sympy.cbrt(-{0}), True), evaluate=False)",
    ),
    _row(
        "abs", "Absolute value.", numpy=np.abs,
        partials=(lambda m, x, y: m.sign(x),), domain=(_WIDE,),
        singular=(Singular(at=(0.0,), value=0.0, partials=(0.0,)),),
        wgsl="abs({0})", numba="abs({0})", jax="jnp.abs({0})",
        sympy="sympy.Abs({0}, evaluate=False)",
    ),
    _row(
        "sign", "-1, 0 or 1.", numpy=np.sign, partials=(_zero,), domain=(_WIDE,),
        singular=(Singular(at=(0.0,), value=0.0, partials=(0.0,)),),
        wgsl="sign({0})", numba="np.sign({0})", jax="jnp.sign({0})",
        sympy="sympy.sign({0}, evaluate=False)",
    ),
    _row(
        "minimum", "Smaller of a and b; a tie belongs to the first operand.",
        numpy=np.minimum, operands=_TWO, domain=(_WIDE, _WIDE),
        partials=(
            lambda m, a, b, y: m.where(m.le(a, b), 1.0, 0.0),
            lambda m, a, b, y: m.where(m.le(a, b), 0.0, 1.0),
        ),
        singular=(Singular(at=(1.0, 1.0), value=1.0, partials=(1.0, 0.0), note="tie"),),
        wgsl="ag_min({0}, {1})", numba="np.minimum({0}, {1})", jax="jnp.minimum({0}, {1})",
        sympy="sympy.Min({0}, {1}, evaluate=False)",
    ),
    _row(
        "maximum", "Larger of a and b; a tie belongs to the first operand.",
        numpy=np.maximum, operands=_TWO, domain=(_WIDE, _WIDE),
        partials=(
            lambda m, a, b, y: m.where(m.ge(a, b), 1.0, 0.0),
            lambda m, a, b, y: m.where(m.ge(a, b), 0.0, 1.0),
        ),
        singular=(Singular(at=(1.0, 1.0), value=1.0, partials=(1.0, 0.0), note="tie"),),
        wgsl="ag_max({0}, {1})", numba="np.maximum({0}, {1})", jax="jnp.maximum({0}, {1})",
        sympy="sympy.Max({0}, {1}, evaluate=False)",
    ),
    _row(
        "floor", "Largest integer not above x.", numpy=np.floor, partials=(_zero,),
        domain=(_WIDE,), singular=(Singular(at=(2.0,), value=2.0, partials=(0.0,)),),
        wgsl="floor({0})", numba="np.floor({0})", jax="jnp.floor({0})",
        sympy="sympy.floor({0}, evaluate=False)",
    ),
    _row(
        "ceil", "Smallest integer not below x.", numpy=np.ceil, partials=(_zero,),
        domain=(_WIDE,), singular=(Singular(at=(2.0,), value=2.0, partials=(0.0,)),),
        wgsl="ceil({0})", numba="np.ceil({0})", jax="jnp.ceil({0})",
        sympy="sympy.ceiling({0}, evaluate=False)",
    ),
    _row(
        "round", "Nearest integer, ties to even.", numpy=np.rint, partials=(_zero,),
        domain=(_WIDE,),
        singular=(
            Singular(at=(0.5,), value=0.0, partials=(0.0,)),
            Singular(at=(1.5,), value=2.0, partials=(0.0,)),
        ),
        wgsl="round({0})", numba="np.rint({0})", jax="jnp.rint({0})",
        # ⌈x - ½⌉ and ⌊x + ½⌋ differ at ties alone, where 2⌊x/2 + ¼⌋ is the even one of the two.
        sympy="sympy.Min(sympy.floor({0} + sympy.S.Half, evaluate=False), "
        "sympy.Max(sympy.ceiling({0} - sympy.S.Half, evaluate=False), "
        "2 * sympy.floor({0} / 2 + sympy.Rational(1, 4), evaluate=False), evaluate=False), "
        "evaluate=False)",
    ),
    _row(
        "mod", "a - b floor(a / b), with the sign of b.", numpy=np.mod, operands=_TWO, cost=8,
        lanes=False,
        partials=(
            lambda m, a, b, y: m.constant(1.0),
            lambda m, a, b, y: -m.floor(a / b),
        ),
        domain=(_WIDE, (0.3, 2.0)),
        singular=(
            Singular(at=(4.0, 2.0), value=0.0, partials=(1.0, -2.0), note="right limit at a jump"),
            Singular(at=(-1.0, 4.0), value=3.0, partials=(1.0, 1.0)),
        ),
        wgsl="ag_mod({0}, {1})", numba="{0} % {1}", jax="jnp.mod({0}, {1})",
        sympy="{0} - {1} * sympy.floor({0} / {1}, evaluate=False)",
    ),
    _row(
        "reciprocal", "1 / x; a pole at 0.", numpy=np.reciprocal, domain=(_POSITIVE,),
        expand=lambda m, x: 1.0 / x,
    ),
    _row("square", "x².", numpy=np.square, domain=(_WIDE,), expand=lambda m, x: x * x),
    _row("cube", "x³.", numpy=lambda x: x * x * x, domain=(_WIDE,),
         expand=lambda m, x: x * x * x),
    _row(
        "clip", "x limited to [low, high]; a bound's tie belongs to x.",
        numpy=np.clip, operands=(REAL, REAL, REAL),
        domain=(_WIDE, (-1.5, -0.5), (0.5, 1.5)),
        singular=(
            Singular(at=(-1.0, -1.0, 1.0), value=-1.0, partials=(1.0, 0.0, 0.0)),
            Singular(at=(1.0, -1.0, 1.0), value=1.0, partials=(1.0, 0.0, 0.0)),
        ),
        expand=lambda m, x, low, high: m.minimum(m.maximum(x, low), high),
    ),
)  # fmt: skip


def _hypot_partial(m: Any, side: Any, y: Any) -> Any:
    return m.where(m.gt(y, 0.0), side / y, 0.0)


_erf = np.frompyfunc(erf, 1, 1)


def _numpy_erf(x: Any) -> Any:
    """Error function without SciPy: L0 knows NumPy only, and the oracle may be slow."""
    x = np.asarray(x)
    return np.asarray(_erf(x), dtype=x.dtype if x.dtype.kind == "f" else np.float64)


def _numpy_sigmoid(x: Any) -> Any:
    e: NDArray[Any] = np.exp(-np.abs(x))
    return np.where(np.asarray(x) >= 0.0, 1.0 / (1.0 + e), e / (1.0 + e))


_ELEMENTARY = (
    _row(
        "exp", "Exponential.", numpy=np.exp, partials=(lambda m, x, y: y,), domain=(_WIDE,),
        cost=10, **_spell("exp", wgsl="ag_exp"),
    ),
    _row(
        "log", "Natural logarithm; a pole at 0, NaN below.", numpy=np.log, cost=10,
        partials=(lambda m, x, y: 1.0 / x,), domain=(_POSITIVE,), **_spell("log", wgsl="ag_log"),
    ),
    _row(
        "expm1", "exp(x) - 1, accurate near 0.", lanes=False, numpy=np.expm1, cost=12,
        partials=(lambda m, x, y: y + 1.0,), domain=(_WIDE,),
        **_spell("expm1", wgsl="ag_expm1", sympy="sympy.exp({0}) - 1"),
    ),
    _row(
        "log1p", "log(1 + x), accurate near 0.", lanes=False, numpy=np.log1p, cost=12,
        partials=(lambda m, x, y: 1.0 / (1.0 + x),), domain=((-0.9, 5.0),),
        **_spell("log1p", wgsl="ag_log1p", sympy="sympy.log(1 + {0})"),
    ),
    _row(
        "sin", "Sine, radians.", numpy=np.sin, partials=(lambda m, x, y: m.cos(x),),
        domain=((-9.0, 9.0),), cost=10, **_spell("sin", wgsl="ag_sin"),
    ),
    _row(
        "cos", "Cosine, radians.", numpy=np.cos, partials=(lambda m, x, y: -m.sin(x),),
        domain=((-9.0, 9.0),), cost=10, **_spell("cos", wgsl="ag_cos"),
    ),
    _row(
        "tan", "Tangent, radians; poles at odd multiples of π/2.", numpy=np.tan, cost=16,
        lanes=False,
        partials=(lambda m, x, y: 1.0 + y * y,), domain=((-1.3, 1.3),),
        **_spell("tan", wgsl="ag_tan"),
    ),
    _row(
        "asin", "Arc sine; NaN outside [-1, 1].", lanes=False, numpy=np.arcsin, cost=16,
        partials=(
            lambda m, x, y: m.where(m.lt(m.abs(x), 1.0), 1.0 / m.sqrt((1.0 - x) * (1.0 + x)), 0.0),
        ),
        domain=(_UNIT,),
        singular=(
            Singular(at=(1.0,), value=pi / 2, partials=(0.0,)),
            Singular(at=(-1.0,), value=-pi / 2, partials=(0.0,)),
        ),
        **_spell("asin", wgsl="ag_asin", jax="arcsin"),
    ),
    _row(
        "acos", "Arc cosine; NaN outside [-1, 1].", lanes=False, numpy=np.arccos, cost=16,
        partials=(
            lambda m, x, y: m.where(m.lt(m.abs(x), 1.0), -1.0 / m.sqrt((1.0 - x) * (1.0 + x)), 0.0),
        ),
        domain=(_UNIT,),
        singular=(
            Singular(at=(1.0,), value=0.0, partials=(0.0,)),
            Singular(at=(-1.0,), value=pi, partials=(0.0,)),
        ),
        **_spell("acos", wgsl="ag_acos", jax="arccos"),
    ),
    _row(
        "atan", "Arc tangent.", numpy=np.arctan, cost=14,
        partials=(lambda m, x, y: 1.0 / (1.0 + x * x),), domain=(_WIDE,),
        **_spell("atan", wgsl="ag_atan", jax="arctan"),
    ),
    _row(
        "atan2", "Angle of the point (x, y), in (-π, π]; 0 at the origin.", numpy=np.arctan2,
        operands=_TWO, cost=20, domain=(_WIDE, _POSITIVE),
        partials=(
            lambda m, y, x, v: m.where(m.gt(x * x + y * y, 0.0), x / (x * x + y * y), 0.0),
            lambda m, y, x, v: m.where(m.gt(x * x + y * y, 0.0), -y / (x * x + y * y), 0.0),
        ),
        singular=(
            Singular(at=(0.0, 0.0), value=0.0, partials=(0.0, 0.0)),
            Singular(at=(0.0, -1.0), value=pi, partials=(-1.0, 0.0), note="branch cut"),
            Singular(at=(1.0, 0.0), value=pi / 2, partials=(0.0, -1.0)),
            Singular(at=(-1.0, -1.0), value=-0.75 * pi, partials=(-0.5, 0.5)),
        ),
        **_spell("atan2", 2, wgsl="ag_atan2", jax="arctan2",
                 sympy="sympy.atan2({0}, {1}, evaluate=False)"),
    ),
    _row(
        "sinh", "Hyperbolic sine.", numpy=np.sinh, partials=(lambda m, x, y: m.cosh(x),),
        lanes=False,
        domain=(_WIDE,), cost=14, **_spell("sinh", wgsl="ag_sinh"),
    ),
    _row(
        "cosh", "Hyperbolic cosine.", numpy=np.cosh, partials=(lambda m, x, y: m.sinh(x),),
        lanes=False,
        domain=(_WIDE,), cost=14, **_spell("cosh", wgsl="ag_cosh"),
    ),
    _row(
        "tanh", "Hyperbolic tangent.", lanes=False, numpy=np.tanh, cost=14,
        partials=(lambda m, x, y: 1.0 - y * y,), domain=(_WIDE,),
        singular=(Singular(at=(100.0,), value=1.0, partials=(0.0,), note="saturated"),),
        **_spell("tanh", wgsl="ag_tanh"),
    ),
    _row(
        "erf", "Error function 2/√π ∫₀ˣ exp(-t²) dt.", lanes=False, numpy=_numpy_erf, cost=20,
        partials=(lambda m, x, y: (2.0 / pi**0.5) * m.exp(-(x * x)),), domain=(_WIDE,),
        wgsl="ag_erf({0})", numba="math.erf({0})", jax="jax.scipy.special.erf({0})",
        sympy="sympy.erf({0})",
    ),
    _row(
        "hypot", "√(a² + b²) without overflow.", numpy=np.hypot, operands=_TWO, cost=10,
        lanes=False,
        commutative=True, domain=(_WIDE, _WIDE),
        partials=(
            lambda m, a, b, y: _hypot_partial(m, a, y),
            lambda m, a, b, y: _hypot_partial(m, b, y),
        ),
        singular=(Singular(at=(0.0, 0.0), value=0.0, partials=(0.0, 0.0)),),
        **_spell("hypot", 2, wgsl="ag_hypot", sympy="sympy.sqrt({0} ** 2 + {1} ** 2)"),
    ),
    _row(
        "sigmoid", "1 / (1 + exp(-x)).", numpy=_numpy_sigmoid, cost=14,
        partials=(lambda m, x, y: y * (1.0 - y),), domain=(_WIDE,),
        singular=(Singular(at=(-200.0,), value=0.0, partials=(0.0,), note="saturated"),),
        wgsl="ag_sigmoid({0})", numba="1.0 / (1.0 + math.exp(-{0}))", jax="jax.nn.sigmoid({0})",
        sympy="1 / (1 + sympy.exp(-{0}))",
    ),
    _row(
        "softplus", "log(1 + exp(x)) without overflow.", numpy=lambda x: np.logaddexp(0.0, x),
        lanes=False,
        domain=(_WIDE,), cost=24,
        singular=(Singular(at=(200.0,), value=200.0, partials=(1.0,), note="saturated"),),
        partials=(lambda m, x, y: m.sigmoid(x),),
        wgsl="ag_softplus({0})",
        numba="max({0}, 0.0) + math.log1p(math.exp(-abs({0})))",
        jax="jax.nn.softplus({0})",
        sympy="sympy.log(1 + sympy.exp({0}))",
    ),
    _row(
        "relu", "max(0, x); derivative 0 at 0.", numpy=lambda x: np.maximum(0.0, x),
        domain=(_WIDE,), singular=(Singular(at=(0.0,), value=0.0, partials=(0.0,)),),
        expand=lambda m, x: m.maximum(0.0, x),
    ),
)  # fmt: skip


def _comparison(name: str, symbol: str, numpy: Any) -> Op:
    spelling = _infix(symbol, sympy=f"sympy.{name.title()}({{0}}, {{1}}, evaluate=False)")
    if name == "ne":
        # WGSL's own != becomes an ordered comparison in SPIR-V: false where one is NaN.
        spelling["wgsl"] = "!({0} == {1})"
    return _row(
        name, f"Whether a {symbol} b.", numpy=numpy, operands=_TWO, result=BOOL,
        commutative=name in ("eq", "ne"), domain=(_WIDE, _WIDE), **spelling,
    )  # fmt: skip


_LOGIC = (
    _comparison("lt", "<", np.less),
    _comparison("le", "<=", np.less_equal),
    _comparison("gt", ">", np.greater),
    _comparison("ge", ">=", np.greater_equal),
    _comparison("eq", "==", np.equal),
    _comparison("ne", "!=", np.not_equal),
    _row(
        "logical_and", "Both a and b.", numpy=np.logical_and, operands=(BOOL, BOOL), result=BOOL,
        commutative=True, domain=((0, 1), (0, 1)),
        wgsl="{0} && {1}", numba="{0} and {1}", jax="jnp.logical_and({0}, {1})",
        sympy="sympy.And({0}, {1}, evaluate=False)",
    ),
    _row(
        "logical_or", "a or b or both.", numpy=np.logical_or, operands=(BOOL, BOOL), result=BOOL,
        commutative=True, domain=((0, 1), (0, 1)),
        wgsl="{0} || {1}", numba="{0} or {1}", jax="jnp.logical_or({0}, {1})",
        sympy="sympy.Or({0}, {1}, evaluate=False)",
    ),
    _row(
        "logical_not", "Not a.", numpy=np.logical_not, operands=(BOOL,), result=BOOL,
        domain=((0, 1),), wgsl="!{0}", numba="not {0}", jax="jnp.logical_not({0})",
        sympy="sympy.Not({0}, evaluate=False)",
    ),
    _row(
        "where", "a where the condition holds, b elsewhere. Both are evaluated.",
        numpy=np.where, operands=(BOOL, REAL, REAL), domain=((0, 1), _WIDE, _WIDE),
        # WGSL's select takes the value for false first.
        wgsl="select({2}, {1}, {0})", numba="({1} if {0} else {2})",
        jax="jnp.where({0}, {1}, {2})",
        sympy="sympy.Piecewise(({1}, {0}), ({2}, True), evaluate=False)",
    ),
)  # fmt: skip

OPS: dict[str, Op] = {op.name: op for op in (*_ARITHMETIC, *_ELEMENTARY, *_LOGIC)}
"""Every op by name."""

NODE_OPS: dict[str, Op] = {name: op for name, op in OPS.items() if op.expand is None}
"""The ops that occur as nodes of a graph."""

LEAVES = ("input", "const")
"""Node kinds that are not ops: a component of an argument, and a literal."""


class NumpyAlgebra:
    """The algebra of arrays: ``m.sin(x)`` evaluates. Used by the oracle and by tests of rules."""

    def constant(self, value: float) -> float:
        """Return the number itself."""
        return value

    def __getattr__(self, name: str) -> Any:
        try:
            return OPS[name].numpy
        except KeyError:
            raise AttributeError(name) from None


NUMPY_ALGEBRA = NumpyAlgebra()

__all__ = [
    "BOOL", "INT", "LEAVES", "NODE_OPS", "NUMPY_ALGEBRA", "OPS", "REAL",
    "DType", "Interval", "NumpyAlgebra", "Op", "Singular",
]  # fmt: skip
