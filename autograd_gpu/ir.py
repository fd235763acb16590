"""The IR: hash-consed scalar nodes in an arena, and the frozen graphs made of them.

A node is a row of an arena and is named by its integer id; operands always have smaller ids, so
the arena order is a topological order and every traversal is a loop, never a recursion.
Structurally equal nodes exist once, so equality is identity and common subexpressions are shared.
Nodes hold no element data: what differs per element of a batch is an ``input`` leaf.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, Signature
from keyword import iskeyword
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ShapeError
from .folds import FOLDS, ITEM, Mask
from .ops import BOOL, NODE_OPS, REAL, DType

if TYPE_CHECKING:
    from .topology import Canonical

# What a leaf names: (argument position, component), or a literal.
InputPayload = tuple[int, int]
Payload = InputPayload | float | bool | None
Shape = tuple[int, ...]


class Node(NamedTuple):
    """One row of the arena; ``args`` are ids of earlier rows."""

    op: str
    args: tuple[int, ...]
    payload: Payload
    dtype: DType

    @property
    def leaf(self) -> InputPayload:
        """Argument and component of an ``input`` or ``item`` node; only these have them."""
        return cast(InputPayload, self.payload)


Rule = Callable[["Builder", tuple[int, ...]], int | None]
"""Rewrites one application of an op to an existing or new node, or declines with None."""


_bits = struct.Struct("<d").pack
_new: Callable[..., Any] = cast(Any, tuple).__new__
_ROWS = {**NODE_OPS, **FOLDS}
_COSTS = {"const": 0, "input": 0, ITEM: 0, **{name: row.cost for name, row in _ROWS.items()}}
ARGUMENT_LEAVES = ("input", ITEM)
"""Kinds of leaves that name a component of an argument: of an element, of an item of its row."""


def _node(row: tuple[str, tuple[int, ...], Payload, DType]) -> Node:
    """A ``Node`` of a tuple, several times faster than the constructor by fields."""
    return cast(Node, _new(Node, row))


class Builder:
    """A growing arena. With ``rules`` each new application is rewritten on the way in.

    Args:
        rules: op name -> rewrite rules tried in order, or None for a faithful trace.
    """

    __slots__ = ("_ids", "nodes", "rules")

    def __init__(self, rules: dict[str, tuple[Rule, ...]] | None = None) -> None:
        self.nodes: list[Node] = []
        self._ids: dict[tuple[Any, ...], int] = {}
        self.rules = rules or {}

    def _intern(self, key: tuple[Any, ...], node: Node) -> int:
        found = self._ids.get(key)
        if found is None:
            found = len(self.nodes)
            self.nodes.append(node)
            self._ids[key] = found
        return found

    def input(self, argument: int, component: int, dtype: DType = REAL) -> int:
        """Leaf: component (row-major) of an argument."""
        leaf = (argument, component)
        return self._intern(("input", leaf), Node("input", (), leaf, dtype))

    def item(self, argument: int, component: int) -> int:
        """Leaf: component of an item of an argument that has a long row of them."""
        leaf = (argument, component)
        return self._intern((ITEM, leaf), Node(ITEM, (), leaf, REAL))

    def leaf(self, node: Node) -> int:
        """The same leaf of an argument as in another arena."""
        return self.item(*node.leaf) if node.op == ITEM else self.input(*node.leaf, node.dtype)

    def constant(self, value: float | bool) -> int:
        """Leaf: a literal, boolean if ``value`` is a bool and real otherwise."""
        if isinstance(value, bool):
            return self._intern(("const", value), Node("const", (), value, BOOL))
        # The bits are the key: 0.0 and -0.0, which Python calls equal, are two literals.
        number = float(value)
        return self._intern(("const", _bits(number)), Node("const", (), number, REAL))

    def apply(self, op: str, *args: int) -> int:
        """Application of an op of the table to nodes of this arena."""
        for rule in self.rules.get(op, ()):
            rewritten = rule(self, args)
            if rewritten is not None:
                return rewritten
        return self.raw(op, args)

    def raw(self, op: str, args: tuple[int, ...]) -> int:
        """Application without rewriting; operands of commutative ops in arena order."""
        row = _ROWS[op]
        if row.commutative and args[0] > args[1]:
            args = (args[1], args[0])
        key = (op, args)
        found = self._ids.get(key)
        if found is None:  # spelled out, since this is the innermost step of every rewrite
            found = len(self.nodes)
            self.nodes.append(_node((op, args, None, row.result)))
            self._ids[key] = found
        return found

    def literal(self, node: int) -> float | bool | None:
        """Value of a literal node, None for any other."""
        row = self.nodes[node]
        return cast("float | bool", row.payload) if row.op == "const" else None

    def absorb(self, nodes: Sequence[Node], leaf: Callable[[Node], int] | None = None) -> list[int]:
        """Copy ``nodes`` (an arena in topological order) into this one, rewriting as rules say.

        Args:
            nodes: rows whose ids are their positions.
            leaf: where an ``input`` or ``item`` goes; the same leaf by default.

        Returns:
            New id per row.
        """
        new: list[int] = []
        for node in nodes:
            op, args, payload, _ = node
            if op == "const":
                new.append(self.constant(cast("float | bool", payload)))
            elif op in ARGUMENT_LEAVES:
                new.append(leaf(node) if leaf else self.leaf(node))
            else:
                new.append(self.apply(op, *[new[a] for a in args]))
        return new


@dataclass(frozen=True, slots=True)
class Argument:
    """A parameter of the traced function: name and shape of one element (``()`` is a scalar).

    ``is_row``: an element sees a row of values of that shape.
    """

    name: str
    shape: Shape
    is_row: bool = False

    @property
    def size(self) -> int:
        """Number of scalar components."""
        return prod(self.shape)


@dataclass(frozen=True)
class GraphStats:
    """Sizes of a graph: nodes that compute, their machine cost, the longest chain.

    ``ops``, ``cost``, ``depth`` and the counts by op are of the graph as it stands;
    ``simplified_ops`` and ``simplified_cost`` of what ``simplify`` makes of it.
    """

    ops: int
    cost: int
    depth: int
    constants: int
    inputs: int
    by_op: tuple[tuple[str, int], ...]
    simplified_ops: int
    simplified_cost: int

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.by_op)
        after = "" if self.simplified_ops == self.ops else f" -> {self.simplified_ops} simplified"
        return f"{self.ops} ops{after} (cost {self.cost}, depth {self.depth}): {counts}"


@dataclass(frozen=True, eq=False)
class Graph:
    """An immutable scalar graph with named arguments and shaped outputs.

    Attributes:
        nodes: reachable nodes in topological order; ids are positions.
        outputs: ids, row-major in ``output_shape``.
        arguments: the traced function's arguments.
        output_shape: ``()`` for a scalar, ``(m,)``, ``(m, n)``.
        name: name of the traced function, for people.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    arguments: tuple[Argument, ...]
    output_shape: Shape
    name: str = field(default="residual")

    @classmethod
    def build(
        cls,
        builder: Builder,
        outputs: Iterable[int],
        arguments: Sequence[Argument],
        output_shape: Shape | None = None,
        name: str = "residual",
    ) -> Graph:
        """Freeze what ``outputs`` reach; everything else of the arena is dropped."""
        wanted = tuple(outputs)
        alive = reachable(builder.nodes, wanted)
        position = {old: new for new, old in enumerate(alive)}
        nodes = tuple(
            _node((op, tuple([position[a] for a in args]), payload, dtype))
            for op, args, payload, dtype in [builder.nodes[old] for old in alive]
        )
        shape = (len(wanted),) if output_shape is None else output_shape
        return cls(nodes, tuple(position[o] for o in wanted), tuple(arguments), shape, name)

    @cached_property
    def canonical(self) -> Canonical:
        """Canonical form: leaf order, serialisation, key."""
        from .topology import canonicalize

        return canonicalize(self)

    @property
    def key(self) -> str:
        """Topology key: 128-bit hash of the canonical form, hexadecimal."""
        return self.canonical.key

    @cached_property
    def cost(self) -> int:
        """Rough number of machine operations: the sum over nodes of what the op table says."""
        return sum([_COSTS[node[0]] for node in self.nodes])

    @cached_property
    def stats(self) -> GraphStats:
        """Op counts of this graph as it stands, and after simplification."""
        from .rewrite import simplify

        simplified = simplify(self).nodes
        names = Counter(n.op for n in self.nodes)
        constants, inputs = names.pop("const", 0), sum(names.pop(k, 0) for k in ARGUMENT_LEAVES)
        depth: list[int] = []
        for node in self.nodes:
            depth.append(1 + max((depth[a] for a in node.args), default=-1))
        return GraphStats(
            ops=names.total(),
            cost=self.cost,
            depth=max(depth, default=0),
            constants=constants,
            inputs=inputs,
            by_op=tuple(names.most_common()),
            simplified_ops=sum(bool(node.args) for node in simplified),
            simplified_cost=sum(_COSTS[node.op] for node in simplified),
        )

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def __name__(self) -> str:
        return self.name

    @cached_property
    def __signature__(self) -> Signature:
        """The arguments by name, for whoever takes a graph as a residual function."""
        names = [a.name for a in self.arguments]
        fit = len(set(names)) == len(names) and all(n.isidentifier() for n in names)
        kind = Parameter.POSITIONAL_ONLY
        return Signature(
            [
                Parameter(n if fit and not iskeyword(n) else f"arg{k}", kind)
                for k, n in enumerate(names)
            ]
        )

    def __call__(self, *arrays: Any) -> Any:
        """Evaluate on a batch with NumPy in float64 (the oracle), or trace.

        Args:
            arrays: one array per argument, ``(batch, *shape)``, or ``shape`` for a value that all
                elements share; or traced or eager values of one element.

        Returns:
            ``(batch, *output_shape)``; without the batch axis if no argument has one. Of traced
            values, a value of the output shape: a graph is a residual function as well.

        Raises:
            ShapeError: number, widths or batch lengths do not fit.
        """
        from .trace import inline
        from .vector import is_traced

        if any(is_traced(a) for a in arrays):
            return inline(self, arrays)
        columns, batch = _columns(self, arrays)
        values = evaluate_nodes(self.nodes, lambda argument, k: columns[argument][k])
        shape = (1 if batch is None else batch,)
        out = np.empty((*shape, len(self.outputs)))
        for k, node in enumerate(self.outputs):
            out[:, k] = np.broadcast_to(values[node], shape)
        out = out.reshape(*shape, *self.output_shape)
        return out[0] if batch is None else out

    def __repr__(self) -> str:
        arguments = ", ".join(f"{a.name}: {a.shape or 'scalar'}" for a in self.arguments)
        ops = sum(bool(node.args) for node in self.nodes)
        return f"Graph({self.name}({arguments}) -> {self.output_shape}, {ops} ops)"

    def _repr_latex_(self) -> str | None:
        """Equations, for notebooks."""
        from .drawing import latex

        return latex(self)

    def _repr_svg_(self) -> str | None:
        """A drawing of nodes and edges, for notebooks."""
        from .drawing import svg

        return svg(self)

    def __str__(self) -> str:
        names = [f"v{k}" for k in range(len(self.nodes))]
        lines = [repr(self)]
        for k, node in enumerate(self.nodes):
            if node.op in ARGUMENT_LEAVES:
                argument, component = node.leaf
                text = f"{self.arguments[argument].name}[{component}]"
            elif node.op == "const":
                text = repr(node.payload)
            else:
                text = f"{node.op}({', '.join(names[a] for a in node.args)})"
            lines.append(f"  {names[k]} = {text}")
        lines.append(f"  return {', '.join(names[o] for o in self.outputs)}")
        return "\n".join(lines)


