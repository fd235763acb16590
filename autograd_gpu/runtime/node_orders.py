"""Which arrays share nodes, and orders of nodes and elements that keep neighbours together.

Nodes are renumbered for locality and elements are sorted by the node they touch first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.element_parts import block_record
from autograd_gpu.codegen.element_stages import stage_cost
from autograd_gpu.codegen.incidence import GroupStructure, NodeSlot
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray, ParameterBinding
from autograd_gpu.runtime.locality import lexical_order, node_order
from autograd_gpu.runtime.schedule_features import entries_of, features_of
from autograd_gpu.runtime.schedules import GroupFeatures, PlaceFeatures

WIDEST_NODE = 12
"""Arrays are fused into one node up to this many components; the block factor lives in
registers, about half the square of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """A parameter array of the problem: first number, blocks, numbers per block, frozen blocks."""

    base: int
    blocks: int
    width: int
    frozen: NDArray[np.bool_]


class NodeOrders:
    """Node sets, places and orders of one problem; see ``codegen.incidence`` for the words.

    Args:
        arrays: all parameter arrays of the problem, in order.
        groups: bound residual groups.
        parameters: current values, for the locality order.

    Attributes:
        arrays, groups: as given.
        sets: arrays of each node set.
        set_of: array -> its node set.
        new: per node set, number of a node after reordering.
        nodes: per group and place, node of each element, elements in their new order.
        element_order: per group, elements in their new order.
        place_sets: per group, the node set of each place.
        lead: per group, the place by which elements are sorted first.
    """

    def __init__(
        self,
        arrays: Sequence[ArrayLayout],
        groups: Sequence[BoundGroup],
        parameters: FloatArray,
    ) -> None:
        self.arrays = list(arrays)
        self.groups = list(groups)
        self._blocks = [self._place_blocks(g) for g in groups]
        self.sets = self._fuse()
        self.set_of = {a: k for k, members in enumerate(self.sets) for a in members}
        self._order_nodes(parameters)
        self._sort_elements()

    # -- which arrays share nodes ----------------------------------------------------------------

    def _array_at(self, base: int) -> int:
        return next(k for k, a in enumerate(self.arrays) if a.base == base)

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
        sets: list[list[int]] = [[k] for k in range(len(self.arrays))]
        for slots in self._blocks:
            present = [s for s in slots if s is not None]
            for i, (a, blocks_a) in enumerate(present):
                for b, blocks_b in present[i + 1 :]:
                    first = next(s for s in sets if a in s)
                    second = next(s for s in sets if b in s)
                    width = sum(self.arrays[k].width for k in (*first, *second))
                    if (
                        first is not second
                        and self.arrays[a].blocks == self.arrays[b].blocks
                        and width <= WIDEST_NODE
                        and np.array_equal(blocks_a, blocks_b)
                    ):
                        first += second
                        sets.remove(second)
        return [sorted(s) for s in sets]

    def offset_in_node(self, array: int) -> int:
        """First component of an array's block inside its node."""
        members = self.sets[self.set_of[array]]
        return sum(self.arrays[k].width for k in members[: members.index(array)])

    # -- orders --------------------------------------------------------------------------------

    def _order_nodes(self, parameters: FloatArray) -> None:
        """Fill ``new``."""
        self.new: list[IndexArray] = []
        for members in self.sets:
            layout = self.arrays[members[0]]
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
            self.new.append(new)

    def _sort_elements(self) -> None:
        """Fill ``nodes``, ``element_order``, ``place_sets`` and ``lead``."""
        self.place_sets: list[tuple[int, ...]] = []
        self.lead: list[int] = []
        self._places: list[list[int]] = []
        self.nodes: list[list[IndexArray]] = []
        self.element_order: list[IndexArray] = []
        for slots in self._blocks:
            places: list[tuple[int, IndexArray]] = []
            assigned: list[int] = []
            for slot in slots:
                if slot is None:
                    assigned.append(-1)
                    continue
                array, blocks = slot
                k = self.set_of[array]
                same = [other == k and np.array_equal(seen, blocks) for other, seen in places]
                place = same.index(True) if any(same) else len(places)
                if place == len(places):
                    places.append((k, blocks))
                assigned.append(place)
            nodes = [self.new[k][blocks] for k, blocks in places]
            # Two sets: the larger one has the shorter lists, so it decides the order.
            lead = max(range(len(places)), key=lambda p: (len(self.new[places[p][0]]), -p))
            keys = [*(p for p in range(len(nodes)) if p != lead), lead]
            counts = [len(self.new[places[p][0]]) for p in keys]
            order = lexical_order([nodes[p] for p in keys], counts).astype(np.int64, copy=False)
            self.place_sets.append(tuple(k for k, _ in places))
            self.lead.append(lead)
            self._places.append(assigned)
            self.nodes.append([n[order] for n in nodes])
            self.element_order.append(order)

    def features(self, g: int, precision: str = "float32") -> GroupFeatures:
        """What a schedule of group ``g`` is chosen by."""
        bound, kernel = self.groups[g], self.groups[g].kernel(Product.RESIDUAL_JACOBIAN)
        counts = entries_of(kernel)
        places: dict[int, PlaceFeatures] = {}
        rows = zip(kernel.slots, self._places[g], self._blocks[g], counts, strict=True)
        for slot, place, info, entries in rows:
            if info is not None:
                k = self.set_of[info[0]]
                before = places.get(place)
                places[place] = PlaceFeatures(
                    node_set=k,
                    nodes=len(self.new[k]),
                    width=self.width_of(k),
                    columns=slot.tangent + (before.columns if before else 0),
                    entries=entries + (before.entries if before else 0),
                    most=before.most if before else self._most_elements(g, place),
                )
        read = sum(p.columns for p in places.values())
        return features_of(bound, precision, read, [places[p] for p in sorted(places)])

    def _most_elements(self, g: int, place: int) -> int:
        """Elements of a group that the node with the most of them sees at a place."""
        nodes = self.nodes[g][place]
        return int(np.bincount(nodes).max()) if nodes.size else 0

    def group_structure(
        self, g: int, materialise: str, longest: int | None = None
    ) -> GroupStructure:
        """What generated text needs to know of group ``g``.

        Args:
            g: which group.
            materialise: what is stored of an element.
            longest: cost of a stage of a large residual function; None for one text.
        """
        bound = self.groups[g]
        kernel = bound.kernel(Product.RESIDUAL_JACOBIAN)
        slots: list[NodeSlot | None] = []
        for slot, place, info in zip(kernel.slots, self._places[g], self._blocks[g], strict=True):
            if info is None:
                slots.append(None)
                continue
            slots.append(
                NodeSlot(
                    node_set=self.set_of[info[0]],
                    offset=self.offset_in_node(info[0]),
                    width=slot.ambient,
                    place=place,
                )
            )
        varies = any(e.output is not None for e in kernel.entries)
        structure = GroupStructure(
            kernel=kernel,
            residual=bound.kernel(Product.RESIDUAL),
            slots=tuple(slots),
            stored=varies and materialise != "nothing",
        )
        if structure.stored and materialise == "jtj-blocks":
            structure = replace(structure, blocks=block_record(structure))
        if longest is None:
            return structure
        return replace(structure, stage_cost=stage_cost(structure, longest, bound.count))

    def width_of(self, node_set: int) -> int:
        """Components of a node of a set."""
        return sum(self.arrays[a].width for a in self.sets[node_set])
