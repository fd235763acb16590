"""Rewrite rules: equal values, fewer operations.

A rule looks at one application and returns a replacement or None. ``RULES`` is the table that a
``Builder`` applies as nodes are made, so derivatives come out simplified. Rules keep values for
all finite operands; as everywhere in automatic differentiation, ``0 · x`` is 0 even where x is
not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from .ir import Builder, Graph, Node, Rule
from .ops import BOOL, NODE_OPS

MERGED_LITERALS = (1e-30, 1e30)
"""Magnitudes that a literal made of two others may have: inside the range of float32."""


def fold(op: str) -> Rule:
    """Evaluate an application of literals."""
    row = NODE_OPS[op]

    def rule(b: Builder, args: tuple[int, ...]) -> int | None:
        nodes = b.nodes
        for a in args:
            if nodes[a].op != "const":
                return None
        values: list[Any] = [nodes[a].payload for a in args]
        with np.errstate(all="ignore"):
            result = row.numpy(*values)
        if row.result == BOOL:
            return b.constant(bool(result))
        # A pole stays visible as an operation: no target has a literal for infinity or NaN.
        return b.constant(float(result)) if math.isfinite(result) else None

    return rule


def _neg_operand(b: Builder, node: int) -> int | None:
    """The x of -x, or -c of a negative literal."""
    row = b.nodes[node]
    if row.op == "neg":
        return row.args[0]
    value = b.literal(node)
    if isinstance(value, float) and value < 0.0:
        return b.constant(-value)
    return None


def _scaled(b: Builder, node: int) -> tuple[float, int] | None:
    """(c, x) of a node c · x with a literal c."""
    nodes = b.nodes
    row = nodes[node]
    if row.op == "mul":
        x, y = row.args
        if nodes[x].op == "const":
            return cast(float, nodes[x].payload), y
        if nodes[y].op == "const":
            return cast(float, nodes[y].payload), x
    return None


def _merged(product: float, *factors: float) -> float | None:
    """``product`` of literals if it neither over- nor underflows in any precision, else None."""
    if product == 0.0:
        return product if 0.0 in factors else None
    low, high = MERGED_LITERALS
    return product if low <= abs(product) <= high else None


def _add(b: Builder, args: tuple[int, ...]) -> int | None:
    x, y = args
    nodes = b.nodes
    for p, q in ((x, y), (y, x)):
        row = nodes[p]
        if row.op == "neg":
            return b.apply("sub", q, row.args[0])
        if row.op == "const" and row.payload == 0.0:
            return q
    if x == y:
        return b.apply("mul", b.constant(2.0), x)
    return _collect(b, x, y, 1.0)


def _collect(b: Builder, x: int, y: int, sign: float) -> int | None:
    """Merge c·u ± d·u into (c ± d)·u."""
    if b.nodes[x].op != "mul" and b.nodes[y].op != "mul":
        return None
    cx, u = _scaled(b, x) or (1.0, x)
    cy, v = _scaled(b, y) or (1.0, y)
    total = cx + sign * cy
    if u == v and math.isfinite(total):
        return b.apply("mul", b.constant(total), u)
    return None


def _sub(b: Builder, args: tuple[int, ...]) -> int | None:
    x, y = args
    if x == y:
        return b.constant(0.0)
    if b.literal(y) == 0.0:
        return x
    if b.literal(x) == 0.0:
        return b.apply("neg", y)
    if b.nodes[y].op == "neg":
        return b.apply("add", x, b.nodes[y].args[0])
    if b.nodes[x].op == "neg":
        return b.apply("neg", b.apply("add", b.nodes[x].args[0], y))
    return _collect(b, x, y, -1.0)


def _mul(b: Builder, args: tuple[int, ...]) -> int | None:
    x, y = args
    nodes = b.nodes
    for p, q in ((x, y), (y, x)):
        left = nodes[p]
        if left.op == "neg":
            return b.apply("neg", b.apply("mul", left.args[0], q))
        if left.op != "const":
            continue
        c = cast(float, left.payload)
        if c == 0.0:
            return b.constant(0.0)
        if c == 1.0:
            return q
        if c < 0.0:  # literals stay positive, signs move outwards until a sum takes them
            return b.apply("neg", b.apply("mul", b.constant(-c), q))
        if b.nodes[q].op == "neg":
            return b.apply("neg", b.apply("mul", p, b.nodes[q].args[0]))
        absorbed = _absorb(b, c, q)
        if absorbed is not None:
            return absorbed
        row = b.nodes[q]
        for u, v in (row.args, row.args[::-1]) if row.op == "mul" else ():
            absorbed = _absorb(b, c, v)
            if absorbed is not None:
                return b.apply("mul", u, absorbed)
    return None


def _absorb(b: Builder, c: float, node: int) -> int | None:
    """Product c · node where a literal inside ``node`` can take the factor at no cost."""
    value = b.literal(node)
    if isinstance(value, float):
        product = _merged(c * value, c, value)
        return None if product is None else b.constant(product)
    row = b.nodes[node]
    if row.op == "mul":
        scaled = _scaled(b, node)
        product = None if scaled is None else _merged(c * scaled[0], c, scaled[0])
        if scaled is None or product is None:
            return None
        return b.apply("mul", b.constant(product), scaled[1])
    if row.op == "div":
        top = b.literal(row.args[0])
        product = _merged(c * top, c, top) if isinstance(top, float) else None
        return None if product is None else b.apply("div", b.constant(product), row.args[1])
    if row.op == "where":
        arms = [_absorb(b, c, arm) for arm in row.args[1:]]
        if arms[0] is not None and arms[1] is not None:
            return b.apply("where", row.args[0], arms[0], arms[1])
    return None


def _div(b: Builder, args: tuple[int, ...]) -> int | None:
    x, y = args
    if b.literal(x) == 0.0:
        return x
    c = b.literal(y)
    if isinstance(c, float) and c != 0.0:
        if c == 1.0:
            return x
        if math.frexp(abs(c))[0] == 0.5 and math.isfinite(1.0 / c):  # exact for powers of two
            return b.apply("mul", b.constant(1.0 / c), x)
    for p in (x, y):
        if b.nodes[p].op == "neg":
            inner = b.nodes[p].args[0]
            return b.apply("neg", b.apply("div", *((inner, y) if p == x else (x, inner))))
    return None


def _neg(b: Builder, args: tuple[int, ...]) -> int | None:
    row = b.nodes[args[0]]
    if row.op == "neg":
        return row.args[0]
    if row.op == "sub":
        return b.apply("sub", row.args[1], row.args[0])
    return None


def _integer_power(b: Builder, x: int, exponent: int) -> int:
    """Power x ** exponent by repeated squaring, exponent >= 1."""
    result: int | None = None
    base = x
    while True:
        if exponent & 1:
            result = base if result is None else b.apply("mul", result, base)
        exponent >>= 1
        if not exponent:
            assert result is not None
            return result
        base = b.apply("mul", base, base)


def _pow(b: Builder, args: tuple[int, ...]) -> int | None:
    x, exponent = args[0], b.literal(args[1])
    if not isinstance(exponent, float):
        return None
    if exponent == 0.0:
        return b.constant(1.0)
    if exponent == 0.5:
        return b.apply("sqrt", x)
    if exponent.is_integer() and 0.0 < exponent <= 16.0:
        return _integer_power(b, x, int(exponent))
    if exponent.is_integer() and -8.0 <= exponent < 0.0:
        return b.apply("div", b.constant(1.0), _integer_power(b, x, int(-exponent)))
    return None


def _even(op: str) -> Rule:
    def rule(b: Builder, args: tuple[int, ...]) -> int | None:
        inner = _neg_operand(b, args[0])
        return None if inner is None else b.apply(op, inner)

    return rule


def _odd(op: str) -> Rule:
    def rule(b: Builder, args: tuple[int, ...]) -> int | None:
        row = b.nodes[args[0]]
        return b.apply("neg", b.apply(op, row.args[0])) if row.op == "neg" else None

    return rule


def _sqrt(b: Builder, args: tuple[int, ...]) -> int | None:
    row = b.nodes[args[0]]
    if row.op == "mul" and row.args[0] == row.args[1]:
        return b.apply("abs", row.args[0])
    return None


def _abs(b: Builder, args: tuple[int, ...]) -> int | None:
    row = b.nodes[args[0]]
    if row.op in ("abs", "sqrt", "exp", "hypot"):
        return args[0]
    if row.op == "mul" and row.args[0] == row.args[1]:
        return args[0]
    return None


def _same(b: Builder, args: tuple[int, ...]) -> int | None:
    return args[0] if args[0] == args[1] else None


def _where(b: Builder, args: tuple[int, ...]) -> int | None:
    condition, x, y = args
    known = b.literal(condition)
    if known is not None:
        return x if known else y
    if x == y:
        return x
    row = b.nodes[condition]
    if row.op == "logical_not":
        return b.apply("where", row.args[0], y, x)
    return None


def _and(b: Builder, args: tuple[int, ...]) -> int | None:
    for p, q in (args, args[::-1]):
        known = b.literal(p)
        if known is not None:
            return q if known else b.constant(False)
        if _negates(b, p, q):
            return b.constant(False)
        if b.nodes[q].op in ("logical_and", "logical_or") and p in b.nodes[q].args:
            return q if b.nodes[q].op == "logical_and" else p
    return _same(b, args)


def _or(b: Builder, args: tuple[int, ...]) -> int | None:
    for p, q in (args, args[::-1]):
        known = b.literal(p)
        if known is not None:
            return b.constant(True) if known else q
        if _negates(b, p, q):
            return b.constant(True)
        if b.nodes[q].op in ("logical_and", "logical_or") and p in b.nodes[q].args:
            return p if b.nodes[q].op == "logical_and" else q
    return _same(b, args)


def _negates(b: Builder, p: int, q: int) -> bool:
    row = b.nodes[q]
    return row.op == "logical_not" and row.args[0] == p


def _not(b: Builder, args: tuple[int, ...]) -> int | None:
    row = b.nodes[args[0]]
    return row.args[0] if row.op == "logical_not" else None


def _sum_items(b: Builder, args: tuple[int, ...]) -> int | None:
    """Take literal factors out of a sum over the items of a row."""
    (x,) = args
    if b.literal(x) == 0.0:
        return x
    if b.nodes[x].op == "neg":
        return b.apply("neg", b.apply("sum_items", b.nodes[x].args[0]))
    scaled = _scaled(b, x)
    return scaled and b.apply("mul", b.constant(scaled[0]), b.apply("sum_items", scaled[1]))


IDENTITIES: dict[str, tuple[Rule, ...]] = {
    "add": (_add,),
    "sub": (_sub,),
    "mul": (_mul,),
    "div": (_div,),
    "neg": (_neg,),
    "pow": (_pow,),
    "sqrt": (_sqrt,),
    "abs": (_even("abs"), _abs),
    "cos": (_even("cos"),),
    "cosh": (_even("cosh"),),
    **{op: (_odd(op),) for op in ("sin", "tan", "asin", "atan", "sinh", "tanh", "erf", "cbrt")},
    "minimum": (_same,),
    "maximum": (_same,),
    "where": (_where,),
    "logical_and": (_and,),
    "logical_or": (_or,),
    "logical_not": (_not,),
}
"""Identities and strength reduction by op."""

RULES: dict[str, tuple[Rule, ...]] = {
    **{op: (fold(op), *IDENTITIES.get(op, ())) for op in NODE_OPS},
    "sum_items": (_sum_items,),
}
"""All rules by op, literal folding first."""


def use_counts(nodes: Sequence[Node], outputs: Sequence[int]) -> list[int]:
    """How many operands and outputs refer to each node."""
    counts = [0] * len(nodes)
    for node in nodes:
        for a in node.args:
            counts[a] += 1
    for o in outputs:
        counts[o] += 1
    return counts


def factor(graph: Graph) -> Graph:
    """Turn a·x ± a·y into a·(x ± y) where both products serve nothing else.

    The graph itself where nothing is to be factored.
    """
    nodes = graph.nodes
    uses = use_counts(nodes, graph.outputs)
    shared = {
        k: found
        for k, node in enumerate(nodes)
        if (found := _common_factor(nodes, uses, node)) is not None
    }
    if not shared:
        return graph
    builder = Builder(RULES)
    new: list[int] = []
    for k, node in enumerate(nodes):
        if k in shared:
            a, x, y = (new[j] for j in shared[k])
            new.append(builder.apply("mul", a, builder.apply(node.op, x, y)))
        elif node.args:
            new.append(builder.apply(node.op, *[new[a] for a in node.args]))
        else:
            new += builder.absorb((node,))
    return Graph.build(
        builder, (new[o] for o in graph.outputs), graph.arguments, graph.output_shape, graph.name
    )


def _common_factor(
    nodes: Sequence[Node], uses: list[int], node: Node
) -> tuple[int, int, int] | None:
    """(a, x, y) if ``node`` is a·x ± a·y and its operands are used nowhere else."""
    if node.op != "add" and node.op != "sub":
        return None
    p, q = node.args
    left, right = nodes[p], nodes[q]
    if left.op != "mul" or right.op != "mul" or uses[p] != 1 or uses[q] != 1:
        return None
    for k in (0, 1):
        for j in (0, 1):
            if left.args[k] == right.args[j]:
                return left.args[k], left.args[1 - k], right.args[1 - j]
    return None


def simplify(graph: Graph) -> Graph:
    """An equal graph with fewer operations: rules, factoring, common subexpressions once.

    Repeats until the cost stops falling (three passes are typical).
    """
    # Rules see one application at a time, so a rewritten operand that is also used elsewhere can
    # cost more than it saves; then the graph stays as it was written.
    rewritten = _rebuild(graph)
    return factored(rewritten if rewritten.cost <= graph.cost else graph)


def factored(graph: Graph) -> Graph:
    """``factor`` until the cost stops falling; a graph of a rewriting builder needs no more."""
    best = graph
    while True:
        candidate = factor(best)
        if candidate.cost >= best.cost:
            return best
        best = candidate


def _rebuild(graph: Graph) -> Graph:
    builder = Builder(RULES)
    new = builder.absorb(graph.nodes)
    return Graph.build(
        builder, [new[o] for o in graph.outputs], graph.arguments, graph.output_shape, graph.name
    )
