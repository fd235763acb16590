"""Blocks of unknowns that the elements of a problem gather as a whole, from its slots alone.

The components of a row of a parameter array stay together where every kernel couples them with the
same columns of its other slots (the coordinates of a point, the numbers of a camera); a mesh whose
coordinates never meet in a residual has three blocks a vertex. So JᵀJ by blocks has no entry that
it does not have by numbers, but for blocks on the diagonal, which are taken to be full.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.kernel import Kernel, Product, SlotKind
from autograd_gpu.runtime.batch import BoundGroup, IndexArray, ParameterBinding
from autograd_gpu.runtime.block_assembly import GroupPlaces

# A sum by blocks may take so many times the multiply-adds of one by entries, and the memory.
_PADDING = 2
# Elements with more rows x places x places are whole problems: sums by entries.
_LARGEST_TABLE = 1 << 22


@dataclass(frozen=True, slots=True)
class UnknownBlocks:
    """Blocks of the unknowns, and the places through which each group gathers them.

    Attributes:
        starts: first unknown of each block, rising, and the number of unknowns; (blocks + 1,).
        groups: places of each group.
    """

    starts: IndexArray
    groups: tuple[GroupPlaces, ...]

    @property
    def possible(self) -> bool:
        """Whether sums by blocks can be made; they need each block once an element.

        Whether they pay is decided with the other schedules (``host_schedules``).
        """
        if any(g.rows * len(g.columns) ** 2 > _LARGEST_TABLE for g in self.groups):
            return False
        products = sum(g.count * int(g.products.sum()) for g in self.groups)
        entries = sum(map(self.by_entries, self.groups))
        return products <= _PADDING * entries and not any(map(_repeats, self.groups))

    @staticmethod
    def by_entries(group: GroupPlaces) -> int:
        """Multiply-adds of JᵀJ over the entries of J."""
        in_row = np.bincount(group.entries[:, 0]).astype(np.int64)
        return group.count * int((in_row**2).sum())

    @property
    def fill(self) -> float:
        """Share of J that is stored, frozen columns left out."""
        stored = rows = 0
        for group in self.groups:
            entries = np.bincount(group.place_of, minlength=len(group.columns))
            stored += int((group.blocks >= 0).sum(axis=0) @ entries)
            rows += group.count * group.rows
        return stored / max(1, rows * int(self.starts[-1]))

    @property
    def shared(self) -> bool:
        """Whether all elements of each group gather the same blocks."""
        return all(g.count == 1 or g.blocks.strides[0] == 0 for g in self.groups)


def unknown_blocks(
    groups: Sequence[BoundGroup], columns: Mapping[int, IndexArray], n_columns: int
) -> UnknownBlocks:
    """Blocks of a problem.

    Args:
        groups: of the problem.
        columns: for each array, by the position of its first number among all parameters, the
            column of each number, -1 where frozen; (blocks, width).
        n_columns: number of unknowns.
    """
    cuts = {base: _cuts(groups, base, array.shape[1]) for base, array in columns.items()}
    firsts = {base: array[:, cuts[base]] for base, array in columns.items()}
    starts = np.sort(np.concatenate([f[f >= 0] for f in firsts.values()]))
    numbers = {
        base: np.where(first >= 0, np.searchsorted(starts, first), -1)
        for base, first in firsts.items()
    }
    return UnknownBlocks(
        np.concatenate([starts, [n_columns]]),
        tuple(_places(g, cuts, numbers) for g in groups),
    )


def _repeats(group: GroupPlaces) -> bool:
    """Whether some element gathers a block through two places."""
    if group.count == 0:
        return False
    least, most = group.blocks.min(axis=0), group.blocks.max(axis=0)
    for p, q in itertools.combinations(range(len(group.columns)), 2):
        if least[p] <= most[q] and least[q] <= most[p]:
            alike = group.blocks[:, p] == group.blocks[:, q]
            if (alike & (group.blocks[:, p] >= 0)).any():
                return True
    return False


def _neighbours(kernel: Kernel) -> NDArray[np.bool_]:
    """Which local columns meet in a row, shape (n, n)."""
    occupied = np.zeros((kernel.residual_size, kernel.columns), np.float32)
    for entry in kernel.entries:
        occupied[entry.row, entry.column] = 1.0
    return occupied.T @ occupied > 0.0


def _cuts(groups: Sequence[BoundGroup], base: int, width: int) -> list[int]:
    """Components of an array with which a block begins."""
    cut = np.zeros(width, np.bool_)
    cut[:1] = True
    found: dict[tuple[str, tuple[int, ...]], Kernel] = {}
    for group in groups:
        kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
        found[group.topology.key, _slots_of(group, kernel, base)] = kernel
    for (_, slots), kernel in found.items():
        neighbours = _neighbours(kernel)
        for first in slots:
            elsewhere = neighbours[first : first + width].copy()
            elsewhere[:, first : first + width] = False
            cut[1:] |= (elsewhere[1:] != elsewhere[:-1]).any(axis=1)
    return np.flatnonzero(cut).tolist()


def _slots_of(group: BoundGroup, kernel: Kernel, base: int) -> tuple[int, ...]:
    """First local column of each slot that gathers an array."""
    offsets = zip(group.bindings, kernel.tangent_offsets, strict=True)
    return tuple(o for b, o in offsets if isinstance(b, ParameterBinding) and b.base == base)


def _places(
    group: BoundGroup, cuts: Mapping[int, list[int]], numbers: Mapping[int, IndexArray]
) -> GroupPlaces:
    kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
    firsts: list[int] = []
    widths: list[int] = []
    blocks: list[IndexArray] = []
    for slot, binding, offset in zip(
        kernel.slots, group.bindings, kernel.tangent_offsets, strict=True
    ):
        if slot.kind is not SlotKind.PARAMETER:
            continue
        assert isinstance(binding, ParameterBinding)
        cut = cuts[binding.base]
        firsts += [offset + c for c in cut]
        widths += np.diff([*cut, slot.tangent]).tolist()
        alike = binding.indices is None and binding.stride == 0
        gathered = binding.block_of(1 if alike else group.count)
        blocks.append(numbers[binding.base][gathered])
    entries = [(e.row, e.column) for e in kernel.entries]
    return GroupPlaces(
        count=group.count,
        rows=kernel.residual_size,
        local_columns=kernel.columns,
        entries=np.array(entries, np.int64).reshape(-1, 2),
        columns=np.array(firsts, np.int64),
        widths=np.array(widths, np.int64),
        blocks=_side_by_side(blocks, group.count),
    )


def _side_by_side(blocks: list[IndexArray], count: int) -> IndexArray:
    """Join blocks of all slots; one row that is repeated without a copy, if all have but one."""
    if all(len(b) == 1 for b in blocks):
        row = np.concatenate([np.empty((1, 0), np.int64), *blocks], axis=1)
        return np.broadcast_to(row, (count, row.shape[1]))
    return np.concatenate([np.broadcast_to(b, (count, b.shape[1])) for b in blocks], axis=1)
