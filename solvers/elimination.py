"""Which blocks of unknowns a Schur complement eliminates, found from the pattern of JᵀJ alone.

Unknowns with the same neighbours (the coordinates of one point, the numbers of one camera) form a
block; blocks that are no neighbours of each other can be eliminated together, each by itself. In
bundle adjustment those are the points.

Sources: indistinguishable nodes as in Amestoy, Davis and Duff 1996, "An approximate minimum degree
ordering algorithm", §2; independent sets by random priorities as in Luby 1986, with the degree as
the priority, as Ceres Solver orders bundle adjustment.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]

# Wider blocks stay: what they would fill in costs more than they save.
_WIDEST_ELIMINATED = 16
# Kept blocks, which become the preconditioner's, are cut into pieces of this width.
_WIDEST_PIECE = 32
# What is undecided after so many rounds stays.
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Elimination:
    """A split of the unknowns into eliminated blocks and kept unknowns.

    In the notation [C E; Eᵀ B] for the reordered matrix: C is block-diagonal, one dense block for
    each eliminated block; a block's rows of E share their columns. Entries are named by their
    position in the upper triangle of the matrix.

    Attributes:
        eliminated: unknowns of the eliminated blocks, block by block, shape (e,).
        kept: the other unknowns, block by block, shape (k,).
        block_starts: first row in `eliminated` of each block, shape (blocks + 1,).
        factor_starts: first entry of each block of C, stored as full squares, shape (blocks + 1,).
        factor_source: entries of C, shape (factor_starts[-1],).
        row_starts: row starts of E, shape (e + 1,).
        columns: columns of E, positions in `kept`, sorted in each row.
        coupling_source: entries of E, in the order of `columns`.
        kept_starts, kept_columns, kept_source: upper triangle of B in CSR, and its entries.
        kept_blocks: block of each kept unknown, or piece of a wide one, from 0, rising; (k,).
    """

    eliminated: IndexArray
    kept: IndexArray
    block_starts: IndexArray
    factor_starts: IndexArray
    factor_source: IndexArray
    row_starts: IndexArray
    columns: IndexArray
    coupling_source: IndexArray
    kept_starts: IndexArray
    kept_columns: IndexArray
    kept_source: IndexArray
    kept_blocks: IndexArray


def eliminate(indptr: IndexArray, indices: IndexArray) -> Elimination:
    """Split the unknowns of a matrix given by the pattern of its upper triangle.

    Args:
        indptr: row starts, shape (n + 1,).
        indices: columns, sorted in each row, the diagonal first; shape (entries,).
    """
    full = _full(indptr, indices)
    block_of = _indistinguishable(full)
    chosen = _independent(full, block_of)
    return _split(full, block_of, chosen)


def _full(indptr: IndexArray, indices: IndexArray) -> Any:
    """The whole square in sorted CSR; an entry's value is its position in the triangle, plus 1."""
    sparse: Any = importlib.import_module("scipy.sparse")
    n = len(indptr) - 1
    upper = sparse.csr_matrix((np.arange(1, len(indices) + 1), indices, indptr), shape=(n, n))
    full = sparse.csr_matrix(upper + sparse.triu(upper, 1).T)
    full.sort_indices()
    return full


def _indistinguishable(full: Any) -> IndexArray:
    """Block of each unknown, shape (n,): unknowns with the same neighbours, themselves included."""
    indptr, indices = full.indptr, full.indices
    n = len(indptr) - 1
    # Equal sums of random numbers propose a block; comparing the neighbours decides.
    tokens = np.random.default_rng(0).integers(0, 2**63, n, dtype=np.uint64)
    sums = np.add.reduceat(tokens[indices], indptr[:-1])
    _, first, proposed = np.unique(sums, return_index=True, return_inverse=True)
    model = first[proposed]
    degree = np.diff(indptr)
    alike = degree == degree[model]
    row = np.repeat(np.arange(n), degree)
    offset = np.arange(len(indices)) - np.repeat(indptr[:-1], degree)
    compared = alike[row]
    same = indices[compared] == indices[(indptr[model[row]] + offset)[compared]]
    alike[row[compared][~same]] = False
    model = np.where(alike, model, np.arange(n))
    return np.unique(model, return_inverse=True)[1]


