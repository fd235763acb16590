"""Robust losses in the IR: what a loss makes of a residual, its Jacobian and its cost.

With s = ‖r‖² of a block and ρ, ρ′, ρ″ at s, Gauss-Newton on the corrected pair

    r̃ = √ρ′ / √D · r,   J̃ = √ρ′ (J - α r rᵀJ),   D = 1 + 2sρ″/ρ′,   αs = 1 - √D

has the gradient ρ′Jᵀr of ½ρ(‖r‖²), and J̃ᵀJ̃ is its Hessian without the second derivatives of r.
As in Ceres, the second-order part is left out where ρ″ ≤ 0 (D = 1, α = 0): there it would make the
Hessian's block indefinite, and what stays is iteratively reweighted least squares.

The cost is not ½‖r̃‖². Where only the cost matters, and its change in difference form, residuals
are c = √(ρ/s) · r, for which ½‖c‖² = ½ρ.

Source: Triggs et al. 2000, "Bundle adjustment - a modern synthesis", §4.3; Ceres Solver,
``corrector.cc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autograd_gpu.ir import Builder, Graph
from autograd_gpu.rewrite import RULES, simplify
from autograd_gpu.scalar import Scalar, SymbolicAlgebra

# Below, ρ(s)/s is ρ′(s) to all digits, and a quotient of subnormal float32 is anything.
_SMALLEST_SQUARED_NORM = 1e-30


@dataclass(frozen=True, slots=True)
class LossBlocks:
    """Outputs that follow the residuals in a topology's graph: ρ, ρ′ and perhaps ρ″ of each block.

    Attributes:
        residual_size: residuals per element, m.
        count: losses per element, each over m / count residuals in a row; 0 without loss.
        orders: outputs per loss: 2 (ρ″ ≤ 0 everywhere), or 3.
    """

    residual_size: int
    count: int = 0
    orders: int = 0

    def block(self, k: int) -> range:
        """Residuals of loss k."""
        size = self.residual_size // self.count
        return range(k * size, (k + 1) * size)

    def output(self, k: int, order: int) -> int:
        """Position among the graph's outputs of a derivative of loss k."""
        return self.residual_size + k * self.orders + order


class _Block:
    """Quantities of one loss inside a builder."""

    def __init__(self, b: Builder, outputs: Sequence[int], blocks: LossBlocks, k: int) -> None:
        self.m = SymbolicAlgebra(b)
        values = [Scalar(b, o) for o in outputs]
        self.r = [values[i] for i in blocks.block(k)]
        self.rho, self.slope, *higher = (
            values[blocks.output(k, order)] for order in range(blocks.orders)
        )
        self.curvature = higher[0] if higher else None

    @property
    def squared_norm(self) -> Scalar:
        """Squared norm s = ‖r‖² of the block."""
        total = self.r[0] * self.r[0]
        for r in self.r[1:]:
            total = total + r * r
        return total

    def square_root(self, value: Scalar) -> Scalar:
        """√ of what only rounding makes negative."""
        return self.m.sqrt(self.m.maximum(value, 0.0))

    def cost_scale(self) -> Scalar:
        """√(ρ/s), at s = 0 its limit √ρ′."""
        m, s = self.m, self.squared_norm
        usual = m.gt(s, _SMALLEST_SQUARED_NORM)
        return self.square_root(m.where(usual, self.rho / m.where(usual, s, 1.0), self.slope))

    def bend(self) -> tuple[Scalar, Scalar] | None:
        """√D and α; None where D is 1 and α is 0 everywhere."""
        if self.curvature is None:
            return None
        m = self.m
        bends = m.logical_and(m.gt(self.curvature, 0.0), m.gt(self.slope, 0.0))
        ratio = m.where(bends, self.curvature / m.where(bends, self.slope, 1.0), 0.0)
        root = m.sqrt(1.0 + 2.0 * self.squared_norm * ratio)
        # (1 - √D) / s without the difference, and without s.
        return root, -2.0 * ratio / (1.0 + root)


def _absorbed(graph: Graph) -> tuple[Builder, list[int]]:
    b = Builder(RULES)
    ids = b.absorb(graph.nodes)
    return b, [ids[o] for o in graph.outputs]


def cost_residual(graph: Graph, blocks: LossBlocks) -> Graph:
    """The graph of c, for which ½‖c‖² is the cost: the residuals themselves without a loss."""
    b, outputs = _absorbed(graph)
    residuals = outputs[: blocks.residual_size]
    for k in range(blocks.count):
        scale = _Block(b, outputs, blocks, k).cost_scale()
        for i in blocks.block(k):
            residuals[i] = (scale * Scalar(b, outputs[i])).node
    return simplify(Graph.build(b, residuals, graph.arguments, None, graph.name))


def loss_sum(graph: Graph, blocks: LossBlocks) -> Graph:
    """The graph of Σρ over the losses of an element."""
    b, outputs = _absorbed(graph)
    total = b.constant(0.0)
    for k in range(blocks.count):
        total = b.apply("add", total, outputs[blocks.output(k, 0)])
    return simplify(Graph.build(b, [total], graph.arguments, (), graph.name))


def residuals_only(graph: Graph, blocks: LossBlocks) -> Graph:
    """The graph of r alone."""
    outputs = graph.outputs[: blocks.residual_size]
    return simplify(Graph(graph.nodes, outputs, graph.arguments, (len(outputs),), graph.name))


def corrected(graph: Graph, with_jacobian: Graph, blocks: LossBlocks) -> Graph:
    """r̃ and J̃ from the topology's graph and that of r and J; m + m·n outputs."""
    b, outputs = _absorbed(graph)
    ids = b.absorb(with_jacobian.nodes)
    m = blocks.residual_size
    plain = [ids[o] for o in with_jacobian.outputs]
    n = len(plain) // m - 1
    residuals, entries = plain[:m], plain[m:]
    for k in range(blocks.count):
        block = _Block(b, outputs, blocks, k)
        rows = blocks.block(k)
        root, bend = block.square_root(block.slope), block.bend()
        for column in range(n):
            values = {i: Scalar(b, entries[i * n + column]) for i in rows}
            for i, value in _corrected_column(block, rows, values, bend).items():
                entries[i * n + column] = (root * value).node
        scale = root if bend is None else root / bend[0]
        for i in rows:
            residuals[i] = (scale * Scalar(b, outputs[i])).node
    name = with_jacobian.name
    return simplify(Graph.build(b, [*residuals, *entries], graph.arguments, None, name))


def _corrected_column(
    block: _Block, rows: range, column: dict[int, Scalar], bend: tuple[Scalar, Scalar] | None
) -> dict[int, Scalar]:
    """A column of J - α r rᵀJ."""
    present = [i for i, v in column.items() if v.builder.literal(v.node) != 0.0]
    if bend is None or not present:
        return column
    if len(rows) == 1:
        return {i: bend[0] * v for i, v in column.items()}
    projected = block.m.constant(0.0)
    for i in present:
        projected = projected + block.r[i - rows[0]] * column[i]
    return {i: v - bend[1] * block.r[i - rows[0]] * projected for i, v in column.items()}
