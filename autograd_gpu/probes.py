"""``ag.probe``: names for intermediate values of a residual function, to be read back.

A probe is no node of the graph: tracing notes which nodes the value is made of, beside the graph,
which is the same as without. Whoever wants the values has them computed by a kernel of their own
(``solvers/probe_values.py``), so residuals, Jacobians and topology keys do not know of probes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from .errors import TraceError
from .folds import FOLDS
from .ir import ARGUMENT_LEAVES, Argument, Builder, Graph, Shape
from .long_rows import RowBuilder, item_of
from .ops import BOOL
from .rewrite import simplify
from .scalar import Scalar, user_line
from .trace import flatten_result

_Probed = TypeVar("_Probed")


@dataclass(frozen=True, slots=True)
class Probe:
    """Nodes of one probed value, row-major, and its shape; of an item, if it differs by item."""

    nodes: tuple[int, ...]
    shape: Shape
    per_item: bool = False


@dataclass(frozen=True, slots=True)
class ProbedItems:
    """What was probed of items of long rows, as a graph in which an item is an element.

    Attributes:
        graph: its arguments are those of the function (of a row, the item), then the folds.
        shapes: of an item's value, by name.
        folds: how many values of the element, reduced over its items, are arguments.
    """

    graph: Graph
    shapes: dict[str, Shape]
    folds: int


@dataclass(frozen=True, slots=True)
class ProbedGraph:
    """All probes of a residual function as one graph of its arguments.

    Attributes:
        graph: outputs are the probed values of the element, one probe after the other, and then
            the folds that values of items need; None if there are neither.
        shapes: of the first, by name.
        items: what was probed of items of long rows.
    """

    graph: Graph | None
    shapes: dict[str, Shape]
    items: ProbedItems | None = None


def probe(name: str, value: _Probed) -> _Probed:
    """Name an intermediate value inside a residual function.

    Read it back, one entry an element, as ``problem.evaluate(…).probes[name]`` or
    ``solution.probes[name]``. Outside of a problem's residuals it does nothing.

    Args:
        name: unique in the function.
        value: scalar, vector, matrix, or (nested) list of scalars; a comparison counts as 0 or 1.
            Of a row of varying length all items at once: ``ag.probe(name, [… for q in row])``.

    Returns:
        ``value`` as it is.

    Raises:
        TraceError: the name is taken, or no name; or the value is of another trace.
    """
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TraceError(f"{user_line()}\n  probe: got name {name!r}, expected a text")
    of_row = item_of(value)
    items, shape = flatten_result(value if of_row is None else of_row, f"probe {name!r}")
    builders = [item.builder for item in items if isinstance(item, Scalar)]
    record: dict[str, Probe] | None = getattr(builders[0], "probes", None) if builders else None
    if record is None:
        return value
    if name in record:
        raise TraceError(
            f"{user_line()}\n  probe: {name!r} is taken in this function; choose another name"
        )
    builder = builders[0]
    if any(other is not builder for other in builders):
        raise TraceError(f"{user_line()}\n  probe: {name!r} mixes values of two traces")
    nodes = tuple(_node(builder, item) for item in items)
    per_item = isinstance(builder, RowBuilder) and any(map(builder.differs, nodes))
    record[name] = Probe(nodes, shape, per_item)
    return value


def _node(builder: Builder, item: Any) -> int:
    """The node of an item, a truth value as a number."""
    node = item.node if isinstance(item, Scalar) else builder.constant(float(item))
    if builder.nodes[node].dtype != BOOL:
        return node
    return builder.apply("where", node, builder.constant(1.0), builder.constant(0.0))


def probed_graph(
    builder: Builder, probes: Mapping[str, Probe], arguments: Sequence[Argument], title: str
) -> ProbedGraph | None:
    """The graph of what was probed while tracing; None if nothing was."""
    if not probes:
        return None
    plain = {name: probe for name, probe in probes.items() if not probe.per_item}
    of_items = {name: probe for name, probe in probes.items() if probe.per_item}
    nodes = [node for probe in plain.values() for node in probe.nodes]
    items, folds = None, list[int]()
    if of_items:
        graph, folds = _flattened(builder, of_items.values(), arguments, f"items of {title}")
        items = ProbedItems(graph, {n: probe.shape for n, probe in of_items.items()}, len(folds))
    outputs = [*nodes, *folds]
    whole = Graph.build(builder, outputs, arguments, None, f"probes of {title}")
    return ProbedGraph(
        simplify(whole) if outputs else None,
        {name: probe.shape for name, probe in plain.items()},
        items,
    )


def _flattened(
    builder: Builder, probes: Iterable[Probe], arguments: Sequence[Argument], name: str
) -> tuple[Graph, list[int]]:
    """Values of items as a graph of one item, and the folds that it takes as further arguments."""
    nodes, roots = builder.nodes, [node for probe in probes for node in probe.nodes]
    flat = Builder()
    folds: list[int] = []
    new: dict[int, int] = {}
    for k in _down_to_folds(builder, roots):
        op, operands, payload, dtype = nodes[k]
        if op in FOLDS:
            new[k] = flat.input(len(arguments) + len(folds), 0)
            folds.append(k)
        elif op in ARGUMENT_LEAVES:
            new[k] = flat.input(*nodes[k].leaf, dtype)
        elif op == "const":
            new[k] = flat.constant(cast("float | bool", payload))
        else:
            new[k] = flat.apply(op, *(new[o] for o in operands))
    described = [Argument(a.name, a.shape) for a in arguments]
    described += [Argument(f"fold{k}", ()) for k in range(len(folds))]
    graph = Graph.build(flat, [new[root] for root in roots], described, None, name)
    return simplify(graph), folds


def _down_to_folds(builder: Builder, roots: Sequence[int]) -> list[int]:
    """Nodes that the roots are made of, folds included but not what is folded; in order."""
    found: set[int] = set()
    stack = list(roots)
    while stack:
        k = stack.pop()
        if k not in found:
            found.add(k)
            if builder.nodes[k].op not in FOLDS:
                stack += builder.nodes[k].args
    return sorted(found)
