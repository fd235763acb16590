"""The normal equations (JᵀJ + D)·δ = -Jᵀr of one sparsity pattern.

The pattern of JᵀJ is found once; after that, `assemble` only writes numbers into buffers that were
allocated once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.block_assembly import BlockAssembly
from autograd_gpu.runtime.host_assembly import HostAssembly, index_dtype

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# A Jacobian at least this full goes through BLAS, and JᵀJ is taken to be full.
_DENSE_FILL = 0.25
# Unless JᵀJ itself would be too large to hold as a square (128 MB).
_DENSE_COLUMNS = 4096


Pair = tuple[FloatArray, FloatArray]


class Gram(Protocol):
    """Sums JᵀJ and Jᵀr over a pattern that it finds once."""

    @property
    def n_columns(self) -> int:
        """Number of unknowns."""
        ...

    def pattern(self) -> tuple[IndexArray, IndexArray]:
        """Row starts and columns of the upper triangle of JᵀJ, sorted, the diagonal first."""
        ...

    def sum(
        self, values: FloatArray, residuals: FloatArray, upper: FloatArray, gradient: FloatArray
    ) -> None:
        """Set the upper triangle, in the order of the pattern, and the gradient."""
        ...

    def close(self) -> None:
        """Stop its threads."""
        ...


class RowGram:
    """Sums over the entries of J, row by row; through BLAS where J is nearly full.

    Args:
        indptr: row starts of J, shape (rows + 1,).
        indices: columns of the entries of J, in any order, duplicates adding up; shape (entries,).
        n_columns: number of columns of J.
        threads: threads for the assembly; all available cores if None. Does not change a bit of
            the sparse path's results.
        select: entries of the pattern and residuals from what `sum` gets; the same if None.

    Raises:
        ShapeError: the pattern is not one of a matrix with `n_columns` columns.
    """

    def __init__(
        self,
        indptr: IndexArray,
        indices: IndexArray,
        n_columns: int,
        threads: int | None = None,
        select: Callable[[FloatArray, FloatArray], Pair] | None = None,
    ) -> None:
        self.assembly = HostAssembly(indptr, indices, n_columns, threads)
        self.n_columns = n_columns
        self._select = select
        fill = indices.size / max(1, self.assembly.n_rows * n_columns)
        self._square: FloatArray | None = None
        if nearly_full(n_columns, fill):
            self._square = np.zeros((n_columns, n_columns), order="F")

    @property
    def is_dense(self) -> bool:
        """Whether J is full enough to be multiplied through BLAS."""
        return self._square is not None

    def pattern(self) -> tuple[IndexArray, IndexArray]:
        """Row starts and columns of the upper triangle of JᵀJ, sorted, the diagonal first."""
        if self._square is None:
            self._pattern = self.assembly.upper_gram_pattern()
        else:
            self._upper_rows, columns = np.triu_indices(self.n_columns)
            dtype = index_dtype(columns.size)
            starts = np.concatenate(([0], np.cumsum(np.arange(self.n_columns, 0, -1))))
            self._pattern = (starts.astype(dtype), columns.astype(dtype))
        return self._pattern

    def sum(
        self, values: FloatArray, residuals: FloatArray, upper: FloatArray, gradient: FloatArray
    ) -> None:
        """Set the upper triangle, in the order of the pattern, and the gradient."""
        if self._select is not None:
            values, residuals = self._select(values, residuals)
        indptr, indices = self._pattern
        if self._square is not None:
            self.assembly.dense_gram(values, residuals, self._square, gradient)
            upper[:] = self._square[self._upper_rows, indices]
        else:
            self.assembly.upper_gram(values, indptr, indices, upper)
            self.assembly.transposed_product(values, residuals, gradient)

    def close(self) -> None:
        """Stop the threads."""
        self.assembly.close()


def nearly_full(n_columns: int, fill: float) -> bool:
    """Whether a J with that share of entries had better be taken for full, and JᵀJ too."""
    return 0 < n_columns <= _DENSE_COLUMNS and fill >= _DENSE_FILL


class NormalEquations:
    """Upper triangle of JᵀJ, gradient Jᵀr and diagonal, for Jacobians of one sparsity pattern.

    Args:
        gram: sums them; owned.

    Attributes:
        indptr: row starts of the upper triangle of JᵀJ, shape (columns + 1,).
        indices: its columns, sorted in each row, the diagonal first; shape (upper entries,).
        upper: its values after `assemble`, in the same order; a buffer that the next call reuses.
        gradient: Jᵀr after `assemble`, shape (columns,); also reused.
        diagonal: diagonal of JᵀJ after `assemble`, shape (columns,); also reused.
        blocks: the pattern by blocks of unknowns, if it was found by them.
    """

    def __init__(self, gram: Gram) -> None:
        self._gram = gram
        self.blocks = gram.blocks if isinstance(gram, BlockAssembly) else None
        self.indptr, self.indices = gram.pattern()
        self._diagonal_positions = self.indptr[:-1]
        self.upper: FloatArray = np.zeros(self.indices.size)
        self.gradient: FloatArray = np.zeros(gram.n_columns)
        self.diagonal: FloatArray = np.zeros(gram.n_columns)
        self._damped: FloatArray = np.zeros(self.indices.size)

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return self._gram.n_columns

    def assemble(self, jacobian_values: FloatArray, residuals: FloatArray) -> None:
        """Set `upper`, `gradient` and `diagonal` from the values of J and r.

        Args:
            jacobian_values: entries of J, as the `Gram` takes them.
            residuals: r, shape (rows,).

        Raises:
            ShapeError: an array does not fit the pattern, or is not float64.
        """
        values, r = np.ascontiguousarray(jacobian_values), np.ascontiguousarray(residuals)
        self._gram.sum(values, r, self.upper, self.gradient)
        np.take(self.upper, self._diagonal_positions, out=self.diagonal)

    def add(self, upper: FloatArray, gradient: FloatArray) -> None:
        """Add another symmetric matrix of the same pattern, and to the gradient.

        Args:
            upper: its upper triangle, shape (upper entries,).
            gradient: shape (columns,).
        """
        self.upper += upper
        self.gradient += gradient
        np.take(self.upper, self._diagonal_positions, out=self.diagonal)

    def positions(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place in `upper` of entries of the pattern, row <= column; same shape as both.

        Raises:
            ShapeError: an entry is not in the pattern.
        """
        starts = np.repeat(np.arange(self.n), np.diff(self.indptr))
        keys = starts * np.int64(self.n) + self.indices
        wanted = rows * np.int64(self.n) + columns
        found = np.searchsorted(keys, wanted).astype(np.int64)
        if wanted.size and (keys[np.minimum(found, keys.size - 1)] != wanted).any():
            raise ShapeError("normal equations: an entry is not in the pattern of the matrix")
        return found

    def damped(self, damping: FloatArray | float) -> FloatArray:
        """Values of the upper triangle of JᵀJ + diag(damping).

        Args:
            damping: one per unknown, shape (columns,), or one for all.

        Returns:
            shape (upper entries,); a buffer of its own, which the next call reuses.
        """
        if np.ndim(damping) > 0 and np.shape(damping) != (self.n,):
            raise ShapeError(
                f"damping: got shape {np.shape(damping)}, expected ({self.n},), one per unknown"
            )
        self._damped[:] = self.upper
        self._damped[self._diagonal_positions] += damping
        return self._damped

    def matrix(self) -> csr_matrix:
        """Upper triangle of JᵀJ as a SciPy matrix that shares memory with `upper`."""
        sparse: Any = importlib.import_module("scipy.sparse")
        return sparse.csr_matrix((self.upper, self.indices, self.indptr), shape=(self.n, self.n))

    def close(self) -> None:
        """Stop the assembly threads."""
        self._gram.close()
