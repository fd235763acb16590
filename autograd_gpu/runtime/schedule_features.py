"""Counts over a kernel's Jacobian that schedules are chosen by; nothing is generated for them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from autograd_gpu.codegen.kernel import Kernel


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
