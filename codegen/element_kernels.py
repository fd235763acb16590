"""Kernels of a resident solve with one thread per element: records, and the cost of a trial point.

A large residual function is cut into stages (``element_stages``), a kernel each: of several groups,
the stages that come last share a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from autograd_gpu.codegen.element_stages import (
    point_quads,
    record_graph,
    record_plan,
    trial_plan,
)
from autograd_gpu.codegen.incidence import GroupStructure, SolveStructure
from autograd_gpu.codegen.solve_layout import group_row
from autograd_gpu.codegen.solve_texts import (
    Body,
    Loader,
    SolveKernel,
    common_context,
    element_body,
    mentions,
    quads_of,
    render_kernel,
)
from autograd_gpu.codegen.stages import Plan, Stage

LANES = "xyzw"


def element_kernel_name(structure: SolveStructure, name: str, size: int) -> str:
    """Name of a kernel over elements for one size of their workgroups, of its last stage."""
    return name if len(structure.element_classes) == 1 else f"{name}_{size}"


def stage_names(name: str, kernels: Iterable[str]) -> list[str]:
    """Those of ``kernels`` that are stages of ``name``, in order."""
    return [k for k in kernels if k == name or k.startswith(f"{name}_stage")]


def linearize_elements(structure: SolveStructure) -> Iterator[SolveKernel]:
    """Records of the groups that store them, for each size of workgroups; made one by one."""
    for size, groups in structure.element_classes.items():
        name = element_kernel_name(structure, "linearize_elements", size)
        stored = [g for g in groups if structure.groups[g].stored]
        for part in _parts(name, size, {g: record_plan(structure.groups[g]) for g in stored}):
            yield _records(structure, part)


def trial_elements(structure: SolveStructure) -> Iterator[SolveKernel]:
    """Cost at the trial point and its change, in difference form; cells before, if any."""
    for size, groups in structure.element_classes.items():
        name = element_kernel_name(structure, "trial_elements", size)
        for part in _parts(name, size, {g: trial_plan(structure.groups[g]) for g in groups}):
            yield (_costs if part.last else _cells)(structure, part)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a kernel holds: a stage of each of some groups, and how large its workgroups are."""

    name: str
    size: int
    last: bool
    stages: dict[int, Stage]

    def context(self, structure: SolveStructure) -> dict[str, Any]:
        """What all templates over elements use."""
        return {
            **common_context(structure, self.name),
            "workgroup_size": self.size,
            "first_row": group_row(structure, structure.element_classes[self.size][0]),
        }


def _parts(name: str, size: int, plans: dict[int, Plan]) -> Iterator[_Part]:
    """Kernels of some groups, whose last stages share the last one."""
    count = max((len(plan.stages) for plan in plans.values()), default=0)
    for k in range(count):
        last = k == count - 1
        first = {g: count - len(plan.stages) for g, plan in plans.items()}
        stages = {g: plan.stages[k - first[g]] for g, plan in plans.items() if k >= first[g]}
        yield _Part(name if last else f"{name}_stage{k}", size, last, stages)


def _records(structure: SolveStructure, part: _Part) -> SolveKernel:
    groups: list[dict[str, Any]] = []
    for g, stage in part.stages.items():
        group = structure.groups[g]
        body = element_body(structure, g, stage.graph, Loader.cell)
        # The kernel's graph begins with residuals, a record ends with them.
        total = len(record_graph(group).outputs)
        m = 0 if group.blocks else group.kernel.residual_size
        words = {(o - m) % total: body.outputs[k][1] for k, o in enumerate(stage.outputs)}
        whole = len(words) == total
        groups.append(
            {
                "body": body,
                "record_quads": group.record_quads,
                "quads": quads_of(tuple(words[k] for k in range(total)), structure.real.zero)
                if whole
                else [],
                "words": [] if whole else [(k // 4, LANES[k % 4], words[k]) for k in sorted(words)],
                "stores": _stores(stage, body, structure.real.zero),
                "cells": bool(stage.stores) or mentions([body], "jacobian[s"),
            }
        )
    context = {**part.context(structure), "groups": groups}
    buffers = {"tables": False, "parameters": False, "jacobian": True, "state": False}
    return render_kernel(part.name, "solve/linearize_elements", buffers, context)


def _stores(stage: Stage, body: Body, zero: str) -> list[tuple[int, str]]:
    """(quad, its four numbers) of the cells that a stage leaves; it fills whole quads."""
    values = [text for _, text in body.outputs[len(stage.outputs) :]]
    left = dict(zip(stage.stores, values, strict=True))
    return [
        (quad, ", ".join(left.get(4 * quad + lane, zero) for lane in range(4)))
        for quad in sorted({cell // 4 for cell in left})
    ]


def _trial_group(structure: SolveStructure, g: int, stage: Stage) -> dict[str, Any]:
    group: GroupStructure = structure.groups[g]
    body = element_body(structure, g, stage.graph, Loader.cell)
    return {
        "body": body,
        "position": g,
        "residuals": group.kernel.residual_size,
        "record_quads": group.record_quads,
        "point_quads": point_quads(group),
        "stores": _stores(stage, body, structure.real.zero),
    }


def _cells(structure: SolveStructure, part: _Part) -> SolveKernel:
    groups = [_trial_group(structure, g, stage) for g, stage in part.stages.items()]
    context = {**part.context(structure), "groups": groups}
    buffers = {"tables": False, "parameters": False, "jacobian": True, "state": False}
    return render_kernel(part.name, "solve/trial_cells", buffers, context)


def _costs(structure: SolveStructure, part: _Part) -> SolveKernel:
    groups = [_trial_group(structure, g, stage) for g, stage in part.stages.items()]
    context = {**part.context(structure), "groups": groups}
    buffers = {"tables": False, "parameters": False, "partials": True, "state": False}
    if mentions([group["body"] for group in groups], "jacobian["):
        buffers["jacobian"] = False
    return render_kernel(part.name, "solve/trial_elements", buffers, context)
