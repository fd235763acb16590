"""What schedules are chosen by: counts over a kernel and its Jacobian; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from autograd_gpu.codegen.kernel import Kernel, Product, SlotKind
from autograd_gpu.runtime.batch import BoundGroup
from autograd_gpu.runtime.schedules import AssemblyFeatures, GroupFeatures, PlaceFeatures


def entries_of(kernel: Kernel) -> list[int]:
    """Entries of J in the columns of each slot."""
    offsets = kernel.tangent_offsets
    return [
        sum(first <= e.column < first + slot.tangent for e in kernel.entries)
        for slot, first in zip(kernel.slots, offsets, strict=True)
    ]


@lru_cache(maxsize=512)
def block_entries(kernel: Kernel) -> int:
    """Entries in the lower triangle of an element's JᵀJ that differ from element to element."""
    occupied = np.zeros((kernel.residual_size, kernel.columns), np.float32)
    varying = np.zeros_like(occupied)
    for entry in kernel.entries:
        occupied[entry.row, entry.column] = 1.0
        varying[entry.row, entry.column] = float(entry.output is not None)
    meets = varying.T @ occupied
    return int(np.count_nonzero(np.tril(meets + meets.T)))


def features_of(
    group: BoundGroup,
    precision: str,
    parameters: int,
    places: Sequence[PlaceFeatures] = (),
    assembly: AssemblyFeatures | None = None,
) -> GroupFeatures:
    """Features of a group.

    Args:
        group: its kernel is looked at, not compiled.
        precision: it is computed in.
        parameters: numbers of parameters that an element reads.
        places: where its sums go, on a device.
        assembly: what sums on the host are estimated by.
    """
    kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
    return GroupFeatures(
        name=group.name,
        topology=group.topology.key,
        elements=group.count,
        operations=kernel.graph.cost,
        residuals=kernel.residual_size,
        entries=len(kernel.entries),
        varying=sum(e.output is not None for e in kernel.entries),
        block_entries=block_entries(kernel),
        parameters=parameters,
        data=sum(s.ambient for s in kernel.slots if s.kind is SlotKind.DATA),
        precision=precision,
        places=tuple(places),
        assembly=assembly,
    )
