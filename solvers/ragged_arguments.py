"""Arguments of which an element sees a row: of blocks, or of values, item by item or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autograd_gpu.errors import ShapeError
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import IndexArray
from autograd_gpu.solvers.residual_group import (
    DataRows,
    GroupArgument,
    LongDataRows,
    batch_length,
)
from autograd_gpu.solvers.selection import (
    RaggedSelection,
    RowSelection,
    Selection,
    finite_array,
)


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """A row of numbers, vectors or matrices for each element, float64."""

    rows: Ragged


RaggedArgument = RaggedSelection | RaggedRows
AnyArgument = GroupArgument | RaggedArgument


def ragged_argument(value: Ragged, what: str) -> RaggedRows:
    """Rows of data as float64.

    Raises:
        ShapeError: values of more than three dimensions.
    """
    if value.values.ndim > 3:
        raise ShapeError(
            f"{what}: got values of shape {value.values.shape}, expected (total,), (total, k) or "
            "(total, r, c); reshape them"
        )
    return RaggedRows(Ragged(value.indptr, finite_array(value.values, what), value.unroll))


def rows_of(argument: AnyArgument) -> Ragged | None:
    """The rows of a ragged argument, None for any other."""
    return argument.rows if isinstance(argument, RaggedSelection | RaggedRows) else None


def length_of(argument: AnyArgument) -> int | None:
    """Number of elements that an argument has rows for; None if all elements share it."""
    if isinstance(argument, RaggedSelection | RaggedRows):
        return len(argument.rows)
    return batch_length(argument)


def item_names(names: Sequence[str], items: Sequence[int | None]) -> list[str]:
    """Names of single items: ``p``, then ``ring[0]``, ``ring[1]`` and so on."""
    return [
        name if length is None else f"{name}[{k}]"
        for name, length in zip(names, items, strict=True)
        for k in range(1 if length is None else length)
    ]


def items_of(
    arguments: Sequence[AnyArgument], elements: IndexArray
) -> tuple[list[int | None], list[GroupArgument]]:
    """Number of items of each argument (None: no sequence), and what each item gathers.

    ``elements`` all have rows of the same lengths.
    """
    counts: list[int | None] = []
    items: list[GroupArgument] = []
    for argument in arguments:
        rows = rows_of(argument)
        if rows is None:
            counts.append(None)
            items.append(chosen_rows(argument, elements))
            continue
        length = int(rows.lengths[elements[0]])
        counts.append(length)
        table = rows.of_length(elements, length)
        for k in range(length):
            if isinstance(argument, RaggedSelection):
                items.append(Selection(argument.array, 0, 1, len(elements), table[:, k].copy()))
            else:
                items.append(DataRows(table[:, k].copy(), False))
    return counts, items


def long_arguments(
    gathered: Sequence[AnyArgument], elements: IndexArray, capacity: int
) -> list[GroupArgument]:
    """What the arguments of a graph over long rows gather: the function's, count and position."""
    result: list[GroupArgument] = []
    lengths: IndexArray | None = None
    for argument in gathered:
        rows = rows_of(argument)
        if rows is None:
            result.append(chosen_rows(argument, elements))
            continue
        lengths = rows.lengths[elements]
        table = rows.padded(elements, capacity)
        if isinstance(argument, RaggedSelection):
            result.append(RowSelection(argument.array, table))
        else:
            result.append(LongDataRows(table, False))
    assert lengths is not None
    position = np.arange(capacity, dtype=np.float64)[None]
    return [*result, DataRows(lengths.astype(np.float64), False), LongDataRows(position, True)]


def chosen_rows(argument: AnyArgument, elements: IndexArray) -> GroupArgument:
    """The rows of some elements; what all elements share stays as it is."""
    assert isinstance(argument, Selection | DataRows)
    if isinstance(argument, Selection):
        return argument if argument.count is None else argument[elements]
    return argument if argument.shared else DataRows(argument.values[elements], False)
