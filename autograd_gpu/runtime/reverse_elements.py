"""Whether every element of a group comes with its reverse, as half-edges of a mesh do.

What is done with it: ``codegen/reversal.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autograd_gpu.runtime.batch import BoundGroup, DataBinding, IndexArray
from autograd_gpu.runtime.locality import lexical_order

CHUNK = 1 << 20
"""Elements whose data are compared at once."""


def reverse_signs(
    group: BoundGroup,
    nodes: Sequence[IndexArray],
    lead: int,
    count: int,
    element_order: IndexArray,
) -> tuple[tuple[int, ...], ...] | None:
    """Signs by which the data of reverse elements differ; None if there are not only such pairs.

    Args:
        group: bound residual group.
        nodes: two arrays, the node of each element at either place, of the same set of nodes;
            elements sorted by the one at place ``lead``, those of equal ones by the other.
        lead: 0 or 1.
        count: how many nodes there are.
        element_order: elements as given, in the order of ``nodes``.

    Returns:
        Per slot, 1 or -1 for each number of an element's data; nothing for slots of parameters.
        Reverse elements are found by their nodes alone: of several between the same two nodes the
        k-th ones belong together.
    """
    first, second = nodes[lead], nodes[1 - lead]
    if not np.array_equal(
        np.bincount(first, minlength=count), np.bincount(second, minlength=count)
    ):
        return None
    back = lexical_order((first, second), (count, count))
    if not (np.array_equal(second[back], first) and np.array_equal(first[back], second)):
        return None
    found: list[tuple[int, ...]] = []
    for binding in group.bindings:
        signs: list[int] = []
        if isinstance(binding, DataBinding):
            for component in range(binding.values.shape[1]):
                sign = _sign(binding, component, element_order, back)
                if sign is None:
                    return None
                signs.append(sign)
        found.append(tuple(signs))
    return tuple(found)


def _sign(binding: DataBinding, component: int, order: IndexArray, back: IndexArray) -> int | None:
    """1 if a number is the same in all reverse elements, -1 if it is its negative, else None."""
    if binding.shared:
        return 1
    same = negative = True
    for first in range(0, len(order), CHUNK):  # data may be on a file
        part = slice(first, first + CHUNK)
        values = binding.values[order[part], component]
        reverse = binding.values[order[back[part]], component]
        same = same and np.array_equal(values, reverse)
        negative = negative and np.array_equal(values, -reverse)
        if not (same or negative):
            return None
    return 1 if same else -1
