"""Which blocks a Schur complement eliminates, where the blocks of unknowns are known.

The same as `elimination.eliminate`, which finds them among the unknowns, at the cost of the pattern
among blocks: ten times less in bundle adjustment.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np

from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.block_assembly import BlockPattern
from autograd_gpu.runtime.host_assembly import RangePool
from autograd_gpu.solvers.elimination import (
    BoolArray,
    Elimination,
    IndexArray,
    independent_set,
    pieces,
)


def has_hubs(blocks: BlockPattern, share: float) -> bool:
    """Whether some blocks, as cameras do, have ``share`` times the neighbours of the mean."""
    width = np.diff(blocks.starts).astype(np.int64)
    row = np.repeat(np.arange(blocks.count), np.diff(blocks.indptr))
    degrees = np.bincount(blocks.indices, width[row], blocks.count)
    degrees += np.bincount(row, width[blocks.indices], blocks.count)
    return bool(degrees.max() > share * (degrees @ width) / width.sum())


def chosen_blocks(blocks: BlockPattern) -> BoolArray:
    """Blocks to eliminate, no two of them neighbours, shape (blocks,)."""
    row = np.repeat(np.arange(blocks.count), np.diff(blocks.indptr))
    links = row != blocks.indices
    a, b = row[links], blocks.indices[links]
    return independent_set(np.concatenate([a, b]), np.concatenate([b, a]), np.diff(blocks.starts))


def eliminate_blocks(blocks: BlockPattern, indptr: IndexArray, indices: IndexArray) -> Elimination:
    """Split the unknowns of a matrix given by the pattern of its upper triangle.

    Args:
        blocks: of the unknowns, and which of them are neighbours.
        indptr: row starts of the triangle, in which a block is full or empty, shape (n + 1,).
        indices: columns, sorted in each row, the diagonal first; shape (entries,).
    """
    chosen = chosen_blocks(blocks)
    starts, width = blocks.starts.astype(np.int64), np.diff(blocks.starts).astype(np.int64)
    gone = np.repeat(chosen, width)
    eliminated, kept = np.flatnonzero(gone), np.flatnonzero(~gone)
    # Entries of rows and columns that stay keep their order.
    stays = np.repeat(~gone, np.diff(indptr))
    stays[stays] = ~gone[indices[stays]]
    kept_source = np.flatnonzero(stays)
    place = np.cumsum(~gone) - 1
    rows = np.searchsorted(indptr, kept_source, side="right") - 1
    counts = np.bincount(place[rows], minlength=len(kept))
    links = _links(blocks, chosen)
    row_starts, columns, coupling_source = _coupling(
        blocks, np.flatnonzero(chosen), links, place, indptr
    )
    return Elimination(
        eliminated=eliminated,
        kept=kept,
        block_starts=np.concatenate([[0], np.cumsum(width[chosen])]),
        factor_starts=np.concatenate([[0], np.cumsum(width[chosen] ** 2)]),
        factor_source=_squares(starts[:-1][chosen], width[chosen], indptr),
        row_starts=row_starts,
        columns=columns,
        coupling_source=coupling_source,
        kept_starts=np.concatenate([[0], np.cumsum(counts)]),
        kept_columns=place[indices[kept_source]],
        kept_source=kept_source,
        kept_blocks=pieces(np.repeat(np.arange(blocks.count), width)[kept], width[~chosen]),
    )


def _squares(first: IndexArray, width: IndexArray, indptr: IndexArray) -> IndexArray:
    """Entry of each number of full diagonal blocks, row by row, block by block."""
    starts = np.concatenate([[0], np.cumsum(width**2)])
    result = np.empty(int(starts[-1]), np.int64)
    for w in sorted({int(w) for w in width}):
        own = width == w
        inside = np.arange(w * w)
        i, j = inside // w, inside % w
        entries = indptr[first[own][:, None] + np.minimum(i, j)] + np.abs(i - j)
        result[starts[:-1][own][:, None] + inside] = entries
    return result


def _links(blocks: BlockPattern, chosen: BoolArray) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Neighbours of each eliminated block: starts, block, and where its columns begin in a row.

    The last counts from the end of the diagonal block, in the rows of whichever block is first.
    """
    width = np.diff(blocks.starts).astype(np.int64)
    row = np.repeat(np.arange(blocks.count), np.diff(blocks.indptr))
    column = blocks.indices
    ends = np.cumsum(width[column])
    offset = ends - width[column] - np.repeat(ends[blocks.indptr[:-1]], np.diff(blocks.indptr))
    right, left = chosen[row] & (row != column), chosen[column] & (row != column)
    owner = np.concatenate([row[right], column[left]])
    other = np.concatenate([column[right], row[left]])
    order = np.lexsort((other, owner))
    counts = np.bincount(owner, minlength=blocks.count)[chosen]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return starts, other[order], np.concatenate([offset[right], offset[left]])[order]


def _coupling(
    blocks: BlockPattern,
    eliminated: IndexArray,
    links: tuple[IndexArray, IndexArray, IndexArray],
    place: IndexArray,
    indptr: IndexArray,
) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Row starts, columns and entries of the rows of eliminated blocks in kept columns."""
    width = np.diff(blocks.starts).astype(np.int64)
    starts, other, _ = links
    ends = np.concatenate([[0], np.cumsum(width[other])])
    lengths = np.repeat(np.diff(ends[starts]), width[eliminated])
    row_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(indptr.dtype)
    columns = np.empty(int(row_starts[-1]), indptr.dtype)
    source = np.empty(int(row_starts[-1]), indptr.dtype)
    first_row = np.concatenate([[0], np.cumsum(width[eliminated])])
    index = indptr.dtype
    fixed = (
        blocks.starts.astype(index), indptr, eliminated.astype(index), first_row.astype(index),
        *(a.astype(index) for a in links), place[blocks.starts[:-1]].astype(index), row_starts,
    )  # fmt: skip
    run, pool = kernel("coupling", index.name), RangePool()
    with closing(pool):
        ranges = pool.ranges(row_starts[first_row])
        pool.run(ranges, lambda _, a, b: run(a, b, *fixed, columns, source))
    return row_starts, columns, source
