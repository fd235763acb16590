"""Cost, gradient and JᵀJ v of a problem in bounded memory: summed over pieces, J never whole.

What is in memory at a time is the residuals and the Jacobian of one piece, and vectors as long as
the parameters. So batches may be larger than the memory for them, and their data and indices may
lie in memory-mapped files.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, Session
from autograd_gpu.runtime.choice import choose_backend, open_session
from autograd_gpu.runtime.closing import Closing
from autograd_gpu.runtime.streamed_session import StreamedSession
from autograd_gpu.solvers.evaluation import current_parameters

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

SHARE = 6
"""What goes with the arrays of a piece on the host: its pattern, as 64-bit numbers, and two sparse
matrices; the arrays themselves get one part in so many of a budget."""


def jacobian_of(analysis: Analysis, groups: Sequence[BoundGroup], values: FloatArray) -> Any:
    """J of some groups (SciPy CSR), frozen columns left out, from a session's values."""
    sparse: Any = importlib.import_module("scipy.sparse")
    indptr, indices, kept = analysis.pattern_of(groups)
    free = values if kept is None else values[kept]
    return sparse.csr_array((free, indices, indptr), (len(indptr) - 1, analysis.column_count))


def each_piece(
    session: Session, groups: Sequence[BoundGroup]
) -> Generator[tuple[Sequence[BoundGroup], Session]]:
    """The pieces of a session one by one, or its groups at once, with what evaluates them."""
    if not isinstance(session, StreamedSession):
        yield groups, session
        return
    for _, _, piece, part in session.each():
        yield [piece], part


class PieceProducts(Closing):
    """Products of a problem at its current parameters, summed in float64 on the host.

    Args:
        problem: of residuals alone; its structure and data are those of now.
        backend: what evaluates residuals and Jacobians.
        precision: of those.
        device: for ``wgsl``: a device, or part of an adapter's name.
        memory_budget: bytes for what is in memory at a time beside the vectors; None for that of
            the problem.

    Raises:
        InputError: the problem has energies or residuals from outside, or an unknown option.
        DeviceMemoryError: not even one element fits.
    """

    def __init__(
        self,
        problem: Problem,
        backend: str = "auto",
        precision: str = "auto",
        device: Device | str | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self._problem = problem
        self._analysis = analysis = problem.analysis()
        if analysis.energies or analysis.external_names:
            raise InputError(
                "products: the problem has energies or residuals from outside, which are not "
                "summed in pieces; call problem.evaluate()"
            )
        rows = analysis.row_count
        choice = choose_backend(backend, precision, problem.device(device), rows)
        budget = problem.memory_budget if memory_budget is None else memory_budget
        share = None if budget is None else budget // SHARE
        self._session = open_session(
            choice, analysis.groups, analysis.parameter_count, memory_budget=share
        )

    @property
    def description(self) -> str:
        """Device or processor, and in how many pieces."""
        return self._session.description

    def cost(self) -> float:
        """½‖r‖², under robust losses ½Σρ(‖r‖²)."""
        return self._session.cost(current_parameters(self._problem))

    def gradient(self) -> FloatArray:
        """Jᵀr, one number a column of J (``problem.columns``)."""
        total = np.zeros(self._analysis.column_count)
        for residuals, jacobian in self._linearized():
            total += jacobian.T @ residuals
        return total

    def jtj_product(self, vector: FloatArray) -> FloatArray:
        """JᵀJ v, one number a column of J in and out.

        Raises:
            ShapeError: another length.
        """
        given = np.asarray(vector, np.float64)
        if given.shape != (self._analysis.column_count,):
            raise ShapeError(
                f"jtj_product: got shape {given.shape}, expected ({self._analysis.column_count},), "
                "one number for each column of J; problem.columns(x) says which is which"
            )
        total = np.zeros(self._analysis.column_count)
        for _, jacobian in self._linearized():
            total += jacobian.T @ (jacobian @ given)
        return total

    def _linearized(self) -> Generator[tuple[FloatArray, Any]]:
        """Residuals and J, piece by piece."""
        x = current_parameters(self._problem)
        for groups, session in each_piece(self._session, self._analysis.groups):
            residuals, values = session.residual_jacobian(x)
            yield residuals, jacobian_of(self._analysis, groups, values)

    def close(self) -> None:
        """Free what it holds; nothing of the problem."""
        self._session.close()
