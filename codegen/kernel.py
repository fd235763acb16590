"""Frozen kernels: one topology, one product, ready to be printed for any target.

A kernel acts on a batch of elements. Each *slot* is what an element gathers for one argument of
the residual function: a block of parameters or a row of data. Slots are in the canonical order
of the topology, so that equal residuals over differently ordered arguments share a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from math import prod
from typing import Any, cast

from autograd_gpu.charts import Chart
from autograd_gpu.codegen.kept import kept
from autograd_gpu.codegen.robust import (
    LossBlocks,
    corrected,
    cost_residual,
    loss_sum,
    residuals_only,
)
from autograd_gpu.codegen.tangent import value_and_tangent_jacobian
from autograd_gpu.errors import ShapeError
from autograd_gpu.graph_documents import graph_document, graph_of_document
from autograd_gpu.ir import Builder, Graph, Shape
from autograd_gpu.rewrite import RULES, simplify

GENERATOR_VERSION = "1"
"""Part of every cache key and header; raised whenever generated text changes meaning."""


class Product(StrEnum):
    """What a kernel computes for each element.

    With a robust loss, ``residual`` is what ½‖·‖² makes the cost of, and ``residual_jacobian`` the
    pair that Gauss-Newton takes; ``robust.py`` has the formulas. Without one both are r.
    """

    RESIDUAL = "residual"
    COST = "cost"
    RESIDUAL_JACOBIAN = "residual_jacobian"


class SlotKind(StrEnum):
    """Where a slot's numbers come from."""

    PARAMETER = "parameter"
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One gathered argument.

    Attributes:
        kind: parameter block or data row.
        shape: shape that the residual function sees.
        ambient: numbers stored per block.
        tangent: degrees of freedom per block, equal to ``ambient`` off manifolds; 0 for data, and
            for parameters by which nothing is differentiated.
        chart: of the manifold that the block lives on; None for plain numbers.
        is_row: an element gathers a long row of such blocks, and a loop goes over them.
    """

    kind: SlotKind
    shape: Shape
    ambient: int
    tangent: int
    chart: Chart | None = None
    is_row: bool = False


def parameter_slot(shape: Shape, chart: Chart | None = None, *, is_row: bool = False) -> Slot:
    """A parameter block of plain numbers, or of a manifold; or a long row of them."""
    size = prod(shape)
    tangent = size if chart is None else chart.tangent
    return Slot(
        kind=SlotKind.PARAMETER,
        shape=shape,
        ambient=size,
        tangent=tangent,
        chart=chart,
        is_row=is_row,
    )


def data_slot(shape: Shape, *, is_row: bool = False) -> Slot:
    """A row of data; or a long row of values, each of the given shape."""
    return Slot(kind=SlotKind.DATA, shape=shape, ambient=prod(shape), tangent=0, is_row=is_row)


@dataclass(frozen=True, slots=True)
class JacobianEntry:
    """A structurally nonzero entry: row, local column, and a constant where it is one.

    ``output`` is the position among the kernel's computed outputs, None for a constant. Where
    ``per_item``, it is one entry for each item of a long row, and the column is that of an item.
    """

    row: int
    column: int
    output: int | None
    constant: float
    per_item: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A product of one topology.

    Attributes:
        name: product and topology; never the user's function, whose text this may not be alone.
        product: what it computes.
        slots: gathered arguments in canonical order.
        graph: what is computed per element: residuals first, then Jacobian entries that vary.
        residual_size: residuals per element, m.
        columns: tangent columns per element, n, over the parameter slots in order.
        entries: nonzero entries of the m x n Jacobian, row-major; empty for other products.
        key: identifies topology, slots and product.
    """

    name: str
    product: Product
    slots: tuple[Slot, ...]
    graph: Graph
    residual_size: int
    columns: int
    entries: tuple[JacobianEntry, ...]
    key: str

    @property
    def topology_key(self) -> str:
        """Key of the topology alone."""
        return self.key.split("-")[0]

    @property
    def schedule(self) -> str:
        """How the product is organised; one thread per element, outputs stored per element."""
        return "element"

    @property
    def is_folded(self) -> bool:
        """Whether it loops over long rows."""
        return any(slot.is_row for slot in self.slots)

    def value_starts(self, capacity: int, *, varying: bool = False) -> list[int]:
        """Position of the first value of each entry among those of an element, and the total.

        An entry per item has ``capacity`` values on end. With ``varying``, constants take no room.
        """
        starts = [0]
        for entry in self.entries:
            width = capacity if entry.per_item else 1
            starts.append(starts[-1] + (0 if varying and entry.output is None else width))
        return starts

    @property
    def tangent_offsets(self) -> tuple[int, ...]:
        """First local column of each slot (meaningless for data slots)."""
        offsets: list[int] = []
        total = 0
        for slot in self.slots:
            offsets.append(total)
            total += slot.tangent
        return tuple(offsets)


