"""Index and data tables of a device-resident solve, built once per problem with NumPy.

Parameters travel through ``pack`` and ``unpack``, so callers see no order but their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..codegen.incidence import (
    Kind,
    NodeSet,
    NodeSlot,
    SolveStructure,
)
from ..codegen.solve_kernels import WORKGROUP_SIZE
from ..codegen.solve_layout import (
    Column,
    element_columns,
    group_row,
    kind_columns,
    kind_row,
    set_row,
)
from ..codegen.solve_program import SolveSizes
from ..codegen.symmetry import is_symmetric
from ..errors import DeviceLimitError
from .batch import BoundGroup, DataBinding, FloatArray, IndexArray
from .node_orders import ArrayLayout, NodeOrders

MASK_BITS = 32
"""A node's frozen components are bits of one word."""

TEAMS = ((24.0, 1), (96.0, 8), (384.0, 32), (float("inf"), 128))
"""(mean incidences per node up to, threads per node)."""


@dataclass(frozen=True, slots=True)
class _Incidences:
    """Incidences of one kind, sorted by node."""

    starts: IndexArray
    elements: IndexArray
    unit: bool
    direct: bool


class NodeTables(NodeOrders):
    """Structure, sizes, tables and permutations of one problem.

    Args:
        arrays: all parameter arrays of the problem, in order.
        groups: bound residual groups.
        parameters: current values, for the locality order.
        damping: damping form.
        stored: store Jacobians (True), recompute them (False), or by cost (None).
    """

    def __init__(
        self,
        arrays: Sequence[ArrayLayout],
        groups: Sequence[BoundGroup],
        parameters: FloatArray,
        damping: str = "one-plus-norm",
        stored: bool | None = None,
    ) -> None:
        super().__init__(arrays, groups, parameters)
        self._assemble(damping, stored)

    # -- structure and tables ------------------------------------------------------------------

    def _assemble(self, damping: str, stored: bool | None) -> None:
        structures = [self.group_structure(g, stored) for g in range(len(self.groups))]
        kinds: list[list[Kind]] = [[] for _ in self.sets]
        incidences: list[list[_Incidences]] = [[] for _ in self.sets]
        for g, group in enumerate(structures):
            widths = [self.width_of(s.node_set) for s in group.places]
            mirrored = is_symmetric(group, widths[0])
            for slot in group.places[:1] if mirrored else group.places:
                found = self._incidences(g, slot, mirrored)
                kinds[slot.node_set].append(
                    Kind(
                        group=g,
                        place=slot.place,
                        mirrored=mirrored,
                        unit=found.unit,
                        direct=found.direct,
                    )
                )
                incidences[slot.node_set].append(found)
        node_sets = [
            NodeSet(
                width=self.width_of(k),
                team=_team(incidences[k], len(self.new[k])),
                masked=any(self.arrays[a].frozen.any() for a in members),
            )
            for k, members in enumerate(self.sets)
        ]
        self.structure = SolveStructure(
            node_sets=tuple(node_sets),
            groups=tuple(structures),
            kinds=tuple(tuple(k) for k in kinds),
            damping=damping,
        )
        self._fill(incidences)

    def _incidences(self, g: int, slot: NodeSlot, mirrored: bool) -> _Incidences:
        """Incidences of a place; with ``mirrored``, element e seen from place 1 is count + e."""
        nodes = self.nodes[g][slot.place]
        count = len(self.new[slot.node_set])
        if mirrored:
            other = self.nodes[g][1]
            # Neighbours in order too: the k-th ones of adjacent threads are then near each other
            # (70.8 to 67.4 µs on the gradient of 7.86 M springs, NVIDIA H200).
            order = np.lexsort([np.concatenate([other, nodes]), np.concatenate([nodes, other])])
            nodes = np.concatenate([nodes, other])
        else:
            order = np.argsort(nodes, kind="stable")
        starts = np.searchsorted(nodes[order], np.arange(count + 1))
        direct = bool(np.array_equal(order, np.arange(len(order))))
        unit = len(nodes) == count and bool((np.diff(starts) == 1).all())
        return _Incidences(starts, order, unit, direct)

    def _fill(self, incidences: list[list[_Incidences]]) -> None:
        """Write the tables and remember where each begins."""
        parts: list[NDArray[np.uint32]] = []
        total = 0

        def put(words: NDArray[np.uint32]) -> int:
            nonlocal total
            parts.append(words)
            start = total
            total += words.size
            return start

        structure = self.structure
        element_tables = [
            put(self._columns(g, element_columns(group), None))
            for g, group in enumerate(structure.groups)
        ]
        kind_tables: list[list[tuple[int, int, int]]] = []
        for k, kinds in enumerate(structure.kinds):
            rows: list[tuple[int, int, int]] = []
            for kind, found in zip(kinds, incidences[k], strict=True):
                group = structure.groups[kind.group]
                starts = 0 if found.unit else put(found.starts.astype(np.uint32))
                columns = kind_columns(group, kind)
                table = put(self._columns(kind.group, columns, found.elements, kind.mirrored))
                rows.append((starts, table, len(found.elements)))
            kind_tables.append(rows)
        masks = [
            put(self.mask(k)) if nodes.masked else 0 for k, nodes in enumerate(structure.node_sets)
        ]
        self.tables = np.concatenate([*parts, np.zeros(1, np.uint32)])
        self.sizes = SolveSizes(
            structure=structure,
            nodes=tuple(len(n) for n in self.new),
            elements=tuple(g.count for g in self.groups),
            table_words=self.tables.size,
        )
        self.control = self._control(element_tables, kind_tables, masks)

    def _columns(
        self,
        g: int,
        columns: Sequence[Column],
        elements: IndexArray | None,
        mirrored: bool = False,
    ) -> NDArray[np.uint32]:
        """Table of the given columns, one after the other; all elements in order by default."""
        bound = self.groups[g]
        words: list[NDArray[np.uint32]] = []
        for what, number, component in columns:
            if what == "element":
                assert elements is not None
                words.append(elements.astype(np.uint32))
                continue
            if what == "node":
                column = self.nodes[g][number].astype(np.uint32)
            else:
                binding = bound.bindings[number]
                assert isinstance(binding, DataBinding)
                values = binding.values[:, component].astype(np.float32)
                if binding.shared:
                    values = np.broadcast_to(values, (bound.count,))
                column = values[self.element_order[g]].view(np.uint32)
            if mirrored:
                # Seen from place 1, place 0 is the other node; data are the same.
                seen = self.nodes[g][1 - number].astype(np.uint32) if what == "node" else column
                column = np.concatenate([column, seen])
            words.append(column if elements is None else column[elements])
        return np.concatenate(words) if words else np.zeros(0, np.uint32)

    def mask(self, k: int) -> NDArray[np.uint32]:
        """Per node, a bit per component that is frozen."""
        width = self.width_of(k)
        if width > MASK_BITS:
            raise DeviceLimitError(
                f"a parameter array has blocks of {width} numbers and some of them are frozen; a "
                f"device solve freezes blocks of at most {MASK_BITS}; use "
                "linear_solver='sparse-cholesky', or leave them out of the problem"
            )
        mask = np.zeros(len(self.new[k]), np.uint32)
        for array in self.sets[k]:
            layout = self.arrays[array]
            bits = ((1 << layout.width) - 1) << self.offset_in_node(array)
            mask[self.new[k][layout.frozen]] |= np.uint32(bits)
        return mask

    def _control(
        self,
        element_tables: list[int],
        kind_tables: list[list[tuple[int, int, int]]],
        masks: list[int],
    ) -> NDArray[np.uint32]:
        s, structure = self.sizes, self.structure
        rows: dict[int, tuple[int, int, int, int]] = {}
        step, element, largest, _ = s.partial_bases
        rows[0] = (s.length, s.product_groups[-1], s.element_starts[-1] // WORKGROUP_SIZE, 0)
        rows[1] = (step, element, largest, 0)
        for k in range(len(structure.node_sets)):
            rows[set_row(k)] = (
                s.nodes[k], s.vector_bases[k], s.factor_bases[k], s.update_groups[k],
            )  # fmt: skip
            rows[set_row(k) + 1] = (s.product_groups[k], masks[k], 0, 0)
            for j, (starts, table, count) in enumerate(kind_tables[k]):
                rows[kind_row(structure, k, j)] = (starts, table, count, 0)
        for g, jacobian in enumerate(s.jacobian_bases[:-1]):
            rows[group_row(structure, g)] = (
                s.elements[g], s.element_starts[g], element_tables[g], jacobian,
            )  # fmt: skip
        return np.array([rows[k] for k in range(len(rows))], np.uint32)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Parameter arrays of each node set, in the order of its components."""
        return tuple(map(tuple, self.sets))

    def places_of(self, g: int) -> list[tuple[int, IndexArray]]:
        """Node set and nodes of each place of a group, elements in the device's order."""
        places = self.structure.groups[g].places
        return [(s.node_set, self.nodes[g][s.place]) for s in places]

    # -- parameters ----------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> IndexArray:
        """Position in a vector of each of the problem's parameters, in numbers."""
        words: list[IndexArray] = []
        for k, layout in enumerate(self.arrays):
            node_set = self.set_of[k]
            width = self.structure.node_sets[node_set].width
            base = self.sizes.vector_bases[node_set] * self.structure.lanes
            first = base + self.new[node_set] * width
            first = first + self.offset_in_node(k)
            words.append((first[:, None] + np.arange(layout.width)).ravel())
        return np.concatenate(words)

    def pack(self, parameters: FloatArray) -> NDArray[np.float32]:
        """The problem's parameters as a device vector."""
        packed = np.zeros(self.sizes.components, np.float32)
        packed[self._positions] = parameters
        return packed

    def unpack(self, vector: NDArray[np.float32]) -> FloatArray:
        """A device vector as the problem's parameters."""
        return vector[self._positions].astype(np.float64)


def _team(incidences: Sequence[_Incidences], nodes: int) -> int:
    mean = sum(len(i.elements) for i in incidences) / max(1, nodes)
    return next(team for limit, team in TEAMS if mean <= limit)
