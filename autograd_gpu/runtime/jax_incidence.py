"""Incidences of nodes as tables of fixed shape, for a resident solve through JAX.

Each node has a row of as many places as nodes have incidences on average; the few incidences
beyond that are a sorted list, added by segments. The shape of the row hangs on the numbers of
nodes and elements alone, and the list has one of three lengths (none, half, all of the
elements). So other indices of the same length recompile nothing as long as nodes are about
evenly used before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.incidence import GroupStructure, NodeSet
from .batch import BoundGroup, DataBinding, FloatArray, IndexArray
from .jax_backend import as_real
from .jax_calls import upload
from .jax_functions import double_precision, load_jax
from .node_orders import ArrayLayout, NodeOrders

SPARSE_BELOW = 0.5
"""With fewer incidences per node than this a row would be mostly empty: all go to the list."""


class Form(StrEnum):
    """How a node finds its incidences."""

    ALL = "all"
    """One node, which every element sees."""
    DIRECT = "direct"
    """Element k belongs to node k."""
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Incidence:
    """Nodes of a set, as seen through one place of a group."""

    group: int
    place: int
    form: Form


@dataclass(frozen=True, slots=True)
class JaxStructure:
    """What the traced text depends on: no sizes, no numbers.

    Attributes:
        node_sets: width and mask of each.
        groups: residual groups, all with stored Jacobians.
        incidences: of each node set.
        damping: name of the damping form.
    """

    node_sets: tuple[NodeSet, ...]
    groups: tuple[GroupStructure, ...]
    incidences: tuple[tuple[Incidence, ...], ...]
    damping: str


class JaxTables(NodeOrders):
    """Structure of a problem, and its tables as JAX arrays.

    Args:
        arrays, groups, parameters: as for ``NodeOrders``.
        damping: damping form.
        precision: of data.

    Attributes:
        precision: as given.
        structure: what is compiled.
        arrays_of_groups: per group, nodes of each place and data of each slot.
        arrays_of_incidences: per node set and incidence, table, degrees and list.
        free: per node set, 1 where a component may move; None where all may.
    """

    def __init__(
        self,
        arrays: Sequence[ArrayLayout],
        groups: Sequence[BoundGroup],
        parameters: FloatArray,
        damping: str,
        precision: str,
    ) -> None:
        super().__init__(arrays, groups, parameters)
        self.precision = precision
        structures = tuple(
            replace(self.group_structure(g, "jacobian"), stored=True) for g in range(len(groups))
        )
        incidences: list[list[Incidence]] = [[] for _ in self.sets]
        tables: list[list[Any]] = [[] for _ in self.sets]
        with double_precision():
            for g, group in enumerate(structures):
                for slot in group.places:
                    form, table = self._table(g, slot.place, slot.node_set)
                    incidences[slot.node_set].append(Incidence(g, slot.place, form))
                    tables[slot.node_set].append(table)
            self.arrays_of_groups = upload(
                "data", lambda: [self._group_arrays(g) for g in range(len(groups))]
            )
            self.free = [self._free(k) for k in range(len(self.sets))]
        self.arrays_of_incidences = tables
        self.structure = JaxStructure(
            node_sets=tuple(
                NodeSet(width=self.width_of(k), team=1, masked=f is not None)
                for k, f in enumerate(self.free)
            ),
            groups=structures,
            incidences=tuple(tuple(i) for i in incidences),
            damping=damping,
        )

    def _table(self, g: int, place: int, node_set: int) -> tuple[Form, dict[str, Any]]:
        nodes = self.nodes[g][place]
        count = len(self.new[node_set])
        if count == 1:
            return Form.ALL, {}
        if np.array_equal(nodes, np.arange(count)):
            return Form.DIRECT, {}
        jnp = load_jax().numpy
        table = incidence_table(nodes, count)
        return Form.TABLE, upload(
            "tables",
            lambda: {name: jnp.asarray(array.astype(np.uint32)) for name, array in table.items()},
        )

    def _group_arrays(self, g: int) -> dict[str, Any]:
        """Node of each place, and columns of data, in the order of the sorted elements."""
        jnp = load_jax().numpy
        group, order = self.groups[g], self.element_order[g]
        data: list[Any] = []
        for binding in group.bindings:
            if isinstance(binding, DataBinding):
                values = as_real(binding.values, self.precision, f"residuals {group.name!r}, data")
                rows = values if binding.shared else values[order]
                data.append(jnp.asarray(np.ascontiguousarray(rows.T)))
            else:
                data.append(None)
        return {
            "nodes": [jnp.asarray(n.astype(np.uint32)) for n in self.nodes[g]],
            "data": data,
        }

    def _free(self, k: int) -> Any | None:
        members = self.sets[k]
        if not any(self.arrays[a].frozen.any() for a in members):
            return None
        free = np.ones((self.width_of(k), len(self.new[k])), self.precision)
        for a in members:
            layout, first = self.arrays[a], self.offset_in_node(a)
            free[first : first + layout.width, self.new[k][layout.frozen]] = 0.0
        return load_jax().numpy.asarray(free)

    def pack(self, parameters: FloatArray) -> list[Any]:
        """The problem's parameters as one ``(width, nodes)`` array per node set."""
        packed = [
            np.zeros((self.width_of(k), len(self.new[k])), self.precision)
            for k in range(len(self.sets))
        ]
        for a, layout in enumerate(self.arrays):
            k, first = self.set_of[a], self.offset_in_node(a)
            end = layout.base + layout.blocks * layout.width
            blocks = as_real(parameters[layout.base : end], self.precision, "parameters")
            rows = packed[k][first : first + layout.width]
            rows[:, self.new[k]] = blocks.reshape(layout.blocks, layout.width).T
        return packed

    def unpack(self, packed: Sequence[NDArray[Any]]) -> FloatArray:
        """What ``pack`` made, as the problem's parameters."""
        parts: list[NDArray[Any]] = []
        for a, layout in enumerate(self.arrays):
            k, first = self.set_of[a], self.offset_in_node(a)
            rows = packed[k][first : first + layout.width]
            parts.append(rows[:, self.new[k]].T.ravel())
        return np.concatenate(parts).astype(np.float64)


