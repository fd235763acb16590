"""Elementary functions in float64 that a compiler can run for several elements at once.

The C library's functions are calls, one element after another; these are straight-line arithmetic
with selects, so LLVM turns a loop over elements that uses them into vector instructions. Method
and constants are those of fdlibm (Sun Microsystems, 1993), its branches made selects: errors stay
below one unit in the last place, 1.5 for ``atan2``. ``sin`` and ``cos`` reduce their argument by a
three-part π/2 and are right up to ``lanes.FAR``, where the quotient has
19 bits; beyond it the kernel says so and its plain form runs.
"""

from __future__ import annotations

import functools
import importlib
import math as scalar
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
HALF_PI_1, HALF_PI_2 = 1.57079632673412561417e00, 6.07710050630396597660e-11
HALF_PI_3 = 2.02226624879595063154e-21
SIGN = np.int64(-(2**63))
TO_INTEGER = 6755399441055744.0  # 1.5 · 2⁵²: a number added to it is rounded into its last bits

Function = Callable[..., Any]


def _real(bits: Any) -> Any:
    return np.int64(bits).view(np.float64)


def _bits(x: Any) -> Any:
    return np.float64(x).view(np.int64)


def _exponential(jit: Function, bits: Function, real: Function) -> Function:
    ones = int(np.float64(TO_INTEGER).view(np.int64))

    def exp(x: Any) -> Any:
        bounded = min(max(x, -746.0), 710.0)
        shifted = bounded * 1.4426950408889634 + TO_INTEGER
        k = shifted - TO_INTEGER
        high = bounded - k * LN2_HIGH
        low = k * LN2_LOW
        r = high - low
        z = r * r
        p = 6.61375632143793436117e-05 + z * (
            -1.65339022054652515390e-06 + z * 4.13813679705723846039e-08
        )
        c = r - z * (1.66666666666666019037e-01 + z * (-2.77777777770155933842e-03 + z * p))
        value = 1.0 - ((low - (r * c) / (2.0 - c)) - high)
        # In two steps: 2ᵏ alone can be beyond the exponents of float64.
        n = bits(shifted) - ones
        half = n >> 1
        value = value * real((half + 1023) << 52) * real((n - half + 1023) << 52)
        return value if x == x else x

    return jit(exp)


def _logarithm(jit: Function, bits: Function, real: Function) -> Function:
    def log(x: Any) -> Any:
        tiny = x < 2.2250738585072014e-308
        word = bits(x * 18014398509481984.0 if tiny else x)
        # The mantissa between √½ and √2: where it is more, the exponent takes one.
        above = ((word & 0x000FFFFFFFFFFFFF) + 0x00095F6400000000) & 0x0010000000000000
        exponent = (word >> 52) - 1023 + (above >> 52)
        f = real((word & 0x000FFFFFFFFFFFFF) | (above ^ 0x3FF0000000000000)) - 1.0
        k = float(exponent) - (54.0 if tiny else 0.0)
        s = f / (2.0 + f)
        z = s * s
        w = z * z
        odd = w * (
            3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)
        )
        even = z * (
            6.666666666666735130e-01
            + w
            * (
                2.857142874366239149e-01
                + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)
            )
        )
        half = 0.5 * f * f
        value = k * LN2_HIGH - ((half - (s * (half + (odd + even)) + k * LN2_LOW)) - f)
        value = value if x > 0.0 else (-np.inf if x == 0.0 else np.nan)
        return x if x == np.inf else value

    return jit(log)


