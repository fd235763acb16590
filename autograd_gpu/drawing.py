"""Pictures of a graph for notebooks: equations in LaTeX, and its nodes and edges as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import cast

from .ir import ARGUMENT_LEAVES, Graph, Node

LARGEST_DRAWING = 400
"""Nodes above which a notebook gets the text of ``repr`` instead of a picture."""

_LONGEST_EXPRESSION = 90
"""Characters of LaTeX above which an operand gets a name of its own."""

# Binding strength of what an expression ends in: operands that bind less get parentheses.
_RELATION, _SIGN, _SUM, _PRODUCT, _POWER, _ATOM = range(6)
_ANY = _RELATION

# Op -> (LaTeX over operands, strength of the result, least strength of each operand). Every other
# op is written as a function of its name, so a new op needs no line here.
_NOTATION: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "add": ("{0} + {1}", _SUM, (_ANY, _SUM)),
    "sub": ("{0} - {1}", _SUM, (_ANY, _PRODUCT)),
    "mul": (r"{0} \, {1}", _PRODUCT, (_PRODUCT, _PRODUCT)),
    "div": (r"\frac{{{0}}}{{{1}}}", _POWER, (_ANY, _ANY)),
    "neg": ("-{0}", _SIGN, (_PRODUCT,)),
    "pow": ("{0}^{{{1}}}", _POWER, (_ATOM, _ANY)),
    "sqrt": (r"\sqrt{{{0}}}", _ATOM, (_ANY,)),
    "cbrt": (r"\sqrt[3]{{{0}}}", _ATOM, (_ANY,)),
    "abs": (r"\left|{0}\right|", _ATOM, (_ANY,)),
    "floor": (r"\left\lfloor {0} \right\rfloor", _ATOM, (_ANY,)),
    "ceil": (r"\left\lceil {0} \right\rceil", _ATOM, (_ANY,)),
    "exp": ("e^{{{0}}}", _POWER, (_ANY,)),
    "where": (
        r"\begin{{cases}} {1} & {0} \\ {2} & \text{{otherwise}} \end{{cases}}",
        _ATOM,
        (_ANY, _ANY, _ANY),
    ),
    "lt": ("{0} < {1}", _RELATION, (_ANY, _ANY)),
    "le": (r"{0} \le {1}", _RELATION, (_ANY, _ANY)),
    "gt": ("{0} > {1}", _RELATION, (_ANY, _ANY)),
    "ge": (r"{0} \ge {1}", _RELATION, (_ANY, _ANY)),
    "eq": ("{0} = {1}", _RELATION, (_ANY, _ANY)),
    "ne": (r"{0} \ne {1}", _RELATION, (_ANY, _ANY)),
    "logical_and": (r"{0} \land {1}", _RELATION, (_ATOM, _ATOM)),
    "logical_or": (r"{0} \lor {1}", _RELATION, (_ATOM, _ATOM)),
    "logical_not": (r"\lnot {0}", _SIGN, (_ATOM,)),
}


def latex(graph: Graph) -> str | None:
    """The graph as aligned equations; None if it is too large to be read.

    A subexpression that is used more than once, or that is long, has a name s₁, s₂, … and a line.
    """
    if len(graph.nodes) > LARGEST_DRAWING:
        return None
    uses = [0] * len(graph.nodes)
    for node in graph.nodes:
        for a in set(node.args):
            uses[a] += 1
    named = {o for o in graph.outputs if uses[o]}
    lines: list[str] = []
    text: list[tuple[str, int]] = []
    for k, node in enumerate(graph.nodes):
        written = _expression(graph, node, text)
        if node.args and (uses[k] > 1 or k in named or _is_long(uses[k], written[0])):
            name = f"s_{{{len(lines) + 1}}}"
            lines.append(f"{name} &= {written[0]}")
            written = (name, _ATOM)
        text.append(written)
    title = _word(graph.name)
    for position, o in enumerate(graph.outputs):
        index = f"_{{{position}}}" if graph.output_shape else ""
        lines.append(f"{title}{index} &= {text[o][0]}")
    return "$\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}$"


def _is_long(uses: int, written: str) -> bool:
    return uses > 0 and len(written) > _LONGEST_EXPRESSION


def _word(name: str) -> str:
    """A name of Python's as an upright word."""
    return r"\mathrm{" + name.replace("_", r"\_").replace("<", "").replace(">", "") + "}"


def _number(value: float) -> tuple[str, int]:
    mantissa, _, exponent = f"{value:.6g}".partition("e")
    if exponent:
        mantissa += rf" \cdot 10^{{{int(exponent)}}}"
    return mantissa, _SIGN if value < 0.0 else _PRODUCT if exponent else _ATOM


def _leaf_name(graph: Graph, node: Node) -> str:
    """``p[1]``, or ``rest`` for a scalar."""
    argument, component = node.leaf
    described = graph.arguments[argument]
    if not described.shape:
        return described.name
    place = [str(int(i)) for i in _unravel(component, described.shape)]
    return f"{described.name}[{', '.join(place)}]"