@dataclass(frozen=True, slots=True)
class Topology:
    """A residual graph in canonical form with the kind of each slot.

    Attributes:
        serial: decides equality (not the hash alone).
        graph: canonical graph, simplified.
        slots: in canonical order.
        arguments: for each slot, the argument of the traced function.
        name: name of the first function that had this topology.
        losses: which outputs of the graph are residuals, and which belong to robust losses.
    """

    serial: bytes
    graph: Graph
    slots: tuple[Slot, ...]
    arguments: tuple[int, ...]
    name: str
    losses: LossBlocks

    @property
    def residual_size(self) -> int:
        """Residuals per element."""
        return self.losses.residual_size

    @property
    def key(self) -> str:
        """128-bit key of topology and slot kinds, hexadecimal."""
        return blake2b(self.serial, digest_size=16).hexdigest()


def topology_of(graph: Graph, slots: Sequence[Slot], losses: LossBlocks | None = None) -> Topology:
    """Canonical form of a residual graph whose argument k is gathered as ``slots[k]``.

    Args:
        graph: residuals, and after them what belongs to losses.
        slots: one per argument.
        losses: which output is what; residuals alone by default.

    Raises:
        ShapeError: the number of slots or a shape differs from the graph's arguments.
    """
    if [(s.shape, s.is_row) for s in slots] != [(a.shape, a.is_row) for a in graph.arguments]:
        raise ShapeError(
            f"graph {graph.name!r}: slots of shapes {[s.shape for s in slots]}, "
            f"its arguments have {[a.shape for a in graph.arguments]}"
        )
    canonical = simplify(graph).canonical
    ordered = tuple(slots[a] for a in canonical.arguments)
    serial = (
        canonical.serial + repr([(s.kind.value, s.ambient, s.tangent) for s in ordered]).encode()
    )
    for k, slot in enumerate(ordered):
        if slot.chart is not None:
            serial += b"%d:" % k + slot.chart.serial
    blocks = losses or LossBlocks(len(graph.outputs))
    if blocks.count:
        serial += repr((blocks.residual_size, blocks.count, blocks.orders)).encode()
    return Topology(
        serial,
        canonical.graph(graph.name),
        ordered,
        canonical.arguments,
        graph.name,
        blocks,
    )


def energy_of(topology: Topology) -> Topology:
    """The topology whose single residual is the cost of an element, ½‖r‖² or ½Σρ.

    Its Jacobian is the element's part of the gradient: one row, whatever the number of residuals.
    ``arguments`` say which slot of ``topology`` each slot is.
    """
    return topology_of(make_kernel(topology, Product.COST).graph, topology.slots)


def make_kernel(topology: Topology, product: Product) -> Kernel:
    """The kernel of a product; equal topologies give the identical object."""
    return _make_kernel(topology.serial, product, _Uncompared(topology))


