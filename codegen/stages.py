"""Stages: a kernel too large for one piece of text is cut into several that run in turn.

Compilers of shaders allot registers, and all compilers take time, by the length of straight-line
code. Above an op budget the nodes of a graph, in their order, are cut where few values are alive;
each part is a graph of its own, and what a later part needs is either stored per element in an
intermediate buffer or computed again there. Which of the two is a minimum cut, see
``codegen/rematerialization.py``. Values of the buffer are reused once their last reader is done.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

from autograd_gpu.codegen.kernel import Kernel
from autograd_gpu.codegen.rematerialization import rematerialize
from autograd_gpu.ir import Argument, Graph, Node, Payload
from autograd_gpu.ops import BOOL, NODE_OPS, REAL, DType

OP_BUDGET = MappingProxyType({"wgsl": 4096, "numba": 16_384})
"""Operations of one kernel text, at most, by target; targets that are not named are never cut."""


Keep = Callable[[Sequence[Node], Sequence[int], Collection[int]], Sequence[int]]
"""(arena, values needed, values stored before) -> values to load; others are computed again."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a kernel.

    Attributes:
        graph: what it computes per element; where it loads intermediate values its last argument,
            beyond the kernel's slots, is the intermediate buffer.
        outputs: positions among the kernel's outputs of the first outputs of ``graph``.
        stores: cells of the buffer that the following outputs of ``graph`` go to.
    """

    graph: Graph
    outputs: tuple[int, ...]
    stores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All stages of a kernel, in order; one if it is within the budget.

    Attributes:
        stages: parts; together their ``outputs`` are those of the kernel.
        cells: numbers per element in the intermediate buffer.
        stored: values that are stored, which may share cells.
        alive: values that would be stored if none were computed again.
    """

    stages: tuple[Stage, ...]
    cells: int
    stored: int
    alive: int


@lru_cache(maxsize=256)
def plan_stages(kernel: Kernel, budget: int | None) -> Plan:
    """Cut ``kernel`` into stages of about ``budget`` operations; None for no limit.

    A kernel with loops over long rows stays in one piece.
    What a stage computes again comes on top of its budget, and costs less than storing would.
    """
    graph = kernel.graph
    if budget is None or not exceeds(kernel, budget):
        return Plan((Stage(graph, tuple(range(len(graph.outputs))), ()),), 0, 0, 0)
    return cut(graph, budget)


def exceeds(kernel: Kernel, budget: int | None) -> bool:
    """Whether a kernel is cut into stages."""
    if budget is None or kernel.is_folded:
        return False
    return _op_count(kernel.graph.nodes) > budget


def _op_count(nodes: Sequence[Node]) -> int:
    return sum(bool(node.args) for node in nodes)


@dataclass(frozen=True, slots=True)
class Style:
    """How a graph is cut.

    Attributes:
        keep: what to load at a boundary; the rest is computed again.
        by_cost: count an operation by what it costs.
        least: part of the budget that a stage has at least, but for the last one.
        last: parts of the budget that the last stage may have.
        outputs_last: all outputs are those of the last stage.
        in_quads: cells 4q to 4q + 3 are all stored by one stage, and mostly read by the same.
    """

    keep: Keep = rematerialize
    by_cost: bool = False
    least: float = 0.5
    last: float = 1.0
    outputs_last: bool = False
    in_quads: bool = False


PLAIN = Style()


def cut(graph: Graph, budget: int, style: Style = PLAIN) -> Plan:
    """Stages of about ``budget`` operations each, with what they store and compute again."""
    bounds = _boundaries(graph, budget, style)
    last = graph.outputs if style.outputs_last else ()
    needed = [
        _read_from_before(graph.nodes, *bound, last if bound == bounds[-1] else ())
        for bound in bounds
    ]
    alive = {v for values in needed for v in values}
    loads: list[Sequence[int]] = []
    stored: set[int] = set()
    for values in needed:
        loaded = style.keep(graph.nodes, values, stored)
        loads.append(loaded)
        stored.update(loaded)
    if len(stored) > len(alive):  # cuts of several boundaries may differ in what they store
        loads, stored = [*needed], alive
    cells, count = (_allot_quads if style.in_quads else _allot)(bounds, loads, stored)
    stages = tuple(
        _stage(
            graph, bound, _outputs_of(graph, bound, bounds[-1] if style.outputs_last else None),
            loads[k], cells, count,
        )
        for k, bound in enumerate(bounds)
    )  # fmt: skip
    return Plan(stages, count, len(stored), len(alive))


def _outputs_of(graph: Graph, bound: tuple[int, int], last: tuple[int, int] | None) -> list[int]:
    """Positions of the outputs of a stage: those made there, or all if it is the last."""
    if last is None:
        return [k for k, o in enumerate(graph.outputs) if bound[0] <= o < bound[1]]
    return [*range(len(graph.outputs))] if bound == last else []


