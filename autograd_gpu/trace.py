"""Tracing: call a plain Python function once with traced values and keep what it did."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import AutogradGpuError, ShapeError, TraceError
from .ir import Argument, Builder, Graph, Shape
from .ops import BOOL, NODE_OPS
from .samples import SampleBuilder
from .scalar import AbstractScalar, Scalar, apply, is_internal, is_scalar_like, user_line
from .sequence import TracedSequence
from .vector import Matrix, Vector, vector

Width = int | Sequence[int]
"""1 is a scalar, k a vector of k; a tuple is a shape: (k,) or (rows, columns)."""


def shape_of(width: Width) -> Shape:
    """Element shape of a width."""
    if isinstance(width, int | np.integer):
        shape: Shape = () if width == 1 else (int(width),)
    else:
        shape = tuple(int(k) for k in width)
    if len(shape) > 2 or any(k < 1 for k in shape):
        raise ShapeError(
            f"argument width {width!r}: expected 1 (scalar), k (vector), (k,) or (rows, columns)"
        )
    return shape


def argument_names(fn: Callable[..., Any], count: int) -> list[str]:
    """Names of the first ``count`` positional parameters, as far as the function tells."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [names[k] if k < len(names) else f"arg{k}" for k in range(count)]


def function_name(fn: Callable[..., Any]) -> str:
    """Name for messages."""
    return getattr(fn, "__name__", type(fn).__name__)


def trace(fn: Callable[..., Any], *widths: Width) -> Graph:
    """Trace ``fn`` into a graph.

    Args:
        fn: residual function of one element; returns a scalar, a vector, or a (nested) list or
            tuple of them. It is called once; a cache by function identity is never kept.
        widths: one per argument: 1 for a scalar, k for a vector, a tuple for a shape.

    Returns:
        The graph as written (call ``ag.simplify`` for fewer operations).

    Raises:
        TraceError: the function branches on a traced value, needs its number, or returns nothing.
    """
    shapes = [shape_of(w) for w in widths]
    names = argument_names(fn, len(shapes))
    return trace_shapes(fn, [Argument(n, s) for n, s in zip(names, shapes, strict=True)])


def trace_shapes(
    fn: Callable[..., Any],
    arguments: Sequence[Argument],
    name: str | None = None,
    builder: Builder | None = None,
) -> Graph:
    """Like ``trace``, for arguments whose names and shapes are known, into an empty builder."""
    builder = Builder() if builder is None else builder
    title = name or function_name(fn)
    values = [traced_argument(builder, k, a.shape) for k, a in enumerate(arguments)]
    ids, shape = _traced_ids(builder, fn, values, title)
    return Graph.build(builder, ids, arguments, shape, title)


def trace_samples(
    fn: Callable[[Any], Any], size: int
) -> tuple[Graph, list[NDArray[np.float64]], list[bool]]:
    """Trace a function of a vector of ``size`` numbers that may use long arrays of samples.

    Returns:
        the graph, whose argument 0 is the vector (a scalar if ``size`` is 1) and whose further
        arguments are columns; the columns; and for each output whether it differs by sample.

    Raises:
        TraceError, ShapeError: as ``trace``; or columns of different lengths, or sums over them.
    """
    builder = SampleBuilder()
    title = function_name(fn)
    x = vector([Scalar(builder, builder.input(0, k)) for k in range(size)])
    ids, _ = _traced_ids(builder, fn, [x], title)
    arguments = [Argument("x", () if size == 1 else (size,))]
    arguments += [Argument(f"column{k}", ()) for k in range(len(builder.columns))]
    sampled = [builder.is_sampled(k) for k in ids]
    return Graph.build(builder, ids, arguments, None, title), builder.columns, sampled


def _traced_ids(
    builder: Builder, fn: Callable[..., Any], values: list[Any], title: str
) -> tuple[list[int], Shape]:
    """Call the function; nodes of what it returned, flat, and their shape."""
    result = call_residual(fn, values, title)
    items, shape = flatten_result(result, title)
    if any(isinstance(item, Scalar) and item.builder is not builder for item in items):
        raise TraceError(
            f"residual function {title!r} returned a value of another trace (mixes values of two "
            "traces); a traced value cannot outlive the function call that it was made for"
        )
    if any(isinstance(item, AbstractScalar) and not isinstance(item, Scalar) for item in items):
        raise TraceError(
            f"residual function {title!r} returned an eager ag.Value, which is no argument; pass "
            "its number to add_residuals as an argument"
        )
    ids = [item.node if isinstance(item, Scalar) else builder.constant(item) for item in items]
    for position, k in enumerate(ids):
        if builder.nodes[k].dtype == BOOL:
            raise TraceError(
                f"{title}: returns a truth value at position {position}; "
                "use ag.where(condition, 1.0, 0.0)"
            )
    return ids, shape


