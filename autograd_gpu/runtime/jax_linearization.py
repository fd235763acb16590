"""Gradient, diagonal blocks and products JᵀJ v of a problem as JAX code, in gather form.

Everything here runs while JAX traces. Vectors over unknowns are lists with one ``(width, nodes)``
array per node set. Small products are straight lines of multiplications and sums from the IR:
no ``dot_general`` over tiny matrices. Constants of J are literals and are not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..codegen.block_factor import PIVOT_FLOOR, lower_index
from ..codegen.element_parts import column_offsets
from ..codegen.incidence import (
    GroupStructure,
    gradient_contribution,
    image_graph,
    linearize_contribution,
    product_contribution,
)
from ..codegen.kernel import Product
from ..codegen.render import render
from ..ir import Graph
from .jax_functions import Columns, generated_function, graph_function, load_jax
from .jax_incidence import Form, JaxStructure

Vectors = list[Any]
Pick = Callable[[Any], Any]
Contributions = Callable[[Pick, Pick], Columns]
"""(column of elements -> its picked rows, component of nodes -> likewise) -> contributions."""


class ElementValues:
    """Residuals and the varying entries of J of every element, as columns by group."""

    def __init__(self, residuals: list[Columns], stored: list[Columns]) -> None:
        self.residuals = residuals
        self.stored = stored


class Linearizer:
    """Products of one structure; made anew in each trace, from the arrays that are traced.

    Args:
        structure: what is compiled.
        tables: ``{"groups": …, "incidences": …, "free": …}``, see ``JaxTables``.
        counts: elements of each group.
        precision: float32 or float64.
    """

    def __init__(
        self,
        structure: JaxStructure,
        tables: dict[str, Any],
        counts: Sequence[int],
        precision: str,
    ) -> None:
        self.structure = structure
        self._tables = tables
        self._counts = counts
        self._precision = precision
        self._jnp = load_jax().numpy

    # -- elements ------------------------------------------------------------------------------

    def residuals(self, x: Vectors) -> list[Columns]:
        """Columns of each group whose half square is the cost."""
        return [self._evaluate(g, x, Product.RESIDUAL)[0] for g in self._groups()]

    def linearize(self, x: Vectors) -> ElementValues:
        """Residuals and Jacobians; under a robust loss the corrected pair."""
        both = [self._evaluate(g, x, Product.RESIDUAL_JACOBIAN) for g in self._groups()]
        return ElementValues([r for r, _ in both], [j for _, j in both])

    def _groups(self) -> range:
        return range(len(self.structure.groups))

    def _evaluate(self, g: int, x: Vectors, product: Product) -> tuple[Columns, Columns]:
        group = self.structure.groups[g]
        arrays = self._tables["groups"][g]
        kernel = group.kernel
        if product is not kernel.product:
            kernel = group.residual
        slots: list[Columns] = []
        for slot, given in zip(group.slots, arrays["data"], strict=True):
            if slot is None:
                slots.append(list(given))
            else:
                slots.append([self._at(x, group, slot.place, slot.offset + k, g)
                              for k in range(slot.width)])  # fmt: skip
        function = generated_function(render(kernel, "jax", self._precision))
        residuals, jacobian = function(slots)
        count = self._counts[g]
        return [self._whole(c, count) for c in residuals], [self._whole(c, count) for c in jacobian]

    def _whole(self, column: Any, shape: int | tuple[int, ...]) -> Any:
        jnp = self._jnp
        return jnp.broadcast_to(jnp.asarray(column, self._precision), shape)

    def _at(self, v: Vectors, group: GroupStructure, place: int, a: int, g: int) -> Any:
        """Component ``a`` of the node at a place, per element."""
        k = group.places[place].node_set
        if v[k].shape[1] == 1:
            return v[k][a]
        if self._form(k, g, place) is Form.DIRECT:
            return v[k][a]
        nodes = self._tables["groups"][g]["nodes"][place]
        return v[k][a].at[nodes].get(mode="promise_in_bounds")

    def _form(self, node_set: int, g: int, place: int) -> Form:
        return next(
            i.form for i in self.structure.incidences[node_set] if (i.group, i.place) == (g, place)
        )

    # -- sums over nodes -----------------------------------------------------------------------

    def _sum(
        self,
        node_set: int,
        position: int,
        graph: Graph,
        element_columns: Sequence[Columns],
        own: Callable[[Pick], Columns] | None,
        nodes: int,
    ) -> list[Any]:
        """Sum over the incidences of each node of ``graph``'s outputs, ``(nodes,)`` each.

        Args:
            node_set: of the nodes that sum.
            position: which of its incidences.
            graph: what one incidence contributes.
            element_columns: arguments after the slots that are per element.
            own: None, or gives the argument VECTOR from the node's own components.
            nodes: number of nodes of the set.
        """
        jnp = self._jnp
        incidence = self.structure.incidences[node_set][position]
        slots = len(self.structure.groups[incidence.group].kernel.slots)
        function = graph_function(graph, self._precision)
        stored, residual = element_columns

        def contributions(pick: Pick, of_node: Pick) -> Columns:
            vector = own(of_node) if own is not None else []
            arguments: list[Columns] = [[] for _ in range(slots)]
            arguments += [[pick(c) for c in stored], vector, [pick(c) for c in residual]]
            return function(arguments)

        count = self._counts[incidence.group]
        if incidence.form is Form.ALL:
            columns = contributions(_itself, _itself)
            return [jnp.sum(self._whole(c, count), keepdims=True) for c in columns]
        if incidence.form is Form.DIRECT:
            return [self._whole(c, nodes) for c in contributions(_itself, _itself)]
        table = self._tables["incidences"][node_set][position]
        return self._add_the_rest(table, contributions, self._table_sum(table, contributions))

    def _table_sum(self, table: dict[str, Any], contributions: Contributions) -> list[Any]:
        jnp = self._jnp
        elements, degree = table["elements"], table["degree"]
        width, nodes = elements.shape
        if width == 0:
            return []
        rows = jnp.arange(width, dtype="uint32")[:, None] < degree[None, :]
        columns = contributions(partial(_take, index=elements), _as_row)
        # An empty place shows element 0, whatever that is: it must not even be multiplied.
        kept = [jnp.where(rows, self._whole(c, (width, nodes)), 0) for c in columns]
        return [jnp.sum(c, axis=0) for c in kept]

    def _add_the_rest(
        self, table: dict[str, Any], contributions: Contributions, sums: list[Any]
    ) -> list[Any]:
        elements, owners = table["more_elements"], table["more_nodes"]
        length = elements.shape[0]
        if length == 0:
            return sums
        jnp = self._jnp
        of_owner = partial(_take, index=owners, mode="clip")
        columns = contributions(partial(_take, index=elements), of_owner)
        if not sums:
            sums = [jnp.zeros(table["degree"].shape[0], self._precision) for _ in columns]
        return [
            s.at[owners].add(self._whole(c, length), mode="drop", indices_are_sorted=True)
            for s, c in zip(sums, columns, strict=True)
        ]

    def _collect(self, size: int, nodes: int, parts: list[tuple[Any, Any]]) -> Any:
        """``(size, nodes)`` from (targets, columns) of every incidence."""
        jnp = self._jnp
        rows: list[Any] = [None] * size
        for targets, columns in parts:
            for target, column in zip(targets, columns, strict=True):
                rows[target] = column if rows[target] is None else rows[target] + column
        zero = jnp.zeros(nodes, self._precision)
        return jnp.stack([zero if row is None else row for row in rows])

    # -- products ------------------------------------------------------------------------------

    def gradient_and_blocks(self, values: ElementValues, x: Vectors) -> tuple[Vectors, Vectors]:
        """Jᵀr, and the diagonal blocks of JᵀJ, ``(width, width, nodes)``."""
        gradient: Vectors = []
        blocks: Vectors = []
        for k, node_set in enumerate(self.structure.node_sets):
            width, nodes = node_set.width, x[k].shape[1]
            parts: list[tuple[Any, Any]] = []
            for position, incidence in enumerate(self.structure.incidences[k]):
                g = incidence.group
                group = self.structure.groups[g]
                made = linearize_contribution(group, incidence.place, width)
                columns = (values.stored[g], values.residuals[g])
                sums = self._sum(k, position, made.graph, columns, None, nodes)
                parts.append((made.targets, sums))
            packed = self._collect(width + width * (width + 1) // 2, nodes, parts)
            gradient.append(self.freeze(packed[:width], k))
            blocks.append(self._unpacked(packed[width:], k, width))
        return gradient, blocks

    def _unpacked(self, packed: Any, node_set: int, width: int) -> Any:
        jnp = self._jnp
        index = [[lower_index(max(a, b), min(a, b)) for b in range(width)] for a in range(width)]
        block = packed[jnp.asarray(index)]
        free = self._tables["free"][node_set]
        if free is None:
            return block
        one = jnp.eye(width, dtype=self._precision)[:, :, None]
        both = free[:, None] * free[None, :]
        return jnp.where(both > 0, block, one * (1 - free)[:, None])

    def freeze(self, vector: Any, node_set: int) -> Any:
        """Zero where a component may not move."""
        free = self._tables["free"][node_set]
        return vector if free is None else self._jnp.where(free > 0, vector, 0)

    def normal_product(self, values: ElementValues, v: Vectors) -> Vectors:
        """JᵀJ v."""
        images = [self._image(g, values, v) for g in self._groups()]
        result: Vectors = []
        for k, node_set in enumerate(self.structure.node_sets):
            nodes = v[k].shape[1]
            parts: list[tuple[Any, Any]] = []
            for position, incidence in enumerate(self.structure.incidences[k]):
                g = incidence.group
                group = self.structure.groups[g]
                image = images[g]
                if image is None:
                    made = product_contribution(group, incidence.place)
                    own = _own(group, v)
                    nothing: Columns = []
                    columns = (values.stored[g], nothing)
                else:
                    made = gradient_contribution(group, incidence.place)
                    own = None
                    columns = (values.stored[g], image)
                sums = self._sum(k, position, made.graph, columns, own, nodes)
                parts.append((made.targets, sums))
            result.append(self.freeze(self._collect(node_set.width, nodes, parts), k))
        return result

    def _image(self, g: int, values: ElementValues, v: Vectors) -> Columns | None:
        """J v per element; None where an element sees one node only, which has v at hand."""
        group = self.structure.groups[g]
        if len(group.places) == 1:
            return None
        vector = [
            self._at(v, group, slot.place, slot.offset + k, g) for slot, k in column_offsets(group)
        ]
        slots: list[Columns] = [[] for _ in group.slots]
        function = graph_function(image_graph(group), self._precision)
        image = function([*slots, values.stored[g], vector, []])
        return [self._whole(c, self._counts[g]) for c in image]


def _itself(values: Any) -> Any:
    return values


def _as_row(values: Any) -> Any:
    return values[None, :]


def _take(column: Any, index: Any, mode: str = "promise_in_bounds") -> Any:
    return column.at[index].get(mode=mode)


def _own(group: GroupStructure, v: Vectors) -> Callable[[Pick], Columns]:
    """The argument VECTOR of a group with one place, from that node's components."""
    columns = [(slot.node_set, slot.offset + k) for slot, k in column_offsets(group)]

    def own(of_node: Pick) -> Columns:
        return [of_node(v[k][a]) for k, a in columns]

    return own


