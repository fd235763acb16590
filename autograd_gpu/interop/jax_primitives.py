"""JAX's primitives on arrays whose entries are traced scalars or numbers.

Arrays are NumPy arrays of objects where an entry is traced, and plain ones otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ops import BOOL, NODE_OPS
from ..scalar import AbstractScalar, apply

Array = NDArray[Any]
Operands = Sequence[Array]
Rule = Callable[[Mapping[str, Any], Operands], Array]
# By number of entries, which is how type checkers understand the lambdas below.
_OfEntries = Callable[[Any], Any] | Callable[[Any, Any], Any] | Callable[[Any, Any, Any], Any]

# Primitive -> op of the same meaning on reals.
_OPS = {
    **{
        name: name
        for name in (
            "add", "sub", "mul", "div", "neg", "pow", "sqrt", "cbrt", "abs", "sign", "floor",
            "ceil", "exp", "log", "expm1", "log1p", "sin", "cos", "tan", "asin", "acos", "atan",
            "atan2", "sinh", "cosh", "tanh", "erf", "lt", "le", "gt", "ge", "eq", "ne", "square",
        )
    },
    "max": "maximum", "min": "minimum", "logistic": "sigmoid", "add_any": "add",
    "and": "logical_and", "or": "logical_or", "not": "logical_not", "xor": "ne",
}  # fmt: skip
_FOLDS = {
    "reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "maximum", "reduce_min": "minimum",
    "reduce_and": "logical_and", "reduce_or": "logical_or",
}  # fmt: skip
_SCANS = {"cumsum": "add", "cumprod": "mul", "cummax": "maximum", "cummin": "minimum"}


def objects(items: Sequence[Any], shape: tuple[int, ...]) -> Array:
    """An array of objects from its entries, row by row."""
    made = np.empty(len(items), object)
    for k, item in enumerate(items):  # NumPy would look into a traced value
        made[k] = item
    return made.reshape(shape)


def is_traced(array: Array) -> bool:
    """Whether an entry of the array is traced."""
    return array.dtype == object


def entries(array: Any) -> Array:
    """An array of objects; numbers become Python's."""
    array = np.asarray(array)
    return array if is_traced(array) else objects(array.ravel().tolist(), array.shape)


def combined(op: str, *operands: Any) -> Any:
    """An op of the table; numbers among the operands decide what they can."""
    if not any(isinstance(v, AbstractScalar) for v in operands):
        with np.errstate(all="ignore"):
            return np.asarray(NODE_OPS[op].numpy(*operands)).item()
    if op == "where" and not isinstance(operands[0], AbstractScalar):
        return operands[1] if operands[0] else operands[2]
    if op in ("logical_and", "logical_or"):
        for known, other in (operands, operands[::-1]):
            if not isinstance(known, AbstractScalar):
                return known if bool(known) == (op == "logical_or") else other
    if any(isinstance(v, float) and math.isinf(v) for v in operands):
        return _beside_infinity(op, operands)
    return apply(op, *operands)


def _beside_infinity(op: str, operands: Sequence[Any]) -> Any:
    """Traced values are finite, which decides comparisons with infinity and smaller or larger."""
    finite = [0.0 if isinstance(v, AbstractScalar) else v for v in operands]
    if NODE_OPS[op].result == BOOL:
        return bool(NODE_OPS[op].numpy(*finite))
    if op in ("minimum", "maximum"):
        return operands[0] if NODE_OPS[op].numpy(*finite) == finite[0] else operands[1]
    return apply(op, *operands)  # refuses the constant


def each(function: _OfEntries, *arrays: Any) -> Array:
    """``function`` of corresponding entries."""
    given = np.broadcast_arrays(*[entries(a) for a in arrays])
    act: Callable[..., Any] = function
    items = [act(*row) for row in zip(*(g.ravel() for g in given), strict=True)]
    return objects(items, given[0].shape)


def _by_entry(function: _OfEntries) -> Rule:
    return lambda params, operands: each(function, *operands)


def _truncated(x: Any) -> Any:
    return combined("where", combined("lt", x, 0.0), combined("ceil", x), combined("floor", x))


def _remainder(a: Any, b: Any) -> Any:
    return a - b * _truncated(a / b)


def _asinh(x: Any) -> Any:
    size = combined("abs", x)
    squared = size * size
    grown = combined("log1p", size + squared / (1.0 + combined("sqrt", 1.0 + squared)))
    return combined("where", combined("lt", x, 0.0), -grown, grown)


def _acosh(x: Any) -> Any:
    return combined("log", x + combined("sqrt", x * x - 1.0))


def _atanh(x: Any) -> Any:
    return 0.5 * (combined("log1p", x) - combined("log1p", -x))


def _clamped(low: Any, x: Any, high: Any) -> Any:
    return combined("minimum", combined("maximum", x, low), high)


def _integer_power(params: Mapping[str, Any], operands: Operands) -> Array:
    exponent = int(params["y"])
    if exponent < 0:
        return each(lambda x: 1.0 / _powered(x, -exponent), operands[0])
    return each(lambda x: _powered(x, exponent), operands[0])


def _powered(x: Any, exponent: int) -> Any:
    """By repeated squaring."""
    result: Any = None
    while exponent:
        if exponent & 1:
            result = x if result is None else result * x
        exponent >>= 1
        x = x * x if exponent else x
    return 1.0 if result is None else result


def _rounded(params: Mapping[str, Any], operands: Operands) -> Array:
    if int(params["rounding_method"]) == 1:
        return each(lambda x: combined("round", x), operands[0])
    return each(lambda x: _truncated(x + combined("where", combined("lt", x, 0.0), -0.5, 0.5)),
                 operands[0])  # fmt: skip


