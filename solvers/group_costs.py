"""What each group of residuals or energies costs at a point, and its worst element."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.runtime.choice import BackendChoice, open_session

# From so many elements compiling pays.
_COMPILED_FROM = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCost:
    """One group's part of the cost.

    Attributes:
        name: of the group as it was added.
        count: elements.
        cost: ½Σρ(‖r‖²) of its residuals, or the sum of its energies.
        worst_element: with the largest cost, numbered as given.
        worst_norm: ‖r‖ of that element, under a robust loss √ρ; its energy where the group is one.
    """

    name: str
    count: int
    cost: float
    worst_element: int
    worst_norm: float


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch of a group: what it is called, and which elements it holds."""

    name: str
    group: BoundGroup
    is_energy: bool


def group_costs(
    residuals: Sequence[tuple[str, BoundGroup]],
    energies: Sequence[tuple[str, BoundGroup]],
    parameters: FloatArray,
) -> tuple[GroupCost, ...]:
    """Costs of all groups at a point, in float64 on the CPU, in the order added.

    Args:
        residuals: batches with the name of the group that each belongs to.
        energies: the same of energies.
        parameters: all of them, flat.
    """
    parts = [_Part(n, g, False) for n, g in residuals] + [_Part(n, g, True) for n, g in energies]
    costs: dict[str, list[FloatArray]] = {}
    elements: dict[str, list[IndexArray]] = {}
    energy: set[str] = set()
    for part in parts:
        own = _element_costs(part, parameters)
        named = part.group.elements
        costs.setdefault(part.name, []).append(own)
        elements.setdefault(part.name, []).append(np.arange(len(own)) if named is None else named)
        if part.is_energy:
            energy.add(part.name)
    return tuple(
        _summary(name, np.concatenate(found), np.concatenate(elements[name]), name in energy)
        for name, found in costs.items()
    )


def _element_costs(part: _Part, parameters: FloatArray) -> FloatArray:
    group = part.group
    if group.external is not None:
        given = group.external.at(parameters)[0].reshape(group.count, -1)
        return 0.5 * np.sum(given * given, axis=1)
    compiled = group.count >= _COMPILED_FROM and importlib.util.find_spec("numba") is not None
    choice = BackendChoice(
        backend="numba" if compiled else "numpy", precision="float64", reason="on the CPU"
    )
    session = open_session(choice, [group], len(parameters))
    try:
        with np.errstate(all="ignore"):
            rows: FloatArray = session.residuals(parameters).reshape(group.count, -1)
            return rows[:, 0].copy() if part.is_energy else 0.5 * np.sum(rows * rows, axis=1)
    finally:
        session.close()


def _summary(name: str, costs: FloatArray, elements: IndexArray, is_energy: bool) -> GroupCost:
    # NaN is worse than anything.
    worst = int(np.argmax(np.where(np.isnan(costs), np.inf, costs)))
    value = float(costs[worst])
    return GroupCost(
        name=name,
        count=len(costs),
        cost=float(np.sum(costs)),
        worst_element=int(elements[worst]),
        worst_norm=value if is_energy else float(np.sqrt(2.0 * value)),
    )


class GroupCosts:
    """Costs of a solution's groups, computed when first asked for.

    Args:
        compute: gives them; dropped afterwards.
    """

    def __init__(self, compute: Callable[[], tuple[GroupCost, ...]]) -> None:
        self._compute: Callable[[], tuple[GroupCost, ...]] | None = compute
        self._found: tuple[GroupCost, ...] = ()

    def get(self) -> tuple[GroupCost, ...]:
        """One for each group, in the order added."""
        if self._compute is not None:
            self._found = self._compute()
            self._compute = None
        return self._found
