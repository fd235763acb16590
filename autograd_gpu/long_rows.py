"""Rows too long to be unrolled: what a residual function sees of them, and how it is traced.

The function is traced once for all lengths, with one item that stands for every item of the row.
A row can be iterated (once: the loop is the kernel's) and operated on item by item, and what is
made of its items is reduced by ``ag.sum``, ``ag.mean``, ``ag.min``, ``ag.max``, ``ag.dot`` or
``ag.norm``. A function that asks for the length, for an item by its number, or that carries a value
from item to item, cannot be traced so: the first two are refused on their line, the last is found
by comparing with the function itself, item by item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .folds import FOLDS, ITEM, Mask, item_flags
from .ir import Argument, Builder, Graph, evaluate_nodes
from .scalar import Scalar, user_line
from .trace import trace_shapes
from .vector import Matrix, PerItem, Vector, elementwise, vector

if TYPE_CHECKING:
    from .probes import Probe

LONGEST_UNROLLED_ROW = 32
"""Rows of up to this many items are unrolled, one kernel a length; longer ones are folded, one
kernel for all of them. Unrolled kernels grow with the length, and so does compiling them."""

_AGREEMENT = 1e-6
"""Relative difference between folded and unrolled values above which they are not the same."""

_REDUCE = (
    "rows of more than {limit} items are reduced by ag.sum, ag.mean, ag.min, ag.max, ag.dot or "
    "ag.norm; ag.Ragged(…, unroll=True) makes a kernel for every length instead"
)


def _refuse(what: str, kind: type[TraceError] = TraceError) -> NoReturn:
    raise kind(f"{user_line()}\n  {what}; {_REDUCE.format(limit=LONGEST_UNROLLED_ROW)}")


class _UnknownLengthError(TraceError, TypeError):
    """The length of a long row was asked for. A TypeError, so that ``list(row)`` does without."""


class RowBuilder(Builder):
    """An arena over long rows; ``count`` and ``position`` are the arguments after the user's.

    ``probes`` is what ``ag.probe`` named, by name; None where it is to do nothing.
    """

    __slots__ = ("_flags", "count", "position", "probes")

    def __init__(self, arguments: int) -> None:
        super().__init__()
        self.count = arguments
        self.position = arguments + 1
        self._flags = bytearray()
        self.probes: dict[str, Probe] | None = None

    def differs(self, node: int) -> bool:
        """Whether a value differs from item to item."""
        if node >= len(self._flags):
            self._flags = item_flags(self.nodes)
        return bool(self._flags[node])


class LongRow(PerItem):
    """A long row of an ``ag.Ragged`` argument, of any length; ``item`` stands for each item."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item

    def per_item(self, name: str, operands: Iterable[Any]) -> LongRow:
        """Apply an op item by item; what is not a row is the same for all items."""
        return LongRow(elementwise(name, *(v.item if isinstance(v, LongRow) else v
                                           for v in operands)))  # fmt: skip

    def __iter__(self) -> Iterator[Any]:
        yield self.item

    def __len__(self) -> int:
        _refuse("asks for the length of a long row, which differs by element", _UnknownLengthError)

    def __getitem__(self, index: Any) -> Any:
        _refuse("takes items of a long row by number")

    def as_array(self) -> Any:
        """Refuse: it has no fixed length."""
        _refuse("uses a long row as one vector")

    def __repr__(self) -> str:
        return "<traced long row>"


def _row_builder(value: Any) -> RowBuilder | None:
    """The arena of a value that differs from item to item; None for any other value."""
    if isinstance(value, Scalar):
        builder = value.builder
        return builder if isinstance(builder, RowBuilder) and builder.differs(value.node) else None
    if isinstance(value, Vector | Matrix):
        return next((b for part in value if (b := _row_builder(part)) is not None), None)
    return None


def item_of(values: Any) -> Any:
    """The item of a long row, or of the list that a comprehension makes of one; else None."""
    if isinstance(values, LongRow):
        return values.item
    if isinstance(values, list | tuple):
        items = cast("Sequence[Any]", values)
        if len(items) == 1 and _row_builder(items[0]) is not None:
            return items[0]
    return None


def folded(name: str, item: Any) -> Any:
    """Reduce a scalar, vector or matrix of an item over the items of the row."""
    if isinstance(item, Vector):
        return vector([folded(name, component) for component in item.items])
    if isinstance(item, Matrix):
        return Matrix([[folded(name, entry) for entry in row] for row in item.rows])
    if not isinstance(item, Scalar):
        _refuse("reduces a number that is the same for all items of a long row")
    builder = cast(RowBuilder, item.builder)
    operands = [item.node]
    if name != "sum_items":
        operands.append(builder.item(builder.position, 0))
    return Scalar(builder, builder.apply(name, *operands))


def item_mean(item: Any) -> Any:
    """Mean over the items of the row."""
    builder = _row_builder(item)
    assert builder is not None
    return folded("sum_items", item) / Scalar(builder, builder.input(builder.count, 0))


def trace_rows(
    fn: Callable[..., Any],
    arguments: Sequence[Argument],
    name: str,
    builder: RowBuilder | None = None,
) -> Graph:
    """Trace a function of which some arguments are long rows.

    Args:
        fn: residual function.
        arguments: shape of an element's value, or of an item's where ``is_row``.
        name: for messages.
        builder: an empty one, to record more.

    Returns:
        A graph with two arguments more: ``count``, the number of items of the element, and
        ``position``, a row that counts its items from 0.

    Raises:
        TraceError: the function needs the length or single items, or returns unreduced items.
    """
    builder = RowBuilder(len(arguments)) if builder is None else builder

    def of_items(*values: Any) -> Any:
        return fn(*(LongRow(_as_items(builder, v)) if a.is_row else v
                    for v, a in zip(values, arguments, strict=True)))  # fmt: skip

    graph = trace_shapes(of_items, arguments, name, builder)
    flags = item_flags(graph.nodes)
    if any(flags[o] for o in graph.outputs):
        raise TraceError(
            f"{name}: returns values of single items of a long row; "
            f"{_REDUCE.format(limit=LONGEST_UNROLLED_ROW)}"
        )
    extended = (*arguments, Argument("count", ()), Argument("position", (), True))
    return replace(graph, arguments=extended)


