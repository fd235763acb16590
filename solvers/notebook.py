"""What notebooks show of problems and solutions: tables in HTML, from one template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autograd_gpu.codegen.render import template_environment
from autograd_gpu.solvers.external import ExternalGroup
from autograd_gpu.solvers.residual_group import DataRows, LongDataRows, ResidualGroup

if TYPE_CHECKING:
    from autograd_gpu.solvers.problem import Problem
    from autograd_gpu.solvers.solution import Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Text in rows; a caption above them and names of the columns where there are any."""

    rows: Sequence[Sequence[str]]
    columns: Sequence[str] = ()
    caption: str = ""


def html(title: str, tables: Iterable[Table]) -> str:
    """Tables under a title; what stands in them is escaped."""
    template = template_environment().get_template("notebook/tables.html.j2")
    return template.render(title=title, tables=[t for t in tables if t.rows])


def problem_html(problem: Problem) -> str:
    """Parameter arrays, and groups of residuals, energies and constraints, with their sizes."""
    arrays: list[tuple[str, ...]] = []
    bounds = problem.bounds
    free = 0
    for array in problem.arrays:
        held = int(problem.frozen_of(array).sum())
        width = array.tangent
        free += (array.blocks - held) * width
        notes = [] if array.chart is None else [f"manifold of {width} dimensions"]
        notes += ["bounds"] if array.name in bounds else []
        shape = str(problem.values_of(array).shape)
        arrays.append((array.name, shape, str(held) if held else "none", ", ".join(notes)))
    groups = [*_rows(problem.groups, "residuals"), *_rows(problem.energies, "energy")]
    plain = [replace(c.group, arguments=c.group.arguments[:-2]) for c in problem.constraints]
    groups += _rows(plain, "constraint")
    count = sum(g.count * g.residual_size for g in problem.groups)
    return html(
        f"Problem: {count} residuals, {free} free parameters",
        [
            Table(rows=arrays, columns=("parameters", "shape", "frozen blocks", ""),
                  caption="Parameters"),
            Table(rows=groups, columns=("name", "kind", "elements", "residuals", "kernels",
                                        "parameters", "data"), caption="Groups"),
        ],
    )  # fmt: skip


def solution_html(solution: Solution) -> str:
    """The report: how it ended, what ran where, and the cost by group."""
    return html(
        "Solution",
        [
            Table(rows=solution.report_rows()),
            Table(rows=solution.group_rows(), columns=solution.GROUP_COLUMNS,
                  caption="Cost by group"),
        ],
    )  # fmt: skip


def _rows(parts: Sequence[ResidualGroup], kind: str) -> list[tuple[str, ...]]:
    """One row a group as it was given: a ragged one is several batches."""
    together: dict[str, list[ResidualGroup]] = {}
    for part in parts:
        together.setdefault(part.given_as or part.name, []).append(part)
    rows: list[tuple[str, ...]] = []
    for name, batches in together.items():
        elements = sum(b.count for b in batches)
        size = sum(b.count * b.residual_size for b in batches)
        parameters, data = _arguments(batches[0])
        outside = isinstance(batches[0], ExternalGroup)
        kernels = "none" if outside else str(len({b.topology.key for b in batches}))
        rows.append((name, kind, str(elements), str(size), kernels, parameters, data))
    return rows


def _arguments(group: ResidualGroup) -> tuple[str, str]:
    """Parameter arrays that an element sees, and its data arguments, each once."""
    if isinstance(group, ExternalGroup):
        names, arguments = group.external.names, group.external.arguments
    else:
        # A constraint has further arguments, which are the solver's own.
        arguments = group.arguments
        names = tuple(a.name for a in group.graph.arguments[: len(arguments)])
    parameters: list[str] = []
    data: list[str] = []
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, DataRows | LongDataRows):
            data.append(name + (" (shared)" if argument.shared else ""))
        else:
            parameters.append(argument.array.name)
    return ", ".join(dict.fromkeys(parameters)), ", ".join(dict.fromkeys(data))
