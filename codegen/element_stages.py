"""Large residual functions in a resident solve: several short texts in place of one long.

Drivers compile a text in one thread, and the time grows faster than its length, because values that
live long do not fit into registers; several short ones compile side by side. NVIDIA's compiler
takes 0.84 s for a Jacobian of 2400 operations, 240 of them elementary functions, and 0.22 s for its
seven stages, in the same run. So what an element computes is cut above twice the cost of a stage
(``stages.cut``); stages leave each other cells of an element behind its record. Every value is the
same expression in either form.
"""

from __future__ import annotations

import math
from functools import lru_cache

from autograd_gpu.codegen.incidence import GroupStructure
from autograd_gpu.codegen.rematerialization import compute_cheap_again
from autograd_gpu.codegen.stages import Plan, Stage, Style, cut
from autograd_gpu.ir import Graph

MOST_STAGES = 10
"""A larger function gets longer stages: each is one more dispatch in every step."""

CELL_NUMBERS = 1 << 24
"""Numbers in the cells of all elements, by an estimate, up to which a group has stages: what they
take in memory and in time must stay small beside the compiler's time."""

WHOLE = 2
"""A group whose functions all cost up to so many times a stage has one text for each."""

LEAST, MOST, LAST = 0.75, 1.1, 1.25
"""Parts of the mean cost that a stage has at least and at most, the former times the latter; and
parts of that most that the last one may have."""

_COST_PER_CELL = 12


def record_graph(group: GroupStructure) -> Graph:
    """What a record is made of: residuals and Jacobian, or entries of JᵀJ and Jᵀr."""
    return group.blocks.graph if group.blocks else group.kernel.graph


def stage_cost(group: GroupStructure, longest: int, elements: int) -> int | None:
    """What to cut a group's records and residuals by; None if their texts stay whole.

    Args:
        group: whatever its own ``stage_cost`` is.
        longest: cost of a stage, in operations of the op table, functions with their weight.
        elements: of the group.
    """
    cost = group.residual.graph.cost
    if group.stored:
        cost = max(cost, record_graph(group).cost)
    if cost <= WHOLE * longest or elements * (cost // _COST_PER_CELL) > CELL_NUMBERS:
        return None
    return max(longest, math.ceil(cost / (LEAST * MOST_STAGES)))


@lru_cache(maxsize=64)
def record_plan(group: GroupStructure) -> Plan:
    """Stages of a group's records, each with the words that it makes."""
    return _plan(group, record_graph(group), outputs_last=False)


@lru_cache(maxsize=64)
def trial_plan(group: GroupStructure) -> Plan:
    """Stages of a group's residuals, which are those of the last one."""
    return _plan(group, group.residual.graph, outputs_last=True)


def _plan(group: GroupStructure, graph: Graph, *, outputs_last: bool) -> Plan:
    """Stages of about equal cost."""
    count = 1 if group.stage_cost is None else math.ceil(graph.cost / group.stage_cost)
    if count < 2:
        return Plan((Stage(graph, tuple(range(len(graph.outputs))), ()),), 0, 0, 0)
    style = Style(compute_cheap_again, True, LEAST, LAST, outputs_last, in_quads=True)
    return cut(graph, math.ceil(MOST * graph.cost / count), style)


def point_quads(group: GroupStructure) -> int:
    """Quads of an element's cells for its residuals at one point."""
    return trial_plan(group).cells // 4


def cell_quads(group: GroupStructure) -> int:
    """Quads of an element's cells: of its record, or of its residuals at two points."""
    record = record_plan(group).cells if group.stored else 0
    return max(record // 4, 2 * point_quads(group))
