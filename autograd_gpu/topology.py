"""The topology key: equal graphs, however built and whatever they act on, get one kernel.

Leaves are numbered in first-visit order of a canonical depth-first walk, never by their position
among a problem's parameters. Operands of commutative ops are ordered by a structural hash that
is refined with leaf identity, as in colour refinement. The key is a 128-bit BLAKE2b digest of
the canonical serialisation, and caches compare the serialisation itself: two different graphs
never share a kernel. Two isomorphic graphs may, rarely, get two keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

from .folds import ITEM
from .ir import ARGUMENT_LEAVES, Argument, Graph, Node, Shape
from .ops import NODE_OPS

REFINEMENT_ROUNDS = 3
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Canonical:
    """Canonical form of a graph.

    Attributes:
        nodes: nodes in canonical order; an ``input`` payload is (slot, component), slots being
            numbered by first visit.
        outputs: ids in ``nodes``.
        output_shape: shape of the outputs.
        slots: shape of each slot.
        arguments: for each slot, the argument of the original graph that it stands for.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[int, ...]
    output_shape: Shape
    slots: tuple[Shape, ...]
    arguments: tuple[int, ...]

    @cached_property
    def serial(self) -> bytes:
        """The serialisation that decides equality."""
        parts = [repr((self.output_shape, self.slots, self.outputs)).encode()]
        for node in self.nodes:
            payload: Any = node.payload
            if node.op == "const" and not isinstance(payload, bool):
                payload = struct.pack("<d", payload)
            parts.append(repr((node.op, node.args, payload, str(node.dtype))).encode())
        return b"\n".join(parts)

    @cached_property
    def key(self) -> str:
        """128-bit BLAKE2b of ``serial``, hexadecimal."""
        return blake2b(self.serial, digest_size=16).hexdigest()

    def graph(self, name: str = "residual") -> Graph:
        """The canonical graph itself: arguments are the slots, in slot order."""
        rows = {node.leaf[0] for node in self.nodes if node.op == ITEM}
        arguments = tuple(Argument(f"s{k}", shape, k in rows) for k, shape in enumerate(self.slots))
        return Graph(self.nodes, self.outputs, arguments, self.output_shape, name)


def _mix(*parts: Any) -> int:
    """A 64-bit hash that is the same in every process."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def _labels(graph: Graph) -> list[int]:
    """Hash of what each node is by itself, leaf identity left out."""
    labels: list[int] = []
    cache: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op in ARGUMENT_LEAVES:
            argument, component = node.leaf
            what: Any = (node.op, graph.arguments[argument].shape, component, str(node.dtype))
        elif node.op == "const":
            payload: Any = node.payload
            what = ("const", payload if isinstance(payload, bool) else struct.pack("<d", payload))
        else:
            what = (node.op,)
        if what not in cache:
            cache[what] = _mix(what)
        labels.append(cache[what])
    return labels


def _combine(seed: int, values: Sequence[int], commutative: bool) -> int:
    """Hash of a node from its operands' hashes."""
    h = seed
    for v in sorted(values) if commutative else values:
        h = ((h ^ v) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & _MASK
        h ^= h >> 29
    return h


def _commutes(node: Node) -> bool:
    return node.op in NODE_OPS and NODE_OPS[node.op].commutative


def _upward(nodes: Sequence[Node], labels: Sequence[int]) -> list[int]:
    """Hash of the subgraph below each node."""
    colors: list[int] = []
    for node, label in zip(nodes, labels, strict=True):
        colors.append(_combine(label, [colors[a] for a in node.args], _commutes(node)))
    return colors


def _contexts(graph: Graph, colors: Sequence[int]) -> list[int]:
    """Hash of how each node is used: by which outputs and operands, at which position."""
    context = [0] * len(graph.nodes)
    for position, output in enumerate(graph.outputs):
        context[output] = (context[output] + _combine(position, (0x51ED,), False)) & _MASK
    for k in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[k]
        own = _combine(colors[k], (context[k],), False)
        commutative = _commutes(node)
        for position, a in enumerate(node.args):
            seat = 0 if commutative else position
            # What sits beside a commutative operand tells x·y from x·z.
            beside = [colors[o] for j, o in enumerate(node.args) if j != position]
            context[a] = (context[a] + _combine(own, (seat, *sorted(beside)), False)) & _MASK
    return context


def _refined(graph: Graph) -> list[int]:
    """Structural hashes in which leaves of different arguments are told apart by their use."""
    labels = _labels(graph)
    colors = _upward(graph.nodes, labels)
    leaves = [k for k, node in enumerate(graph.nodes) if node.op in ARGUMENT_LEAVES]
    for _ in range(REFINEMENT_ROUNDS):
        context = _contexts(graph, colors)
        slots: dict[int, list[int]] = {}
        for k in leaves:
            argument = graph.nodes[k].leaf[0]
            slots.setdefault(argument, []).append(_combine(labels[k], (context[k],), False))
        slot_color = {a: _combine(1, seen, True) for a, seen in slots.items()}
        for k in leaves:
            argument = graph.nodes[k].leaf[0]
            labels[k] = _combine(labels[k], (slot_color[argument], context[k]), False)
        colors = _upward(graph.nodes, labels)
    return colors


def canonicalize(graph: Graph) -> Canonical:
    """Canonical form of ``graph``; near-linear in its size."""
    colors = _refined(graph)
    position: dict[int, int] = {}
    slot_of: dict[int, int] = {}
    nodes: list[Node] = []
    for root in graph.outputs:
        stack = [(root, False)]
        while stack:
            k, expanded = stack.pop()
            if k in position:
                continue
            node = graph.nodes[k]
            order = list(node.args)
            if _commutes(node):
                order.sort(key=lambda a: (colors[a], position.get(a, len(position)), a))
            if node.args and not expanded:
                stack.append((k, True))
                stack.extend((a, False) for a in reversed(order))
                continue
            payload = node.payload
            if node.op in ARGUMENT_LEAVES:
                argument, component = node.leaf
                payload = (slot_of.setdefault(argument, len(slot_of)), component)
            position[k] = len(nodes)
            args = [position[a] for a in order]
            if _commutes(node):
                args.sort()
            nodes.append(Node(node.op, tuple(args), payload, node.dtype))
    return Canonical(
        nodes=tuple(nodes),
        outputs=tuple(position[o] for o in graph.outputs),
        output_shape=graph.output_shape,
        slots=tuple(graph.arguments[a].shape for a in slot_of),
        arguments=tuple(slot_of),
    )
