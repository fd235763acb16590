"""Generated JAX functions: loading JAX, double precision for our own calls, compiling once.

Everything is traced with 64-bit types switched on, for the duration of our own calls and in the
calling thread only: the user's flag stays as it is. What is float32 is so by its inputs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib import import_module
from typing import Any

from ..codegen.kernel import Kernel, Product, SlotKind
from ..codegen.render import Source, columns_function, render
from ..errors import MissingDependencyError
from ..ir import Graph

CACHED_FUNCTIONS = 512

Columns = list[Any]
"""One array per component of a slot, ``(count,)`` or ``(1,)`` where all elements share it."""


@lru_cache(maxsize=1)
def load_jax() -> Any:
    """The package ``jax``, with the modules that generated text names.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        jax: Any = import_module("jax")
        import_module("jax.numpy")
        import_module("jax.scipy.special")
    except ImportError as error:
        raise MissingDependencyError(
            "backend='jax' and the bridges to JAX need the package jax: "
            "pip install autograd-gpu[jax]"
        ) from error
    return jax


def double_precision() -> AbstractContextManager[Any]:
    """Inside it, float64 and int64 exist in JAX; outside, the user's setting is as it was."""
    jax = load_jax()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    older: Any = import_module("jax.experimental")  # before JAX 0.8
    return older.enable_x64(True)


def default_device() -> Any:
    """The device that JAX uses, where the user chose none for an array."""
    jax = load_jax()
    chosen = jax.config.jax_default_device
    # It may be the name of a platform.
    return jax.devices(chosen)[0] if chosen is None or isinstance(chosen, str) else chosen


def is_gpu() -> bool:
    """Whether that device is a GPU."""
    return default_device().platform != "cpu"


class CompileCounter:
    """Number of times that JAX traced, and so compiled, a function of this package."""

    def __init__(self) -> None:
        self.total = 0
        self._local = threading.local()

    @property
    def of_this_thread(self) -> int:
        """Those that the calling thread waited for."""
        return getattr(self._local, "total", 0)

    def note(self) -> None:
        """Called from the body of a function, which runs only while JAX traces it."""
        self.total += 1
        self._local.total = self.of_this_thread + 1


compilations = CompileCounter()
"""Of this process. Tests read it: new data or indices of the same shape must not raise it."""

_functions: OrderedDict[tuple[str, str], Callable[..., Any]] = OrderedDict()
_jitted: OrderedDict[tuple[str, str], Callable[..., Any]] = OrderedDict()
_lock = threading.Lock()


def _cached(
    cache: OrderedDict[tuple[str, str], Callable[..., Any]],
    key: tuple[str, str],
    make: Callable[[], Callable[..., Any]],
) -> Callable[..., Any]:
    with _lock:
        if key in cache:
            cache.move_to_end(key)
            return cache[key]
    made = make()
    with _lock:
        cache[key] = made
        while len(cache) > CACHED_FUNCTIONS:
            cache.popitem(last=False)
    return made


def generated_function(source: Source) -> Callable[[list[Columns]], Any]:
    """The function that a generated text defines: columns per slot to columns of results."""
    return _cached(
        _functions,
        (source.kernel.key, source.precision),
        lambda: _define(source.source, source.entry_point),
    )


def _define(text: str, name: str) -> Callable[..., Any]:
    load_jax()
    namespace: dict[str, Any] = {}
    exec(compile(text, f"<{name}>", "exec"), namespace)
    return namespace[name]


@lru_cache(maxsize=CACHED_FUNCTIONS)
def graph_function(graph: Graph, precision: str) -> Callable[[Sequence[Columns]], Columns]:
    """A graph as a function of columns per argument; unlike a kernel's it has no fixed product."""
    return _define(columns_function(graph, "jax", precision), "function")


def load_slot(parameters: Any, slot: Any, given: Any, kind: SlotKind, count: int) -> Columns:
    """Columns of one slot.

    Args:
        parameters: all parameters, flat.
        slot: what the kernel knows of it.
        given: of a parameter, position of the first number of each block: ``(count,)``, ``(1,)``
            for a block that all share, or a scalar for ``count`` blocks on end. Of data,
            ``(size, count)`` or ``(size, 1)``.
        kind: parameter or data.
        count: number of elements.
    """
    jax = load_jax()
    if kind is SlotKind.DATA:
        return [given[k] for k in range(slot.ambient)]
    if slot.is_row:
        return [
            parameters.at[given + k].get(mode="promise_in_bounds", unique_indices=False)
            for k in range(slot.ambient)
        ]
    if given.ndim == 0:
        rows = jax.lax.dynamic_slice(parameters, (given,), (count * slot.ambient,))
        return list(rows.reshape(count, slot.ambient).T)
    # Unsigned and promised in bounds, an index needs no wrapping of negative ones and no clamp.
    return [
        parameters.at[given + k].get(mode="promise_in_bounds", unique_indices=False)
        for k in range(slot.ambient)
    ]


def batch_function(kernel: Kernel, precision: str) -> Callable[..., Any]:
    """Jitted ``(parameters, slots, count) -> results`` of a kernel over a batch.

    Residuals and varying Jacobian entries are columns ``(count,)``; a cost is one float64 sum.
    One function per kernel and precision in a process; JAX compiles it once per shape.
    """

    def make() -> Callable[..., Any]:
        jax = load_jax()
        jnp = jax.numpy
        element = generated_function(render(kernel, "jax", precision))

        def batch(parameters: Any, slots: tuple[Any, ...], count: int) -> Any:
            compilations.note()
            columns = [
                load_slot(parameters, slot, given, slot.kind, count)
                for slot, given in zip(kernel.slots, slots, strict=False)
            ]
            if kernel.is_folded:
                # A value of the element is a column, and the items of its row lie along the other
                # axis; the mask of those that exist comes last.
                columns = [
                    c if s.is_row else [v.reshape(-1, 1) for v in c]
                    for c, s in zip(columns, kernel.slots, strict=True)
                ]
                columns.append([slots[-1]])

            def whole(column: Any) -> Any:
                values = jnp.asarray(column, parameters.dtype)
                if values.ndim == 2 and values.shape[1] > 1:
                    return jnp.broadcast_to(values, (count, values.shape[1]))
                return jnp.broadcast_to(values.reshape(-1), (count,))

            if kernel.product is Product.COST:
                return jnp.sum(whole(element(columns)), dtype="float64")
            residuals, jacobian = element(columns)
            return [whole(c) for c in residuals], [whole(c) for c in jacobian]

        return jax.jit(batch, static_argnames="count")

    return _cached(_jitted, (kernel.key, precision), make)
