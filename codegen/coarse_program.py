"""The program of a device-resident solve with a coarse space: that of the solve, and more.

Sequences besides those of ``solve_program``: ``coarse`` (after ``linearize``: matrix, inverse,
start of CG), of which ``coarse_assemble`` is the first part, to look at; ``coarse_product`` and
``coarse_cg`` in place of ``product`` and ``cg``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from autograd_gpu.codegen.coarse_kernels import coarse_kernels
from autograd_gpu.codegen.coarse_layout import STRIP, TILE
from autograd_gpu.codegen.coarse_space import CoarseStructure
from autograd_gpu.codegen.incidence import WORKGROUP_SIZE
from autograd_gpu.codegen.program import BufferRole, BufferSpec, DispatchSpec, Program, SequenceSpec
from autograd_gpu.codegen.solve_program import (
    WORD,
    SolveSizes,
    pipeline_of,
    running_total,
    solve_program,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseSizes:
    """Sizes of a problem's coarse space, from which every offset follows.

    Attributes:
        solve: of the problem.
        structure: what is generated.
        aggregate_nodes: nodes per aggregate of each node set; a power of two up to a workgroup's
            256 nodes, a multiple of them above.
        pieces: parts of pairs of aggregates.
        table_words: words of ``coarse``.
    """

    solve: SolveSizes
    structure: CoarseStructure
    aggregate_nodes: tuple[int, ...]
    pieces: int
    table_words: int

    @property
    def aggregate_bases(self) -> list[int]:
        """First aggregate of each node set; the last entry is their number."""
        return aggregate_bases(self.structure, self.solve.nodes, self.aggregate_nodes)

    @property
    def unknown_bases(self) -> list[int]:
        """First coarse unknown of each node set; the last entry is their number."""
        bases, modes = self.aggregate_bases, self.structure.modes
        return running_total([(bases[k + 1] - bases[k]) * m.count for k, m in enumerate(modes)])

    @property
    def unknowns(self) -> int:
        """Rows of the coarse matrix, whole tiles."""
        return math.ceil(self.unknown_bases[-1] / TILE) * TILE

    def chunk_nodes(self, node_set: int) -> int:
        """Nodes whose part of Pᵀw one workgroup of a product sums."""
        team = self.structure.solve.node_sets[node_set].team
        return min(self.aggregate_nodes[node_set], WORKGROUP_SIZE // team)

    def row_lanes(self, node_set: int) -> int:
        """Threads of an update that share a row of the coarse system, a power of two."""
        aggregates = max(1, WORKGROUP_SIZE // self.aggregate_nodes[node_set])
        rows = aggregates * self.structure.modes[node_set].count
        return 1 << int(math.log2(WORKGROUP_SIZE // max(1, rows)))

    @property
    def chunk_bases(self) -> list[int]:
        """First word of each node set's sums over chunks; the last entry is their number."""
        return running_total(
            [
                math.ceil(n / self.chunk_nodes(k)) * self.structure.modes[k].count
                for k, n in enumerate(self.solve.nodes)
            ]
        )

    @property
    def sum_bases(self) -> tuple[int, int, int, int]:
        """Words at which blocks, vectors and the diagonal begin, and the total."""
        blocks = self.chunk_bases[-1]
        slots = blocks + self.pieces * self.structure.most**2
        diagonal = slots + 4 * self.unknowns
        return blocks, slots, diagonal, diagonal + self.unknowns + 2

    @property
    def inversion_steps(self) -> int:
        """Dispatches of the inversion."""
        return self.unknowns // TILE


def aggregate_bases(
    structure: CoarseStructure, nodes: tuple[int, ...], aggregate_nodes: tuple[int, ...]
) -> list[int]:
    """First aggregate of each node set, none where there are no modes; then their number."""
    return running_total(
        [
            math.ceil(n / size) if m.count else 0
            for n, size, m in zip(nodes, aggregate_nodes, structure.modes, strict=True)
        ]
    )


def coarse_program(sizes: CoarseSizes) -> Program:
    """Program of a Levenberg-Marquardt solve that can switch a coarse space on and off."""
    base = solve_program(sizes.solve)
    kernels = coarse_kernels(sizes.structure)

    def dispatch(name: str, workgroups: int) -> DispatchSpec:
        return DispatchSpec(
            pipeline=name, buffers=kernels[name].buffers, invocations=WORKGROUP_SIZE * workgroups
        )

    n = sizes.unknowns
    tiles = n // TILE
    invert = [
        dispatch(f"coarse_invert_{k % 2}", tiles * math.ceil(tiles / STRIP))
        for k in range(sizes.inversion_steps)
    ]
    update_groups = sizes.solve.update_groups[-1]
    assemble = (
        dispatch("coarse_pieces", sizes.pieces),
        dispatch("coarse_matrix", math.ceil(n * n / WORKGROUP_SIZE)),
    )
    start = (
        *invert,
        dispatch("coarse_restrict", sizes.aggregate_bases[-1]),
        dispatch("coarse_prolong", update_groups),
    )
    plain = base.sequences["product"].dispatches
    before = len(plain) - len(sizes.structure.modes)  # sums of slices, if there are any
    products = (
        *plain[:before],
        *(
            dispatch(f"cg_product_coarse_{k}", sizes.solve.product_groups[k + 1] - first)
            if sizes.structure.modes[k].count
            else plain[before + k]
            for k, first in enumerate(sizes.solve.product_groups[:-1])
        ),
    )
    words: tuple[tuple[str, int, BufferRole], ...] = (
        ("coarse", sizes.table_words, "upload"),
        ("coarse_sums", sizes.sum_bases[3], "state"),
        ("coarse_matrix", 2 * n * n, "state"),
    )
    return Program(
        buffers=(
            *base.buffers,
            *(BufferSpec(name=name, size=WORD * size, role=role) for name, size, role in words),
        ),
        pipelines=(*base.pipelines, *(pipeline_of(k) for k in kernels.values())),
        sequences={
            **base.sequences,
            "coarse_assemble": SequenceSpec(dispatches=assemble),
            "coarse": SequenceSpec(dispatches=(*assemble, *start)),
            "coarse_product": SequenceSpec(dispatches=products),
            "coarse_cg": SequenceSpec(
                dispatches=(*products, dispatch("cg_update_coarse", update_groups))
            ),
        },
    )
