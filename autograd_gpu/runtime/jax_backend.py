"""Batches through JAX, on the device that JAX uses by default: a CPU, or a CUDA GPU.

Compiled once per kernel and shape: parameters, indices and data are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..codegen.kernel import Product
from ..codegen.render import Source, render
from .batch import (
    BoundGroup,
    DataBinding,
    FloatArray,
    HostArrays,
    RowBinding,
    RowDataBinding,
    SessionContext,
)
from .jax_calls import call, device_name, download, jax_errors, upload
from .jax_functions import Columns, batch_function, double_precision, load_jax
from .number_formats import to_float32


def as_real(values: FloatArray, precision: str, what: str) -> Any:
    """A copy in ``precision``.

    Raises:
        InputError: a value is beyond float32's range.
    """
    if precision == "float32":
        return to_float32(values, what)
    return np.array(values, np.float64)


class JaxSession(SessionContext):
    """Runs generated kernels through JAX and brings the results to the host."""

    def __init__(self, groups: Sequence[BoundGroup], parameter_count: int, precision: str) -> None:
        load_jax()
        self._groups = list(groups)
        self._parameter_count = parameter_count
        self._precision = precision
        self._host = HostArrays(groups, np.dtype(precision))
        self._sources: dict[str, Source] = {}
        with double_precision():
            self._slots = upload("data", lambda: [self._bind(g) for g in groups])

    def _bind(self, group: BoundGroup) -> tuple[Any, ...]:
        """Indices and data of a group on the device, as ``load_slot`` takes them."""
        jnp = load_jax().numpy
        given: list[Any] = []
        for slot, binding in zip(group.topology.slots, group.bindings, strict=True):
            what = f"residuals {group.name!r}, data"
            if isinstance(binding, RowBinding):
                first = binding.base + binding.indices * slot.ambient
                given.append(jnp.asarray(first.astype(np.uint32)))
            elif isinstance(binding, RowDataBinding):
                values = as_real(binding.values, self._precision, what)
                given.append(jnp.asarray(np.ascontiguousarray(np.moveaxis(values, 2, 0))))
            elif isinstance(binding, DataBinding):
                values = as_real(binding.values, self._precision, what)
                given.append(jnp.asarray(np.ascontiguousarray(values.T)))
            elif binding.indices is None and binding.stride == 1:
                given.append(jnp.asarray(binding.base + binding.offset * slot.ambient, "uint32"))
            else:
                shared = binding.indices is None and binding.stride == 0
                blocks = binding.block_of(1 if shared else group.count)
                first = binding.base + blocks * slot.ambient
                given.append(jnp.asarray(first.astype(np.uint32)))
        if group.lengths is not None:
            given.append(jnp.asarray(group.valid))
        return tuple(given)

    @property
    def description(self) -> str:
        """Device that JAX uses."""
        return device_name()

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel compiled so far."""
        return tuple(self._sources.values())

    def prepare(self) -> None:
        """Compile what a solve needs, so that compiling is not booked as evaluating."""
        for product in (Product.RESIDUAL, Product.RESIDUAL_JACOBIAN):
            # JAX compiles when it is called; what comes of zeros is thrown away.
            self.launch(product, np.zeros(self._parameter_count))

    def _function(self, group: BoundGroup, product: Product) -> Any:
        source = render(group.kernel(product), "jax", self._precision)
        self._sources[source.kernel.key] = source
        return batch_function(source.kernel, self._precision)

    def launch(self, product: Product, parameters: FloatArray) -> list[Any]:
        """Start a product of every group; arrays on the device, which may not be there yet."""
        given = as_real(parameters, self._precision, "parameters")
        with double_precision():
            x = upload("parameters", lambda: load_jax().numpy.asarray(given))
            with jax_errors(f"{product.value} of {len(self._groups)} groups"):
                return [
                    call(
                        group.kernel(product).name,
                        self._function(group, product),
                        x,
                        slots,
                        count=group.count,
                    )
                    for group, slots in zip(self._groups, self._slots, strict=True)
                ]

    def _run(self, product: Product, parameters: FloatArray) -> list[tuple[Columns, Columns]]:
        """Columns of residuals and of J's varying entries of every group, on the host."""
        results = self.launch(product, parameters)
        columns = iter(download(product.value, results))
        return [
            ([next(columns) for _ in residuals], [next(columns) for _ in varying])
            for residuals, varying in results
        ]

    def _residuals_to_host(self, columns: Sequence[Any], k: int) -> None:
        out = self._host.group_residuals(k).reshape(self._groups[k].count, -1)
        for i, column in enumerate(columns):
            out[:, i] = column

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        for k, (columns, _) in enumerate(self._run(Product.RESIDUAL, parameters)):
            self._residuals_to_host(columns, k)
        return self._host.residuals.astype(np.float64, copy=False)

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups."""
        costs = download(Product.COST.value, self.launch(Product.COST, parameters))
        return float(sum(float(c) for c in costs))

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        results = self._run(Product.RESIDUAL_JACOBIAN, parameters)
        for k, (columns, varying) in enumerate(results):
            self._residuals_to_host(columns, k)
            self._host.store_entries(k, self._groups[k], varying)
        return (
            self._host.residuals.astype(np.float64, copy=False),
            self._host.jacobian.astype(np.float64, copy=False),
        )