def incidence_table(nodes: IndexArray, count: int) -> dict[str, IndexArray]:
    """Elements by node, in a table and a list.

    Args:
        nodes: node of each element.
        count: number of nodes.

    Returns:
        ``elements``: ``(width, count)``, element number in row w of a node's column;
        ``degree``: ``(count,)``, rows of the column that hold one;
        ``more_elements``, ``more_nodes``: incidences beyond, sorted by node and filled up with
        node ``count``, which is none.
    """
    width = int(np.ceil(len(nodes) / count)) if len(nodes) >= SPARSE_BELOW * count else 0
    order = np.argsort(nodes, kind="stable")
    sorted_nodes = nodes[order]
    starts = np.searchsorted(sorted_nodes, np.arange(count))
    row = np.arange(len(nodes)) - starts[sorted_nodes]
    inside = row < width
    elements = np.zeros((width, count), np.int64)
    elements[row[inside], sorted_nodes[inside]] = order[inside]
    degree = np.minimum(np.bincount(nodes, minlength=count), width)
    beyond = int((~inside).sum())
    half = (len(nodes) + 1) // 2
    capacity = 0 if beyond == 0 else half if beyond <= half else len(nodes)
    more_elements = np.zeros(capacity, np.int64)
    more_nodes = np.full(capacity, count, np.int64)
    more_elements[:beyond] = order[~inside]
    more_nodes[:beyond] = sorted_nodes[~inside]
    return {
        "elements": elements,
        "degree": degree,
        "more_elements": more_elements,
        "more_nodes": more_nodes,
    }
