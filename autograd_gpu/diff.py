"""Automatic differentiation, IR to IR.

Results are ordinary graphs: simplified as they are built, and differentiable again.

A ``where`` evaluates both arms, and the untaken one may be infinite. Adjoints therefore travel as
a pair (value, mask): products with partial derivatives are formed first and masked as a whole,
so that 0 · ∞ never appears. Source: the "double where" problem, e.g. Baydin et al. 2018, §3.3.

The adjoint of a fold over the items of a long row is one value for all items of the row, and what
the items contribute to the adjoint of a value of the element is folded: again one loop. The same
in forward mode would be a loop in a loop for derivatives by an item, so these come in reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .errors import ShapeError, TraceError
from .folds import FIRST_OF, FOLDS, ITEM, has_items, item_flags
from .ir import Argument, Builder, Graph, Node, reachable
from .ops import BOOL, NODE_OPS, REAL
from .rewrite import RULES, factored, simplify
from .scalar import Scalar, SymbolicAlgebra

TRY_BOTH_BELOW_COST = 4000
"""Jacobians of graphs up to this cost are built both ways if the estimates are close."""

CLOSE_CALL = 1.25
"""Estimates further apart than this factor decide (of 300 random graphs, 9 cost 3 to 13 % more)."""


# Ops whose partial derivatives are 1 or -1, so that no product is formed.
_UNIT_PARTIALS = ("add", "sub", "neg")


@dataclass(slots=True)
class _Adjoint:
    """A sensitivity, zero where ``mask`` (a boolean node, None for always) does not hold."""

    value: int
    mask: int | None


def _settled(b: Builder, adjoint: _Adjoint) -> int:
    if adjoint.mask is None:
        return adjoint.value
    return b.apply("where", adjoint.mask, adjoint.value, b.constant(0.0))


def _accumulate(b: Builder, old: _Adjoint | None, new: _Adjoint) -> _Adjoint:
    if old is None:
        return new
    if old.mask == new.mask:
        return _Adjoint(b.apply("add", old.value, new.value), old.mask)
    value = b.apply("add", _settled(b, old), _settled(b, new))
    if old.mask is None or new.mask is None:
        return _Adjoint(value, None)
    either = b.apply("logical_or", old.mask, new.mask)
    return _Adjoint(value, None if b.literal(either) is True else either)


def _partials(m: SymbolicAlgebra, node: Node, k: int) -> tuple[int, ...]:
    """Ids of the partial derivatives of node ``k``, one per real operand."""
    row = NODE_OPS[node.op]
    operands = [Scalar(m.builder, a) for a in node.args]
    value = Scalar(m.builder, k)
    return tuple(m.node_of(rule(m, *operands, value)) for rule in row.partials)


class _Tape:
    """A graph copied into a rewriting builder, with memoised partial derivatives."""

    def __init__(self, graph: Graph) -> None:
        self.builder = Builder(RULES)
        self.algebra = SymbolicAlgebra(self.builder)
        self.map = self.builder.absorb(graph.nodes)
        self.outputs = [self.map[o] for o in graph.outputs]
        # Rewriting may have merged nodes: work on the arena, not on the graph.
        self.order = reachable(self.builder.nodes, self.outputs)
        self._partials: dict[int, tuple[int, ...]] = {}
        self.items = item_flags(self.builder.nodes)

    def partials(self, k: int) -> tuple[int, ...]:
        """Partial derivatives of arena node ``k``."""
        found = self._partials.get(k)
        if found is None:
            found = _partials(self.algebra, self.builder.nodes[k], k)
            self._partials[k] = found
        return found

    def depends_on(self, leaves: set[int]) -> bytearray:
        """Flags, by arena id, of the nodes that depend on ``leaves``."""
        nodes = self.builder.nodes
        flags = bytearray(len(nodes))
        for k in self.order:
            node = nodes[k]
            if k in leaves:
                flags[k] = 1
            elif node.dtype == REAL:
                for a in node.args:
                    if flags[a]:
                        flags[k] = 1
                        break
        return flags

    def estimates(self, leaves: Sequence[int]) -> tuple[int, int]:
        """Operations that forward and reverse mode add to values and partial derivatives.

        Structural: which leaves a node depends on and which outputs depend on it, as bit sets, so
        that one traversal counts the products and sums of every column or row. Products with the
        literals of sums and differences cost nothing; what later rewriting saves is not seen.
        """
        nodes = self.builder.nodes
        below = dict.fromkeys(self.order, 0)
        below.update((leaf, 1 << j) for j, leaf in enumerate(leaves))
        forward = reverse = 0
        for k in self.order:
            node = nodes[k]
            if node.dtype != REAL:
                continue
            for a in node.args:
                if node.op not in _UNIT_PARTIALS and nodes[a].args:
                    forward += below[a].bit_count()
                forward += (below[k] & below[a]).bit_count()
                below[k] |= below[a]
        above = dict.fromkeys(self.order, 0)
        for i, o in enumerate(self.outputs):
            above[o] |= 1 << i
        for k in reversed(self.order):
            rows = above[k]
            if not rows or not below[k]:
                continue
            node = nodes[k]
            seeded = rows if k not in self.outputs else rows & (rows - 1)
            for a in node.args:
                if below[a]:
                    if node.op not in _UNIT_PARTIALS:
                        reverse += seeded.bit_count()
                    reverse += (above[a] & rows).bit_count()
                    above[a] |= rows
        return forward, reverse

    def reverse(self, seeds: dict[int, int], wrt: Sequence[int]) -> list[int]:
        """Sum over outputs o of seeds[o] · ∂o/∂w, for each leaf w."""
        b = self.builder
        active = self.depends_on(set(wrt))
        adjoints: dict[int, _Adjoint] = {}
        per_item: dict[int, _Adjoint] = {}  # what each item adds to the adjoint of an element
        for output, seed in seeds.items():
            adjoints[output] = _accumulate(b, adjoints.get(output), _Adjoint(seed, None))
        for k in reversed(self.order):
            node = b.nodes[k]
            if k in per_item:
                total = _Adjoint(b.apply("sum_items", _settled(b, per_item[k])), None)
                adjoints[k] = _accumulate(b, adjoints.get(k), total)
            adjoint = adjoints.get(k)
            if adjoint is None or not active[k] or not node.args:
                continue
            inside = bool(self.items[k]) or node.op in FOLDS
            for a, contribution in self._contributions(k, node, adjoint, active):
                into = per_item if inside and not self.items[a] else adjoints
                into[a] = _accumulate(b, into.get(a), contribution)
        zero = b.constant(0.0)
        return [_settled(b, adjoints[w]) if w in adjoints else zero for w in wrt]

    def _contributions(
        self, k: int, node: Node, adjoint: _Adjoint, active: bytearray
    ) -> Iterator[tuple[int, _Adjoint]]:
        """What node ``k`` adds to the adjoints of its active operands."""
        b = self.builder
        if node.op == "where":
            condition, x, y = node.args
            for arm, holds in ((x, condition), (y, b.apply("logical_not", condition))):
                if active[arm]:
                    yield arm, self._where_holds(adjoint, holds)
        elif node.op in FOLDS:
            if active[node.args[0]] and not FOLDS[node.op].keeps_position:
                holds = self._chosen_item(node)
                yield node.args[0], adjoint if holds is None else self._where_holds(adjoint, holds)
        else:
            for a, partial in zip(node.args, self.partials(k), strict=True):
                if active[a]:
                    product = b.apply("mul", adjoint.value, partial)
                    if b.literal(product) != 0.0:
                        yield a, _Adjoint(product, adjoint.mask)

    def _where_holds(self, adjoint: _Adjoint, holds: int) -> _Adjoint:
        if adjoint.mask is not None:
            holds = self.builder.apply("logical_and", adjoint.mask, holds)
        return _Adjoint(adjoint.value, holds)

    def _chosen_item(self, fold: Node) -> int | None:
        """Condition that an item is the one that an extreme comes from; None for a sum."""
        if fold.op not in FIRST_OF:
            return None
        b = self.builder
        return b.apply("eq", fold.args[1], b.apply(FIRST_OF[fold.op], *fold.args))

    def forward(self, tangents: dict[int, int]) -> list[int]:
        """Directional derivative of each output for given leaf tangents."""
        b = self.builder
        zero = b.constant(0.0)
        dot: dict[int, int] = dict(tangents)
        for k in self.order:
            node = b.nodes[k]
            if not node.args or node.dtype != REAL:
                continue
            if node.op == "where":
                condition, x, y = node.args
                if x in dot or y in dot:
                    dot[k] = b.apply("where", condition, dot.get(x, zero), dot.get(y, zero))
                continue
            if dot.keys().isdisjoint(node.args):
                continue
            if node.op in FOLDS:
                if FOLDS[node.op].keeps_position:
                    continue
                tangent = _Adjoint(dot[node.args[0]], self._chosen_item(node))
                dot[k] = b.apply("sum_items", _settled(b, tangent))
                continue
            total = zero
            for a, partial in zip(node.args, self.partials(k), strict=True):
                if a in dot:
                    total = b.apply("add", total, b.apply("mul", partial, dot[a]))
            if b.literal(total) != 0.0:
                dot[k] = total
        return [dot.get(o, zero) for o in self.outputs]


def _wrt_components(graph: Graph, wrt: Sequence[int] | None) -> list[tuple[int, int]]:
    chosen = range(len(graph.arguments)) if wrt is None else wrt
    for a in chosen:
        if not 0 <= a < len(graph.arguments):
            raise ShapeError(
                f"graph {graph.name!r}: wrt names argument {a}, it has {len(graph.arguments)}"
            )
    return [(a, k) for a in chosen for k in range(graph.arguments[a].size)]


def _check_real(graph: Graph, *, rows: bool = False) -> None:
    if not rows and has_items(graph.nodes):
        raise TraceError(
            f"graph {graph.name!r}: is over long rows, for which only the Jacobian is to be had"
        )
    for position, o in enumerate(graph.outputs):
        if graph.nodes[o].dtype == BOOL:
            raise TraceError(
                f"graph {graph.name!r}: output {position} is a truth value and has no derivative; "
                "use ag.where(condition, 1.0, 0.0) to make a number of it"
            )


def _jacobian(graph: Graph, components: list[tuple[int, int]], *, forward: bool) -> Graph:
    tape = _Tape(graph)
    leaves = [_leaf(tape.builder, graph, *c) for c in components]
    return _jacobian_on(tape, graph, leaves, forward)


def _leaf(b: Builder, graph: Graph, argument: int, component: int) -> int:
    """The leaf of a component, of an element or of an item of its row."""
    make = b.item if graph.arguments[argument].is_row else b.input
    return make(argument, component)


def _jacobian_on(tape: _Tape, graph: Graph, leaves: list[int], forward: bool) -> Graph:
    b = tape.builder
    one = b.constant(1.0)
    m, n = len(graph.outputs), len(leaves)
    if forward:
        of_items = [leaf for leaf in leaves if b.nodes[leaf].op == ITEM]
        reverse = [tape.reverse({o: one}, of_items) for o in tape.outputs] if of_items else []
        found = {(i, leaf): row[k] for i, row in enumerate(reverse)
                 for k, leaf in enumerate(of_items)}  # fmt: skip
        for leaf in leaves:
            if b.nodes[leaf].op != ITEM:
                found.update(((i, leaf), d) for i, d in enumerate(tape.forward({leaf: one})))
        entries = [found[i, leaf] for i in range(m) for leaf in leaves]
    else:
        entries = [e for o in tape.outputs for e in tape.reverse({o: one}, leaves)]
    return Graph.build(b, entries, graph.arguments, (m, n), f"{graph.name}_jacobian")


def jacobian(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Jacobian of the outputs, as a graph.

    Args:
        graph: m outputs (flattened).
        wrt: positions of the arguments to differentiate by; all by default.

    Returns:
        A graph of shape (m, n), n being the number of components of those arguments, in order;
        for an argument that is a row, those of one item, and values that differ by item.
        Forward or reverse mode, whichever gives fewer operations: by a count that needs no
        derivative where it is clear, by making both where it is close and the graph not large.

    Raises:
        TraceError: an output is a truth value.
    """
    _check_real(graph, rows=True)
    components = _wrt_components(graph, wrt)
    tape = _Tape(graph)
    leaves = [_leaf(tape.builder, graph, *c) for c in components]
    forward, reverse = tape.estimates(leaves)
    first = factored(_jacobian_on(tape, graph, leaves, forward < reverse))
    low, high = sorted((forward, reverse))
    if high > CLOSE_CALL * low or graph.cost * min(len(graph), len(leaves)) > TRY_BOTH_BELOW_COST:
        return first
    second = factored(_jacobian(graph, components, forward=forward >= reverse))
    return min(first, second, key=lambda g: g.cost)


