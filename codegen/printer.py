"""Print a graph as straight-line statements of a target language.

Everything about an op comes from its row; this file knows only how a dialect declares a variable
and writes a literal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import cast

import numpy as np

from autograd_gpu.errors import KernelError
from autograd_gpu.folds import FOLDS
from autograd_gpu.ir import ARGUMENT_LEAVES, Graph, Node
from autograd_gpu.ops import BOOL, NODE_OPS, DType

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a target writes what is not an op.

    Attributes:
        target: attribute of an op's row that holds its spelling.
        declare: (name, dtype, expression) -> statement.
        literal: number -> text.
        true, false: truth values.
    """

    target: str
    declare: Callable[[str, DType, str], str]
    literal: Callable[[float], str]
    true: str
    false: str


@dataclass(frozen=True, slots=True)
class Statements:
    """Printed body: lines in order, and the expression of each output."""

    lines: tuple[str, ...]
    outputs: tuple[str, ...]


def checked_float32(value: float) -> float:
    """The nearest float32.

    Raises:
        KernelError: the value is beyond float32.
    """
    if abs(value) > FLOAT32_MAX:
        raise KernelError(
            f"the constant {value} does not fit float32 (largest {FLOAT32_MAX:.4g}); "
            "rescale the residual, or use a float64 backend"
        )
    return float(np.float32(value))


def _wgsl_literal(value: float) -> str:
    text = repr(checked_float32(value))
    return f"({text}f)" if value < 0.0 else f"{text}f"


def _python_literal(value: float) -> str:
    return f"({value!r})" if value < 0.0 else repr(value)


def _declare_wgsl(name: str, dtype: DType, text: str) -> str:
    return f"let {name}: {'bool' if dtype == BOOL else 'f32'} = {text};"


def _declare_python(name: str, dtype: DType, text: str) -> str:
    return f"{name} = {text}"


WGSL_FLOAT32 = Dialect("wgsl", _declare_wgsl, _wgsl_literal, "true", "false")
NUMBA_FLOAT64 = Dialect("numba", _declare_python, _python_literal, "True", "False")
# A bare Python literal is float64 to Numba and would promote the whole expression.
NUMBA_FLOAT32 = Dialect(
    "numba", _declare_python, lambda v: f"float32({_python_literal(v)})", "True", "False"
)
# A bare literal takes the type of the array that it meets, in JAX.
JAX_FLOAT64 = Dialect("jax", _declare_python, _python_literal, "True", "False")
# Where two literals meet (``where(c, 1.0, 0.0)``), JAX would make float64 of them.
JAX_FLOAT32 = Dialect(
    "jax",
    _declare_python,
    lambda v: f"float32({_python_literal(checked_float32(v))})",
    "True",
    "False",
)


# Within these bounds a person wrote the number as such: x * 0.5 is shown as x/2.
_LARGEST_DENOMINATOR, _LARGEST_NUMERATOR = 1024, 10**9


def _sympy_literal(value: float) -> str:
    if np.isfinite(value):
        exact = Fraction(value)
        if exact.denominator <= _LARGEST_DENOMINATOR and abs(exact.numerator) <= _LARGEST_NUMERATOR:
            return f"sympy.Rational({exact.numerator}, {exact.denominator})"
    return f"sympy.Float('{value!r}', 17)"


SYMPY = Dialect("sympy", _declare_python, _sympy_literal, "sympy.true", "sympy.false")


def print_statements(
    graph: Graph, dialect: Dialect, leaf: Callable[[int, int], str], prefix: str = "v"
) -> Statements:
    """Print ``graph`` in single-assignment form.

    Args:
        graph: what to print.
        dialect: target language.
        leaf: (slot, component) -> name of the loaded value.
        prefix: of the names made here.
    """
    text: list[str] = []
    lines: list[str] = []
    for k, node in enumerate(graph.nodes):
        if not node.args:
            text.append(leaf_text(node, dialect, leaf))
            continue
        name = f"{prefix}{k}"
        lines.append(statement(name, node, [text[a] for a in node.args], dialect))
        text.append(name)
    return Statements(tuple(lines), tuple(text[o] for o in graph.outputs))


def leaf_text(node: Node, dialect: Dialect, leaf: Callable[[int, int], str]) -> str:
    """What stands for a leaf in an expression."""
    if node.op in ARGUMENT_LEAVES:
        return leaf(*node.leaf)
    if isinstance(node.payload, bool):
        return dialect.true if node.payload else dialect.false
    return dialect.literal(cast(float, node.payload))


def statement(name: str, node: Node, operands: Sequence[str], dialect: Dialect) -> str:
    """Declaration of ``name`` as the value of a node."""
    row = FOLDS[node.op] if node.op in FOLDS else NODE_OPS[node.op]
    spelling: str = getattr(row, dialect.target)
    return dialect.declare(name, node.dtype, spelling.format(*operands))


# A definition runs from the start of a line to the empty line after it.
_DEFINITION = re.compile(r"^(?:fn|const) (ag_\w+)\b.*?\n(?=\n|\Z)", re.MULTILINE | re.DOTALL)
_USE = re.compile(r"\b(ag_\w+)[(\[]")


@lru_cache(maxsize=8)
def _definitions(prelude: str) -> dict[str, str]:
    """Functions and tables of a prelude by name, in order."""
    return {m.group(1): m.group(0) for m in _DEFINITION.finditer(prelude)}


def select_prelude(prelude: str, body: str) -> str:
    """The functions and tables of a WGSL prelude that ``body`` uses, directly or not, in order.

    Raises:
        KernelError: ``body`` uses a name that the prelude lacks.
    """
    definitions = _definitions(prelude)
    needed: set[str] = set()
    pending = set(_USE.findall(body))
    while pending:
        name = pending.pop()
        if name in needed:
            continue
        if name not in definitions:
            raise KernelError(f"the WGSL prelude has no function {name!r}")
        needed.add(name)
        pending |= set(_USE.findall(definitions[name]))
    return "\n".join(text for name, text in definitions.items() if name in needed)
