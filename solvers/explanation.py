"""``problem.explain``: the schedule of every residual group, what else there was, and why."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autograd_gpu.runtime.choice import BackendChoice, choose_backend, runs_on_a_gpu
from autograd_gpu.runtime.node_orders import NodeOrders
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedules import Decision, Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.host_schedules import assembly_decisions, group_features

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

MEANINGS = {
    "solve": "steps of a solve that stays on the device (a linearization and 40 products)",
    "gradient": "single gradients on the device, for first-order methods",
    "assembly": "residuals, Jacobian and JᵀJ, summed on the CPU",
}


HEADINGS = ("", "materialise", "accumulate", "threads", "estimated", "measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Schedules of a problem's residual groups, by purpose.

    Attributes:
        backend, precision, device: what evaluates the problem.
        reason: why that backend.
        decisions: for each purpose that the backend serves, one decision per group.
    """

    backend: str
    precision: str
    device: str
    reason: str
    decisions: dict[str, tuple[Decision, ...]]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain dictionaries, lists, strings and numbers."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "device": self.device,
            "reason": self.reason,
            "purposes": {
                purpose: [_plain(d) for d in decisions]
                for purpose, decisions in self.decisions.items()
            },
        }

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        out = io.StringIO()
        console = Console(file=out, width=110, highlight=False)
        console.print(f"{self.backend}, {self.precision}, {self.device}: {self.reason}")
        for purpose, decisions in self.decisions.items():
            console.print(f"\n{purpose}: {MEANINGS[purpose]}")
            for decision in decisions:
                table = Table(title=_title(decision), title_justify="left")
                for heading in HEADINGS:
                    table.add_column(heading)
                for row in _rows(decision):
                    table.add_row(*row)
                console.print(table)
                console.print(f"  {decision.source}: {decision.reason}")
        return out.getvalue()


def explain(
    problem: Problem,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> Explanation:
    """See ``Problem.explain``."""
    analysis = problem.analysis()
    size = analysis.row_count + sum(g.count for g in analysis.energies)
    choice = choose_backend(backend, precision, problem.device(device), size)
    return Explanation(
        backend=choice.backend,
        precision=choice.precision,
        device="CPU" if choice.device is None else choice.device.name,
        reason=choice.reason,
        decisions=_decisions(problem, analysis, choice),
    )


def _decisions(
    problem: Problem, analysis: Analysis, choice: BackendChoice
) -> dict[str, tuple[Decision, ...]]:
    if choice.backend == "jax" and not analysis.has_long_rows:
        return {"solve": _through_jax(analysis)}
    found: dict[str, tuple[Decision, ...]] = {}
    if resident(analysis, choice):
        orders = NodeOrders(array_layouts(analysis), analysis.groups, current_parameters(problem))
        # A solve in mixed precision is in float32 until that stagnates.
        precision = resident_precision(choice)
        features = [orders.features(g, precision) for g in range(len(analysis.groups))]
        for purpose in ("solve", "gradient"):
            chooser = ScheduleChooser(purpose, identity_of(choice.device))
            found[purpose] = chooser.decide(features)
        if runs_on_a_gpu(choice):
            return found
    return {**found, "assembly": assembly_decisions(analysis)}


def resident(analysis: Analysis, choice: BackendChoice) -> bool:
    """Whether whole solves and gradients of a problem can stay on the device of a choice."""
    plain = not analysis.external_names and all(a.chart is None for a in analysis.arrays)
    loops = analysis.energies or analysis.has_long_rows
    return bool(choice.device is not None and plain and not loops and analysis.column_count)


def resident_precision(choice: BackendChoice) -> str:
    """Of solves and gradients that stay on a device, at first if it is mixed."""
    return "float32" if choice.precision == "mixed" else choice.precision


def _through_jax(analysis: Analysis) -> tuple[Decision, ...]:
    reason = "backend jax stores Jacobians and gathers by tables; XLA decides the rest"
    schedule = Schedule(materialise="jacobian")
    return tuple(
        Decision(features=group_features(g), schedule=schedule, source="fixed", reason=reason)
        for g in analysis.groups
    )


def _title(decision: Decision) -> str:
    f = decision.features
    valences = ", ".join(
        f"{v:.3g} (at most {p.most})" for v, p in zip(f.valences, f.places, strict=True)
    )
    places = f", elements per node {valences}" if valences else ""
    return (
        f"{f.name}: {f.elements} elements, {f.operations} operations, J {f.residuals} × "
        f"{f.parameters} with {f.varying} entries that vary, {f.precision}{places}"
    )


def _rows(decision: Decision) -> Sequence[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for alternative in decision.alternatives:
        s = alternative.schedule
        mark = "→" if s == decision.schedule else ""
        estimated, measured = _time(alternative.estimated), _time(alternative.measured)
        rows.append((mark, s.materialise, s.accumulate, str(s.workgroup_size), estimated, measured))
    if not rows:
        s = decision.schedule
        rows.append(("→", s.materialise, s.accumulate, str(s.workgroup_size), "", ""))
    return rows


def _time(seconds: float | None) -> str:
    return "" if seconds is None or math.isnan(seconds) else f"{seconds * 1e6:.4g} µs"


def _plain(decision: Decision) -> dict[str, Any]:
    features = asdict(decision.features)
    features["places"] = [dict(p) for p in features["places"]]
    return {
        "group": decision.features.name,
        "schedule": _words(decision.schedule),
        "source": decision.source,
        "reason": decision.reason,
        "features": features,
        "alternatives": [
            {
                **_words(a.schedule),
                "estimated_seconds": None if math.isnan(a.estimated) else a.estimated,
                "measured_seconds": a.measured,
            }
            for a in decision.alternatives
        ],
    }


def _words(schedule: Schedule) -> dict[str, Any]:
    return {
        "materialise": schedule.materialise,
        "accumulate": schedule.accumulate,
        "workgroup_size": schedule.workgroup_size,
    }