def value_and_jacobian(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Outputs and Jacobian as one graph with shared subexpressions: m + m·n outputs, flat."""
    derivative = jacobian(graph, wrt)
    b = Builder(RULES)
    values, entries = b.absorb(graph.nodes), b.absorb(derivative.nodes)
    outputs = [values[o] for o in graph.outputs] + [entries[o] for o in derivative.outputs]
    return factored(Graph.build(b, outputs, graph.arguments, None, f"{graph.name}_with_jacobian"))


def jvp(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Jacobian-vector product. Adds an argument ``tangent`` (n,); outputs keep their shape."""
    _check_real(graph)
    components = _wrt_components(graph, wrt)
    tape = _Tape(graph)
    b = tape.builder
    extra = len(graph.arguments)
    seeds = {b.input(*c): b.input(extra, k) for k, c in enumerate(components)}
    arguments = (*graph.arguments, Argument("tangent", (len(components),)))
    out = tape.forward(seeds)
    return simplify(Graph.build(b, out, arguments, graph.output_shape, f"{graph.name}_jvp"))


def vjp(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Vector-Jacobian product. Adds an argument ``cotangent`` (m,); the output has shape (n,)."""
    _check_real(graph)
    components = _wrt_components(graph, wrt)
    tape = _Tape(graph)
    b = tape.builder
    extra = len(graph.arguments)
    seeds: dict[int, int] = {}
    for k, o in enumerate(tape.outputs):  # outputs may coincide
        seed = b.input(extra, k)
        seeds[o] = b.apply("add", seeds[o], seed) if o in seeds else seed
    arguments = (*graph.arguments, Argument("cotangent", (len(graph.outputs),)))
    out = tape.reverse(seeds, [b.input(*c) for c in components])
    return simplify(Graph.build(b, out, arguments, (len(components),), f"{graph.name}_vjp"))


def _scalar_gradient(graph: Graph, wrt: Sequence[int] | None) -> Graph:
    _check_real(graph)
    if len(graph.outputs) != 1:
        raise ShapeError(
            f"graph {graph.name!r}: second derivatives need one output, it has "
            f"{len(graph.outputs)}; take them output by output"
        )
    gradient = jacobian(graph, wrt)
    n = len(gradient.outputs)
    return Graph(gradient.nodes, gradient.outputs, gradient.arguments, (n,), graph.name)


def hessian(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Matrix (n, n) of second derivatives of a scalar graph."""
    return jacobian(_scalar_gradient(graph, wrt), wrt)


def hvp(graph: Graph, wrt: Sequence[int] | None = None) -> Graph:
    """Hessian-vector product of a scalar graph. Adds an argument ``tangent`` (n,)."""
    return jvp(_scalar_gradient(graph, wrt), wrt)
