"""Sparse products of a Jacobian on the CPU: JᵀJ, Jᵀr, Jv and column norms, compiled by Numba.

Every output row (or column) is summed by exactly one thread, in an order that depends on the
pattern of J alone, so results are the same to the bit whatever the number of threads.

`HostAssembly` runs the kernels of `assembly_kernels` over ranges of rows in a few threads;
`SymmetricMatrix` does the same for products with a matrix that is given by its upper triangle.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.blas_threads import all_blas_threads
from autograd_gpu.runtime.threads import available_threads, run_beside

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# Multiply-adds below which handing a range to another thread costs more than it saves.
_SERIAL_WORK = 100_000
# Entries of J that the dense path expands at a time: 2 MB, so that a block stays in cache.
_DENSE_BLOCK_ENTRIES = 1 << 18


def index_dtype(largest: int) -> type[np.int32] | type[np.int64]:
    """int32 if `largest` fits, else int64."""
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64


def unsigned(indices: IndexArray) -> IndexArray:
    """The same memory read as unsigned: without tests for negative indices, loops run faster."""
    return indices.view(f"u{indices.dtype.name}")


def _balanced_ranges(work: IndexArray, parts: int) -> list[tuple[int, int]]:
    """Cut 0 … len(work) - 1 into at most `parts` ranges of about equal work.

    Args:
        work: cumulative work, one entry per row and a leading zero; shape (rows + 1,).
        parts: number of ranges wanted.
    """
    rows = work.size - 1
    targets = work[-1] * np.arange(1, parts) // parts
    search: Any = np.searchsorted  # NumPy's stub leaves its type open
    inner: IndexArray = search(work, targets)
    cuts = np.unique(np.concatenate(([0], inner, [rows])))
    return [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]


class RangePool:
    """Runs a task over ranges of rows in a few threads, which are started at first use.

    Args:
        threads: threads to use; all cores that the process may use if None.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = max(1, available_threads() if threads is None else threads)
        self._pool: ThreadPoolExecutor | None = None

    def ranges(self, work: IndexArray) -> list[tuple[int, int]]:
        """Ranges of about equal work, one a thread; a single one where threads do not pay.

        Args:
            work: cumulative multiply-adds, shape (rows + 1,).
        """
        parts = self.threads if work[-1] >= _SERIAL_WORK else 1
        return _balanced_ranges(work, parts)

    def run(self, ranges: list[tuple[int, int]], task: Callable[[int, int, int], None]) -> None:
        """Call ``task(part, first, last)`` for every range, in this thread too."""
        tasks = [functools.partial(task, k, *bounds) for k, bounds in enumerate(ranges)]
        run_beside(tasks, self._opened, self.threads)

    def _opened(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="assembly")
        return self._pool

    def close(self) -> None:
        """Stop the threads. Further calls start them again."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


class HostAssembly:
    """A sparsity pattern of J with everything that products over it need, except the values.

    Rows may hold entries in any order, and a column more than once (such entries add up).
    Owns its thread pool and work arrays; not to be used from two threads at once.

    Args:
        indptr: row starts of J, shape (rows + 1,).
        indices: columns of the entries of J, shape (entries,).
        n_columns: number of columns of J.
        threads: threads to use; all cores that the process may use if None.

    Raises:
        ShapeError: the arrays are not a CSR pattern of a matrix with `n_columns` columns.
    """

    def __init__(
        self,
        indptr: IndexArray,
        indices: IndexArray,
        n_columns: int,
        threads: int | None = None,
    ) -> None:
        _check_pattern(indptr, indices, n_columns)
        dtype = index_dtype(max(indices.size, n_columns + 1, indptr.size))
        self.indptr: IndexArray = np.ascontiguousarray(indptr, dtype)
        self.indices: IndexArray = np.ascontiguousarray(indices, dtype)
        self.n_rows = indptr.size - 1
        self.n_columns = n_columns
        self._pool = RangePool(threads)
        self.threads = self._pool.threads
        self._type = np.dtype(dtype).name
        self._work: list[FloatArray] = []
        self._block: FloatArray = np.empty((0, n_columns))

    @functools.cached_property
    def _transposed(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Column starts, and the row and the position in CSR order of each entry by columns."""
        return transposed_pattern(self.indptr, self.indices, self.n_columns)

    @functools.cached_property
    def _rows_are_sorted(self) -> bool:
        rising = np.diff(self.indices) > 0
        starts = self.indptr[1:-1]
        rising[starts[(starts > 0) & (starts < self.indices.size)] - 1] = True
        return bool(rising.all())

    @functools.cached_property
    def _gram_ranges(self) -> list[tuple[int, int]]:
        column_start, rows, _ = self._transposed
        work = np.concatenate(([0], np.cumsum(np.diff(self.indptr)[rows], dtype=np.int64)))
        return self._pool.ranges(work[column_start])

    @functools.cached_property
    def _column_ranges(self) -> list[tuple[int, int]]:
        return self._pool.ranges(self._transposed[0])

    @functools.cached_property
    def _row_ranges(self) -> list[tuple[int, int]]:
        return self._pool.ranges(self.indptr)

    def upper_gram_pattern(self) -> tuple[IndexArray, IndexArray]:
        """Pattern of the upper triangle of JᵀJ: row starts and columns, sorted in each row.

        The diagonal is always present and so comes first in its row. Indices are int32 where
        the number of entries allows, else int64.
        """
        column_start, rows, _ = self._transposed
        pattern = (self.indptr, self.indices, column_start, rows)
        ranges = self._gram_ranges
        seen = [np.full(self.n_columns, -1, self.indptr.dtype) for _ in ranges]
        counts = np.zeros(self.n_columns + 1, np.int64)
        count = kernel("count_upper", self._type)
        self._pool.run(ranges, lambda k, a, b: count(a, b, *pattern, seen[k], counts[1:]))

        starts = np.cumsum(counts)
        dtype = index_dtype(int(starts[-1]))
        out_indptr: IndexArray = starts.astype(dtype)
        out_indices: IndexArray = np.empty(int(starts[-1]), dtype)
        for array in seen:
            array.fill(-1)
        fill = kernel("fill_upper", self._type, np.dtype(dtype).name)
        self._pool.run(
            ranges, lambda k, a, b: fill(a, b, *pattern, seen[k], out_indptr, out_indices)
        )

        # Transposing twice sorts the columns of every row in linear time.
        lower_indptr, lower_indices, _ = transposed_pattern(out_indptr, out_indices, self.n_columns)
        return transposed_pattern(lower_indptr, lower_indices, self.n_columns)[:2]

    def upper_gram(
        self,
        values: FloatArray,
        out_indptr: IndexArray,
        out_indices: IndexArray,
        out: FloatArray,
    ) -> FloatArray:
        """Upper triangle of JᵀJ, written to `out` in the order of `upper_gram_pattern`.

        Gustavson's algorithm, one owner thread per row (Gustavson 1978, ACM TOMS 4(3)).
        """
        self._check(values, self.indices.size, "values of J")
        ranges = self._gram_ranges
        while len(self._work) < len(ranges):
            self._work.append(np.zeros(self.n_columns))
        gram = kernel("upper_gram", self._type, out_indptr.dtype.name)
        fixed = (self.indptr, self.indices, values, *self._transposed, self._rows_are_sorted)
        self._pool.run(
            ranges,
            lambda k, a, b: gram(a, b, *fixed, self._work[k], out_indptr, out_indices, out),
        )
        return out

    def prepare_transposed(self) -> None:
        """Transpose the pattern and compile for `transposed_product`, ahead of its first call."""
        kernel("transposed_product", self._type)
        _ = self._transposed

    def transposed_product(
        self, values: FloatArray, vector: FloatArray, out: FloatArray | None = None
    ) -> FloatArray:
        """Jᵀ·vector, shape (columns,)."""
        self._check(values, self.indices.size, "values of J")
        self._check(vector, self.n_rows, "vector")
        result = np.empty(self.n_columns) if out is None else out
        run = kernel("transposed_product", self._type)
        fixed = (values, *self._transposed, vector, result)
        self._pool.run(self._column_ranges, lambda _, a, b: run(a, b, *fixed))
        return result

    def product(
        self, values: FloatArray, vector: FloatArray, out: FloatArray | None = None
    ) -> FloatArray:
        """J·vector, shape (rows,)."""
        self._check(values, self.indices.size, "values of J")
        self._check(vector, self.n_columns, "vector")
        result = np.empty(self.n_rows) if out is None else out
        run = kernel("product", self._type)
        fixed = (self.indptr, self.indices, values, vector, result)
        self._pool.run(self._row_ranges, lambda _, a, b: run(a, b, *fixed))
        return result

    def column_squared_norms(self, values: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """Squared norm of each column of J, which is the diagonal of JᵀJ; shape (columns,)."""
        self._check(values, self.indices.size, "values of J")
        result = np.empty(self.n_columns) if out is None else out
        run = kernel("column_squared_norms", self._type)
        fixed = (values, *self._transposed, result)
        self._pool.run(self._column_ranges, lambda _, a, b: run(a, b, *fixed))
        return result

    def dense_gram(
        self, values: FloatArray, residuals: FloatArray, gram: FloatArray, gradient: FloatArray
    ) -> None:
        """JᵀJ (upper triangle) and Jᵀr through BLAS, for a J that is nearly full.

        Args:
            values: entries of J, shape (entries,).
            residuals: r, shape (rows,).
            gram: result, shape (columns, columns), Fortran order; the lower triangle is not set.
            gradient: result, shape (columns,).
        """
        dsyrk: Any = importlib.import_module("scipy.linalg.blas").dsyrk
        self._check(values, self.indices.size, "values of J")
        self._check(residuals, self.n_rows, "residuals")
        height = max(64, _DENSE_BLOCK_ENTRIES // max(1, self.n_columns))
        if self._block.shape[0] == 0:
            self._block = np.empty((min(height, max(1, self.n_rows)), self.n_columns))
        expand = kernel("expand_rows", self._type)
        gram.fill(0.0)
        gradient.fill(0.0)
        with all_blas_threads():
            for first in range(0, self.n_rows, height):
                last = min(first + height, self.n_rows)
                block = self._block[: last - first]
                expand(first, last, first, self.indptr, self.indices, values, block)
                dsyrk(1.0, block.T, beta=1.0, c=gram, overwrite_c=1)
                gradient += residuals[first:last] @ block

    def close(self) -> None:
        """Stop the threads. Further calls start them again."""
        self._pool.close()

    @staticmethod
    def _check(array: FloatArray, size: int, what: str) -> None:
        if array.shape != (size,) or array.dtype != np.float64:
            raise ShapeError(
                f"{what}: got {array.dtype} of shape {array.shape}, expected float64 of shape "
                f"({size},), one per entry of the pattern given at construction"
            )


class SymmetricMatrix:
    """A symmetric matrix in full CSR, given by its upper triangle; products and their threads.

    The full square takes twice the memory of the triangle, but a product then streams through it
    and each row is summed by one thread, so no bit depends on their number.

    Args:
        indptr: row starts of the upper triangle, shape (n + 1,).
        indices: its columns, sorted in each row, the diagonal first; shape (entries,).
        threads: threads to use; all cores that the process may use if None.

    Attributes:
        n: number of rows.
        indptr, indices: pattern of the full matrix, sorted rows.
        values: its entries, zero before the first `set`.
        index_type: "uint32" or "uint64", for kernels over `unsigned` index arrays.
        pool: the threads, for others that work on the same rows.

    Raises:
        ShapeError: the pattern is not of that form.
    """

    def __init__(self, indptr: IndexArray, indices: IndexArray, threads: int | None = None) -> None:
        n = indptr.size - 1
        _check_pattern(indptr, indices, n)
        starts = indptr[:-1]
        if n and ((starts >= indices.size).any() or (indices[starts] != np.arange(n)).any()):
            raise ShapeError(
                "symmetric matrix: every row of the upper triangle must begin with its diagonal "
                "entry (store it even where it is zero)"
            )
        self.n = n
        self.upper_entries = indices.size
        dtype = index_dtype(2 * indices.size + 1)
        self.index_type = f"u{np.dtype(dtype).name}"
        upper = (np.ascontiguousarray(indptr, dtype), np.ascontiguousarray(indices, dtype))
        lower = transposed_pattern(*upper, n)
        entries = 2 * indices.size - n
        self.indptr: IndexArray = np.zeros(n + 1, dtype)
        self.indices: IndexArray = np.empty(entries, dtype)
        self._source: IndexArray = np.empty(entries, dtype)
        kernel("symmetric_pattern", np.dtype(dtype).name)(
            *upper, *lower, self.indptr, self.indices, self._source
        )
        self.values: FloatArray = np.zeros(entries)
        self.pool = RangePool(threads)
        self._ranges = self.pool.ranges(self.indptr)

    def set(self, upper: FloatArray) -> None:
        """Copy the entries of the upper triangle, in the order of its pattern."""
        if upper.shape != (self.upper_entries,) or upper.dtype != np.float64:
            raise ShapeError(
                f"symmetric matrix: got {upper.dtype} values of shape {upper.shape}, expected "
                f"float64 of shape ({self.upper_entries},), one per entry of the pattern"
            )
        np.take(upper, self._source, out=self.values)

    def product(self, vector: FloatArray, out: FloatArray) -> FloatArray:
        """Matrix times vector, both of shape (n,)."""
        run = kernel("product", self.index_type)
        fixed = (unsigned(self.indptr), unsigned(self.indices), self.values, vector, out)
        self.pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))
        return out

    def close(self) -> None:
        """Stop the threads."""
        self.pool.close()