def _unravel(position: int, shape: Sequence[int]) -> list[int]:
    place: list[int] = []
    for length in reversed(shape):
        position, index = divmod(position, length)
        place.append(index)
    return place[::-1]


def _expression(graph: Graph, node: Node, text: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """LaTeX of one node, and how strongly it binds."""
    if node.op in ARGUMENT_LEAVES:
        argument, component = node.leaf
        described = graph.arguments[argument]
        place = "".join(map(str, _unravel(component, described.shape)))
        return _word(described.name) + (f"_{{{place}}}" if described.shape else ""), _ATOM
    if node.op == "const":
        if isinstance(node.payload, bool):
            return rf"\text{{{str(node.payload).lower()}}}", _ATOM
        return _number(cast(float, node.payload))
    if node.op not in _NOTATION:
        operands = ", ".join(text[a][0] for a in node.args)
        return rf"\operatorname{{{_plain(node.op)}}}\left({operands}\right)", _ATOM
    if node.op == "mul" and node.args[0] == node.args[1]:
        return f"{_bound(text[node.args[0]], _ATOM)}^{{2}}", _POWER
    form, strength, least = _NOTATION[node.op]
    return form.format(*(_bound(text[a], s) for a, s in zip(node.args, least, strict=True))), (
        strength
    )


def _plain(op: str) -> str:
    return op.replace("_", r"\_")


def _bound(operand: tuple[str, int], least: int) -> str:
    text, strength = operand
    return text if strength >= least else rf"\left({text}\right)"


# -- SVG ----------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _GAP = 84, 22, 26
_FILL = {"input": "#dbe9f6", "item": "#dbe9f6", "const": "#eeeeee"}


def svg(graph: Graph) -> str | None:
    """Nodes in layers by depth, leaves on top, edges downwards; None if there are too many."""
    if not 0 < len(graph.nodes) <= LARGEST_DRAWING:
        return None
    layers = _layers(graph)
    widest = max(map(len, layers))
    width = widest * (_WIDTH + _GAP) + _GAP
    height = len(layers) * (_HEIGHT + _GAP) + _GAP
    centre: dict[int, tuple[float, float]] = {}
    for depth, layer in enumerate(layers):
        for place, k in enumerate(layer):
            step = width / len(layer)
            centre[k] = (step * (place + 0.5), _GAP + depth * (_HEIGHT + _GAP) + _HEIGHT / 2)
    outputs = set(graph.outputs)
    edges = [
        f'<line x1="{centre[a][0]:.1f}" y1="{centre[a][1] + _HEIGHT / 2:.1f}" '
        f'x2="{centre[k][0]:.1f}" y2="{centre[k][1] - _HEIGHT / 2:.1f}"/>'
        for k, node in enumerate(graph.nodes)
        for a in node.args
    ]
    boxes: list[str] = []
    for k, node in enumerate(graph.nodes):
        x, y = centre[k]
        stroke = "#c0392b" if k in outputs else "#555555"
        boxes.append(
            f'<rect x="{x - _WIDTH / 2:.1f}" y="{y - _HEIGHT / 2:.1f}" width="{_WIDTH}" '
            f'height="{_HEIGHT}" rx="4" fill="{_FILL.get(node.op, "#ffffff")}" '
            f'stroke="{stroke}"/><text x="{x:.1f}" y="{y + 4:.1f}">{_label(graph, node)}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" '
        f'text-anchor="middle"><title>{escape(repr(graph))}</title>'
        f'<g stroke="#999999">{"".join(edges)}</g>{"".join(boxes)}</svg>'
    )


def _layers(graph: Graph) -> list[list[int]]:
    """Nodes by depth; within a layer by the mean place of their operands, to cross few edges.

    Source: Sugiyama, Tagawa and Toda 1981, the barycentre heuristic, one sweep.
    """
    depth: list[int] = []
    for node in graph.nodes:
        depth.append(1 + max((depth[a] for a in node.args), default=-1))
    layers: list[list[int]] = [[] for _ in range(max(depth) + 1)]
    place: dict[int, float] = {}
    for k in sorted(range(len(graph.nodes)), key=lambda k: depth[k]):
        layers[depth[k]].append(k)
    for layer in layers:
        layer.sort(
            key=lambda k: (
                math.fsum(place[a] for a in graph.nodes[k].args) / max(1, len(graph.nodes[k].args)),
                k,
            )
        )
        for position, k in enumerate(layer):
            place[k] = (position + 0.5) / len(layer)
    return layers


def _label(graph: Graph, node: Node) -> str:
    if node.op in ARGUMENT_LEAVES:
        return escape(_leaf_name(graph, node))
    if node.op == "const":
        return (
            str(node.payload).lower()
            if isinstance(node.payload, bool)
            else f"{cast(float, node.payload):.6g}"
        )
    return escape(node.op)
