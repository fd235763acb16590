"""CPU kernels for several elements at once: their functions, their loops, and when they decline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from bindings import Bound, bind
from conftest import LONG
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.codegen.kernel import Product, make_kernel, parameter_slot, topology_of
from autograd_gpu.codegen.lanes import FAR, FEWEST_ELEMENTS, LANES
from autograd_gpu.codegen.render import render_lanes
from autograd_gpu.ops import BOOL, NODE_OPS
from autograd_gpu.runtime.lane_functions import lane_math
from autograd_gpu.runtime.numba_backend import NumbaSession, compile_source
from random_graphs import random_arrays
from tolerances import GRAPH, tolerance

POINTS = 100_000 if LONG else 2_000
SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 5e-324, -5e-324, 710.0, -750.0)

rng = np.random.default_rng(7)
quarters = np.arange(-POINTS, POINTS, 2) * (np.pi / 2)
RANGES: dict[str, tuple[NDArray[np.float64], ...]] = {
    "exp": (rng.uniform(-745.0, 709.7, POINTS), rng.uniform(-1.0, 1.0, POINTS)),
    "log": (np.exp(rng.uniform(-745.0, 709.0, POINTS)), 1.0 + rng.uniform(-1e-3, 1e-3, POINTS)),
    "sin": (rng.uniform(-9.0, 9.0, POINTS), rng.uniform(-FAR, FAR, POINTS), quarters),
    "cos": (rng.uniform(-9.0, 9.0, POINTS), rng.uniform(-FAR, FAR, POINTS), quarters),
    "atan": (rng.uniform(-5.0, 5.0, POINTS), 10.0 ** rng.uniform(-300.0, 300.0, POINTS)),
}


def error_in_ulps(got: float, exact: mpmath.mpf) -> float:
    return float(abs(mpmath.mpf(got) - exact) / float(np.spacing(abs(float(exact)))))


@pytest.mark.parametrize("name", RANGES)
def test_functions_err_by_less_than_one_unit_in_the_last_place(name: str) -> None:
    function: Callable[[float], float] = getattr(lane_math(), name)
    with mpmath.workprec(140):
        for points in RANGES[name]:
            exact = [getattr(mpmath, name)(mpmath.mpf(x)) for x in points.tolist()]
            worst = max(map(error_in_ulps, [function(x) for x in points.tolist()], exact))
            assert worst < 1.0


def test_atan2_errs_by_less_than_one_and_a_half_units() -> None:
    y, x = (rng.standard_normal(POINTS) * 10.0 ** rng.uniform(-8, 8, POINTS) for _ in range(2))
    function: Callable[[float, float], float] = lane_math().atan2
    with mpmath.workprec(140):
        for a, b in zip(y.tolist(), x.tolist(), strict=True):
            assert error_in_ulps(function(a, b), mpmath.atan2(a, b)) < 1.5


def same(got: float, expected: float, ulps: int) -> bool:
    """Equal up to ``ulps``, signs of zeros included; NaN equals NaN."""
    if np.isnan(expected) or np.isinf(expected) or expected == 0.0:
        return np.float64(got).tobytes() == np.float64(expected).tobytes() or (
            bool(np.isnan(got)) and bool(np.isnan(expected))
        )
    return abs(got - expected) <= ulps * np.spacing(abs(expected))


@pytest.mark.parametrize("name", RANGES)
def test_functions_at_zero_infinity_and_nan(name: str) -> None:
    exact = getattr(np, {"atan": "arctan"}.get(name, name))
    function = getattr(lane_math(), name)
    with np.errstate(all="ignore"):
        for x in SPECIAL:
            assert same(function(x), float(exact(x)), 1), f"{name}({x})"


def test_atan2_at_zero_infinity_and_nan() -> None:
    for y in SPECIAL:
        for x in SPECIAL:
            assert same(lane_math().atan2(y, x), float(np.arctan2(y, x)), 1), f"atan2({y}, {x})"


IN_LANES = [name for name, row in NODE_OPS.items() if row.lanes]


def residual_of(name: str) -> Callable[..., Any]:
    """A residual that puts one op between others, on arguments of its domain."""
    row = NODE_OPS[name]

    def fn(p: Any, q: Any) -> Any:
        real = [p.x * q.y, p.y - q.x, p.x + q.x]
        operands: list[Any] = []
        for k, dtype in enumerate(row.operands or (row.result,)):
            if dtype == BOOL:
                operands.append(real[k] > 0.1)
                continue
            low, high = row.domain[k]
            middle, half = 0.5 * (low + high), 0.45 * (high - low)
            operands.append(middle + half * real[k] / (1.0 + ag.abs(real[k])))
        value = real[0].applied(row, operands)
        return [ag.where(value, p.x, q.y) if row.result == BOOL else value * p.x, p.y * q.y]

    return fn


def sessions_of(bound: Bound) -> tuple[NumbaSession, NumbaSession]:
    """In lanes, and element by element."""
    count = bound.parameters.size
    return (
        NumbaSession([bound.group], count, "float64", lanes_from=1),
        NumbaSession([bound.group], count, "float64", lanes_from=10**9),
    )


@pytest.mark.parametrize("name", IN_LANES)
def test_every_op_in_lanes_is_vector_code_and_agrees(name: str) -> None:
    graph = ag.trace(residual_of(name), 2, 2)
    arrays = random_arrays((2, 2), 37, 5)
    bound = bind(graph, arrays)
    lanes, _ = sessions_of(bound)
    with lanes:
        got = lanes.residuals(bound.parameters).copy()
        (source,) = lanes.sources()
    assert source.lanes
    compiled: Any = compile_source(source)
    (text,) = compiled.inspect_llvm().values()
    assert " x double>" in text, "LLVM made no vector instructions of the loop"
    tolerance("float64", GRAPH).check(got, graph(*arrays).ravel(), name)


def wave(p: Any, q: Any, w: Any) -> Any:
    phase = w * (p.x + q.y)
    decay = ag.exp(-p.y * p.y)
    return [decay * ag.sin(phase), q.x * ag.cos(phase) + ag.atan2(p.y, q.x)]


@pytest.mark.parametrize("count", [1, LANES - 1, LANES, LANES + 1, 5 * LANES + 3])
def test_lanes_and_single_elements_agree_for_every_length(count: int) -> None:
    graph = ag.trace(wave, 2, 2, 1)
    bound = bind(graph, random_arrays((2, 2, 1), count, 3), data=(2,))
    results: list[tuple[Any, ...]] = []
    for session in sessions_of(bound):
        with session:
            r, j = session.residual_jacobian(bound.parameters)
            results.append((r.copy(), j.copy(), session.residuals(bound.parameters).copy()))
    for got, expected in zip(*results, strict=True):
        assert np.allclose(got, expected, rtol=0.0, atol=1e-14)


def test_an_argument_too_far_for_lanes_takes_the_plain_kernel() -> None:
    graph = ag.trace(wave, 2, 2, 1)
    arrays = random_arrays((2, 2, 1), 3 * LANES, 3)
    bound = bind(graph, arrays, data=(2,))
    lanes, _ = sessions_of(bound)
    with lanes:
        lanes.residuals(bound.parameters)
        assert [s.lanes for s in lanes.sources()] == [True]
    arrays[2][LANES + 2] = 1e13
    bound = bind(graph, arrays, data=(2,))
    lanes, plain = sessions_of(bound)
    with lanes, plain:
        got = lanes.residuals(bound.parameters).copy()
        assert [s.lanes for s in lanes.sources()] == [True, False]
        assert np.array_equal(got, plain.residuals(bound.parameters))


@pytest.mark.parametrize("name", [name for name, row in NODE_OPS.items() if not row.lanes])
def test_ops_that_call_a_library_stay_single(name: str) -> None:
    graph = ag.trace(residual_of(name), 2, 2)
    topology = topology_of(graph, [parameter_slot((2,))] * 2)
    assert render_lanes(make_kernel(topology, Product.RESIDUAL), "float64") is None


def test_small_batches_costs_and_float32_stay_single() -> None:
    graph = ag.trace(wave, 2, 2, 1)
    topology = topology_of(graph, [parameter_slot((2,))] * 2 + [parameter_slot(())])
    assert render_lanes(make_kernel(topology, Product.RESIDUAL), "float64") is not None
    assert render_lanes(make_kernel(topology, Product.RESIDUAL), "float32") is None
    assert render_lanes(make_kernel(topology, Product.COST), "float64") is None


def test_large_batches_run_in_lanes_and_small_ones_do_not() -> None:
    graph = ag.trace(wave, 2, 2, 1)
    for count, expected in ((FEWEST_ELEMENTS, True), (FEWEST_ELEMENTS - 1, False)):
        bound = bind(graph, random_arrays((2, 2, 1), count, 3), data=(2,))
        with NumbaSession([bound.group], bound.parameters.size, "float64") as session:
            session.prepare()
            assert {s.lanes for s in session.sources()} == {expected}