def _independent(full: Any, block_of: IndexArray) -> BoolArray:
    """Blocks to eliminate, no two of them neighbours, shape (blocks,); lowest degrees first."""
    sparse: Any = importlib.import_module("scipy.sparse")
    n, blocks = len(block_of), int(block_of.max()) + 1
    members = sparse.csr_matrix((np.ones(n), (block_of, np.arange(n))), shape=(blocks, n))
    pattern = sparse.csr_matrix((np.ones(full.nnz), full.indices, full.indptr), shape=(n, n))
    quotient = sparse.coo_matrix(members @ pattern @ members.T)
    links = quotient.row != quotient.col
    width = np.bincount(block_of, minlength=blocks)
    return independent_set(quotient.row[links], quotient.col[links], width)


def independent_set(a: IndexArray, b: IndexArray, width: IndexArray) -> BoolArray:
    """Vertices of a graph, no two of them neighbours; lowest degrees first, wide ones never.

    Args:
        a: one end of each link, both directions listed.
        b: the other end.
        width: unknowns of each vertex, shape (vertices,).
    """
    blocks = len(width)
    degree = np.bincount(a, minlength=blocks)
    rank = np.empty(blocks, np.int64)
    rank[np.lexsort((np.arange(blocks), degree))] = np.arange(blocks)
    chosen = np.zeros(blocks, np.bool_)
    candidate = width <= _WIDEST_ELIMINATED
    for _ in range(_ROUNDS):
        between = candidate[a] & candidate[b]
        a, b = a[between], b[between]
        beaten = np.zeros(blocks, np.bool_)
        beaten[a[rank[b] < rank[a]]] = True
        winners = candidate & ~beaten
        if not winners.any():
            break
        chosen |= winners
        candidate &= ~winners
        candidate[b[winners[a]]] = False
    return chosen


def _split(full: Any, block_of: IndexArray, chosen: BoolArray) -> Elimination:
    gone = chosen[block_of]
    # Blocks stand together, which is what kernels over them expect.
    by_block = np.argsort(block_of, kind="stable")
    eliminated, kept = by_block[gone[by_block]], by_block[~gone[by_block]]
    widths = np.bincount(block_of, minlength=len(chosen))
    factors = full[eliminated][:, eliminated]
    coupling = full[eliminated][:, kept]
    below = full[kept][:, kept]
    for part in (factors, coupling, below):
        part.sort_indices()
    row = np.repeat(np.arange(len(kept)), np.diff(below.indptr))
    upper = below.indices >= row
    return Elimination(
        eliminated=eliminated,
        kept=kept,
        block_starts=np.concatenate([[0], np.cumsum(widths[chosen])]),
        factor_starts=np.concatenate([[0], np.cumsum(widths[chosen] ** 2)]),
        factor_source=factors.data - 1,
        row_starts=coupling.indptr,
        columns=coupling.indices,
        coupling_source=coupling.data - 1,
        kept_starts=np.concatenate([[0], np.cumsum(np.bincount(row[upper], minlength=len(kept)))]),
        kept_columns=below.indices[upper],
        kept_source=below.data[upper] - 1,
        kept_blocks=pieces(block_of[kept], widths[~chosen]),
    )


def pieces(block: IndexArray, widths: IndexArray) -> IndexArray:
    """Number the blocks from 0, wide ones cut into pieces; ``block`` does not decrease."""
    first = np.concatenate([[0], np.cumsum(widths)])[:-1]
    inside = np.arange(len(block)) - np.repeat(first, widths)
    starts = np.diff(block, prepend=-1) > 0
    return np.cumsum(starts | (inside % _WIDEST_PIECE == 0)) - 1
