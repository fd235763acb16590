"""SymPy as a yardstick of derivatives: the same residuals, differentiated and shared by SymPy.

Both sides are counted in the same unit, nodes of our IR: what SymPy's ``cse`` returns is written
as a graph without any rewriting, in the cheapest spelling (integer powers by repeated squaring, a
negative power as one division, a negative term as a subtraction), and its ops are counted as those
of any other graph. SymPy gets the singular points for nothing: its derivative of a square root has
no guard at 0, ours has a comparison and a ``where``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Any

import sympy

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.ir import Builder
from autograd_gpu.meshes import energies
from autograd_gpu.ops import BOOL
from workloads import reprojection_error

LENGTHS = (0.4, 0.35, 0.3, 0.25, 0.15, 0.1)
# Cosine and sine of the Denavit–Hartenberg twists, which are right angles or none.
_TWISTS = ((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0))


def arm(q: Any, target: Any) -> Any:
    """Offset of the tool of an arm of 6 revolute joints from a target, 3 residuals, metres.

    Source: Denavit and Hartenberg 1955; joint k turns about z by q[k], then moves by ``LENGTHS[k]``
    along x and twists about x.
    """
    x, y, z = 0.0, 0.0, 0.0
    for k in reversed(range(6)):
        cos_twist, sin_twist = _TWISTS[k]
        x, y, z = x + LENGTHS[k], cos_twist * y - sin_twist * z, sin_twist * y + cos_twist * z
        c, s = ag.cos(q[k]), ag.sin(q[k])
        x, y = c * x - s * y, s * x + c * y
    return [x - target[0], y - target[1], z - target[2]]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A residual with the widths of its arguments and those that it is differentiated by."""

    residual: Callable[..., Any]
    widths: tuple[int, ...]
    wrt: tuple[int, ...]

    def trace(self) -> Graph:
        """The graph as written."""
        return ag.trace(self.residual, *self.widths)


YARDSTICKS = MappingProxyType(
    {
        "as-rigid-as-possible": Yardstick(energies.as_rigid_as_possible, (3, 3, 3, 3), (0, 1, 2)),
        "dihedral angle": Yardstick(energies.dihedral_angle, (3, 3, 3, 3), (0, 1, 2, 3)),
        "Snavely reprojection": Yardstick(reprojection_error, (9, 3, 2), (0, 1)),
        "arm of 6 joints": Yardstick(arm, (6, 3), (0,)),
    }
)

_TO_SYMPY: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "sqrt": sympy.sqrt,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "atan2": sympy.atan2,
    "lt": sympy.Lt,
    "gt": sympy.Gt,
    "where": lambda c, a, b: sympy.Piecewise((a, c), (b, True)),
}


def to_sympy(graph: Graph) -> tuple[list[Any], dict[Any, tuple[int, int]]]:
    """Outputs as SymPy expressions, and the leaf behind each symbol."""
    values: list[Any] = []
    leaves: dict[Any, tuple[int, int]] = {}
    for node in graph.nodes:
        if node.op == "input":
            symbol = sympy.Symbol(f"x{node.leaf[0]}_{node.leaf[1]}", real=True)
            leaves[symbol] = node.leaf
            values.append(symbol)
        elif node.op == "const":
            number = node.payload
            whole = isinstance(number, float) and number.is_integer()
            values.append(sympy.Integer(int(number)) if whole else sympy.Float(number))  # type: ignore[arg-type]
        else:
            values.append(_TO_SYMPY[node.op](*(values[a] for a in node.args)))
    return [values[o] for o in graph.outputs], leaves


