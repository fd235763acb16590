"""Residuals whose elements see rows of varying length: one batch for each length.

A row of length L becomes L arguments, so a length is traced once and has its kernel; lengths whose
graphs are equal share it. The elements keep their numbers: residuals and rows of the Jacobian come
back in the order of the elements given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.losses import Loss
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.sequence import unrolled
from autograd_gpu.solvers.residual_group import (
    DataRows,
    GroupArgument,
    ResidualGroup,
    batch_length,
    loss_rows,
    replaced_rows,
    trace_group,
)
from autograd_gpu.solvers.selection import RaggedSelection, Selection, Shared, finite_array


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """A row of numbers, vectors or matrices for each element, float64."""

    rows: Ragged


RaggedArgument = RaggedSelection | RaggedRows
AnyArgument = GroupArgument | RaggedArgument


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedGroup:
    """Residuals of one function over elements of several lengths.

    Attributes:
        name: for reports and messages.
        arguments: what each argument of the function gathers, and at the end the rows of the weight
            and of the loss's parameters.
        names: of the arguments.
        count: number of elements.
        parts: one batch per combination of lengths that occurs.
    """

    name: str
    arguments: tuple[AnyArgument, ...]
    names: tuple[str, ...]
    count: int
    parts: tuple[ResidualGroup, ...]

    def with_data(self, new: Mapping[str, ArrayLike] | ArrayLike) -> RaggedGroup:
        """The group with other numbers in its data arguments; see ``Problem.update``.

        A ragged argument takes an ``ag.Ragged`` of the same lengths, or its values alone.

        Raises:
            InputError: no such data argument, or NaN or infinity.
            ShapeError: other lengths or another shape than before.
        """
        named = {
            name: k
            for k, name in enumerate(self.names)
            if isinstance(self.arguments[k], DataRows | RaggedRows)
        }
        if not isinstance(new, Mapping):
            if len(named) != 1:
                raise InputError(
                    f"update, residuals {self.name!r}: has data arguments {sorted(named)}; pass "
                    "{argument: array}"
                )
            new = {next(iter(named)): new}
        arguments = list(self.arguments)
        for name, array in new.items():
            what = f"update, residuals {self.name!r}, argument {name!r}"
            if name not in named:
                raise InputError(f"{what}: no such data argument; expected one of {sorted(named)}")
            old = arguments[named[name]]
            if isinstance(old, RaggedRows):
                arguments[named[name]] = _replaced(old, array, what)
            else:
                assert isinstance(old, DataRows)
                arguments[named[name]] = replaced_rows(old, array, what)
        parts = tuple(replace(p, arguments=_expanded(arguments, p)) for p in self.parts)
        return replace(self, arguments=tuple(arguments), parts=parts)


def _replaced(old: RaggedRows, new: Any, what: str) -> RaggedRows:
    """Other values in rows of the same lengths."""
    if isinstance(new, Ragged):
        if not np.array_equal(new.indptr, old.rows.indptr):
            raise ShapeError(f"{what}: the rows have other lengths; make another Problem")
        new = new.values
    flat = replaced_rows(DataRows(old.rows.values, False), new, what)
    return RaggedRows(Ragged(old.rows.indptr, flat.values))


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
    return RaggedRows(Ragged(value.indptr, finite_array(value.values, what)))


def rows_of(argument: AnyArgument) -> Ragged | None:
    """The rows of a ragged argument, None for any other."""
    return argument.rows if isinstance(argument, RaggedSelection | RaggedRows) else None


def length_of(argument: AnyArgument) -> int | None:
    """Number of elements that an argument has rows for; None if all elements share it."""
    if isinstance(argument, RaggedSelection | RaggedRows):
        return len(argument.rows)
    return batch_length(argument)


def trace_ragged_group(
    fn: Callable[..., Any],
    names: Sequence[str],
    gathered: Sequence[AnyArgument],
    count: int,
    weight: ArrayLike | None,
    loss: Loss | None,
    title: str,
) -> RaggedGroup:
    """Trace a residual function once for every length of row; arguments as ``trace_group``."""
    # The weight first, then what the loss is parametrised by: as `trace_group` appends them.
    appended = [] if loss is None else loss_rows(loss, count, f"residuals {title!r}")
    per_element = _weight_per_element(weight, count, f"residuals {title!r}, weight")
    lengths = np.stack([r.lengths for a in gathered if (r := rows_of(a)) is not None], axis=1)
    parts: list[ResidualGroup] = []
    for found in np.unique(lengths, axis=0):
        elements = np.flatnonzero((lengths == found).all(axis=1))
        items, plain = _items_of(gathered, elements)
        part = trace_group(
            unrolled(fn, items),
            _item_names(names, items),
            plain,
            len(elements),
            weight if per_element is None else per_element[elements],
            None if loss is None else loss.of(elements),
            f"{title} ({_said(found)})",
        )
        parts.append(replace(part, elements=elements, given_as=title))
    first = parts[0]
    if weight is not None:
        rows = first.arguments[-1 - len(appended)]
        assert isinstance(rows, DataRows)
        appended.insert(0, rows if per_element is None else DataRows(per_element, False))
    own = len(first.arguments) - len(appended)
    return RaggedGroup(
        name=title,
        arguments=(*gathered, *appended),
        names=(*names, *(a.name for a in first.graph.arguments[own:])),
        count=count,
        parts=tuple(parts),
    )


def _said(lengths: IndexArray) -> str:
    return f"length{'s' if len(lengths) > 1 else ''} {', '.join(map(str, lengths.tolist()))}"


def _item_names(names: Sequence[str], items: Sequence[int | None]) -> list[str]:
    """Names of single items: ``p``, then ``ring[0]``, ``ring[1]`` and so on."""
    return [
        name if length is None else f"{name}[{k}]"
        for name, length in zip(names, items, strict=True)
        for k in range(1 if length is None else length)
    ]


def _weight_per_element(weight: ArrayLike | None, count: int, what: str) -> FloatArray | None:
    """The weight's rows if it has one for each element; None if all elements share it."""
    if weight is None or isinstance(weight, Shared):
        return None
    values = finite_array(weight, what)
    if values.ndim not in (1, 3):
        return None
    if len(values) != count:
        raise ShapeError(
            f"{what}: got shape {values.shape}, expected a number, ({count},), (m, m) or "
            f"({count}, m, m)"
        )
    return values


def _expanded(arguments: Sequence[AnyArgument], part: ResidualGroup) -> tuple[GroupArgument, ...]:
    assert part.elements is not None
    return tuple(_items_of(arguments, part.elements)[1])


def _items_of(
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
            assert isinstance(argument, Selection | DataRows)
            counts.append(None)
            items.append(_chosen(argument, elements))
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


def _chosen(argument: GroupArgument, elements: IndexArray) -> GroupArgument:
    """The rows of some elements; what all elements share stays as it is."""
    if isinstance(argument, Selection):
        return argument if argument.count is None else argument[elements]
    return argument if argument.shared else DataRows(argument.values[elements], False)
