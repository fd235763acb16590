"""Cost and gradient for methods that need no more: neither J nor JᵀJ is formed.

On the host each element's cost is a residual group of its own, of one row, whose Jacobian is that
element's part of the gradient; any backend evaluates it, and the parts are summed like Jᵀr, each
column by one thread. On a device the parts never leave it: the gradient is gathered there, in the
precision of the solve (`Operators`), and only the sum and the residuals are read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from autograd_gpu.codegen.kernel import energy_of
from autograd_gpu.codegen.render import Source
from autograd_gpu.errors import DeviceLimitError
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, Session
from autograd_gpu.runtime.choice import BackendChoice, open_session
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.host_assembly import HostAssembly
from autograd_gpu.runtime.number_formats import FORMATS
from autograd_gpu.runtime.streamed_session import StreamedSession
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.linearization import Stopwatch
from autograd_gpu.solvers.solution import KernelSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientPoint:
    """A point with its cost and gradient.

    Attributes:
        parameters: all of them, flat.
        terms: what the cost is summed from; only its maker knows how.
        cost: NaN or infinite if ``trouble``.
        gradient: one number an unknown.
        trouble: what is not finite, and where; empty if there is nothing to say.
    """

    parameters: FloatArray
    terms: FloatArray
    cost: float
    gradient: FloatArray
    trouble: str

    @property
    def gradient_norm(self) -> float:
        """Largest entry of the gradient."""
        return float(np.max(np.abs(self.gradient), initial=0.0))


class CostGradient(Protocol):
    """Evaluates points; owns what it needs until `close`."""

    @property
    def description(self) -> str:
        """Device or processor, for reports."""
        ...

    def at(self, parameters: FloatArray) -> GradientPoint:
        """Evaluate a point; all parameters, flat."""
        ...

    def change(self, before: GradientPoint, after: GradientPoint) -> float:
        """Cost of ``after`` minus that of ``before``, summed in difference form."""
        ...

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels, for the report."""
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


def _worst_residual(analysis: Analysis, residuals: FloatArray) -> str:
    """Name the first residual that is not finite, or else the largest."""
    bad = ~np.isfinite(residuals)
    row = int(np.argmax(bad if bad.any() else np.abs(residuals)))
    overflow = "" if bad.any() else ", and the cost is not finite"
    return f"{analysis.locate_row(row)} is {residuals[row]}{overflow}"