def _boundaries(graph: Graph, budget: int, style: Style) -> list[tuple[int, int]]:
    """Ranges of nodes, each within the budget, that end where few values are alive."""
    nodes = graph.nodes
    last = list(range(len(nodes)))
    for k, node in enumerate(nodes):
        for a in node.args:
            last[a] = k
    change, ops = [0] * (len(nodes) + 2), [0]
    for k, node in enumerate(nodes):
        count = bool(node.args)
        ops.append(ops[-1] + (NODE_OPS[node.op].cost if count and style.by_cost else count))
        if node.args:
            change[k + 1] += 1
            change[last[k] + 1] -= 1
    alive = list(accumulate(change))  # values made before position p and read at p or later
    bounds: list[tuple[int, int]] = []
    start = 0
    while start < len(nodes):
        low = bisect_left(ops, ops[start] + max(1, int(style.least * budget)))
        high = max(start + 1, bisect_right(ops, ops[start] + budget) - 1)
        low = min(low, high)
        if ops[-1] - ops[start] <= style.last * budget or high >= len(nodes):
            stop = len(nodes)
        else:
            # The latest of the narrowest places: fewer stages.
            stop = min(range(high, low - 1, -1), key=alive.__getitem__)
        bounds.append((start, stop))
        start = stop
    return bounds


def _read_from_before(
    nodes: Sequence[Node], start: int, stop: int, outputs: Sequence[int]
) -> list[int]:
    """Values that nodes ``start`` to ``stop`` read, and ``outputs``, that are computed before."""
    read = {a for node in nodes[start:stop] for a in node.args if a < start and nodes[a].args}
    read.update(o for o in outputs if o < start and nodes[o].args)
    return sorted(read)


def _allot(
    bounds: Sequence[tuple[int, int]], loads: Sequence[Sequence[int]], stored: set[int]
) -> tuple[dict[int, int], int]:
    """Cell of each stored value, and the number of cells; a cell is free after its last reader."""
    last_reader = {v: k for k, values in enumerate(loads) for v in values}
    home = _homes(bounds, stored)
    cells: dict[int, int] = {}
    free: list[int] = []
    count = 0
    for k, values in enumerate(home):
        # A stage loads before it stores, and an element's cells are its own.
        free += [cells[v] for v in sorted(cells) if last_reader[v] == k]
        for v in values:
            if not free:
                free.append(count)
                count += 1
            cells[v] = free.pop()
    return cells, count


def _homes(bounds: Sequence[tuple[int, int]], stored: set[int]) -> list[list[int]]:
    """The stored values that each stage makes, in order."""
    home: list[list[int]] = [[] for _ in bounds]
    starts = [start for start, _ in bounds]
    for v in sorted(stored):
        home[bisect_right(starts, v) - 1].append(v)
    return home


def _allot_quads(
    bounds: Sequence[tuple[int, int]], loads: Sequence[Sequence[int]], stored: set[int]
) -> tuple[dict[int, int], int]:
    """Like `_allot`, by fours: what a stage makes for the same readers lies together."""
    readers: dict[int, list[int]] = {v: [] for v in stored}
    for k, values in enumerate(loads):
        for v in values:
            readers[v].append(k)
    cells: dict[int, int] = {}
    free: list[int] = []
    busy: dict[int, int] = {}  # quad -> stage that reads it last
    count = 0
    for k, values in enumerate(_homes(bounds, stored)):
        for quad in [quad for quad, last in busy.items() if last == k]:
            free.append(quad)
            del busy[quad]
        ordered = sorted(values, key=lambda v: (readers[v], v))
        for first in range(0, len(ordered), 4):
            if not free:
                free.append(count)
                count += 1
            quad, members = free.pop(), ordered[first : first + 4]
            cells.update({v: 4 * quad + lane for lane, v in enumerate(members)})
            busy[quad] = max(readers[v][-1] for v in members)
    return cells, 4 * count


def _stage(
    graph: Graph,
    bound: tuple[int, int],
    outputs: Sequence[int],
    loads: Sequence[int],
    cells: dict[int, int],
    count: int,
) -> Stage:
    """The graph of one stage: its own nodes, those computed again, and loads of the buffer."""
    start, stop = bound
    kept = sorted(v for v in cells if start <= v < stop)
    roots = [*(graph.outputs[k] for k in outputs), *kept]
    loaded = set(loads)
    nodes: list[Node] = []
    new: dict[int, int] = {}

    def add(op: str, args: tuple[int, ...], payload: Payload, dtype: DType) -> int:
        nodes.append(Node(op, args, payload, dtype))
        return len(nodes) - 1

    for k in _reached(graph.nodes, roots, loaded):
        op, args, payload, dtype = graph.nodes[k]
        if k not in loaded:
            new[k] = add(op, tuple([new[a] for a in args]), payload, dtype)
            continue
        new[k] = add("input", (), (len(graph.arguments), cells[k]), REAL)
        if dtype == BOOL:
            new[k] = add("gt", (new[k], add("const", (), 0.5, REAL)), None, BOOL)

    def number(v: int) -> int:
        """A value as what a cell holds."""
        if graph.nodes[v].dtype != BOOL:
            return new[v]
        one, zero = add("const", (), 1.0, REAL), add("const", (), 0.0, REAL)
        return add("where", (new[v], one, zero), None, REAL)

    written = [*(new[graph.outputs[k]] for k in outputs), *(number(v) for v in kept)]
    arguments = (*graph.arguments, Argument("intermediate", (count,)))
    made = Graph(tuple(nodes), tuple(written), arguments, (len(written),))
    return Stage(made, tuple(outputs), tuple(cells[v] for v in kept))


def _reached(nodes: Sequence[Node], roots: Sequence[int], loaded: set[int]) -> list[int]:
    """What ``roots`` depend on, in order, up to what is loaded and up to leaves."""
    found: set[int] = set()
    pending = list(roots)
    while pending:
        k = pending.pop()
        if k not in found:
            found.add(k)
            if k not in loaded:
                pending += nodes[k].args
    return sorted(found)
