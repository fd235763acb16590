"""Kernels that assemble JᵀJ by blocks of unknowns; `assembly_kernels.kernel` compiles them.

Block b is the unknowns ``starts[b]`` … ``starts[b + 1] - 1``; an element gathers blocks through its
*places*, and gathers block -1 where that is frozen. Like the kernels of `assembly_kernels`: a range
of owned block rows each, trusted indices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.integer[Any]]
# An integer, perhaps out of an index array.
Whole = Any


def _expand_blocks(
    first: int, last: int, starts: Index, block_indptr: Index, block_indices: Index, indptr: Index,
    indices: Index,
) -> None:  # fmt: skip
    """Columns of an upper triangle from those of its blocks, the diagonal block first in a row."""
    for a in range(first, last):
        stop = starts[a + 1]
        for row in range(starts[a], stop):
            end = indptr[row]
            for column in range(row, stop):
                indices[end] = column
                end += 1
            for t in range(block_indptr[a] + 1, block_indptr[a + 1]):
                b = block_indices[t]
                for column in range(starts[b], starts[b + 1]):
                    indices[end] = column
                    end += 1


def _block_work(
    places: int, blocks: Index, products: Index, incident: Index, work: Index
) -> None:  # fmt: skip
    """Add the products that each block row of the upper triangle takes to ``work``."""
    for k in range(incident.size):
        owner = incident[k]
        element, p = owner // places, owner % places
        a = blocks[owner]
        for q in range(places):
            b = blocks[element * places + q]
            if b >= a:
                work[a] += products[p * places + q]


# Positions are made unsigned below: that spares a test for negative ones in every access.


def _copy_entries(
    element: Whole, first: Whole, last: Whole, stored: Whole, stored_at: Index, is_stored: Float,
    values: Float, work: Float,
) -> None:  # fmt: skip
    """Entries first … last - 1 of an element's Jacobian, row by row, zeros included."""
    if stored == stored_at.size:
        for k in range(first, last):
            work[np.uint64(k)] = values[np.uint64(element * stored + k)]
    else:
        for k in range(first, last):
            value = values[np.uint64(element * stored + stored_at[k])]
            work[np.uint64(k)] = value * is_stored[k]


def _add_square(
    base: Whole, width: Whole, residual: float, work: Float, square: Float
) -> None:  # fmt: skip
    """Add what a row gives to the diagonal block, and to the gradient as one more column."""
    for i in range(width):
        left = work[np.uint64(base + i)]
        line = i * (width + 1)
        for j in range(i, width):
            square[np.uint64(line + j)] += left * work[np.uint64(base + j)]
        square[np.uint64(line + width)] += left * residual


def _add_coupling(
    left: Whole, right: Whole, local: Whole, first: Whole, last: Whole, offset: Whole,
    begins: Index, sizes: tuple[Whole, Whole], work: Float, out: Float,
) -> None:  # fmt: skip
    """Add what rows first … last - 1 give to the block of columns ``left`` … and ``right`` …."""
    for i in range(sizes[0]):
        begin = begins[np.uint64(i)] + offset
        for r in range(first, last):
            own = work[np.uint64(r * local + left + i)]
            for j in range(sizes[1]):
                out[np.uint64(begin + j)] += own * work[np.uint64(r * local + right + j)]


def _block_gram_rows(
    first: int, last: int, starts: Index, block_indptr: Index, block_indices: Index,
    indptr: Index, incident_starts: Index, incident: Index, blocks: Index, columns: Index,
    widths: Index, meets: Index, row_first: Index, row_last: Index, rows: int,
    local: int, stored: int, stored_at: Index, is_stored: Float, values: Float, residuals: Float,
    offset: Index, begins: Index, square: Float, work: Float, out: Float, gradient: Float,
) -> None:  # fmt: skip
    """Add JᵀJ (upper triangle) and Jᵀr of one group of elements, block rows first … last - 1.

    The Jacobian of an element has ``rows`` rows and ``local`` columns; entry (r, c) of it is number
    ``stored_at[r, c]`` of ``stored`` values, times ``is_stored[r, c]``. Place p has columns
    ``columns[p]`` … and ``widths[p]`` of them, and entries in rows ``row_first[p]`` …
    ``row_last[p]`` - 1. Where ``meets[p, q]`` is 0, places p and q share no row. No element gathers
    a block twice. Work arrays: ``offset`` has a number per block, ``begins`` one per local column,
    ``square`` local·(local + 1), ``work`` one per entry.
    """
    places = columns.size
    for a in range(first, last):
        if incident_starts[a] == incident_starts[a + 1]:
            continue  # a block of other groups, and perhaps wider than the work arrays
        top = starts[a]
        width = starts[a + 1] - top
        # Where the columns of a block begin in a row, counted from the end of the diagonal block.
        end = -width
        for t in range(block_indptr[a], block_indptr[a + 1]):
            offset[block_indices[t]] = end
            end += starts[block_indices[t] + 1] - starts[block_indices[t]]
        for i in range(width):
            begins[i] = indptr[top + i] + width - i
        # What all elements add to stays in cache.
        square[: width * (width + 1)] = 0.0
        for t in range(incident_starts[a], incident_starts[a + 1]):
            element = incident[t] // places
            p = incident[t] - element * places
            low, high = row_first[p], row_last[p]
            _copy_entries(
                element, low * local, high * local, stored, stored_at, is_stored, values, work
            )
            for r in range(low, high):
                residual = residuals[np.uint64(element * rows + r)]
                _add_square(r * local + columns[p], width, residual, work, square)
            for q in range(places):
                b = blocks[np.uint64(element * places + q)]
                if meets[p * places + q] * (b - a) > 0:
                    _add_coupling(
                        columns[p], columns[q], local, low, high, offset[np.uint64(b)], begins,
                        (width, widths[q]), work, out,
                    )  # fmt: skip
        for i in range(width):
            line = i * (width + 1)
            gradient[top + i] += square[line + width]
            for j in range(i, width):
                out[begins[i] - width + j] += square[line + j]


