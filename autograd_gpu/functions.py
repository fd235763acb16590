"""The public functions, such as ``ag.sin``, ``ag.norm`` and ``ag.where``.

Each works on traced values (scalars, vectors, lists of them) and, for testing an energy by hand,
on plain numbers and NumPy arrays. Reductions of arrays act on the last axis, as an element's
vector is the last axis of a batch.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, cast

import numpy as np

from .errors import ShapeError, TraceError
from .long_rows import LongRow, folded, item_mean, item_of
from .ops import OPS
from .samples import refuse_samples
from .scalar import AbstractScalar, apply, user_line
from .sequence import TracedSequence
from .vector import Matrix, Vector, as_traced, elementwise, inner, is_traced, sum_of, vector


def _public(name: str) -> Callable[..., Any]:
    row = OPS[name]

    def function(*operands: Any) -> Any:
        if len(operands) == 1 and isinstance(operands[0], AbstractScalar):
            return apply(name, *operands)
        if builtins.any(is_traced(v) for v in operands):
            return elementwise(name, *operands)
        return row.numpy(*operands)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"{row.doc} Elementwise on traced values and NumPy arrays."
    return function


sqrt, cbrt, abs, sign = (_public(n) for n in ("sqrt", "cbrt", "abs", "sign"))
minimum, maximum, clip = (_public(n) for n in ("minimum", "maximum", "clip"))
floor, ceil, round, mod = (_public(n) for n in ("floor", "ceil", "round", "mod"))
reciprocal, square, cube, pow = (_public(n) for n in ("reciprocal", "square", "cube", "pow"))
exp, log, expm1, log1p = (_public(n) for n in ("exp", "log", "expm1", "log1p"))
sin, cos, tan, asin, acos = (_public(n) for n in ("sin", "cos", "tan", "asin", "acos"))
atan, atan2, sinh, cosh, tanh = (_public(n) for n in ("atan", "atan2", "sinh", "cosh", "tanh"))
erf, hypot, sigmoid, softplus = (_public(n) for n in ("erf", "hypot", "sigmoid", "softplus"))
relu, where = _public("relu"), _public("where")
logical_and, logical_or = _public("logical_and"), _public("logical_or")
logical_not = _public("logical_not")


def _sequence(values: Any) -> list[Any]:
    """Items of a traced vector, a matrix's entries, or a Python sequence."""
    lifted = as_traced(values)
    if isinstance(lifted, Vector):
        return list(lifted.items)
    if isinstance(lifted, Matrix):
        return [entry for row in lifted.rows for entry in row]
    refuse_samples(lifted)
    return [lifted]


def _items(values: Any) -> list[Any]:
    """Like ``_sequence``, but a list of vectors stays a list of vectors."""
    if isinstance(values, TracedSequence):
        return list(values.items)
    if isinstance(values, list | tuple):
        items = list(cast("Sequence[Any]", values))
        if builtins.any(isinstance(v, Vector) for v in items):
            return items
    return _sequence(values)


def sum(values: Any) -> Any:
    """Sum of a vector's components or of a sequence of scalars or vectors.

    NumPy arrays are summed over the last axis. Order: left to right.
    """
    if is_traced(values):
        item = item_of(values)
        return sum_of(_items(values)) if item is None else folded("sum_items", item)
    return np.sum(np.asarray(values), axis=-1)


def mean(values: Any) -> Any:
    """Arithmetic mean; arguments as for ``sum``."""
    if is_traced(values):
        item = item_of(values)
        if item is not None:
            return item_mean(item)
        items = _items(values)
        return sum_of(items) * (1.0 / len(items))
    return np.mean(np.asarray(values), axis=-1)


def _extreme(values: Any, op: str, numpy: Callable[..., Any]) -> Any:
    if is_traced(values):
        item = item_of(values)
        if item is not None:
            return folded(f"{op[:3]}_items", item)
        items = _items(values)
        if not items:
            raise ShapeError(f"{user_line()}\n  {op} of nothing; give at least one value")
        return reduce(lambda a, b: elementwise(op, a, b), items)
    return numpy(np.asarray(values), axis=-1)


def min(values: Any) -> Any:
    """Smallest of a vector's components or of a sequence; a tie belongs to the earlier one."""
    return _extreme(values, "minimum", np.min)


