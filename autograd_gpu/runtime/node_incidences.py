"""Which elements each node of a problem sums, in order, and the columns that its sums read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.incidence import (
    WORKGROUP_SIZE,
    GroupStructure,
    Kind,
    NodeSet,
    NodeSlot,
    SolveStructure,
)
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.codegen.solve_layout import (
    Column,
    kind_columns,
    number_columns,
    table_columns,
)
from autograd_gpu.codegen.symmetry import is_symmetric
from autograd_gpu.errors import DeviceLimitError
from autograd_gpu.runtime.batch import BoundGroup, DataBinding, FloatArray, IndexArray
from autograd_gpu.runtime.locality import lexical_order, stable_order
from autograd_gpu.runtime.node_orders import ArrayLayout, NodeOrders
from autograd_gpu.runtime.node_slices import Slices, cut_lists
from autograd_gpu.runtime.number_formats import FORMATS, check_lossless
from autograd_gpu.runtime.reverse_elements import reverse_signs
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedules import Schedule

MASK_BITS = 32
"""A node's frozen components are bits of one word."""


@dataclass(frozen=True, slots=True)
class Incidences:
    """Incidences of one kind, sorted by node.

    Attributes:
        starts: first incidence of each node, and their number.
        elements: element of each; those seen from place 1 of a mirrored kind are count + element.
        unit, direct: as in ``codegen.incidence.Kind``.
    """

    starts: IndexArray
    elements: IndexArray
    unit: bool
    direct: bool