def block_inverse_roots(block: Any) -> Any:
    """W with WᵀW the inverses of symmetric blocks ``(width, width, nodes)``: D^-½L⁻¹ of LDLᵀ.

    Pivots are floored. In this form r·WᵀWr is a sum of squares whatever rounding did, which
    conjugate gradients need of a preconditioner; entries of the inverse of a block that is nearly
    singular (a point whose depth no camera sees) cancel, in float32 to a negative number.
    """
    jax = load_jax()
    jnp = jax.numpy
    width = block.shape[0]
    diagonal = jnp.stack([block[a, a] for a in range(width)])
    # Focal lengths beside angles: without scaling, rounding in float32 spoils the inverse.
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(diagonal), 1)
    block = block * scale[:, None] * scale[None, :]
    unit = jnp.eye(width, dtype=block.dtype)[:, :, None]
    below = jnp.tri(width, k=-1, dtype=block.dtype)

    def eliminate(j: Any, state: Any) -> Any:
        """Clear column j below its pivot, in the block and in what becomes L⁻¹."""
        rest, rows, pivots = state
        pivot = jnp.maximum(rest[j, j], PIVOT_FLOOR)
        factor = (below[:, j, None] * rest[:, j] / pivot)[:, None]
        return rest - factor * rest[j], rows - factor * rows[j], pivots.at[j].set(pivot)

    # A loop, since XLA takes ten times as long to compile the same steps unrolled.
    start = (block, jnp.broadcast_to(unit, block.shape), jnp.ones_like(diagonal))
    _, rows, pivots = jax.lax.fori_loop(0, width, eliminate, start)
    return rows * scale[None, :] / jnp.sqrt(pivots)[:, None]


def apply_inverse(roots: Vectors, v: Vectors) -> Vectors:
    """Product of the inverses WᵀW with a vector, node by node."""
    jnp = load_jax().numpy
    halves = [jnp.sum(w * x[None], axis=1) for w, x in zip(roots, v, strict=True)]
    return [jnp.sum(w * y[:, None], axis=0) for w, y in zip(roots, halves, strict=True)]
