"""Kernels of conjugate gradients and their preconditioners on the CPU; `kernel` compiles them.

Like those of `assembly_kernels`: a range of owned rows, blocks or aggregates each, trusted indices.
They are meant for unsigned indices: without tests for negative ones they run twice as fast. So what
is absent has a number past the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Index = NDArray[np.integer[Any]]


def _dot(first: int, last: int, x: Float, y: Float, partial: Float) -> None:
    """Sum x·y over chunks first … last - 1 of 4096 entries, each chunk for itself."""
    for chunk in range(first, last):
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        begin = chunk * 4096
        end = min(begin + 4096, x.size)
        fours = begin + (end - begin) // 4 * 4
        for i in range(begin, fours, 4):
            a += x[i] * y[i]
            b += x[i + 1] * y[i + 1]
            c += x[i + 2] * y[i + 2]
            d += x[i + 3] * y[i + 3]
        for i in range(fours, end):
            a += x[i] * y[i]
        partial[chunk] = (a + b) + (c + d)


def _step(
    first: int, last: int, length: float, direction: Float, image: Float, x: Float, r: Float
) -> None:
    """Go along a direction: x += length · direction, r -= length · image."""
    for i in range(first, last):
        x[i] += length * direction[i]
        r[i] -= length * image[i]


def _turn(first: int, last: int, factor: float, z: Float, direction: Float) -> None:
    """Set the next direction, z + factor · direction."""
    for i in range(first, last):
        direction[i] = z[i] + factor * direction[i]


def _invert_blocks(
    first: int, last: int, starts: Index, offsets: Index, positions: Index, floor: float,
    values: Float, work: Float, inverses: Float,
) -> None:  # fmt: skip
    """Inverses of diagonal blocks by LDLᵀ; no pivot falls below `floor` times its diagonal entry.

    Block b is `inverses[offsets[b]:]`, width², row-major. `work` holds two squares and a row.
    """
    for b in range(first, last):
        width = starts[b + 1] - starts[b]
        base = offsets[b]
        # L below the diagonal of `lower`, rows of L⁻¹ in `inverse`, D⁻¹ after them.
        lower, inverse = work[: width * width], work[width * width : 2 * width * width]
        reciprocal = work[2 * width * width : 2 * width * width + width]
        for k in range(width):
            diagonal = values[positions[base + k * width + k]]
            for i in range(k + 1):
                position = positions[base + k * width + i]
                entry = values[position] if position < values.size else 0.0
                for m in range(i):
                    entry -= lower[k * width + m] * lower[i * width + m] / reciprocal[m]
                lower[k * width + i] = entry * reciprocal[i] if i < k else entry
            pivot = max(lower[k * width + k], floor * diagonal)
            reciprocal[k] = 1.0 / pivot if pivot > 0.0 else 1.0
            for i in range(k + 1):
                entry = 1.0 if i == k else 0.0
                for m in range(i, k):
                    entry -= lower[k * width + m] * inverse[m * width + i]
                inverse[k * width + i] = entry
        for i in range(width):
            for k in range(i + 1):
                entry = 0.0
                for m in range(i, width):
                    entry += inverse[m * width + i] * inverse[m * width + k] * reciprocal[m]
                inverses[base + i * width + k] = entry
                inverses[base + k * width + i] = entry


def _apply_blocks(
    first: int, last: int, starts: Index, unknowns: Index, offsets: Index, inverses: Float,
    r: Float, z: Float,
) -> None:  # fmt: skip
    """Multiply with blocks first … last - 1 of `invert_blocks`."""
    for b in range(first, last):
        own = unknowns[starts[b] : starts[b + 1]]
        square = inverses[offsets[b] : offsets[b] + own.size * own.size]
        for i in range(own.size):
            entry = 0.0
            for m in range(own.size):
                entry += square[i * own.size + m] * r[own[m]]
            z[own[i]] = entry


def _aggregate(
    indptr: Index, indices: Index, size: int, aggregate_of: Index, queue: Index
) -> None:  # fmt: skip
    """Cut a graph into connected aggregates of about `size` vertices, each grown breadth first.

    Each begins at the first vertex that is left. One that stays below a quarter of the size joins a
    neighbour. `aggregate_of` is -1 on entry; `queue` holds `size` vertices.
    """
    count = 0
    for seed in range(aggregate_of.size):
        if aggregate_of[seed] >= 0:
            continue
        aggregate_of[seed] = count
        queue[0] = seed
        head, tail = 0, 1
        while head < tail:
            for p in range(indptr[queue[head]], indptr[queue[head] + 1]):
                if tail < size and aggregate_of[indices[p]] < 0:
                    aggregate_of[indices[p]] = count
                    queue[tail] = indices[p]
                    tail += 1
            head += 1
        neighbour = -1
        for k in range(tail):
            for p in range(indptr[queue[k]], indptr[queue[k] + 1]):
                if aggregate_of[indices[p]] not in (-1, count):
                    neighbour = aggregate_of[indices[p]]
        if 4 * tail < size and neighbour >= 0:
            for k in range(tail):
                aggregate_of[queue[k]] = neighbour
        else:
            count += 1


def _orthonormalize(
    first: int, last: int, starts: Index, members: Index, tolerance: float, basis: Float,
    missing: Float,
) -> None:  # fmt: skip
    """Gram-Schmidt, twice, of the columns of `basis` within each aggregate.

    A column that depends on earlier ones becomes zero, and 1 in `missing`.
    """
    for a in range(first, last):
        for k in range(basis.shape[1]):
            before = 0.0
            for t in range(starts[a], starts[a + 1]):
                before += basis[members[t], k] ** 2
            for _ in range(2):
                for m in range(k):
                    overlap = 0.0
                    for t in range(starts[a], starts[a + 1]):
                        overlap += basis[members[t], k] * basis[members[t], m]
                    for t in range(starts[a], starts[a + 1]):
                        basis[members[t], k] -= overlap * basis[members[t], m]
            after = 0.0
            for t in range(starts[a], starts[a + 1]):
                after += basis[members[t], k] ** 2
            kept = after > tolerance * tolerance * before
            missing[a, k] = 0.0 if kept else 1.0
            scale = 1.0 / np.sqrt(after) if kept else 0.0
            for t in range(starts[a], starts[a + 1]):
                basis[members[t], k] *= scale


def _coarse_blocks(
    first: int, last: int, starts: Index, members: Index, aggregate_of: Index, indptr: Index,
    indices: Index, values: Float, basis: Float, coarse_indptr: Index, coarse_indices: Index,
    place: Index, work: Float, out: Float,
) -> None:  # fmt: skip
    """Block rows first … last - 1 of the upper triangle of basisᵀ·A·basis, a square per block."""
    modes = basis.shape[1]
    for a in range(first, last):
        begin, neighbours = coarse_indptr[a], coarse_indptr[a + 1] - coarse_indptr[a]
        for q in range(neighbours):
            place[coarse_indices[begin + q]] = q
        out[begin * modes * modes : (begin + neighbours) * modes * modes] = 0.0
        for t in range(starts[a], starts[a + 1]):
            i = members[t]
            work[:neighbours] = 0.0
            for p in range(indptr[i], indptr[i + 1]):
                j = indices[p]
                if a <= aggregate_of[j] < place.size:
                    q = place[aggregate_of[j]]
                    for m in range(modes):
                        work[q, m] += values[p] * basis[j, m]
            for q in range(neighbours):
                for k in range(modes):
                    row = ((begin + q) * modes + k) * modes
                    for m in range(modes):
                        out[row + m] += basis[i, k] * work[q, m]


def _restrict(
    first: int, last: int, starts: Index, members: Index, modes: Float, r: Float, work: Float,
    out: Float,
) -> None:  # fmt: skip
    """Project r on the modes of aggregates first … last - 1; `modes` has a row for each mode."""
    for a in range(first, last):
        own, gathered = members[starts[a] : starts[a + 1]], work[starts[a] : starts[a + 1]]
        for t in range(own.size):
            gathered[t] = r[own[t]]
        for m in range(modes.shape[0]):
            mode = modes[m, starts[a] : starts[a + 1]]
            even, odd = 0.0, 0.0
            for t in range(own.size // 2):
                even += mode[2 * t] * gathered[2 * t]
                odd += mode[2 * t + 1] * gathered[2 * t + 1]
            if own.size % 2 == 1:
                even += mode[-1] * gathered[-1]
            out[a, m] = even + odd


def _prolong(
    first: int, last: int, starts: Index, members: Index, modes: Float, coarse: Float, work: Float,
    z: Float,
) -> None:  # fmt: skip
    """Add the combination `coarse` of modes to z, in aggregates first … last - 1."""
    for a in range(first, last):
        own, total = members[starts[a] : starts[a + 1]], work[starts[a] : starts[a + 1]]
        total[:] = 0.0
        for m in range(modes.shape[0]):
            mode = modes[m, starts[a] : starts[a + 1]]
            for t in range(own.size):
                total[t] += coarse[a, m] * mode[t]
        for t in range(own.size):
            z[own[t]] += total[t]


# Argument types as in `assembly_kernels`.
ITERATIVE_KERNELS: dict[str, tuple[Callable[..., None], str]] = {
    "dot": (_dot, "n n F F F+"),
    "step": (_step, "n n f F F F+ F+"),
    "turn": (_turn, "n n f F F+"),
    "invert_blocks": (_invert_blocks, "n n I I I f F F+ F+"),
    "apply_blocks": (_apply_blocks, "n n I I I F F F+"),
    "aggregate": (_aggregate, "I I n I+ I+"),
    "orthonormalize": (_orthonormalize, "n n I I f M+ M+"),
    "coarse_blocks": (_coarse_blocks, "n n I I I I I F M I I I+ M+ F+"),
    "restrict": (_restrict, "n n I I M F F+ M+"),
    "prolong": (_prolong, "n n I I M M F+ F+"),
}