class _Writer:
    """Writes SymPy expressions into an arena without rewriting them."""

    def __init__(self, leaves: dict[Any, tuple[int, int]]) -> None:
        self.builder = Builder()
        self.known: dict[Any, int] = {s: self.builder.input(*leaf) for s, leaf in leaves.items()}

    def write(self, expression: Any) -> int:
        """Node of an expression."""
        found = self.known.get(expression)
        if found is None:
            found = self.known[expression] = self._new(expression)
        return found

    def _new(self, e: Any) -> int:
        b = self.builder
        if e.is_Boolean or e.is_Relational:
            return self._truth(e)
        if e.is_Number or e.is_NumberSymbol:
            return b.constant(float(e))
        if e.is_Add:
            return self._sum(e)
        if e.is_Mul:
            return self._product(e)
        if e.is_Pow:
            return self._power(e.base, e.exp)
        if isinstance(e, sympy.Piecewise):
            value = self.write(e.args[-1][0])
            for arm_value, condition in reversed(e.args[:-1]):
                value = b.apply("where", self.write(condition), self.write(arm_value), value)
            return value
        name = {"Abs": "abs"}.get(type(e).__name__, type(e).__name__)
        return b.apply(name, *map(self.write, e.args))

    def _truth(self, e: Any) -> int:
        b = self.builder
        if e in (sympy.true, sympy.false):
            return b.constant(bool(e))
        name = {
            "StrictLessThan": "lt", "LessThan": "le", "StrictGreaterThan": "gt",
            "GreaterThan": "ge", "And": "logical_and", "Or": "logical_or", "Not": "logical_not",
            "Equality": "eq", "Unequality": "ne",
        }[type(e).__name__]  # fmt: skip
        nodes = list(map(self.write, e.args))
        return (
            b.apply(name, *nodes)
            if len(nodes) < 3
            else reduce(lambda p, q: b.apply(name, p, q), nodes)
        )

    def _sum(self, e: Any) -> int:
        b = self.builder
        plus = [t for t in e.args if not t.could_extract_minus_sign()]
        minus = [-t for t in e.args if t.could_extract_minus_sign()]
        total: int | None = None
        for term in plus:
            node = self.write(term)
            total = node if total is None else b.apply("add", total, node)
        for term in minus:
            node = self.write(term)
            total = b.apply("neg", node) if total is None else b.apply("sub", total, node)
        assert total is not None
        return total

    def _product(self, e: Any) -> int:
        b = self.builder
        coefficient, factors = e.as_coeff_mul()
        above = [f for f in factors if not (f.is_Pow and f.exp.is_Number and f.exp < 0)]
        below = [f.base**-f.exp for f in factors if f.is_Pow and f.exp.is_Number and f.exp < 0]
        nodes = [self.write(f) for f in above]
        if abs(coefficient) != 1 or not nodes:
            nodes.append(b.constant(float(abs(coefficient))))
        top = reduce(lambda p, q: b.apply("mul", p, q), nodes)
        if below:
            bottom = reduce(lambda p, q: b.apply("mul", p, q), map(self.write, below))
            top = b.apply("div", top, bottom)
        return b.apply("neg", top) if coefficient < 0 else top

    def _power(self, base: Any, exponent: Any) -> int:
        b = self.builder
        if exponent < 0:
            return b.apply("div", b.constant(1.0), self.write(base**-exponent))
        whole, half = divmod(exponent, 1)
        assert half in (0, sympy.Rational(1, 2), 0.5), exponent
        x = self.write(base)
        parts = [b.apply("sqrt", x)] if half else []
        whole = int(whole)
        while whole:
            if whole & 1:
                parts.append(x)
            whole >>= 1
            x = b.apply("mul", x, x) if whole else x
        return reduce(lambda p, q: b.apply("mul", p, q), parts)


def sympy_jacobian(yardstick: Yardstick) -> Callable[[], Any]:
    """Differentiation and ``cse`` of a residual, ready to be timed; returns ``cse``'s result."""
    graph = yardstick.trace()
    outputs, leaves = to_sympy(graph)
    by_leaf = {leaf: symbol for symbol, leaf in leaves.items()}
    symbols = [
        by_leaf[a, k]
        for a in yardstick.wrt
        for k in range(graph.arguments[a].size)
        if (a, k) in by_leaf
    ]

    def run() -> Any:
        return sympy.cse([o.diff(s) for o in outputs for s in symbols])

    return run


def as_graph(yardstick: Yardstick, shared: Any) -> Graph:
    """What ``cse`` returned, op for op, as a graph."""
    graph = yardstick.trace()
    _, leaves = to_sympy(graph)
    writer = _Writer(leaves)
    replacements, reduced = shared
    for symbol, expression in replacements:
        writer.known[symbol] = writer.write(expression)
    outputs = [writer.write(e) for e in reduced]
    assert all(writer.builder.nodes[o].dtype != BOOL for o in outputs)
    return Graph.build(writer.builder, outputs, graph.arguments)
