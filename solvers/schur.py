"""Schur complement: eliminate a block-diagonal part, solve for the rest, substitute back.

With the unknowns split as in `elimination`, [C E; Eᵀ B]·[u; v] = [f; g] becomes, with C = LLᵀ and
Y = L⁻¹E,

    S·v = g - Yᵀ·L⁻¹f,   S = B - YᵀY,   u = L⁻ᵀ(L⁻¹f - Y·v).

The explicit form assembles S, dense or sparse; the implicit form hands products with S to
conjugate gradients. Source: Triggs, McLauchlan, Hartley, Fitzgibbon 2000, "Bundle adjustment - a
modern synthesis", §6.1; Agarwal, Snavely, Seitz, Szeliski 2010, "Bundle adjustment in the large".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.block_assembly import BlockPattern
from autograd_gpu.runtime.host_assembly import (
    HostAssembly,
    RangePool,
    SymmetricMatrix,
    index_dtype,
)
from autograd_gpu.solvers.block_elimination import eliminate_blocks
from autograd_gpu.solvers.dense_cholesky import DenseCholesky
from autograd_gpu.solvers.direct_solver import DirectSolver
from autograd_gpu.solvers.elimination import Elimination, eliminate
from autograd_gpu.solvers.sparse_cholesky import fastest_sparse_cholesky

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]


# Up to so many kept unknowns S is assembled and factorised as a dense square.
DENSE_KEPT = 3000
_GRAM_PARTS = 4


def _parts_of(count: int) -> list[tuple[int, int]]:
    """A fixed number of ranges of 0 … count - 1."""
    cuts = np.linspace(0, count, _GRAM_PARTS + 1).astype(np.int64)
    return [(int(a), int(b)) for a, b in itertools.pairwise(cuts) if b > a]


class _BlockElimination(DirectSolver):
    """A solver that eliminates blocks, which it may be told."""

    def __init__(self) -> None:
        super().__init__()
        self._described: BlockPattern | None = None

    def describe_blocks(self, blocks: BlockPattern | None) -> None:
        """Say which unknowns belong together, before `analyze`; else that is found out."""
        self._described = blocks

    def _split(self) -> Elimination:
        if self._described is None or int(self._described.starts[-1]) != self.n:
            return eliminate(self.indptr, self.indices)
        return eliminate_blocks(self._described, self.indptr, self.indices)


class _Eliminated:
    """What both forms share: L, Y = L⁻¹E, and the substitutions.

    Args:
        split: eliminated blocks and kept unknowns.

    Attributes:
        split: as given.
        rows: entries of Y after `factorize`.
        assembly: products with Y.
        layout: starts of blocks and of rows, and columns of Y, for kernels.
        pool: the threads.
    """

    def __init__(self, split: Elimination) -> None:
        self.split = split
        self.assembly = HostAssembly(split.row_starts, split.columns, len(split.kept))
        dtype = self.assembly.indices.dtype
        self.index_type = dtype.name
        blocks, factors, rows, columns = (
            np.ascontiguousarray(a, dtype)
            for a in (split.block_starts, split.factor_starts, split.row_starts, split.columns)
        )
        self.layout = (blocks, rows, columns)
        self._index = (blocks, factors, rows)
        source = split.coupling_source
        self._source: IndexArray = source.astype(index_dtype(int(source.max(initial=0))))
        self._failed: IndexArray = np.zeros(len(blocks) - 1, dtype)
        self._factors: FloatArray = np.zeros(len(split.factor_source))
        self.rows: FloatArray = np.zeros(len(split.coupling_source))
        self.pool = RangePool()
        widths = np.diff(split.block_starts)
        lengths = np.diff(split.row_starts)[split.block_starts[:-1]]
        work = np.cumsum(widths**2 * (lengths + widths))
        self._ranges = self.pool.ranges(np.concatenate([[0], work]))

    def factorize(self, values: FloatArray) -> bool:
        """Set L and Y; False if a block is not positive definite."""
        np.take(values, self.split.factor_source, out=self._factors)
        run = kernel("eliminate", self.index_type, self._source.dtype.name)
        fixed = (*self._index, self._source, values, self._factors, self.rows, self._failed)
        self.pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))
        return not self._failed.any()

    def solve(self, rhs: FloatArray, reduced: Callable[[FloatArray], FloatArray]) -> FloatArray:
        """Solution for ``rhs``, shape (n,), with `reduced` solving for the kept unknowns."""
        split = self.split
        below = self._substitute("forward_blocks", rhs[split.eliminated])
        left = rhs[split.kept] - self._gathered(below)
        solved = reduced(left)
        below -= self.assembly.product(self.rows, solved)
        result = np.empty(len(rhs))
        result[split.kept] = solved
        result[split.eliminated] = self._substitute("backward_blocks", below)
        return result

    def _gathered(self, below: FloatArray) -> FloatArray:
        """Yᵀ·below; for few columns in a fixed number of parts, which needs no transpose of Y."""
        kept = len(self.split.kept)
        if kept > DENSE_KEPT:
            return self.assembly.transposed_product(self.rows, below)
        _, rows, columns = self.layout
        run = kernel("scatter_rows", self.index_type)
        cuts = _parts_of(len(below))
        sums = np.zeros((len(cuts), kept))
        self.pool.run(cuts, lambda k, a, b: run(a, b, rows, columns, self.rows, below, sums[k]))
        return sums.sum(axis=0)

    def _substitute(self, name: str, x: FloatArray) -> FloatArray:
        run = kernel(name, self.index_type)
        fixed = (*self._index[:2], self._factors, x)
        self.pool.run(self._ranges, lambda _, a, b: run(a, b, *fixed))
        return x

    def close(self) -> None:
        """Stop the threads."""
        self.pool.close()
        self.assembly.close()


class _SparseGram:
    """YᵀY for many kept unknowns: Gustavson's product over the pattern of Y."""

    def __init__(self, parts: _Eliminated) -> None:
        self._parts = parts
        self.indptr, self.indices = parts.assembly.upper_gram_pattern()

    def upper(self) -> FloatArray:
        """Upper triangle of YᵀY, in the order of the pattern."""
        out = np.empty(len(self.indices))
        return self._parts.assembly.upper_gram(self._parts.rows, self.indptr, self.indices, out)


