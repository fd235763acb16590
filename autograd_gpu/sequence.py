"""What a residual function sees of a ragged argument: its row, item by item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

from .errors import ShapeError, TraceError
from .scalar import user_line
from .vector import PerItem, as_traced, elementwise, is_traced


class TracedSequence(PerItem):
    """The items of one row of an ``ag.Ragged`` argument: scalars, vectors or matrices.

    A sequence like a tuple (``len``, indices from either end, slices, iteration, ``zip``), whose
    operators act item by item: ``ring - p`` is the sequence of ``q - p``. ``ag.sum``, ``ag.mean``,
    ``ag.min`` and ``ag.max`` reduce over the items. Its length is a number known while tracing,
    so ``range(len(ring))`` and ``ring[(k + 1) % len(ring)]`` are fine.
    """

    __slots__ = ("items",)

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)

    def per_item(self, name: str, operands: Iterable[Any]) -> TracedSequence:
        """Apply an op item by item; what is not a sequence is the same for all items.

        Raises:
            ShapeError: sequences of different lengths.
        """
        given = list(operands)
        lengths = {len(v) for v in given if isinstance(v, TracedSequence)}
        if lengths != {len(self)}:
            raise ShapeError(
                f"{user_line()}\n  {name} of sequences of lengths "
                f"{', '.join(map(str, sorted(lengths)))}; they must be equal"
            )
        return TracedSequence(
            elementwise(name, *(v.items[k] if isinstance(v, TracedSequence) else v for v in given))
            for k in range(len(self))
        )

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return TracedSequence(self.items[index])
        if is_traced(index):
            raise TraceError(f"{user_line()}\n  indexes by a traced value; use ag.where to choose")
        return self.items[cast(int, index)]

    def as_array(self) -> Any:
        """The items as one vector or matrix.

        Raises:
            ShapeError: there are none.
        """
        if not self.items:
            raise ShapeError(f"{user_line()}\n  an empty row of a ragged argument is no vector")
        return as_traced(list(self.items))

    def __repr__(self) -> str:
        return f"<traced sequence of {len(self.items)}>"


def unrolled(fn: Callable[..., Any], lengths: Sequence[int | None]) -> Callable[..., Any]:
    """``fn`` as a function of single items.

    Args:
        fn: a residual function of ``len(lengths)`` arguments.
        lengths: for each argument the number of its items, None where it is no sequence.

    Returns:
        A function that takes the items of all arguments one after another.
    """

    def call(*items: Any) -> Any:
        rest = iter(items)
        return fn(
            *(
                next(rest) if length is None else TracedSequence(islice(rest, length))
                for length in lengths
            )
        )

    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call
