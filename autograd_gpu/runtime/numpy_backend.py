"""The oracle: evaluates the IR directly with NumPy, slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.kernel import Product
from ..codegen.render import Source
from ..ir import evaluate_nodes
from .batch import BoundGroup, FloatArray, HostArrays, ParameterBinding, RowBinding, SessionContext


def _column(value: Any, count: int) -> NDArray[Any]:
    """One number an element, ``(count,)``; what differs by item stays ``(count, items)``."""
    array = np.asarray(value)
    if array.ndim == 2 and array.shape[1] > 1:
        return np.broadcast_to(array, (count, array.shape[1]))
    return np.broadcast_to(array.reshape(-1), (count,))


class NumpySession(SessionContext):
    """Evaluates every group's kernel graph, node by node over whole columns."""

    def __init__(self, groups: Sequence[BoundGroup], parameter_count: int, precision: str) -> None:
        self._groups = list(groups)
        self._real = np.dtype(precision)
        self._host = HostArrays(groups, self._real)

    @property
    def description(self) -> str:
        """Processor."""
        return "CPU (NumPy)"

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Take other data: they are read where they lie."""
        self._groups = list(groups)
        return True

    def sources(self) -> Sequence[Source]:
        """NumPy evaluates the IR: there is no generated text."""
        return ()

    def _columns(self, group: BoundGroup, product: Product, x: NDArray[Any]) -> list[Any]:
        kernel = group.kernel(product)
        loaded: list[NDArray[Any]] = []
        for slot, binding in zip(kernel.slots, group.bindings, strict=True):
            if isinstance(binding, ParameterBinding):
                first = binding.base + binding.block_of(group.count) * slot.ambient
                loaded.append(x[first[:, None] + np.arange(slot.ambient)])
            elif isinstance(binding, RowBinding):
                first = binding.base + binding.indices * slot.ambient
                loaded.append(x[first[:, :, None] + np.arange(slot.ambient)])
            else:
                loaded.append(binding.values.astype(self._real))
        nodes = kernel.graph.nodes
        if kernel.is_folded:
            # A value of the element is a column, one of its items a row of the batch.
            rows = [v if v.ndim == 3 else v[:, None, :] for v in loaded]
            values = evaluate_nodes(
                nodes, lambda slot, k: rows[slot][:, :, k], self._real, group.valid
            )
        else:
            values = evaluate_nodes(nodes, lambda slot, k: loaded[slot][:, k], self._real)
        return [_column(values[o], group.count) for o in kernel.graph.outputs]

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        x = parameters.astype(self._real)
        for k, group in enumerate(self._groups):
            out = self._host.group_residuals(k).reshape(group.count, -1)
            for i, column in enumerate(self._columns(group, Product.RESIDUAL, x)):
                out[:, i] = column
        return self._host.residuals.astype(np.float64, copy=False)

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups."""
        x = parameters.astype(self._real)
        parts = [self._columns(g, Product.COST, x)[0] for g in self._groups]
        return float(sum(np.sum(p, dtype=np.float64) for p in parts))

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        x = parameters.astype(self._real)
        for k, group in enumerate(self._groups):
            columns = self._columns(group, Product.RESIDUAL_JACOBIAN, x)
            m = group.residual_size
            out = self._host.group_residuals(k).reshape(group.count, m)
            for i in range(m):
                out[:, i] = columns[i]
            self._host.store_entries(k, group, columns[m:])
        return (
            self._host.residuals.astype(np.float64, copy=False),
            self._host.jacobian.astype(np.float64, copy=False),
        )
