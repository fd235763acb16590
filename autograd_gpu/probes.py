"""``ag.probe``: names for intermediate values of a residual function, to be read back.

A probe is no node of the graph: tracing notes which nodes the value is made of, beside the graph,
which is the same as without. Whoever wants the values has them computed by a kernel of their own
(``solvers/probe_values.py``), so residuals, Jacobians and topology keys do not know of probes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import TraceError
from .ir import Argument, Builder, Graph, Shape
from .ops import BOOL
from .rewrite import simplify
from .scalar import Scalar, user_line
from .trace import flatten_result

_Probed = TypeVar("_Probed")


@dataclass(frozen=True, slots=True)
class Probe:
    """Nodes of one probed value, row-major, and its shape."""

    nodes: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class ProbedGraph:
    """All probes of a residual function as one graph of its arguments.

    Attributes:
        graph: outputs are the probed values, one probe after the other.
        shapes: of each, by name.
    """

    graph: Graph
    shapes: dict[str, Shape]


def probe(name: str, value: _Probed) -> _Probed:
    """Name an intermediate value inside a residual function.

    Read it back, one entry an element, as ``problem.evaluate(…).probes[name]`` or
    ``solution.probes[name]``. Outside of a problem's residuals it does nothing.

    Args:
        name: unique in the function.
        value: scalar, vector, matrix, or (nested) list of scalars; a comparison counts as 0 or 1.

    Returns:
        ``value`` as it is.

    Raises:
        TraceError: the name is taken, or no name; or the value is of another trace.
    """
    if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TraceError(f"{user_line()}\n  probe: got name {name!r}, expected a text")
    items, shape = flatten_result(value, f"probe {name!r}")
    builders = [item.builder for item in items if isinstance(item, Scalar)]
    record: dict[str, Probe] | None = getattr(builders[0], "probes", None) if builders else None
    if record is None:
        return value
    if name in record:
        raise TraceError(
            f"{user_line()}\n  probe: {name!r} is taken in this function; choose another name"
        )
    builder = builders[0]
    if any(other is not builder for other in builders):
        raise TraceError(f"{user_line()}\n  probe: {name!r} mixes values of two traces")
    record[name] = Probe(tuple(_node(builder, item) for item in items), shape)
    return value


def _node(builder: Builder, item: Any) -> int:
    """The node of an item, a truth value as a number."""
    node = item.node if isinstance(item, Scalar) else builder.constant(float(item))
    if builder.nodes[node].dtype != BOOL:
        return node
    return builder.apply("where", node, builder.constant(1.0), builder.constant(0.0))


def probed_graph(
    builder: Builder, probes: Mapping[str, Probe], arguments: Sequence[Argument], title: str
) -> ProbedGraph | None:
    """The graph of what was probed while tracing; None if nothing was."""
    if not probes:
        return None
    nodes = [node for probe in probes.values() for node in probe.nodes]
    graph = simplify(Graph.build(builder, nodes, arguments, None, f"probes of {title}"))
    return ProbedGraph(graph, {name: probe.shape for name, probe in probes.items()})