class _DenseGram:
    """YᵀY for few kept unknowns: each eliminated block adds one dense product."""

    def __init__(self, parts: _Eliminated) -> None:
        n = len(parts.split.kept)
        self._parts = parts
        self._rows, self.indices = np.triu_indices(n)
        self.indptr = np.concatenate([[0], np.cumsum(np.arange(n, 0, -1))])
        # Blocks are summed in a fixed number of parts, so threads do not change a bit.
        self._cuts = _parts_of(len(parts.split.block_starts) - 1)
        self._squares = np.zeros((len(self._cuts), n, n))
        self._works = np.zeros((len(self._cuts), n), parts.layout[0].dtype)

    def upper(self) -> FloatArray:
        """Upper triangle of YᵀY, in the order of the pattern."""
        parts = self._parts
        run = kernel("block_gram", parts.index_type)
        fixed = (*parts.layout, parts.rows)
        self._squares.fill(0.0)
        parts.pool.run(
            self._cuts, lambda k, a, b: run(a, b, *fixed, self._works[k], self._squares[k])
        )
        return self._squares.sum(axis=0)[self._rows, self.indices]


class SchurComplement(_BlockElimination):
    """Explicit Schur complement: S is assembled, dense or sparse, and factorised."""

    name = "schur"

    def __init__(self) -> None:
        super().__init__()
        self._parts: _Eliminated | None = None
        self._reduced: DirectSolver | None = None

    def _analyze(self) -> None:
        self._free()
        self._parts = parts = _Eliminated(self._split())
        split = parts.split
        kept = len(split.kept)
        self.name = f"schur ({self.n - kept} of {self.n} unknowns eliminated)"
        if kept == 0:
            return
        self._gram = _DenseGram(parts) if kept <= DENSE_KEPT else _SparseGram(parts)
        indptr, indices = self._union(split, self._gram.indptr, self._gram.indices)
        self._reduced = DenseCholesky() if kept <= DENSE_KEPT else fastest_sparse_cholesky()
        self._reduced.analyze(indptr, indices, kept)
        self.name = f"{self.name[:-1]}; {self._reduced.name})"

    def _union(
        self, split: Elimination, gram_starts: IndexArray, gram_columns: IndexArray
    ) -> tuple[IndexArray, IndexArray]:
        """Pattern of S, which is that of B and of YᵀY together, and where their entries go."""
        n = len(split.kept)
        gram = _keys(gram_starts, gram_columns)
        kept = _keys(split.kept_starts, split.kept_columns)
        # A dense YᵀY has every entry.
        keys = gram if n <= DENSE_KEPT else np.union1d(gram, kept)
        self._from_gram = slice(None) if n <= DENSE_KEPT else np.searchsorted(keys, gram)
        self._from_kept = np.searchsorted(keys, kept)
        self._values: FloatArray = np.zeros(len(keys))
        rows, columns = np.divmod(keys, n)
        dtype = index_dtype(len(keys))
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])
        return starts.astype(dtype), columns.astype(dtype)

    def _factorize(self, values: FloatArray) -> bool:
        assert self._parts is not None
        if not self._parts.factorize(values):
            return False
        if self._reduced is None:
            return True
        self._values.fill(0.0)
        self._values[self._from_kept] = values[self._parts.split.kept_source]
        self._values[self._from_gram] -= self._gram.upper()
        return self._reduced.factorize(self._values)

    def _solve(self, rhs: FloatArray) -> FloatArray:
        assert self._parts is not None
        if rhs.ndim == 2:
            return np.stack([self._solve(np.ascontiguousarray(c)) for c in rhs.T], axis=1)
        reduced = self._reduced
        return self._parts.solve(rhs, lambda left: left if reduced is None else reduced.solve(left))

    def _free(self) -> None:
        for owned in (self._parts, self._reduced):
            if owned is not None:
                owned.close()
        self._parts = self._reduced = None

    def close(self) -> None:
        """Free the factors and stop the threads; can be used again from `analyze` on."""
        super().close()
        self._free()


