"""Compare the Jacobians that the compiler derives with central differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.charts import Chart
from autograd_gpu.codegen.kernel import SlotKind
from autograd_gpu.codegen.robust import residuals_only
from autograd_gpu.codegen.tangent import value_and_tangent_jacobian
from autograd_gpu.ir import Graph
from autograd_gpu.long_rows import evaluate_rows
from autograd_gpu.runtime.batch import (
    BoundGroup,
    FloatArray,
    IndexArray,
    ParameterBinding,
    RowBinding,
)
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.external import BoundExternal

if TYPE_CHECKING:
    from autograd_gpu.solvers.problem import Problem

DIFFERENCE_TOLERANCE = 1e-6
"""Largest error, relative to 1 + |J|, that central differences in float64 explain."""


@dataclass(frozen=True, slots=True)
class GroupGradientCheck:
    """Result for one group; the worst entry is at ``element``, ``row``, ``column``."""

    name: str
    elements: int
    worst_error: float
    element: int
    row: int
    column: int
    derived: float
    difference: float

    @property
    def ok(self) -> bool:
        """Whether the worst error is within what differences can tell."""
        return self.worst_error <= DIFFERENCE_TOLERANCE


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """Results of all groups."""

    groups: tuple[GroupGradientCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether every group is within tolerance."""
        return all(g.ok for g in self.groups)

    def __str__(self) -> str:
        lines = [f"gradients against central differences (tolerance {DIFFERENCE_TOLERANCE:g})"]
        for g in self.groups:
            verdict = "ok" if g.ok else "WRONG"
            lines.append(
                f"  {g.name}: {verdict}, {g.elements} elements, worst {g.worst_error:.1e} at "
                f"element {g.element}, residual {g.row}, column {g.column}: "
                f"derived {g.derived:.6g}, difference {g.difference:.6g}"
            )
        return "\n".join(lines)


def check_gradients(problem: Problem, samples: int, seed: int) -> GradientCheck:
    """Check every group at up to ``samples`` elements, drawn with ``seed``."""
    analysis = problem.analysis()
    x = current_parameters(problem)
    generator = np.random.default_rng(seed)
    return GradientCheck(
        tuple(_check(g, x, samples, generator) for g in (*analysis.groups, *analysis.energies))
    )


def _check(
    group: BoundGroup, x: FloatArray, samples: int, generator: np.random.Generator
) -> GroupGradientCheck:
    if isinstance(group.external, BoundExternal):
        return _check_external(group, group.external, x)
    count = min(samples, group.count)
    chosen = np.sort(generator.choice(group.count, count, replace=False))
    # The residuals before any loss: at its kinks differences would say nothing.
    graph = residuals_only(group.topology.graph, group.topology.losses)
    slots = group.topology.slots
    local: list[FloatArray] = []
    for slot, binding in zip(slots, group.bindings, strict=True):
        if isinstance(binding, ParameterBinding):
            first = binding.base + binding.block_of(group.count)[chosen] * slot.ambient
            rows = x[first[:, None] + np.arange(slot.ambient)]
        elif isinstance(binding, RowBinding):
            first = binding.base + binding.indices[chosen] * slot.ambient
            rows = x[first[:, :, None] + np.arange(slot.ambient)]
        else:
            rows = np.repeat(binding.values, count, 0) if binding.shared else binding.values[chosen]
        local.append(rows)
    wrt = [k for k, s in enumerate(slots) if s.kind is SlotKind.PARAMETER]
    charts = [s.chart for s in slots]
    if group.lengths is None:
        derived, difference = _compared(graph, local, wrt, charts)
    else:
        derived, difference = _compared_rows(graph, local, wrt, charts, group.valid[chosen])
    return _worst_entry(group, chosen, derived, difference)


def _check_external(
    group: BoundGroup, external: BoundExternal, x: FloatArray
) -> GroupGradientCheck:
    """All elements of a user's function: it is called for the whole batch."""
    here, residuals = external.gathered(x), external.residuals
    _, derived = residuals.evaluate(here)
    difference = np.empty_like(derived)
    column = 0
    for k in residuals.order:
        for component in range(here[k][0].size):
            h = 6e-6 * (1.0 + np.abs(here[k].reshape(group.count, -1)[:, component]))  # ∛ε, scaled
            sides: list[FloatArray] = []
            for sign in (1.0, -1.0):
                moved = [a.copy() for a in here]
                moved[k].reshape(group.count, -1)[:, component] += sign * h
                sides.append(residuals.evaluate(moved)[0])
            difference[:, :, column] = (sides[0] - sides[1]) / (2.0 * h[:, None])
            column += 1
    return _worst_entry(group, np.arange(group.count), derived, difference)


