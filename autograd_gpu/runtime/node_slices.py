"""Slices of the lists of heavy nodes, which a resident solve sums in two levels.

A list of V incidences is cut into slices of L each. A workgroup of W threads walks a slice in L / W
turns, and a team of T threads the V / L sums of the slices: L = √(V W / T) makes both equal. It
follows from the problem alone, not from the device, and so does the order of every sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autograd_gpu.runtime.batch import IndexArray
from autograd_gpu.runtime.schedules import TEAMS, heavy_from, team_of


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices of the lists of one kind, sorted by node.

    Attributes:
        starts: first slice of each node, and their number; nodes with few incidences have none.
        nodes: node of each slice.
        first, last: its incidences, from first up to last.
        complete: no node is left that walks incidences itself.
    """

    starts: IndexArray
    nodes: IndexArray
    first: IndexArray
    last: IndexArray
    complete: bool


def cut_lists(
    starts: Sequence[IndexArray], cuttable: Sequence[bool], workgroup_size: int
) -> tuple[list[Slices | None], int]:
    """Slices of the lists of a node set, and the threads that share one of its nodes.

    Args:
        starts: per kind, first incidence of each node, and their number.
        cuttable: per kind, whether heavy nodes are sliced.
        workgroup_size: threads of a workgroup.
    """
    team = min(TEAMS[-1][1], workgroup_size)
    cut: list[Slices | None] = []
    # Shorter teams than assumed at first have fewer sums to walk, that is longer slices.
    for _ in range(2):
        cut = [
            _cut(s, workgroup_size, team) if wanted else None
            for s, wanted in zip(starts, cuttable, strict=True)
        ]
        team = _team(starts, cut, workgroup_size)
    return cut, team


def slice_length(incidences: IndexArray, workgroup_size: int, team: int) -> IndexArray:
    """Incidences of a slice, whole turns of a workgroup."""
    turns = np.sqrt(incidences / (workgroup_size * team))
    return workgroup_size * np.maximum(1, np.ceil(turns)).astype(np.int64)


def _cut(starts: IndexArray, workgroup_size: int, team: int) -> Slices | None:
    """None if no node is heavy."""
    lengths = np.diff(starts)
    heavy = np.flatnonzero(lengths >= heavy_from(workgroup_size))
    if not heavy.size:
        return None
    length = slice_length(lengths[heavy], workgroup_size, team)
    counts = -(-lengths[heavy] // length)
    per_node: IndexArray = np.zeros(len(lengths) + 1, np.int64)
    per_node[heavy + 1] = counts
    begins: IndexArray = np.cumsum(per_node)
    nodes: IndexArray = np.repeat(heavy, counts)
    longest: IndexArray = np.repeat(length, counts)
    within: IndexArray = np.arange(begins[-1], dtype=np.int64) - begins[nodes]
    first = starts[nodes] + within * longest
    last = np.minimum(first + longest, starts[nodes + 1])
    complete = int(lengths[heavy].sum()) == int(starts[-1])
    return Slices(begins, nodes, first, last, complete)


def _team(starts: Sequence[IndexArray], cut: Sequence[Slices | None], workgroup_size: int) -> int:
    """By the mean number of terms of a node's sum."""
    if not starts:
        return team_of(0.0, workgroup_size)
    terms = 0
    for begins, slices in zip(starts, cut, strict=True):
        terms += int(begins[-1])
        if slices is not None:
            terms += len(slices.nodes) - int((slices.last - slices.first).sum())
    return team_of(terms / max(1, len(starts[0]) - 1), workgroup_size)
