"""Bind the arguments of a traced function to arrays, as a group that any session takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autograd_gpu import Graph
from autograd_gpu.codegen.kernel import (
    Product,
    data_slot,
    parameter_slot,
    topology_of,
)
from autograd_gpu.runtime.batch import (
    Binding,
    BoundGroup,
    DataBinding,
    ParameterBinding,
)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bound:
    """A group with the parameter vector that it gathers from."""

    group: BoundGroup
    parameters: Array
    graph: Graph
    data: tuple[int, ...]

    def dense_jacobian(self, values: Array) -> Array:
        """``(batch, m, n)`` with columns in the order of the traced function's parameters.

        Arguments that the function does not use have no slot, and columns of zeros.
        """
        kernel = self.group.kernel(Product.RESIDUAL_JACOBIAN)
        topology = self.group.topology
        first: dict[int, int] = {}
        total = 0
        for k, argument in enumerate(self.graph.arguments):
            first[k] = total
            total += 0 if k in self.data else argument.size
        columns: list[int] = []
        for slot, argument in zip(topology.slots, topology.arguments, strict=True):
            columns += [first[argument] + j for j in range(slot.tangent)]
        dense = np.zeros((self.group.count, kernel.residual_size, total))
        rows = values.reshape(self.group.count, len(kernel.entries))
        for k, entry in enumerate(kernel.entries):
            dense[:, entry.row, columns[entry.column]] = rows[:, k]
        return dense


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of an argument's array the elements see; a whole array by default.

    Attributes:
        offset, stride: element e sees row ``offset + stride * e`` …
        indices: … unless this is given.
    """

    offset: int = 0
    stride: int = 1
    indices: NDArray[np.int64] | None = None

    def of(self, array: Array, count: int) -> Array:
        """What ``count`` elements see: the oracle of gathering."""
        if self.indices is not None:
            return array[self.indices]
        return array[self.offset + self.stride * np.arange(count)]


def bind(
    graph: Graph,
    arrays: Sequence[Array],
    data: Sequence[int] = (),
    *,
    rows: Mapping[int, Rows] | None = None,
    count: int | None = None,
    base: int = 0,
    name: str = "group",
) -> Bound:
    """Bind argument k to ``arrays[k]``, one block a row.

    Arguments named in ``data`` are data columns (one row with stride 0 in ``rows`` is shared), all
    others parameters, one array after another from position ``base`` on.
    """
    count = len(arrays[0]) if count is None else count
    bindings: list[Binding] = []
    blocks: list[Array] = []
    for k, array in enumerate(arrays):
        flat = np.asarray(array, float).reshape(len(array), -1)
        chosen = (rows or {}).get(k, Rows())
        if k in data:
            shared = chosen.stride == 0
            values = flat[chosen.offset][None] if shared else chosen.of(flat, count)
            bindings.append(DataBinding(values=values, shared=shared))
            continue
        bindings.append(
            ParameterBinding(
                base=base,
                blocks=len(flat),
                offset=chosen.offset,
                stride=chosen.stride,
                indices=chosen.indices,
            )
        )
        blocks.append(flat.ravel())
        base += flat.size
    slots = [
        (data_slot if k in data else parameter_slot)(a.shape) for k, a in enumerate(graph.arguments)
    ]
    topology = topology_of(graph, slots)
    group = BoundGroup(
        name=name,
        topology=topology,
        count=count,
        bindings=tuple(bindings[a] for a in topology.arguments),
    )
    return Bound(group, np.concatenate(blocks) if blocks else np.zeros(0), graph, tuple(data))
