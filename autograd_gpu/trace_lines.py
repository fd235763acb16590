"""Which line of the user's made each node of a graph, found by tracing once more.

Ordinary traces record no lines: finding one costs more than making the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .ir import Argument, Graph
from .long_rows import RowBuilder, trace_rows
from .scalar import user_line
from .trace import trace_shapes


class _RecordingBuilder(RowBuilder):
    """Remembers which line made each node first."""

    __slots__ = ("lines",)

    def __init__(self, arguments: int) -> None:
        super().__init__(arguments)
        self.lines: dict[int, str] = {}

    def apply(self, op: str, *args: int) -> int:
        known = len(self.nodes)
        found = super().apply(op, *args)
        if found >= known:
            self.lines[found] = user_line()
        return found


def lines_of(fn: Callable[..., Any], arguments: Sequence[Argument], graph: Graph) -> dict[int, str]:
    """``file:line: code`` by node of ``graph``; nodes that ``fn`` does not make have none.

    Args:
        fn: the function that was traced into ``graph``, or into the main part of it.
        arguments: those of ``fn``: the first ones of ``graph``.
        graph: not simplified.
    """
    builder = _RecordingBuilder(len(arguments))
    trace = trace_rows if any(a.is_row for a in arguments) else trace_shapes
    trace(fn, arguments, graph.name, builder)
    recorded = dict(builder.lines)
    # Equal nodes exist once, so absorbing the graph finds those that were just made.
    places = builder.absorb(graph.nodes)
    return {k: recorded[place] for k, place in enumerate(places) if place in recorded}