def upper_gram_pattern(
    indptr: IndexArray, indices: IndexArray, n: int
) -> tuple[IndexArray, IndexArray]:
    """Pattern of the upper triangle of JᵀJ in CSR, for the CSR pattern of a J with n columns.

    See `HostAssembly.upper_gram_pattern`, which keeps what the numeric phase can use again.
    """
    assembly = HostAssembly(indptr, indices, n)
    try:
        return assembly.upper_gram_pattern()
    finally:
        assembly.close()


def transposed_pattern(
    indptr: IndexArray, indices: IndexArray, n_columns: int
) -> tuple[IndexArray, IndexArray, IndexArray]:
    """Column starts, and row and position in CSR order of each entry by columns."""
    dtype = indptr.dtype
    column_start = np.zeros(n_columns + 1, dtype)
    rows, positions = np.empty(indices.size, dtype), np.empty(indices.size, dtype)
    kernel("transpose", dtype.name)(indptr, indices, column_start, rows, positions)
    return column_start, rows, positions


def _check_pattern(indptr: IndexArray, indices: IndexArray, n_columns: int) -> None:
    if indptr.ndim != 1 or indptr.size < 1 or indptr[0] != 0 or indptr[-1] != indices.size:
        raise ShapeError(
            f"Jacobian pattern: row starts must begin at 0 and end at {indices.size}, the number "
            f"of entries; got {indptr[:1]} … {indptr[-1:]} of shape {indptr.shape}"
        )
    if (np.diff(indptr) < 0).any():
        raise ShapeError("Jacobian pattern: row starts must not decrease")
    if indices.size and (indices.min() < 0 or indices.max() >= n_columns):
        raise ShapeError(
            f"Jacobian pattern: columns must lie in 0 … {n_columns - 1}, "
            f"got {indices.min()} … {indices.max()}"
        )
