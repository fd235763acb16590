"""Single products of a problem on a device, under a chosen accumulation into shared parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.incidence import PRODUCTS
from autograd_gpu.codegen.operator_program import OperatorSizes, operator_program
from autograd_gpu.codegen.scatter_kernels import (
    ACCUMULATIONS,
    FLOAT32_ACCUMULATIONS,
    OperatorStructure,
    places_of,
    triangle,
)
from autograd_gpu.codegen.solve_layout import group_row, kind_row, set_row
from autograd_gpu.errors import DeviceError, InputError, PrecisionError, ShapeError
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.runtime.closing import Closing
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import NodeTables, upload_numbers
from autograd_gpu.runtime.program_runner import ProgramRunner
from autograd_gpu.runtime.schedules import team_of

NATIVE_ATOMICS = "shader-float32-atomic"


@dataclass(frozen=True, slots=True)
class _Reduction:
    """Which (workgroup, node) pairs of a group have a partial sum, and what is in each.

    Attributes:
        workgroups: first slot of each workgroup, and the number of slots.
        lists: first entry of each slot, and the number of entries.
        entries: position in shared memory, place-major; in the order of elements.
        destinations: row of each slot among the partial sums, which are sorted by node.
        nodes: first row of each node, and the number of rows.
    """

    workgroups: IndexArray
    lists: IndexArray
    entries: IndexArray
    destinations: IndexArray
    nodes: IndexArray


def _reduce(nodes: IndexArray, node_count: int, workgroup: int) -> _Reduction:
    """Lists for one group and node set; ``nodes`` is ``(elements, places)``."""
    elements, places = len(nodes), nodes[0].size
    each: IndexArray = np.arange(elements, dtype=np.int64)[:, None]
    place: IndexArray = np.arange(places, dtype=np.int64)
    at: IndexArray = (place * workgroup + each % workgroup).ravel()
    key: IndexArray = (each // workgroup * node_count + nodes).ravel()
    order: IndexArray = np.argsort(key, kind="stable")
    ordered = key[order]
    lists = np.flatnonzero(np.diff(ordered, prepend=-1))
    slot_workgroup: IndexArray = ordered[lists] // node_count
    slot_node: IndexArray = ordered[lists] % node_count
    by_node = np.argsort(slot_node, kind="stable")
    destinations = np.empty(len(lists), np.int64)
    destinations[by_node] = np.arange(len(lists))
    groups = -(-elements // workgroup)
    return _Reduction(
        workgroups=np.searchsorted(slot_workgroup, np.arange(groups + 1)),
        lists=np.append(lists, key.size),
        entries=at[order],
        destinations=destinations,
        nodes=np.searchsorted(slot_node[by_node], np.arange(node_count + 1)),
    )


class Operators(Closing):
    """Jᵀr, JᵀJ v and the diagonal blocks of JᵀJ at any point, in the precision of the tables.

    Buffers and pipelines are made here and never again. Frozen components neither enter nor
    leave: they are exact zeros in every result, and those of a vector given are taken as zero.

    Args:
        device: where.
        tables: the problem, with the schedules of its groups.
        accumulation: one of ``ACCUMULATIONS`` for all groups, in place of what their schedules say.

    Raises:
        InputError: unknown accumulation, or one that stores nothing with records to be stored.
        PrecisionError: atomics were asked for in float64: WGSL's have 32 bits.
        DeviceError: the device has no float32 atomics, and they were asked for.
        DeviceLimitError: a buffer is larger than the device allows.
    """

    def __init__(self, device: Device, tables: NodeTables, accumulation: str | None = None) -> None:
        if accumulation not in (*ACCUMULATIONS, None):
            raise InputError(
                f"unknown accumulation {accumulation!r}; known are {', '.join(ACCUMULATIONS)}"
            )
        self._tables = tables
        self._incidences = _mean_incidences(tables)
        self.accumulations = tuple(accumulation or s.accumulate for s in tables.schedules)
        for s in tables.schedules if accumulation is None else ():
            if s.accumulate != "gather" and s.materialise != "nothing":
                raise InputError(
                    f"single products by accumulation {s.accumulate!r} compute each element once "
                    f"and store nothing; got materialise={s.materialise!r}, expected 'nothing'"
                )
        precision = tables.structure.precision
        atomic = [a for a in self.accumulations if a in FLOAT32_ACCUMULATIONS]
        if precision != "float32" and atomic:
            raise PrecisionError(
                f"accumulation {atomic[0]!r} in {precision}: WGSL's atomics have 32 bits; "
                "use 'gather' or 'two-level', which need none"
            )
        if "atomic-native" in self.accumulations and NATIVE_ATOMICS not in device.capabilities:
            raise DeviceError(
                f"accumulation 'atomic-native': {device.name} does not have the feature "
                f"{NATIVE_ATOMICS}; use 'atomic-cas', which every device runs, or 'gather'"
            )
        self._positions = tables.positions
        self._frozen = _frozen_components(tables)
        reductions = self._reductions()
        self._structure = OperatorStructure(
            solve=tables.structure,
            accumulations=self.accumulations,
            teams=self._teams(reductions),
        )
        words = self._words(reductions)
        self._sizes = OperatorSizes(
            structure=self._structure,
            solve=tables.sizes,
            table_words=sum(w.size for w in words),
            partial_rows=tuple(len(r.destinations) for r in reductions.values()),
        )
        self._runner = ProgramRunner(device, operator_program(self._sizes))
        self._runner.upload("control", self._control(reductions))
        self._runner.upload("tables", np.concatenate(words))
        upload_numbers(self._runner, tables)

    # -- products ------------------------------------------------------------------------------

    @property
    def runner(self) -> ProgramRunner:
        """What executes the program; for measurements of single products."""
        return self._runner

    def gradient(self, parameters: FloatArray) -> FloatArray:
        """Jᵀr in the order of the problem's parameters."""
        return self._tables.unpack(self._run("gradient", parameters)["result"])

    def jtj_product(self, parameters: FloatArray, vector: FloatArray) -> FloatArray:
        """JᵀJ v, both vectors in the order of the problem's parameters."""
        packed = self._pack(vector, "vector")
        packed.reshape(self._tables.sizes.components, -1)[self._frozen] = 0.0
        self._runner.upload("vectors", packed)
        return self._tables.unpack(self._run("jtj_product", parameters)["result"])

    def block_diagonal(self, parameters: FloatArray) -> list[FloatArray]:
        """Diagonal blocks of JᵀJ: per node set ``(nodes, width (width + 1) / 2)``.

        Rows are in the order of the problem's blocks. A node's components are those of the
        arrays fused in it, in the order added; entry (a, b), a >= b, is at a (a + 1) / 2 + b.
        """
        words = self._tables.number_format.decode(self._run("block_diagonal", parameters)["blocks"])
        sizes = self._tables.sizes
        bases = self._sizes.block_bases
        result: list[FloatArray] = []
        for k, nodes in enumerate(self._tables.structure.node_sets):
            first, last = (b * self._tables.structure.lanes for b in sizes.vector_bases[k : k + 2])
            inside = self._positions[(self._positions >= first) & (self._positions < last)] - first
            # The problem's first array in a node comes first in it too.
            order = inside[inside % nodes.width == 0] // nodes.width
            blocks = words[bases[k] : bases[k + 1]].reshape(-1, triangle(nodes.width))
            result.append(blocks[order])
        return result

    @property
    def schedule(self) -> str:
        """What is used, and on what."""
        mean = ", ".join(f"{m:.1f}" for m in self._incidences)
        used = ", ".join(dict.fromkeys(self.accumulations))
        counts = ", ".join(
            f"{product} {len(sequence.dispatches)}"
            for product, sequence in self._runner.program.sequences.items()
        )
        return f"accumulation {used}; mean incidences per node: {mean}; dispatches: {counts}"

    def close(self) -> None:
        """Free the buffers; the device keeps its pipelines."""
        self._runner.release()

    # -- running -------------------------------------------------------------------------------

    def _pack(self, values: FloatArray, what: str) -> NDArray[Any]:
        given = np.asarray(values, np.float64).ravel()
        if given.size != self._positions.size:
            raise ShapeError(
                f"{what}: got {given.size} numbers, the problem has {self._positions.size} "
                "parameters; pass all of them, frozen ones included, array after array"
            )
        return self._tables.pack(given, what)

    def _run(self, product: str, parameters: FloatArray) -> dict[str, NDArray[Any]]:
        self._runner.upload("parameters", self._pack(parameters, "parameters"))
        return self._runner.run(product, self._tables.number_format.dtype)

    # -- tables --------------------------------------------------------------------------------

    def _reductions(self) -> dict[tuple[int, int], _Reduction]:
        tables, structure = self._tables, self._tables.structure
        found: dict[tuple[int, int], _Reduction] = {}
        for g, group in enumerate(structure.groups):
            if self.accumulations[g] != "two-level":
                continue
            # The element table begins with one column of nodes per place.
            count, _, start, _ = tables.control[group_row(structure, g)].astype(int)
            for k in sorted({s.node_set for s in group.places}):
                columns = [
                    tables.tables[start + p * count : start + (p + 1) * count]
                    for p in places_of(group, k)
                ]
                nodes = np.stack(columns, axis=1).astype(np.int64)
                found[g, k] = _reduce(nodes, tables.sizes.nodes[k], structure.element_size(g))
        return found

    def _teams(self, reductions: dict[tuple[int, int], _Reduction]) -> tuple[int, ...]:
        """Threads per node over its partial sums, by their mean number."""
        teams: list[int] = []
        for k, nodes in enumerate(self._tables.sizes.nodes):
            rows = sum(len(r.destinations) for (_, s), r in reductions.items() if s == k)
            teams.append(team_of(rows / max(1, nodes), self._tables.structure.workgroup_size))
        return tuple(teams)

    def _words(self, reductions: dict[tuple[int, int], _Reduction]) -> list[NDArray[np.uint32]]:
        """Contents of the tables buffer, part by part."""
        lists = [
            part.astype(np.uint32)
            for r in reductions.values()
            for part in (r.workgroups, r.lists, r.entries, r.destinations, r.nodes)
        ]
        return [self._tables.tables, *lists]

    def _control(self, reductions: dict[tuple[int, int], _Reduction]) -> NDArray[np.uint32]:
        rows = [(base, 0, 0, 0) for base in self._sizes.block_bases[:-1]]
        bases = [self._sizes.partial_bases(p) for p in PRODUCTS]
        start = self._tables.tables.size
        for k, r in enumerate(reductions.values()):
            starts: list[int] = []
            for part in (r.workgroups, r.lists, r.entries, r.destinations, r.nodes):
                starts.append(start)
                start += part.size
            rows.append((starts[0], starts[1], starts[2], starts[3]))
            rows.append((starts[4], bases[0][k], bases[1][k], bases[2][k]))
        return np.concatenate([self._tables.control, np.array(rows, np.uint32)])


def _mean_incidences(tables: NodeTables) -> list[float]:
    """Per node set, incidences of a node in the mean."""
    structure = tables.structure
    return [
        sum(int(tables.control[kind_row(structure, k, j)][2]) for j in range(len(kinds)))
        / max(1, tables.sizes.nodes[k])
        for k, kinds in enumerate(structure.kinds)
    ]


def _frozen_components(tables: NodeTables) -> IndexArray:
    """Positions of frozen components in a device vector."""
    found: list[IndexArray] = [np.zeros(0, np.int64)]
    for k, nodes in enumerate(tables.structure.node_sets):
        if nodes.masked:
            start = int(tables.control[set_row(k) + 1][1])
            masks = tables.tables[start : start + tables.sizes.nodes[k], None]
            bits = (masks >> np.arange(nodes.width, dtype=np.uint32)) & 1
            base = tables.sizes.vector_bases[k] * tables.structure.lanes
            found.append(base + np.flatnonzero(bits))
    return np.concatenate(found)
