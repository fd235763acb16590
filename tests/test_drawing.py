"""What notebooks show of a graph: LaTeX that means the graph, and well-formed SVG."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.drawing import LARGEST_DRAWING, latex, svg
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.ops import BOOL, NODE_OPS


def lines_of(graph: Graph) -> list[str]:
    text = latex(graph)
    assert text is not None
    body = re.fullmatch(r"\$\\begin\{aligned\}\n(.*)\n\\end\{aligned\}\$", text, re.DOTALL)
    assert body is not None
    return body.group(1).split(" \\\\\n")


def one_line(fn: Any, *widths: int) -> str:
    (line,) = lines_of(ag.trace(fn, *widths))
    return line.partition(" &= ")[2]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x, y: x + y * x, r"X + X \, Y"),
        (lambda x, y: (x + y) * x, r"X \, \left(X + Y\right)"),
        (lambda x, y: x - (y - x), r"X - \left(Y - X\right)"),
        (lambda x, y: (x - y) / (x + 2.5), r"\frac{X - Y}{X + 2.5}"),
        (lambda x, y: -(x + y), r"-\left(X + Y\right)"),
        (lambda x, y: (-x) * y, r"Y \, \left(-X\right)"),
        (lambda x, y: x + (-y), r"X + \left(-Y\right)"),
        (lambda x, y: ag.exp(-x) * 3.0, r"e^{-X} \, 3"),
        (lambda x, y: ag.square(x + y), r"\left(X + Y\right)^{2}"),
        (lambda x, y: (x + y) ** y, r"\left(X + Y\right)^{Y}"),
        (lambda x, y: ag.sqrt(x) + ag.sin(y), r"\sqrt{X} + \operatorname{sin}\left(Y\right)"),
        (lambda x, y: ag.where(x < y, x, 1e-9),
         r"\begin{cases} X & X < Y \\ 1 \cdot 10^{-9} & \text{otherwise} \end{cases}"),
        (lambda x, y: ag.atan2(x, y), r"\operatorname{atan2}\left(X, Y\right)"),
    ],
)  # fmt: skip
def test_equations(fn: Any, expected: str) -> None:
    got = one_line(fn, 1, 1).replace(r"\mathrm{x}", "X").replace(r"\mathrm{y}", "Y")
    assert got == expected


def test_common_subexpressions_are_named_once() -> None:
    def spring(p: Any, q: Any, rest_length: Any) -> Any:
        stretch = ag.norm(q - p) - rest_length
        return [stretch, stretch * stretch]

    lines = lines_of(ag.trace(spring, 2, 2, 1))
    assert len(lines) == 4, "the squared length is long, the stretch used twice"
    assert lines[1] == r"s_{2} &= \sqrt{s_{1}} - \mathrm{rest\_length}"
    assert lines[2:] == [r"\mathrm{spring}_{0} &= s_{2}", r"\mathrm{spring}_{1} &= s_{2}^{2}"]
    assert r"\mathrm{q}_{1} - \mathrm{p}_{1}" in lines[0]


@pytest.mark.parametrize("op", NODE_OPS)
def test_every_op_is_drawn(op: str) -> None:
    row = NODE_OPS[op]
    b = Builder()
    leaves = [b.input(0, k) for k in range(3)]
    operands = [b.apply("lt", k, leaves[2]) if t == BOOL else k
                for k, t in zip(leaves, row.operands, strict=False)]  # fmt: skip
    graph = Graph.build(b, [b.apply(op, *operands)], (Argument("a", (3,)),), ())
    text = lines_of(graph)[-1]
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right")
    assert all(rf"\mathrm{{a}}_{{{k}}}" in text for k in range(len(row.operands)))


def test_svg_has_a_box_for_each_node_and_a_line_for_each_operand() -> None:
    graph = ag.trace(lambda p, q: ag.where(p.x < 1.0, ag.norm(q - p), 0.5), 3, 3)
    drawn = graph._repr_svg_()
    assert drawn is not None
    tree = ElementTree.fromstring(drawn)
    space = "{http://www.w3.org/2000/svg}"
    boxes = tree.findall(f"{space}rect")
    assert len(boxes) == len(graph.nodes)
    assert len(list(tree.iter(f"{space}line"))) == sum(len(n.args) for n in graph.nodes)
    corners = {(box.get("x"), box.get("y")) for box in boxes}
    assert len(corners) == len(boxes), "boxes lie on each other"
    labels = [element.text for element in tree.findall(f"{space}text")]
    assert {"p[0]", "q[2]", "where", "0.5"} <= set(labels)
    # Edges go down: an operand lies above what uses it.
    assert all(
        float(line.get("y1", "")) < float(line.get("y2", "")) for line in tree.iter(f"{space}line")
    )
    width = float(tree.get("width", ""))
    x = np.array([float(box.get("x", "")) for box in boxes])
    assert x.min() >= 0.0
    assert x.max() <= width


def test_large_graphs_fall_back_to_text() -> None:
    graph = ag.trace(lambda p: [ag.sin(p[k] * (k + 1.0)) for k in range(LARGEST_DRAWING)],
                     LARGEST_DRAWING)  # fmt: skip
    assert graph._repr_latex_() is None
    assert svg(graph) is None
