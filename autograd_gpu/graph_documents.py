"""Graphs as plain data, for JSON: every node a row, every constant by its bits."""

from __future__ import annotations

from typing import Any

from .errors import InputError
from .ir import Argument, Graph, Node
from .ops import BOOL, NODE_OPS, DType


def graph_document(graph: Graph) -> dict[str, Any]:
    """A graph as dictionaries, lists, strings and numbers.

    Raises:
        InputError: a node holds more than a number or a place of an argument.
    """
    return {
        "name": graph.name,
        "arguments": [[a.name, list(a.shape)] for a in graph.arguments],
        "output_shape": list(graph.output_shape),
        "outputs": list(graph.outputs),
        "nodes": [_row(node) for node in graph.nodes],
    }


def _row(node: Node) -> list[Any]:
    if node.op == "input":
        return ["input", *node.leaf, node.dtype.value]
    if node.op == "const":
        value = node.payload
        assert isinstance(value, bool | float)
        return ["const", value if isinstance(value, bool) else float(value).hex()]
    if node.payload is not None or node.op not in NODE_OPS:
        raise InputError(f"the op {node.op!r} cannot be written to a file yet")
    return [node.op, *node.args]


def graph_of_document(document: dict[str, Any]) -> Graph:
    """The graph that ``graph_document`` was made of.

    Raises:
        InputError: an op that this version does not have, or operands that are no earlier nodes.
    """
    nodes: list[Node] = []
    for op, *rest in document["nodes"]:
        if op == "input":
            argument, component, dtype = rest
            nodes.append(Node("input", (), (argument, component), DType(dtype)))
        elif op == "const":
            (value,) = rest
            real = not isinstance(value, bool)
            payload = float.fromhex(value) if real else value
            nodes.append(Node("const", (), payload, DType.REAL if real else BOOL))
        elif op in NODE_OPS and all(0 <= a < len(nodes) for a in rest):
            nodes.append(Node(op, tuple(rest), None, NODE_OPS[op].result))
        else:
            raise InputError(f"a graph in the file has a node {op!r} that this version cannot read")
    return Graph(
        tuple(nodes),
        tuple(document["outputs"]),
        tuple(Argument(name, tuple(shape)) for name, shape in document["arguments"]),
        tuple(document["output_shape"]),
        document["name"],
    )
