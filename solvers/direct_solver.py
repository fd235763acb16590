"""The three phases of a direct solver, with the checks that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import ShapeError, SolveError

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]


class DirectSolver(ABC):
    """A factorisation A = LLᵀ with its three phases; subclasses fill in the library calls.

    Attributes:
        name: what the report calls it.
        n: number of unknowns, 0 before `analyze`.
    """

    name: str = ""

    def __init__(self) -> None:
        self.n = 0
        self.indptr: IndexArray = np.zeros(1, np.int32)
        self.indices: IndexArray = np.zeros(0, np.int32)
        self._is_factorized = False

    def analyze(self, indptr: IndexArray, indices: IndexArray, n: int) -> None:
        """Take the pattern of the upper triangle in CSR; order it and allocate.

        Args:
            indptr: row starts, shape (n + 1,).
            indices: columns, sorted in each row, the diagonal first; shape (entries,).
            n: number of unknowns.

        Raises:
            ShapeError: the pattern is not of that form.
        """
        starts = np.asarray(indptr)[:-1]
        if n < 1 or indptr.shape != (n + 1,) or int(indptr[-1]) != indices.size:
            raise ShapeError(
                f"pattern for {self.name}: got {indptr.size} row starts for {n} unknowns and "
                f"{indices.size} entries; expected {n + 1}, the last one equal to the entries"
            )
        if (starts >= indices.size).any() or (indices[starts] != np.arange(n)).any():
            raise ShapeError(
                f"pattern for {self.name}: every row of the upper triangle must begin with its "
                "diagonal entry (store it even where it is zero)"
            )
        self.n, self._is_factorized = n, False
        self.indptr, self.indices = np.ascontiguousarray(indptr), np.ascontiguousarray(indices)
        self._analyze()

    def factorize(self, values: FloatArray) -> bool:
        """Factorise the matrix with these values in the order of the analysed pattern.

        Returns:
            False if the matrix is not positive definite (or not finite); the solver can then be
            given other values.

        Raises:
            ShapeError: not one float64 value per entry of the pattern.
            SolveError: `analyze` was not called, or the library failed otherwise (memory).
        """
        if self.n == 0:
            raise SolveError(f"{self.name}: call analyze(indptr, indices, n) before factorize")
        if values.shape != self.indices.shape or values.dtype != np.float64:
            raise ShapeError(
                f"{self.name}: got {values.dtype} values of shape {values.shape}, expected float64 "
                f"of shape {self.indices.shape}, one per entry of the analysed pattern"
            )
        # Libraries differ in what they do with NaN.
        self._is_factorized = False
        if np.isfinite(values).all() and (values[self.indptr[:-1]] > 0.0).all():
            self._is_factorized = self._factorize(np.ascontiguousarray(values))
        return self._is_factorized

    def solve(self, rhs: FloatArray) -> FloatArray:
        """Solution x of A·x = rhs; shape (n,), or (n, k) for k right-hand sides.

        Raises:
            ShapeError: rhs has another number of rows.
            SolveError: there is no successful factorisation to solve with.
        """
        if not self._is_factorized:
            raise SolveError(f"{self.name}: no factorisation; factorize must have returned True")
        if rhs.ndim not in (1, 2) or rhs.shape[0] != self.n:
            raise ShapeError(
                f"{self.name}: right-hand side has shape {rhs.shape}, expected ({self.n},) "
                f"or ({self.n}, k)"
            )
        return self._solve(np.asfortranarray(rhs, np.float64))

    def close(self) -> None:
        """Free the factors. The solver can be used again from `analyze` on."""
        self.n, self._is_factorized = 0, False

    @abstractmethod
    def _analyze(self) -> None: ...

    @abstractmethod
    def _factorize(self, values: FloatArray) -> bool: ...

    @abstractmethod
    def _solve(self, rhs: FloatArray) -> FloatArray: ...
