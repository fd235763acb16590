"""Where everything lives in the buffers of a device-resident solve: one truth for text and data.

Vectors are node-major and counted in units of ``SolveStructure.lanes`` words, which are loaded at
once: node t of set k begins at unit ``vector * length + base_k + t * width_k / lanes``. Parameters
are laid out alike, in two halves; accepting a step swaps the halves and copies nothing. Stored
Jacobians and block factors are records of whole quads (four numbers): an element's entries first,
its residuals after them.

In float32 data are words of the tables, beside node numbers. Wider numbers have a buffer of their
own, in columns of the same length as those of the table (``numbers_apart``).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from autograd_gpu.codegen.incidence import GroupStructure, Kind, SolveStructure


class Vector(IntEnum):
    """Vectors of the conjugate-gradient iteration, by position in the vector buffer."""

    GRADIENT = 0
    RESIDUAL = 1
    PRECONDITIONED = 2
    DIRECTION = 3
    IMAGE = 4
    PRODUCT = 5
    STEP = 6
    SCALE = 7


Column = tuple[str, int, int]
"""("element", 0, 0), ("node", place, 0) or ("data", slot, component)."""

SLICE_WORDS = 4
"""Of a slice in the tables: number of its kind, node, first incidence, end."""

RECORD_NUMBERS = 16
STATE_WORDS = 32
STEP_SUMS = 5
ELEMENT_SUMS = 3

ROW_LENGTHS, ROW_PARTIALS, FIRST_ROW = 0, 1, 2
SET_ROWS = 2


def set_row(k: int) -> int:
    """First control row of node set k."""
    return FIRST_ROW + SET_ROWS * k


def group_rows(structure: SolveStructure) -> int:
    """Control rows of a group: a second one says where its data are, if those stand apart."""
    return 2 if structure.numbers_apart else 1


def group_row(structure: SolveStructure, g: int) -> int:
    """First control row of group g."""
    return set_row(len(structure.node_sets)) + group_rows(structure) * g


def kind_row(structure: SolveStructure, node_set: int, kind: int) -> int:
    """Control row of an incidence kind."""
    before = sum(len(kinds) for kinds in structure.kinds[:node_set])
    return group_row(structure, len(structure.groups)) + before + kind


def sliced_kinds(structure: SolveStructure) -> tuple[tuple[int, int], ...]:
    """(node set, kind) of the lists that are summed slice by slice; by number of a slice's kind."""
    return tuple(
        (k, j)
        for k, kinds in enumerate(structure.kinds)
        for j, kind in enumerate(kinds)
        if kind.sliced
    )


def slices_row(structure: SolveStructure) -> int:
    """Control row of all slices: first word of their table, their number, first of their sums."""
    return kind_row(structure, len(structure.kinds), 0)


def slice_row(structure: SolveStructure, node_set: int, kind: int) -> int:
    """Control row of a kind's slices: where the first slice of each of its nodes is listed."""
    return slices_row(structure) + 1 + sliced_kinds(structure).index((node_set, kind))


def control_rows(structure: SolveStructure) -> int:
    """Number of rows of the control block."""
    sliced = len(sliced_kinds(structure))
    return slices_row(structure) + (1 + sliced if sliced else 0)


def kind_columns(group: GroupStructure, kind: Kind) -> tuple[Column, ...]:
    """What the table of an incidence kind holds, column by column."""
    columns: list[Column] = []
    if group.stored and not kind.direct:
        columns.append(("element", 0, 0))
    columns += [("node", s.place, 0) for s in group.places if s.place != kind.place]
    if not group.stored:
        columns += _data_columns(group)
    return tuple(columns)


def element_columns(group: GroupStructure) -> tuple[Column, ...]:
    """What the table of a group holds, column by column."""
    return (*(("node", s.place, 0) for s in group.places), *_data_columns(group))


def table_columns(structure: SolveStructure, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns that are words of a table."""
    return tuple(c for c in columns if c[0] != "data" or not structure.numbers_apart)


def number_columns(structure: SolveStructure, columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns that are numbers in a buffer of their own."""
    return tuple(c for c in columns if c[0] == "data" and structure.numbers_apart)


def _data_columns(group: GroupStructure) -> list[Column]:
    return [("data", k, c) for k, size in enumerate(group.data_sizes) for c in range(size)]
