"""SymPy expressions as graphs, in the cheapest spelling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import isfinite, prod
from typing import Any, NoReturn, cast

from ..errors import InputError, TraceError
from ..ir import Argument, Builder, Graph, Shape
from ..ops import BOOL, NODE_OPS
from .libraries import load_sympy

# SymPy's class -> our op, where the names differ.
_OPS = {
    "Abs": "abs", "ceiling": "ceil", "Mod": "mod", "Cbrt": "cbrt", "Sqrt": "sqrt",
    "Min": "minimum", "Max": "maximum", "And": "logical_and", "Or": "logical_or",
    "Not": "logical_not", "StrictLessThan": "lt", "LessThan": "le", "StrictGreaterThan": "gt",
    "GreaterThan": "ge", "Equality": "eq", "Unequality": "ne",
}  # fmt: skip
# SymPy's class -> what SymPy itself can write it in terms of.
_REWRITTEN = {
    "sec": "cos", "csc": "sin", "cot": "tan", "sech": "cosh", "csch": "sinh", "coth": "tanh",
    "asec": "acos", "acsc": "asin", "acot": "atan", "asinh": "log", "acosh": "log",
    "atanh": "log", "acoth": "log", "asech": "log", "acsch": "log", "erfc": "erf",
    "Heaviside": "Piecewise", "sinc": "Piecewise", "exp2": "Pow", "log2": "log", "log10": "log",
}  # fmt: skip
_FOLDED = ("minimum", "maximum", "logical_and", "logical_or")
LARGEST_UNROLLED_POWER = 64


def from_sympy(
    expressions: Any,
    arguments: Mapping[str, Any] | Sequence[Any],
    name: str = "residual",
) -> Graph:
    """SymPy expressions as a graph, which is a residual function of ``Problem.add_residuals``.

    Everything is taken to be real. Integer powers become products, and a repeated expression is
    computed once.

    Args:
        expressions: an expression, a (nested) sequence of them, a ``Matrix`` (a column of k rows
            is a vector of k) or an ``Array``.
        arguments: what the function takes, by name or in order: each a symbol, a sequence of
            symbols, a ``Matrix`` of symbols or a ``MatrixSymbol``.
        name: of the graph.

    Raises:
        TraceError: a function or symbol that has no counterpart, named.
        InputError: an argument is no symbol, or a symbol appears twice.
        MissingDependencyError: SymPy is not installed.
    """
    named = (
        list(arguments.items())
        if isinstance(arguments, Mapping)
        else [(str(getattr(a, "name", f"arg{k}")), a) for k, a in enumerate(arguments)]
    )
    leaves: dict[Any, tuple[int, int]] = {}
    described: list[Argument] = []
    for k, (title, given) in enumerate(named):
        symbols, shape = _flat(given)
        for component, symbol in enumerate(symbols):
            if not getattr(symbol, "is_symbol", False) or symbol in leaves:
                raise InputError(
                    f"from_sympy, argument {title!r}: got {symbol!r} at position {component}, "
                    "expected a symbol that no other place has"
                )
            leaves[symbol] = (k, component)
        described.append(Argument(title, shape))
    writer = SympyWriter(leaves)
    outputs, shape = _flat(expressions)
    nodes = [writer.write(e) for e in outputs]
    for e, node in zip(outputs, nodes, strict=True):
        if writer.builder.nodes[node].dtype == BOOL:
            raise TraceError(f"from_sympy: {e} is a truth value; use Piecewise((1, …), (0, True))")
    return Graph.build(writer.builder, nodes, described, shape, name)


def _flat(given: Any) -> tuple[list[Any], Shape]:
    """Expressions row by row, and their shape."""
    sympy = load_sympy()
    if hasattr(given, "as_explicit"):
        given = given.as_explicit()
    if isinstance(given, list | tuple):
        parts = [_flat(part) for part in cast("Sequence[Any]", given)]
        if not parts:
            raise InputError("from_sympy: got an empty sequence, expected expressions")
        items = [item for part, _ in parts for item in part]
        shapes = {shape for _, shape in parts}
        return items, (len(parts), *shapes.pop()) if len(shapes) == 1 else (len(items),)
    shape: Shape | None = getattr(given, "shape", None)
    if shape is None or shape == ():
        return [sympy.sympify(given)], ()
    flat = [sympy.sympify(e) for e in sympy.flatten(given.tolist())]
    if isinstance(given, sympy.MatrixBase) and shape[1] == 1:
        shape = (shape[0],)
    shape = tuple(int(k) for k in shape)
    assert len(flat) == prod(shape)
    return flat, shape


class SympyWriter:
    """Writes SymPy expressions into an arena, without rewriting and each of them once.

    Powers are products by repeated squaring, a negative power is one division, a negative term
    a subtraction.

    Args:
        leaves: symbol -> argument and component.

    Attributes:
        builder: the arena.
        known: expression -> node; more can be added, such as the replacements of ``cse``.
    """

    def __init__(self, leaves: Mapping[Any, tuple[int, int]]) -> None:
        self.builder = Builder()
        self.known: dict[Any, int] = {s: self.builder.input(*leaf) for s, leaf in leaves.items()}

    def write(self, expression: Any) -> int:
        """Node of an expression.

        Raises:
            TraceError: something in it has no counterpart.
        """
        found = self.known.get(expression)
        if found is None:
            found = self.known[expression] = self._new(expression)
        return found

    def _new(self, e: Any) -> int:
        sympy = load_sympy()
        if e in (sympy.true, sympy.false):
            return self.builder.constant(bool(e))
        if e.is_Number or e.is_NumberSymbol:
            return self._number(e)
        if e.is_Add:
            return self._sum(e)
        if e.is_Mul:
            return self._product(e)
        if e.is_Pow:
            return self._power(e.base, e.exp)
        if isinstance(e, sympy.Piecewise):
            return self._piecewise(e)
        if isinstance(e, sympy.ITE):
            return self.write(e.to_nnf(simplify=False))
        return self._function(e)

    def _number(self, e: Any) -> int:
        number = float(e)
        if not isfinite(number):
            raise TraceError(f"from_sympy: the constant {e} is not finite")
        return self.builder.constant(number)

    def _function(self, e: Any) -> int:
        title = type(e).__name__
        op = _OPS.get(title, title)
        if op in NODE_OPS:
            nodes = [self.write(a) for a in e.args]
            if op in _FOLDED:
                return self._fold(op, nodes)
            if len(nodes) == NODE_OPS[op].arity:
                return self.builder.apply(op, *nodes)
        target = _REWRITTEN.get(title)
        rewritten = e.rewrite(getattr(load_sympy(), target)) if target else e
        if rewritten == e:
            self._refuse(e, title)
        return self.write(rewritten)

    def _refuse(self, e: Any, title: str) -> NoReturn:
        if e.is_Symbol:
            raise TraceError(
                f"from_sympy: the symbol {e} is no argument; name it in arguments, or give it a "
                "number by .subs"
            )
        raise TraceError(
            f"from_sympy: {title} has no counterpart, in {str(e)[:200]}; rewrite it in terms of "
            "real elementary functions"
        )

    def _fold(self, op: str, nodes: list[int]) -> int:
        return reduce(lambda p, q: self.builder.apply(op, p, q), nodes)

    def _piecewise(self, e: Any) -> int:
        arms = [(value, condition) for value, condition in e.args]
        everywhere = load_sympy().Or(*(condition for _, condition in arms))
        if everywhere != True:  # noqa: E712 - SymPy's own truth
            raise TraceError(
                f"from_sympy: {str(e)[:200]} has no value where none of its conditions holds; end "
                "it with (expression, True)"
            )
        value = self.write(arms[-1][0])
        for arm, condition in reversed(arms[:-1]):
            value = self.builder.apply("where", self.write(condition), self.write(arm), value)
        return value

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
        above = [f for f in factors if not _is_reciprocal(f)]
        below = [f.base**-f.exp for f in factors if _is_reciprocal(f)]
        nodes = [self.write(f) for f in above]
        if abs(coefficient) != 1 or not nodes:
            nodes.append(b.constant(float(abs(coefficient))))
        top = self._fold("mul", nodes)
        if below:
            bottom = self._fold("mul", [self.write(f) for f in below])
            top = b.apply("div", top, bottom)
        return b.apply("neg", top) if coefficient < 0 else top

    def _power(self, base: Any, exponent: Any) -> int:
        b = self.builder
        if exponent.is_number and exponent.is_negative:
            return b.apply("div", b.constant(1.0), self.write(base**-exponent))
        twice = 2 * exponent
        unrolled = exponent.is_Number and twice == int(twice) and exponent <= LARGEST_UNROLLED_POWER
        if not unrolled:
            return b.apply("pow", self.write(base), self.write(exponent))
        whole, half = divmod(int(twice), 2)
        x = self.write(base)
        parts = [b.apply("sqrt", x)] if half else []
        while whole:
            if whole & 1:
                parts.append(x)
            whole >>= 1
            x = b.apply("mul", x, x) if whole else x
        return self._fold("mul", parts)


def _is_reciprocal(factor: Any) -> bool:
    return factor.is_Pow and factor.exp.is_Number and factor.exp < 0
