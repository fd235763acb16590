"""Residuals whose elements see rows of varying length: binned by length, or folded.

A short row of length L becomes L arguments, so a length is traced once and has its kernel; lengths
whose graphs are equal share it. Rows of more than ``LONGEST_UNROLLED_ROW`` items share one kernel
with a loop over the items (``long_rows.py``), in a few batches of about equal length. The elements
keep their numbers: residuals and rows of the Jacobian come back in the order of the elements given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.long_rows import LONGEST_UNROLLED_ROW
from autograd_gpu.losses import Loss
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.sequence import unrolled
from autograd_gpu.solvers.long_row_group import classes_of, on_rows, traced_fold
from autograd_gpu.solvers.ragged_arguments import (
    AnyArgument,
    RaggedRows,
    item_names,
    items_of,
    long_arguments,
    rows_of,
)
from autograd_gpu.solvers.residual_group import (
    DataRows,
    GroupArgument,
    ResidualGroup,
    group_of,
    loss_rows,
    replaced_rows,
    trace_group,
)
from autograd_gpu.solvers.selection import ParameterArray, Shared, finite_array


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedGroup:
    """Residuals of one function over elements of several lengths.

    Attributes:
        name: for reports and messages.
        arguments: what each argument of the function gathers, and at the end the rows of the weight
            and of the loss's parameters.
        names: of the arguments.
        appended: how many of them are rows of the weight and of the loss.
        count: number of elements.
        parts: one batch per combination of short lengths that occurs, and per class of long ones.
    """

    name: str
    arguments: tuple[AnyArgument, ...]
    names: tuple[str, ...]
    count: int
    parts: tuple[ResidualGroup, ...]
    appended: int

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
        gathered = len(self.arguments) - self.appended
        parts = tuple(replace(p, arguments=_expanded(arguments, gathered, p)) for p in self.parts)
        return replace(self, arguments=tuple(arguments), parts=parts)


def _replaced(old: RaggedRows, new: Any, what: str) -> RaggedRows:
    """Other values in rows of the same lengths."""
    if isinstance(new, Ragged):
        if not np.array_equal(new.indptr, old.rows.indptr):
            raise ShapeError(f"{what}: the rows have other lengths; make another Problem")
        new = new.values
    flat = replaced_rows(DataRows(old.rows.values, False), new, what)
    return RaggedRows(Ragged(old.rows.indptr, flat.values, old.rows.unroll))


def trace_ragged_group(
    fn: Callable[..., Any],
    names: Sequence[str],
    gathered: Sequence[AnyArgument],
    count: int,
    weight: ArrayLike | None,
    loss: Loss | None,
    title: str,
    current: Callable[[ParameterArray], FloatArray],
) -> RaggedGroup:
    """Trace a residual function once for every short length of row, and once for all long ones.

    Arguments as for ``trace_group``; ``current`` gives the values that parameters have now.

    Raises:
        TraceError: also where long rows are not reduced.
        ShapeError: also where an element's long rows differ in length.
    """
    # The weight first, then what the loss is parametrised by: as `trace_group` appends them.
    appended = [] if loss is None else loss_rows(loss, count, f"residuals {title!r}")
    per_element = _weight_per_element(weight, count, f"residuals {title!r}, weight")
    rows = [r for a in gathered if (r := rows_of(a)) is not None]
    lengths = np.stack([r.lengths for r in rows], axis=1)
    longest = LONGEST_UNROLLED_ROW if not any(r.unroll for r in rows) else np.inf
    long: NDArray[np.bool_] = np.any(lengths > longest, axis=1)

    def chosen(elements: IndexArray) -> tuple[ArrayLike | None, Loss | None]:
        """Weight and loss of some elements."""
        return (
            weight if per_element is None else per_element[elements],
            None if loss is None else loss.of(elements),
        )

    parts: list[ResidualGroup] = []
    for found in np.unique(lengths[~long], axis=0):
        elements = np.flatnonzero((lengths == found).all(axis=1))
        items, plain = items_of(gathered, elements)
        part = trace_group(
            unrolled(fn, items),
            item_names(names, items),
            plain,
            len(elements),
            *chosen(elements),
            f"{title} ({_said(found)})",
        )
        parts.append(replace(part, elements=elements, given_as=title))
    if long.any():
        graph, probes = traced_fold(fn, names, gathered, np.flatnonzero(long), title, current)
        for capacity, elements in classes_of(lengths[:, 0], long):
            part = group_of(
                graph,
                long_arguments(gathered, elements, capacity),
                len(elements),
                *chosen(elements),
                f"{title} (lengths up to {capacity})",
            )
            parts.append(
                replace(
                    part,
                    elements=elements,
                    given_as=title,
                    fn=on_rows(fn, gathered),
                    traced_arguments=len(gathered),
                    lengths=lengths[elements, 0],
                    capacity=capacity,
                    probes=probes,
                )
            )
    first = parts[0]
    if weight is not None:
        weights = first.arguments[-1 - len(appended)]
        assert isinstance(weights, DataRows)
        appended.insert(0, weights if per_element is None else DataRows(per_element, False))
    own = len(first.arguments) - len(appended)
    return RaggedGroup(
        name=title,
        arguments=(*gathered, *appended),
        names=(*names, *(a.name for a in first.graph.arguments[own:])),
        count=count,
        parts=tuple(parts),
        appended=len(appended),
    )


def _said(lengths: IndexArray) -> str:
    return f"length{'s' if len(lengths) > 1 else ''} {', '.join(map(str, lengths.tolist()))}"


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


def _expanded(
    arguments: Sequence[AnyArgument], gathered: int, part: ResidualGroup
) -> tuple[GroupArgument, ...]:
    """What a part gathers of the arguments, of which the first ``gathered`` are the function's."""
    assert part.elements is not None
    if part.lengths is None:
        return tuple(items_of(arguments, part.elements)[1])
    rest = items_of(arguments[gathered:], part.elements)[1]
    return (*long_arguments(arguments[:gathered], part.elements, part.capacity), *rest)