def _selected(params: Mapping[str, Any], operands: Operands) -> Array:
    which, *cases = operands
    return each(_case, which, *cases) if len(cases) > 1 else cases[0]


def _case(which: Any, *cases: Any) -> Any:
    """The case of a number, or of a truth value: false first."""
    if _is_truth(which):
        return combined("where", which, cases[1], cases[0])
    chosen = cases[-1]
    for k in reversed(range(len(cases) - 1)):
        chosen = combined("where", combined("lt", which, k + 0.5), cases[k], chosen)
    return chosen


def _extreme_position(op: str) -> Rule:
    """Position of the first largest (``gt``) or smallest (``lt``) entry, as a real number."""

    def rule(params: Mapping[str, Any], operands: Operands) -> Array:
        (axis,) = params["axes"]
        rows = np.moveaxis(entries(operands[0]), axis, -1)
        found: list[Any] = []
        for row in rows.reshape(-1, rows.shape[-1]).tolist():
            position, best, *rest = 0.0, *(_as_number(v) for v in row)
            for k, value in enumerate(rest, 1):
                beats = combined(op, value, best)
                position = combined("where", beats, float(k), position)
                best = combined("where", beats, value, best)
            found.append(position)
        return objects(found, rows.shape[:-1])

    return rule


def _as_number(value: Any) -> Any:
    return combined("where", value, 1.0, 0.0) if _is_truth(value) else value


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool) or getattr(value, "dtype", None) == BOOL


def _converted(params: Mapping[str, Any], operands: Operands) -> Array:
    kind = np.dtype(params["new_dtype"]).kind
    if kind == "b":
        return each(lambda x: x if _is_truth(x) else combined("ne", x, 0.0), operands[0])
    if kind in "iu" and not all(_is_truth(x) or not isinstance(x, AbstractScalar)
                                for x in operands[0].ravel()):  # fmt: skip
        return each(_truncated, operands[0])
    return each(_as_number, operands[0])


def _fold(op: str, entries: Sequence[Any]) -> Any:
    return reduce(lambda a, b: combined(op, a, b), entries)


_EMPTY = {"add": 0.0, "mul": 1.0, "logical_and": True, "logical_or": False}


def _reduced(op: str) -> Rule:
    def rule(params: Mapping[str, Any], operands: Operands) -> Array:
        array = entries(operands[0])
        axes = tuple(params["axes"])
        kept = [k for k in range(array.ndim) if k not in axes]
        shape = tuple(array.shape[k] for k in kept)
        rows = array.transpose([*kept, *axes]).reshape(math.prod(shape), -1)
        folded = [_fold(op, row.tolist()) if row.size else _EMPTY[op] for row in rows]
        return objects(folded, shape)

    return rule


def _accumulated(op: str) -> Rule:
    def rule(params: Mapping[str, Any], operands: Operands) -> Array:
        array = np.moveaxis(entries(operands[0]), params["axis"], 0)
        if params["reverse"]:
            array = array[::-1]
        rows = [array[k, ...] for k in range(len(array))]
        for k in range(1, len(rows)):
            rows[k] = each(lambda a, b: combined(op, a, b), rows[k - 1], rows[k])
        stacked = np.stack(rows)
        return np.moveaxis(stacked[::-1] if params["reverse"] else stacked, 0, params["axis"])

    return rule


def _dot_general(params: Mapping[str, Any], operands: Operands) -> Array:
    """Products over contracted axes; the result's axes are batch, free of a, free of b."""
    (contract_a, contract_b), (batch_a, batch_b) = params["dimension_numbers"]
    a, b = (entries(o) for o in operands)
    free_a = [k for k in range(a.ndim) if k not in (*contract_a, *batch_a)]
    free_b = [k for k in range(b.ndim) if k not in (*contract_b, *batch_b)]
    shape = (
        *(a.shape[k] for k in batch_a),
        *(a.shape[k] for k in free_a),
        *(b.shape[k] for k in free_b),
    )
    inner = math.prod(a.shape[k] for k in contract_a)
    batch = math.prod(a.shape[k] for k in batch_a)
    rows = a.transpose([*batch_a, *free_a, *contract_a]).reshape(batch, -1, inner)
    columns = b.transpose([*batch_b, *free_b, *contract_b]).reshape(batch, -1, inner)
    items = [
        _fold("add", [combined("mul", x, y) for x, y in zip(row, column, strict=True)])
        for rows_of, columns_of in zip(rows, columns, strict=True)
        for row, column in product(rows_of.tolist(), columns_of.tolist())
    ]
    return objects(items, shape)


def _is_finite(x: Any) -> bool:
    return True


RULES: dict[str, Rule] = {
    **{name: _by_entry(partial(combined, op)) for name, op in _OPS.items()},
    "integer_pow": _integer_power,
    "rsqrt": _by_entry(lambda x: 1.0 / combined("sqrt", x)),
    "exp2": _by_entry(lambda x: combined("exp", x * math.log(2.0))),
    "erfc": _by_entry(lambda x: 1.0 - combined("erf", x)),
    "asinh": _by_entry(_asinh),
    "acosh": _by_entry(_acosh),
    "atanh": _by_entry(_atanh),
    "rem": _by_entry(_remainder),
    "clamp": _by_entry(_clamped),
    "round": _rounded,
    "is_finite": _by_entry(_is_finite),
    "select_n": _selected,
    "convert_element_type": _converted,
    "dot_general": _dot_general,
    "argmax": _extreme_position("gt"),
    "argmin": _extreme_position("lt"),
    **{name: _reduced(op) for name, op in _FOLDS.items()},
    **{name: _accumulated(op) for name, op in _SCANS.items()},
}