class ImplicitSchurComplement(_BlockElimination):
    """Implicit Schur complement: conjugate gradients on products with S, block-Jacobi on S.

    Each kept block's part of S is exact in the preconditioner (Ceres calls it SCHUR_JACOBI).

    Attributes:
        tolerance: conjugate gradients stop at this relative residual of S·v = …, in the norm of
            the preconditioner.
        max_iterations: or after so many iterations.
        iterations: of the last solve.
    """

    name = "schur-implicit"

    def __init__(self, tolerance: float = 1e-8, max_iterations: int = 1000) -> None:
        super().__init__()
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self.iterations = 0
        self._parts: _Eliminated | None = None

    def _analyze(self) -> None:
        self._free()
        self._parts = parts = _Eliminated(self._split())
        split = parts.split
        kept = len(split.kept)
        self.name = f"schur-implicit ({self.n - kept} of {self.n} unknowns eliminated)"
        if kept == 0:
            return
        self._kept = SymmetricMatrix(split.kept_starts, split.kept_columns)
        self._blocks = _KeptBlocks(split)

    def _factorize(self, values: FloatArray) -> bool:
        assert self._parts is not None
        if not self._parts.factorize(values):
            return False
        split = self._parts.split
        if len(split.kept) == 0:
            return True
        own = values[split.kept_source]
        self._kept.set(own)
        return self._blocks.factorize(own, self._parts.rows)

    def _solve(self, rhs: FloatArray) -> FloatArray:
        assert self._parts is not None
        if rhs.ndim == 2:
            return np.stack([self._solve(np.ascontiguousarray(c)) for c in rhs.T], axis=1)
        return self._parts.solve(rhs, self._iterate)

    def _product(self, v: FloatArray) -> FloatArray:
        assert self._parts is not None
        out = self._kept.product(v, np.empty(len(v)))
        assembly, rows = self._parts.assembly, self._parts.rows
        return out - assembly.transposed_product(rows, assembly.product(rows, v))

    def _iterate(self, left: FloatArray) -> FloatArray:
        x, r = np.zeros(len(left)), left.copy()
        self.iterations = 0
        if len(left) == 0:
            return x
        z = self._blocks.apply(r)
        direction, squared = z.copy(), float(r @ z)
        target = self.tolerance**2 * squared
        while self.iterations < self.max_iterations and squared > target:
            image = self._product(direction)
            curvature = float(direction @ image)
            if not (curvature > 0.0 and math.isfinite(squared / curvature)):
                break
            x += squared / curvature * direction
            r -= squared / curvature * image
            z = self._blocks.apply(r)
            previous, squared = squared, float(r @ z)
            direction = z + squared / previous * direction
            self.iterations += 1
        return x

    def _free(self) -> None:
        if self._parts is not None:
            self._parts.close()
            if len(self._parts.split.kept):
                self._kept.close()
        self._parts = None

    def close(self) -> None:
        """Free the factors and stop the threads; can be used again from `analyze` on."""
        super().close()
        self._free()


