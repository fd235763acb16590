"""Print a graph over long rows: values of the element, and loops over the items of its row.

A fold of a value that needs no other fold is of depth 1; one that needs folds of depth d is of
depth d + 1. All folds of a depth share a loop, and the outputs that differ from item to item have a
last loop of their own. Values of items are computed again in every loop that needs them: storing
them would take memory in proportion to the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from autograd_gpu.codegen.printer import Dialect, leaf_text, statement
from autograd_gpu.folds import FOLDS, ITEM, item_flags
from autograd_gpu.ir import Graph, Node
from autograd_gpu.ops import BOOL, NODE_OPS


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop over the items of a row.

    Attributes:
        before: statements ahead of it.
        starts: (accumulator, first value).
        components: (slot, component) loaded from each item.
        body: statements for each item.
        steps: (accumulator, new value); they change it in place.
    """

    before: tuple[str, ...]
    starts: tuple[tuple[str, str], ...]
    components: tuple[tuple[int, int], ...]
    body: tuple[str, ...]
    steps: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class FoldedStatements:
    """A printed body.

    Attributes:
        loops: in order.
        after: statements after them.
        outputs: expression of each output; those of items hold in the last loop only.
        last: loop without accumulators for outputs of items; None if there are none.
    """

    loops: tuple[Loop, ...]
    after: tuple[str, ...]
    outputs: tuple[str, ...]
    last: Loop | None


def print_folded(
    graph: Graph, dialect: Dialect, leaf: Callable[[int, int], str], per_item: Sequence[int]
) -> FoldedStatements:
    """Print ``graph``; the outputs at positions ``per_item`` are wanted for every item."""
    printer = _Printer(graph, dialect, leaf)
    loops = tuple(printer.loop(d) for d in range(1, printer.deepest + 1))
    after = tuple(printer.of_element(printer.deepest))
    wanted = [graph.outputs[k] for k in per_item]
    last = None
    if wanted:
        components, body = printer.of_items(wanted)
        last = Loop((), (), components, body, ())
    return FoldedStatements(loops, after, tuple(printer.text[o] for o in graph.outputs), last)


class _Printer:
    """Names and depths of the nodes of one graph."""

    def __init__(self, graph: Graph, dialect: Dialect, leaf: Callable[[int, int], str]) -> None:
        self.nodes = graph.nodes
        self.dialect = dialect
        self.flags = item_flags(graph.nodes)
        self.depth: list[int] = []
        self.text: list[str] = []
        for k, node in enumerate(graph.nodes):
            below = max((self.depth[a] for a in node.args), default=0)
            self.depth.append(below + (node.op in FOLDS))
            # Not f: f32 is a type of WGSL.
            prefix = "fold" if node.op in FOLDS else "w" if self.flags[k] else "v"
            name = f"{prefix}{k}" if node.args else leaf_text(node, dialect, leaf)
            self.text.append(name)
        self.deepest = max(
            (d for d, node in zip(self.depth, graph.nodes, strict=True) if node.op in FOLDS),
            default=0,
        )

    def _statement(self, k: int) -> str:
        node = self.nodes[k]
        return statement(self.text[k], node, [self.text[a] for a in node.args], self.dialect)

    def of_element(self, depth: int) -> list[str]:
        """Statements of the element that need folds of ``depth``, and no deeper ones."""
        return [
            self._statement(k)
            for k, node in enumerate(self.nodes)
            if node.args and not self.flags[k] and node.op not in FOLDS and self.depth[k] == depth
        ]

    def of_items(self, roots: Iterable[int]) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
        """Components of items, and statements for each item, that give ``roots``."""
        needed: set[int] = set()
        pending = [k for k in roots if self.flags[k]]
        while pending:
            k = pending.pop()
            if k not in needed:
                needed.add(k)
                pending += [a for a in self.nodes[k].args if self.flags[a]]
        ordered = sorted(needed)
        components = tuple(self.nodes[k].leaf for k in ordered if self.nodes[k].op == ITEM)
        return components, tuple(self._statement(k) for k in ordered if self.nodes[k].args)

    def loop(self, depth: int) -> Loop:
        """The loop that computes all folds of a depth."""
        folds = [
            (k, node)
            for k, node in enumerate(self.nodes)
            if node.op in FOLDS and self.depth[k] == depth
        ]
        components, body = self.of_items(a for _, node in folds for a in node.args)
        starts: list[tuple[str, str]] = []
        steps: list[tuple[str, str]] = []
        lines = list(body)
        for k, node in folds:
            self._accumulate(k, node, starts, lines, steps)
        return Loop(
            tuple(self.of_element(depth - 1)), tuple(starts), components, tuple(lines), tuple(steps)
        )

    def _accumulate(
        self,
        k: int,
        node: Node,
        starts: list[tuple[str, str]],
        lines: list[str],
        steps: list[tuple[str, str]],
    ) -> None:
        row = FOLDS[node.op]
        total, value = self.text[k], self.text[node.args[0]]
        spelling = getattr(NODE_OPS[row.combine], self.dialect.target)
        start = self.dialect.literal(row.start)
        if not row.keeps_position:
            starts.append((total, start))
            steps.append((total, spelling.format(total, value)))
            return
        best, better = f"{total}_best", f"{total}_better"
        starts += [(total, self.dialect.literal(0.0)), (best, start)]
        lines.append(self.dialect.declare(better, BOOL, spelling.format(value, best)))
        choose: str = getattr(NODE_OPS["where"], self.dialect.target)
        steps.append((total, choose.format(better, self.text[node.args[1]], total)))
        steps.append((best, choose.format(better, value, best)))
