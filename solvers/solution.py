"""What a solve returns: values, status, history, and the table that a person reads first."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from os import PathLike
from typing import Any, ClassVar

from autograd_gpu.errors import UnknownNameError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.group_costs import GroupCost, GroupCosts
from autograd_gpu.solvers.probe_values import Probes


class NamedValues(dict[str, FloatArray]):
    """Arrays by the name of their parameters; another key says which there are."""

    def __missing__(self, key: object) -> FloatArray:
        known = ", ".join(map(repr, self))
        raise UnknownNameError(f"the solution has no parameters {key!r}; it has {known}")


class Status(StrEnum):
    """Why a solve ended."""

    CONVERGED_FUNCTION = "CONVERGED_FUNCTION"
    CONVERGED_GRADIENT = "CONVERGED_GRADIENT"
    CONVERGED_PARAMETER = "CONVERGED_PARAMETER"
    MAX_ITERATIONS = "MAX_ITERATIONS"
    MAX_SECONDS = "MAX_SECONDS"
    STOPPED_BY_CALLBACK = "STOPPED_BY_CALLBACK"
    INTERRUPTED = "INTERRUPTED"
    FAILED_NUMERICAL = "FAILED_NUMERICAL"

    @property
    def converged(self) -> bool:
        """Whether a tolerance was met."""
        return self.name.startswith("CONVERGED")


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationRecord:
    """One iteration; record 0 is the start.

    Attributes:
        iteration: number of steps tried so far.
        cost: of the point kept after this iteration (a rejected step does not change it).
        gradient_norm: largest entry of |Jᵀr| at that point, under bounds of |x - P(x - Jᵀr)|.
        damping: factor in force when the step was computed.
        gain_ratio: actual over predicted reduction; NaN where no step could be computed.
        step_norm: Euclidean length of the step tried.
        linear_iterations: iterations of the linear solver; 1 for a direct one, 0 for none.
        accepted: whether the step was kept.
        seconds: since the solve began.
        stage: number of the solve within the solve, where there are several (graduation,
            constraints); ``cost`` is that of the stage's own objective.
    """

    iteration: int
    cost: float
    gradient_norm: float
    damping: float
    gain_ratio: float
    step_norm: float
    linear_iterations: int
    accepted: bool
    seconds: float
    stage: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSummary:
    """One generated kernel in the report."""

    name: str
    target: str
    ops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Result of a solve; always the last accepted point.

    Attributes:
        values: parameter name -> array of the shape given, float64; frozen rows bit for bit.
        cost, initial_cost: ½‖r‖², plus the energies.
        iterations: steps tried.
        status, message: why it ended.
        history: start and every iteration.
        backend, precision, device: what evaluated residuals and Jacobians.
        backend_reason: why that backend.
        method, method_reason: how it was minimised, and why so.
        linear_solver, linear_solver_reason: what solved the linear systems, and why.
        timings: seconds by phase.
        residual_count, parameter_count: size of the problem (free parameters).
        kernels: generated kernels; empty for NumPy.
        bound_multipliers: parameter name -> one number for each of its own, ``(blocks, width)``,
            for parameters with bounds: the rate at which the least cost grows with the bound; ≥ 0
            at a lower bound, ≤ 0 at an upper one, 0 where none holds.
        multipliers: constraint name -> one number for each element and component, with the same
            meaning; of either sign at an equality.
        constraint_violation: the largest, in units of the constraint; 0 without constraints.
        faults: what went wrong on a device, and how the solve went on, in order.
        probes: values at ``values`` that ``ag.probe`` named, by name.
        device_bytes: of all buffers on the device when the solve ended; 0 without a device.
        peak_device_bytes: most that they have been since the device was opened, or its
            ``memory.reset_peak()``.
        costs_of_groups: gives ``groups`` when it is first asked for.
    """

    values: Mapping[str, FloatArray]
    cost: float
    initial_cost: float
    iterations: int
    status: Status
    message: str
    history: tuple[IterationRecord, ...]
    backend: str
    precision: str
    device: str
    backend_reason: str
    method: str
    method_reason: str
    linear_solver: str
    linear_solver_reason: str
    timings: Mapping[str, float]
    residual_count: int
    parameter_count: int
    kernels: tuple[KernelSummary, ...] = field(default=())
    bound_multipliers: Mapping[str, FloatArray] = field(default_factory=dict[str, FloatArray])
    multipliers: Mapping[str, FloatArray] = field(default_factory=dict[str, FloatArray])
    constraint_violation: float = 0.0
    faults: tuple[str, ...] = ()
    device_bytes: int = 0
    peak_device_bytes: int = 0
    probes: Probes = field(default_factory=Probes)
    costs_of_groups: GroupCosts = field(
        default_factory=lambda: GroupCosts(tuple), repr=False, compare=False
    )

    GROUP_COLUMNS: ClassVar[tuple[str, ...]] = (
        "group", "elements", "cost", "share", "worst element", "its norm",
    )  # fmt: skip

    @property
    def groups(self) -> tuple[GroupCost, ...]:
        """Cost and worst element of each group; computed when first asked for, in float64."""
        return self.costs_of_groups.get()

    @property
    def success(self) -> bool:
        """Whether a tolerance was met."""
        return self.status.converged

    @property
    def rejected(self) -> int:
        """Steps that were tried and not kept."""
        return sum(not r.accepted for r in self.history[1:])

    def report(self) -> str:
        """A table of the problem, what ran where, how it ended, and where the time went."""
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, title="autograd_gpu solve", title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, text in self.report_rows():
            table.add_row(name, text)
        out = io.StringIO()
        console = Console(file=out, width=100, highlight=False)
        console.print(table)
        if self.groups:
            first, *headings = self.GROUP_COLUMNS
            costs = Table(first, title="cost by group", title_justify="left")
            for heading in headings:
                costs.add_column(heading, justify="right")
            for row in self.group_rows():
                costs.add_row(*row)
            console.print(costs)
        return out.getvalue()

    def group_rows(self) -> list[tuple[str, ...]]:
        """Cells of the table of costs, under ``GROUP_COLUMNS``."""
        total = sum(abs(g.cost) for g in self.groups)
        return [
            (
                g.name,
                str(g.count),
                f"{g.cost:.6g}",
                f"{100.0 * abs(g.cost) / total:.1f} %" if total > 0.0 else "",
                str(g.worst_element),
                f"{g.worst_norm:.4g}",
            )
            for g in self.groups
        ]

    def plot(self, path: str | PathLike[str] | None = None) -> Any:
        """Cost, gradient and damping over the iterations, and the cost by group.

        Args:
            path: where to write the picture, if anywhere; the suffix says which format.

        Returns:
            a ``matplotlib.figure.Figure``, which notebooks show.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from autograd_gpu.solvers.convergence_plot import convergence_figure

        figure = convergence_figure(self)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to a file: a zip of JSON and NumPy arrays, without pickle.

        Raises:
            OSError: the folder cannot be written to.
        """
        from autograd_gpu.solvers.solution_archive import write_solution

        write_solution(path, self)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Solution:
        """The solution that ``save`` wrote.

        Raises:
            InputError: no such file, another format or version, or a damaged one.
        """
        from autograd_gpu.solvers.solution_archive import read_solution

        return read_solution(path)

    def _remedy(self) -> list[tuple[str, str]]:
        if self.status is not Status.FAILED_NUMERICAL:
            return []
        return [("", "ag.debug_nans(problem) names the op and the line where NaN or inf begins")]

    def __getattr__(self, name: str) -> Any:
        # Only what is no attribute gets here; `values` itself would call this without end.
        private = name.startswith("_") or name == "values"
        held = not private and name in self.values
        hint = f"; parameters are in solution.values[{name!r}]" if held else ""
        raise AttributeError(f"a Solution has no attribute {name!r}{hint}")

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name} {array.shape}" for name, array in self.values.items())
        return (
            f"Solution({self.status.value}: cost {self.initial_cost:.6g} → {self.cost:.6g} in "
            f"{self.iterations} iterations; {arrays})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: what ``report`` says."""
        from autograd_gpu.solvers.notebook import solution_html

        return solution_html(self)

    def report_rows(self) -> list[tuple[str, str]]:
        """Lines of the report: what, and its text."""
        last = self.history[-1]
        total = self.timings.get("total", 0.0)
        phases = ", ".join(
            f"{name} {seconds:.3g} s"
            for name, seconds in self.timings.items()
            if name != "total" and seconds > 0.0
        )
        rows = [("fault", text) for text in self.faults]
        rows += [
            ("status", f"{self.status.value}: {self.message}"),
            *self._remedy(),
            ("cost", f"{self.initial_cost:.9g} → {self.cost:.9g}"),
            ("iterations", f"{self.iterations} ({self.rejected} rejected)"),
            ("gradient", f"{last.gradient_norm:.3g} (largest entry)"),
            ("problem", f"{self.residual_count} residuals, {self.parameter_count} free parameters"),
            ("evaluated by", f"{self.backend}, {self.precision}, {self.device}"),
            ("", self.backend_reason),
            ("method", f"{self.method}: {self.method_reason}"),
            ("linear solver", self.linear_solver),
            ("", self.linear_solver_reason),
            ("time", f"{total:.3g} s: {phases}"),
        ]
        if self.peak_device_bytes:
            now, peak = self.device_bytes / 1e6, self.peak_device_bytes / 1e6
            rows.append(("device memory", f"{now:.3g} MB in buffers, at most {peak:.3g} MB"))
        if self.multipliers:
            held = ", ".join(f"{name} ({v.size})" for name, v in self.multipliers.items())
            off = f"largest violation {self.constraint_violation:.3g}"
            rows.append(("constraints", f"{held}: {off}"))
        if self.kernels:
            kernels = ", ".join(f"{k.name} ({k.ops} ops)" for k in self.kernels)
            rows.append(("kernels", f"{len(self.kernels)}: {kernels}"))
        return rows