def reachable(nodes: Sequence[Node], roots: Iterable[int]) -> list[int]:
    """Ids that ``roots`` depend on, themselves included, in arena order."""
    marked = bytearray(len(nodes))
    stack = list(roots)
    while stack:
        node = stack.pop()
        if not marked[node]:
            marked[node] = 1
            stack += nodes[node][1]
    return [k for k, mark in enumerate(marked) if mark]


def evaluate_nodes(
    nodes: Sequence[Node],
    leaf: Callable[[int, int], Any],
    dtype: Any = np.float64,
    valid: Mask | None = None,
) -> list[Any]:
    """Value of every node; ``leaf(argument, component)`` gives a number or a column.

    With folds ``valid`` says which items exist, ``(batch, items)``; then a value of the element
    is a column ``(batch, 1)``.
    """
    real = np.dtype(dtype).type
    values: list[Any] = []
    with np.errstate(all="ignore"):
        for node in nodes:
            if node.op == "const":
                payload: Any = node.payload
                values.append(payload if node.dtype == BOOL else real(payload))
            elif node.op in ARGUMENT_LEAVES:
                values.append(leaf(*node.leaf))
            elif node.op in FOLDS:
                values.append(FOLDS[node.op].numpy(valid, *(values[a] for a in node.args)))
            else:
                values.append(NODE_OPS[node.op].numpy(*(values[a] for a in node.args)))
    return values


