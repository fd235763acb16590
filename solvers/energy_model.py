"""Energies of a problem at a point: values, and the quadratic model that Newton steps come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autograd_gpu.codegen.second_order import SecondOrder, second_order
from autograd_gpu.runtime import semidefinite
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray, Session
from autograd_gpu.runtime.choice import BackendChoice, open_session
from autograd_gpu.runtime.numpy_backend import NumpySession
from autograd_gpu.runtime.semidefinite import project
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.solution import KernelSummary


@dataclass(frozen=True, slots=True)
class QuadraticModel:
    """Sums over all elements at a point.

    Attributes:
        energies: of each element.
        gradient: one number an unknown.
        upper: entries of the upper triangle of the sum of the projected Hessians, in the order of
            the problem's normal equations.
        projected: Hessians that were not positive semi-definite.
        trouble: which element is not finite; empty if all are.
    """

    energies: FloatArray
    gradient: FloatArray
    upper: FloatArray
    projected: int
    trouble: str


@dataclass(frozen=True, slots=True)
class _Scatter:
    """Where the entries of an energy's elements go.

    Attributes:
        columns: column of each entry of the gradients, flat.
        in_gradient: factors of those, ``(count, n)``: 0 where the column is frozen.
        positions: place of each upper entry of the Hessians in the normal equations, flat.
        in_upper: factors of those, ``(count, n (n + 1) / 2)``: 0 where a column is frozen, 2
            where both sides of the diagonal fall on one diagonal entry.
    """

    columns: IndexArray
    in_gradient: FloatArray
    positions: IndexArray
    in_upper: FloatArray


class EnergyModel:
    """Evaluates the energies of a problem on one backend; owns its sessions.

    Args:
        analysis: the problem; borrowed.
        choice: backend and precision.
    """

    def __init__(self, analysis: Analysis, choice: BackendChoice) -> None:
        self._analysis = analysis
        self._groups = analysis.energies
        self._orders = [second_order(g.topology) for g in self._groups]
        derived = [_derived(g, o) for g, o in zip(self._groups, self._orders, strict=True)]
        self._derived = derived
        self._values = _opened(choice, self._groups, analysis)
        self._second = _opened(choice, derived, analysis)
        self._scatter: list[_Scatter] | None = None
        if self._groups:
            semidefinite.prepare()

    @property
    def description(self) -> str:
        """Device or processor that evaluates."""
        return self._values.description

    @np.errstate(all="ignore")
    def energies(self, parameters: FloatArray) -> FloatArray:
        """Energy of each element, group after group; a copy."""
        return self._values.residuals(parameters).copy()

    def trouble(self, energies: FloatArray) -> str:
        """Name the first energy that is not finite; empty if all are."""
        bad = ~np.isfinite(energies)
        if not bad.any():
            return ""
        first = int(np.argmax(bad))
        return f"{self._analysis.locate_energy(first)} is {energies[first]}"

    @np.errstate(all="ignore")
    def quadratic(
        self, parameters: FloatArray, projection: str = "clamp", floor: float = 0.0
    ) -> QuadraticModel:
        """Energies, gradient and projected Hessian at a point."""
        normal = self._analysis.normal_equations
        gradient, upper = np.zeros(normal.n), np.zeros(normal.upper.size)
        outputs = self._second.residuals(parameters)
        energies: list[FloatArray] = []
        first = projected = 0
        trouble = ""
        for group, order, scatter in zip(self._groups, self._orders, self._places(), strict=True):
            last = first + group.count * order.output_size
            rows = outputs[first:last].reshape(group.count, order.output_size)
            values, gradients, hessians = order.unpack(rows)
            energies.append(values)
            first = last
            bad = ~np.isfinite(rows).all(axis=1)
            if bad.any():
                element = int(np.argmax(bad))
                what = "" if not np.isfinite(values[element]) else "a derivative of "
                trouble = trouble or (
                    f"{what}energy {group.name!r}, element {group.element(element)} is not finite"
                )
                continue
            projected += project(hessians, projection, floor)
            gradient += np.bincount(
                scatter.columns, (gradients * scatter.in_gradient).ravel(), normal.n
            )
            i, j = np.triu_indices(order.columns)
            weights = hessians[:, i, j] * scatter.in_upper
            upper += np.bincount(scatter.positions, weights.ravel(), normal.upper.size)
        terms = np.concatenate(energies) if energies else np.zeros(0)
        return QuadraticModel(terms, gradient, upper, projected, trouble)

    def _places(self) -> list[_Scatter]:
        if self._scatter is None:
            self._scatter = [_scatter(self._analysis, g) for g in self._groups]
        return self._scatter

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far."""
        names = {g.topology.key: g.name for g in (*self._groups, *self._derived)}
        second = {g.topology.key for g in self._derived}
        return tuple(
            KernelSummary(
                name=f"{names[key]} {'second order' if key in second else 'energy'}",
                target=s.target,
                ops=s.kernel.graph.stats.ops,
            )
            for session in (self._values, self._second)
            for s in session.sources()
            for key in (s.kernel.topology_key,)
        )

    def close(self) -> None:
        """Free the sessions."""
        self._values.close()
        self._second.close()


def total_energy(analysis: Analysis, choice: BackendChoice, parameters: FloatArray) -> float:
    """Sum of the energies of a problem at a point, 0 without any."""
    session = _opened(choice, analysis.energies, analysis)
    try:
        return float(np.sum(session.residuals(parameters)))
    finally:
        session.close()


def _opened(choice: BackendChoice, groups: Sequence[BoundGroup], analysis: Analysis) -> Session:
    if not groups:  # Newton without energies is Gauss-Newton
        return NumpySession((), analysis.parameter_count, "float64")
    session = open_session(choice, groups, analysis.parameter_count)
    session.prepare()
    return session


def _derived(group: BoundGroup, order: SecondOrder) -> BoundGroup:
    return BoundGroup(
        name=group.name,
        topology=order.topology,
        count=group.count,
        bindings=tuple(group.bindings[a] for a in order.topology.arguments),
        elements=group.elements,
    )


def _scatter(analysis: Analysis, group: BoundGroup) -> _Scatter:
    columns = analysis.columns_of_elements(group)
    free = columns >= 0
    i, j = np.triu_indices(columns.shape[1])
    low = np.minimum(columns[:, i], columns[:, j])
    high = np.maximum(columns[:, i], columns[:, j])
    kept = low >= 0
    # An element may gather a block twice: then H_ij and H_ji both fall on the diagonal.
    twice = kept & (low == high) & (i != j)
    positions = analysis.normal_equations.positions(np.where(kept, low, 0), np.where(kept, high, 0))
    return _Scatter(
        in_gradient=free.astype(np.float64),
        columns=np.where(free, columns, 0).ravel(),
        in_upper=np.where(twice, 2.0, kept.astype(np.float64)),
        positions=positions.ravel(),
    )