class NodeIncidences(NodeOrders):
    """Structure of one problem and the lists that its nodes walk; no tables yet.

    Args:
        arrays: all parameter arrays of the problem, in order.
        groups: bound residual groups.
        parameters: current values, for the locality order.
        damping: damping form.
        schedules: of the groups: one for each, one for all, or what chooses them; by default the
            least estimate for a solve on a GPU.
        precision: of numbers on the device, one of ``FORMATS``.

    Attributes:
        schedules: of the groups.
        schedule_sources: where they come from: ``model``, ``measured``, ``asked for``.
        structure: what generated text depends on.
        incidences: per node set, lists of each kind.
        slices: per node set and kind, what the lists of heavy nodes are cut into, or None.
        number_format: how numbers are stored on the device.
    """

    def __init__(
        self,
        arrays: Sequence[ArrayLayout],
        groups: Sequence[BoundGroup],
        parameters: FloatArray,
        damping: str = "one-plus-norm",
        schedules: Sequence[Schedule] | ScheduleChooser | None = None,
        precision: str = "float32",
    ) -> None:
        super().__init__(arrays, groups, parameters)
        self.number_format = FORMATS[precision]
        self._sorted: dict[tuple[int, int, bool], Incidences] = {}
        self._reversed: dict[int, tuple[tuple[int, ...], ...] | None] = {}
        if not isinstance(schedules, ScheduleChooser):
            fixed = None if schedules is None else tuple(schedules)
            schedules = ScheduleChooser("solve", identity_of(None), fixed)
        features = [self.features(g, precision) for g in range(len(self.groups))]
        self._stage_cost = schedules.where.profile.stage_cost
        decisions = schedules.decide(features)
        self.schedule_sources = tuple(dict.fromkeys(d.source for d in decisions))
        self._resident = schedules.purpose == "solve"
        self._schedule([d.schedule for d in decisions], damping, precision)

    def _schedule(self, schedules: Sequence[Schedule], damping: str, precision: str) -> None:
        """Set ``schedules``, ``structure`` and ``incidences``."""
        self.schedules = tuple(schedules)
        size, element_sizes = self._workgroup_sizes(schedules)
        structures = [
            self.group_structure(g, s.materialise, self._stage_cost)
            for g, s in enumerate(schedules)
        ]
        kinds: list[list[Kind]] = [[] for _ in self.sets]
        self.incidences: list[list[Incidences]] = [[] for _ in self.sets]
        self.slices: list[list[Slices | None]] = [[] for _ in self.sets]
        for g, group in enumerate(structures):
            self._add_kinds(g, group, kinds)
        teams = [self._slice(k, kinds[k], size) for k in range(len(self.sets))]
        node_sets = [
            NodeSet(
                width=self.width_of(k),
                team=teams[k],
                masked=any(self.arrays[a].frozen.any() for a in members),
            )
            for k, members in enumerate(self.sets)
        ]
        self.structure = SolveStructure(
            node_sets=tuple(node_sets),
            groups=tuple(structures),
            kinds=tuple(tuple(k) for k in kinds),
            damping=damping,
            workgroup_size=size,
            element_sizes=element_sizes,
            precision=precision,
        )

    def _workgroup_sizes(self, schedules: Sequence[Schedule]) -> tuple[int, tuple[int, ...]]:
        """Of kernels that serve several groups, as the heaviest group has it; of each group's own.

        The second is () where all are the same.
        """
        sizes = tuple(s.workgroup_size for s in schedules)
        if len(set(sizes)) < 2:
            return next(iter(sizes), WORKGROUP_SIZE), ()
        work = [g.count * g.kernel(Product.RESIDUAL_JACOBIAN).graph.cost for g in self.groups]
        return sizes[work.index(max(work))], sizes

    def _add_kinds(self, g: int, group: GroupStructure, kinds: list[list[Kind]]) -> None:
        widths = [self.width_of(s.node_set) for s in group.places]
        mirrored = is_symmetric(group, widths[0])
        reverse = None if mirrored or group.stored else self._reverse(g)
        places = group.places[:1] if mirrored else group.places
        if reverse is not None:
            places = (group.places[self.lead[g]],)
        for slot in places:
            found = self._incident(g, slot, mirrored)
            kinds[slot.node_set].append(
                Kind(
                    group=g,
                    place=slot.place,
                    mirrored=mirrored,
                    unit=found.unit,
                    direct=found.direct,
                    reverse=reverse,
                )
            )
            self.incidences[slot.node_set].append(found)

    def _reverse(self, g: int) -> tuple[tuple[int, ...], ...] | None:
        """Signs by which data of reverse elements differ, if every element has its reverse."""
        if g not in self._reversed:
            self._reversed[g] = self._find_reverse(g, self.groups[g])
        return self._reversed[g]

    def _find_reverse(self, g: int, group: BoundGroup) -> tuple[tuple[int, ...], ...] | None:
        node_sets = self.place_sets[g]
        if len(node_sets) != 2 or node_sets[0] != node_sets[1]:
            return None
        count, order = len(self.new[node_sets[0]]), self.element_order[g]
        return reverse_signs(group, self.nodes[g], self.lead[g], count, order)

    def has_same_structure(self, groups: Sequence[BoundGroup]) -> bool:
        """Whether the same groups with other data have this structure: reverse elements pair."""
        kinds = (k for of_set in self.structure.kinds for k in of_set)
        return all(
            groups[k.group] is self.groups[k.group]
            or self._find_reverse(k.group, groups[k.group]) == k.reverse
            for k in kinds
            if k.reverse is not None
        )

    def forget_reverses(self) -> None:
        """Look for reverse elements again when schedules change: data are others."""
        self._reversed = {}

    def _slice(self, k: int, kinds: list[Kind], workgroup_size: int) -> int:
        """Cut the lists of a node set's heavy nodes; returns the threads that share a node."""
        wanted = [
            self._resident and self.schedules[kind.group].accumulate == "two-level"
            for kind in kinds
        ]
        starts = [found.starts for found in self.incidences[k]]
        self.slices[k], team = cut_lists(starts, wanted, workgroup_size)
        for j, slices in enumerate(self.slices[k]):
            if slices is not None:
                kinds[j] = replace(kinds[j], sliced=True, walked=not slices.complete)
        return team

    def _incident(self, g: int, slot: NodeSlot, mirrored: bool) -> Incidences:
        """Incidences of a place, sorted once; other schedules of the problem have the same."""
        key = (g, slot.place, mirrored)
        if key not in self._sorted:
            self._sorted[key] = self._sort(g, slot, mirrored)
        return self._sorted[key]

    def _sort(self, g: int, slot: NodeSlot, mirrored: bool) -> Incidences:
        """Incidences of a place; with ``mirrored``, element e seen from place 1 is count + e."""
        nodes = self.nodes[g][slot.place]
        count = len(self.new[slot.node_set])
        if mirrored:
            other = self.nodes[g][1]
            # Neighbours in order too: the k-th ones of adjacent threads are then near each other
            # (70.8 to 67.4 µs on the gradient of 7.86 M springs, NVIDIA H200).
            keys = np.concatenate([other, nodes]), np.concatenate([nodes, other])
            order = lexical_order(keys, (count, count))
            degrees: IndexArray = np.bincount(nodes, minlength=count)
            degrees += np.bincount(other, minlength=count)
            starts = np.concatenate([[0], np.cumsum(degrees)])
        else:
            order, starts = stable_order(nodes, count)
        direct = bool(np.array_equal(order, np.arange(len(order))))
        unit = len(order) == count and bool((np.diff(starts) == 1).all())
        return Incidences(starts, order, unit, direct)

    # -- what tables hold ----------------------------------------------------------------------

    def element_column(
        self, g: int, column: Column, elements: IndexArray | None = None
    ) -> NDArray[np.uint32]:
        """A column of group ``g`` as words, of all elements in their order or of those given."""
        what, number, component = column
        chosen: Any = slice(None) if elements is None else elements
        if what == "node":
            return self.nodes[g][number][chosen].astype(np.uint32)
        return self._data(g, number, component, chosen).astype(np.float32).view(np.uint32)

    def element_numbers(
        self, g: int, column: Column, elements: IndexArray | None = None
    ) -> FloatArray:
        """A column of data that stands apart from the table; like ``element_column``.

        Raises:
            PrecisionError: numbers that lose digits in this precision.
        """
        _, slot, component = column
        values = self._data(g, slot, component, slice(None) if elements is None else elements)
        what = f"residuals {self.groups[g].name!r}, data slot {slot}"
        check_lossless(values, what, self.structure.precision)
        return values

    def _data(self, g: int, slot: int, component: int, chosen: Any) -> FloatArray:
        binding = self.groups[g].bindings[slot]
        assert isinstance(binding, DataBinding)
        order = self.element_order[g][chosen]
        if binding.shared:
            return np.broadcast_to(binding.values[0, component], order.shape)
        return binding.values[order, component]

    def columns_of_kind(self, node_set: int, position: int) -> tuple[Column, ...]:
        """What the table of a kind holds."""
        return table_columns(self.structure, self._all_columns(node_set, position))

    def _all_columns(self, node_set: int, position: int) -> tuple[Column, ...]:
        kind = self.structure.kinds[node_set][position]
        return kind_columns(self.structure.groups[kind.group], kind)

    def set_of_place(self, node_set: int, position: int, place: int) -> int:
        """Node set that a place of the group of a kind gathers from."""
        kind = self.structure.kinds[node_set][position]
        return self.structure.groups[kind.group].places[place].node_set

    def incidence_columns(
        self, node_set: int, position: int, first: int, last: int
    ) -> list[NDArray[np.uint32]]:
        """The table of a kind, of its incidences ``first`` to ``last``: a column each."""
        kind = self.structure.kinds[node_set][position]
        seen = self.incidences[node_set][position].elements[first:last]
        elements, flipped = self._elements_seen(kind, seen)
        words: list[NDArray[np.uint32]] = []
        for column in self.columns_of_kind(node_set, position):
            if column[0] == "element":
                words.append(seen.astype(np.uint32))
                continue
            values = self.element_column(kind.group, column, elements)
            if flipped is not None and column[0] == "node":
                # Seen from place 1, place 0 is the other node; data are the same.
                back = self.element_column(kind.group, ("node", 1 - column[1], 0), elements)
                values = np.where(flipped, back, values)
            words.append(values)
        return words

    def incidence_numbers(self, node_set: int, position: int) -> list[FloatArray]:
        """Data of a kind that stand apart from its table, of all its incidences."""
        kind = self.structure.kinds[node_set][position]
        elements, _ = self._elements_seen(kind, self.incidences[node_set][position].elements)
        columns = number_columns(self.structure, self._all_columns(node_set, position))
        return [self.element_numbers(kind.group, column, elements) for column in columns]

    def _elements_seen(self, kind: Kind, seen: IndexArray) -> tuple[IndexArray, Any]:
        """Elements of incidences, and which of them are seen from the other end, if any can be."""
        if not kind.mirrored:
            return seen, None
        count = self.groups[kind.group].count
        flipped = seen >= count
        return np.where(flipped, seen - count, seen), flipped

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

    # -- parameters ----------------------------------------------------------------------------

    @property
    def vector_starts(self) -> list[int]:
        """First number of each node set in a device vector; the last entry is its length."""
        widths = [nodes.width for nodes in self.structure.node_sets]
        sizes = [len(new) * width for new, width in zip(self.new, widths, strict=True)]
        return np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()

    @cached_property
    def positions(self) -> IndexArray:
        """Position in a device vector of each of the problem's parameters, in numbers."""
        starts = self.vector_starts
        words: list[IndexArray] = []
        for k, layout in enumerate(self.arrays):
            node_set = self.set_of[k]
            first = starts[node_set] + self.new[node_set] * self.width_of(node_set)
            first = first + self.offset_in_node(k)
            words.append((first[:, None] + np.arange(layout.width)).ravel())
        return np.concatenate(words)

    def pack(self, parameters: FloatArray, what: str = "parameters") -> NDArray[Any]:
        """The problem's parameters as a device vector, in what the device stores.

        Raises:
            InputError: a value is beyond the range of the precision; ``what`` names it.
        """
        packed = np.zeros(self.vector_starts[-1])
        packed[self.positions] = parameters
        return self.number_format.encode(packed, what).reshape(-1)

    def unpack(self, vector: NDArray[Any]) -> FloatArray:
        """A device vector, as it is stored there, as the problem's parameters."""
        return self.number_format.decode(vector)[self.positions]
