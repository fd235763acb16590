"""The accepted point of a problem with energies: Gauss-Newton part plus projected Hessians."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from autograd_gpu.runtime.batch import FloatArray, Session
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.energy_model import EnergyModel
from autograd_gpu.solvers.linearization import Linearization, Stopwatch, Trial
from autograd_gpu.solvers.retraction import Retraction


class EnergyLinearization(Linearization):
    """A point whose cost is ½‖r‖² + ΣE.

    The matrix of the normal equations is JᵀJ + ΣH⁺, H⁺ the Hessian of an element's energy made
    positive semi-definite, and their gradient Jᵀr + Σ∂E.

    Args:
        analysis: the problem.
        session: where residuals and Jacobians come from.
        retraction: moves the point by a step.
        start: all parameters, flat; not changed.
        watch: books the time.
        model: of the energies; borrowed.
        projection: of Hessians, see ``runtime.semidefinite.project``.
        floor: least eigenvalue of a projected Hessian.

    Attributes:
        energies: of each element at the point.
        projected: how many Hessians were not positive semi-definite there.
    """

    def __init__(
        self,
        analysis: Analysis,
        session: Session,
        retraction: Retraction,
        start: FloatArray,
        watch: Stopwatch,
        model: EnergyModel,
        projection: str,
        floor: float,
    ) -> None:
        super().__init__(analysis, session, retraction, start, watch)
        self._model = model
        self._projection, self._floor = projection, floor
        self.energies: FloatArray = np.zeros(0)
        self.projected = 0

    def _assemble(self, values: FloatArray, corrected: FloatArray) -> str:
        self.normal.assemble(values, corrected)
        self._watch.lap("assemble")
        model = self._model.quadratic(self.x, self._projection, self._floor)
        self._watch.lap("energies")
        # Values from the kernel of values alone: trials are compared with them.
        self.energies = self._model.energies(self.x)
        self.cost += float(np.sum(self.energies))
        trouble = self._model.trouble(self.energies) or model.trouble
        if trouble:
            return trouble
        self.normal.add(model.upper, model.gradient)
        self.projected = model.projected
        return ""

    @np.errstate(all="ignore")
    def trial(self, step: FloatArray) -> Trial:
        """The point at x ⊞ ``step``, one number a column of J."""
        tried = super().trial(step)
        energies = self._model.energies(tried.parameters)
        self._watch.lap("energies")
        reduction = tried.reduction + float(np.sum(self.energies - energies))
        trouble = tried.trouble or self._model.trouble(energies)
        # An energy of -∞ is no descent either.
        return replace(tried, reduction=-math.inf if trouble else reduction, trouble=trouble)

    @np.errstate(all="ignore")
    def slope(self, trial: Trial, direction: FloatArray) -> float:
        """Derivative of the cost at a trial along ``direction``: (Jᵀr + Σ∂E)ᵀ·direction."""
        residuals, values = self._session.residual_jacobian(trial.parameters)
        image = self.analysis.product(values, direction)
        model = self._model.quadratic(trial.parameters, "none")
        self._watch.lap("evaluate")
        return float(residuals @ image) + float(model.gradient @ direction)

    def move(self, trial: Trial) -> str:
        """Make a trial the point; if its derivatives are unusable, say why and stay."""
        energies, projected = self.energies, self.projected
        trouble = super().move(trial)
        if trouble:
            self.energies, self.projected = energies, projected
        return trouble
