"""Run one traced function as a batch on any backend, with dense results in argument order."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from bindings import Bound
from conftest import LONG
from numpy.typing import NDArray

from adapters_for_tests import native_adapters, wgsl_adapters
from autograd_gpu.runtime.batch import BoundGroup, Session
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.jax_backend import JaxSession
from autograd_gpu.runtime.numba_backend import NumbaSession
from autograd_gpu.runtime.numpy_backend import NumpySession
from autograd_gpu.runtime.wgsl_backend import WgslSession

Array = NDArray[np.float64]


@functools.cache
def device_on(adapter: str) -> Device:
    """One device per adapter for the whole run, so that pipelines are compiled once."""
    return Device(adapter)


@dataclass(frozen=True, slots=True)
class Backend:
    """A target of generated code in one precision, on one adapter if it is WGSL."""

    name: str
    precision: str
    adapter: str | None = None

    def __str__(self) -> str:
        return "-".join(filter(None, (self.name, self.adapter, self.precision)))

    def open(
        self, groups: Sequence[BoundGroup], count: int, device: Device | None = None
    ) -> Session:
        """A session for ``groups`` on ``count`` parameters."""
        if self.name == "wgsl":
            assert self.adapter is not None
            return WgslSession(groups, count, self.precision, device or device_on(self.adapter))
        made = {"numpy": NumpySession, "numba": NumbaSession, "jax": JaxSession}[self.name]
        return made(groups, count, self.precision)


NUMPY = Backend("numpy", "float64")
NUMBA = Backend("numba", "float64")
JAX64 = Backend("jax", "float64")
JAX32 = Backend("jax", "float32")
JAX = [JAX64, JAX32]
# Without an adapter one entry stays, so that the skipped tests are counted.
WGSL = [Backend("wgsl", "float32", adapter) for adapter in wgsl_adapters() or ("none",)]
WGSL_FLOAT64 = [
    Backend("wgsl", precision, adapter)
    for precision in ("float64-emulated", "float64-native")
    for adapter in wgsl_adapters() or ("none",)
    if precision == "float64-emulated" or adapter in native_adapters()
]


BACKENDS = [NUMPY, NUMBA, *(JAX if LONG else [JAX64]), *WGSL]
"""What random graphs run on: a new backend is one more entry. XLA takes five seconds for a kernel
of 21 graphs, so float32 through it is left to ``make test-long``."""


def parameters_of(backends: Sequence[Backend]) -> list[Any]:
    """Backends as pytest parameters; those on WGSL are marked, those on JAX need it."""
    no_jax = importlib.util.find_spec("jax") is None
    marks = {
        "wgsl": [pytest.mark.wgsl],
        "jax": [pytest.mark.skipif(no_jax, reason="needs the extra [jax]")],
    }
    return [pytest.param(b, id=str(b), marks=marks.get(b.name, [])) for b in backends]


@dataclass(frozen=True, slots=True)
class Batch:
    """Results of one evaluation: ``(batch, m)``, ``(batch, m, n)``, ½‖r‖²."""

    residuals: Array
    jacobian: Array
    cost: float


def evaluate(backend: Backend, bound: Bound) -> Batch:
    """All products of one group; residuals of the two products that give them must be equal."""
    with backend.open([bound.group], bound.parameters.size) as session:
        alone = session.residuals(bound.parameters).copy()
        residuals, values = (a.copy() for a in session.residual_jacobian(bound.parameters))
        cost = session.cost(bound.parameters)
    shape = (bound.group.count, bound.group.residual_size)
    scale = 1.0 + np.abs(np.where(np.isfinite(residuals), residuals, 0.0))
    slack = 1e-4 if backend.precision == "float32" else 1e-9
    with np.errstate(invalid="ignore"):  # poles are infinite in both
        different = np.abs(alone - residuals) > scale * slack
    assert not different.any(), f"{backend}: products disagree on residuals"
    return Batch(residuals.reshape(shape), bound.dense_jacobian(values), cost)


def float32_exact(array: Any) -> Array:
    """The nearest numbers that float32 represents, as float64."""
    return np.asarray(array, np.float32).astype(np.float64)


def shared_words(source: str, words: int) -> int:
    """32-bit words of shared memory that a text declares."""
    sizes = {"u32": 1, "f32": 1, "real": words, "pair": 2 * words, "quad": 4 * words,
             "Sums": 3 * words}  # fmt: skip
    total = 0
    for declared in re.findall(r"var<workgroup> \w+: ([^;]+);", source):
        size = 1
        while match := re.fullmatch(r"array<(.+), (\d+)>", declared):
            declared, size = match[1], size * int(match[2])
        total += size * sizes[declared]
    return total
