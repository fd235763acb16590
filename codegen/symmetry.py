"""Two-node groups that look the same from either end, such as springs.

Their two incidence kinds become one: one list per node, one loop, half of the list starts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from autograd_gpu.codegen.element_parts import VECTOR, Contribution
from autograd_gpu.codegen.incidence import (
    GroupStructure,
    gradient_contribution,
    group_key,
    linearize_contribution,
    product_contribution,
)
from autograd_gpu.codegen.kept import kept
from autograd_gpu.ir import Builder, Graph, Node
from autograd_gpu.rewrite import RULES

SAMPLES = 32
_SIGNED = ("add", "sub", "mul", "div", "neg")


def _double_negation(b: Builder, args: tuple[int, ...]) -> int | None:
    row = b.nodes[args[0]]
    return row.args[0] if row.op == "neg" else None


# The usual rules turn -(x - y) into y - x, which would undo the orientation.
_KEEPING_ORIENTATION = {**RULES, "neg": (_double_negation,)}


@lru_cache(maxsize=512)
def is_symmetric(group: GroupStructure, width: int) -> bool:
    """Whether both nodes of a group receive the same contribution, roles exchanged.

    Differences are first turned to point from the other node to this one. Then the graphs of
    both ends must be equal in canonical form, but for signs in their rational tails (what only
    sums and products lie above); and those signs must agree at random points, which for
    rational functions of one shape decides.
    """
    if group.stored or len(group.places) != 2:
        return False
    return kept(
        "symmetry", (group_key(group), str(width)), lambda: _is_symmetric(group, width), bool, bool
    )


def _is_symmetric(group: GroupStructure, width: int) -> bool:
    first, second = group.places
    layouts = [
        [(s.offset, s.width) for s in group.slots if s is not None and s.place == p] for p in (0, 1)
    ]
    if first.node_set != second.node_set or layouts[0] != layouts[1]:
        return False
    makers: tuple[Callable[[int], Contribution], ...] = (
        lambda place: product_contribution(group, place),
        lambda place: gradient_contribution(group, place),
        lambda place: linearize_contribution(group, place, width),
    )
    return all(_same_from_both_ends(group, make(0), make(1)) for make in makers)


def _same_from_both_ends(group: GroupStructure, a: Contribution, b: Contribution) -> bool:
    if a.targets != b.targets:
        return False
    roles = _Roles(group)
    left, right = roles.rename(a.graph, 0), roles.rename(b.graph, 1)
    shape_left, shape_right = (_without_tail_signs(g).canonical for g in (left, right))
    if (shape_left.serial, shape_left.arguments) != (shape_right.serial, shape_right.arguments):
        return False
    generator = np.random.default_rng(0)
    points = [generator.uniform(0.2, 1.8, (SAMPLES, *arg.shape)) for arg in left.arguments]
    return bool(np.allclose(left(*points), right(*points), rtol=1e-11, atol=1e-11))


class _Roles:
    """Renames the two places of a group to own and other."""

    def __init__(self, group: GroupStructure) -> None:
        self._slots = {k: s for k, s in enumerate(group.slots) if s is not None}
        position = {(s.place, s.offset): k for k, s in self._slots.items()}
        self._swapped = {k: position[1 - s.place, s.offset] for k, s in self._slots.items()}
        first: dict[int, int] = {}
        total = 0
        for k, slot in self._slots.items():
            first[k] = total
            total += slot.width
        self._column = {
            first[k] + c: first[self._swapped[k]] + c
            for k, slot in self._slots.items()
            for c in range(slot.width)
        }
        self._own = {k for k, s in self._slots.items() if s.place == 0}
        self._own_columns = {first[k] + c for k in self._own for c in range(self._slots[k].width)}
        self._vector = len(group.slots) + VECTOR

    def rename(self, graph: Graph, own: int) -> Graph:
        """The graph with the node at place ``own`` called place 0, differences oriented."""
        b = Builder(_KEEPING_ORIENTATION)
        new: list[int] = []
        for node in graph.nodes:
            if node.op == "input":
                slot, component = node.leaf
                if own == 1:
                    component = self._column[component] if slot == self._vector else component
                    slot = self._swapped.get(slot, slot)
                new.append(b.input(slot, component, node.dtype))
            elif node.op == "const":
                new.extend(b.absorb((node,)))
            elif node.op == "sub" and self._is_own(b.nodes[new[node.args[1]]]):
                new.append(b.apply("neg", b.apply("sub", new[node.args[1]], new[node.args[0]])))
            else:
                new.append(b.apply(node.op, *(new[a] for a in node.args)))
        return Graph.build(b, [new[o] for o in graph.outputs], graph.arguments)

    def _is_own(self, node: Node) -> bool:
        if node.op != "input":
            return False
        slot, component = node.leaf
        return component in self._own_columns if slot == self._vector else slot in self._own


def _without_tail_signs(graph: Graph) -> Graph:
    """The graph with ``sub`` as ``add`` and no ``neg`` where only sums and products lie above."""
    below = bytearray(len(graph.nodes))  # feeds something other than a sum or product
    for k in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[k]
        for a in node.args:
            if below[k] or node.op not in _SIGNED:
                below[a] = 1
    b = Builder()
    new: list[int] = []
    for k, node in enumerate(graph.nodes):
        if not node.args:
            new.extend(b.absorb((node,)))
        elif node.op == "neg" and not below[k]:
            new.append(new[node.args[0]])
        else:
            op = "add" if node.op == "sub" and not below[k] else node.op
            new.append(b.apply(op, *(new[a] for a in node.args)))
    return Graph.build(b, [new[o] for o in graph.outputs], graph.arguments)
