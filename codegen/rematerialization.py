"""Store or compute again: a minimum cut says which values cross from one stage to a later one.

A value that a later stage needs is either loaded from the intermediate buffer or recomputed from
values that are, or from leaves, which every stage may load. With a cost for a store with its load
and a cost for each operation, the cheapest choice is a minimum cut (Chaitin's rematerialisation
as in Jain et al. 2020, Checkmate, §2; the network is that of project selection): each value is a
pair (in, out) of vertices, ``out`` on the sink's side means that the value is at hand, ``in`` on
the sink's side that it is recomputed. Where the time of the generator counts, one pass decides.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from autograd_gpu.ir import Node
from autograd_gpu.ops import NODE_OPS

STORE_COST = 12
"""Cost of storing a number and loading it again, in operations: both wait for memory."""

LOAD_COST = 4
"""Cost of loading a number that is stored anyway, or that is an input."""

CHEAP = 3
"""Operations that are rather computed again than stored, where no cut is sought."""

REACH = 10
"""How far up from a needed value recomputation may begin, in operations of a chain."""

_NEVER = 1 << 24


def rematerialize(
    nodes: Sequence[Node], needed: Sequence[int], stored: Collection[int]
) -> list[int]:
    """Which values to load; whatever else ``needed`` are made of is computed again.

    Args:
        nodes: arena of the whole kernel.
        needed: values computed before, read now.
        stored: values that are in the buffer for the sake of an earlier boundary.

    Returns:
        Values in arena order. With nothing stored before, never more than ``needed`` has, since
        loading those is one of the cuts.
    """
    if not needed:
        return []
    region, rim = _region(nodes, needed)
    at_hand, recomputed = _minimum_cut(nodes, needed, region, rim, set(stored))
    return sorted(k for k in region if k in at_hand and k not in recomputed)


def compute_cheap_again(
    nodes: Sequence[Node], needed: Sequence[int], stored: Collection[int]
) -> list[int]:
    """Like `rematerialize`, in one pass: computed again is what costs at most ``CHEAP``.

    In operations, from leaves and from what is at hand by then. It loads a tenth more values than
    the minimum cut for the same price, in a fraction of the time, and imports nothing.
    """
    del stored  # a value is as dear to load whether somebody else loads it too
    loaded: set[int] = set()
    again: set[int] = set()

    def price(k: int) -> int:
        if not nodes[k].args or k in loaded or k in again:
            return 0
        total = NODE_OPS[nodes[k].op].cost
        for a in nodes[k].args:
            if total > CHEAP:
                break
            total += price(a)
        return total

    def compute(k: int) -> None:
        if nodes[k].args and k not in loaded and k not in again:
            for a in nodes[k].args:
                compute(a)
            again.add(k)

    for k in needed:
        if price(k) <= CHEAP:
            compute(k)
        else:
            loaded.add(k)
    return sorted(loaded)


def _region(nodes: Sequence[Node], needed: Sequence[int]) -> tuple[list[int], set[int]]:
    """Values within ``REACH`` above the needed ones, and those at its rim, which must be stored."""
    distance = dict.fromkeys(needed, 0)
    front = list(needed)
    for step in range(1, REACH + 1):
        front = [
            a
            for a in dict.fromkeys(a for k in front for a in nodes[k].args if nodes[a].args)
            if distance.setdefault(a, step) == step
        ]
    return sorted(distance), {k for k, d in distance.items() if d == REACH}


def _minimum_cut(
    nodes: Sequence[Node],
    needed: Sequence[int],
    region: Sequence[int],
    rim: set[int],
    stored: set[int],
) -> tuple[set[int], set[int]]:
    """Values whose ``out``, and whose ``in``, lies on the sink's side of a minimum cut."""
    # Loaded when a kernel is cut, which few programs do.
    sparse: Any = importlib.import_module("scipy.sparse")
    csgraph: Any = importlib.import_module("scipy.sparse.csgraph")

    source, sink = 0, 1
    inside = {k: 2 + 2 * position for position, k in enumerate(region)}  # out is the next number
    leaves: dict[int, int] = {}
    edges: dict[tuple[int, int], int] = {}
    for k, vertex in inside.items():
        edges[source, vertex] = _NEVER if k in rim else NODE_OPS[nodes[k].op].cost
        edges[vertex, vertex + 1] = LOAD_COST if k in stored else STORE_COST
        for a in () if k in rim else nodes[k].args:
            if a in inside:
                edges[inside[a] + 1, vertex] = _NEVER
            elif nodes[a].op == "input":
                leaf = leaves.setdefault(a, 2 + 2 * len(region) + len(leaves))
                edges[source, leaf] = LOAD_COST
                edges[leaf, vertex] = _NEVER
    for k in needed:
        edges[inside[k] + 1, sink] = _NEVER
    size = 2 + 2 * len(region) + len(leaves)
    ends = np.array(list(edges), np.int32)
    capacity = sparse.csr_array(
        (np.array(list(edges.values()), np.int32), (ends[:, 0], ends[:, 1])), shape=(size, size)
    )
    residual = capacity - csgraph.maximum_flow(capacity, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached: set[int] = set(
        csgraph.breadth_first_order(residual, source, return_predecessors=False).tolist()
    )
    at_hand = {k for k, vertex in inside.items() if vertex + 1 not in reached}
    return at_hand, {k for k, vertex in inside.items() if vertex not in reached}
