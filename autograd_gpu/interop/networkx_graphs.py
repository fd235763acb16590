"""Graphs as networkx graphs, and drawings of them."""

from __future__ import annotations

import os
from typing import Any

from ..ir import Graph, Node
from ..ops import NODE_OPS
from .libraries import load_figure, load_networkx

_SIGNS = {
    "add": "+", "sub": "-", "mul": "×", "div": "÷", "neg": "−", "sqrt": "√",
    "lt": "<", "le": "≤", "gt": ">", "ge": "≥", "eq": "=", "ne": "≠",
}  # fmt: skip
_COLORS = {"input": "#a6cee3", "const": "#e5e5e5", "output": "#fdbf6f", "op": "#ffffff"}
INCHES_PER_NODE = 0.62


def to_networkx(graph: Graph) -> Any:
    """A graph as a ``networkx.MultiDiGraph``.

    Nodes are numbered as in ``graph.nodes``. Their attributes: ``op``, ``dtype`` and ``label``;
    of a leaf ``argument`` and ``component``, of a literal ``value``; ``outputs``, the positions
    among the graph's outputs. An edge runs from an operand to what uses it; its key is the
    operand's position, so that x - y and y - x differ, and x * x has two edges.

    Raises:
        MissingDependencyError: networkx is not installed.
    """
    nx = load_networkx()
    made = nx.MultiDiGraph(name=graph.name, arguments=[(a.name, a.shape) for a in graph.arguments])
    places: dict[int, list[int]] = {}
    for position, o in enumerate(graph.outputs):
        places.setdefault(o, []).append(position)
    for k, node in enumerate(graph.nodes):
        facts: dict[str, Any] = {"op": node.op, "dtype": node.dtype.value}
        if node.op == "input":
            argument, component = node.leaf
            facts |= {"argument": graph.arguments[argument].name, "component": component}
        elif node.op == "const":
            facts["value"] = node.payload
        made.add_node(k, **facts, label=_label(graph, node), outputs=tuple(places.get(k, ())))
        for position, operand in enumerate(node.args):
            made.add_edge(operand, k, key=position)
    return made


def _label(graph: Graph, node: Node) -> str:
    if node.op == "const":
        payload = node.payload
        return str(payload) if isinstance(payload, bool) else f"{payload:.6g}"
    if node.op != "input":
        return _SIGNS.get(node.op, node.op)
    argument = graph.arguments[node.leaf[0]]
    return argument.name if argument.shape == () else f"{argument.name}[{node.leaf[1]}]"


def positions(graph: Graph) -> dict[int, tuple[float, float]]:
    """Where a drawing puts each node: leaves on top, everything below what it is made of.

    A layer holds the nodes of one depth, in the order of the mean place of their operands.
    """
    depth: list[int] = []
    for node in graph.nodes:
        depth.append(1 + max((depth[a] for a in node.args), default=-1))
    # A literal stands right above the first that uses it, not among the arguments.
    above: dict[int, int] = {}
    for k, node in enumerate(graph.nodes):
        for a in node.args:
            if graph.nodes[a].op == "const":
                above[a] = min(above.get(a, depth[k]), depth[k])
    layers: list[list[int]] = [[] for _ in range(1 + max(depth, default=0))]
    for k, level in enumerate(depth):
        layers[above[k] - 1 if k in above else level].append(k)
    placed: dict[int, tuple[float, float]] = {}
    for level, members in enumerate(layers):

        def middle(k: int) -> float:
            operands = [placed[a][0] for a in graph.nodes[k].args if a in placed]
            return sum(operands) / len(operands) if operands else 0.0

        ordered = sorted(members, key=middle) if level else members
        for place, k in enumerate(ordered):
            placed[k] = (place - (len(ordered) - 1) / 2, -float(level))
    return placed


def draw(graph: Graph, path: str | os.PathLike[str] | None = None) -> Any:
    """Draw a graph: arguments blue, literals grey, outputs orange, edges from operand to user.

    Args:
        graph: of up to a few hundred nodes, beyond which labels overlap.
        path: file to write; its suffix gives the format (.png, .svg, .pdf).

    Returns:
        the ``matplotlib.figure.Figure``.

    Raises:
        MissingDependencyError: networkx or matplotlib is not installed.
    """
    nx = load_networkx()
    figure_class, canvas_class = load_figure()
    made = to_networkx(graph)
    at = positions(graph)
    wide = 2 * max(abs(x) for x, _ in at.values()) + 1
    high = 1 - min(y for _, y in at.values())
    size = (max(3.0, INCHES_PER_NODE * wide), max(2.0, INCHES_PER_NODE * high))
    figure = figure_class(figsize=size)
    canvas_class(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    outputs = set(graph.outputs)
    kinds = [
        "output" if k in outputs else node.op if node.op not in NODE_OPS else "op"
        for k, node in enumerate(graph.nodes)
    ]
    nx.draw_networkx_nodes(
        made, at, ax=axes, node_size=520, node_color=[_COLORS[kind] for kind in kinds],
        edgecolors="#444444", linewidths=0.8,
    )  # fmt: skip
    nx.draw_networkx_edges(
        made, at, ax=axes, node_size=520, edge_color="#888888", arrowsize=8,
        connectionstyle=["arc3,rad=0", "arc3,rad=0.25", "arc3,rad=-0.25"],
    )  # fmt: skip
    labels = {k: made.nodes[k]["label"] for k in made}
    nx.draw_networkx_labels(made, at, labels=labels, ax=axes, font_size=7)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
