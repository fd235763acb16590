"""The number types in which WGSL kernels compute, and how each is written.

| precision | type | what |
|---|---|---|
| ``float32`` | ``f32`` | |
| ``float64-native`` | ``f64`` | where the device has it; its arithmetic only, no functions |
| ``float64-emulated`` | ``vec2<f32>`` | double-float: high + low part, an unevaluated sum of f32 |

Double-float has 48 bits of significand and the exponent range of float32; below about 3e-24 its
low part is subnormal, which drivers flush to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from autograd_gpu.codegen.printer import WGSL_FLOAT32, Dialect, checked_float32
from autograd_gpu.errors import InputError
from autograd_gpu.ops import BOOL, DType

FLOAT32_SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True, kw_only=True)
class WgslReal:
    """A number type.

    Attributes:
        precision: its name in the public face.
        type: its name in WGSL.
        words: 32-bit words that one number takes in a buffer.
        zero: literal 0.
        plus: sum of two expressions, as a format with two %s.
        minus, times, over: difference, product and quotient, alike.
        larger: the larger of two, neither of them NaN.
        above: whether the first is greater than the second.
        finite: whether one is neither infinite nor NaN.
        head: the nearest f32, or nearly.
        lift: the number of an f32.
        dialect: how ops, declarations and literals are written.
    """

    precision: str
    type: str
    words: int
    zero: str
    plus: str
    minus: str
    times: str
    over: str
    larger: str
    above: str
    finite: str
    head: str
    lift: str
    dialect: Dialect

    @property
    def forms(self) -> dict[str, str]:
        """How templates write arithmetic, by the names of ``templates/wgsl/reals.j2``."""
        names = "plus minus times over larger above finite head lift"
        return {name: getattr(self, name) for name in names.split()}


def _signed(value: Fraction | float, text: str) -> str:
    return f"({text})" if value < 0 else text


def native_literal(value: Fraction | float) -> str:
    """Literal of type f64, rounded to nearest."""
    return _signed(value, f"{float(value)!r}lf")


def split_number(value: Fraction | float) -> tuple[float, float]:
    """High and low part of the double-float nearest to ``value``; both are exact in float32."""
    high = float(np.float32(float(value)))
    low = float(np.float32(float(Fraction(value) - Fraction(high))))
    # WGSL may refuse a subnormal literal, and devices flush them.
    return high, low if abs(low) >= FLOAT32_SMALLEST_NORMAL else 0.0


def emulated_literal(value: Fraction | float) -> str:
    """Literal of a double-float.

    Raises:
        KernelError: the value is beyond float32, whose exponent range double-float shares.
    """
    checked_float32(float(value))
    high, low = split_number(value)
    return f"vec2<f32>({high!r}f, {low!r}f)"


def _declare(real: str, name: str, dtype: DType, text: str) -> str:
    return f"let {name}: {'bool' if dtype == BOOL else real} = {text};"


FLOAT32 = WgslReal(
    precision="float32",
    type="f32",
    words=1,
    zero="0.0f",
    plus="%s + %s",
    minus="%s - %s",
    times="%s * %s",
    over="%s / %s",
    larger="max(%s, %s)",
    above="%s > %s",
    finite="finite(%s)",
    head="%s",
    lift="%s",
    dialect=WGSL_FLOAT32,
)
NATIVE = WgslReal(
    precision="float64-native",
    type="f64",
    words=2,
    zero="0.0lf",
    plus="%s + %s",
    minus="%s - %s",
    times="%s * %s",
    over="%s / %s",
    larger="max(%s, %s)",
    above="%s > %s",
    finite="ag_is_finite(%s)",
    head="f32(%s)",
    lift="f64(%s)",
    dialect=Dialect(
        "wgsl_call", lambda n, d, t: _declare("f64", n, d, t), native_literal, "true", "false"
    ),
)
EMULATED = WgslReal(
    precision="float64-emulated",
    type="vec2<f32>",
    words=2,
    zero="vec2<f32>(0.0f, 0.0f)",
    plus="ag_add(%s, %s)",
    minus="ag_sub(%s, %s)",
    times="ag_mul(%s, %s)",
    over="ag_div(%s, %s)",
    larger="ag_max(%s, %s)",
    above="ag_gt(%s, %s)",
    finite="ag_is_finite(%s)",
    head="ag_head(%s)",
    lift="ag_real(%s)",
    dialect=Dialect(
        "wgsl_call",
        lambda n, d, t: _declare("vec2<f32>", n, d, t),
        emulated_literal,
        "true",
        "false",
    ),
)

WGSL_REALS = {real.precision: real for real in (FLOAT32, NATIVE, EMULATED)}
"""By precision."""

FLOAT64_ON_WGSL = (NATIVE.precision, EMULATED.precision)


def wgsl_real(precision: str) -> WgslReal:
    """The number type of a precision.

    Raises:
        InputError: there is none.
    """
    if precision not in WGSL_REALS:
        raise InputError(f"no WGSL number type for {precision!r}; known: {', '.join(WGSL_REALS)}")
    return WGSL_REALS[precision]
