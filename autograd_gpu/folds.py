"""Folds: the one kind of node that loops, over the items of a long row.

A graph over long rows has two kinds of values. What depends on an ``item`` leaf differs from item
to item of an element's row; everything else is one value an element. A fold takes a value of items
and gives a value of the element, so a body needs no graph of its own: it is what the operand of
the fold depends on, down to values of the element. Where the two kinds meet, a value of the element
is the same for all items.

| fold | value | operands |
|---|---|---|
| ``sum_items`` | sum, in the order of the items | x |
| ``min_items``, ``max_items`` | least, greatest | x, position |
| ``argmin_items``, ``argmax_items`` | position of the first that is least, greatest | x, position |

``position`` is an item leaf that counts 0, 1, …; the derivative of a minimum needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .ops import REAL, DType

if TYPE_CHECKING:
    from .ir import Node

ITEM = "item"
"""Kind of the leaf that names a component of an item: argument and component, as ``input``."""

BEYOND = float(np.finfo(np.float32).max)
"""What a minimum starts from, and a maximum from its negative: the largest of every precision."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What the project knows about a fold.

    Attributes:
        name: in the IR.
        operands: dtypes of the operands.
        numpy: (mask of the items that exist, *operands) -> ``(batch, 1)``; operands are
            ``(batch, items)`` or ``(batch, 1)``.
        jax: format string over the printed operands; ``valid`` is the mask.
        start: of the accumulator.
        combine: op of the table that takes the accumulator and an item, or that asks whether an
            item is to replace what was kept.
        keeps_position: whether the position is the result, and not the value.
        cost: machine operations per item.
    """

    name: str
    operands: tuple[DType, ...]
    numpy: Callable[..., Any]
    jax: str
    start: float
    combine: str
    keeps_position: bool = False
    result: DType = REAL
    commutative: bool = False
    cost: int = 1


def _filled(valid: Mask, x: Any, other: float) -> Any:
    """Items that exist as they are, ``other`` in the place of padding; spread over all items."""
    values = np.asarray(x)
    return np.where(valid, values, values.dtype.type(other))


def _sum(valid: Mask, x: Any) -> Any:
    return np.sum(_filled(valid, x, 0.0), axis=-1, keepdims=True)


def _min(valid: Mask, x: Any, _position: Any) -> Any:
    return np.min(_filled(valid, x, np.inf), axis=-1, keepdims=True)


def _max(valid: Mask, x: Any, _position: Any) -> Any:
    return np.max(_filled(valid, x, -np.inf), axis=-1, keepdims=True)


def _argmin(valid: Mask, x: Any, _position: Any) -> Any:
    values = _filled(valid, x, np.inf)
    return np.argmin(values, axis=-1, keepdims=True).astype(values.dtype)


def _argmax(valid: Mask, x: Any, _position: Any) -> Any:
    values = _filled(valid, x, -np.inf)
    return np.argmax(values, axis=-1, keepdims=True).astype(values.dtype)


def _over_items(function: str, other: str) -> str:
    return f"jnp.{function}(jnp.where(valid, {{0}}, {other}), axis=-1, keepdims=True)"


FOLDS = MappingProxyType(
    {
        row.name: row
        for row in (
            Fold(name="sum_items", operands=(REAL,), numpy=_sum, start=0.0, combine="add",
                 jax=_over_items("sum", "0.0")),
            Fold(name="min_items", operands=(REAL, REAL), numpy=_min, start=BEYOND,
                 combine="minimum", jax=_over_items("min", "jnp.inf")),
            Fold(name="max_items", operands=(REAL, REAL), numpy=_max, start=-BEYOND,
                 combine="maximum", jax=_over_items("max", "-jnp.inf")),
            Fold(name="argmin_items", operands=(REAL, REAL), numpy=_argmin, start=BEYOND,
                 combine="lt", keeps_position=True,
                 jax=_over_items("argmin", "jnp.inf") + ".astype({1}.dtype)"),
            Fold(name="argmax_items", operands=(REAL, REAL), numpy=_argmax, start=-BEYOND,
                 combine="gt", keeps_position=True,
                 jax=_over_items("argmax", "-jnp.inf") + ".astype({1}.dtype)"),
        )
    }
)  # fmt: skip
"""Every fold by name."""

FIRST_OF = MappingProxyType({"min_items": "argmin_items", "max_items": "argmax_items"})
"""Fold that gives the position to which the derivative of an extreme belongs."""


def item_flags(nodes: Sequence[Node]) -> bytearray:
    """1 for each node whose value differs from item to item."""
    flags = bytearray(len(nodes))
    for k, node in enumerate(nodes):
        if node.op == ITEM:
            flags[k] = 1
        elif node.op not in FOLDS:
            for a in node.args:
                if flags[a]:
                    flags[k] = 1
                    break
    return flags


def has_items(nodes: Sequence[Node]) -> bool:
    """Whether a graph is over long rows."""
    return any(node.op == ITEM for node in nodes)
