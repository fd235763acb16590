"""The program of a device-resident solve: buffers, pipelines and dispatch sequences.

Sequences: ``linearize``, ``product`` + ``update`` (one CG step is both), ``trial``, ``gradient``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autograd_gpu.codegen.element_kernels import element_kernel_name, stage_names
from autograd_gpu.codegen.element_stages import cell_quads
from autograd_gpu.codegen.incidence import WORKGROUP_SIZE, SolveStructure, factor_words
from autograd_gpu.codegen.program import (
    BindingKind,
    BufferRole,
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    SequenceSpec,
)
from autograd_gpu.codegen.slice_kernels import slice_stride
from autograd_gpu.codegen.solve_kernels import (
    gradient_kernels,
    solve_kernels,
)
from autograd_gpu.codegen.solve_layout import (
    ELEMENT_SUMS,
    RECORD_NUMBERS,
    STATE_WORDS,
    STEP_SUMS,
    Vector,
    control_rows,
)
from autograd_gpu.codegen.solve_texts import SolveKernel

WORD = 4

LARGEST_POINT = 1 << 17
"""Bytes of a point that comes back with the record of every step: the copy is part of the same
submission and takes microseconds. Larger points stay on the device."""


def padded(count: int, workgroup_size: int = WORKGROUP_SIZE) -> int:
    """``count`` rounded up to whole workgroups."""
    return math.ceil(count / workgroup_size) * workgroup_size


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveSizes:
    """Sizes of one problem, from which every offset follows.

    Attributes:
        structure: what is generated.
        nodes: nodes per node set.
        elements: elements per group.
        table_words: words of the index and data tables.
        data_numbers: numbers of the data that stand apart from those tables, and one more.
        slices: of lists of heavy nodes.
    """

    structure: SolveStructure
    nodes: tuple[int, ...]
    elements: tuple[int, ...]
    table_words: int
    data_numbers: int = 0
    slices: int = 0

    @property
    def vector_bases(self) -> list[int]:
        """First unit of each node set in a vector; the last entry is a vector's length."""
        lanes = self.structure.lanes
        widths = [n.width // lanes for n in self.structure.node_sets]
        return running_total([n * w for n, w in zip(self.nodes, widths, strict=True)])

    @property
    def length(self) -> int:
        """Units of a vector."""
        return self.vector_bases[-1]

    @property
    def components(self) -> int:
        """Numbers of a vector."""
        return self.length * self.structure.lanes

    @property
    def factor_sizes(self) -> list[int]:
        """Quads per node of each set's block factor."""
        sets = range(len(self.structure.node_sets))
        return [math.ceil(factor_words(self.structure, k) / 4) for k in sets]

    @property
    def factor_bases(self) -> list[int]:
        """First quad of each node set's factors; the last entry is the total."""
        return running_total([n * f for n, f in zip(self.nodes, self.factor_sizes, strict=True)])

    @property
    def product_groups(self) -> list[int]:
        """First partial sum of each node set's gather; the last entry is their number."""
        teams = [n.team for n in self.structure.node_sets]
        size = self.structure.workgroup_size
        return running_total(
            [math.ceil(n * t / size) for n, t in zip(self.nodes, teams, strict=True)]
        )

    @property
    def update_groups(self) -> list[int]:
        """First workgroup of each node set in ``cg_update``; the last entry is their number."""
        return running_total([math.ceil(n / self.structure.workgroup_size) for n in self.nodes])

    @property
    def element_workgroups(self) -> list[int]:
        """First workgroup of each group in kernels over elements; the last entry is their number.

        Counted over the kernels of all sizes of workgroups, one after the other.
        """
        starts = [0] * (len(self.elements) + 1)
        for size, groups in self.structure.element_classes.items():
            for g in groups:
                starts[g] = starts[-1]
                starts[-1] += math.ceil(self.elements[g] / size)
        return starts

    def element_invocations(self, size: int) -> int:
        """Of a kernel over the elements of all groups with such workgroups."""
        groups = self.structure.element_classes[size]
        return sum(padded(self.elements[g], size) for g in groups)

    @property
    def record_quads(self) -> int:
        """Quads of all stored records."""
        groups = self.structure.groups
        return sum(n * g.record_quads for n, g in zip(self.elements, groups, strict=True))

    @property
    def jacobian_bases(self) -> list[int]:
        """First quad of each group's records, behind which its cells lie; the last is the total."""
        sizes = [g.record_quads + cell_quads(g) for g in self.structure.groups]
        return running_total([n * size for n, size in zip(self.elements, sizes, strict=True)])

    @property
    def partial_bases(self) -> tuple[int, int, int, int, int]:
        """Numbers at which step sums, element sums, maxima and slices begin, and the total."""
        products = self.product_groups[-1]
        steps = math.ceil(self.length / self.structure.workgroup_size)
        elements = self.element_workgroups[-1]
        first = 2 * products
        second = first + STEP_SUMS * steps
        third = second + ELEMENT_SUMS * elements
        fourth = third + products
        # Those of a linearization, which are more than those of a product.
        numbers = slice_stride(self.structure, product=False)
        return first, second, third, fourth, fourth + self.slices * numbers


def running_total(sizes: Sequence[int]) -> list[int]:
    """0, then the sum of the sizes so far: where each begins, and where the last ends."""
    total = 0
    starts = [0]
    for size in sizes:
        total += size
        starts.append(total)
    return starts


def pipeline_of(kernel: SolveKernel) -> PipelineSpec:
    """A kernel as the program describes it."""
    kinds: list[BindingKind] = ["uniform"]
    for buffer in kernel.buffers[1:]:
        kinds.append("write" if buffer in kernel.writes else "read")
    return PipelineSpec(
        name=kernel.name,
        source=kernel.source,
        entry_point="main",
        bindings=tuple(kinds),
        workgroup_size=kernel.workgroup_size,
    )


def _buffers(sizes: SolveSizes) -> list[BufferSpec]:
    number = sizes.structure.real.words
    words: list[tuple[str, int, BufferRole]] = [
        ("control", 4 * control_rows(sizes.structure), "uniform"),
        ("parameters", number * 2 * sizes.components, "state"),
        ("vectors", number * len(Vector) * sizes.components, "state"),
        ("factors", number * 4 * sizes.factor_bases[-1], "state"),
        ("tables", sizes.table_words, "upload"),
        ("jacobian", number * max(4, 4 * sizes.jacobian_bases[-1]), "state"),
        ("partials", number * sizes.partial_bases[4], "state"),
        ("state", STATE_WORDS, "state"),
        ("record", number * RECORD_NUMBERS, "download"),
        ("result", number * sizes.components, "download"),
    ]
    if sizes.structure.numbers_apart:
        words.append(("numbers", number * sizes.data_numbers, "upload"))
    return [BufferSpec(name=n, size=WORD * max(1, w), role=role) for n, w, role in words]


def _of_step(sizes: SolveSizes) -> tuple[str, ...]:
    """What the host reads after a step: the record, and both halves of points if they are small."""
    point = WORD * sizes.structure.real.words * sizes.components
    return ("record", "parameters") if point <= LARGEST_POINT else ("record",)


def element_dispatches(
    sizes: SolveSizes, kernels: Mapping[str, SolveKernel], what: str
) -> list[DispatchSpec]:
    """Of the kernels over elements called ``what``, for each size of their workgroups in turn."""
    structure = sizes.structure
    return [
        DispatchSpec(
            pipeline=name,
            buffers=kernels[name].buffers,
            invocations=max(1, sizes.element_invocations(size)),
        )
        for size in structure.element_classes
        for name in stage_names(element_kernel_name(structure, what, size), kernels)
    ]


def solve_program(sizes: SolveSizes) -> Program:
    """Program of a Levenberg-Marquardt solve with CG on the device."""
    structure = sizes.structure
    kernels = solve_kernels(structure)
    sets = range(len(structure.node_sets))

    def dispatch(name: str, invocations: int) -> DispatchSpec:
        return DispatchSpec(
            pipeline=name, buffers=kernels[name].buffers, invocations=max(1, invocations)
        )

    gathers = [n * s.team for n, s in zip(sizes.nodes, structure.node_sets, strict=True)]
    linearize = [dispatch(f"linearize_nodes_{k}", gathers[k]) for k in sets]
    linearize = [*element_dispatches(sizes, kernels, "linearize_elements"), *linearize]
    trial = [
        dispatch("trial_step", sizes.length),
        *element_dispatches(sizes, kernels, "trial_elements"),
        dispatch("decide", 1),
    ]
    sliced = sizes.slices * structure.workgroup_size
    if sliced:
        linearize.insert(-len(sets), dispatch("slices_linearize", sliced))
    update = dispatch("cg_update", structure.workgroup_size * sizes.update_groups[-1])
    products = tuple(dispatch(f"cg_product_{k}", gathers[k]) for k in sets)
    if sliced:
        products = (dispatch("slices_product", sliced), *products)
    return Program(
        buffers=tuple(_buffers(sizes)),
        pipelines=tuple(pipeline_of(k) for k in kernels.values()),
        sequences={
            "linearize": SequenceSpec(dispatches=tuple(linearize)),
            "product": SequenceSpec(dispatches=products),
            "cg": SequenceSpec(dispatches=(*products, update)),
            "trial": SequenceSpec(dispatches=tuple(trial), downloads=_of_step(sizes)),
            "try": SequenceSpec(dispatches=tuple(trial)),
        },
    )


def gradient_program(sizes: SolveSizes) -> Program:
    """Jᵀr by gathering, everything recomputed: ``dispatch``, or ``gradient`` with read-back."""
    structure = sizes.structure
    kernels = gradient_kernels(structure).values()
    dispatches = tuple(
        DispatchSpec(pipeline=k.name, buffers=k.buffers, invocations=n * s.team)
        for k, n, s in zip(kernels, sizes.nodes, structure.node_sets, strict=True)
    )
    used = {b for k in kernels for b in k.buffers}
    return Program(
        buffers=tuple(b for b in _buffers(sizes) if b.name in used),
        pipelines=tuple(pipeline_of(k) for k in kernels),
        sequences={
            "dispatch": SequenceSpec(dispatches=dispatches),
            "gradient": SequenceSpec(dispatches=dispatches, downloads=("result",)),
        },
    )
