"""Probes of a residual group as groups of their own: without derivatives, on any backend.

Values of items of long rows come from a second group in which every item is an element; what they
need of their whole row, its folds, is computed first and is data there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autograd_gpu.codegen.kernel import topology_of
from autograd_gpu.folds import Mask, has_items
from autograd_gpu.ir import Graph
from autograd_gpu.probes import ProbedItems
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.solvers.external import BoundExternal, ExternalGroup
from autograd_gpu.solvers.residual_group import (
    DataRows,
    GroupArgument,
    LongDataRows,
    ResidualGroup,
    binding_of,
    slot_of,
)
from autograd_gpu.solvers.sampled_residuals import SampledFunction
from autograd_gpu.solvers.selection import RowSelection, Selection


def element_group(
    group: ResidualGroup, graph: Graph, base: Mapping[str, int], parameters: FloatArray
) -> BoundGroup:
    """What was probed of elements, as residuals of the same elements.

    Args:
        group: whose function has the probes.
        graph: of them.
        base: position of the first number of each parameter array.
        parameters: the point, flat; grids are sampled there.
    """
    if isinstance(group, ExternalGroup):
        arguments = _with_samples(group, base, parameters)
    else:
        arguments = group.arguments[: len(graph.arguments)]
    bound = _bound(group.name, graph, arguments, group.count, base)
    if not has_items(graph.nodes):
        return bound
    return replace(bound, lengths=group.lengths, capacity=group.capacity)


def item_group(
    group: ResidualGroup, items: ProbedItems, folds: FloatArray, base: Mapping[str, int]
) -> BoundGroup:
    """What was probed of items, as residuals of a batch of all items, row after row.

    Args:
        group: over long rows.
        items: the graph.
        folds: values of the element that it needs, ``(count, folds)``.
        base: position of the first number of each parameter array.
    """
    assert group.lengths is not None
    valid: Mask = np.arange(group.capacity) < group.lengths[:, None]
    own = group.arguments[: len(items.graph.arguments) - items.folds]
    arguments = [_of_items(a, valid, group.lengths) for a in own]
    arguments += [DataRows(np.repeat(column, group.lengths), False) for column in folds.T]
    return _bound(group.name, items.graph, arguments, int(valid.sum()), base)


def _bound(
    name: str,
    graph: Graph,
    arguments: Sequence[GroupArgument],
    count: int,
    base: Mapping[str, int],
) -> BoundGroup:
    slots = [replace(slot_of(a), tangent=0, chart=None) for a in arguments]
    topology = topology_of(graph, slots)
    return BoundGroup(
        name=name,
        topology=topology,
        count=count,
        bindings=tuple(binding_of(arguments[a], base) for a in topology.arguments),
    )


def _with_samples(
    group: ExternalGroup, base: Mapping[str, int], parameters: FloatArray
) -> list[GroupArgument]:
    """The function's own arguments, and what the grids give, as data."""
    function = group.external.fn
    assert isinstance(function, SampledFunction)
    own = BoundExternal(group.external, base).gathered(parameters)[: function.before]
    samples = function.samples(own, group.count)
    return [
        *group.external.arguments[: function.before],
        *(DataRows(values, False) for values in samples),
    ]


def _of_items(argument: GroupArgument, valid: Mask, lengths: IndexArray) -> GroupArgument:
    """What an item sees of an argument: its own part of a row, and all of anything else."""
    if isinstance(argument, RowSelection):
        indices = argument.table[valid]
        return Selection(argument.array, 0, 1, len(indices), indices)
    if isinstance(argument, LongDataRows):
        rows = np.broadcast_to(argument.values, (*valid.shape, *argument.values.shape[2:]))
        return DataRows(rows[valid], False)
    if isinstance(argument, Selection):
        blocks = argument.array.blocks
        position = np.arange(len(lengths))
        own = argument.indices
        if own is None:
            own = argument.offset + argument.stride * position
        assert own.size == 0 or 0 <= own.min() <= own.max() < blocks
        return Selection(argument.array, 0, 1, int(lengths.sum()), np.repeat(own, lengths))
    if argument.shared:
        return argument
    return DataRows(np.repeat(argument.values, lengths, axis=0), False)
