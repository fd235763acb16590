"""Conjugate gradients for A·x = b, A symmetric positive (semi)definite, with a preconditioner.

A solve ends at a relative residual, measured in the norm of the preconditioner, and its result is
a good step long before it is a solution: what is left of the residual is kept, so that the model's
reduction can be stated for the step as it is.

Iterations to a relative residual of 1e-2 / 1e-6 on as-rigid-as-possible (icosphere, 10 242
vertices, 61 452 unknowns), in three iterations of Levenberg-Marquardt, each with its damping λ:

====================  ===========  ===========  ===========  =====================
preconditioner        3rd, 4e-5    15th, 2e-4   40th, 3e-6   per iteration, matrix
====================  ===========  ===========  ===========  =====================
block-jacobi          55 / 516     89 / 338     295 / 1011   0.9 ms, 12 ms
coarse-64             26 / 118     31 / 96      53 / 158     1.7 ms, 30 ms
coarse-16             13 / 53      16 / 47      21 / 64      2.3 ms, 40 ms
smoothed-aggregation  6 / 30       6 / 19       14 / 39      18 ms, 350 ms
====================  ===========  ===========  ===========  =====================

The last column is for 2 cores, where PARDISO takes 190 ms for the same matrix.

Source: Hestenes, Stiefel 1952; Nocedal, Wright 2006, "Numerical optimization", algorithm 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError, ShapeError, SolveError
from autograd_gpu.runtime.assembly_kernels import kernel
from autograd_gpu.runtime.host_assembly import SymmetricMatrix
from autograd_gpu.solvers.block_structure import BlockStructure, scalar_blocks
from autograd_gpu.solvers.preconditioners import (
    PRECONDITIONER_KERNELS,
    BlockJacobi,
    CoarseCorrection,
    Preconditioner,
    SmoothedAggregation,
)

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.integer[Any]]

# Dot products are summed in chunks of this many entries, so that threads do not change a bit.
_CHUNK = 4096
# Multiply-adds per unknown and iteration besides the products: three vectors, two dot products.
_VECTOR_COST = 5

PRECONDITIONERS: MappingProxyType[str, Callable[[], Preconditioner]] = MappingProxyType(
    {
        "block-jacobi": BlockJacobi,
        "coarse-64": lambda: CoarseCorrection(64),
        "coarse-16": lambda: CoarseCorrection(16),
        "smoothed-aggregation": SmoothedAggregation,
    }
)

# Stronger and dearer from left to right.
_LADDER = ("block-jacobi", "coarse-64", "coarse-16")


@dataclass(slots=True)
class AdaptiveChoice:
    """Which rung of a ladder of preconditioners the next matrix gets, from what the last ones cost.

    One rung up when a solve takes more than `patience` iterations; down again if that did not make
    the solve cheaper, and then not up before the lower rung takes twice as long as it did. Also
    down when a solve is so short that the lower rung would do; if that was wrong, never again.

    Attributes:
        top: highest rung.
        patience: iterations that a rung may take; about what building the next one costs.
        rung: for the next matrix.
    """

    top: int
    patience: int = 60
    rung: int = 0
    _limits: dict[int, int] = field(default_factory=dict[int, int])
    _raised: tuple[int, float] | None = None
    _short: int = 6
    _eased: bool = False

    def record(self, iterations: int, cost: float) -> None:
        """Take what a solve on the present rung needed, and choose the next rung.

        Args:
            iterations: of the solve.
            cost: multiply-adds of its set-up and iterations.
        """
        raised, self._raised = self._raised, None
        eased, self._eased = self._eased, False
        if raised is not None and cost >= raised[1]:
            self.rung -= 1
            self._limits[self.rung] = 2 * raised[0]
        elif iterations > self._limits.get(self.rung, self.patience) and self.rung < self.top:
            if eased:
                self._short = 0
            self._raised = (iterations, cost)
            self.rung += 1
        elif self.rung > 0 and iterations < self._short:
            self.rung -= 1
            self._eased = True


class ConjugateGradients:
    """Solves A·x = b to a tolerance; one more `LinearSolver`, with what an inexact one adds.

    Args:
        preconditioner: a key of ``PRECONDITIONERS``, or ``auto``: block-Jacobi, and coarse spaces
            when they pay (``AdaptiveChoice``).
        tolerance: a solve ends at ‖r‖ ≤ tolerance · ‖b‖ in the norm r·M⁻¹r.
        max_iterations: a solve ends there at the latest, with what it has.
        threads: all cores that the process may use if None. Does not change a bit.

    Attributes:
        name: what the report calls it.
        iterations: of the last solve.
        residual: b - A·x of the last solve.

    Raises:
        InputError: an unknown preconditioner.
        MissingDependencyError: it needs a package that is not installed.
    """

    name = "pcg"

    def __init__(
        self,
        preconditioner: str = "auto",
        tolerance: float = 1e-2,
        max_iterations: int = 400,
        threads: int | None = None,
    ) -> None:
        if preconditioner not in ("auto", *PRECONDITIONERS):
            raise InputError(
                f"preconditioner={preconditioner!r} is unknown; expected one of auto, "
                f"{', '.join(PRECONDITIONERS)}"
            )
        self._names = _LADDER if preconditioner == "auto" else (preconditioner,)
        self._made: dict[str, Preconditioner] = {}
        if preconditioner != "auto":
            self._made[preconditioner] = PRECONDITIONERS[preconditioner]()
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self._threads = threads
        self._blocks: BlockStructure | None = None
        self._matrix: SymmetricMatrix | None = None
        self._active: Preconditioner | None = None
        self._used: dict[str, list[int]] = {}
        self.iterations = 0
        self.residual: FloatArray = np.zeros(0)

    def describe_unknowns(self, blocks: BlockStructure) -> None:
        """Say which unknowns belong together, before `analyze`; else each is for itself."""
        self._blocks = blocks

    def analyze(self, indptr: IndexArray, indices: IndexArray, n: int) -> None:
        """Take the pattern of the upper triangle in CSR, the diagonal first in each row.

        Raises:
            ShapeError: the pattern is not of that form, or the blocks are not those of n unknowns.
        """
        if n < 1 or indptr.shape != (n + 1,):
            raise ShapeError(
                f"pattern for {self.name}: got {indptr.size} row starts for {n} unknowns, "
                f"expected {n + 1}"
            )
        blocks = scalar_blocks(n) if self._blocks is None else self._blocks
        if len(blocks.unknowns) != n:
            raise ShapeError(
                f"{self.name}: the blocks hold {len(blocks.unknowns)} unknowns, expected {n}"
            )
        self.close()
        self._matrix = SymmetricMatrix(indptr, indices, self._threads)
        self._structure = blocks
        self._diagonal = indptr[:-1].copy()
        self._choice = AdaptiveChoice(top=len(self._names) - 1)
        self._ready: set[str] = set()
        self._pool = self._matrix.pool
        self._partial: FloatArray = np.empty(-(-n // _CHUNK))
        chunks = np.minimum(np.arange(self._partial.size + 1) * _CHUNK, n)
        self._chunks = self._pool.ranges(chunks)
        self._rows = self._pool.ranges(np.arange(n + 1))

    def factorize(self, values: FloatArray) -> bool:
        """Copy the values and prepare the preconditioner.

        Returns:
            False if an entry is not finite or a diagonal entry not positive. That a matrix is not
            definite otherwise is found, if at all, while solving.

        Raises:
            ShapeError: not one float64 value per entry of the pattern.
            SolveError: `analyze` was not called.
        """
        matrix = self._analyzed()
        self._active = None
        matrix.set(values)
        if not np.isfinite(values).all() or not (values[self._diagonal] > 0.0).all():
            return False
        while True:
            name = self._names[self._choice.rung]
            candidate = self._prepared(name, matrix)
            if candidate.factorize(matrix):
                self._active = candidate
                return True
            if self._choice.rung == 0:
                return False
            # No coarse space for this problem or this matrix.
            self._choice.top = self._choice.rung = self._choice.rung - 1

    def _prepared(self, name: str, matrix: SymmetricMatrix) -> Preconditioner:
        if name not in self._made:
            self._made[name] = PRECONDITIONERS[name]()
        if name not in self._ready:
            self._made[name].setup(matrix, self._structure)
            self._ready.add(name)
        return self._made[name]

    def solve(self, rhs: FloatArray) -> FloatArray:
        """Approximate solution for a right-hand side of shape (n,); zero if there is nothing to do.

        Raises:
            ShapeError: rhs has another shape.
            SolveError: `factorize` did not return True before.
        """
        matrix = self._analyzed()
        if self._active is None:
            raise SolveError(f"{self.name}: no matrix; factorize must have returned True")
        if rhs.shape != (matrix.n,):
            raise ShapeError(
                f"{self.name}: right-hand side has shape {rhs.shape}, expected ({matrix.n},)"
            )
        x = self._iterate(matrix, self._active, np.array(rhs, np.float64))
        self._used.setdefault(self._active.name, []).append(self.iterations)
        per_iteration = matrix.indices.size + self._active.apply_cost + _VECTOR_COST * matrix.n
        self._choice.record(
            self.iterations, self._active.setup_cost + self.iterations * per_iteration
        )
        return x

    def _iterate(
        self, matrix: SymmetricMatrix, active: Preconditioner, r: FloatArray
    ) -> FloatArray:
        """The method from zero; leaves the residual in `r`."""
        x, z, image = np.zeros(matrix.n), np.empty(matrix.n), np.empty(matrix.n)
        active.apply(r, z)
        direction = z.copy()
        squared = self._dot(r, z)
        target = self.tolerance**2 * squared
        self.iterations, self.residual = 0, r
        step, turn = kernel("step", matrix.index_type), kernel("turn", matrix.index_type)
        while self.iterations < self.max_iterations and squared > target:
            matrix.product(direction, image)
            curvature = self._dot(direction, image)
            # Not positive: A is not definite along this direction, or rounding is all that is left.
            if not (curvature > 0.0 and math.isfinite(squared / curvature)):
                break
            vectors = (squared / curvature, direction, image, x, r)
            self._pool.run(self._rows, lambda _, a, b, v=vectors: step(a, b, *v))
            self.iterations += 1
            active.apply(r, z)
            previous, squared = squared, self._dot(r, z)
            turned = (squared / previous, z, direction)
            self._pool.run(self._rows, lambda _, a, b, v=turned: turn(a, b, *v))
        return x

    def _dot(self, x: FloatArray, y: FloatArray) -> float:
        run, partial = kernel("dot", self._analyzed().index_type), self._partial
        self._pool.run(self._chunks, lambda _, a, b: run(a, b, x, y, partial))
        return float(partial.sum())

    def _analyzed(self) -> SymmetricMatrix:
        if self._matrix is None:
            raise SolveError(f"{self.name}: call analyze(indptr, indices, n) before factorize")
        return self._matrix

    def warm_up(self) -> None:
        """Compile what a preconditioner that a solve turns to later needs."""
        index_type = self._analyzed().index_type
        for name in PRECONDITIONER_KERNELS:
            kernel(name, index_type)
        self._used.clear()

    def describe(self) -> str:
        """What was used so far, for the report."""
        parts = [
            f"{name}: {len(counts)} systems, {sum(counts) / len(counts):.3g} iterations on average"
            for name, counts in self._used.items()
        ]
        ended = f"relative residual {self.tolerance:g} or {self.max_iterations} iterations"
        return f"Conjugate gradients to {ended}. " + "; ".join(parts or ["No system yet"]) + "."

    def close(self) -> None:
        """Free the matrix and the factors. The solver can be used again from `analyze` on."""
        for made in self._made.values():
            made.close()
        if self._matrix is not None:
            self._matrix.close()
        self._matrix = self._active = None
