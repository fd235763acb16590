"""Preconditioners of conjugate gradients: M⁻¹r for an M near A that is cheap to invert.

All see the unknowns in blocks (those of one vertex, camera, point) and are symmetric positive
definite, whatever the matrix. Costs are counted in multiply-adds, not by the clock, so that a
choice made by cost comes out the same in every run.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import MissingDependencyError
from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.host_assembly import SymmetricMatrix, unsigned
from autograd_gpu.solvers.block_structure import BlockStructure
from autograd_gpu.solvers.sparse_cholesky import fastest_sparse_cholesky

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# A pivot stays above this part of its diagonal entry, however dependent the columns are.
_PIVOT_FLOOR = 1e-10
# Added to the diagonal of the coarse matrix, relatively: where A is singular along a mode, rounding
# must not be divided by rounding.
_COARSE_FLOOR = 1e-10
# A mode that this much of itself is left of, without the earlier ones, depends on them.
_DEPENDENT = 1e-7


PRECONDITIONER_KERNELS = (
    "invert_blocks", "apply_blocks", "coarse_blocks", "orthonormalize", "restrict", "prolong",
)  # fmt: skip
"""Kernels of all preconditioners, whichever a solve comes to use."""


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

    The modes are those of the parameters at each `factorize`: late in a solve with large rotations
    those of its start took twice the iterations.

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
        self._motions = blocks.modes
        self._gather_aggregates(matrix, blocks)
        # A coarse space nearly as large as the problem costs more than the problem.
        self._usable = 0 < 4 * int(self._present.sum()) <= matrix.n
        if self._usable:
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
        motions = self._motions()
        self._present: NDArray[np.bool_] = np.zeros((self._count, motions.shape[1]), np.bool_)
        np.logical_or.at(self._present, aggregate_of[members], motions[members] != 0.0)
        self._ranges = self._pool.ranges(ends * motions.shape[1])

    def _lay_out_coarse_matrix(self, matrix: SymmetricMatrix) -> None:
        """Pattern of the upper triangle of PᵀAP, by blocks for assembly and by entries."""
        modes, count = self._present.shape[1], self._count
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
        # A block row begins with its diagonal block, and a step of modes + 1 goes along a diagonal.
        first = np.asarray(starts[:-1], np.int64)[:, None] * (modes * modes)
        self._coarse_diagonal: IndexArray = first + np.arange(modes, dtype=np.int64) * (modes + 1)
        self._work: FloatArray = np.empty(len(self._members))

        number = np.where(
            self._present, np.cumsum(self._present).reshape(self._present.shape) - 1, -1
        )
        i = np.broadcast_to(number[rows][:, :, None], (len(pairs), modes, modes)).ravel()
        j = np.broadcast_to(number[columns][:, None, :], (len(pairs), modes, modes)).ravel()
        entries = np.flatnonzero((i >= 0) & (j >= i))
        entries = entries[np.lexsort((j[entries], i[entries]))]
        n = int(self._present.sum())
        self._entries = entries
        indptr = np.searchsorted(i[entries], np.arange(n + 1)).astype(np.int32)
        self._solver.analyze(indptr, j[entries].astype(np.int32), n)

        # Factor entries of a planar graph in nested dissection, about; and its Σ (column)².
        levels = max(1.0, np.log2(count))
        factor = n * modes * 2.0 * levels
        own = matrix.indices.size * modes + 2 * self._most * len(self._members) * modes * modes
        self.setup_cost = int(self._smoother.setup_cost + own + factor * modes * levels)
        self.apply_cost = int(
            self._smoother.apply_cost + 2 * len(self._members) * modes + 2 * factor
        )

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Invert the blocks, factorise PᵀAP; False without coarse space, or if it is singular."""
        if not self._usable:
            return False
        self._smoother.factorize(matrix)
        basis, missing = self._orthonormal_basis()
        self._modes: FloatArray = np.ascontiguousarray(basis[self._members].T)
        run = kernel("coarse_blocks", self._type)
        fixed = (
            self._starts, self._members, unsigned(self._aggregate_of), unsigned(matrix.indptr),
            unsigned(matrix.indices), matrix.values, basis, self._coarse_indptr,
            self._coarse_indices,
        )  # fmt: skip

        def assemble(_: int, first: int, last: int) -> None:
            place = np.zeros(self._count, self._starts.dtype)
            work = np.empty((self._most, basis.shape[1]))
            run(first, last, *fixed, place, work, self._squares)

        self._pool.run(self._ranges, assemble)
        self._squares[self._coarse_diagonal] *= 1.0 + _COARSE_FLOOR
        self._squares[self._coarse_diagonal] += missing
        return self._solver.factorize(self._squares[self._entries])

    def _orthonormal_basis(self) -> tuple[FloatArray, FloatArray]:
        """The modes of the moment, orthonormal in each aggregate; and 1 where one is missing."""
        basis = np.array(self._motions(), np.float64, order="C")
        # The pattern of the coarse matrix is that of the modes at set-up.
        absent = np.vstack([~self._present, np.ones(basis.shape[1], np.bool_)])
        basis[absent[self._aggregate_of]] = 0.0
        missing = np.empty(self._present.shape)
        run = kernel("orthonormalize", self._type)
        fixed = (self._starts, self._members, _DEPENDENT, basis, missing)
        self._pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))
        return basis, missing

    def apply(self, r: FloatArray, z: FloatArray) -> None:
        """Solve with the blocks and in the coarse space, and add."""
        self._smoother.apply(r, z)
        coarse = np.empty(self._present.shape)
        space = (self._starts, self._members, self._modes)
        restrict, prolong = kernel("restrict", self._type), kernel("prolong", self._type)
        self._pool.run(self._ranges, lambda _, a, b: restrict(a, b, *space, r, self._work, coarse))
        coarse[self._present] = self._solver.solve(coarse[self._present])
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
                f"smoothed aggregation needs pyamg ({error}); pip install autograd-gpu[amg]"
            ) from error
        self._cycle: Any = None

    def setup(self, matrix: SymmetricMatrix, blocks: BlockStructure) -> None:
        """Take the order of the blocks; pyamg keeps nothing between matrices."""
        widths = np.diff(blocks.starts)
        self._width = int(widths[0]) if (widths == widths[0]).all() else 1
        self._unknowns = blocks.unknowns
        self._motions = blocks.modes
        # Two levels' Galerkin products, and a symmetric sweep before and after.
        self.setup_cost = 40 * matrix.indices.size
        self.apply_cost = 5 * matrix.indices.size

    def factorize(self, matrix: SymmetricMatrix) -> bool:
        """Build the hierarchy; False if pyamg cannot."""
        sparse: Any = importlib.import_module("scipy.sparse")
        shape = (matrix.n, matrix.n)
        square = sparse.csr_matrix((matrix.values, matrix.indices, matrix.indptr), shape=shape)
        ordered = square[self._unknowns][:, self._unknowns]
        modes = self._motions()
        modes = modes[self._unknowns] if modes.shape[1] else np.ones((matrix.n, 1))
        if self._width > 1:
            ordered = ordered.tobsr((self._width, self._width))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                hierarchy = self._pyamg.smoothed_aggregation_solver(
                    # The default weighting starts its power iteration from random numbers.
                    ordered, B=modes, symmetry="symmetric", max_coarse=300,
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
