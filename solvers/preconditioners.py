"""Preconditioners of conjugate gradients: M⁻¹r for an M near A that is cheap to invert.

All see the unknowns in blocks (those of one vertex, camera, point) and are symmetric positive
definite, whatever the matrix. Costs are counted in multiply-adds, not by the clock, so that a
choice made by cost comes out the same in every run.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import MissingDependencyError
from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.host_assembly import SymmetricMatrix, unsigned
from autograd_gpu.solvers.sparse_cholesky import fastest_sparse_cholesky

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# Wider blocks are cut: the dense factors of one would cost more than all the rest.
_WIDEST_BLOCK = 64
# Arrays of equally many blocks make one block together up to this width.
_WIDEST_FUSED = 12
# A pivot stays above this part of its diagonal entry, however dependent the columns are.
_PIVOT_FLOOR = 1e-10
# A mode that this much of itself is left of, without the earlier ones, depends on them.
_DEPENDENT = 1e-7


# --- blocks ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlockStructure:
    """Which unknowns belong together, and which motions of them cost next to nothing.

    Attributes:
        starts: first entry in ``unknowns`` of each block, shape (blocks + 1,).
        unknowns: unknowns by block, rising in each; every unknown once; shape (n,).
        modes: columns that JᵀJ is nearly blind to (translations, rotations), shape (n, modes).
    """

    starts: IndexArray
    unknowns: IndexArray
    modes: FloatArray

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
    return BlockStructure(np.arange(n + 1), np.arange(n), np.ones((n, 1)))


def block_structure(columns: Sequence[IndexArray], values: Sequence[FloatArray]) -> BlockStructure:
    """Blocks and modes of parameter arrays.

    Arrays with equally many blocks are fused (positions and rotations of the same vertices, say).
    The first array of width 3 among fused ones that spreads in space is taken for positions and
    moves rigidly; others of width 3 with it are taken for rotations (axis-angle). What is neither
    is constant. A wrong guess costs iterations, not correctness.

    Args:
        columns: for each array the column of each number, -1 where frozen; (blocks, width).
        values: for each array its numbers, same shape.
    """
    n = sum(int((c >= 0).sum()) for c in columns)
    starts: list[IndexArray] = [np.zeros(1, np.int64)]
    unknowns: list[IndexArray] = []
    modes: list[FloatArray] = []
    for members in _fused(columns):
        together = np.concatenate([columns[k] for k in members], axis=1)
        motion = _modes([values[k] for k in members])
        if motion.shape[1]:
            free = together >= 0
            placed = np.zeros((n, motion.shape[1]))
            placed[together[free]] = motion.reshape(*together.shape, -1)[free]
            modes.append(placed)
        for first in range(0, together.shape[1], _WIDEST_BLOCK):
            piece = together[:, first : first + _WIDEST_BLOCK]
            widths = (piece >= 0).sum(axis=1)
            starts.append(starts[-1][-1] + np.cumsum(widths[widths > 0]))
            unknowns.append(piece[piece >= 0])
    return BlockStructure(
        np.concatenate(starts),
        np.concatenate(unknowns),
        np.concatenate(modes, axis=1) if modes else np.zeros((n, 0)),
    )


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


def _modes(arrays: Sequence[FloatArray]) -> FloatArray:
    """Near-null motions of fused arrays, shape (blocks · width, modes)."""
    blocks, width = len(arrays[0]), sum(a.shape[1] for a in arrays)
    if width > _WIDEST_FUSED or blocks == 1:
        return np.zeros((blocks * width, 0))
    positions = next((k for k, a in enumerate(arrays) if _look_like_positions(a)), None)
    constant = np.broadcast_to(np.eye(width), (blocks, width, width))
    if positions is None:
        return constant.reshape(blocks * width, width).copy()
    rigid = np.zeros((blocks, width, 6))
    others: list[int] = []
    first = 0
    for k, array in enumerate(arrays):
        own = slice(first, first + array.shape[1])
        first += array.shape[1]
        if k == positions:
            rigid[:, own, :3] = np.eye(3)
            # Column c is e_c × p: the velocity of a rotation about axis c.
            centred = array - array.mean(axis=0)
            rigid[:, own, 3:] = np.cross(np.eye(3), centred[:, None, :]).transpose(0, 2, 1)
        elif array.shape[1] == 3:
            rigid[:, own, 3:] = np.eye(3)
        else:
            others += range(own.start, own.stop)
    return np.concatenate([rigid, constant[:, :, others]], axis=2).reshape(blocks * width, -1)


def _look_like_positions(array: FloatArray) -> bool:
    """Whether there are three numbers a block, and they do not lie on a line."""
    if array.shape[1] != 3 or len(array) < 4:
        return False
    spread = np.linalg.svd(np.cov(array.T), compute_uv=False)
    return bool(spread[1] > 1e-12 * spread[0])


# --- the interface -----------------------------------------------------------------------------


class Preconditioner(Protocol):
    """Applies M⁻¹. `setup` once per pattern, `factorize` once per matrix, `apply` per iteration.

    Attributes:
        name: what the report calls it.
        setup_cost: multiply-adds of one `factorize`, about.
        apply_cost: multiply-adds of one `apply`, about.
    """

    name: str
    setup_cost: int
    apply_cost: int

    def setup(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        """Take the pattern and the blocks of its unknowns."""
        ...

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Take the values; False if this matrix cannot be preconditioned so."""
        ...

    def apply(self, r: FloatArray, z: FloatArray) -> None:
        """Set z = M⁻¹r, both of shape (n,)."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class BlockJacobi:
    """The inverses of A's diagonal blocks, by LDLᵀ with pivots that are kept off zero."""

    name = "block-Jacobi"

    def setup(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        """Find the entries of the diagonal blocks."""
        dtype = matrix.indptr.dtype
        widths = np.diff(blocks.starts)
        squares = np.concatenate(([0], np.cumsum(widths**2)))
        local = np.empty(matrix.n, np.int64)
        local[blocks.unknowns] = np.arange(matrix.n) - np.repeat(blocks.starts[:-1], widths)
        block_of = blocks.block_of
        rows = np.repeat(np.arange(matrix.n), np.diff(matrix.indptr))
        inside = np.flatnonzero(block_of[rows] == block_of[matrix.indices])
        rows, columns = rows[inside], matrix.indices[inside]
        own = block_of[rows]
        positions = np.full(squares[-1], matrix.indices.size, dtype)
        positions[squares[own] + local[rows] * widths[own] + local[columns]] = inside
        self._starts = unsigned(blocks.starts.astype(dtype))
        self._unknowns = unsigned(blocks.unknowns.astype(dtype))
        self._offsets = unsigned(squares[:-1].astype(dtype))
        self._positions = unsigned(positions)
        self._inverses: FloatArray = np.empty(squares[-1])
        self._widest = int(widths.max())
        self._pool = matrix.pool
        self._ranges = self._pool.ranges(squares)
        self._type = matrix.index_type
        self.setup_cost = int((widths**3).sum())
        self.apply_cost = int(squares[-1])

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Invert every block; always possible."""
        run = kernel("invert_blocks", self._type)
        fixed = (self._starts, self._offsets, self._positions, _PIVOT_FLOOR, matrix.values)

        def invert(_: int, first: int, last: int) -> None:
            work = np.empty((2 * self._widest + 1) * self._widest)
            run(first, last, *fixed, work, self._inverses)

        self._pool.run(self._ranges, invert)
        return True

    def apply(self, r: FloatArray, z: FloatArray) -> None:
        """Multiply with every inverse."""
        run = kernel("apply_blocks", self._type)
        fixed = (self._starts, self._unknowns, self._offsets, self._inverses, r, z)
        self._pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))

    def close(self) -> None:
        """Free the inverses."""
        self._inverses = np.zeros(0)


class CoarseCorrection:
    """Block-Jacobi plus a solve in the space of a few modes per aggregate of blocks.

    M⁻¹ = B⁻¹ + P(PᵀAP)⁻¹Pᵀ, B the diagonal blocks, P the modes cut to aggregates and made
    orthonormal there. Aggregates are connected in the graph of blocks and do not overlap.

    Iterations to a relative residual of 1e-1, 1e-2, 1e-3, 1e-6 (as-rigid-as-possible, icosphere of
    10 242 vertices, 61 452 unknowns, mid-solve): see `conjugate_gradients`.

    Source: Nicolaides 1987, "Deflation of conjugate gradients with applications to boundary value
    problems" (the coarse space); Smith, Bjørstad, Gropp 1996, "Domain Decomposition" (additive).

    Args:
        size: blocks per aggregate, about.
    """

    def __init__(self, size: int) -> None:
        self.name = f"block-Jacobi + coarse space, {size} blocks per aggregate"
        self._size = size
        self._smoother = BlockJacobi()
        self._solver = fastest_sparse_cholesky()

    def setup(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        """Form the aggregates, the modes on them and the pattern of the coarse matrix."""
        self._smoother.setup(matrix, blocks)
        self._pool, self._type = matrix.pool, matrix.index_type
        self.unusable = "" if blocks.modes.shape[1] else "no modes are known"
        if not self.unusable:
            self._gather_aggregates(matrix, blocks)
        if not self.unusable:
            self._lay_out_coarse_matrix(matrix)

    def _gather_aggregates(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        dtype = matrix.indptr.dtype
        block_of = blocks.block_of
        sizes = aggregates(*_block_graph(matrix, block_of, blocks.blocks), self._size)
        # An aggregate of one block is what block-Jacobi solves exactly.
        counts = np.bincount(sizes)
        self._count = int((counts > 1).sum())
        number = np.where(counts > 1, np.cumsum(counts > 1) - 1, self._count)
        aggregate_of = number[sizes[block_of]]
        members = np.argsort(aggregate_of, kind="stable")[: int((aggregate_of < self._count).sum())]
        ends = np.searchsorted(aggregate_of[members], np.arange(self._count + 1))
        self._starts = unsigned(ends.astype(dtype))
        self._members = unsigned(members.astype(dtype))
        self._aggregate_of: IndexArray = aggregate_of.astype(dtype)
        self._basis: FloatArray = np.array(blocks.modes, order="C")
        self._ranges = self._pool.ranges(ends * self._basis.shape[1])
        run = kernel("orthonormalize", self._type)
        fixed = (self._starts, self._members, _DEPENDENT, self._basis)
        self._pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))
        self._modes: FloatArray = np.ascontiguousarray(self._basis[members].T)
        self._work: FloatArray = np.empty(len(members))
        kept = np.zeros((self._count, self._basis.shape[1]), np.bool_)
        np.logical_or.at(kept, aggregate_of[members], self._basis[members] != 0.0)
        self._kept = kept
        if not 0 < 4 * int(kept.sum()) <= matrix.n:
            self.unusable = f"{int(kept.sum())} modes for {matrix.n} unknowns"

    def _lay_out_coarse_matrix(self, matrix: SymmetricMatrix) -> None:
        """Pattern of the upper triangle of PᵀAP, by blocks for assembly and by entries."""
        modes, count = self._basis.shape[1], self._count
        rows = np.repeat(self._aggregate_of, np.diff(matrix.indptr)).astype(np.int64)
        columns = self._aggregate_of[matrix.indices]
        pairs = np.unique((rows * count + columns)[(rows <= columns) & (columns < count)])
        rows, columns = np.divmod(pairs, count)
        dtype = matrix.indptr.dtype
        starts = np.searchsorted(rows, np.arange(count + 1))
        self._coarse_indptr = unsigned(starts.astype(dtype))
        self._coarse_indices = unsigned(columns.astype(dtype))
        self._most = int(np.diff(starts).max())
        self._squares: FloatArray = np.empty(len(pairs) * modes * modes)

        number = np.where(self._kept, np.cumsum(self._kept).reshape(self._kept.shape) - 1, -1)
        i = np.broadcast_to(number[rows][:, :, None], (len(pairs), modes, modes)).ravel()
        j = np.broadcast_to(number[columns][:, None, :], (len(pairs), modes, modes)).ravel()
        entries = np.flatnonzero((i >= 0) & (j >= i))
        entries = entries[np.lexsort((j[entries], i[entries]))]
        n = int(self._kept.sum())
        self._entries = entries
        indptr = np.searchsorted(i[entries], np.arange(n + 1)).astype(np.int32)
        self._solver.analyze(indptr, j[entries].astype(np.int32), n)

        # Factor entries of a planar graph in nested dissection, about; and its Σ (column)².
        levels = max(1.0, np.log2(count))
        factor = n * modes * 2.0 * levels
        own = matrix.indices.size * modes + 2 * self._most * len(self._members) * modes * modes
        self.setup_cost = int(self._smoother.setup_cost + own + factor * 4.0 * modes * levels)
        self.apply_cost = int(
            self._smoother.apply_cost + 2 * len(self._members) * modes + 2 * factor
        )

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Factorise the blocks and PᵀAP; False if there is no coarse space, or it is singular."""
        if self.unusable:
            return False
        self._smoother.factorize(matrix)
        run = kernel("coarse_blocks", self._type)
        fixed = (
            self._starts, self._members, unsigned(self._aggregate_of), unsigned(matrix.indptr),
            unsigned(matrix.indices), matrix.values, self._basis, self._coarse_indptr,
            self._coarse_indices,
        )  # fmt: skip

        def assemble(_: int, first: int, last: int) -> None:
            place = np.zeros(self._count, self._starts.dtype)
            work = np.empty((self._most, self._basis.shape[1]))
            run(first, last, *fixed, place, work, self._squares)

        self._pool.run(self._ranges, assemble)
        return self._solver.factorize(self._squares[self._entries])

    def apply(self, r: FloatArray, z: FloatArray) -> None:
        """Solve with the blocks and in the coarse space, and add."""
        self._smoother.apply(r, z)
        coarse = np.empty((self._count, self._basis.shape[1]))
        space = (self._starts, self._members, self._modes)
        restrict, prolong = kernel("restrict", self._type), kernel("prolong", self._type)
        self._pool.run(self._ranges, lambda _, a, b: restrict(a, b, *space, r, self._work, coarse))
        coarse[self._kept] = self._solver.solve(coarse[self._kept])
        self._pool.run(self._ranges, lambda _, a, b: prolong(a, b, *space, coarse, self._work, z))

    def close(self) -> None:
        """Free the factors."""
        self._smoother.close()
        self._solver.close()


def _block_graph(
    matrix: SymmetricMatrix, block_of: IndexArray, blocks: int
) -> tuple[IndexArray, IndexArray]:
    """Row starts and columns of the graph in which blocks with a common entry are neighbours."""
    rows = np.repeat(block_of, np.diff(matrix.indptr))
    codes = rows * blocks + block_of[matrix.indices]
    # Most duplicates are consecutive: sort without them.
    codes = np.unique(codes[np.diff(codes, prepend=-1) != 0])
    rows, columns = np.divmod(codes, blocks)
    starts = np.searchsorted(rows, np.arange(blocks + 1))
    return starts.astype(np.int32), columns.astype(np.int32)


def aggregates(indptr: IndexArray, indices: IndexArray, size: int) -> IndexArray:
    """Cut a graph into connected aggregates of about `size` vertices; the same in every run.

    Args:
        indptr: row starts of a symmetric pattern in CSR, int32.
        indices: its columns, int32; loops do not matter.
        size: vertices per aggregate.

    Returns:
        aggregate of each vertex, numbered from 0.
    """
    n = len(indptr) - 1
    aggregate_of = np.full(n, -1, np.int32)
    kernel("aggregate", "int32")(indptr, indices, size, aggregate_of, np.empty(size, np.int32))
    return aggregate_of


class SmoothedAggregation:
    """One V-cycle of smoothed aggregation by pyamg, with the modes as near-null space.

    Fewest iterations of all, but its set-up for every matrix costs as much as a sparse Cholesky
    factorisation of a mesh. Sequential; block Gauss-Seidel as smoother where blocks are equally
    wide.

    Source: Vaněk, Mandel, Brezina 1996, "Algebraic multigrid by smoothed aggregation for second
    and fourth order elliptic problems".

    Raises:
        MissingDependencyError: pyamg is not installed.
    """

    name = "smoothed aggregation (pyamg)"

    def __init__(self) -> None:
        try:
            self._pyamg: Any = importlib.import_module("pyamg")
        except ImportError as error:
            raise MissingDependencyError(
                f"smoothed aggregation needs pyamg ({error}); pip install pyamg"
            ) from error
        self._cycle: Any = None

    def setup(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        """Take the order of the blocks; pyamg keeps nothing between matrices."""
        widths = np.diff(blocks.starts)
        self._width = int(widths[0]) if (widths == widths[0]).all() else 1
        self._unknowns = blocks.unknowns
        modes = blocks.modes if blocks.modes.shape[1] else np.ones((matrix.n, 1))
        self._modes = modes[blocks.unknowns]
        # Two levels' Galerkin products, and a symmetric sweep before and after.
        self.setup_cost = 40 * matrix.indices.size
        self.apply_cost = 5 * matrix.indices.size

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Build the hierarchy; False if pyamg cannot."""
        sparse: Any = importlib.import_module("scipy.sparse")
        shape = (matrix.n, matrix.n)
        square = sparse.csr_matrix((matrix.values, matrix.indices, matrix.indptr), shape=shape)
        ordered = square[self._unknowns][:, self._unknowns]
        if self._width > 1:
            ordered = ordered.tobsr((self._width, self._width))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                hierarchy = self._pyamg.smoothed_aggregation_solver(
                    # The default weighting starts its power iteration from random numbers.
                    ordered, B=self._modes, symmetry="symmetric", max_coarse=300,
                    smooth=("jacobi", {"omega": 4.0 / 3.0, "weighting": "local"}),
                )  # fmt: skip
            except (ValueError, np.linalg.LinAlgError):
                return False
        self._cycle = hierarchy.aspreconditioner()
        return True

    def apply(self, r: FloatArray, z: FloatArray) -> None:
        """One V-cycle."""
        z[self._unknowns] = self._cycle @ r[self._unknowns]

    def close(self) -> None:
        """Drop the hierarchy."""
        self._cycle = None
