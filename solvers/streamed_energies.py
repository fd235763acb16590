"""Costs and gradients of elements summed piece by piece: `ElementEnergies` in bounded memory."""

from __future__ import annotations

import math

import numpy as np

from autograd_gpu.runtime.batch import BoundGroup, FloatArray
from autograd_gpu.runtime.streamed_session import StreamedSession
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.cost_gradient import GradientPoint, energy_kernels
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.piece_products import jacobian_of
from autograd_gpu.solvers.solution import KernelSummary


class StreamedEnergies:
    """Costs of single elements are kept, one number each; of the gradient only the sum is.

    Args:
        analysis: the problem; borrowed.
        groups: of one row each, the cost of an element.
        session: over those, in pieces; owned from here on.
        watch: books the time.
    """

    def __init__(
        self,
        analysis: Analysis,
        groups: list[BoundGroup],
        session: StreamedSession,
        watch: Stopwatch,
    ) -> None:
        self._analysis = analysis
        self._groups = groups
        self._session = session
        self._watch = watch

    @property
    def description(self) -> str:
        """Device or processor, and in how many pieces."""
        return self._session.description

    @np.errstate(all="ignore")
    def at(self, parameters: FloatArray) -> GradientPoint:
        """Evaluate a point."""
        costs = np.zeros(sum(g.count for g in self._groups))
        gradient = np.zeros(self._analysis.column_count)
        begin = 0
        trouble = ""
        for k, elements, piece, session in self._session.each():
            found, values = session.residual_jacobian(parameters)
            costs[begin : begin + piece.count] = found
            begin += piece.count
            gradient += jacobian_of(self._analysis, [piece], values).sum(axis=0)
            if not trouble and not (np.isfinite(found).all() and np.isfinite(gradient).all()):
                bad = ~np.isfinite(found)
                number = self._groups[k].element(elements.start + int(np.argmax(bad)))
                where = f"element {number}" if bad.any() else f"an element from {number} on"
                trouble = f"the cost or gradient of {piece.name!r}, {where}, is not finite"
        self._watch.lap("evaluate")
        cost = float(np.sum(costs))
        if not trouble and not math.isfinite(cost):
            trouble = "the cost is not finite"
        return GradientPoint(
            parameters=parameters, terms=costs, cost=cost, gradient=gradient, trouble=trouble
        )

    def change(self, before: GradientPoint, after: GradientPoint) -> float:
        """Sum of what each element changed by."""
        return float(np.sum(after.terms - before.terms))

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels of the pieces so far."""
        return energy_kernels(self._groups, self._session.sources())

    def close(self) -> None:
        """Nothing stays open between evaluations."""
        self._session.close()
