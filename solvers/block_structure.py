"""Blocks of unknowns for preconditioners, and the motions that cost next to nothing.

A block is what belongs to one vertex, camera or point: one row of a parameter array, or of several
arrays with equally many rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.coarse_space import NO_MODES, Motion, NodeModes, node_modes

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# Wider blocks are cut: the dense factors of one would cost more than all the rest.
_WIDEST_BLOCK = 64
# Arrays of equally many blocks make one block together up to this width.
_WIDEST_FUSED = 12


@dataclass(frozen=True, slots=True)
class BlockStructure:
    """Which unknowns belong together, and which motions of them cost next to nothing.

    Attributes:
        starts: first entry in ``unknowns`` of each block, shape (blocks + 1,).
        unknowns: unknowns by block, rising in each; every unknown once; shape (n,).
        modes: gives columns that JᵀJ is nearly blind to (translations, rotations) at the
            parameters of the moment, shape (n, modes).
    """

    starts: IndexArray
    unknowns: IndexArray
    modes: Callable[[], FloatArray]

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.starts) - 1

    @property
    def block_of(self) -> IndexArray:
        """Block of each unknown, shape (n,)."""
        result = np.empty(len(self.unknowns), np.int64)
        result[self.unknowns] = np.repeat(np.arange(self.blocks), np.diff(self.starts))
        return result


def scalar_blocks(n: int) -> BlockStructure:
    """Every unknown for itself, and the constant as the only mode."""
    return BlockStructure(np.arange(n + 1), np.arange(n), lambda: np.ones((n, 1)))


def block_structure(
    columns: Sequence[IndexArray], values: Callable[[], Sequence[FloatArray]]
) -> BlockStructure:
    """Blocks and modes of parameter arrays.

    Arrays with equally many blocks are fused (positions and rotations of the same vertices, say).
    The first array of width 3 among fused ones that spreads in space is taken for positions and
    moves rigidly; others of width 3 with it are taken for rotations (axis-angle). What is neither
    is constant. A wrong guess costs iterations, not correctness.

    Args:
        columns: for each array the column of each number, -1 where frozen; (blocks, width).
        values: gives for each array its present numbers, same shape.
    """
    n = sum(int((c >= 0).sum()) for c in columns)
    fused = _fused(columns)
    joined = [np.concatenate([columns[k] for k in members], axis=1) for members in fused]
    starts: list[IndexArray] = [np.zeros(1, np.int64)]
    unknowns: list[IndexArray] = []
    for together in joined:
        for first in range(0, together.shape[1], _WIDEST_BLOCK):
            piece = together[:, first : first + _WIDEST_BLOCK]
            widths = (piece >= 0).sum(axis=1)
            starts.append(starts[-1][-1] + np.cumsum(widths[widths > 0]))
            unknowns.append(piece[piece >= 0])

    def modes() -> FloatArray:
        present = values()
        placed: list[FloatArray] = [np.zeros((n, 0))]
        for members, together in zip(fused, joined, strict=True):
            motions = _motions([present[k] for k in members])
            free = together >= 0
            placed.append(np.zeros((n, motions.shape[2])))
            placed[-1][together[free]] = motions[free]
        return np.concatenate(placed, axis=1)

    return BlockStructure(np.concatenate(starts), np.concatenate(unknowns), modes)


def _fused(columns: Sequence[IndexArray]) -> list[list[int]]:
    sets: list[list[int]] = []
    for k, array in enumerate(columns):
        for members in sets:
            width = array.shape[1] + sum(columns[m].shape[1] for m in members)
            if len(columns[members[0]]) == len(array) and width <= _WIDEST_FUSED:
                members.append(k)
                break
        else:
            sets.append([k])
    return sets


def modes_of(arrays: Sequence[FloatArray]) -> NodeModes:
    """Which motions of fused arrays cost next to nothing, by what the arrays look like.

    None for a single block, which has no neighbour to move with, and for very wide ones.

    Args:
        arrays: present values of arrays that make one block together, (blocks, width) each.
    """
    widths = [a.shape[1] for a in arrays]
    if sum(widths) > _WIDEST_FUSED or len(arrays[0]) == 1:
        return NO_MODES
    position = next((k for k, a in enumerate(arrays) if _look_like_positions(a)), None)
    motions = [Motion.ROTATION if width == 3 else Motion.CONSTANT for width in widths]
    if position is None:
        motions = [Motion.CONSTANT for _ in widths]
    else:
        motions[position] = Motion.POSITION
    return node_modes(widths, motions)


def _motions(arrays: Sequence[FloatArray]) -> FloatArray:
    """Near-null motions of fused arrays, shape (blocks, width, motions)."""
    blocks, width = len(arrays[0]), sum(a.shape[1] for a in arrays)
    modes = modes_of(arrays)
    motions = np.zeros((blocks, width, modes.count))
    arms = np.zeros((blocks, 3))
    if modes.position is not None:
        values = np.concatenate(arrays, axis=1)
        arms = values[:, modes.position : modes.position + 3]
        arms = arms - arms.mean(axis=0)
    for entry in modes.entries:
        value = 1.0 if entry.axis is None else arms[:, entry.axis]
        motions[:, entry.component, entry.mode] = entry.sign * value
    return motions


def _look_like_positions(array: FloatArray) -> bool:
    """Whether there are three numbers a block, and they do not lie on a line."""
    if array.shape[1] != 3 or len(array) < 4:
        return False
    spread = np.linalg.svd(np.cov(array.T), compute_uv=False)
    return bool(spread[1] > 1e-12 * spread[0])
