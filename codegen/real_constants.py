"""Constants and polynomial tables of the elementary functions, exact, and split as each needs.

Everything is a fraction here and becomes a literal of either number type at the end, so one set of
functions serves native f64 and double-float. Most tables are coefficients of Taylor series whose
last term is below 2^-56 on the reduced interval. Two are Chebyshev fits, by ``mpmath.chebyfit``
with 50 digits; ``tests/test_real_functions.py`` holds them against their definition.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import factorial

from autograd_gpu.codegen.wgsl_reals import (
    EMULATED,
    WgslReal,
    emulated_literal,
    native_literal,
    split_number,
)

HALF_PI = Fraction("1.57079632679489661923132169163975144209858469968755341583534")
LN_2 = Fraction("0.6931471805599453094172321214581765680755001343602549961192")
TWO_OVER_SQRT_PI = Fraction("1.128379167095512573896158903121545171688101258658")

ARC_SINE = (
    "0.166666666666666678265235",
    "0.0749999999999843293316899",
    "0.044642857146355429782649",
    "0.0303819441385312472866158",
    "0.0223721729421498878749876",
    "0.0173523927208699729415156",
    "0.0139712129735529333041867",
    "0.0114791774151849058957905",
    "0.0103228143501857792869049",
    "0.00545750671864035830041967",
    "0.0174008794426940224429948",
    "-0.0148518870712472032242461",
    "0.0287578513674215647080591",
)
"""(asin x - x) / x³ over z = x² in [0, 1/4]; relative error 2e-17."""

ERFC_MIDDLE, ERFC_HALF_WIDTH = Fraction(11, 24), Fraction(5, 24)
ERFC = (
    "0.221429540229931835055254",
    "0.161893568041024978299651",
    "0.0385605704251787510174758",
    "0.00558881628184014831128116",
    "0.000197139177805045277449833",
    "-0.000080792204274463083979522",
    "-0.00000734051855452813668529868",
    "0.00000197956191179483777305813",
    "0.0000001635017933188847532773",
    "-7.00535615043275992308891e-8",
    "-5.93764293464901290491068e-10",
    "2.62480307317917332789061e-9",
    "-2.62604174498242668404102e-10",
    "-7.45510449620630994870308e-11",
    "1.83867534059934218696912e-11",
    "4.41338503294669838154525e-13",
)
"""exp(x²) erfc(x) over t = 1 / (1 + x/2) = 11/24 + 5/24 u, u in [-1, 1], so x from 1 to 6;
absolute error 4e-17."""

ARC_TANGENTS = (
    "0.0",
    "0.124354994546761435031354849163871025573170192",
    "0.244978663126864154172082481211275810914144098",
    "0.358770670270572220395920063926460499776975656",
    "0.463647609000806116214256231461214402028537054",
    "0.558599315343562435971508216401661270346447583",
    "0.643501108793284386802809228717322638041510591",
    "0.71882999962162450541701415152590465395141912",
    "0.78539816339744830961566084581987572104929235",
)
"""atan(k / 8), k from 0 to 8."""


def _taylor_tables() -> dict[str, list[Fraction]]:
    one = Fraction(1)
    return {
        # exp r = 1 + r + r² P(r), |r| <= 1/2
        "exp": [one / factorial(k + 2) for k in range(15)],
        # sin r = r + r³ P(r²), cos r = 1 - r²/2 + r⁴ P(r²), |r| <= 0.9
        "sin": [one * (-1) ** (k + 1) / factorial(2 * k + 3) for k in range(9)],
        "cos": [one * (-1) ** k / factorial(2 * k + 4) for k in range(9)],
        # sinh x = x + x³ P(x²), |x| <= 1
        "sinh": [one / factorial(2 * k + 3) for k in range(9)],
        # log(1+f) = 2s + s z P(z), s = f / (2+f), z = s², |s| <= 0.172
        "log": [Fraction(2, 2 * k + 3) for k in range(11)],
        # atan u = u + u³ P(u²), |u| <= 1/16
        "atan": [Fraction((-1) ** (k + 1), 2 * k + 3) for k in range(7)],
        # erf x = x P(x²), |x| <= 1
        "erf": [TWO_OVER_SQRT_PI * (-1) ** k / (factorial(k) * (2 * k + 1)) for k in range(19)],
    }


def leading_bits(value: Fraction, bits: int) -> Fraction:
    """The first ``bits`` binary digits of a positive number, the rest cut off."""
    scale = Fraction(1)
    while value * scale >= 1:
        scale /= 2
    while value * scale < Fraction(1, 2):
        scale *= 2
    return Fraction(int(value * scale * 2**bits), 2**bits) / scale


@dataclass(frozen=True, slots=True, kw_only=True)
class RealConstants:
    """Literals for the templates, by name; tables with their length."""

    constants: dict[str, str]
    tables: dict[str, list[str]]


def real_constants(real: WgslReal) -> RealConstants:
    """Constants in a float64 number type.

    Multiples n of ln 2 and π/2 are subtracted in parts. All parts but the last are so short that
    their product with n is exact: n has up to 11 bits for ln 2 and 24 for π/2.
    """
    emulated = real is EMULATED
    write = emulated_literal if emulated else native_literal
    ln2_high = leading_bits(LN_2, 13 if emulated else 40)
    pi_bits = 24 if emulated else 29
    half_pi_1 = leading_bits(HALF_PI, pi_bits)
    half_pi_2 = leading_bits(HALF_PI - half_pi_1, pi_bits)
    tables = _taylor_tables()
    tables["asin"] = [Fraction(c) for c in ARC_SINE]
    tables["erfc"] = [Fraction(c) for c in ERFC]
    constants = {
        "ln2_high": ln2_high,
        "ln2_low": LN_2 - ln2_high,
        "half_pi_1": half_pi_1,
        "half_pi_2": half_pi_2,
        "half_pi_3": HALF_PI - half_pi_1 - half_pi_2,
        "half_pi": HALF_PI,
        "half_pi_rest": HALF_PI - _nearest(HALF_PI, emulated),
        "pi": 2 * HALF_PI,
        "quarter_pi": HALF_PI / 2,
        "erfc_middle": ERFC_MIDDLE,
        "erfc_scale": 1 / ERFC_HALF_WIDTH,
        "third": Fraction(1, 3),
    }
    return RealConstants(
        constants={name: write(value) for name, value in constants.items()},
        tables={
            **{name: [write(v) for v in values] for name, values in tables.items()},
            "arc_tangents": [write(Fraction(v)) for v in ARC_TANGENTS],
        },
    )


def _nearest(value: Fraction, emulated: bool) -> Fraction:
    """The number that a literal of ``value`` stands for."""
    if not emulated:
        return Fraction(float(value))
    high, low = split_number(value)
    return Fraction(high) + Fraction(low)
