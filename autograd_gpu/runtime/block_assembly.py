"""JᵀJ and Jᵀr on the CPU, by blocks of unknowns that elements gather as a whole.

A block is a row of a parameter array, or part of one (see `GroupPlaces`). The pattern of JᵀJ is
found among blocks and then expanded, and numbers go from the Jacobian of an element straight to
their final place. One thread owns a block row, so no bit depends on the number of threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.host_assembly import (
    HostAssembly,
    IndexArray,
    RangePool,
    index_dtype,
    transposed_pattern,
)

FloatArray = NDArray[np.float64]

# Elements whose sums make one number before these are added up: fixed, whatever the threads.
_CHUNK = 16_384
# Elements whose columns are laid side by side for products; divides a chunk.
_PANEL = 256


@dataclass(frozen=True, kw_only=True)
class GroupPlaces:
    """Where the elements of one group lie in J, by places: runs of local columns.

    Attributes:
        count: elements.
        rows: residuals of an element.
        local_columns: columns of the Jacobian of an element.
        entries: row and local column of each stored value of an element, row-major; shape (k, 2).
        columns: first local column of each place, shape (places,).
        widths: local columns of each place, shape (places,).
        blocks: block that each element gathers through each place, -1 where it is frozen;
            shape (count, places).
    """

    count: int
    rows: int
    local_columns: int
    entries: IndexArray
    columns: IndexArray
    widths: IndexArray
    blocks: IndexArray

    @cached_property
    def place_of(self) -> IndexArray:
        """Place of each stored value."""
        return np.searchsorted(self.columns, self.entries[:, 1], side="right") - 1

    @cached_property
    def occupied(self) -> NDArray[np.bool_]:
        """Whether a row has an entry in a place, shape (rows, places)."""
        result = np.zeros((self.rows, len(self.columns)), np.bool_)
        result[self.entries[:, 0], self.place_of] = True
        return result

    @cached_property
    def meets(self) -> NDArray[np.bool_]:
        """Whether two places have entries in one row, shape (places, places)."""
        occupied = self.occupied.astype(np.float32)
        return occupied.T @ occupied > 0.0

    @cached_property
    def row_range(self) -> tuple[IndexArray, IndexArray]:
        """First row of each place with an entry, and one past the last; both (places,)."""
        empty = ~self.occupied.any(axis=0)
        first = self.occupied.argmax(axis=0)
        last = np.where(empty, 0, self.rows - self.occupied[::-1].argmax(axis=0))
        return first, last

    def pattern_rows(self) -> list[IndexArray]:
        """Blocks that meet in rows of J, (count, any) each; -1 where frozen.

        Rows whose places are a part of those of another row are left out.
        """
        sets = {frozenset(np.flatnonzero(row).tolist()) for row in self.occupied}
        largest = [s for s in sets if s and not any(s < other for other in sets)]
        return [self.blocks[:, sorted(s)] for s in sorted(largest, key=sorted)]

    @property
    def products(self) -> IndexArray:
        """Multiply-adds of an element for each pair of places, shape (places, places)."""
        first, last = self.row_range
        return (last - first)[:, None] * np.outer(self.widths, self.widths) * self.meets


@dataclass(frozen=True, slots=True)
class BlockPattern:
    """Upper triangle of a matrix by blocks of unknowns, each full or empty.

    Attributes:
        starts: first unknown of each block, rising, and the number of unknowns; (blocks + 1,).
        indptr: row starts, shape (blocks + 1,).
        indices: columns, sorted in each row, the diagonal first.
    """

    starts: IndexArray
    indptr: IndexArray
    indices: IndexArray

    @property
    def count(self) -> int:
        """Number of blocks."""
        return len(self.starts) - 1


class _Incidence:
    """The elements of one group by the blocks that they gather, as the kernels take them."""

    def __init__(self, places: GroupPlaces, blocks: int, dtype: Any) -> None:
        self.places = places
        self.blocks: IndexArray = np.ascontiguousarray(places.blocks.ravel(), dtype)
        # What is frozen is sorted behind the last block.
        frozen = self.blocks < 0
        sorted_by = np.where(frozen, blocks, self.blocks) if frozen.any() else self.blocks
        indptr = np.array([0, sorted_by.size], dtype)
        starts, _, positions = transposed_pattern(indptr, sorted_by.astype(dtype), blocks + 1)
        self.starts, self.incident = starts, positions[: starts[-2]]
        self.products: IndexArray = places.products.ravel().astype(dtype)
        row, column = places.entries.T
        full = row * places.local_columns + column
        stored_at = np.zeros(places.rows * places.local_columns, np.int64)
        stored_at[full] = np.arange(full.size)
        self.stored_at: IndexArray = stored_at.astype(dtype)
        self.is_stored: FloatArray = np.zeros(stored_at.size)
        self.is_stored[full] = 1.0
        arrays = (places.columns, places.widths, places.meets, *places.row_range)
        self.fixed = tuple(np.ascontiguousarray(a.ravel(), dtype) for a in arrays)

    def add_work(self, work: IndexArray, index_type: str) -> None:
        """Add the multiply-adds of each block row."""
        run = kernel("block_work", index_type)
        run(len(self.places.columns), self.blocks, self.products, self.incident, work)


class BlockAssembly:
    """Sums JᵀJ and Jᵀr over groups of elements; owns its threads and work arrays.

    Args:
        starts: first unknown of each block, rising, and the number of unknowns; (blocks + 1,).
        groups: in the order in which a session gives residuals and values of J.
        threads: threads to use; all cores that the process may use if None.

    Attributes:
        blocks: upper triangle of JᵀJ by blocks.
    """

    def __init__(
        self, starts: IndexArray, groups: Sequence[GroupPlaces], threads: int | None = None
    ) -> None:
        blocks = len(starts) - 1
        self.n_columns = int(starts[-1])
        largest = max([self.n_columns, *(g.blocks.size for g in groups)])
        dtype = index_dtype(largest + 1)
        self._type = np.dtype(dtype).name
        self._pool = RangePool(threads)
        pattern = _block_pattern(groups, blocks, dtype, threads)
        self.blocks = BlockPattern(np.ascontiguousarray(starts, dtype), *pattern)
        self._groups = [_Incidence(g, blocks, dtype) for g in groups if len(g.entries)]
        self._sizes = [(g.count * g.rows, g.count * len(g.entries)) for g in groups]
        self._stored = [k for k, g in enumerate(groups) if len(g.entries)]
        self._indptr: IndexArray = np.zeros(1, np.int32)

    def pattern(self) -> tuple[IndexArray, IndexArray]:
        """Row starts and columns of the upper triangle of JᵀJ, sorted, the diagonal first."""
        blocks = (self.blocks.starts, self.blocks.indptr, self.blocks.indices)
        starts = self.blocks.starts.astype(np.int64)
        width = np.diff(starts)
        ends = np.cumsum(width[self.blocks.indices])
        beyond = ends[self.blocks.indptr[1:] - 1] - ends[self.blocks.indptr[:-1]]
        inside = np.arange(self.n_columns) - np.repeat(starts[:-1], width)
        lengths = np.repeat(width + beyond, width) - inside
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        dtype = index_dtype(int(indptr[-1]))
        self._indptr = indptr.astype(dtype)
        indices: IndexArray = np.empty(int(indptr[-1]), dtype)
        expand = kernel("expand_blocks", self._type, np.dtype(dtype).name)
        ranges = self._pool.ranges(indptr[starts])
        self._pool.run(ranges, lambda _, a, b: expand(a, b, *blocks, self._indptr, indices))
        return self._indptr, indices

    @cached_property
    def _ranges(self) -> list[tuple[int, int]]:
        work = np.zeros(self.blocks.count, np.int64)
        for group in self._groups:
            group.add_work(work, self._type)
        return self._pool.ranges(np.concatenate([[0], np.cumsum(work)]))

    def sum(
        self, values: FloatArray, residuals: FloatArray, upper: FloatArray, gradient: FloatArray
    ) -> None:
        """Set the upper triangle of JᵀJ, in the order of `pattern`, and Jᵀr.

        Args:
            values: of J as a session gives them, those of frozen columns included.
            residuals: all of them.
            upper: result, shape (entries of the pattern,).
            gradient: result, shape (unknowns,).
        """
        check_totals(values, residuals, self._sizes)
        upper.fill(0.0)
        gradient.fill(0.0)
        row = np.cumsum([0, *(r for r, _ in self._sizes)])
        value = np.cumsum([0, *(v for _, v in self._sizes)])
        for k, group in zip(self._stored, self._groups, strict=True):
            own, r = values[value[k] : value[k + 1]], residuals[row[k] : row[k + 1]]
            self._add(group, own, r, upper, gradient)

    def _add(
        self,
        group: _Incidence,
        values: FloatArray,
        residuals: FloatArray,
        upper: FloatArray,
        gradient: FloatArray,
    ) -> None:
        run = kernel("block_gram_rows", self._type, self._indptr.dtype.name)
        blocks, rows, local = self.blocks, group.places.rows, group.places.local_columns
        fixed = (
            blocks.starts, blocks.indptr, blocks.indices, self._indptr, group.starts,
            group.incident, group.blocks, *group.fixed, rows, local, len(group.places.entries),
            group.stored_at, group.is_stored, values, residuals,
        )  # fmt: skip
        works = [
            (
                np.zeros(blocks.count, blocks.starts.dtype), np.zeros(local, self._indptr.dtype),
                np.zeros(local * (local + 1)), np.zeros(rows * local),
            )
            for _ in self._ranges
        ]  # fmt: skip
        self._pool.run(self._ranges, lambda t, a, b: run(a, b, *fixed, *works[t], upper, gradient))

    def close(self) -> None:
        """Stop the threads. Further calls start them again."""
        self._pool.close()


class SharedAssembly:
    """JᵀJ and Jᵀr where all elements of a group gather the same blocks, as a curve's points do.

    The matrix is taken to be full.

    Args:
        n_columns: unknowns.
        groups: as for `BlockAssembly`; each with the same blocks in all elements.
        starts: first unknown of each block, rising, and the number of unknowns; (blocks + 1,).
        threads: threads to use; all cores that the process may use if None.
    """

    def __init__(
        self, starts: IndexArray, groups: Sequence[GroupPlaces], threads: int | None = None
    ) -> None:
        self.n_columns = int(starts[-1])
        self._groups = list(groups)
        self._pool = RangePool(threads)
        self._square: FloatArray = np.zeros((self.n_columns, self.n_columns))
        self._rows, self._columns = np.triu_indices(self.n_columns)
        self._unknowns = [_unknowns_of(g, starts) for g in groups]
        self._sizes = [(g.count * g.rows, g.count * len(g.entries)) for g in groups]

    def pattern(self) -> tuple[IndexArray, IndexArray]:
        """Row starts and columns of a full upper triangle."""
        n = self.n_columns
        dtype = index_dtype(self._columns.size)
        indptr = np.concatenate([[0], np.cumsum(np.arange(n, 0, -1))])
        return indptr.astype(dtype), self._columns.astype(dtype)

    def sum(
        self, values: FloatArray, residuals: FloatArray, upper: FloatArray, gradient: FloatArray
    ) -> None:
        """Set the upper triangle of JᵀJ, row by row, and Jᵀr; see `BlockAssembly.sum`."""
        check_totals(values, residuals, self._sizes)
        self._square.fill(0.0)
        gradient.fill(0.0)
        row = value = 0
        for group, unknowns, (rows, stored) in zip(
            self._groups, self._unknowns, self._sizes, strict=True
        ):
            own, r = values[value : value + stored], residuals[row : row + rows]
            row, value = row + rows, value + stored
            local, part = self._local(group, own, r)
            free = unknowns >= 0
            kept = unknowns[free]
            # Two places may gather one block: then a sum over ordered pairs.
            np.add.at(self._square, (kept[:, None], kept), local[free][:, free])
            np.add.at(gradient, kept, part[free])
        upper[:] = self._square[self._rows, self._columns]

    def _local(
        self, group: GroupPlaces, values: FloatArray, residuals: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """JᵀJ and Jᵀr over a group in local columns; chunks are added in their order."""
        n = group.local_columns
        chunks = -(-group.count // _CHUNK)
        # The residual is one more column, behind the others.
        row = np.append(group.entries[:, 0], np.arange(group.rows))
        column = np.append(group.entries[:, 1], np.full(group.rows, n))
        columns = column[np.argsort(row, kind="stable")].astype(np.int64)
        starts = np.append(0, np.cumsum(np.bincount(row, minlength=group.rows))).astype(np.int64)
        grams = np.zeros((chunks, n + 1, n + 1))
        run = kernel("shared_gram", "int64")
        work = _CHUNK * int((np.diff(starts) ** 2).sum())
        ranges = self._pool.ranges(work * np.arange(chunks + 1))
        panels = [np.zeros((n + 1, _PANEL)) for _ in ranges]
        self._pool.run(
            ranges,
            lambda t, a, b: run(a, b, _CHUNK, starts, columns, values, residuals, panels[t], grams),
        )
        upper = grams.sum(axis=0)
        return upper[:n, :n] + np.triu(upper[:n, :n], 1).T, upper[:n, n]

    def close(self) -> None:
        """Stop the threads. Further calls start them again."""
        self._pool.close()


def _unknowns_of(group: GroupPlaces, starts: IndexArray) -> IndexArray:
    """Unknown of each local column of a group that gathers the same blocks, -1 where frozen."""
    result = np.full(group.local_columns, -1, np.int64)
    for column, width, block in zip(group.columns, group.widths, group.blocks[0], strict=True):
        if block >= 0:
            result[column : column + width] = starts[block] + np.arange(width)
    return result


def check_totals(
    values: FloatArray, residuals: FloatArray, sizes: Sequence[tuple[int, int]]
) -> None:
    """Refuse arrays that do not fit groups of that many residuals and values of J.

    Raises:
        ShapeError: another number, or not float64.
    """
    for array, size, what in (
        (residuals, sum(r for r, _ in sizes), "residuals"),
        (values, sum(v for _, v in sizes), "values of J"),
    ):
        if array.shape != (size,) or array.dtype != np.float64:
            raise ShapeError(
                f"{what}: got {array.dtype} of shape {array.shape}, expected float64 of shape "
                f"({size},)"
            )


def _block_pattern(
    groups: Sequence[GroupPlaces], blocks: int, dtype: Any, threads: int | None
) -> tuple[IndexArray, IndexArray]:
    """Upper triangle of JᵀJ by blocks, in CSR, sorted, the diagonal first."""
    counts: list[IndexArray] = [np.zeros(1, np.int64)]
    columns: list[IndexArray] = [np.empty(0, np.int64)]
    for rows in itertools.chain.from_iterable(g.pattern_rows() for g in groups):
        free = rows >= 0
        counts.append(free.sum(axis=1))
        columns.append(rows.ravel() if free.all() else rows[free])
    assembly = HostAssembly(
        np.cumsum(np.concatenate(counts)), np.concatenate(columns), blocks, threads
    )
    try:
        indptr, indices = assembly.upper_gram_pattern()
    finally:
        assembly.close()
    return indptr.astype(dtype), indices.astype(dtype)
