"""How accurate every op is on a device, and what becomes of NaN and infinity: the full self-test.

It compiles a kernel per op, which takes seconds, so it runs when somebody asks
(``autograd-gpu doctor --full``); what a solve in float64 depends on is in ``self_test.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.wgsl_reals import EMULATED, FLOAT32, NATIVE
from ..ir import Argument, Builder, Graph
from ..ops import NODE_OPS, REAL, Op
from .device import Device
from .number_formats import FORMATS
from .self_test import (
    NATIVE_FEATURE,
    Measurement,
    SelfTest,
    check_available,
    evaluate_on,
    remembered,
)

ULP = {FLOAT32.precision: 2.0**-23, NATIVE.precision: 2.0**-52, EMULATED.precision: 2.0**-48}
"""Unit in the last place of a number at 1."""
LIMITS = {FLOAT32.precision: 1e-6, NATIVE.precision: 4 * 2.0**-52, EMULATED.precision: 4e-13}
"""Largest relative error of an op."""
POINTS = 2048
OPS = tuple(
    name
    for name, row in NODE_OPS.items()
    if row.result == REAL and row.operands and set(row.operands) == {REAL}
)
ABSOLUTE = ("sin", "cos", "mod")
"""Their errors are relative to 1 where the result is smaller: it is a difference of operands."""
SPECIAL = (0.0, np.inf, -np.inf, np.nan, 1.0, -2.0)
SPECIAL_NAME = "NaN and infinity"
"""Its error is the number of wrong results."""
_BINARY = ("add", "sub", "mul", "div", "minimum", "maximum", "lt", "eq", "ne")
_UNARY = ("sqrt", "abs", "exp", "log")


def available_precisions(device: Device) -> tuple[str, ...]:
    """Number types that kernels on a device can compute in."""
    native = (NATIVE.precision,) if NATIVE_FEATURE in device.capabilities else ()
    return (FLOAT32.precision, *native, EMULATED.precision)


def full_self_test(device: Device, precision: str) -> SelfTest:
    """Worst error of each op over its domain, and of NaN and infinity; remembered.

    Raises:
        PrecisionError: the device has no native float64 and that is asked for.
    """
    check_available(device, precision)
    return remembered("ops", device, precision, lambda: _measure(device, precision))


def _measure(device: Device, precision: str) -> SelfTest:
    measured = [
        Measurement(
            operation=name, error=op_error(device, precision, name), limit=LIMITS[precision]
        )
        for name in OPS
    ]
    wrong = Measurement(
        operation=SPECIAL_NAME, error=float(special_errors(device, precision)), limit=0.0
    )
    return SelfTest(device=device.name, precision=precision, measurements=(*measured, wrong))


def op_error(device: Device, precision: str, name: str) -> float:
    """Worst relative error of an op over its domain; of ``pow`` per max(1, |y ln x|)."""
    row = NODE_OPS[name]
    number = FORMATS[precision]
    rng = np.random.default_rng(1)
    operands = tuple(
        number.decode(number.encode(rng.uniform(low, high, POINTS), name).reshape(-1))
        for low, high in row.domain
    )
    got = evaluate_on(device, precision, op_graph(row), operands)[:, 0]
    want = row.numpy(*(x.astype(np.longdouble) for x in operands))
    size = np.maximum(np.abs(want), 1.0) if name in ABSOLUTE else np.abs(want)
    if name == "pow":
        size = size * np.maximum(1.0, np.abs(operands[1] * np.log(operands[0])))
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.where(got == want, 0.0, np.abs(got - want) / size)
    return float(np.max(error))


def op_graph(row: Op) -> Graph:
    """One op on inputs."""
    builder = Builder()
    inputs = tuple(builder.input(k, 0) for k in range(len(row.operands)))
    arguments = [Argument(f"x{k}", ()) for k in range(len(inputs))]
    return Graph.build(builder, [builder.raw(row.name, inputs)], arguments, (1,), row.name)


def special_errors(device: Device, precision: str) -> int:
    """How many results on 0, infinities, NaN and two numbers differ from NumPy's.

    The special operands are made on the device, as quotients: they cannot be uploaded.
    """
    x, y = (a.ravel() for a in np.meshgrid(SPECIAL, SPECIAL))
    operands = tuple(part for column in (x, y) for part in _quotient(column))
    got = evaluate_on(device, precision, _special_graph(), operands)
    with np.errstate(all="ignore"):
        want = np.stack(
            [
                *(NODE_OPS[name].numpy(x, y).astype(float) for name in _BINARY),
                *(NODE_OPS[name].numpy(x) for name in _UNARY),
            ],
            axis=1,
        )
        close = np.abs(got - want) <= LIMITS[precision] * np.abs(want)
    same = (got == want) | (np.isnan(got) & np.isnan(want)) | (np.isfinite(want) & close)
    return int(np.sum(~same))


def _quotient(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Finite a, b with a / b = values."""
    infinite, nan = np.isinf(values), np.isnan(values)
    a = np.where(nan, 0.0, np.where(infinite, np.sign(values), values))
    return a, np.where(infinite | nan, 0.0, 1.0)


def _special_graph() -> Graph:
    builder = Builder()
    inputs = [builder.input(k, 0) for k in range(4)]
    x, y = builder.raw("div", (inputs[0], inputs[1])), builder.raw("div", (inputs[2], inputs[3]))

    def apply(name: str, operands: Sequence[int]) -> int:
        value = builder.raw(name, tuple(operands))
        if NODE_OPS[name].result == REAL:
            return value
        return builder.raw("where", (value, builder.constant(1.0), builder.constant(0.0)))

    outputs = [*(apply(n, (x, y)) for n in _BINARY), *(apply(n, (x,)) for n in _UNARY)]
    arguments = [Argument(f"x{k}", ()) for k in range(4)]
    return Graph.build(builder, outputs, arguments, (len(outputs),), "special")
