"""Jacobian, residuals and vector of one element as IR: what incidences contribute is made of them.

They are recomputed from parameters and data, or loaded from an element's record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from autograd_gpu.codegen.block_factor import lower_index
from autograd_gpu.codegen.element_blocks import BlockRecord, Key, Term, record_terms
from autograd_gpu.ir import ARGUMENT_LEAVES, Argument, Builder, Graph
from autograd_gpu.rewrite import RULES, factored

if TYPE_CHECKING:
    from autograd_gpu.codegen.incidence import GroupStructure, NodeSlot

# Argument positions after the slots in a contribution graph.
STORED_JACOBIAN, VECTOR, RESIDUAL = 0, 1, 2
EXTRA_ARGUMENTS = 3


def column_offsets(group: GroupStructure) -> list[tuple[NodeSlot, int]]:
    """(slot, component) of each local Jacobian column."""
    return [(s, k) for s in group.slots if s is not None for k in range(s.width)]


class ElementParts:
    """Jacobian, residual and vector of one element inside a builder."""

    def __init__(self, group: GroupStructure) -> None:
        self.group = group
        self.builder = Builder(RULES)
        kernel = group.kernel
        self.extra = len(kernel.slots)
        # What a record of blocks does not have is recomputed.
        self._loaded = group.stored and group.blocks is None

    @cached_property
    def _values(self) -> list[int]:
        """Outputs of the group's kernel, residuals first. Large: made where they are used."""
        kernel = self.group.kernel
        ids = self.builder.absorb(kernel.graph.nodes)
        return [ids[o] for o in kernel.graph.outputs]

    @cached_property
    def residual(self) -> list[int]:
        """The residuals."""
        m = self.group.kernel.residual_size
        if self._loaded:
            return [self.builder.input(self.extra + RESIDUAL, i) for i in range(m)]
        return self._values[:m]

    @cached_property
    def rows(self) -> list[dict[int, int]]:
        """The Jacobian: row -> column -> node."""
        b, kernel = self.builder, self.group.kernel
        rows: list[dict[int, int]] = [{} for _ in range(kernel.residual_size)]
        for entry in kernel.entries:
            if entry.output is None:
                node = b.constant(entry.constant)
            elif self._loaded:
                node = b.input(self.extra + STORED_JACOBIAN, entry.output)
            else:
                node = self._values[kernel.residual_size + entry.output]
            rows[entry.row][entry.column] = node
        return rows

    def own_rows(self, place: int) -> list[dict[int, int]]:
        """Rows over the components of the node at ``place``; slots that share a place add up."""
        columns = column_offsets(self.group)
        rows: list[dict[int, int]] = []
        for row in self.rows:
            own: dict[int, int] = {}
            for column, node in row.items():
                slot, k = columns[column]
                if slot.place == place:
                    a = slot.offset + k
                    own[a] = self.builder.apply("add", own[a], node) if a in own else node
            rows.append(own)
        return rows

    def total(self, terms: Sequence[tuple[int, int]]) -> int:
        """Sum of products."""
        b = self.builder
        result = b.constant(0.0)
        for x, y in terms:
            result = b.apply("add", result, b.apply("mul", x, y))
        return result

    def freeze(self, outputs: Sequence[int], name: str, extra: Sequence[Argument] = ()) -> Graph:
        """The graph of ``outputs``; ``extra`` arguments follow the usual ones."""
        kernel = self.group.kernel
        arguments = [Argument(f"s{k}", s.shape) for k, s in enumerate(kernel.slots)]
        arguments += [
            Argument("stored", (max(1, self.group.stored_entries),)),
            Argument("vector", (kernel.columns,)),
            Argument("residual", (max(1, self.group.stored_residuals),)),
            *extra,
        ]
        return factored(Graph.build(self.builder, outputs, arguments, None, name))


@dataclass(frozen=True, slots=True)
class Contribution:
    """A graph and, for each output, the accumulator that it adds to."""

    graph: Graph
    targets: tuple[int, ...]


def number_of_leaf(
    group: GroupStructure, argument: int, component: int
) -> tuple[bool, int, int] | None:
    """(of the vector, place, component of the node) of a leaf that is a number of a node.

    Arguments are those of a contribution: the element's and, after them, those of its reverse
    (``reversal``), whose two places are exchanged. None for data and stored records.
    """
    count = len(group.slots)
    own, vector = argument % (count + EXTRA_ARGUMENTS), count + VECTOR
    slot, k = group.slots[own] if own < count else None, component
    if own == vector:
        slot, k = column_offsets(group)[component]
    if slot is None:
        return None
    place = slot.place if own == argument else 1 - slot.place
    return own == vector, place, slot.offset + k


