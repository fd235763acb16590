"""Index and data tables of a device-resident solve, built once per problem with NumPy.

Nodes are renumbered for locality and elements are sorted by the node they touch first; callers
see neither. Parameters travel through ``pack`` and ``unpack``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..codegen.incidence import (
    GroupStructure,
    Kind,
    NodeSet,
    NodeSlot,
    SolveStructure,
)
from ..codegen.kernel import Product
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
from .batch import BoundGroup, DataBinding, FloatArray, IndexArray, ParameterBinding
from .locality import node_order

MASK_BITS = 32
"""A node's frozen components are bits of one word."""

WIDEST_NODE = 12
"""Arrays are fused into one node up to this many components; the block factor lives in
registers, about half the square of it."""

STORE_ABOVE_COST = 60
"""A Jacobian that costs more operations than this is stored rather than recomputed."""

TEAMS = ((24.0, 1), (96.0, 8), (384.0, 32), (float("inf"), 128))
"""(mean incidences per node up to, threads per node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """A parameter array of the problem: first number, blocks, numbers per block, frozen blocks."""

    base: int
    blocks: int
    width: int
    frozen: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Incidences:
    """Incidences of one kind, sorted by node."""

    starts: IndexArray
    elements: IndexArray
    unit: bool
    direct: bool


class NodeTables:
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
        self._arrays = list(arrays)
        self._groups = list(groups)
        self._blocks = [self._place_blocks(g) for g in groups]
        self._sets = self._fuse()
        self._set_of = {a: k for k, members in enumerate(self._sets) for a in members}
        self._order_nodes(parameters)
        self._sort_elements()
        self._assemble(damping, stored)

    # -- which arrays share nodes ----------------------------------------------------------------

    def _array_at(self, base: int) -> int:
        return next(k for k, a in enumerate(self._arrays) if a.base == base)

    def _place_blocks(self, group: BoundGroup) -> list[tuple[int, IndexArray] | None]:
        """(array, block per element) of each slot; None for data."""
        return [
            (self._array_at(b.base), b.block_of(group.count))
            if isinstance(b, ParameterBinding)
            else None
            for b in group.bindings
        ]

    def _fuse(self) -> list[list[int]]:
        """Arrays that become one node: equally many blocks, gathered alike somewhere."""
        sets: list[list[int]] = [[k] for k in range(len(self._arrays))]
        for slots in self._blocks:
            present = [s for s in slots if s is not None]
            for i, (a, blocks_a) in enumerate(present):
                for b, blocks_b in present[i + 1 :]:
                    first = next(s for s in sets if a in s)
                    second = next(s for s in sets if b in s)
                    width = sum(self._arrays[k].width for k in (*first, *second))
                    if (
                        first is not second
                        and self._arrays[a].blocks == self._arrays[b].blocks
                        and width <= WIDEST_NODE
                        and np.array_equal(blocks_a, blocks_b)
                    ):
                        first += second
                        sets.remove(second)
        return [sorted(s) for s in sets]

    def _offset_in_node(self, array: int) -> int:
        members = self._sets[self._set_of[array]]
        return sum(self._arrays[k].width for k in members[: members.index(array)])

    # -- orders --------------------------------------------------------------------------------

    def _order_nodes(self, parameters: FloatArray) -> None:
        """``_new[k][old]``: number of a node after reordering."""
        self._new: list[IndexArray] = []
        for members in self._sets:
            layout = self._arrays[members[0]]
            values = parameters[layout.base : layout.base + layout.blocks * layout.width]
            links = [
                (blocks_a, blocks_b)
                for slots in self._blocks
                for i, s in enumerate(slots)
                if s is not None and s[0] in members
                for r in slots[i + 1 :]
                if r is not None and r[0] in members
                for blocks_a, blocks_b in ((s[1], r[1]),)
            ]
            order = node_order(values.reshape(layout.blocks, layout.width), links)
            new = np.empty(layout.blocks, np.int64)
            new[order] = np.arange(layout.blocks)
            self._new.append(new)

    def _sort_elements(self) -> None:
        """``_nodes[g][place]``: node per element, elements sorted by the node of place 0."""
        self._places: list[list[int]] = []
        self._nodes: list[list[IndexArray]] = []
        self._element_order: list[IndexArray] = []
        for slots in self._blocks:
            places: list[tuple[int, IndexArray]] = []
            assigned: list[int] = []
            for slot in slots:
                if slot is None:
                    assigned.append(-1)
                    continue
                array, blocks = slot
                k = self._set_of[array]
                same = [other == k and np.array_equal(seen, blocks) for other, seen in places]
                place = same.index(True) if any(same) else len(places)
                if place == len(places):
                    places.append((k, blocks))
                assigned.append(place)
            nodes = [self._new[k][blocks] for k, blocks in places]
            # Two sets: the larger one has the shorter lists, so it decides the order.
            lead = max(range(len(places)), key=lambda p: (len(self._new[places[p][0]]), -p))
            order = np.lexsort([nodes[p] for p in range(len(nodes)) if p != lead] + [nodes[lead]])
            self._places.append(assigned)
            self._nodes.append([n[order] for n in nodes])
            self._element_order.append(order)

    # -- structure and tables ------------------------------------------------------------------

    def _assemble(self, damping: str, stored: bool | None) -> None:
        structures = [self._group_structure(g, stored) for g in range(len(self._groups))]
        kinds: list[list[Kind]] = [[] for _ in self._sets]
        incidences: list[list[_Incidences]] = [[] for _ in self._sets]
        for g, group in enumerate(structures):
            widths = [self._width_of(s.node_set) for s in group.places]
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
                width=self._width_of(k),
                team=_team(incidences[k], len(self._new[k])),
                masked=any(self._arrays[a].frozen.any() for a in members),
            )
            for k, members in enumerate(self._sets)
        ]
        self.structure = SolveStructure(
            node_sets=tuple(node_sets),
            groups=tuple(structures),
            kinds=tuple(tuple(k) for k in kinds),
            damping=damping,
        )
        self._fill(incidences)

    def _group_structure(self, g: int, stored: bool | None) -> GroupStructure:
        bound = self._groups[g]
        kernel = bound.kernel(Product.RESIDUAL_JACOBIAN)
        slots: list[NodeSlot | None] = []
        for slot, place, info in zip(kernel.slots, self._places[g], self._blocks[g], strict=True):
            if info is None:
                slots.append(None)
                continue
            slots.append(
                NodeSlot(
                    node_set=self._set_of[info[0]],
                    offset=self._offset_in_node(info[0]),
                    width=slot.ambient,
                    place=place,
                )
            )
        varies = any(e.output is not None for e in kernel.entries)
        keep = kernel.graph.cost > STORE_ABOVE_COST if stored is None else stored
        return GroupStructure(
            kernel=kernel,
            residual=bound.kernel(Product.RESIDUAL),
            slots=tuple(slots),
            stored=varies and keep,
        )

    def _width_of(self, node_set: int) -> int:
        return sum(self._arrays[a].width for a in self._sets[node_set])

    def _incidences(self, g: int, slot: NodeSlot, mirrored: bool) -> _Incidences:
        """Incidences of a place; with ``mirrored``, element e seen from place 1 is count + e."""
        nodes = self._nodes[g][slot.place]
        count = len(self._new[slot.node_set])
        if mirrored:
            other = self._nodes[g][1]
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
            nodes=tuple(len(n) for n in self._new),
            elements=tuple(g.count for g in self._groups),
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
        bound = self._groups[g]
        words: list[NDArray[np.uint32]] = []
        for what, number, component in columns:
            if what == "element":
                assert elements is not None
                words.append(elements.astype(np.uint32))
                continue
            if what == "node":
                column = self._nodes[g][number].astype(np.uint32)
            else:
                binding = bound.bindings[number]
                assert isinstance(binding, DataBinding)
                values = binding.values[:, component].astype(np.float32)
                if binding.shared:
                    values = np.broadcast_to(values, (bound.count,))
                column = values[self._element_order[g]].view(np.uint32)
            if mirrored:
                # Seen from place 1, place 0 is the other node; data are the same.
                seen = self._nodes[g][1 - number].astype(np.uint32) if what == "node" else column
                column = np.concatenate([column, seen])
            words.append(column if elements is None else column[elements])
        return np.concatenate(words) if words else np.zeros(0, np.uint32)

    def mask(self, k: int) -> NDArray[np.uint32]:
        """Per node, a bit per component that is frozen."""
        width = self._width_of(k)
        if width > MASK_BITS:
            raise DeviceLimitError(
                f"a parameter array has blocks of {width} numbers and some of them are frozen; a "
                f"device solve freezes blocks of at most {MASK_BITS}; use "
                "linear_solver='sparse-cholesky', or leave them out of the problem"
            )
        mask = np.zeros(len(self._new[k]), np.uint32)
        for array in self._sets[k]:
            layout = self._arrays[array]
            bits = ((1 << layout.width) - 1) << self._offset_in_node(array)
            mask[self._new[k][layout.frozen]] |= np.uint32(bits)
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
        return tuple(map(tuple, self._sets))

    def places_of(self, g: int) -> list[tuple[int, IndexArray]]:
        """Node set and nodes of each place of a group, elements in the device's order."""
        places = self.structure.groups[g].places
        return [(s.node_set, self._nodes[g][s.place]) for s in places]

    # -- parameters ----------------------------------------------------------------------------

    @cached_property
    def _positions(self) -> IndexArray:
        """Position in a vector of each of the problem's parameters, in numbers."""
        words: list[IndexArray] = []
        for k, layout in enumerate(self._arrays):
            node_set = self._set_of[k]
            width = self.structure.node_sets[node_set].width
            base = self.sizes.vector_bases[node_set] * self.structure.lanes
            first = base + self._new[node_set] * width
            first = first + self._offset_in_node(k)
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
