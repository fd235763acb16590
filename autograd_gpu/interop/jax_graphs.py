"""Graphs as pure JAX functions, with the derivative rules of the op table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ..diff import jvp
from ..errors import ShapeError
from ..ir import Graph
from ..rewrite import simplify
from ..runtime.jax_functions import CACHED_FUNCTIONS, Columns, graph_function, load_jax


@lru_cache(maxsize=CACHED_FUNCTIONS)
def differentiable_columns(graph: Graph) -> Callable[[Sequence[Columns]], Columns]:
    """A graph on columns per argument, which JAX differentiates by our rules, to any order.

    The tangent of a graph is a graph again, linear in the tangents, so JAX can transpose it for
    reverse mode and differentiate it once more. Columns may be of any shapes that broadcast.
    """
    jax = load_jax()
    # Literals take the type of the arrays that they meet, whatever it is.
    element = graph_function(graph, "float64")

    @jax.custom_jvp
    def columns(arguments: Sequence[Columns]) -> Columns:
        return [jax.numpy.asarray(c) for c in element(arguments)]

    def push(primals: Any, tangents: Any) -> Any:
        (arguments,), (directions,) = primals, tangents
        flat = [d for of_argument in directions for d in of_argument]
        value = columns(arguments)
        tangent = differentiable_columns(_tangent(graph))([*arguments, flat])
        return value, [
            jax.numpy.broadcast_to(t, v.shape).astype(v.dtype)
            for t, v in zip(tangent, value, strict=True)
        ]

    columns.defjvp(push)
    return columns


@lru_cache(maxsize=CACHED_FUNCTIONS)
def _tangent(graph: Graph) -> Graph:
    return jvp(graph)


def as_floats(arrays: Sequence[Any]) -> tuple[list[Any], Any]:
    """JAX arrays of the one floating type that they all promote to, and that type."""
    jnp = load_jax().numpy
    given = [jnp.asarray(a) for a in arrays]
    dtype = jnp.result_type(*given) if given else jnp.result_type(float)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    return [a.astype(dtype) for a in given], dtype


def graph_as_jax(graph: Graph) -> Callable[..., Any]:
    """A graph as a function of one array per argument, of one element; see ``as_jax``."""
    jax = load_jax()
    columns = differentiable_columns(simplify(graph))

    def function(*arguments: Any) -> Any:
        given, dtype = as_floats(arguments)
        _check_shapes(graph, [a.shape for a in given])
        values = columns([list(a.reshape(-1)) for a in given])
        stacked = jax.numpy.stack([v.astype(dtype) for v in values])
        return stacked.reshape(graph.output_shape)

    function.__name__ = function.__qualname__ = graph.name
    return function


def _check_shapes(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> None:
    if len(shapes) != len(graph.arguments):
        raise ShapeError(
            f"graph {graph.name!r} as a JAX function: got {len(shapes)} arrays, expected one for "
            f"each of the arguments {', '.join(a.name for a in graph.arguments)}"
        )
    for argument, shape in zip(graph.arguments, shapes, strict=True):
        if shape != argument.shape:
            raise ShapeError(
                f"graph {graph.name!r} as a JAX function, argument {argument.name!r}: got shape "
                f"{shape}, expected {argument.shape}; it takes one element, use jax.vmap for more"
            )