def kernel_cache() -> Any:
    """The kernels in memory, as ``lru_cache`` shows them."""
    return _make_kernel


class _Uncompared:
    """Carries a topology past ``lru_cache``, whose key is the serialisation alone."""

    __slots__ = ("topology",)

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Uncompared)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=1024)
def _make_kernel(serial: bytes, product: Product, carried: _Uncompared) -> Kernel:
    topology = carried.topology
    graph, slots, losses = topology.graph, topology.slots, topology.losses
    base = Kernel(
        name=f"{product.value}_{topology.key[:8]}",
        product=product,
        slots=slots,
        graph=graph,
        residual_size=topology.residual_size,
        columns=sum(s.tangent for s in slots),
        entries=(),
        key=f"{topology.key}-{product.value}-{GENERATOR_VERSION}",
    )
    if product is Product.RESIDUAL and not losses.count:
        return base

    def derive() -> Kernel:
        if product is Product.COST:
            return replace(base, graph=_cost(graph, losses))
        if product is Product.RESIDUAL_JACOBIAN:
            return _with_jacobian(base, losses)
        return replace(base, graph=cost_residual(graph, losses))

    # Latin-1 takes every byte for a character of its own.
    key = (base.key, serial.decode("latin-1"))
    return kept("derived graph", key, derive, _document, lambda d: _of_document(base, d))


def _document(kernel: Kernel) -> dict[str, Any]:
    return {
        "graph": graph_document(kernel.graph, rows=True),
        "entries": [[e.row, e.column, e.output, e.constant.hex(), e.per_item]
                    for e in kernel.entries],
    }  # fmt: skip


def _of_document(base: Kernel, document: dict[str, Any]) -> Kernel:
    return replace(
        base,
        graph=graph_of_document(document["graph"]),
        entries=tuple(
            JacobianEntry(row, column, output, float.fromhex(constant), per_item)
            for row, column, output, constant, per_item in document["entries"]
        ),
    )


def _cost(graph: Graph, losses: LossBlocks) -> Graph:
    """½‖r‖², or ½Σρ."""
    b = Builder(RULES)
    if losses.count:
        graph = loss_sum(graph, losses)
    ids = b.absorb(graph.nodes)
    if losses.count:
        total = ids[graph.outputs[0]]
    else:
        total = b.constant(0.0)
        for o in graph.outputs:
            total = b.apply("add", total, b.apply("mul", ids[o], ids[o]))
    half = b.apply("mul", b.constant(0.5), total)
    return Graph.build(b, [half], graph.arguments, (), f"{graph.name}_cost")


def _with_jacobian(base: Kernel, losses: LossBlocks) -> Kernel:
    """Attach the Jacobian; zeros and constants of it are facts of the kernel, not outputs."""
    wrt = [k for k, s in enumerate(base.slots) if s.tangent]
    charts = [s.chart for s in base.slots]
    if losses.count:
        plain = value_and_tangent_jacobian(residuals_only(base.graph, losses), wrt, charts)
        both = corrected(base.graph, plain, losses)
    else:
        both = value_and_tangent_jacobian(base.graph, wrt, charts)
    m, n = base.residual_size, base.columns
    outputs = list(both.outputs[:m])
    entries: list[JacobianEntry] = []
    per_item = [s.is_row for s in base.slots for _ in range(s.tangent)]
    for position, node in enumerate(both.outputs[m:]):
        row, column = divmod(position, n)
        value = both.nodes[node]
        literal = cast(float, value.payload) if value.op == "const" else None
        if literal is None:
            entries.append(JacobianEntry(row, column, len(outputs) - m, 0.0, per_item[column]))
            outputs.append(node)
        elif literal != 0.0:
            entries.append(JacobianEntry(row, column, None, float(literal), per_item[column]))
    graph = Graph(both.nodes, tuple(outputs), both.arguments, (len(outputs),), both.name)
    return replace(base, graph=graph, entries=tuple(entries))
