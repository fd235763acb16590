"""LDLᵀ of a node's diagonal block as IR, for block-Jacobi preconditioning on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.rewrite import RULES


def lower_index(a: int, b: int) -> int:
    """Position of (a, b), a >= b, in a packed lower triangle."""
    return a * (a + 1) // 2 + b


@dataclass(frozen=True, slots=True)
class BlockFactor:
    """LDLᵀ of a node's damped diagonal block, specialised to its structural zeros.

    Attributes:
        factor: graph from the packed lower triangle of the block to what is stored.
        solve: graph from (stored factor, right-hand side) to the solution.
        stored: numbers per node.
    """

    factor: Graph
    solve: Graph
    stored: int


PIVOT_FLOOR = 1e-6
"""Smallest pivot relative to its diagonal entry. Rounding can make a float32 block indefinite
(rotations near 2π); an adjugate inverse then silently ends CG, a floored pivot does not."""


@lru_cache(maxsize=128)
def block_factor(width: int, nonzero: frozenset[int]) -> BlockFactor:
    """Factor and solve for blocks whose packed entries ``nonzero`` are not structurally zero."""
    b = Builder(RULES)
    zero = b.constant(0.0)

    def entry(i: int, j: int) -> int:
        k = lower_index(i, j)
        return b.input(0, k) if k in nonzero else zero

    lower: dict[tuple[int, int], int] = {}
    pivots: list[int] = []
    for j in range(width):
        pivot = entry(j, j)
        for k in range(j):
            term = b.apply("mul", b.apply("mul", lower[j, k], lower[j, k]), pivots[k])
            pivot = b.apply("sub", pivot, term)
        floor = b.apply("mul", b.constant(PIVOT_FLOOR), entry(j, j))
        pivots.append(b.apply("maximum", pivot, floor))
        for i in range(j + 1, width):
            value = entry(i, j)
            for k in range(j):
                term = b.apply("mul", b.apply("mul", lower[i, k], lower[j, k]), pivots[k])
                value = b.apply("sub", value, term)
            lower[i, j] = b.apply("div", value, pivots[j])
    outputs = [b.apply("div", b.constant(1.0), p) for p in pivots]
    position: dict[tuple[int, int], int] = {}
    for key, node in lower.items():
        if b.literal(node) is None:
            position[key] = len(outputs)
            outputs.append(node)
    packed = Argument("block", (width * (width + 1) // 2,))
    factor = Graph.build(b, outputs, [packed], None, "factor")
    return BlockFactor(factor, _block_solve(width, position, len(outputs)), len(outputs))


def _block_solve(width: int, position: dict[tuple[int, int], int], stored: int) -> Graph:
    b = Builder(RULES)
    x = [b.input(1, a) for a in range(width)]

    def subtract(i: int, j: int, key: tuple[int, int]) -> None:
        if key in position:
            x[i] = b.apply("sub", x[i], b.apply("mul", b.input(0, position[key]), x[j]))

    for i in range(width):
        for j in range(i):
            subtract(i, j, (i, j))
    x[:] = [b.apply("mul", v, b.input(0, a)) for a, v in enumerate(x)]
    for i in reversed(range(width)):
        for j in range(i + 1, width):
            subtract(i, j, (j, i))
    arguments = [Argument("factor", (stored,)), Argument("rhs", (width,))]
    return Graph.build(b, x, arguments, None, "solve")