def _worst_entry(
    group: BoundGroup, chosen: IndexArray, derived: FloatArray, difference: FloatArray
) -> GroupGradientCheck:
    """The worst entry of Jacobians ``(count, m, n)`` of chosen elements."""
    error = np.abs(derived - difference) / (1.0 + np.abs(difference))
    # A NaN is the worst error there is, and argmax finds it.
    worst = np.unravel_index(int(np.argmax(error)), error.shape)
    value = float(error[worst])
    return GroupGradientCheck(
        name=group.name,
        elements=len(chosen),
        worst_error=value if np.isfinite(value) else float("inf"),
        element=group.element(int(chosen[worst[0]])),
        row=int(worst[1]),
        column=int(worst[2]),
        derived=float(derived[worst]),
        difference=float(difference[worst]),
    )


def _coordinates(local: list[FloatArray], k: int, chart: Chart | None) -> range:
    """Coordinates by which to differentiate: the numbers of a block, or those of its tangent."""
    return range(local[k].shape[-1] if chart is None else chart.tangent)


def _compared(
    graph: Graph, local: list[FloatArray], wrt: list[int], charts: list[Chart | None]
) -> tuple[FloatArray, FloatArray]:
    """Derivatives and differences, ``(count, residuals, columns)``."""
    count, m = len(local[0]), len(graph.outputs)
    with_jacobian = value_and_tangent_jacobian(graph, wrt, charts)
    derived = _batch(with_jacobian, local)[:, m:].reshape(count, m, -1)
    difference = np.empty_like(derived)
    column = 0
    for k in wrt:
        for component in _coordinates(local, k, charts[k]):
            difference[:, :, column] = _central_difference(
                lambda moved: _batch(graph, moved).reshape(count, -1),
                local,
                (k, component),
                charts[k],
            )
            column += 1
    return derived, difference


def _compared_rows(
    graph: Graph,
    local: list[FloatArray],
    wrt: list[int],
    charts: list[Chart | None],
    valid: NDArray[np.bool_],
) -> tuple[FloatArray, FloatArray]:
    """The same over long rows, where a component of a row is a column for each item."""
    count, capacity = valid.shape

    def values(moved: list[FloatArray]) -> FloatArray:
        found = evaluate_rows(graph, moved, valid)
        return np.concatenate([np.broadcast_to(f, (count, 1)) for f in found], axis=1)

    m = len(graph.outputs)
    entries = evaluate_rows(value_and_tangent_jacobian(graph, wrt, charts), local, valid)[m:]
    n = len(entries) // m
    derived: list[FloatArray] = []
    difference: list[FloatArray] = []
    generic = 0
    for k in wrt:
        row = graph.arguments[k].is_row
        for component in _coordinates(local, k, charts[k]):
            of_column = np.stack(
                [np.broadcast_to(f, (count, capacity)) for f in entries[generic::n]], axis=1
            )
            for item in range(capacity) if row else (0,):
                place = (k, item, component) if row else (k, component)
                exists = valid[:, item, None] if row else True
                derived.append(np.where(exists, of_column[:, :, item], 0.0))
                difference.append(_central_difference(values, local, place, charts[k]))
            generic += 1
    return np.stack(derived, axis=2), np.stack(difference, axis=2)


def _batch(graph: Graph, local: list[FloatArray]) -> FloatArray:
    shaped = [v.reshape(-1, *a.shape) for v, a in zip(local, graph.arguments, strict=True)]
    return graph(*shaped)


def _central_difference(
    values: Callable[[list[FloatArray]], FloatArray],
    local: list[FloatArray],
    place: tuple[int, ...],
    chart: Chart | None,
) -> FloatArray:
    """Slope of ``values`` along one coordinate of each element: slot, (item and) component.

    Along a number of a block, or along a tangent coordinate.
    """
    slot, *item, component = place
    where = (slice(None), *item)
    blocks = local[slot][where]
    h = np.full(len(blocks), 6e-6)  # ∛ε
    if chart is None:
        h *= 1.0 + np.abs(blocks[:, component])
    sides: list[FloatArray] = []
    for sign in (1.0, -1.0):
        moved = list(local)
        moved[slot] = local[slot].copy()
        moved[slot][where] = _moved(blocks, component, sign * h, chart)
        sides.append(values(moved))
    return (sides[0] - sides[1]) / (2.0 * h[:, None])


def _moved(blocks: FloatArray, component: int, step: FloatArray, chart: Chart | None) -> FloatArray:
    """Blocks with one coordinate changed by ``step``."""
    if chart is None:
        moved = blocks.copy()
        moved[:, component] += step
        return moved
    delta = np.zeros((len(blocks), chart.tangent))
    delta[:, component] = step
    return _batch(chart.plus, [blocks, delta]).reshape(blocks.shape)