class ElementEnergies:
    """Costs and gradients of single elements from a session, summed on the host.

    Args:
        analysis: the problem; borrowed.
        choice: backend and precision.
        groups: of one row each, the cost of an element.
        session: over those; owned from here on.
        watch: books the time.
    """

    def __init__(
        self,
        analysis: Analysis,
        choice: BackendChoice,
        groups: list[BoundGroup],
        session: Session,
        watch: Stopwatch,
    ) -> None:
        self._analysis = analysis
        self._choice = choice
        self._watch = watch
        self._groups = groups
        self._session = session
        indptr, indices, self._kept = analysis.pattern_of(self._groups)
        self._assembly = HostAssembly(indptr, indices, analysis.column_count)
        watch.lap("analyze")
        self._session.prepare()
        self._assembly.prepare_transposed()
        self._ones = np.ones(len(indptr) - 1)
        watch.lap("compile")

    @property
    def description(self) -> str:
        """Device or processor."""
        return self._session.description

    @np.errstate(all="ignore")
    def at(self, parameters: FloatArray) -> GradientPoint:
        """Evaluate a point."""
        costs, values = self._session.residual_jacobian(parameters)
        self._watch.lap("evaluate")
        free = values if self._kept is None else values[self._kept]
        gradient = self._assembly.transposed_product(np.ascontiguousarray(free), self._ones)
        cost = float(np.sum(costs))
        self._watch.lap("assemble")
        trouble = ""
        if not math.isfinite(cost):
            trouble = self._worst(parameters, costs)
        elif not np.isfinite(gradient).all():
            row = int(
                np.searchsorted(self._assembly.indptr, np.argmax(~np.isfinite(free)), "right")
            )
            trouble = f"the gradient of {self._locate(row - 1)} is not finite"
        return GradientPoint(
            parameters=parameters,
            terms=costs.copy(),
            cost=cost,
            gradient=gradient,
            trouble=trouble,
        )

    def change(self, before: GradientPoint, after: GradientPoint) -> float:
        """Sum of what each element changed by."""
        return float(np.sum(after.terms - before.terms))

    def _worst(self, parameters: FloatArray, costs: FloatArray) -> str:
        analysis = self._analysis
        first = sum(g.count for g in analysis.groups)
        if not np.isfinite(costs[:first]).all() or np.isfinite(costs).all():
            residuals = analysis.session(self._choice).residuals(parameters)
            if len(residuals):
                return _worst_residual(analysis, residuals)
        energies = costs[first:]
        bad = ~np.isfinite(energies)
        element = int(np.argmax(bad if bad.any() else np.abs(energies)))
        return f"{analysis.locate_energy(element)} is {energies[element]}"

    def _locate(self, element: int) -> str:
        for group in self._groups:
            if element < group.count:
                return f"residuals {group.name!r}, element {group.element(element)}"
            element -= group.count
        return f"element {element}"

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels of the session."""
        return energy_kernels(self._groups, self._session.sources())

    def close(self) -> None:
        """Free the session and stop the threads."""
        self._session.close()
        self._assembly.close()


def energy_kernels(
    groups: Sequence[BoundGroup], sources: Sequence[Source]
) -> tuple[KernelSummary, ...]:
    """Generated kernels of element energies, for the report."""
    names = {g.topology.key: g.name for g in reversed(groups)}
    return tuple(
        KernelSummary(
            name=f"{names[s.kernel.topology_key]} energy {s.kernel.product.value}",
            target=s.target,
            ops=s.kernel.graph.stats.ops,
        )
        for s in sources
    )


def _energy_group(group: BoundGroup) -> BoundGroup:
    topology = energy_of(group.topology)
    bindings = tuple(group.bindings[a] for a in topology.arguments)
    return replace(group, topology=topology, bindings=bindings)


class DeviceGradient:
    """The gradient gathered on a device; residuals are read back for the cost.

    Args:
        analysis: the problem; borrowed.
        choice: of the device, and the precision of gradient and residuals.
        device: the device chosen.
        start: all parameters, flat, for the order of the tables.
        watch: books the time.
    """

    def __init__(
        self,
        analysis: Analysis,
        choice: BackendChoice,
        device: Device,
        start: FloatArray,
        watch: Stopwatch,
    ) -> None:
        from autograd_gpu.runtime.gathered_products import GatheredProducts
        from autograd_gpu.runtime.node_incidences import NodeIncidences
        from autograd_gpu.runtime.node_tables import NodeTables
        from autograd_gpu.runtime.operators import Operators
        from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
        from autograd_gpu.runtime.schedules import Schedule
        from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts

        self._analysis = analysis
        self._watch = watch
        self._session = analysis.session(choice)
        chooser = ScheduleChooser("gradient", identity_of(device))
        self._precision = choice.precision
        given = (array_layouts(analysis), analysis.groups, start)
        self._operators: Operators | GatheredProducts
        lists: NodeIncidences
        try:
            lists = tables = NodeTables(*given, schedules=chooser, precision=choice.precision)
            self._operators = Operators(device, tables)
        except DeviceLimitError:  # of a binding, of the device's memory, or of a budget for it
            if choice.precision != "float32":
                raise
            lists = NodeIncidences(*given, schedules=[Schedule()])
            # Half of a budget: residuals need room as well.
            budget = device.memory.budget
            half = None if budget is None else (budget - device.memory.bytes) // 2
            self._operators = GatheredProducts(device, lists, half, ("gradient",))
        self._type = f": {lists.structure.real.type} = "
        self.description = device.name
        watch.lap("compile")

    @np.errstate(all="ignore")
    def at(self, parameters: FloatArray) -> GradientPoint:
        """Evaluate a point."""
        residuals = self._session.residuals(parameters).copy()
        cost = 0.5 * float(residuals @ residuals)
        trouble = "" if math.isfinite(cost) else _worst_residual(self._analysis, residuals)
        gradient = self._operators.gradient(parameters)[self._analysis.free_positions]
        if not trouble and not np.isfinite(gradient).all():
            trouble = f"the gradient is not finite in {self._precision}"
        self._watch.lap("evaluate")
        return GradientPoint(
            parameters=parameters,
            terms=residuals,
            cost=cost,
            gradient=gradient.astype(np.float64),
            trouble=trouble,
        )

    def change(self, before: GradientPoint, after: GradientPoint) -> float:
        """Half the sum of (r_new - r_old)(r_new + r_old)."""
        return 0.5 * float((after.terms - before.terms) @ (after.terms + before.terms))

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels of the gradient."""
        pipelines: Sequence[tuple[str, str]] = [
            (p.name, p.source) for p in self._operators.runner.program.pipelines
        ]
        return tuple(
            KernelSummary(name=name, target="wgsl", ops=source.count(self._type))
            for name, source in pipelines
        )

    def close(self) -> None:
        """Free the buffers of the gradient; the session is the problem's."""
        self._operators.close()


def open_cost_gradient(
    analysis: Analysis, choice: BackendChoice, start: FloatArray, watch: Stopwatch
) -> CostGradient:
    """What suits a backend."""
    resident = choice.device is not None and choice.precision in FORMATS
    # The gathered gradient is that of residuals, by plain numbers, without loops.
    plain = not analysis.energies and all(a.chart is None for a in analysis.arrays)
    if resident and analysis.column_count and plain and not analysis.has_long_rows:
        assert choice.device is not None
        return DeviceGradient(analysis, choice, choice.device, start, watch)
    groups = [*map(_energy_group, analysis.groups), *analysis.energies]
    budget = analysis.memory_budget
    session = open_session(choice, groups, analysis.parameter_count, memory_budget=budget)
    if isinstance(session, StreamedSession):
        from autograd_gpu.solvers.streamed_energies import StreamedEnergies

        return StreamedEnergies(analysis, groups, session, watch)
    return ElementEnergies(analysis, choice, groups, session, watch)
