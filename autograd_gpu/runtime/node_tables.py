"""Index and data tables of a device-resident solve, built once per problem with NumPy.

Parameters travel through ``pack`` and ``unpack``, so callers see no order but their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.incidence import SolveStructure
from autograd_gpu.codegen.solve_layout import (
    element_columns,
    group_row,
    kind_row,
    number_columns,
    set_row,
    slice_row,
    sliced_kinds,
    slices_row,
    table_columns,
)
from autograd_gpu.codegen.solve_program import SolveSizes
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.runtime.node_incidences import NodeIncidences
from autograd_gpu.runtime.node_orders import ArrayLayout
from autograd_gpu.runtime.program_runner import ProgramRunner
from autograd_gpu.runtime.schedule_choice import ScheduleChooser
from autograd_gpu.runtime.schedules import Schedule


class NodeTables(NodeIncidences):
    """Structure, sizes, tables and permutations of one problem.

    Args:
        arrays, groups, parameters, damping, schedules, precision: as `NodeIncidences`.
        known: told of the structure as soon as it is known, before tables are filled.
    """

    def __init__(
        self,
        arrays: Sequence[ArrayLayout],
        groups: Sequence[BoundGroup],
        parameters: FloatArray,
        damping: str = "one-plus-norm",
        schedules: Sequence[Schedule] | ScheduleChooser | None = None,
        precision: str = "float32",
        known: Callable[[SolveStructure], None] | None = None,
    ) -> None:
        super().__init__(arrays, groups, parameters, damping, schedules, precision)
        if known is not None:
            known(self.structure)
        self._fill()

    def rescheduled(self, schedules: Sequence[Schedule]) -> NodeTables:
        """The same problem and orders with other schedules, one per group or one for all."""
        other = copy(self)
        wanted = tuple(schedules) * (len(self.groups) if len(schedules) == 1 else 1)
        other._schedule(wanted, self.structure.damping, self.structure.precision)
        other._fill()
        return other

    def with_data(self, groups: Sequence[BoundGroup]) -> NodeTables | None:
        """The same structure and orders with other numbers in the data of the same groups.

        None if the structure follows from numbers that have changed.
        """
        if not self.has_same_structure(groups):
            return None
        other = copy(self)
        other.groups = list(groups)
        other.forget_reverses()
        other._fill()
        return other

    # -- tables --------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Write the tables and remember where each begins."""
        words, numbers = _Parts(), _Parts()
        put = words.put
        structure = self.structure
        element_tables: list[tuple[int, int]] = []
        for g, group in enumerate(structure.groups):
            columns = element_columns(group)
            table = put(*(self.element_column(g, c) for c in table_columns(structure, columns)))
            apart = [self.element_numbers(g, c) for c in number_columns(structure, columns)]
            element_tables.append((table, numbers.put(*apart)))
        kind_tables: list[list[tuple[int, int, int, int]]] = []
        for k, lists in enumerate(self.incidences):
            rows: list[tuple[int, int, int, int]] = []
            for j, found in enumerate(lists):
                starts = 0 if found.unit else put(found.starts.astype(np.uint32))
                count = len(found.elements)
                table = put(*self.incidence_columns(k, j, 0, count))
                apart = numbers.put(*self.incidence_numbers(k, j))
                rows.append((starts, table, count, apart))
            kind_tables.append(rows)
        masks = [
            put(self.mask(k)) if nodes.masked else 0 for k, nodes in enumerate(structure.node_sets)
        ]
        slice_rows, slices = self._put_slices(words)
        self.tables: NDArray[np.uint32] = np.concatenate([*words.parts, np.zeros(1, np.uint32)])
        self.numbers: FloatArray = np.concatenate([*numbers.parts, np.zeros(1)])
        self.sizes = SolveSizes(
            structure=structure,
            nodes=tuple(len(n) for n in self.new),
            elements=tuple(g.count for g in self.groups),
            table_words=self.tables.size,
            data_numbers=self.numbers.size,
            slices=slices,
        )
        self.control = self._control(element_tables, kind_tables, masks, slice_rows)

    def _put_slices(self, words: _Parts) -> tuple[list[int], int]:
        """Where the table of slices begins, then where each kind lists its own; their number."""
        sliced = sliced_kinds(self.structure)
        starts: list[int] = []
        tables: list[NDArray[np.uint32]] = []
        total = 0
        for number, (k, j) in enumerate(sliced):
            found = self.slices[k][j]
            assert found is not None
            starts.append(words.put((found.starts + total).astype(np.uint32)))
            kind = np.full(len(found.nodes), number)
            table = np.stack([kind, found.nodes, found.first, found.last], axis=1)
            tables.append(table.astype(np.uint32).ravel())
            total += len(found.nodes)
        return ([words.put(*tables), *starts] if sliced else []), total

    def _control(
        self,
        element_tables: list[tuple[int, int]],
        kind_tables: list[list[tuple[int, int, int, int]]],
        masks: list[int],
        slices: list[int],
    ) -> NDArray[np.uint32]:
        s, structure = self.sizes, self.structure
        rows: dict[int, tuple[int, int, int, int]] = {}
        step, element, largest, of_slices, _ = s.partial_bases
        rows[0] = (s.length, s.product_groups[-1], s.element_workgroups[-1], 0)
        rows[1] = (step, element, largest, 0)
        for k in range(len(structure.node_sets)):
            rows[set_row(k)] = (
                s.nodes[k], s.vector_bases[k], s.factor_bases[k], s.update_groups[k],
            )  # fmt: skip
            rows[set_row(k) + 1] = (s.product_groups[k], masks[k], 0, 0)
            for j, row in enumerate(kind_tables[k]):
                rows[kind_row(structure, k, j)] = row
        for g, jacobian in enumerate(s.jacobian_bases[:-1]):
            table, apart = element_tables[g]
            first = s.element_workgroups[g]
            rows[group_row(structure, g)] = (s.elements[g], first, table, jacobian)
            if structure.numbers_apart:
                rows[group_row(structure, g) + 1] = (apart, 0, 0, 0)
        if slices:
            rows[slices_row(structure)] = (slices[0], s.slices, of_slices, 0)
            for (k, j), start in zip(sliced_kinds(structure), slices[1:], strict=True):
                rows[slice_row(structure, k, j)] = (start, 0, 0, 0)
        return np.array([rows[k] for k in range(len(rows))], np.uint32)

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Parameter arrays of each node set, in the order of its components."""
        return tuple(map(tuple, self.sets))

    def places_of(self, g: int) -> list[tuple[int, IndexArray]]:
        """Node set and nodes of each place of a group, elements in the device's order."""
        places = self.structure.groups[g].places
        return [(s.node_set, self.nodes[g][s.place]) for s in places]


class _Parts:
    """Arrays that will lie one after the other."""

    def __init__(self) -> None:
        self.parts: list[NDArray[Any]] = []
        self._total = 0

    def put(self, *arrays: NDArray[Any]) -> int:
        """Where the first of them begins."""
        start = self._total
        self.parts += arrays
        self._total += sum(a.size for a in arrays)
        return start


def upload_numbers(runner: ProgramRunner, tables: NodeTables) -> None:
    """Data that stand apart from the tables, if the precision has such."""
    if tables.structure.numbers_apart:
        runner.upload("numbers", tables.number_format.encode(tables.numbers, "data").reshape(-1))
