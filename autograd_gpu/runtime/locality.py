"""Orders of nodes that keep neighbours near in memory; made once per problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .batch import FloatArray, IndexArray

MORTON_BITS = 10


def morton_order(points: FloatArray) -> IndexArray:
    """Order of points, ``(n, 2)`` or ``(n, 3)``, along a Z-shaped space-filling curve."""
    low = points.min(axis=0)
    extent = np.maximum(points.max(axis=0) - low, 1e-300)
    cells = ((points - low) / extent * ((1 << MORTON_BITS) - 1)).astype(np.int64)
    key = np.zeros(len(points), np.int64)
    for axis in range(cells.shape[1]):
        for bit in range(MORTON_BITS):
            key |= ((cells[:, axis] >> bit) & 1) << (cells.shape[1] * bit + axis)
    return np.argsort(key, kind="stable")


def node_order(values: FloatArray, links: Sequence[tuple[IndexArray, IndexArray]]) -> IndexArray:
    """Node numbers in an order that keeps neighbours near.

    Args:
        values: ``(nodes, width)``, values of the first array; two or three components that are
            not all alike are taken for positions.
        links: pairs of node arrays that share elements.

    Returns:
        Morton order for positions, reverse Cuthill-McKee over the links otherwise, and the given
        order where there are no links.
    """
    count, width = len(values), values.shape[1]
    if count < 3:
        return np.arange(count)
    if width in (2, 3) and np.ptp(values, axis=0).min() > 0.0:
        return morton_order(values)
    if not links:
        return np.arange(count)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import (
        reverse_cuthill_mckee,  # pyright: ignore[reportUnknownVariableType]
    )

    rows = np.concatenate([a for a, _ in links])
    columns = np.concatenate([b for _, b in links])
    graph: Any = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)).tocsr()
    order = cast("NDArray[Any]", reverse_cuthill_mckee(graph + graph.T, symmetric_mode=True))
    return np.asarray(order, np.int64)