def max(values: Any) -> Any:
    """Largest of a vector's components or of a sequence; a tie belongs to the earlier one."""
    return _extreme(values, "maximum", np.max)


def dot(u: Any, v: Any) -> Any:
    """Dot product of two vectors (last axis of arrays)."""
    if is_traced(u) or is_traced(v):
        if isinstance(u, LongRow) or isinstance(v, LongRow):
            return sum(elementwise("mul", u, v))
        a, b = as_traced(u), as_traced(v)
        if isinstance(a, Vector) and isinstance(b, Vector):
            return inner(a, b)
        for value in (a, b):
            refuse_samples(value)
        return a @ b if isinstance(a, Matrix) or isinstance(b, Matrix) else a * b
    return np.sum(np.asarray(u) * np.asarray(v), axis=-1)


def cross(u: Any, v: Any) -> Any:
    """Cross product of two 3-vectors, right-handed."""
    if not (is_traced(u) or is_traced(v)):
        return np.cross(u, v)
    a, b = as_traced(u), as_traced(v)
    if not (isinstance(a, Vector) and isinstance(b, Vector) and len(a) == len(b) == 3):
        raise ShapeError(f"{user_line()}\n  cross product needs two 3-vectors")
    (a0, a1, a2), (b0, b1, b2) = a.items, b.items
    return vector([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0])


def norm(v: Any) -> Any:
    """Euclidean length of a vector (Frobenius of a matrix). At 0: value 0, gradient 0."""
    if not is_traced(v):
        return np.linalg.norm(np.asarray(v), axis=-1)
    if isinstance(v, LongRow):
        return sqrt(dot(v, v))
    items = _sequence(v)
    return sqrt(sum_of([item * item for item in items]))


def normalize(v: Any) -> Any:
    """Unit vector v / |v|. At 0: value 0, derivative 0."""
    if not is_traced(v):
        array = np.asarray(v, dtype=float)
        length = np.linalg.norm(array, axis=-1, keepdims=True)
        return np.divide(array, length, out=np.zeros_like(array), where=length > 0.0)
    u = as_traced(v)
    squared = dot(u, u)
    positive = squared > 0.0
    # Both arms of a where are evaluated: keep the untaken division finite.
    inverse = where(positive, 1.0 / sqrt(where(positive, squared, 1.0)), 0.0)
    return u * inverse


def _numpy_where(condition: Any, x: Any, y: Any) -> Any:
    return elementwise("where", condition, x, y)


def _numpy_sum(values: Any) -> Any:
    return sum(values)


def _numpy_prod(values: Any) -> Any:
    return reduce(lambda a, b: elementwise("mul", a, b), _items(values))


def _numpy_stack(values: Any) -> Any:
    return as_traced(list(values))


def _numpy_concatenate(values: Any) -> Any:
    return vector([item for part in values for item in _sequence(part)])


def _numpy_clip(x: Any, low: Any, high: Any) -> Any:
    return elementwise("clip", x, low, high)


def _numpy_transpose(matrix: Matrix) -> Matrix:
    return matrix.T


NUMPY_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _numpy_where,
    np.clip: _numpy_clip,
    np.cross: cross,
    np.dot: dot,
    np.inner: dot,
    np.vdot: dot,
    np.linalg.norm: norm,
    np.sum: _numpy_sum,
    np.prod: _numpy_prod,
    np.mean: mean,
    np.min: min,
    np.max: max,
    np.stack: _numpy_stack,
    np.concatenate: _numpy_concatenate,
    np.hstack: _numpy_concatenate,
    np.transpose: _numpy_transpose,
}
"""NumPy functions that trace, beyond the ufuncs."""


def trace_numpy_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record a call of a NumPy function on traced values."""
    traced = NUMPY_FUNCTIONS.get(func)
    if traced is None:
        known = ", ".join(sorted(f"np.{f.__name__}" for f in NUMPY_FUNCTIONS))
        raise TraceError(
            f"{user_line()}\n  np.{func.__name__} cannot be traced; these can: ufuncs, {known}"
        )
    if kwargs:
        raise TraceError(
            f"{user_line()}\n  np.{func.__name__} with {', '.join(kwargs)} cannot be traced; "
            "an element is a scalar, a vector or a matrix, without batch axes"
        )
    return traced(*args)
