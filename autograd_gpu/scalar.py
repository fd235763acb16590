"""Scalars that remember what is done to them; traced ones are handles on IR nodes."""

from __future__ import annotations

import linecache
import numbers
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, cast

import numpy as np
from numpy.typing import NDArray

from .errors import TraceError
from .ir import Builder
from .ops import BOOL, OPS, REAL, DType, Op

# With a separator at the end, since a user's folder may begin with the same letters.
_INTERNAL = tuple(
    os.path.join(Path(module_file).resolve().parent, "") for module_file in (__file__, np.__file__)
)

# NumPy ufunc name -> op name, where they differ.
UFUNC_OPS = {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div",
    "negative": "neg", "power": "pow", "float_power": "pow", "absolute": "abs", "fabs": "abs",
    "rint": "round", "remainder": "mod", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
    "arctan2": "atan2", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge",
    "equal": "eq", "not_equal": "ne", "logical_and": "logical_and", "bitwise_and": "logical_and",
    "bitwise_or": "logical_or", "invert": "logical_not", "fmin": "minimum", "fmax": "maximum",
}  # fmt: skip


def is_internal(file: str) -> bool:
    """Whether a source file belongs to this package or NumPy, and not to the user."""
    return file.startswith(_INTERNAL)


def user_line() -> str:
    """``file:line: source`` of the innermost frame outside this package (and NumPy)."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and is_internal(frame.f_code.co_filename):
        frame = frame.f_back
    code = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" + (f": {code}" if code else "")


# What a line that asked for a Python bool most likely holds -> what to write instead.
_BRANCHES = (
    ("max(", "use ag.maximum(a, b), or ag.max([...])"),
    ("min(", "use ag.minimum(a, b), or ag.min([...])"),
    (" and ", "use ag.logical_and(a, b)"),
    (" or ", "use ag.logical_or(a, b)"),
    ("not ", "use ag.logical_not(a)"),
    ("if ", "use ag.where(condition, a, b)"),
    ("while ", "a loop cannot depend on a traced value; use a fixed number of steps"),
)
# Two comparisons with nothing between them that would end the first.
_MATH_CALL = re.compile(r"\bmath\.(\w+)\(")
_CHAINED = re.compile(r"[<>]=?(?:(?!\band\b|\bor\b|\bif\b|\belse\b)[^<>,])+[<>]")


def branch_error() -> NoReturn:
    """Refuse a Python branch on a traced value, and name what to write instead."""
    line = user_line()
    remedy = "use ag.where(condition, a, b)"
    if _CHAINED.search(line):
        remedy = "use ag.logical_and(a < b, b < c) instead of the chained comparison"
    else:
        for sign, advice in _BRANCHES:
            if sign in line:
                remedy = advice
                break
    raise TraceError(
        f"{line}\n  asks for the truth of a traced value, which is known only on the device; "
        f"{remedy}"
    )


def number_error(kind: str) -> NoReturn:
    """Refuse to make a Python number of a traced value."""
    line = user_line()
    remedy = f"{kind}() needs a number; keep the traced value and use ag.* functions on it"
    found = _MATH_CALL.search(line)
    if found is not None:
        called = found[1]
        name = {"fabs": "abs", "pow": "pow", "fmod": "mod"}.get(called, called)
        remedy = f"use ag.{name} instead of math.{called}"
    raise TraceError(f"{line}\n  asks for the number behind a traced value; {remedy}")


def format_error() -> NoReturn:
    """Refuse to print a traced value as a number."""
    raise TraceError(
        f"{user_line()}\n  formats a traced value, which has no number yet: the function is called "
        "once, for all elements; evaluate ag.trace(fn, …) on arrays, or look at solution.values"
    )


def attribute_error(thing: str, name: str) -> AttributeError:
    """What to write instead of a method that traced values do not have."""
    from . import functions

    known = not name.startswith("_") and (name in OPS or callable(getattr(functions, name, None)))
    remedy = f"; call ag.{name}(…) on it" if known else ""
    return AttributeError(f"{thing} has no attribute {name!r}{remedy}")


class AbstractScalar:
    """A real or truth value that remembers what is done to it.

    Operators, ``ag.*`` functions and NumPy ufuncs all end in ``applied``, which says what an op
    of the table makes of it: a node of a trace (``Scalar``) or of an eager graph (``Value``).
    """

    __slots__ = ()
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def applied(self, row: Op, operands: Sequence[Any]) -> Any:
        """Result of an op of which this is an operand; the others are numbers or of its kind."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        raise attribute_error("a traced value", name)

    def _binary(self, op: str, other: Any, reflected: bool = False) -> Any:
        if not is_scalar_like(other):
            return NotImplemented
        return apply(op, other, self) if reflected else apply(op, self, other)

    def __add__(self, other: Any) -> Self:
        return self._binary("add", other)

    def __radd__(self, other: Any) -> Self:
        return self._binary("add", other, True)

    def __sub__(self, other: Any) -> Self:
        return self._binary("sub", other)

    def __rsub__(self, other: Any) -> Self:
        return self._binary("sub", other, True)

    def __mul__(self, other: Any) -> Self:
        return self._binary("mul", other)

    def __rmul__(self, other: Any) -> Self:
        return self._binary("mul", other, True)

    def __truediv__(self, other: Any) -> Self:
        return self._binary("div", other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._binary("div", other, True)

    def __pow__(self, other: Any) -> Self:
        return self._binary("pow", other)

    def __rpow__(self, other: Any) -> Self:
        return self._binary("pow", other, True)

    def __mod__(self, other: Any) -> Self:
        return self._binary("mod", other)

    def __rmod__(self, other: Any) -> Self:
        return self._binary("mod", other, True)

    def __floordiv__(self, other: Any) -> Self:
        quotient = self._binary("div", other)
        return quotient if quotient is NotImplemented else apply("floor", quotient)

    def __rfloordiv__(self, other: Any) -> Self:
        quotient = self._binary("div", other, True)
        return quotient if quotient is NotImplemented else apply("floor", quotient)

    def __neg__(self) -> Self:
        return apply("neg", self)

    def __pos__(self) -> Self:
        return self

    def __abs__(self) -> Self:
        return apply("abs", self)

    def __round__(self, digits: int | None = None) -> Self:
        if digits:
            raise TraceError(f"{user_line()}\n  round() of a traced value takes no digits")
        return apply("round", self)

    def __floor__(self) -> Self:
        return apply("floor", self)

    def __ceil__(self) -> Self:
        return apply("ceil", self)

    def __lt__(self, other: Any) -> Self:
        return self._binary("lt", other)

    def __le__(self, other: Any) -> Self:
        return self._binary("le", other)

    def __gt__(self, other: Any) -> Self:
        return self._binary("gt", other)

    def __ge__(self, other: Any) -> Self:
        return self._binary("ge", other)

    def __eq__(self, other: object) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._binary("eq", other)

    def __ne__(self, other: object) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._binary("ne", other)

    def __and__(self, other: Any) -> Self:
        return self._binary("logical_and", other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Self:
        return self._binary("logical_or", other)

    __ror__ = __or__

    def __invert__(self) -> Self:
        return apply("logical_not", self)

    def __iter__(self) -> Any:
        raise TraceError(
            f"{user_line()}\n  unpacks a traced scalar; a block of width 1 is a scalar, not a list"
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refuse to become an array of numbers."""
        raise TraceError(
            f"{user_line()}\n  makes a NumPy array of a traced value; use ag.* functions, which "
            "accept lists of traced values"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy ufuncs trace: ``np.sin(x)``, ``array * x``."""
        from .vector import trace_ufunc

        return trace_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Common NumPy functions trace, such as ``np.where`` and ``np.clip``."""
        from .functions import trace_numpy_function

        return trace_numpy_function(func, args, kwargs)


class Scalar(AbstractScalar):
    """A traced real or truth value.

    Asking for a Python number or a branch raises ``TraceError``, since the value is known only
    on the device.
    """

    __slots__ = ("builder", "node")

    def __init__(self, builder: Builder, node: int) -> None:
        self.builder = builder
        self.node = node

    @property
    def dtype(self) -> DType:
        """Real or boolean."""
        return self.builder.nodes[self.node].dtype

    def __repr__(self) -> str:
        return f"<traced {self.dtype.value} v{self.node}>"

    def applied(self, row: Op, operands: Sequence[Any]) -> Scalar:
        """A node of this value's trace."""
        builder = self.builder
        if row.expand is not None:
            lifted = [
                v if isinstance(v, AbstractScalar) else Scalar(builder, builder.constant(float(v)))
                for v in operands
            ]
            return cast(Scalar, row.expand(SymbolicAlgebra(builder), *lifted))
        ids = [_operand(builder, row.name, row.operands[k], v) for k, v in enumerate(operands)]
        return Scalar(builder, builder.apply(row.name, *ids))

    def __bool__(self) -> bool:
        branch_error()

    def __float__(self) -> float:
        number_error("float")

    def __int__(self) -> int:
        number_error("int")

    def __index__(self) -> int:
        number_error("index")

    def __format__(self, spec: str) -> str:
        if spec:
            format_error()
        return repr(self)


class SymbolicAlgebra:
    """The algebra of traced scalars: ``m.sin(x)`` adds a node to one arena."""

    __slots__ = ("builder",)

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def constant(self, value: float) -> Scalar:
        """A literal."""
        return Scalar(self.builder, self.builder.constant(value))

    def node_of(self, value: Any) -> int:
        """Node id of a traced scalar or a number."""
        return value.node if isinstance(value, Scalar) else self.builder.constant(value)

    def __getattr__(self, name: str) -> Any:
        if name not in OPS:
            raise AttributeError(name)

        def call(*operands: Any) -> Scalar:
            lifted = [
                v if isinstance(v, Scalar) else Scalar(self.builder, self.builder.constant(v))
                for v in operands
            ]
            return apply(name, *lifted)

        return call


_SCALAR_TYPES = (AbstractScalar, numbers.Real, np.bool_)


def is_scalar_like(value: Any) -> bool:
    """Whether ``value`` is a scalar, traced or eager, or a plain number."""
    if isinstance(value, _SCALAR_TYPES):
        return True
    if not isinstance(value, np.ndarray):
        return False
    array = cast("NDArray[Any]", value)
    return array.ndim == 0 and array.dtype.kind in "fiub"


def _operand(builder: Builder, op: str, wanted: DType, value: Any) -> int:
    if isinstance(value, Scalar):
        if value.builder is not builder:
            raise TraceError(
                f"{user_line()}\n  mixes values of two traces; a traced value cannot outlive the "
                "function call that it was made for"
            )
        node = value.node
    elif isinstance(value, AbstractScalar):
        raise TraceError(
            f"{user_line()}\n  mixes an eager ag.Value with a traced value; pass its number to "
            "add_residuals as an argument"
        )
    elif isinstance(value, np.ndarray):
        node = builder.constant(python_number(value[()], wanted))
    else:
        node = builder.constant(python_number(value, wanted))
    got = builder.nodes[node].dtype
    if got == wanted:
        return node
    if got == BOOL and wanted == REAL:
        return builder.apply("where", node, builder.constant(1.0), builder.constant(0.0))
    raise TraceError(
        f"{user_line()}\n  gives a {got.value} operand to {op!r}, which takes {wanted.value}; "
        "compare it first (x > 0), or use ag.where"
    )


def python_number(value: Any, wanted: DType) -> float | bool:
    """A literal operand as a Python number, finite."""
    if wanted == BOOL and isinstance(value, bool | np.bool_):
        return bool(cast(Any, value))
    number = float(value)
    if not np.isfinite(number):
        raise TraceError(
            f"{user_line()}\n  uses the constant {number}; residuals need finite constants"
        )
    return number


def apply(name: str, *operands: Any) -> Any:
    """Apply an op of the table to scalars and numbers, at least one of them traced or eager."""
    row = OPS[name]
    if len(operands) != row.arity:
        raise TraceError(
            f"{user_line()}\n  calls ag.{name} with {len(operands)} arguments, it takes {row.arity}"
        )
    first = next(v for v in operands if isinstance(v, AbstractScalar))
    return first.applied(row, operands)
