"""Graphs as SymPy expressions, by the spellings of the op table."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from autograd_gpu.codegen.render import columns_function

from ..ir import Argument, Graph
from .libraries import load_sympy


class Symbolic(NamedTuple):
    """A graph in SymPy's terms; ``from_sympy(*symbolic)`` is its way back.

    Attributes:
        expressions: an expression, a column ``Matrix``, a ``Matrix`` or an ``Array``, of the
            graph's output shape.
        arguments: name -> real symbol, tuple of symbols, or ``Matrix`` of symbols.
    """

    expressions: Any
    arguments: dict[str, Any]


def to_sympy(graph: Graph) -> Symbolic:
    """A graph as SymPy expressions of real symbols ``p``, ``p_0``, ``p_1``, … by argument.

    Literals that a person wrote as such are exact: x * 0.5 becomes x/2. What SymPy lacks is
    written out, so ``log1p(x)`` becomes ``log(x + 1)`` and ``round`` a formula of ``floor``.
    SymPy's derivatives know nothing of the singular points of docs/ops.md, and it multiplies out
    the cases where the condition of a ``where`` depends on another one.

    Raises:
        MissingDependencyError: SymPy is not installed.
    """
    sympy = load_sympy()
    names = _distinct_names([a.name for a in graph.arguments])
    columns: list[list[Any]] = []
    arguments: dict[str, Any] = {}
    for name, argument in zip(names, graph.arguments, strict=True):
        flat = [sympy.Symbol(s, real=True) for s in _symbol_names(name, argument)]
        columns.append(flat)
        arguments[name] = _of_shape(flat, argument.shape)
    # SymPy's own numbers: a Python number has no assumptions.
    outputs = [sympy.sympify(e) for e in _function(graph)(columns)]
    return Symbolic(_of_output(outputs, graph.output_shape), arguments)


@lru_cache(maxsize=256)
def _function(graph: Graph) -> Any:
    namespace: dict[str, Any] = {}
    text = columns_function(graph, "sympy", "exact")
    exec(compile(text, f"<{graph.name} for SymPy>", "exec"), namespace)
    return namespace["function"]


def _distinct_names(names: list[str]) -> list[str]:
    distinct: list[str] = []
    for k, name in enumerate(names):
        distinct.append(name if name not in distinct else f"{name}_{k}_")
    return distinct


def _symbol_names(name: str, argument: Argument) -> list[str]:
    if argument.shape == ():
        return [name]
    if len(argument.shape) == 1:
        return [f"{name}_{k}" for k in range(argument.size)]
    rows, columns = argument.shape
    return [f"{name}_{i}_{j}" for i in range(rows) for j in range(columns)]


def _of_shape(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if shape == ():
        return flat[0]
    return tuple(flat) if len(shape) == 1 else load_sympy().Matrix(*shape, flat)


def _of_output(flat: list[Any], shape: tuple[int, ...]) -> Any:
    dimensions = len(shape)
    if dimensions == 0:
        return flat[0]
    sympy = load_sympy()
    if dimensions > 2:
        return sympy.Array(flat, shape)
    return sympy.Matrix(shape[0], len(flat) // shape[0], flat)
