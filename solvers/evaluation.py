"""Residuals, Jacobian, gradient and cost of a problem at one point."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from autograd_gpu.errors import DeviceError, KernelError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.probe_values import Probes, probe_values

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from autograd_gpu.runtime.choice import BackendChoice
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
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
        cost: ½Σρ(‖r‖²) over the elements, ½‖r‖² without losses, plus the energies.
        energy_gradient: of the energies alone, ``(columns,)``; None without any.
        energy_hessian: sum of their Hessians as they are (not projected), sparse CSR; or None.
        backend, precision, device: where it was computed.
        reason: why there.
        probes: values that ``ag.probe`` named, by name; ``(elements, *shape)``.
    """

    residuals: FloatArray
    jacobian: csr_array[Any]
    cost: float
    backend: str
    precision: str
    device: str
    reason: str
    energy_gradient: FloatArray | None = None
    energy_hessian: csr_array[Any] | None = None
    probes: Probes = field(default_factory=Probes)

    @cached_property
    def gradient(self) -> FloatArray:
        """Gradient of the cost, Jᵀr + Σ∂E, ``(columns,)``."""
        squares = np.asarray(cast(Any, self.jacobian).T @ self.residuals)
        return squares if self.energy_gradient is None else squares + self.energy_gradient


def current_parameters(problem: Problem) -> FloatArray:
    """All parameters of a problem, flat, array after array."""
    return np.concatenate([problem.values_of(a).ravel() for a in problem.arrays])


def evaluate(
    problem: Problem, backend: str, precision: str, device: Device | str | None
) -> Evaluation:
    """Evaluate at the problem's current parameters; see ``Problem.evaluate``."""
    from autograd_gpu.solvers.recovery import Recovery

    with problem.alone:
        analysis = problem.analysis()
        size = analysis.row_count + sum(g.count for g in analysis.energies)
        choice = choose_backend(backend, precision, problem.device(device), size)
        recovery = Recovery(choice, free=backend == "auto" and device is None)
        with recovery.of(analysis):
            while True:  # `move` raises when there is nowhere to go on
                try:
                    return _evaluated(problem, analysis, recovery.choice)
                except (DeviceError, KernelError, MemoryError) as error:
                    recovery.move(error, analysis, "while it evaluated", "the same point")


def _evaluated(problem: Problem, analysis: Analysis, choice: BackendChoice) -> Evaluation:
    from scipy.sparse import csr_array

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
    energies, gradient, curvature = _energies(analysis, choice, x)
    return Evaluation(
        residuals=residuals,
        jacobian=jacobian,
        cost=session.cost(x) + energies,
        backend=choice.backend,
        precision=choice.precision,
        device=session.description,
        reason=choice.reason,
        energy_gradient=gradient,
        energy_hessian=curvature,
        probes=probe_values([*problem.groups, *problem.energies], analysis.base, choice, x),
    )


def _energies(
    analysis: Analysis, choice: BackendChoice, x: FloatArray
) -> tuple[float, FloatArray | None, csr_array[Any] | None]:
    """Sum of the energies, their gradient and their Hessian."""
    from scipy.sparse import csr_array

    from autograd_gpu.solvers.energy_model import EnergyModel

    if not analysis.energies:
        return 0.0, None, None
    model = EnergyModel(analysis, choice)
    try:
        found = model.quadratic(x, "none")
    finally:
        model.close()
    normal = analysis.normal_equations
    upper: Any = csr_array((found.upper, normal.indices, normal.indptr), shape=(normal.n, normal.n))
    both: Any = upper + upper.T
    both.setdiag(upper.diagonal())
    return float(np.sum(found.energies)), found.gradient, csr_array(both)
