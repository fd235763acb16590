"""Residuals, Jacobian, gradient and cost of a problem at one point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import choose_backend

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.problem import Problem


@dataclass(frozen=True)
class Evaluation:
    """Numbers at one point.

    Attributes:
        residuals: ``(rows,)``, groups in the order added, element by element. Under a robust loss
            these and the Jacobian are the corrected pair, as in Ceres: ``gradient`` is that of
            the cost, and JᵀJ its Gauss-Newton matrix.
        jacobian: sparse CSR, ``(rows, columns)``; ``problem.columns(x)`` says which column is
            which.
        cost: ½Σρ(‖r‖²) over the elements, ½‖r‖² without losses.
        backend, precision, device: where it was computed.
        reason: why there.
    """

    residuals: FloatArray
    jacobian: csr_array[Any]
    cost: float
    backend: str
    precision: str
    device: str
    reason: str

    @cached_property
    def gradient(self) -> FloatArray:
        """Jᵀr, ``(columns,)``."""
        return np.asarray(cast(Any, self.jacobian).T @ self.residuals)


def current_parameters(problem: Problem) -> FloatArray:
    """All parameters of a problem, flat, array after array."""
    return np.concatenate([problem.values_of(a).ravel() for a in problem.arrays])


def evaluate(
    problem: Problem, backend: str, precision: str, device: Device | str | None
) -> Evaluation:
    """Evaluate at the problem's current parameters; see ``Problem.evaluate``."""
    from scipy.sparse import csr_array

    analysis = problem.analysis()
    choice = choose_backend(backend, precision, problem.device(device), analysis.row_count)
    session = analysis.session(choice)
    x = current_parameters(problem)
    residuals, values = session.residual_jacobian(x)
    shape = (analysis.row_count, analysis.column_count)
    jacobian = csr_array(
        (analysis.free_values(values).copy(), analysis.indices.copy(), analysis.indptr.copy()),
        shape=shape,
    )
    jacobian.sum_duplicates()
    residuals = residuals.copy()
    if analysis.given_order is not None:
        residuals = residuals[analysis.given_order]
        jacobian = cast(Any, jacobian)[analysis.given_order]
    return Evaluation(
        residuals=residuals,
        jacobian=jacobian,
        cost=session.cost(x),
        backend=choice.backend,
        precision=choice.precision,
        device=session.description,
        reason=choice.reason,
    )
