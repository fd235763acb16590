"""JᵀJ v of an element without the entries of J: J v by forward mode, where that is cheaper.

A gather recomputes at each incidence what it needs. Where the node is one on which residuals
depend simply, such as the far end of an edge, it needs J v of the element and hardly anything of
J; forward mode finds J v with half the operations of J's entries (as-rigid-as-possible: 135, 212).
What depends on the node alone is computed once for all its incidences and does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from autograd_gpu.codegen.element_parts import (
    VECTOR,
    Contribution,
    ElementParts,
    of_node_alone,
)
from autograd_gpu.codegen.incidence import (
    GroupStructure,
    Kind,
    product_contribution,
    transposed,
)
from autograd_gpu.diff import jvp
from autograd_gpu.ir import Builder, Graph
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.rewrite import RULES


def product_of(kind: Kind) -> Callable[[GroupStructure, int], Contribution]:
    """(group, place) -> JᵀJ v of one incidence of a kind.

    Both ends of a mirrored group share a list and a text, which entries of J give alike.
    """
    return product_contribution if kind.mirrored else product_at_least_cost


@lru_cache(maxsize=512)
def product_at_least_cost(group: GroupStructure, place: int) -> Contribution:
    """Jᵀ(J v) restricted to the node at ``place``, by entries of J or by forward mode.

    Args:
        group: the residual group.
        place: of the node that gathers.
    """
    by_entries = product_contribution(group, place)
    residuals = None if group.stored else _residuals(group)
    if residuals is None:
        return by_entries
    by_forward_mode = _by_forward_mode(group, place, residuals)
    costs = [_cost_of_incidence(group, place, c.graph) for c in (by_entries, by_forward_mode)]
    return by_forward_mode if costs[1] < costs[0] else by_entries


def _residuals(group: GroupStructure) -> Graph | None:
    """The residuals whose derivative J is; None where J is not the derivative of residuals.

    It is not under a robust loss, on manifolds, and loops over long rows have no forward mode.
    """
    kernel = group.kernel
    parameters = [s for s, n in zip(kernel.slots, group.slots, strict=True) if n is not None]
    if kernel.is_folded or any(s.chart is not None or s.is_row for s in parameters):
        return None
    if kernel.columns != sum(s.ambient for s in parameters):
        return None
    b = Builder(RULES)
    ids = b.absorb(kernel.graph.nodes)
    outputs = [ids[o] for o in kernel.graph.outputs[: kernel.residual_size]]
    of_cost = b.absorb(group.residual.graph.nodes)
    if outputs != [of_cost[o] for o in group.residual.graph.outputs]:
        return None
    return Graph.build(b, outputs, kernel.graph.arguments, None, kernel.graph.name)


def _by_forward_mode(group: GroupStructure, place: int, residuals: Graph) -> Contribution:
    wrt = [k for k, slot in enumerate(group.slots) if slot is not None]
    forward = jvp(residuals, wrt)
    parts = ElementParts(group)
    b, tangent = parts.builder, len(residuals.arguments)
    ids = b.absorb(
        forward.nodes,
        lambda node: (
            b.input(parts.extra + VECTOR, node.leaf[1]) if node.leaf[0] == tangent else b.leaf(node)
        ),
    )
    return transposed(parts, place, [ids[o] for o in forward.outputs], "product")


def _cost_of_incidence(group: GroupStructure, place: int, graph: Graph) -> int:
    """Cost of the operations that differ from one incidence of a node to the next."""
    alone = of_node_alone(graph, group, place)
    return sum(
        NODE_OPS[node.op].cost
        for node, apart in zip(graph.nodes, alone, strict=True)
        if node.args and not apart
    )
