"""The program of single products of a problem: Jᵀr, JᵀJ v, diagonal blocks of JᵀJ.

One sequence per product (``PRODUCTS``), under any of the accumulations of ``scatter_kernels``.
"""

from __future__ import annotations

from dataclasses import dataclass

from autograd_gpu.codegen.incidence import PRODUCTS
from autograd_gpu.codegen.program import (
    BufferRole,
    BufferSpec,
    DispatchSpec,
    Program,
    SequenceSpec,
)
from autograd_gpu.codegen.scatter_kernels import (
    BLOCK_DIAGONAL,
    OperatorStructure,
    operator_kernels,
    output_name,
    partial_sums,
    triangle,
)
from autograd_gpu.codegen.solve_kernels import record_kernels
from autograd_gpu.codegen.solve_layout import STATE_WORDS
from autograd_gpu.codegen.solve_program import (
    SolveSizes,
    element_dispatches,
    padded,
    pipeline_of,
    running_total,
)
from autograd_gpu.codegen.solve_texts import SolveKernel

WORD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSizes:
    """Sizes of one problem's operators, from which every offset follows.

    Attributes:
        structure: what is generated.
        solve: sizes of the problem.
        table_words: words of the tables, those of two-level accumulation included.
        partial_rows: per reduction, its (workgroup, node) pairs.
    """

    structure: OperatorStructure
    solve: SolveSizes
    table_words: int
    partial_rows: tuple[int, ...]

    @property
    def block_bases(self) -> list[int]:
        """First number of each node set's packed blocks; the last entry is the total."""
        sets = self.solve.structure.node_sets
        return running_total(
            [n * triangle(s.width) for n, s in zip(self.solve.nodes, sets, strict=True)]
        )

    def partial_bases(self, product: str) -> list[int]:
        """First number of each reduction's partial sums; the last entry is the total."""
        groups = self.solve.structure.groups
        reductions = self.structure.reductions
        return running_total(
            [
                rows * len(partial_sums(groups[g], product, k))
                for rows, (g, k) in zip(self.partial_rows, reductions, strict=True)
            ]
        )


def _invocations(sizes: OperatorSizes, product: str) -> list[int]:
    """Invocations of each of ``operator_kernels``, in their order."""
    solve, structure = sizes.solve, sizes.structure
    elements = [padded(n, solve.structure.element_size(g)) for g, n in enumerate(solve.elements)]
    counts: list[int] = []
    if structure.gathers:
        sets = solve.structure.node_sets
        counts += [n * s.team for n, s in zip(solve.nodes, sets, strict=True)]
    counts += [elements[g] for g in structure.groups_by("two-level")]
    counts += [solve.nodes[k] * structure.teams[k] for k in structure.reduced_sets]
    if not counts:
        counts.append(sizes.block_bases[-1] if product == BLOCK_DIAGONAL else solve.components)
    atomic = structure.groups_by("atomic-native", "atomic-cas")
    return [*counts, *(elements[g] for g in atomic)]


def _buffers(sizes: OperatorSizes) -> list[BufferSpec]:
    solve = sizes.solve
    number = solve.structure.real.words
    words: list[tuple[str, int, BufferRole]] = [
        ("control", 4 * sizes.structure.control_rows, "uniform"),
        ("parameters", number * solve.components, "state"),
        ("vectors", number * solve.components, "state"),
        ("tables", sizes.table_words, "upload"),
        ("numbers", number * solve.data_numbers, "upload"),
        ("state", STATE_WORDS, "state"),
        ("jacobian", number * 4 * solve.jacobian_bases[-1], "state"),
        ("partials", number * max(sizes.partial_bases(p)[-1] for p in PRODUCTS), "state"),
        ("result", number * solve.components, "download"),
        ("blocks", number * sizes.block_bases[-1], "download"),
    ]
    return [BufferSpec(name=n, size=WORD * max(1, w), role=role) for n, w, role in words]


def operator_program(sizes: OperatorSizes) -> Program:
    """Buffers, pipelines and a sequence per product that reads its result back."""
    # Nodes that gather load what a first dispatch stored; elements always recompute.
    stored: dict[str, SolveKernel] = {}
    if sizes.structure.gathers:
        stored = record_kernels(sizes.structure.solve)
    records = element_dispatches(sizes.solve, stored, "linearize_elements")
    pipelines = [pipeline_of(kernel) for kernel in stored.values()]
    sequences: dict[str, SequenceSpec] = {}
    for product in PRODUCTS:
        kernels = operator_kernels(sizes.structure, product)
        dispatches = [
            DispatchSpec(pipeline=k.name, buffers=k.buffers, invocations=n)
            for k, n in zip(kernels, _invocations(sizes, product), strict=True)
        ]
        known = {p.name for p in pipelines}
        pipelines += [pipeline_of(k) for k in kernels if k.name not in known]
        sequences[product] = SequenceSpec(
            dispatches=(*records, *dispatches), downloads=(output_name(product),)
        )
    used = {b for s in sequences.values() for d in s.dispatches for b in d.buffers}
    used |= {"parameters", "vectors"}  # uploaded whatever the Jacobian depends on
    used |= {"numbers"} if sizes.solve.structure.numbers_apart else set()
    return Program(
        buffers=tuple(b for b in _buffers(sizes) if b.name in used),
        pipelines=tuple(pipelines),
        sequences=sequences,
    )
