"""Orders of nodes that keep neighbours near in memory; made once per problem."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.runtime.batch import FloatArray, IndexArray

HILBERT_BITS = 15

CURVE_CHUNK = 1 << 15
"""Points whose place on the curve is found at once: a few arrays that stay in cache."""


def stable_order(keys: IndexArray, count: int) -> tuple[IndexArray, IndexArray]:
    """Positions that sort ``keys``, equal ones as they come, and where each key begins.

    Counts instead of comparing, so the time is linear; of 32 bits where those are enough.

    Args:
        keys: numbers from 0 to ``count`` - 1.
        count: how many keys there may be.

    Returns:
        ``(len(keys),)`` and ``(count + 1,)``.
    """
    sparse: Any = importlib.import_module("scipy.sparse")
    length = len(keys)
    wide = max(length, count) > np.iinfo(np.int32).max
    index = np.int64 if wide else np.int32
    nothing = np.zeros(length, np.int8)
    rows = np.arange(length + 1, dtype=index)
    one_a_row = sparse.csr_array((nothing, keys.astype(index), rows), shape=(length, count))
    by_key = one_a_row.tocsc()
    return by_key.indices, by_key.indptr


def lexical_order(keys: Sequence[IndexArray], counts: Sequence[int]) -> IndexArray:
    """``np.lexsort(keys)``, the last key first, of keys below ``counts``, in linear time."""
    order: IndexArray | None = None
    for key, count in zip(keys, counts, strict=True):
        found, _ = stable_order(key if order is None else key[order], count)
        order = found if order is None else order[found]
    assert order is not None
    return order


def hilbert_order(points: FloatArray) -> IndexArray:
    """Order of points, ``(n, 2)`` or ``(n, 3)``, along a Hilbert curve.

    Source: Skilling 2004, "Programming the Hilbert curve", AIP Conf. Proc. 707.
    """
    low = points.min(axis=0)
    extent = np.maximum(points.max(axis=0) - low, 1e-300)
    key = np.empty(len(points), np.int64)
    for first in range(0, len(points), CURVE_CHUNK):
        part = slice(first, first + CURVE_CHUNK)
        key[part] = _curve_positions((points[part] - low) / extent)
    return np.argsort(key, kind="stable")


def _curve_positions(points: FloatArray) -> IndexArray:
    """Place on the curve of points in the unit cube."""
    cells = (points * ((1 << HILBERT_BITS) - 1)).astype(np.int32)
    axes = [cells[:, k].copy() for k in range(cells.shape[1])]
    _to_transposed(axes)
    key = np.zeros(len(points), np.int64)
    for bit in range(HILBERT_BITS - 1, -1, -1):
        for axis in axes:
            key <<= 1
            key |= (axis >> bit) & 1
    return key


def _to_transposed(axes: list[NDArray[np.int32]]) -> None:
    """Turn coordinates, in place, into the bits of the Hilbert index, one word per axis."""
    first, last = axes[0], axes[-1]

    def low_bits(axis: NDArray[np.int32], bit: int) -> NDArray[np.int32]:
        """The bits below ``bit``, all of them where that one is set, and none elsewhere."""
        return -((axis >> bit) & 1) & ((1 << bit) - 1)

    for bit in range(HILBERT_BITS - 1, 0, -1):
        for axis in axes:
            # Invert the low bits of the first axis, or exchange them with this one's.
            inverted = low_bits(axis, bit)
            if axis is not first:
                exchanged = (first ^ axis) & ((1 << bit) - 1) & ~inverted
                first ^= exchanged
                axis ^= exchanged
            first ^= inverted
    for k in range(1, len(axes)):
        axes[k] ^= axes[k - 1]
    t = np.zeros_like(first)
    for bit in range(HILBERT_BITS - 1, 0, -1):
        t ^= low_bits(last, bit)
    for axis in axes:
        axis ^= t


def node_order(values: FloatArray, links: Sequence[tuple[IndexArray, IndexArray]]) -> IndexArray:
    """Node numbers in an order that keeps neighbours near.

    Args:
        values: ``(nodes, width)``, values of the first array; two or three components that are
            not all alike are taken for positions.
        links: pairs of node arrays that share elements.

    Returns:
        Hilbert order for positions, reverse Cuthill-McKee over the links otherwise, and the given
        order where there are no links.
    """
    count, width = len(values), int(values.shape[1])
    if count < 3:
        return np.arange(count, dtype=np.int64)
    if width in (2, 3) and np.ptp(values, axis=0).min() > 0.0:
        return hilbert_order(values)
    if not links:
        return np.arange(count, dtype=np.int64)
    from scipy.sparse import coo_array

    # SciPy's graph routines carry no types.
    csgraph: Any = importlib.import_module("scipy.sparse.csgraph")
    rows = np.concatenate([a for a, _ in links])
    columns = np.concatenate([b for _, b in links])
    graph: Any = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    order = csgraph.reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True)
    return np.asarray(order, np.int64)