def _shared_gram(
    first: int, last: int, chunk: int, entry_starts: Index, entry_columns: Index, values: Float,
    residuals: Float, panel: Float, grams: Float,
) -> None:  # fmt: skip
    """JᵀJ and Jᵀr over chunks first … last - 1 of elements that all gather the same blocks.

    Row r of an element's Jacobian has entries ``entry_starts[r]`` … with these local columns, the
    last of which stands for the residual. The sums of chunk c are ``grams[c]``, of which the upper
    triangle is set. ``panel`` holds these columns for some elements, a multiple of 4.
    """
    rows = entry_starts.size - 1
    stored = entry_columns.size
    count = residuals.size // rows
    height = panel.shape[1]
    for begin in range(first * chunk, min(last * chunk, count), height):
        filled = min(height, count - begin)
        gram = grams[begin // chunk]
        for r in range(rows):
            entries = entry_columns[entry_starts[r] : entry_starts[r + 1]]
            panel[:, filled:] = 0.0
            for e in range(filled):
                own = (begin + e) * (stored - rows) + entry_starts[r] - r
                for k in range(entries.size - 1):
                    panel[k, e] = values[own + k]
                panel[entries.size - 1, e] = residuals[(begin + e) * rows + r]
            for i in range(entries.size):
                left = panel[i]
                for k in range(i, entries.size):
                    right = panel[k]
                    a, b, c, d = 0.0, 0.0, 0.0, 0.0
                    for e in range(0, height, 4):
                        a += left[e] * right[e]
                        b += left[e + 1] * right[e + 1]
                        c += left[e + 2] * right[e + 2]
                        d += left[e + 3] * right[e + 3]
                    gram[entries[i], entries[k]] += (a + b) + (c + d)


def _coupling(
    first: int, last: int, starts: Index, indptr: Index, eliminated: Index, first_row: Index,
    link_starts: Index, link_block: Index, link_offset: Index, kept_first: Index,
    row_starts: Index, columns: Index, source: Index,
) -> None:  # fmt: skip
    """Columns, and entries of an upper triangle, of the rows of eliminated blocks.

    Links of block ``eliminated[k]`` are the kept blocks ``link_block[link_starts[k]]`` …, whose
    columns begin ``link_offset`` after the diagonal block in rows of the first block of the two.
    """
    for k in range(first, last):
        top = starts[eliminated[k]]
        width = starts[eliminated[k] + 1] - top
        for i in range(width):
            end = row_starts[first_row[k] + i]
            for t in range(link_starts[k], link_starts[k + 1]):
                b = link_block[t]
                other = starts[b]
                length = starts[b + 1] - other
                for j in range(length):
                    columns[end] = kept_first[b] + j
                    if other > top:
                        source[end] = indptr[top + i] + width - i + link_offset[t] + j
                    else:
                        source[end] = indptr[other + j] + length - j + link_offset[t] + i
                    end += 1


def _scatter_rows(
    first: int, last: int, indptr: Index, indices: Index, values: Float, vector: Float, out: Float
) -> None:  # fmt: skip
    """Add what rows first … last - 1 give to Yᵀ·vector."""
    for i in range(first, last):
        for p in range(indptr[i], indptr[i + 1]):
            out[indices[p]] += values[p] * vector[i]


# Argument types as in `assembly_kernels`.
BLOCK_KERNELS: dict[str, tuple[Callable[..., None], str]] = {
    "expand_blocks": (_expand_blocks, "n n I I I K K+"),
    "block_work": (_block_work, "n I I I L+"),
    "block_gram_rows": (
        _block_gram_rows, "n n I I I K I I I I I I I I n n n I F F F I+ K+ F+ F+ F+ F+",
    ),
    "coupling": (_coupling, "n n I I I I I I I I I I+ I+"),
    "scatter_rows": (_scatter_rows, "n n I I F F F+"),
    "shared_gram": (_shared_gram, "n n n I I F F M+ T+"),
}  # fmt: skip
