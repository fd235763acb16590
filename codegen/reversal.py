"""Elements that come with their reverse: half-edges (a, b) and (b, a) of the same mesh edge.

Energies over directed edges, such as as-rigid-as-possible, have every edge twice, once from either
end, and the data of one are those of the other or their negatives (p_j - p_i). A node then meets
each neighbour twice: as the first node of an element and as the second one of its reverse. Walked
one after the other, the two lists load everything twice. Here one list serves both: an incidence
adds what the element gives to the node and, from the very same numbers, what its reverse does.

Gather of JᵀJ v of 3.9 million half-edges, NVIDIA H200: 71 µs with two lists, 59 µs with one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autograd_gpu.codegen.element_parts import (
    VECTOR,
    Contribution,
    column_offsets,
    number_of_leaf,
)
from autograd_gpu.ir import Builder, Graph, Node
from autograd_gpu.rewrite import RULES, simplify

if TYPE_CHECKING:
    from autograd_gpu.codegen.incidence import GroupStructure, Kind


def kind_contribution(
    group: GroupStructure, kind: Kind, make: Callable[[GroupStructure, int], Contribution]
) -> Contribution:
    """What one incidence of a kind adds to its node, the reverse element's part included.

    Args:
        group: the kind's group.
        kind: where the node is in the element.
        make: (group, place) -> what an element adds to the node at that place.

    Returns:
        A contribution whose arguments are those that ``make`` gives and, after them, the same
        once more: argument n + k is argument k of the reverse element.
    """
    forward = make(group, kind.place)
    if kind.reverse is None:
        return forward
    backward = make(group, 1 - kind.place)
    b = Builder(RULES)
    ids = b.absorb(forward.graph.nodes)
    swapped = _SwappedLeaves(b, group, kind.reverse, len(forward.graph.arguments))
    back = b.absorb(backward.graph.nodes, swapped.leaf)
    sums = dict(zip(forward.targets, (ids[o] for o in forward.graph.outputs), strict=True))
    for target, output in zip(backward.targets, backward.graph.outputs, strict=True):
        node = back[output]
        sums[target] = b.apply("add", sums[target], node) if target in sums else node
    graph = forward.graph
    arguments = [*graph.arguments, *backward.graph.arguments]
    made = Graph.build(b, list(sums.values()), arguments, None, f"{graph.name}_of_both")
    return Contribution(simplify(made), tuple(sums))


class _SwappedLeaves:
    """Leaves of the reverse element, by those of the element where these are the same numbers."""

    def __init__(
        self, b: Builder, group: GroupStructure, signs: tuple[tuple[int, ...], ...], count: int
    ) -> None:
        self._b, self._group, self._signs, self._count = b, group, signs, count
        leaves = [(k, c) for k, s in enumerate(group.slots) if s for c in range(s.width)]
        leaves += [(len(group.slots) + VECTOR, c) for c in range(len(column_offsets(group)))]
        # (of the vector, place, component of the node) -> a leaf of the element that has it.
        self._leaves: dict[tuple[bool, int, int] | None, tuple[int, int]] = {}
        for leaf in leaves:
            self._leaves.setdefault(number_of_leaf(group, *leaf), leaf)

    def leaf(self, node: Node) -> int:
        """A leaf of the reverse element inside the builder."""
        argument, component = node.leaf
        # Whatever is a node's number for the reverse element …
        found = self._leaves.get(number_of_leaf(self._group, self._count + argument, component))
        if found is not None:
            return self._b.input(*found)
        if argument < len(self._group.slots) and self._group.slots[argument] is None:
            same = self._b.leaf(node)
            return same if self._signs[argument][component] > 0 else self._b.apply("neg", same)
        return self._b.input(self._count + argument, component)  # … that the element lacks