class _KeptBlocks:
    """Diagonal blocks of S, one for each block of kept unknowns, factorised."""

    def __init__(self, split: Elimination) -> None:
        block = split.kept_blocks
        row = np.repeat(np.arange(len(block)), np.diff(split.kept_starts))
        self._own = np.flatnonzero(block[row] == block[split.kept_columns])
        width = np.bincount(block)
        first = np.concatenate([[0], np.cumsum(width)])
        inside = np.arange(len(block)) - first[block]
        self._widest = int(width.max())
        square = self._widest**2
        self._block, self._inside, self._count = block, inside, len(width)
        self._from_kept = self._place(row[self._own], split.kept_columns[self._own])
        # Pairs of entries of one row of Y that lie in the same block, i before or at j.
        column = split.columns
        row_of = np.repeat(np.arange(len(split.eliminated)), np.diff(split.row_starts))
        pairs: list[tuple[IndexArray, IndexArray]] = []
        for distance in range(self._widest):
            i = np.arange(len(column) - distance)
            j = i + distance
            meet = (row_of[i] == row_of[j]) & (block[column[i]] == block[column[j]])
            pairs.append((i[meet], j[meet]))
        self._left = np.concatenate([p[0] for p in pairs])
        self._right = np.concatenate([p[1] for p in pairs])
        self._from_rows = self._place(column[self._left], column[self._right])
        # A row that a narrow block does not have gets a one on the diagonal.
        missing = np.arange(self._widest)[None, :] >= width[:, None]
        self._padding = np.flatnonzero(missing.ravel())
        self._size = self._count * square

    def _place(self, i: IndexArray, j: IndexArray) -> IndexArray:
        return (self._block[i] * self._widest + self._inside[j]) * self._widest + self._inside[i]

    def factorize(self, kept: FloatArray, rows: FloatArray) -> bool:
        """Set the blocks from the entries of B and of Y; False if one is not definite."""
        lower = np.bincount(self._from_kept, kept[self._own], self._size)
        lower -= np.bincount(self._from_rows, rows[self._left] * rows[self._right], self._size)
        squares = lower.reshape(self._count, self._widest, self._widest)
        block, row = np.divmod(self._padding, self._widest)
        squares[block, row, row] = 1.0
        full = squares + np.tril(squares, -1).transpose(0, 2, 1)
        try:
            # The inverse of the factor serves every iteration with two batched products.
            self._inverse = np.linalg.inv(np.linalg.cholesky(full))
        except np.linalg.LinAlgError:
            return False
        return bool(np.isfinite(self._inverse).all())

    def apply(self, r: FloatArray) -> FloatArray:
        """The inverse of the blocks times r."""
        padded = np.zeros((self._count, self._widest))
        padded[self._block, self._inside] = r
        half = np.einsum("bij,bj->bi", self._inverse, padded)
        return np.einsum("bij,bi->bj", self._inverse, half)[self._block, self._inside]


def _keys(indptr: IndexArray, indices: IndexArray) -> IndexArray:
    """Row-major number of each entry; rising where columns are sorted."""
    n = len(indptr) - 1
    return np.repeat(np.arange(n, dtype=np.int64), np.diff(indptr)) * n + indices
