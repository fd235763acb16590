"""Gather form of a least-squares problem: nodes that own their sums, and what is summed.

Accumulation into shared parameters is turned inside out. A *node* is a block of parameters (or
several arrays' blocks of equal index, such as position and rotation of one vertex). An
*incidence kind* is "this node is seen by elements of that group through those slots". One thread,
or a team of threads, per node walks its incident elements and sums their contributions: no
atomics, and the same bits in every run.

This module builds, as IR, what one incidence contributes. Jacobian entries, or entries of an
element's JᵀJ and Jᵀr, are either loaded (``stored``) or recomputed from parameters and data;
constants are literals in all cases and are never stored nor loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from autograd_gpu.codegen.block_factor import block_factor, lower_index
from autograd_gpu.codegen.element_blocks import BlockRecord
from autograd_gpu.codegen.element_parts import (
    VECTOR,
    Contribution,
    ElementParts,
    LoadedBlocks,
    column_offsets,
)
from autograd_gpu.codegen.kept import kept
from autograd_gpu.codegen.kernel import Kernel
from autograd_gpu.codegen.reversal import kind_contribution
from autograd_gpu.codegen.wgsl_reals import FLOAT32, WGSL_REALS, WgslReal
from autograd_gpu.ir import Graph

WORKGROUP_SIZE = 256
"""Threads of a workgroup unless a schedule says otherwise; what every WebGPU device grants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSlot:
    """Where a parameter slot lives.

    Attributes:
        node_set: which set of nodes.
        offset: first component inside a node.
        width: number of components.
        place: slots of a group with the same place gather the same node of an element.
    """

    node_set: int
    offset: int
    width: int
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSet:
    """Nodes of one kind: components per node, threads that share one node's sum, mask or not."""

    width: int
    team: int
    masked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStructure:
    """A residual group as the gather kernels see it.

    Attributes:
        kernel: residuals and Jacobian, from which sums are made.
        residual: residuals whose half square is the cost; others than those under a robust loss.
        slots: where each slot lives; None for data.
        stored: a record is kept per element: residuals and Jacobian …
        blocks: … or, if this is given, entries of JᵀJ and Jᵀr.
        stage_cost: what records and trial residuals are cut by, see ``element_stages``; None if
            not at all.
    """

    kernel: Kernel
    residual: Kernel
    slots: tuple[NodeSlot | None, ...]
    stored: bool
    blocks: BlockRecord | None = None
    stage_cost: int | None = None

    @property
    def places(self) -> tuple[NodeSlot, ...]:
        """One representative slot per place, in place order."""
        found: dict[int, NodeSlot] = {}
        for slot in self.slots:
            if slot is not None:
                found.setdefault(slot.place, slot)
        return tuple(found[k] for k in sorted(found))

    @property
    def stored_entries(self) -> int:
        """Entries of the Jacobian, or of stored JᵀJ, that vary from element to element."""
        if self.blocks is not None:
            return self.blocks.product_count
        return sum(e.output is not None for e in self.kernel.entries)

    @property
    def stored_residuals(self) -> int:
        """Residuals, or entries of stored Jᵀr, of an element."""
        return self.kernel.residual_size if self.blocks is None else self.blocks.gradient_count

    @property
    def record_quads(self) -> int:
        """Stored entries and residuals of an element, in loads of four words; 0 if recomputed."""
        words = self.stored_entries + self.stored_residuals
        return math.ceil(words / 4) if self.stored else 0

    @property
    def data_sizes(self) -> tuple[int, ...]:
        """Numbers per element of each slot; 0 for parameters."""
        return tuple(
            s.ambient if n is None else 0
            for s, n in zip(self.kernel.slots, self.slots, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Incidences of one place of one group, or of both places of a symmetric one.

    Attributes:
        group: which group.
        place: which place of it is this node.
        mirrored: incidences of the other place are in the same list, with the two places
            exchanged in its tables: |x_j - x_i| looks the same from either end.
        unit: incidence k belongs to node k, one each: no list is walked.
        direct: incidence k is element k: no element number is loaded.
        reverse: every element (a, b) has a reverse (b, a) whose data are the same but for these
            signs, per slot: one list serves both places, and an incidence adds what the element
            and its reverse give to the node (``codegen.reversal``). None if it is not so.
        sliced: lists of heavy nodes are summed slice by slice first; a resident solve's kernels
            add those sums, all others walk the lists as if they were not cut.
        walked: some nodes walk their own list: false if all that have incidences are heavy.
    """

    group: int
    place: int
    mirrored: bool
    unit: bool
    direct: bool
    reverse: tuple[tuple[int, ...], ...] | None = None
    sliced: bool = False
    walked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveStructure:
    """Everything about a problem that generated text depends on; no sizes, no numbers.

    Attributes:
        node_sets: in the order of the solver's vectors.
        groups: residual groups.
        kinds: per node set, the incidences it sums.
        damping: name of the damping form.
        workgroup_size: threads of a workgroup, a power of two, of kernels that serve nodes or all
            groups; no team is larger.
        element_sizes: the same of kernels over the elements of single groups, one per group; ()
            if all are like ``workgroup_size``.
        precision: of all numbers and sums, one of ``WGSL_REALS``.
    """

    node_sets: tuple[NodeSet, ...]
    groups: tuple[GroupStructure, ...]
    kinds: tuple[tuple[Kind, ...], ...]
    damping: str
    workgroup_size: int = WORKGROUP_SIZE
    element_sizes: tuple[int, ...] = ()
    precision: str = FLOAT32.precision

    def element_size(self, g: int) -> int:
        """Threads of a workgroup of kernels over the elements of group ``g``."""
        return self.element_sizes[g] if self.element_sizes else self.workgroup_size

    @property
    def element_classes(self) -> dict[int, tuple[int, ...]]:
        """Groups by those threads, in the order in which their workgroups are counted."""
        sizes = [self.element_size(g) for g in range(len(self.groups))]
        return {
            size: tuple(g for g, own in enumerate(sizes) if own == size)
            for size in sorted(set(sizes), reverse=True)
        }

    @property
    def real(self) -> WgslReal:
        """The number type."""
        return WGSL_REALS[self.precision]

    @property
    def numbers_apart(self) -> bool:
        """Data have a buffer of their own: words of a table hold no number wider than f32."""
        return self.real.words > 1

    @property
    def lanes(self) -> int:
        """Components that are loaded and stored at once.

        1, 2 or 4, whatever divides every node, in float32; 1 in a wider type, which WGSL has no
        vectors of that every device can load.
        """
        if self.numbers_apart:
            return 1
        return math.gcd(4, *(nodes.width for nodes in self.node_sets))


def group_key(group: GroupStructure) -> str:
    """Text that stands for a group; equal for equal groups, in every process."""
    by_blocks = group.blocks is not None
    how = (group.stored, by_blocks, group.stage_cost)
    return repr((group.kernel.key, group.residual.key, group.slots, *how))


def structure_key(structure: SolveStructure) -> str:
    """Text that stands for a structure; equal for equal ones, in every process."""
    groups = [group_key(group) for group in structure.groups]
    sizes = (structure.workgroup_size, structure.element_sizes)
    options = (structure.damping, *sizes, structure.precision)
    return repr((structure.node_sets, groups, structure.kinds, *options))


@lru_cache(maxsize=512)
def product_contribution(group: GroupStructure, place: int) -> Contribution:
    """Jᵀ(J v) restricted to the node at ``place``; targets are its components."""
    if group.blocks is not None:
        loaded = LoadedBlocks(group, group.blocks)
        return loaded.contribution(loaded.image(place), "product")
    parts = ElementParts(group)
    b = parts.builder
    v = [b.input(parts.extra + VECTOR, c) for c in range(group.kernel.columns)]
    columns = column_offsets(group)
    # Own columns first, so that symmetric groups give the same sums from either end.
    image = [
        parts.total(
            [(row[c], v[c]) for c in sorted(row, key=lambda c: columns[c][0].place != place)]
        )
        for row in parts.rows
    ]
    return transposed(parts, place, image, "product")


@lru_cache(maxsize=512)
def image_graph(group: GroupStructure) -> Graph:
    """J v of one element: an output per residual."""
    parts = ElementParts(group)
    v = [parts.builder.input(parts.extra + VECTOR, c) for c in range(group.kernel.columns)]
    image = [parts.total([(node, v[c]) for c, node in row.items()]) for row in parts.rows]
    return parts.freeze(image, "image")


@lru_cache(maxsize=512)
def gradient_contribution(group: GroupStructure, place: int) -> Contribution:
    """Jᵀr restricted to the node at ``place``; targets are its components."""
    if group.blocks is not None:
        loaded = LoadedBlocks(group, group.blocks)
        return loaded.contribution(loaded.gradient(place), "gradient")
    parts = ElementParts(group)
    return transposed(parts, place, parts.residual, "gradient")


def transposed(parts: ElementParts, place: int, image: Sequence[int], name: str) -> Contribution:
    """Jᵀ times ``image``, a node per residual, restricted to the node at ``place``."""
    own = parts.own_rows(place)
    targets = sorted({a for row in own for a in row})
    outputs = [
        parts.total([(row[a], image[i]) for i, row in enumerate(own) if a in row]) for a in targets
    ]
    return Contribution(parts.freeze(outputs, name), tuple(targets))


@lru_cache(maxsize=512)
def linearize_contribution(group: GroupStructure, place: int, width: int) -> Contribution:
    """Gradient and diagonal block of the node at ``place``.

    Targets 0 … width - 1 are the gradient's components, then the packed lower triangle of JᵀJ.
    """
    if group.blocks is not None:
        loaded = LoadedBlocks(group, group.blocks)
        block = {width + k: node for k, node in loaded.diagonal(place).items()}
        return loaded.contribution(loaded.gradient(place) | block, "linearize")
    parts = ElementParts(group)
    own = parts.own_rows(place)
    present = sorted({a for row in own for a in row})
    outputs: list[int] = []
    targets: list[int] = []
    for a in present:
        outputs.append(
            parts.total([(row[a], parts.residual[i]) for i, row in enumerate(own) if a in row])
        )
        targets.append(a)
    for a in present:
        for b in present:
            if b <= a:
                pairs = [(row[a], row[b]) for row in own if a in row and b in row]
                node = parts.total(pairs)
                if parts.builder.literal(node) != 0.0:
                    outputs.append(node)
                    targets.append(width + lower_index(a, b))
    return Contribution(parts.freeze(outputs, "linearize"), tuple(targets))


def block_pattern(structure: SolveStructure, node_set: int) -> frozenset[int]:
    """Packed entries of a node set's diagonal block that are not structurally zero."""
    width = structure.node_sets[node_set].width
    found = {lower_index(a, a) for a in range(width)}
    for kind in structure.kinds[node_set]:
        group = structure.groups[kind.group]
        make = partial(linearize_contribution, width=width)
        contribution = kind_contribution(group, kind, make)
        found |= {t - width for t in contribution.targets if t >= width}
    return frozenset(found)


@lru_cache(maxsize=128)
def factor_words(structure: SolveStructure, node_set: int) -> int:
    """Numbers stored per node for the factor of its diagonal block."""
    width = structure.node_sets[node_set].width
    return kept(
        "factor size",
        (structure_key(structure), str(node_set)),
        lambda: block_factor(width, block_pattern(structure, node_set)).stored,
        encode=int,
        decode=int,
    )


PRODUCTS = ("gradient", "jtj_product", "block_diagonal")
"""Jᵀr, JᵀJ v, and the packed lower triangles of the nodes' diagonal blocks of JᵀJ."""


@dataclass(frozen=True, slots=True)
class ElementContribution:
    """What one element adds to the nodes at all its places; J is computed once.

    Attributes:
        graph: outputs in the order of ``targets``; nothing is loaded from stored records.
        targets: (place, component), or (place, packed position) for ``block_diagonal``.
    """

    graph: Graph
    targets: tuple[tuple[int, int], ...]


@lru_cache(maxsize=512)
def element_contribution(group: GroupStructure, product: str) -> ElementContribution:
    """All contributions of one element of ``group`` to one of ``PRODUCTS``."""
    parts = ElementParts(replace(group, stored=False, blocks=None))
    b = parts.builder
    image = parts.residual
    if product == "jtj_product":
        v = [b.input(parts.extra + VECTOR, c) for c in range(group.kernel.columns)]
        image = [parts.total([(node, v[c]) for c, node in row.items()]) for row in parts.rows]
    outputs: list[int] = []
    targets: list[tuple[int, int]] = []
    for slot in group.places:
        own = parts.own_rows(slot.place)
        sums = _block(parts, own) if product == "block_diagonal" else _sums(parts, own, image)
        outputs += sums.values()
        targets += [(slot.place, target) for target in sums]
    return ElementContribution(parts.freeze(outputs, product), tuple(targets))


@lru_cache(maxsize=512)
def block_contribution(group: GroupStructure, place: int) -> Contribution:
    """Diagonal block of the node at ``place``; targets are packed positions."""
    if group.blocks is not None:
        loaded = LoadedBlocks(group, group.blocks)
        return loaded.contribution(loaded.diagonal(place), "block")
    parts = ElementParts(group)
    sums = _block(parts, parts.own_rows(place))
    return Contribution(parts.freeze(list(sums.values()), "block"), tuple(sums))


def _sums(
    parts: ElementParts, own: Sequence[dict[int, int]], image: Sequence[int]
) -> dict[int, int]:
    """Component -> Σ own · image."""
    return {
        a: parts.total([(row[a], image[i]) for i, row in enumerate(own) if a in row])
        for a in sorted({a for row in own for a in row})
    }


def _block(parts: ElementParts, own: Sequence[dict[int, int]]) -> dict[int, int]:
    """Packed position -> entry of ownᵀ own, structural zeros left out."""
    present = sorted({a for row in own for a in row})
    block: dict[int, int] = {}
    for a in present:
        for b in (b for b in present if b <= a):
            node = parts.total([(row[a], row[b]) for row in own if a in row and b in row])
            if parts.builder.literal(node) != 0.0:
                block[lower_index(a, b)] = node
    return block
