"""Whether a device's float64 is what it says: arithmetic measured against the host.

Drivers may reassociate sums, contract products or flush what double-float needs, and none of them
says so. A few thousand operands per operation tell. The verdict is remembered, in the process and
on disk, by adapter, driver and generated text.
"""

from __future__ import annotations

import importlib.metadata
import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.kernel import GENERATOR_VERSION, Product, data_slot, topology_of
from ..codegen.render import wgsl_prelude
from ..codegen.wgsl_reals import EMULATED, NATIVE
from ..disk_cache import DiskCache
from ..errors import PrecisionError
from ..ir import Argument, Builder, Graph
from ..ops import NODE_OPS
from .batch import BoundGroup, DataBinding, FloatArray
from .device import Device
from .number_formats import FORMATS
from .wgsl_backend import WgslSession

NATIVE_FEATURE = "shader-f64"
LIMITS = {NATIVE.precision: 2.0**-51, EMULATED.precision: 2.0**-43}
"""Largest relative error of one operation. Double-float measures 2.2e-14; where a driver destroys
it, the error is 1e-7."""

OPERATIONS = ("add", "sub", "mul", "div", "sqrt")
OPERANDS = 4096
VERSION = "1"
"""Of what is measured here and in ``op_accuracy.py``; other verdicts are forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Worst error of one operation, and the most that passes; relative, unless it says so."""

    operation: str
    error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the limit; NaN is not."""
        return self.error <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """Verdict on one precision of one device."""

    device: str
    precision: str
    measurements: tuple[Measurement, ...]

    @property
    def passed(self) -> bool:
        """Whether every operation is accurate enough."""
        return all(m.passed for m in self.measurements)

    def describe(self) -> str:
        """One line: worst errors by operation."""
        return ", ".join(f"{m.operation} {m.error:.1e}" for m in self.measurements)


_verdicts: dict[tuple[str, ...], SelfTest] = {}
_lock = threading.RLock()


def self_test(device: Device, precision: str) -> SelfTest:
    """Measure ``float64-native`` or ``float64-emulated`` on a device; once per adapter and driver.

    Raises:
        PrecisionError: the device has no native float64 and that is asked for.
    """
    check_available(device, precision)
    return remembered("arithmetic", device, precision, lambda: _measure(device, precision))


def forget_verdicts() -> None:
    """Forget what this process measured or read; what is on disk stays."""
    with _lock:
        _verdicts.clear()


def check_available(device: Device, precision: str) -> None:
    """Refuse native float64 where the device has none.

    Raises:
        PrecisionError: it has none.
    """
    if precision == NATIVE.precision and NATIVE_FEATURE not in device.capabilities:
        raise PrecisionError(
            f"{device.name} has no native float64 (WebGPU feature {NATIVE_FEATURE!r}); use "
            "precision='float64' or 'float64-emulated', which every device can do"
        )


def remembered(
    what: str, device: Device, precision: str, measure: Callable[[], SelfTest]
) -> SelfTest:
    """A verdict of this process, of another one that left it on disk, or a new one."""
    adapter = device.adapter
    key = (
        VERSION, GENERATOR_VERSION, importlib.metadata.version("wgpu"), what,
        adapter.name, adapter.backend, adapter.driver, precision, wgsl_prelude(precision),
        *(row.wgsl for row in NODE_OPS.values()),
    )  # fmt: skip
    with _lock:
        if key not in _verdicts:
            cache = DiskCache("self_tests")
            stored = cache.get(key)
            if stored is None:
                verdict = measure()
                cache.put(key, json.dumps(asdict(verdict)).encode())
            else:
                verdict = _read(json.loads(stored))
            _verdicts[key] = verdict
        return _verdicts[key]


def _read(fields: dict[str, Any]) -> SelfTest:
    return SelfTest(
        device=fields["device"],
        precision=fields["precision"],
        measurements=tuple(Measurement(**m) for m in fields["measurements"]),
    )


def require_float64(device: Device, precision: str) -> str:
    """The precision that serves ``float64``, ``float64-native`` or ``float64-emulated``.

    Native arithmetic where the device has it and passes, double-float otherwise.

    Raises:
        PrecisionError: what was asked for is missing, or it fails its self-test.
    """
    if precision == "float64":
        native = NATIVE_FEATURE in device.capabilities
        if native and self_test(device, NATIVE.precision).passed:
            return NATIVE.precision
        precision = EMULATED.precision
    verdict = self_test(device, precision)
    if not verdict.passed:
        wrong = next(m for m in verdict.measurements if not m.passed)
        raise PrecisionError(
            f"{device.name} fails the self-test of {precision}: {wrong.operation} is off by "
            f"{wrong.error:.1e}, relatively, where {wrong.limit:.1e} is allowed; its driver "
            "changes the arithmetic. Use precision='float32', backend='numba', or another driver"
        )
    return precision


def _operands(precision: str) -> tuple[FloatArray, FloatArray]:
    """Numbers of 1e-3 to 1e3 and of 1e-9 to 1e9, and pairs that nearly cancel."""
    rng = np.random.default_rng(1)
    quarter = OPERANDS // 4
    spread = np.concatenate([rng.integers(-3, 4, 2 * quarter), rng.integers(-9, 10, 2 * quarter)])
    a, b = (rng.standard_normal(OPERANDS) * 10.0**spread for _ in range(2))
    b[:quarter] = -a[:quarter] * (1.0 + rng.standard_normal(quarter) * 2.0**-20)
    number = FORMATS[precision]

    def exact(x: FloatArray) -> FloatArray:
        return number.decode(number.encode(x, "operands").reshape(-1))

    return exact(a), exact(b)


def _graph() -> Graph:
    builder = Builder()
    a, b = builder.input(0, 0), builder.input(1, 0)
    outputs = [builder.raw(name, (a, b)) for name in OPERATIONS[:4]]
    outputs.append(builder.raw("sqrt", (builder.raw("abs", (a,)),)))
    arguments = (Argument("a", ()), Argument("b", ()))
    return Graph.build(builder, outputs, arguments, (len(outputs),), "self_test")


def evaluate_on(
    device: Device, precision: str, graph: Graph, operands: tuple[FloatArray, ...]
) -> NDArray[np.float64]:
    """Outputs of a graph of scalars at many operands, ``(count, outputs)``."""
    topology = topology_of(graph, [data_slot(()) for _ in graph.arguments])
    group = BoundGroup(
        name=graph.name,
        topology=topology,
        count=len(operands[0]),
        bindings=tuple(
            DataBinding(values=operands[a][:, None], shared=False) for a in topology.arguments
        ),
    )
    with WgslSession([group], 0, precision, device, (Product.RESIDUAL,)) as session:
        return session.residuals(np.zeros(0)).reshape(group.count, -1).copy()


def _measure(device: Device, precision: str) -> SelfTest:
    a, b = _operands(precision)
    got = evaluate_on(device, precision, _graph(), (a, b))
    want = np.stack([a + b, a - b, a * b, a / b, np.sqrt(np.abs(a))], axis=1)
    with np.errstate(all="ignore"):
        worst = np.max(np.abs(got - want) / np.abs(want), axis=0)
    return SelfTest(
        device=device.name,
        precision=precision,
        measurements=tuple(
            Measurement(operation=name, error=float(error), limit=LIMITS[precision])
            for name, error in zip(OPERATIONS, worst, strict=True)
        ),
    )
