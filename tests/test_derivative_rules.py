"""First and second derivatives of every op, as graphs evaluated with 50 digits, against mpmath.

With 50 digits no rounding hides a wrong rule, and points may lie as close to a singular point as
one likes; only literals (1/3, 2/√π) are rounded to float64, which the tolerance allows for. The
same graphs in float64 are checked more loosely: there a formula may cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pytest
from test_ops import mp, mp_function, sample, traced

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.ops import BOOL, OPS, Op
from tolerances import Tolerance

RULES_HOLD = Tolerance(1e-15, 1e-40, "literals are float64; saturated values are below 1e-80")
IN_FLOAT64 = Tolerance(1e-8, 1e-12, "1 - x at a distance of 1e-4 from 1 keeps 12 digits")
CLOSE = (1e-4, 1e-9)
"""Distances from the documented singular points; float64 is checked at the first."""

LIFTED: dict[str, Callable[..., Any]] = {
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
    "logical_and": lambda a, b: a and b, "logical_or": lambda a, b: a or b,
    "logical_not": lambda a: not a, "where": lambda c, a, b: a if c else b,
}  # fmt: skip

ROWS = [row for row in OPS.values() if row.result != BOOL]
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def function_of(row: Op) -> Callable[..., Any]:
    """The op on mpmath numbers."""
    if row.name == "where":
        return lambda c, a, b: a if c > 0.5 else b
    function = mp_function(row.name)
    assert function is not None
    return function


def evaluate_mp(graph: Graph, point: Sequence[float]) -> list[Any]:
    """Outputs of a graph of scalar arguments, with mpmath's digits."""
    values: list[Any] = []
    for node in graph.nodes:
        if node.op == "input":
            values.append(mp.mpf(point[node.leaf[0]]))
        elif node.op == "const":
            payload: Any = node.payload
            values.append(payload if isinstance(payload, bool) else mp.mpf(payload))
        else:
            function = LIFTED.get(node.op) or mp_function(node.op)
            assert function is not None
            values.append(function(*(values[a] for a in node.args)))
    return [values[o] for o in graph.outputs]


def next_to_singular_points(row: Op, distance: float) -> list[tuple[float, ...]]:
    """Points off the documented ones to all sides, no operand left where it was.

    Ties, branch cuts and kinks lie along the axes and diagonals, so operands move unequally.
    """
    points: list[tuple[float, ...]] = []
    for singular in row.singular:
        for signs in product((-1.0, 1.0), repeat=row.arity):
            moves = [sign * distance * (1.0 - 0.3 * k) for k, sign in enumerate(signs)]
            points.append(tuple(x + move for x, move in zip(singular.at, moves, strict=True)))
    return points


def is_real(value: Any) -> bool:
    return not isinstance(value, mp.mpc) and bool(mp.isfinite(value))


def true_derivatives(row: Op, point: Sequence[float]) -> dict[tuple[int, ...], Any]:
    """First and second derivatives that exist, by the operands that they are taken of."""
    function = function_of(row)
    operands = range(row.arity)
    wanted = [(k,) for k in operands] + list(combinations_with_replacement(operands, 2))
    derivatives: dict[tuple[int, ...], Any] = {}
    for along in wanted:
        order = tuple(along.count(k) for k in operands)
        value = mp.diff(function, tuple(map(mp.mpf, point)), order)
        if is_real(value):
            derivatives[along] = value
    return derivatives


def check(row: Op, points: Sequence[Sequence[float]], float64: bool) -> int:
    """Compare at all points; returns the number of derivatives compared."""
    graph = ag.trace(lambda *v: traced(row, list(v)), *[1] * row.arity)
    first, second = ag.jacobian(graph), ag.hessian(graph)
    compared = 0
    for point in points:
        if not is_real(function_of(row)(*map(mp.mpf, point))):
            continue
        exact = evaluate_mp(first, point), evaluate_mp(second, point)
        with np.errstate(all="ignore"):
            rounded = first(*point).ravel(), second(*point).ravel()
        for along, want in true_derivatives(row, point).items():
            at = along[0] if len(along) == 1 else along[0] * row.arity + along[1]
            got = exact[len(along) - 1][at]
            bound = RULES_HOLD.absolute + RULES_HOLD.relative * abs(want)
            where = f"{row.name} at {tuple(point)}, derivative by operands {along}"
            assert abs(got - want) <= bound, f"{where}: {mp.nstr(got, 25)}, not {mp.nstr(want, 25)}"
            if float64:
                IN_FLOAT64.check(rounded[len(along) - 1][at], float(want), where)
            compared += 1
    return compared


@each_row
def test_rules_hold_to_50_digits(row: Op) -> None:
    points = sample(row.name)[:6].tolist()
    everything = row.arity + row.arity * (row.arity + 1) // 2
    assert check(row, points, float64=True) == len(points) * everything


@pytest.mark.parametrize("distance", CLOSE)
@pytest.mark.parametrize("row", [r for r in ROWS if r.singular], ids=lambda row: row.name)
def test_rules_hold_next_to_singular_points(row: Op, distance: float) -> None:
    points = next_to_singular_points(row, distance)
    assert check(row, points, float64=distance == CLOSE[0]) >= row.arity
