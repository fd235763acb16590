"""JᵀJ and Jᵀr of one element as a record of numbers, for groups that store those and no Jacobian.

Entries that are literals, or differ from another entry by their sign alone, take no room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autograd_gpu.ir import Builder, Graph

Key = tuple[int, int]
"""(place, component) of a node that an element gathers."""


@dataclass(frozen=True, slots=True)
class Term:
    """A number of a record times a factor of ±1, or a literal if there is no position."""

    position: int | None
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class BlockRecord:
    """What an element stores, and where each entry is found.

    Attributes:
        graph: from slots to the record: entries of JᵀJ, then entries of Jᵀr.
        products: entries (a, b), a >= b, of JᵀJ.
        gradient: entries of Jᵀr; positions count from the first of them.
        product_count: numbers of the record that belong to JᵀJ.
    """

    graph: Graph
    products: Mapping[tuple[Key, Key], Term]
    gradient: Mapping[Key, Term]
    product_count: int

    @property
    def gradient_count(self) -> int:
        """Numbers of the record that belong to Jᵀr."""
        return len(self.graph.outputs) - self.product_count

    @property
    def keys(self) -> tuple[Key, ...]:
        """Components of the element's nodes that its residuals depend on."""
        return tuple(self.gradient)


def record_terms(builder: Builder, values: Sequence[int]) -> tuple[list[int], list[Term]]:
    """Nodes that have to be stored for ``values``, each once, and how each value is found."""
    stored: dict[int, int] = {}
    terms: list[Term] = []
    for value in values:
        literal = builder.literal(value)
        if literal is not None:
            terms.append(Term(None, float(literal)))
            continue
        node, factor = builder.nodes[value], 1.0
        if node.op == "neg":
            value, factor = node.args[0], -1.0
        terms.append(Term(stored.setdefault(value, len(stored)), factor))
    return list(stored), terms
