"""Dense Cholesky factorisation through LAPACK."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.runtime.blas_threads import all_blas_threads, one_blas_thread
from autograd_gpu.solvers.direct_solver import DirectSolver

FloatArray = NDArray[np.float64]

# Unknowns from which on a factorisation (50 ms in one thread) is worth waking OpenBLAS' threads.
_THREADED = 2000
# Below, it takes one of its own accord.
_HELD = 64


class DenseCholesky(DirectSolver):
    """LAPACK's Cholesky factorisation of the full square; for few unknowns or a full matrix."""

    name = "dense-cholesky (LAPACK)"

    def _analyze(self) -> None:
        rows = np.repeat(np.arange(self.n), np.diff(self.indptr))
        self._positions = rows + self.indices.astype(np.intp) * self.n
        self._square: FloatArray = np.zeros((self.n, self.n), order="F")

    def _factorize(self, values: FloatArray) -> bool:
        # The factor overwrites the square, so what was zero in the matrix must be cleared again.
        self._square.fill(0.0)
        self._square.ravel(order="K")[self._positions] = values
        lapack: Any = importlib.import_module("scipy.linalg.lapack")
        with self._threads():
            self._square, info = lapack.dpotrf(self._square, lower=0, clean=0, overwrite_a=1)
        return bool(info == 0)

    def _solve(self, rhs: FloatArray) -> FloatArray:
        lapack: Any = importlib.import_module("scipy.linalg.lapack")
        return lapack.dpotrs(self._square, rhs, lower=0)[0]

    def _threads(self) -> AbstractContextManager[None]:
        return all_blas_threads() if self.n >= _THREADED else one_blas_thread(self.n >= _HELD)

    def close(self) -> None:
        """Free the factor. The solver can be used again from `analyze` on."""
        super().close()
        self._square = np.zeros((0, 0))