def of_node_alone(graph: Graph, group: GroupStructure, place: int) -> list[bool]:
    """Of each node of a contribution's graph: whether it depends on one problem node alone.

    Args:
        graph: what is computed for an incidence of that node.
        group: whose contribution it is.
        place: where that node is in the element.
    """
    alone: list[bool] = []
    for node in graph.nodes:
        if node.args:
            alone.append(all(alone[a] for a in node.args))
        elif node.op in ARGUMENT_LEAVES:
            found = number_of_leaf(group, *node.leaf)
            alone.append(found is not None and found[1] == place)
        else:
            alone.append(True)
    return alone


@lru_cache(maxsize=512)
def block_record(group: GroupStructure) -> BlockRecord:
    """What an element stores of JᵀJ and Jᵀr."""
    parts = ElementParts(replace(group, stored=False, blocks=None))
    rows: list[dict[Key, int]] = [{} for _ in parts.rows]
    for slot in group.places:
        for row, own in zip(rows, parts.own_rows(slot.place), strict=True):
            row.update({(slot.place, a): node for a, node in own.items()})
    keys = sorted({key for row in rows for key in row})
    pairs = [(a, b) for a in keys for b in keys if b <= a]
    products = [
        parts.total([(row[a], row[b]) for row in rows if a in row and b in row]) for a, b in pairs
    ]
    gradient = [
        parts.total([(row[a], parts.residual[i]) for i, row in enumerate(rows) if a in row])
        for a in keys
    ]
    stored, product_terms = record_terms(parts.builder, products)
    sums, gradient_terms = record_terms(parts.builder, gradient)
    return BlockRecord(
        graph=parts.freeze([*stored, *sums], "blocks"),
        products=dict(zip(pairs, product_terms, strict=True)),
        gradient=dict(zip(keys, gradient_terms, strict=True)),
        product_count=len(stored),
    )


class LoadedBlocks:
    """JᵀJ and Jᵀr of one element, loaded from its record of blocks."""

    def __init__(self, group: GroupStructure, blocks: BlockRecord) -> None:
        self.parts = ElementParts(group)
        self.blocks = blocks
        self._column: dict[Key, int] = {}
        for column, (slot, k) in enumerate(column_offsets(group)):
            self._column.setdefault((slot.place, slot.offset + k), column)

    def _load(self, argument: int, term: Term) -> int:
        b = self.parts.builder
        if term.position is None:
            return b.constant(term.factor)
        node = b.input(self.parts.extra + argument, term.position)
        return node if term.factor > 0.0 else b.apply("neg", node)

    def gradient(self, place: int) -> dict[int, int]:
        """Component of the node at ``place`` -> its entry of Jᵀr."""
        terms = self.blocks.gradient.items()
        return {a: self._load(RESIDUAL, term) for (p, a), term in terms if p == place}

    def image(self, place: int) -> dict[int, int]:
        """Component of the node at ``place`` -> its entry of JᵀJ v."""
        b = self.parts.builder
        found: dict[int, int] = {}
        for key in self.blocks.keys:
            if key[0] == place:
                entries = [
                    self.blocks.products[max(key, other), min(key, other)]
                    for other in self.blocks.keys
                ]
                vector = [
                    b.input(self.parts.extra + VECTOR, self._column[other])
                    for other in self.blocks.keys
                ]
                pairs = zip(entries, vector, strict=True)
                found[key[1]] = self.parts.total(
                    [(self._load(STORED_JACOBIAN, term), v) for term, v in pairs]
                )
        return found

    def diagonal(self, place: int) -> dict[int, int]:
        """Packed position -> entry of the diagonal block of the node at ``place``."""
        return {
            lower_index(a[1], b[1]): self._load(STORED_JACOBIAN, term)
            for (a, b), term in self.blocks.products.items()
            if a[0] == b[0] == place and term != Term(None, 0.0)
        }

    def contribution(self, sums: dict[int, int], name: str) -> Contribution:
        """Target -> node as a contribution."""
        return Contribution(self.parts.freeze(list(sums.values()), name), tuple(sums))
