"""The least-squares problems of Moré, Garbow and Hillstrom, with their starts and minima.

Numbers and names are those of the paper, Σf² is its objective (twice the cost here), and the order
is the paper's. One misprint is corrected as MINPACK has it: in Gulf research and development
|y - x₂| stands where the paper has y·m·i·x₂.

Source: Moré, Garbow, Hillstrom 1981, "Testing unconstrained optimization software", ACM
Transactions on Mathematical Software 7(1), §3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Listed:
    """A problem of the paper.

    Attributes:
        fn: residuals of the point x, or of x and a row of each of ``data``.
        start: the standard one.
        minima: of Σf², as the paper lists them.
        data: columns; one element a row. None for one element without data.
    """

    fn: Callable[..., Any]
    start: Sequence[float]
    minima: tuple[float, ...]
    data: tuple[FloatArray, ...] = ()

    def problem(self) -> ag.Problem:
        """The problem, its only array being ``x``, one block."""
        problem = ag.Problem()
        x = problem.parameters("x", [list(self.start)])
        problem.add_residuals(self.fn, x[0] if self.data else x, *self.data, name="f")
        return problem


def _column(numbers: str) -> FloatArray:
    return np.array(numbers.split(), np.float64)


# -- few unknowns ------------------------------------------------------------------------------


def rosenbrock(x: Any) -> list[Any]:
    return [10.0 * (x[1] - x[0] ** 2), 1.0 - x[0]]


def freudenstein_roth(x: Any) -> list[Any]:
    return [
        -13.0 + x[0] + ((5.0 - x[1]) * x[1] - 2.0) * x[1],
        -29.0 + x[0] + ((x[1] + 1.0) * x[1] - 14.0) * x[1],
    ]


def powell_badly_scaled(x: Any) -> list[Any]:
    return [1e4 * x[0] * x[1] - 1.0, ag.exp(-x[0]) + ag.exp(-x[1]) - 1.0001]


def brown_badly_scaled(x: Any) -> list[Any]:
    return [x[0] - 1e6, x[1] - 2e-6, x[0] * x[1] - 2.0]


def beale(x: Any) -> list[Any]:
    return [y - x[0] * (1.0 - x[1] ** k) for k, y in ((1, 1.5), (2, 2.25), (3, 2.625))]


def jennrich_sampson(x: Any, i: Any) -> Any:
    return 2.0 + 2.0 * i - (ag.exp(i * x[0]) + ag.exp(i * x[1]))


def helical_valley(x: Any) -> list[Any]:
    # θ runs from -1/4 to 3/4 of a turn, and is cut along the negative second axis.
    theta = ag.atan2(x[1], x[0]) / (2.0 * math.pi)
    return [10.0 * (x[2] - 10.0 * theta), 10.0 * (ag.hypot(x[0], x[1]) - 1.0), x[2]]


def bard(x: Any, u: Any, v: Any, w: Any, y: Any) -> Any:
    return y - (x[0] + u / (v * x[1] + w * x[2]))


def gaussian(x: Any, t: Any, y: Any) -> Any:
    return x[0] * ag.exp(-x[1] * (t - x[2]) ** 2 / 2.0) - y


def meyer(x: Any, t: Any, y: Any) -> Any:
    return x[0] * ag.exp(x[1] / (t + x[2])) - y


def gulf(x: Any, t: Any, y: Any) -> Any:
    return ag.exp(-(ag.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x: Any, t: Any) -> Any:
    return ag.exp(-t * x[0]) - ag.exp(-t * x[1]) - x[2] * (ag.exp(-t) - ag.exp(-10.0 * t))


def powell_singular(x: Any) -> list[Any]:
    return [
        x[0] + 10.0 * x[1],
        5.0**0.5 * (x[2] - x[3]),
        (x[1] - 2.0 * x[2]) ** 2,
        10.0**0.5 * (x[0] - x[3]) ** 2,
    ]


def wood(x: Any) -> list[Any]:
    return [
        10.0 * (x[1] - x[0] ** 2),
        1.0 - x[0],
        90.0**0.5 * (x[3] - x[2] ** 2),
        1.0 - x[2],
        10.0**0.5 * (x[1] + x[3] - 2.0),
        10.0**-0.5 * (x[1] - x[3]),
    ]


def kowalik_osborne(x: Any, u: Any, y: Any) -> Any:
    return y - x[0] * (u * u + u * x[1]) / (u * u + u * x[2] + x[3])


def brown_dennis(x: Any, t: Any) -> Any:
    return (x[0] + t * x[1] - ag.exp(t)) ** 2 + (x[2] + x[3] * ag.sin(t) - ag.cos(t)) ** 2


def osborne_1(x: Any, t: Any, y: Any) -> Any:
    return y - (x[0] + x[1] * ag.exp(-t * x[3]) + x[2] * ag.exp(-t * x[4]))


def biggs(x: Any, t: Any, y: Any) -> Any:
    return x[2] * ag.exp(-t * x[0]) - x[3] * ag.exp(-t * x[1]) + x[5] * ag.exp(-t * x[4]) - y


def osborne_2(x: Any, t: Any, y: Any) -> Any:
    peaks = [x[k] * ag.exp(-((t - x[k + 7]) ** 2) * x[k + 4]) for k in (1, 2, 3)]
    return y - (x[0] * ag.exp(-t * x[4]) + peaks[0] + peaks[1] + peaks[2])


# -- any number of unknowns --------------------------------------------------------------------


def watson(x: Any) -> list[Any]:
    n = len(x)
    rows: list[Any] = []
    for i in range(1, 30):
        t = i / 29.0
        slope = ag.sum([(j * t ** (j - 1)) * x[j] for j in range(1, n)])
        value = ag.sum([t**j * x[j] for j in range(n)])
        rows.append(slope - value * value - 1.0)
    return [*rows, x[0], x[1] - x[0] ** 2 - 1.0]


def extended_rosenbrock(x: Any) -> list[Any]:
    return [r for k in range(0, len(x), 2) for r in rosenbrock(x[k : k + 2])]


def extended_powell_singular(x: Any) -> list[Any]:
    return [r for k in range(0, len(x), 4) for r in powell_singular(x[k : k + 4])]


def penalty_1(x: Any) -> list[Any]:
    return [*(1e-5**0.5 * (v - 1.0) for v in x), ag.sum([v * v for v in x]) - 0.25]


def penalty_2(x: Any) -> list[Any]:
    n, root = len(x), 1e-5**0.5
    y = [math.exp((i + 1) / 10.0) + math.exp(i / 10.0) for i in range(n)]
    return [
        x[0] - 0.2,
        *(root * (ag.exp(x[i] / 10.0) + ag.exp(x[i - 1] / 10.0) - y[i]) for i in range(1, n)),
        *(root * (ag.exp(x[i] / 10.0) - math.exp(-0.1)) for i in range(1, n)),
        ag.sum([(n - j) * x[j] ** 2 for j in range(n)]) - 1.0,
    ]


def variably_dimensioned(x: Any) -> list[Any]:
    total = ag.sum([(j + 1.0) * (v - 1.0) for j, v in enumerate(x)])
    return [*(v - 1.0 for v in x), total, total**2]


def trigonometric(x: Any) -> list[Any]:
    n = len(x)
    cosines = ag.sum([ag.cos(v) for v in x])
    return [n - cosines + (i + 1) * (1.0 - ag.cos(v)) - ag.sin(v) for i, v in enumerate(x)]


def brown_almost_linear(x: Any) -> list[Any]:
    n = len(x)
    total, product = ag.sum(list(x)), 1.0
    for v in x:
        product = product * v
    return [*(v + total - (n + 1.0) for v in x[: n - 1]), product - 1.0]


def discrete_boundary_value(x: Any) -> list[Any]:
    n = len(x)
    h = 1.0 / (n + 1)
    padded = [0.0, *x, 0.0]
    return [
        2.0 * padded[i] - padded[i - 1] - padded[i + 1]
        + h * h * (padded[i] + i * h + 1.0) ** 3 / 2.0
        for i in range(1, n + 1)
    ]  # fmt: skip


def discrete_integral(x: Any) -> list[Any]:
    n = len(x)
    h = 1.0 / (n + 1)
    t = [(j + 1) * h for j in range(n)]
    cubes = [(v + s + 1.0) ** 3 for v, s in zip(x, t, strict=True)]
    rows: list[Any] = []
    for i in range(n):
        below = ag.sum([t[j] * cubes[j] for j in range(i + 1)])
        above = ag.sum([0.0, *((1.0 - t[j]) * cubes[j] for j in range(i + 1, n))])
        rows.append(x[i] + 0.5 * h * ((1.0 - t[i]) * below + t[i] * above))
    return rows


def broyden_tridiagonal(x: Any) -> list[Any]:
    padded = [0.0, *x, 0.0]
    return [
        (3.0 - 2.0 * padded[i]) * padded[i] - padded[i - 1] - 2.0 * padded[i + 1] + 1.0
        for i in range(1, len(x) + 1)
    ]


def broyden_banded(x: Any) -> list[Any]:
    n = len(x)
    rows: list[Any] = []
    for i in range(n):
        near = [j for j in range(max(0, i - 5), min(n, i + 2)) if j != i]
        band = ag.sum([x[j] * (1.0 + x[j]) for j in near])
        rows.append(x[i] * (2.0 + 5.0 * x[i] ** 2) + 1.0 - band)
    return rows


def linear_full_rank(rows: int) -> Callable[[Any], list[Any]]:
    def residuals(x: Any) -> list[Any]:
        total = 2.0 / rows * ag.sum(list(x)) + 1.0
        return [x[i] - total if i < len(x) else -total for i in range(rows)]

    return residuals


def linear_rank_1(rows: int) -> Callable[[Any], list[Any]]:
    def residuals(x: Any) -> list[Any]:
        total = ag.sum([(j + 1.0) * v for j, v in enumerate(x)])
        return [(i + 1.0) * total - 1.0 for i in range(rows)]

    return residuals


def linear_rank_1_zero(rows: int) -> Callable[[Any], list[Any]]:
    """Rank 1 with zero columns and rows."""

    def residuals(x: Any) -> list[Any]:
        total = ag.sum([(j + 1.0) * x[j] for j in range(1, len(x) - 1)])
        return [i * total - 1.0 if 0 < i < rows - 1 else -1.0 for i in range(rows)]

    return residuals


def chebyquad(x: Any) -> list[Any]:
    """Means of the shifted Chebyshev polynomials against their integrals, m = n."""
    n = len(x)
    shifted = [2.0 * v - 1.0 for v in x]
    before: list[Any] = [1.0] * n
    here: list[Any] = shifted
    rows: list[Any] = []
    for degree in range(1, n + 1):
        integral = -1.0 / (degree**2 - 1) if degree % 2 == 0 else 0.0
        rows.append(ag.sum(here) / n - integral)
        steps = zip(shifted, here, before, strict=True)
        before, here = here, [2.0 * s * h - b for s, h, b in steps]
    return rows


# -- data --------------------------------------------------------------------------------------

_I = np.arange(1.0, 34.0)
_BARD_Y = _column(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")
_GAUSSIAN_Y = _column(
    ".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989 .3521 .2420 .1295 .0540 .0175 .0044 .0009"
)
_MEYER_Y = _column(
    "34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872"
)
_KOWALIK_U = _column("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")
_KOWALIK_Y = _column(".1957 .1947 .1735 .16 .0844 .0627 .0456 .0342 .0323 .0235 .0246")
_OSBORNE_1_Y = _column(
    ".844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558 "
    ".538 .522 .506 .490 .478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"
)
_OSBORNE_2_Y = _column(
    "1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 .626 "
    ".651 .724 .649 .649 .694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372 .391 "
    ".396 .405 .428 .429 .523 .562 .607 .653 .672 .708 .633 .668 .645 .632 .591 .559 .597 .625 "
    ".739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054"
)


def _gulf_data(count: int) -> tuple[FloatArray, FloatArray]:
    t = np.arange(1.0, count + 1.0) / 100.0
    return t, 25.0 + (-50.0 * np.log(t)) ** (2.0 / 3.0)


def _biggs_data(count: int) -> tuple[FloatArray, FloatArray]:
    t = 0.1 * np.arange(1.0, count + 1.0)
    return t, np.exp(-t) - 5.0 * np.exp(-10.0 * t) + 3.0 * np.exp(-4.0 * t)


def _boundary_start(n: int) -> list[float]:
    t = np.arange(1.0, n + 1.0) / (n + 1.0)
    return (t * (t - 1.0)).tolist()


def _up(n: int, of: Callable[[int], float]) -> list[float]:
    return [of(j) for j in range(1, n + 1)]


LISTED = MappingProxyType(
    {
        "rosenbrock": Listed(rosenbrock, [-1.2, 1.0], (0.0,)),
        "freudenstein and roth": Listed(freudenstein_roth, [0.5, -2.0], (0.0, 48.98425)),
        "powell badly scaled": Listed(powell_badly_scaled, [0.0, 1.0], (0.0,)),
        "brown badly scaled": Listed(brown_badly_scaled, [1.0, 1.0], (0.0,)),
        "beale": Listed(beale, [1.0, 1.0], (0.0,)),
        "jennrich and sampson": Listed(jennrich_sampson, [0.3, 0.4], (124.3622,), (_I[:10],)),
        "helical valley": Listed(helical_valley, [-1.0, 0.0, 0.0], (0.0,)),
        "bard": Listed(
            bard, [1.0, 1.0, 1.0], (8.214877e-3, 17.42869),
            (_I[:15], 16.0 - _I[:15], np.minimum(_I[:15], 16.0 - _I[:15]), _BARD_Y),
        ),
        "gaussian": Listed(
            gaussian, [0.4, 1.0, 0.0], (1.127933e-8,), ((8.0 - _I[:15]) / 2.0, _GAUSSIAN_Y)
        ),
        "meyer": Listed(
            meyer, [0.02, 4000.0, 250.0], (87.94586,), (45.0 + 5.0 * _I[:16], _MEYER_Y)
        ),
        "gulf research and development": Listed(gulf, [5.0, 2.5, 0.15], (0.0,), _gulf_data(99)),
        "box three-dimensional": Listed(box, [0.0, 10.0, 20.0], (0.0,), (0.1 * _I[:10],)),
        "powell singular": Listed(powell_singular, [3.0, -1.0, 0.0, 1.0], (0.0,)),
        "wood": Listed(wood, [-3.0, -1.0, -3.0, -1.0], (0.0,)),
        "kowalik and osborne": Listed(
            kowalik_osborne, [0.25, 0.39, 0.415, 0.39], (3.075056e-4, 1.027345e-3),
            (_KOWALIK_U, _KOWALIK_Y),
        ),
        "brown and dennis": Listed(
            brown_dennis, [25.0, 5.0, -5.0, -1.0], (85822.20,), (_I[:20] / 5.0,)
        ),
        "osborne 1": Listed(
            osborne_1, [0.5, 1.5, -1.0, 0.01, 0.02], (5.464895e-5,),
            (10.0 * (_I - 1.0), _OSBORNE_1_Y),
        ),
        "biggs exp6": Listed(
            biggs, [1.0, 2.0, 1.0, 1.0, 1.0, 1.0], (0.0, 5.655650e-3), _biggs_data(13)
        ),
        "osborne 2": Listed(
            osborne_2, [1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5], (4.013774e-2,),
            (np.arange(65.0) / 10.0, _OSBORNE_2_Y),
        ),
        "watson 6": Listed(watson, [0.0] * 6, (2.287670e-3,)),
        "watson 9": Listed(watson, [0.0] * 9, (1.399760e-6,)),
        "watson 12": Listed(watson, [0.0] * 12, (4.722381e-10,)),
        "extended rosenbrock 20": Listed(extended_rosenbrock, [-1.2, 1.0] * 10, (0.0,)),
        "extended powell singular 20": Listed(
            extended_powell_singular, [3.0, -1.0, 0.0, 1.0] * 5, (0.0,)
        ),
        "penalty 1, 4": Listed(penalty_1, _up(4, float), (2.249978e-5,)),
        "penalty 1, 10": Listed(penalty_1, _up(10, float), (7.087651e-5,)),
        "penalty 2, 4": Listed(penalty_2, [0.5] * 4, (9.376293e-6,)),
        "penalty 2, 10": Listed(penalty_2, [0.5] * 10, (2.936605e-4,)),
        "variably dimensioned 10": Listed(
            variably_dimensioned, _up(10, lambda j: 1.0 - j / 10.0), (0.0,)
        ),
        "trigonometric 10": Listed(trigonometric, [0.1] * 10, (0.0, 2.795056e-5)),
        "brown almost linear 10": Listed(brown_almost_linear, [0.5] * 10, (0.0, 1.0)),
        "discrete boundary value 10": Listed(discrete_boundary_value, _boundary_start(10), (0.0,)),
        "discrete integral equation 10": Listed(discrete_integral, _boundary_start(10), (0.0,)),
        "broyden tridiagonal 10": Listed(broyden_tridiagonal, [-1.0] * 10, (0.0,)),
        "broyden banded 10": Listed(broyden_banded, [-1.0] * 10, (0.0,)),
        "linear, full rank, 10 of 20": Listed(linear_full_rank(20), [1.0] * 10, (10.0,)),
        "linear, rank 1, 10 of 20": Listed(linear_rank_1(20), [1.0] * 10, (20 * 19 / (2 * 41),)),
        "linear, rank 1 with zeros, 10 of 20": Listed(
            linear_rank_1_zero(20), [1.0] * 10, ((400 + 60 - 6) / (2 * 37),)
        ),
        "chebyquad 7": Listed(chebyquad, _up(7, lambda j: j / 8.0), (0.0,)),
        "chebyquad 8": Listed(chebyquad, _up(8, lambda j: j / 9.0), (3.516874e-3,)),
        "chebyquad 10": Listed(chebyquad, _up(10, lambda j: j / 11.0), (6.503955e-3, 4.772714e-3)),
    }
)  # fmt: skip
"""By the paper's name, with the number of unknowns where it varies."""