def _columns(
    graph: Graph, arrays: Sequence[ArrayLike]
) -> tuple[list[list[NDArray[np.float64]]], int | None]:
    """Split batch arrays into one column per component."""
    if len(arrays) != len(graph.arguments):
        raise ShapeError(
            f"graph {graph.name!r}: got {len(arrays)} arrays, expected one for each of the "
            f"arguments {', '.join(a.name for a in graph.arguments)}"
        )
    batch: int | None = None
    columns: list[list[NDArray[np.float64]]] = []
    for argument, given in zip(graph.arguments, arrays, strict=True):
        array = np.asarray(given, dtype=np.float64)
        if array.shape == argument.shape:
            flat = array.reshape(1, argument.size)
        elif array.shape[1:] == argument.shape and array.ndim > 0:
            if batch is not None and len(array) != batch:
                raise ShapeError(
                    f"graph {graph.name!r}, argument {argument.name!r}: got a batch of "
                    f"{len(array)}, the arguments before it have {batch}"
                )
            batch = len(array)
            flat = array.reshape(batch, argument.size)
        else:
            raise ShapeError(
                f"graph {graph.name!r}, argument {argument.name!r}: got shape {array.shape}, "
                f"expected {argument.shape} or (batch, {', '.join(map(str, argument.shape))})"
            )
        columns.append([flat[:, k] for k in range(argument.size)])
    return columns, batch
