"""Values of ``ag.probe`` at a point: computed by kernels of their own, on any backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autograd_gpu.codegen.kernel import topology_of
from autograd_gpu.errors import InputError
from autograd_gpu.probes import ProbedGraph
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.runtime.choice import BackendChoice, open_session
from autograd_gpu.solvers.residual_group import ResidualGroup, binding_of, slot_of


class Probes(Mapping[str, FloatArray]):
    """Probed values by name: ``(elements, *shape)``, float64, elements in the order given.

    A name that several residual groups use is ``group.name``. Where lengths of rows give a value
    several shapes, there is one entry ``name (length …)`` for each, in the order of its elements.
    """

    def __init__(self, values: Mapping[str, FloatArray] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> FloatArray:
        if name in self._values:
            return self._values[name]
        known = ", ".join(map(repr, self._values)) or "none"
        raise InputError(
            f"probes[{name!r}]: there is no such probe, known are: {known}; name a value by "
            "ag.probe(name, value) in a residual function without rows of more than 32 items"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in self._values.items())
        return f"Probes({shapes})"


def probe_values(
    groups: Sequence[ResidualGroup],
    base: Mapping[str, int],
    choice: BackendChoice,
    parameters: FloatArray,
) -> Probes:
    """Values of all probes.

    Args:
        groups: of the problem, energies too.
        base: position of the first number of each parameter array.
        choice: what computes them.
        parameters: the point, flat.
    """
    members = [(g, g.probes) for g in groups if g.probes is not None]
    if not members:
        return Probes()
    parts = [_as_residuals(g, probes, base) for g, probes in members]
    session = open_session(choice, parts, len(parameters))
    try:
        flat = session.residuals(parameters).astype(np.float64)
    finally:
        session.close()
    found: dict[tuple[str, str], list[tuple[ResidualGroup, FloatArray]]] = {}
    first = 0
    for (group, probes), part in zip(members, parts, strict=True):
        size = part.count * part.residual_size
        rows = flat[first : first + size].reshape(part.count, -1)
        first += size
        for name, values in _split(probes, rows):
            found.setdefault((group.given_as or group.name, name), []).append((group, values))
    uses = Counter(name for _, name in found)
    result: dict[str, FloatArray] = {}
    for (title, name), pieces in found.items():
        result |= _joined(name if uses[name] == 1 else f"{title}.{name}", pieces)
    return Probes(result)


def _as_residuals(group: ResidualGroup, probes: ProbedGraph, base: Mapping[str, int]) -> BoundGroup:
    """The probes of a group as a group without derivatives, of the same elements."""
    arguments = group.arguments[: len(probes.graph.arguments)]
    slots = [replace(slot_of(a), tangent=0, chart=None) for a in arguments]
    topology = topology_of(probes.graph, slots)
    return BoundGroup(
        name=group.name,
        topology=topology,
        count=group.count,
        bindings=tuple(binding_of(arguments[a], base) for a in topology.arguments),
        elements=group.elements,
    )


def _split(probes: ProbedGraph, rows: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    first = 0
    for name, shape in probes.shapes.items():
        size = int(np.prod(shape, dtype=int))
        yield name, rows[:, first : first + size].reshape(len(rows), *shape)
        first += size


def _joined(name: str, pieces: Sequence[tuple[ResidualGroup, FloatArray]]) -> dict[str, FloatArray]:
    """Batches of one given group put together, elements in the order given."""
    if len(pieces) == 1 and pieces[0][0].elements is None:
        return {name: pieces[0][1]}
    if len({values.shape[1:] for _, values in pieces}) > 1:
        return {f"{name} ({_lengths(group)})": values for group, values in pieces}
    elements = np.concatenate([_elements(group) for group, _ in pieces])
    values = np.concatenate([values for _, values in pieces])
    return {name: values[np.argsort(elements, kind="stable")]}


def _elements(group: ResidualGroup) -> IndexArray:
    return np.arange(group.count, dtype=np.int64) if group.elements is None else group.elements


def _lengths(group: ResidualGroup) -> str:
    """What distinguishes a batch of a ragged group: the end of its name."""
    return group.name.rsplit("(", 1)[-1].rstrip(")")