def _as_items(builder: Builder, value: Any) -> Any:
    """The same components as leaves of an item."""
    if isinstance(value, Scalar):
        return Scalar(builder, builder.item(*builder.nodes[value.node].leaf))
    if isinstance(value, Matrix):
        return Matrix([[_as_items(builder, entry) for entry in row] for row in value.rows])
    return vector([_as_items(builder, component) for component in value.items])


FloatArray = NDArray[np.float64]


def evaluate_rows(graph: Graph, arrays: Sequence[FloatArray], valid: Mask) -> list[FloatArray]:
    """Outputs of a graph over long rows with NumPy.

    Args:
        graph: its outputs may differ from item to item.
        arrays: one per argument: ``(batch, *shape)``, or ``(batch, items, *shape)`` of a row;
            a batch or row of one is the same for all.
        valid: which items exist, ``(batch, items)``.

    Returns:
        ``(batch, 1)`` or ``(batch, items)`` for each output.
    """
    columns = [
        a.reshape(*a.shape[:2], -1) if argument.is_row else a.reshape(len(a), 1, -1)
        for a, argument in zip(arrays, graph.arguments, strict=True)
    ]
    values = evaluate_nodes(graph.nodes, lambda a, k: columns[a][:, :, k], valid=valid)
    return [np.atleast_2d(values[o]) for o in graph.outputs]


def check_agreement(graph: Graph, unrolled: Graph, arrays: Sequence[FloatArray]) -> None:
    """Compare a graph over long rows with the same function traced item by item.

    Args:
        graph: as ``trace_rows`` gives it.
        unrolled: its arguments are the items of the rows, one after another.
        arrays: of the user's arguments, as for ``evaluate_rows``, all rows of full length.

    Raises:
        TraceError: they are different functions.
    """
    rows = [a for a, argument in zip(arrays, graph.arguments, strict=False) if argument.is_row]
    batch, length = rows[0].shape[:2]
    position = np.arange(length, dtype=float)[None]
    extended = [*arrays, np.full(batch, float(length)), position]
    found = evaluate_rows(graph, extended, np.ones((batch, length), np.bool_))
    items: list[FloatArray] = []
    for array, argument in zip(arrays, graph.arguments, strict=False):
        items += list(np.moveaxis(array, 1, 0)) if argument.is_row else [array]
    with np.errstate(all="ignore"):
        wanted = unrolled(*items).reshape(batch, -1)
    got = np.concatenate([np.broadcast_to(f, (batch, 1)) for f in found], axis=1)
    same = got.shape == wanted.shape and bool(
        np.isclose(got, wanted, _AGREEMENT, _AGREEMENT, equal_nan=True).all()
    )
    if not same:
        raise TraceError(
            f"{graph.name}: over rows of more than {LONGEST_UNROLLED_ROW} items it is traced for "
            "one item that stands for all, and that gives other values than item by item: it uses "
            "the number of an item, or carries a value from item to item; "
            f"{_REDUCE.format(limit=LONGEST_UNROLLED_ROW)}"
        )


def unroll(graph: Graph, length: int) -> tuple[Graph, list[int]]:
    """The same function of rows of one length, without folds.

    Returns:
        The graph, in which each row is ``length`` arguments, not simplified; and for each of its
        nodes the node of ``graph`` that it comes from, -1 for none.
    """
    first: list[int] = []
    arguments: list[Argument] = []
    for a in graph.arguments:
        first.append(len(arguments))
        names = [f"{a.name}[{i}]" for i in range(length)] if a.is_row else [a.name]
        arguments += [Argument(name, a.shape) for name in names]
    b = Builder()
    flags = item_flags(graph.nodes)
    origin: dict[int, int] = {}
    new: list[list[int]] = []
    for k, node in enumerate(graph.nodes):
        copies: list[int] = []
        for i in range(length if flags[k] else 1):
            operands = [new[a][i % len(new[a])] for a in node.args]
            if node.op in ("input", ITEM):
                argument, component = node.leaf
                copies.append(b.input(first[argument] + (i if node.op == ITEM else 0), component))
            elif node.op in FOLDS:
                copies.append(_unrolled_fold(b, node.op, [new[a] for a in node.args], length))
            elif node.args:
                copies.append(b.apply(node.op, *operands))
            else:
                copies.append(b.constant(cast("float | bool", node.payload)))
            origin.setdefault(copies[-1], k)
        new.append(copies)
    nodes = tuple(b.nodes)
    outputs = tuple(new[o][0] for o in graph.outputs)
    flat = Graph(nodes, outputs, tuple(arguments), graph.output_shape, graph.name)
    return flat, [origin.get(k, -1) for k in range(len(nodes))]


def _unrolled_fold(b: Builder, op: str, operands: list[list[int]], length: int) -> int:
    values = [operands[0][i % len(operands[0])] for i in range(length)]
    total, row = values[0], FOLDS[op]
    if not row.keeps_position:
        for value in values[1:]:
            total = b.apply(row.combine, total, value)
        return total
    place = operands[1][0]
    for i in range(1, length):
        better = b.apply(row.combine, values[i], total)
        place = b.apply("where", better, operands[1][i], place)
        total = b.apply("where", better, values[i], total)
    return place