def traced_argument(builder: Builder, position: int, shape: Shape) -> Any:
    """Traced value of argument ``position``."""
    size = int(np.prod(shape, dtype=int))
    items = [Scalar(builder, builder.input(position, k)) for k in range(size)]
    if shape == ():
        return items[0]
    if len(shape) == 1:
        return vector(items)
    columns = shape[1]
    return Matrix([items[k : k + columns] for k in range(0, size, columns)])


def inline(graph: Graph, values: Sequence[Any]) -> Any:
    """A graph applied to traced or eager values: its nodes once more, among theirs.

    Args:
        graph: what to apply.
        values: one per argument, scalars, vectors, matrices or nested lists of them; some may be
            numbers.

    Returns:
        a scalar, vector, matrix or nested lists, of the graph's output shape.

    Raises:
        ShapeError: number or shapes of the values.
    """
    title = graph.name
    if len(values) != len(graph.arguments):
        raise ShapeError(
            f"{user_line()}\n  calls graph {title!r} with {len(values)} arguments, it takes "
            f"{len(graph.arguments)}"
        )
    leaves: list[list[Any]] = []
    for argument, given in zip(graph.arguments, values, strict=True):
        items, shape = flatten_result(given, title)
        if shape != argument.shape:
            raise ShapeError(
                f"{user_line()}\n  calls graph {title!r} with argument {argument.name!r} of shape "
                f"{shape}, expected {argument.shape}"
            )
        leaves.append(items)
    known: list[Any] = []
    for node in graph.nodes:
        if node.op == "const":
            known.append(node.payload)
        elif node.op == "input":
            known.append(leaves[node.leaf[0]][node.leaf[1]])
        else:
            operands = [known[a] for a in node.args]
            traced = any(isinstance(v, AbstractScalar) for v in operands)
            known.append((apply if traced else _on_numbers)(node.op, *operands))
    return _shaped([known[o] for o in graph.outputs], graph.output_shape)


def _on_numbers(op: str, *operands: Any) -> Any:
    with np.errstate(all="ignore"):
        return NODE_OPS[op].numpy(*operands)


def _shaped(items: list[Any], shape: Shape) -> Any:
    dimensions = len(shape)
    if dimensions == 0:
        return items[0]
    rows = shape[0]
    size = len(items) // rows
    parts = [items[k : k + size] for k in range(0, len(items), size)]
    if dimensions > 2:
        return [_shaped(part, shape[1:]) for part in parts]
    if not all(isinstance(item, AbstractScalar) for item in items):
        return items if dimensions == 1 else parts
    return vector(items) if dimensions == 1 else Matrix(parts)


def call_residual(fn: Callable[..., Any], values: list[Any], title: str) -> Any:
    """Call the user's function; foreign exceptions keep their line and gain the context."""
    try:
        return fn(*values)
    except AutogradGpuError:
        raise
    except Exception as error:  # a user's function may raise anything
        trail = error.__traceback__
        where = "an unknown line"
        while trail is not None:  # ends with the innermost frame of the user's
            file, line = trail.tb_frame.f_code.co_filename, trail.tb_lineno
            if not is_internal(file):
                where = f"{file}:{line}: {linecache.getline(file, line).strip()}"
            trail = trail.tb_next
        raise TraceError(
            f"residual function {title!r} failed while being traced, at {where}\n"
            f"  {type(error).__name__}: {error}"
        ) from error


def flatten_result(result: Any, title: str) -> tuple[list[Any], Shape]:
    """Flatten what a function returned into scalars, and its shape (flat if it is ragged)."""
    if is_scalar_like(result):
        return [_entry(result, title)], ()
    if isinstance(result, Vector):
        return [_entry(i, title) for i in result.items], result.shape
    if isinstance(result, Matrix):
        return [_entry(e, title) for row in result.rows for e in row], result.shape
    if isinstance(result, TracedSequence):
        return flatten_result(list(result.items), title)
    if isinstance(result, np.ndarray):
        return flatten_result(cast("list[Any]", result.tolist()), title)
    if isinstance(result, list | tuple) and result:
        parts = [flatten_result(part, title) for part in cast("list[Any]", result)]
        items = [item for part, _ in parts for item in part]
        shapes = {shape for _, shape in parts}
        inner = shapes.pop() if len(shapes) == 1 else None
        if inner is not None and len(inner) < 2:
            return items, (len(parts), *inner)
        return items, (len(items),)
    if result is None:
        raise TraceError(
            f"residual function {title!r} returned None; return the residual "
            "(a scalar, a vector, or a list of them)"
        )
    raise TraceError(
        f"residual function {title!r} returned {type(cast(object, result)).__name__}; expected a "
        "traced scalar or vector, or a non-empty list of them"
    )


def _entry(item: Any, title: str) -> Any:
    if isinstance(item, AbstractScalar):
        return item
    number = float(item)
    if not np.isfinite(number):
        raise TraceError(f"residual function {title!r} returned the constant {number}")
    return number
