"""Kernels that sum the lists of heavy nodes in two levels: slices first, by a workgroup each.

A node that thousands of elements share, or one that all of them do, has more to add than a team of
threads can in good time. Its list is cut into slices of fixed length. A workgroup walks a slice and
adds up in a fixed tree; the kernel of the node adds the slices' sums in their order. What is added
in which order follows from the tables alone, so results have the same bits in every run and on
however many workgroups at once.

A dispatch of its own precedes those of the nodes, for all node sets together: one at a
linearization, one at each product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autograd_gpu.codegen.block_factor import lower_index
from autograd_gpu.codegen.incidence import SolveStructure
from autograd_gpu.codegen.solve_layout import (
    SLICE_WORDS,
    set_row,
    slice_row,
    sliced_kinds,
    slices_row,
)
from autograd_gpu.codegen.solve_texts import (
    Body,
    SliceSums,
    SolveKernel,
    common_context,
    mentions,
    render_kernel,
)

WIDE = 8
"""Words that a thread has in shared memory: sums that are added up at once."""


def sums_of_linearization(width: int) -> int:
    """Gradient and packed diagonal block of a node."""
    return width + lower_index(width, 0)


def slice_stride(structure: SolveStructure, *, product: bool) -> int:
    """Numbers that a slice adds up, at most: those of the widest node that is sliced."""
    widths = [structure.node_sets[k].width for k, _ in sliced_kinds(structure)]
    widest = max(widths, default=0)
    return widest if product else sums_of_linearization(widest)


def with_slices(
    structure: SolveStructure, node_set: int, bodies: Sequence[Body], *, product: bool
) -> list[Body]:
    """Bodies of all kinds of a node set; sliced ones say where the sums of slices are."""
    stride, all_row = slice_stride(structure, product=product), slices_row(structure)
    found: list[Body] = []
    for k, (kind, body) in enumerate(zip(structure.kinds[node_set], bodies, strict=True)):
        if kind.sliced:
            row = slice_row(structure, node_set, k)
            sums = SliceSums(row=row, all_row=all_row, stride=stride, complete=not kind.walked)
            body = replace(body, slices=sums)
        if not kind.walked:
            targets = tuple((a, "") for a, _ in body.outputs)
            body = replace(body, loads=(), ahead=(), statements=(), outputs=targets)
        found.append(body)
    return found


def slice_kernel(
    structure: SolveStructure, bodies: Sequence[Sequence[Body]], *, product: bool
) -> SolveKernel:
    """Sums over all slices.

    Args:
        structure: with sliced kinds.
        bodies: of all kinds of each node set.
        product: of JᵀJ v, while conjugate gradients have not ended; otherwise of a linearization.
    """
    sliced = sliced_kinds(structure)
    used = [bodies[k][j] for k, j in sliced]
    recomputed = any(not structure.groups[structure.kinds[k][j].group].stored for k, j in sliced)
    lists: list[dict[str, Any]] = [
        {"body": body, "row": set_row(k), "width": structure.node_sets[k].width}
        for (k, _), body in zip(sliced, used, strict=True)
    ]
    widest = max(len(body.outputs) for body in used)
    name = "slices_product" if product else "slices_linearize"
    context = {
        **common_context(structure, name),
        "accumulation": "two-level",
        "lists": lists,
        "slices_row": slices_row(structure),
        "slice_words": SLICE_WORDS,
        "stride": slice_stride(structure, product=product),
        "wide": min(widest, WIDE // structure.real.words),
        "own_parameters": recomputed,
        "own_direction": product,
    }
    buffers = {"tables": False, "partials": True, "state": False}
    if product:
        buffers["vectors"] = False
    if recomputed:
        buffers["parameters"] = False
    if mentions(used, "jacobian["):
        buffers["jacobian"] = False
    return render_kernel(name, "solve/slices", buffers, context)
