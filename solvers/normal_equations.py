"""The normal equations (JᵀJ + D)·δ = -Jᵀr of one sparsity pattern.

The pattern of JᵀJ is found once; after that, `assemble` only writes numbers into buffers that were
allocated once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.host_assembly import HostAssembly, index_dtype

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# A Jacobian at least this full goes through BLAS, and JᵀJ is taken to be full.
_DENSE_FILL = 0.25
# Unless JᵀJ itself would be too large to hold as a square (128 MB).
_DENSE_COLUMNS = 4096


class NormalEquations:
    """Upper triangle of JᵀJ, gradient Jᵀr and diagonal, for Jacobians of one sparsity pattern.

    Args:
        indptr: row starts of J, shape (rows + 1,).
        indices: columns of the entries of J, in any order, duplicates adding up; shape (entries,).
        n_columns: number of columns of J.
        threads: threads for the assembly; all available cores if None. Does not change a bit of
            the sparse path's results.

    Attributes:
        indptr: row starts of the upper triangle of JᵀJ, shape (columns + 1,).
        indices: its columns, sorted in each row, the diagonal first; shape (upper entries,).
        upper: its values after `assemble`, in the same order; a buffer that the next call reuses.
        gradient: Jᵀr after `assemble`, shape (columns,); also reused.
        diagonal: diagonal of JᵀJ after `assemble`, shape (columns,); also reused.
        assembly: the sparse products over J's pattern (Jv, Jᵀv, column norms).

    Raises:
        ShapeError: the pattern is not one of a matrix with `n_columns` columns.
    """

    def __init__(
        self,
        indptr: IndexArray,
        indices: IndexArray,
        n_columns: int,
        threads: int | None = None,
    ) -> None:
        self.assembly = HostAssembly(indptr, indices, n_columns, threads)
        n_rows = self.assembly.n_rows
        self._square: FloatArray | None = None
        if 0 < n_columns <= _DENSE_COLUMNS and indices.size >= _DENSE_FILL * n_rows * n_columns:
            self._square = np.zeros((n_columns, n_columns), order="F")
            self._upper_rows, columns = np.triu_indices(n_columns)
            dtype = index_dtype(columns.size)
            self.indices: IndexArray = columns.astype(dtype)
            lengths = np.arange(n_columns, 0, -1)
            self.indptr: IndexArray = np.concatenate(([0], np.cumsum(lengths))).astype(dtype)
        else:
            self.indptr, self.indices = self.assembly.upper_gram_pattern()
        self._diagonal_positions = self.indptr[:-1]
        self.upper: FloatArray = np.zeros(self.indices.size)
        self.gradient: FloatArray = np.zeros(n_columns)
        self.diagonal: FloatArray = np.zeros(n_columns)
        self._damped: FloatArray = np.zeros(self.indices.size)

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return self.assembly.n_columns

    @property
    def is_dense(self) -> bool:
        """Whether J is full enough to be multiplied through BLAS."""
        return self._square is not None

    def assemble(self, jacobian_values: FloatArray, residuals: FloatArray) -> None:
        """Set `upper`, `gradient` and `diagonal` from the values of J and r.

        Args:
            jacobian_values: entries of J in the order of the pattern, shape (entries,).
            residuals: r, shape (rows,).

        Raises:
            ShapeError: an array does not fit the pattern, or is not float64.
        """
        values, r = np.ascontiguousarray(jacobian_values), np.ascontiguousarray(residuals)
        if self._square is not None:
            self.assembly.dense_gram(values, r, self._square, self.gradient)
            self.upper[:] = self._square[self._upper_rows, self.indices]
        else:
            self.assembly.upper_gram(values, self.indptr, self.indices, self.upper)
            self.assembly.transposed_product(values, r, self.gradient)
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
        self.assembly.close()