def _circular(jit: Function, bits: Function) -> tuple[Function, Function]:
    def quadrant(x: Any) -> Any:
        """Number of the quadrant, and the sine and cosine of what is left."""
        shifted = x * 6.36619772367581382433e-01 + TO_INTEGER
        k = shifted - TO_INTEGER
        first = x - k * HALF_PI_1
        second = first - k * HALF_PI_2
        lost = ((first - second) - k * HALF_PI_2) - k * HALF_PI_3
        y = second + lost
        rest = (second - y) + lost
        z = y * y
        v = z * y
        p = -1.98412698298579493134e-04 + z * (
            2.75573137070700676789e-06
            + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)
        )
        p = 8.33333333332248946124e-03 + z * p
        sine = y - ((z * (0.5 * rest - v * p) - rest) + v * 1.66666666666666324348e-01)
        q = 2.48015872894767294178e-05 + z * (
            -2.75573143513906633035e-07
            + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)
        )
        q = z * (4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * q))
        half = 0.5 * z
        near = 1.0 - half
        cosine = near + (((1.0 - near) - half) + (z * q - y * rest))
        return bits(shifted), sine, cosine

    reduced = jit(quadrant)

    def sin(x: Any) -> Any:
        n, sine, cosine = reduced(x)
        value = cosine if n & 1 else sine
        # Zero keeps its sign.
        return x if x == 0.0 else (-value if n & 2 else value)

    def cos(x: Any) -> Any:
        n, sine, cosine = reduced(x)
        value = sine if n & 1 else cosine
        return -value if (n + 1) & 2 else value

    return jit(sin), jit(cos)


def _arcs(jit: Function, bits: Function, real: Function) -> tuple[Function, Function]:
    def atan(x: Any) -> Any:
        t = abs(x)
        a, b, c, d = t < 0.4375, t < 0.6875, t < 1.1875, t < 2.4375
        above = t if a else (2.0 * t - 1.0 if b else (t - 1.0 if c else (t - 1.5 if d else -1.0)))
        below = 1.0 if a else (2.0 + t if b else (t + 1.0 if c else (1.0 + 1.5 * t if d else t)))
        high = (
            0.0
            if a
            else (
                4.63647609000806093515e-01
                if b
                else (
                    7.85398163397448278999e-01
                    if c
                    else (9.82793723247329054082e-01 if d else 1.57079632679489655800e00)
                )
            )
        )
        low = (
            0.0
            if a
            else (
                2.26987774529616870924e-17
                if b
                else (
                    3.06161699786838301793e-17
                    if c
                    else (1.39033110312309984516e-17 if d else 6.12323399573676603587e-17)
                )
            )
        )
        r = above / below
        z = r * r
        w = z * z
        odd = 6.66107313738753120669e-02 + w * (
            4.97687799461593236017e-02 + w * 1.62858201153657823623e-02
        )
        odd = 3.33333333333329318027e-01 + w * (
            1.42857142725034663711e-01 + w * (9.09088713343650656196e-02 + w * odd)
        )
        even = -7.69187620504482999495e-02 + w * (
            -5.83357013379057348645e-02 + w * -3.65315727442169155270e-02
        )
        even = -1.99999999998764832476e-01 + w * (-1.11111104054623557880e-01 + w * even)
        value = high - ((r * (z * odd + w * even) - low) - r)
        return real(bits(value) | (bits(x) & SIGN))

    arc = jit(atan)

    def atan2(y: Any, x: Any) -> Any:
        across, along = abs(y), abs(x)
        ratio = 1.0 if across == along else across / along
        angle = arc(0.0 if across == 0.0 else ratio)
        left = bits(x) < 0 and (along > 0.0 or across == 0.0)
        angle = 3.141592653589793 - (angle - 1.2246467991473532e-16) if left else angle
        return real(bits(angle) | (bits(y) & SIGN)) if x == x and y == y else x + y

    return arc, jit(atan2)


@functools.cache
def lane_math() -> ModuleType:
    """A module like ``math`` whose functions Numba can run in vector instructions."""
    numba: Any = importlib.import_module("numba")
    jit: Function = numba.njit(error_model="numpy", nogil=True, forceinline=True)
    bits, real = jit(_bits), jit(_real)
    module: Any = ModuleType("lane_math")
    module.sqrt = scalar.sqrt
    module.exp = _exponential(jit, bits, real)
    module.log = _logarithm(jit, bits, real)
    module.sin, module.cos = _circular(jit, bits)
    module.atan, module.atan2 = _arcs(jit, bits, real)
    return module


def __getattr__(name: str) -> object:
    """``math``, as the generated text of kernels calls it; made when first asked for."""
    if name == "math":
        return lane_math()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
