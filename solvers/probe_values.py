"""Values of ``ag.probe`` at a point: computed by kernels of their own, on any backend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from autograd_gpu.errors import DeviceError, InputError, KernelError
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.runtime.choice import BackendChoice, choose_backend, open_session
from autograd_gpu.solvers.probe_groups import element_group, item_group
from autograd_gpu.solvers.residual_group import ResidualGroup


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
            "ag.probe(name, value) in a residual function"
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


@dataclass(frozen=True, slots=True)
class _Piece:
    """Values of one probe at some elements of a group that the user gave.

    Attributes:
        elements: their numbers; None for all, in order.
        label: what distinguishes them from others of another shape: ``length 3``.
        values: ``(elements, *shape)``.
    """

    elements: IndexArray | None
    label: str
    values: FloatArray


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
    graphs = [(g, p.graph) for g, p in members if p.graph is not None]
    bound = [element_group(g, graph, base, parameters) for g, graph in graphs]
    of_group = dict(
        zip([id(g) for g, _ in graphs], _computed(bound, choice, parameters), strict=True)
    )
    nothing = np.zeros((0, 0))
    parts: list[BoundGroup] = []
    for group, probes in members:
        if probes.items is not None:
            rows = of_group.get(id(group), nothing)
            folds = rows[:, rows.shape[1] - probes.items.folds :]
            parts.append(item_group(group, probes.items, folds, base))
    of_items = iter(_computed(parts, choice, parameters))
    found: dict[tuple[str, str], list[_Piece]] = {}
    for group, probes in members:
        title = group.given_as or group.name
        for name, values in _split(probes.shapes, of_group.get(id(group), nothing)):
            piece = _Piece(group.elements, _label(group), values)
            found.setdefault((title, name), []).append(piece)
        if probes.items is not None:
            for name, values in _split(probes.items.shapes, next(of_items)):
                found.setdefault((title, name), []).extend(_by_length(group, values))
    uses = Counter(name for _, name in found)
    result: dict[str, FloatArray] = {}
    for (title, name), pieces in found.items():
        result |= _joined(name if uses[name] == 1 else f"{title}.{name}", pieces)
    return Probes(result)


def probe_values_at_the_end(
    groups: Sequence[ResidualGroup],
    base: Mapping[str, int],
    choice: BackendChoice,
    parameters: FloatArray,
    faults: list[str],
) -> Probes:
    """``probe_values`` of a solution, which must not be lost with its device: else by the CPU.

    Args:
        groups: as for ``probe_values``.
        base: likewise.
        choice: likewise.
        parameters: likewise.
        faults: what happened is added to it.
    """
    try:
        return probe_values(groups, base, choice, parameters)
    except (DeviceError, KernelError, MemoryError) as error:
        if choice.backend not in ("wgsl", "jax"):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0]
        faults.append(f"probes are computed on the CPU: {why}")
    return probe_values(groups, base, choose_backend("auto", "float64", None, 0), parameters)


def _computed(
    groups: Sequence[BoundGroup], choice: BackendChoice, parameters: FloatArray
) -> list[FloatArray]:
    """Residuals of each group, ``(count, size)``."""
    if not groups:
        return []
    with closing(open_session(choice, groups, len(parameters))) as session:
        flat = session.residuals(parameters).astype(np.float64)
    ends = np.cumsum([g.count * g.residual_size for g in groups])[:-1]
    return [rows.reshape(g.count, -1) for g, rows in zip(groups, np.split(flat, ends), strict=True)]


def _split(
    shapes: Mapping[str, tuple[int, ...]], rows: FloatArray
) -> Iterator[tuple[str, FloatArray]]:
    first = 0
    for name, shape in shapes.items():
        size = int(np.prod(shape, dtype=int))
        yield name, rows[:, first : first + size].reshape(len(rows), *shape)
        first += size


def _by_length(group: ResidualGroup, values: FloatArray) -> Iterator[_Piece]:
    """Values of items, row after row, as ``(elements, length, *shape)`` for each length."""
    assert group.lengths is not None
    starts = np.cumsum(group.lengths) - group.lengths
    for length in np.unique(group.lengths):
        chosen = np.flatnonzero(group.lengths == length)
        rows = values[starts[chosen][:, None] + np.arange(length)]
        yield _Piece(_elements(group)[chosen], f"length {length}", rows)


def _joined(name: str, pieces: Sequence[_Piece]) -> dict[str, FloatArray]:
    """Batches of one given group put together, elements in the order given."""
    if len(pieces) == 1 and pieces[0].elements is None:
        return {name: pieces[0].values}
    if len({piece.values.shape[1:] for piece in pieces}) > 1:
        return {f"{name} ({piece.label})": piece.values for piece in pieces}
    elements = np.concatenate([piece.elements for piece in pieces if piece.elements is not None])
    values = np.concatenate([piece.values for piece in pieces])
    return {name: values[np.argsort(elements, kind="stable")]}


def _elements(group: ResidualGroup) -> IndexArray:
    return np.arange(group.count, dtype=np.int64) if group.elements is None else group.elements


def _label(group: ResidualGroup) -> str:
    """What distinguishes a batch of a ragged group: the end of its name, equal lengths once."""
    label = group.name.rsplit("(", 1)[-1].rstrip(")")
    lengths = label.removeprefix("lengths ").split(", ")
    equal = len(lengths) > 1 and len(set(lengths)) == 1
    return f"length {lengths[0]}" if equal else label
