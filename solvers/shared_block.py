"""Problems of one block of parameters that all elements share, as dense models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import BackendChoice, choose_backend
from autograd_gpu.solvers.dense_trust_region import LinearModel, factored

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.problem import Problem

NUMPY_RESIDUALS = 20_000
"""Up to here NumPy has evaluated a whole fit before Numba has compiled one kernel (about 1 s)."""


def choose_for_fit(
    backend: str, precision: str, device: Device | None, residuals: int
) -> BackendChoice:
    """``choose_backend``, but ``auto`` does not compile for a few thousand residuals."""
    if backend == "auto" and device is None and precision in ("auto", "float64"):
        backend = "numpy" if residuals <= NUMPY_RESIDUALS else "numba"
    return choose_backend(backend, precision, device, residuals)


class StoredModel:
    """A dense model whose Jacobian is stored: an orthogonal factorisation, full accuracy.

    Args:
        problem: one parameter array, (1, n).
        choice: where it is evaluated.
        order: row of ``residuals`` for each row of the problem; None if they are the same.
        whiten: applied to residuals and to columns of J; None for nothing.
        jacobian: the user's own J, (m, n), at x; None for the compiler's.
    """

    def __init__(
        self,
        problem: Problem,
        choice: BackendChoice,
        order: np.ndarray[Any, np.dtype[np.intp]] | None = None,
        whiten: Callable[[FloatArray], FloatArray] | None = None,
        jacobian: Callable[[FloatArray], FloatArray] | None = None,
    ) -> None:
        analysis = problem.analysis()
        self._session = analysis.session(choice)
        self._free_values = analysis.free_values
        self._shape = (analysis.row_count, analysis.column_count)
        self._rows = np.repeat(np.arange(analysis.row_count), np.diff(analysis.indptr))
        self._columns = analysis.indices
        self._order = order
        self._whiten = whiten
        self._given = jacobian

    def residuals(self, x: FloatArray) -> FloatArray:
        """Residuals whose half square is the cost."""
        return self._finished(self._session.residuals(x).copy())

    def pair(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Residuals and Jacobian of Gauss-Newton."""
        if self._given is not None:
            return self.residuals(x), self._own(x)
        residuals, values = self._session.residual_jacobian(x)
        dense = np.zeros(self._shape)
        # Entries of one row may name a column twice: where two slots gather the same block.
        np.add.at(dense, (self._rows, self._columns), self._free_values(values))
        return self._finished(residuals.copy()), self._finished(dense)

    def jacobian(self, x: FloatArray) -> FloatArray:
        """J alone, (m, n)."""
        return self.pair(x)[1]

    def _own(self, x: FloatArray) -> FloatArray:
        assert self._given is not None
        given = self._given(x)
        if given.shape != self._shape:
            raise ShapeError(f"jac: got shape {given.shape}, expected {self._shape}")
        return given

    def linearize(self, x: FloatArray) -> LinearModel:
        """The model of Gauss-Newton at x."""
        residuals, jacobian = self.pair(x)
        return factored(jacobian, residuals)

    def _finished(self, rows: FloatArray) -> FloatArray:
        if self._order is not None:
            rows = rows[self._order]
        return rows if self._whiten is None else self._whiten(rows)
