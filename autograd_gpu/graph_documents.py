"""Graphs as plain data, for JSON: every node a row, every constant by its bits."""

from __future__ import annotations

from typing import Any

from .errors import InputError
from .folds import FOLDS, ITEM
from .ir import Argument, Graph, Node
from .ops import BOOL, NODE_OPS, DType


def graph_document(graph: Graph, *, rows: bool = False) -> dict[str, Any]:
    """A graph as dictionaries, lists, strings and numbers.

    Args:
        graph: to write.
        rows: whether it may loop over long rows; files of problems have no place for those yet.

    Raises:
        InputError: a node holds more than a number or a place of an argument.
    """
    return {
        "name": graph.name,
        "arguments": [
            [a.name, list(a.shape), *([True] if a.is_row else [])] for a in graph.arguments
        ],
        "output_shape": list(graph.output_shape),
        "outputs": list(graph.outputs),
        "nodes": [_row(node, rows) for node in graph.nodes],
    }


def _row(node: Node, rows: bool) -> list[Any]:
    if rows and node.op == ITEM:
        return [ITEM, *node.leaf]
    if rows and node.op in FOLDS:
        return [node.op, *node.args]
    if node.op == "input":
        return ["input", *node.leaf, node.dtype.value]
    if node.op == "const":
        value = node.payload
        assert isinstance(value, bool | float)
        return ["const", value if isinstance(value, bool) else float(value).hex()]
    if node.payload is not None or node.op not in NODE_OPS:
        raise InputError(f"the op {node.op!r} cannot be written to a file yet")
    return [node.op, *node.args]


_RESULTS = {name: row.result for name, row in (*NODE_OPS.items(), *FOLDS.items())}
"""Dtype of each op and fold."""


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
        elif op == ITEM:
            argument, component = rest
            nodes.append(Node(ITEM, (), (argument, component), DType.REAL))
        elif op == "const":
            (value,) = rest
            real = not isinstance(value, bool)
            payload = float.fromhex(value) if real else value
            nodes.append(Node("const", (), payload, DType.REAL if real else BOOL))
        elif op in _RESULTS and all(0 <= a < len(nodes) for a in rest):
            nodes.append(Node(op, tuple(rest), None, _RESULTS[op]))
        else:
            raise InputError(f"a graph in the file has a node {op!r} that this version cannot read")
    return Graph(
        tuple(nodes),
        tuple(document["outputs"]),
        tuple(Argument(name, tuple(shape), *row) for name, shape, *row in document["arguments"]),
        tuple(document["output_shape"]),
        document["name"],
    )
